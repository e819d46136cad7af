"""The record, in both databases: append-only, each event once, credits without gaps, rates that are fixed."""

import asyncio
import sqlite3
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest

from metering.ledger.record import SqlLedger
from metering.money import MAX_MICRO_MXN
from metering.ports import Charged, Ended, LedgerError, ListPrice, NewCredit, Org, SetAside
from metering.pricing import FxRate
from tests.conftest import run
from tests.kits.books import (
    ACT,
    NOON,
    SCHEMA,
    UNIT,
    charge_of,
    event,
    open_ledger,
    race,
    result_of,
    snapshot,
    sql,
    start_worker,
)

ORG = "11111111-1111-4111-8111-111111111111"
BEFORE = datetime(2036, 11, 1, 5, 59, tzinfo=UTC)
"""A minute before November in Mexico City."""


async def opened(place: Path | str) -> SqlLedger:
    """A migrated ledger with one organisation."""
    ledger = open_ledger(place)
    await ledger.migrate()
    await ledger.create_org(Org(ORG, "acme", "default", NOON.isoformat()), ACT)
    return ledger


TABLES = ["credit_transactions", "events", "changes", "price_books", "prices", "fx_rates"]


@pytest.mark.rule(3)
@pytest.mark.parametrize("table", TABLES)
async def test_the_database_refuses_to_change_what_was_written(ledger_url: str, table: str) -> None:
    """UPDATE, DELETE and TRUNCATE on every append-only table fail at the database itself (rule 3)."""
    async with aclosing(await opened(ledger_url)) as ledger:
        await ledger.add_credit(NewCredit("c1", ORG, "recharge", 5), NOON, ACT)
        await ledger.add_rate(FxRate("2036-11", Decimal(20), "test"), NOON)
        await ledger.register_prices("book", Decimal(1), [ListPrice("m", Decimal(1))], NOON)
        await ledger.book([event(ORG, 1)], [], NOON)
    before = sql(ledger_url, f"SELECT * FROM {table}")
    assert before
    column = {"credit_transactions": "id", "events": "event_id", "changes": "what", "fx_rates": "source"}.get(
        table, "version"
    )
    refused = [f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"]
    if ledger_url.startswith("postgresql"):
        refused += [f"TRUNCATE {table} CASCADE", f"SET session_replication_role = replica; {refused[1]}"]
    for statement in refused:
        with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError), match="append-only"):
            sql(ledger_url, statement)
    assert sql(ledger_url, f"SELECT * FROM {table}") == before


@pytest.mark.rule(30)
async def test_an_event_counts_once_however_often_it_comes(ledger_url: str) -> None:
    """1,000 bookings of the same event are one event and one consumption (rule 30)."""
    async with aclosing(await opened(ledger_url)) as ledger:
        new = [await ledger.book([event(ORG, 1)] * 10, [], NOON) for _ in range(100)]
        assert new == [{f"{ORG}-1"}] + [set()] * 99
        booked = await ledger.charged_up_to(ORG)
        assert (booked.events, booked.last_event, booked.charged_micro_mxn) == (1, 1, UNIT)
        assert [one async for one in ledger.events()] == [event(ORG, 1)]
    assert sql(ledger_url, "SELECT sum(amount_micro_mxn) FROM credit_transactions") == [(-UNIT,)]


async def test_race_three_processes_book_the_same_events_once(ledger_url: str) -> None:
    """Each books the same 50 events 10 times; together they find 50 new ones."""
    async with aclosing(await opened(ledger_url)) as ledger:
        assert sum(await asyncio.to_thread(race, "book", *[(ledger_url, ORG, 50, 10)] * 3)) == 50
        booked = await ledger.charged_up_to(ORG)
        assert (booked.events, booked.charged_micro_mxn) == (50, 50 * UNIT)


async def test_every_kind_of_event_comes_back_as_it_was(ledger_url: str) -> None:
    """Charge, void and expiry, page by page, by organisation and number."""
    async with aclosing(await opened(ledger_url)) as ledger:
        wanted = [event(ORG, n + 1, images=n % 8 + 1, end=("charge", "void", "expiry")[n % 3]) for n in range(2_500)]
        await ledger.book(wanted, [], NOON)
        assert [one async for one in ledger.events(org_id=ORG)] == wanted
        charged = sum(one.amount_micro_mxn for one in wanted[:100])
        upto = await ledger.charged_up_to(ORG, 100)
        assert (upto.events, upto.last_event, upto.charged_micro_mxn) == (100, 100, charged)


async def test_what_is_exported_are_the_charges_of_a_month(ledger_url: str) -> None:
    """All of them and nothing else, page by page, by organisation and number; of one organisation, or of all."""
    async with aclosing(await opened(ledger_url)) as ledger:
        other = "00000000-0000-4000-8000-000000000000"
        await ledger.create_org(Org(other, "other", "default", NOON.isoformat()), ACT)
        ours = [event(ORG, n + 1, images=n % 8 + 1, end=("charge", "void", "expiry")[n % 3]) for n in range(3_100)]
        ours[0] = replace(ours[0], opened=replace(ours[0].opened, month="2036-12"))
        ours[3] = replace(ours[3], opened=replace(ours[3].opened, quality="hd"), usd_measured="0.03")
        await ledger.book([*ours, event(other, 1)], [], NOON)
        wanted = [charge_of(one) for one in ours if one.end == "charge"]
        pages = [page async for page in ledger.charges("2036-11", org_id=ORG)]
        assert [one for page in pages for one in page] == wanted[1:] and len(pages) == 2
        assert [one async for page in ledger.charges("2036-11") for one in page] == [
            charge_of(event(other, 1)),
            *wanted[1:],
        ]
        assert [page async for page in ledger.charges("2036-12")] == [wanted[:1]]


async def test_it_tells_how_orders_ended(ledger_url: str) -> None:
    """By request id, with the paths of what was delivered; what it does not have is not in the answer."""
    async with aclosing(await opened(ledger_url)) as ledger:
        charge, void = event(ORG, 1, images=2), event(ORG, 2, end="void")
        await ledger.book([charge, void], [], NOON)
        ended = await ledger.ended([charge.event_id, void.event_id, "nobody's"])
        assert ended == {
            charge.event_id: Ended("charge", charge.reason, frozenset(image.path for image in charge.images)),
            void.event_id: Ended("void", void.reason, frozenset()),
        }
        assert [ended[one.event_id].charged for one in (charge, void)] == [True, False]
        assert await ledger.ended([]) == {}


async def test_a_batch_that_cannot_be_booked_books_nothing(ledger_url: str) -> None:
    """An event of an organisation that the record does not know is refused with the whole batch."""
    async with aclosing(await opened(ledger_url)) as ledger:
        foreign = event("99999999-9999-4999-8999-999999999999", 1)
        for poison in (foreign, replace(event(ORG, 2), number=2**70)):
            with pytest.raises(LedgerError):
                await ledger.book([event(ORG, 1), poison], [SetAside(1, "1-1", "x", b"{}")], NOON)
            assert (await ledger.charged_up_to(ORG)).events == 0
            assert await ledger.count_set_aside() == 0
        assert await ledger.book([event(ORG, 1)], [], NOON) == {f"{ORG}-1"}


async def test_a_running_total_is_what_its_events_sum_up_to(ledger_url: str) -> None:
    """At every cut, whatever came doubled or was refused; an organisation without events has nothing."""
    async with aclosing(await opened(ledger_url)) as ledger:
        assert (await ledger.charged_up_to(ORG)).events == (await ledger.recount(ORG)).events == 0
        for first in (1, 4, 7, 2):
            ends = ("charge", "void", "expiry")
            await ledger.book(
                [event(ORG, n, images=n % 3 + 1, end=ends[n % 3]) for n in range(first, first + 4)], [], NOON
            )
            with pytest.raises(LedgerError):
                await ledger.book([event(ORG, 50), event("99999999-9999-4999-8999-999999999999", 1)], [], NOON)
            for number in range(12):
                assert await ledger.charged_up_to(ORG, number) == await ledger.recount(ORG, number)
            assert await ledger.charged_up_to(ORG) == await ledger.recount(ORG)
        assert (await ledger.charged_up_to(ORG)).events == 10
        sql(ledger_url, "UPDATE charged SET amount_micro_mxn = amount_micro_mxn + 1")
        assert await ledger.charged_up_to(ORG) != await ledger.recount(ORG)


@pytest.mark.parametrize("what", ["events", "credit"])
async def test_a_writer_killed_in_mid_transaction_leaves_nothing(ledger_url: str, what: str) -> None:
    """SIGKILL after the last statement and before the commit; the next writer writes it completely and once."""
    async with aclosing(await opened(ledger_url)) as ledger:
        worker = start_worker("write_and_hang", ledger_url, ORG, what, 60)
        assert worker.stdout is not None
        assert await asyncio.to_thread(worker.stdout.readline) == b"written\n"
        worker.kill()
        worker.communicate()
        assert (await ledger.charged_up_to(ORG), (await snapshot(ledger, ORG)).credit_number) == (
            Charged(0, 0, 0),
            0,
        )
        assert len(await ledger.book([event(ORG, number) for number in (1, 2, 3)], [], NOON)) == 3
        assert await ledger.add_credit(NewCredit("credit-1", ORG, "recharge", 1), NOON, ACT)
        assert (await ledger.charged_up_to(ORG), (await snapshot(ledger, ORG)).credit_number) == (
            Charged(3, 3, 3 * UNIT),
            1,
        )


async def test_a_credit_is_added_once_by_its_id(ledger_url: str) -> None:
    """The same again is False; the same id for another credit is refused with a sentence that says what it is."""
    async with aclosing(await opened(ledger_url)) as ledger:
        assert await ledger.add_credit(NewCredit("spei-1", ORG, "recharge", 500_000_000), NOON, ACT)
        assert not await ledger.add_credit(NewCredit("spei-1", ORG, "recharge", 500_000_000), NOON, ACT)
        with pytest.raises(LedgerError, match=r"credit 'spei-1' exists already: recharge of 500\.00 MXN"):
            await ledger.add_credit(NewCredit("spei-1", ORG, "recharge", 500_000_001), NOON, ACT)
        with pytest.raises(LedgerError, match="exists already"):
            await ledger.add_credit(NewCredit("spei-1", ORG, "bonus", 500_000_000), NOON, ACT)
        found = await snapshot(ledger, ORG)
        assert (found.credit_number, found.credits_micro_mxn) == (1, 500_000_000)


async def test_credits_beyond_what_a_wallet_can_hold_are_refused(ledger_url: str) -> None:
    """The sum stays within 2^53 - 1 both ways: beyond it no wallet could be projected."""
    async with aclosing(await opened(ledger_url)) as ledger:
        await ledger.add_credit(NewCredit("c1", ORG, "recharge", MAX_MICRO_MXN), NOON, ACT)
        with pytest.raises(LedgerError, match=r"9007199254\.740991"):
            await ledger.add_credit(NewCredit("c2", ORG, "recharge", 1), NOON, ACT)
        await ledger.add_credit(NewCredit("c3", ORG, "adjustment", -MAX_MICRO_MXN), NOON, ACT)
        await ledger.add_credit(NewCredit("c4", ORG, "adjustment", -MAX_MICRO_MXN), NOON, ACT)
        with pytest.raises(LedgerError, match=r"9007199254\.740991"):
            await ledger.add_credit(NewCredit("c5", ORG, "adjustment", -1), NOON, ACT)
        assert (await snapshot(ledger, ORG)).credits_micro_mxn == -MAX_MICRO_MXN


@pytest.mark.rule(26)
async def test_race_credits_of_two_processes_are_numbered_without_gaps(ledger_url: str) -> None:
    """100 ids of each, 50 of them the same: 150 credits, numbered 1 to 150 (rule 26)."""
    async with aclosing(await opened(ledger_url)) as ledger:
        added = await asyncio.to_thread(race, "credits", *((ledger_url, ORG, first, 100) for first in (0, 50)))
        assert sum(added) == 150
        found = await snapshot(ledger, ORG)
        assert (found.credit_number, found.credits_micro_mxn) == (150, 150)
    numbers = sql(ledger_url, "SELECT number FROM credit_transactions ORDER BY number")
    assert numbers == [(number,) for number in range(1, 151)]


async def test_migrating_twice_changes_nothing(ledger_url: str) -> None:
    """The schema is at its version; an unmigrated file says which command to run."""
    async with aclosing(open_ledger(ledger_url)) as ledger:
        with pytest.raises(LedgerError, match="ghub migrate"):
            await ledger.check_schema()
        assert [await ledger.migrate(), await ledger.migrate()] == [SCHEMA, SCHEMA]
        await ledger.check_schema()


async def test_a_schema_that_is_newer_than_the_program_is_refused(ledger_url: str) -> None:
    """Neither checked as good nor migrated: the sentence says to run the newer program."""
    async with aclosing(open_ledger(ledger_url)) as ledger:
        await ledger.migrate()
        sql(ledger_url, "INSERT INTO schema_version VALUES (99)")
        for look in (ledger.check_schema, ledger.migrate):
            newer = f"version 99, and this program knows {SCHEMA}: run the newer program"
            with pytest.raises(LedgerError, match=newer):
                await look()


async def migrate_many(place: str) -> list[int]:
    ledgers = [open_ledger(place) for _ in range(8)]
    versions = await asyncio.gather(*(ledger.migrate() for ledger in ledgers))
    for ledger in ledgers:
        await ledger.aclose()
    return versions


def test_race_many_migrate_at_once(ledger_url: str) -> None:
    """Two processes and eight connections on a new database: all end at the same version, none fails."""
    workers = [start_worker("migrate", ledger_url) for _ in range(2)]
    assert run(migrate_many(ledger_url)) == [SCHEMA] * 8
    assert [result_of(worker) for worker in workers] == [SCHEMA, SCHEMA]
    every = [(version,) for version in range(1, SCHEMA + 1)]
    assert sql(ledger_url, "SELECT version FROM schema_version ORDER BY version") == every


@pytest.mark.rule(25)
async def test_a_month_that_has_begun_keeps_its_rate(ledger_url: str) -> None:
    """Before it begins the rate may be superseded, and both rows stay; afterwards it is fixed (rule 25)."""
    async with aclosing(await opened(ledger_url)) as ledger:
        first, second = (FxRate("2036-11", Decimal(number), "test") for number in ("20", "21.5"))
        assert await ledger.add_rate(first, BEFORE)
        assert not await ledger.add_rate(first, BEFORE)
        assert await ledger.add_rate(second, BEFORE)
        assert [(rate.month, rate.mxn_per_usd) for rate in await ledger.rates()] == [("2036-11", Decimal("21.5"))]
        assert await ledger.rate_rows() == {("2036-11", Decimal(20)), ("2036-11", Decimal("21.5"))}
        begun = datetime(2036, 11, 1, 6, tzinfo=UTC)
        with pytest.raises(LedgerError, match=r"2036-11 has begun at 21\.50 MXN"):
            await ledger.add_rate(first, begun)
        assert not await ledger.add_rate(second, begun)
        assert await ledger.add_rate(FxRate("2036-10", Decimal(19), "late"), begun)
        assert await ledger.add_rate(FxRate("2036-12", Decimal(19), "early"), begun)


async def test_a_price_book_is_written_once(ledger_url: str) -> None:
    """A version's rows never change, whichever process registers it again."""
    async with aclosing(await opened(ledger_url)) as ledger:
        await ledger.register_prices("book", Decimal("1.05"), [ListPrice("m", Decimal("0.04"))], NOON)
        await ledger.register_prices("book", Decimal("9"), [ListPrice("m", Decimal("9"))], NOON)
        assert await ledger.price_rows() == {("book", "m", ""): (Decimal("0.04"), Decimal("1.05"))}
