"""The record: append-only, each event once, credits without gaps, rates that are fixed."""

import asyncio
import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from metering.ledger.sqlite import SqliteLedger, open_sqlite
from metering.money import MAX_MICRO_MXN
from metering.ports import LedgerAway, LedgerError, ListPrice, Org, SetAside
from metering.pricing import Rate
from tests.conftest import run
from tests.integration.money_kit import NOON, ROOT, UNIT, event, result_of, start_worker

ORG = "11111111-1111-4111-8111-111111111111"
BEFORE = datetime(2036, 11, 1, 5, 59, tzinfo=UTC)
"""A minute before November in Mexico City."""


async def opened(path: Path) -> SqliteLedger:
    ledger = SqliteLedger(path)
    await ledger.migrate()
    await ledger.create_org(Org(ORG, "acme", "default", None, None, NOON.isoformat()))
    return ledger


TABLES = ["credit_transactions", "events", "changes", "price_books", "prices", "fx_rates"]


@pytest.mark.parametrize("table", TABLES)
def test_the_database_refuses_to_change_what_was_written(tmp_path: Path, table: str) -> None:
    """UPDATE and DELETE on every append-only table fail at the database itself (rule 3)."""

    async def work() -> None:
        ledger = await opened(tmp_path / "l.db")
        await ledger.add_credit(ORG, "c1", "recharge", 5, NOON)
        await ledger.add_rate(Rate("2036-11", Decimal(20), "test"), NOON)
        await ledger.register_prices("book", Decimal(1), [ListPrice("m", Decimal(1))], NOON)
        await ledger.book([event(ORG, 1)], [], NOON)
        await ledger.aclose()

    run(work())
    with sqlite3.connect(tmp_path / "l.db") as db:
        before = db.execute(f"SELECT * FROM {table}").fetchall()
        assert before
        column = db.execute(f"SELECT name FROM pragma_table_info('{table}')").fetchone()[0]
        for statement in (f'UPDATE {table} SET "{column}" = "{column}"', f"DELETE FROM {table}"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                db.execute(statement)
        assert db.execute(f"SELECT * FROM {table}").fetchall() == before
    db.close()


def test_an_event_counts_once_however_often_it_comes(tmp_path: Path) -> None:
    """1,000 bookings of the same event are one event and one consumption (rule 30)."""

    async def work() -> None:
        ledger = await opened(tmp_path / "l.db")
        new = [await ledger.book([event(ORG, 1)] * 10, [], NOON) for _ in range(100)]
        assert new == [{f"{ORG}-1"}] + [set()] * 99
        booked = await ledger.charged_up_to(ORG)
        assert (booked.events, booked.last_event, booked.charged_micro_mxn) == (1, 1, UNIT)
        assert [one async for one in ledger.events()] == [event(ORG, 1)]
        await ledger.aclose()

    run(work())
    with sqlite3.connect(tmp_path / "l.db") as db:
        assert db.execute("SELECT sum(amount_micro_mxn) FROM credit_transactions").fetchone() == (-UNIT,)
    db.close()


def test_race_two_processes_book_the_same_events_once(tmp_path: Path) -> None:
    """Each books the same 50 events 10 times; together they find 50 new ones."""

    async def work() -> None:
        ledger = await opened(tmp_path / "l.db")
        workers = [start_worker("book", tmp_path / "l.db", ORG, 50, 10) for _ in range(2)]
        assert sum(result_of(worker) for worker in workers) == 50
        booked = await ledger.charged_up_to(ORG)
        assert (booked.events, booked.charged_micro_mxn) == (50, 50 * UNIT)
        await ledger.aclose()

    run(work())


def test_every_kind_of_event_comes_back_as_it_was(tmp_path: Path) -> None:
    """Charge, void and expiry, page by page, by month, organisation and number."""

    async def work() -> None:
        ledger = await opened(tmp_path / "l.db")
        wanted = [event(ORG, n + 1, images=n % 8 + 1, end=("charge", "void", "expiry")[n % 3]) for n in range(2_500)]
        await ledger.book(wanted, [], NOON)
        assert [one async for one in ledger.events(org_id=ORG, month="2036-11")] == wanted
        assert [one async for one in ledger.events(month="2036-12")] == []
        charged = sum(one.amount_micro_mxn for one in wanted[:100])
        upto = await ledger.charged_up_to(ORG, 100)
        assert (upto.events, upto.last_event, upto.charged_micro_mxn) == (100, 100, charged)
        await ledger.aclose()

    run(work())


def test_a_batch_that_cannot_be_booked_books_nothing(tmp_path: Path) -> None:
    """An event of an organisation that the record does not know is refused with the whole batch."""

    async def work() -> None:
        ledger = await opened(tmp_path / "l.db")
        foreign = event("99999999-9999-4999-8999-999999999999", 1)
        for poison in (foreign, replace(event(ORG, 2), number=2**70)):
            with pytest.raises(LedgerError):
                await ledger.book([event(ORG, 1), poison], [SetAside(1, "1-1", "x", b"{}")], NOON)
            assert (await ledger.charged_up_to(ORG)).events == 0
            assert await ledger.count_set_aside() == 0
        assert await ledger.book([event(ORG, 1)], [], NOON) == {f"{ORG}-1"}
        await ledger.aclose()

    run(work())


def test_a_credit_is_added_once_by_its_id(tmp_path: Path) -> None:
    """The same again is False; the same id for another credit is refused with a sentence that says what it is."""

    async def work() -> None:
        ledger = await opened(tmp_path / "l.db")
        assert await ledger.add_credit(ORG, "spei-1", "recharge", 500_000_000, NOON)
        assert not await ledger.add_credit(ORG, "spei-1", "recharge", 500_000_000, NOON)
        with pytest.raises(LedgerError, match=r"credit 'spei-1' exists already: recharge of 500\.00 MXN"):
            await ledger.add_credit(ORG, "spei-1", "recharge", 500_000_001, NOON)
        with pytest.raises(LedgerError, match="exists already"):
            await ledger.add_credit(ORG, "spei-1", "bonus", 500_000_000, NOON)
        snapshot = await ledger.snapshot(ORG)
        assert (snapshot.credit_number, snapshot.credits_micro_mxn) == (1, 500_000_000)
        await ledger.aclose()

    run(work())


def test_credits_beyond_what_a_wallet_can_hold_are_refused(tmp_path: Path) -> None:
    """The sum stays within 2^53 - 1 both ways: beyond it no wallet could be projected any more."""

    async def work() -> None:
        ledger = await opened(tmp_path / "l.db")
        await ledger.add_credit(ORG, "c1", "recharge", MAX_MICRO_MXN, NOON)
        with pytest.raises(LedgerError, match=r"9007199254\.740991"):
            await ledger.add_credit(ORG, "c2", "recharge", 1, NOON)
        await ledger.add_credit(ORG, "c3", "adjustment", -MAX_MICRO_MXN, NOON)
        await ledger.add_credit(ORG, "c4", "adjustment", -MAX_MICRO_MXN, NOON)
        with pytest.raises(LedgerError, match=r"9007199254\.740991"):
            await ledger.add_credit(ORG, "c5", "adjustment", -1, NOON)
        assert (await ledger.snapshot(ORG)).credits_micro_mxn == -MAX_MICRO_MXN
        await ledger.aclose()

    run(work())


def test_race_credits_of_two_processes_are_numbered_without_gaps(tmp_path: Path) -> None:
    """100 ids of each, 50 of them the same: 150 credits, numbered 1 to 150 (rule 26)."""

    async def work() -> None:
        ledger = await opened(tmp_path / "l.db")
        workers = [start_worker("credits", tmp_path / "l.db", ORG, first, 100) for first in (0, 50)]
        assert sum(result_of(worker) for worker in workers) == 150
        snapshot = await ledger.snapshot(ORG)
        assert (snapshot.credit_number, snapshot.credits_micro_mxn) == (150, 150)
        await ledger.aclose()

    run(work())
    with sqlite3.connect(tmp_path / "l.db") as db:
        numbers = [row[0] for row in db.execute("SELECT number FROM credit_transactions ORDER BY number")]
    db.close()
    assert numbers == list(range(1, 151))


def test_migrating_twice_changes_nothing(tmp_path: Path) -> None:
    """The schema is at its version; an unmigrated file says which command to run."""

    async def work() -> None:
        ledger = SqliteLedger(tmp_path / "l.db")
        with pytest.raises(LedgerError, match="ghub migrate"):
            await ledger.check_schema()
        assert [await ledger.migrate(), await ledger.migrate()] == [1, 1]
        await ledger.check_schema()
        await ledger.aclose()

    run(work())


def test_race_many_migrate_at_once(tmp_path: Path) -> None:
    """Two processes and eight connections on a new file: all end at the same version, none fails."""

    async def here() -> list[int]:
        ledgers = [SqliteLedger(tmp_path / "l.db") for _ in range(8)]
        versions = await asyncio.gather(*(ledger.migrate() for ledger in ledgers))
        for ledger in ledgers:
            await ledger.aclose()
        return versions

    workers = [start_worker("migrate", tmp_path / "l.db") for _ in range(2)]
    assert run(here()) == [1] * 8
    assert [result_of(worker) for worker in workers] == [1, 1]
    for turn in range(10):
        (tmp_path / str(turn)).mkdir()

        async def again(folder: Path = tmp_path / str(turn)) -> list[int]:
            ledgers = [SqliteLedger(folder / "l.db") for _ in range(8)]
            versions = await asyncio.gather(*(ledger.migrate() for ledger in ledgers))
            for ledger in ledgers:
                await ledger.aclose()
            return versions

        assert run(again()) == [1] * 8


def test_a_month_that_has_begun_keeps_its_rate(tmp_path: Path) -> None:
    """Before it begins the rate may be superseded, and both rows stay; afterwards it is fixed (rule 25)."""

    async def work() -> None:
        ledger = await opened(tmp_path / "l.db")
        first, second = (Rate("2036-11", Decimal(number), "test") for number in ("20", "21.5"))
        assert await ledger.add_rate(first, BEFORE)
        assert not await ledger.add_rate(first, BEFORE)
        assert await ledger.add_rate(second, BEFORE)
        assert [(rate.month, rate.mxn_per_usd) for rate in await ledger.rates()] == [("2036-11", Decimal("21.5"))]
        assert await ledger.rate_rows() == {("2036-11", Decimal(20)), ("2036-11", Decimal("21.5"))}
        begun = datetime(2036, 11, 1, 6, tzinfo=UTC)
        with pytest.raises(LedgerError, match=r"2036-11 has begun at 21\.50 MXN"):
            await ledger.add_rate(first, begun)
        assert not await ledger.add_rate(second, begun)
        assert await ledger.add_rate(Rate("2036-10", Decimal(19), "late"), begun)
        assert await ledger.add_rate(Rate("2036-12", Decimal(19), "early"), begun)
        await ledger.aclose()

    run(work())


def test_a_price_book_is_written_once(tmp_path: Path) -> None:
    """A version's rows never change, whoever registers it again."""

    async def work() -> None:
        ledger = await opened(tmp_path / "l.db")
        await ledger.register_prices("book", Decimal("1.05"), [ListPrice("m", Decimal("0.04"))], NOON)
        await ledger.register_prices("book", Decimal("9"), [ListPrice("m", Decimal("9"))], NOON)
        assert await ledger.price_rows() == {("book", "m", ""): (Decimal("0.04"), Decimal("1.05"))}
        await ledger.aclose()

    run(work())


def test_a_locked_database_is_away_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that waits too long raises LedgerAway, and writes once the lock is gone."""
    monkeypatch.setattr("metering.ledger.sqlite.BUSY_S", 0.05)

    async def work() -> None:
        ledger = await opened(tmp_path / "l.db")
        blocker = sqlite3.connect(tmp_path / "l.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerAway):
            await ledger.book([event(ORG, 1)], [], NOON)
        blocker.execute("ROLLBACK")
        blocker.close()
        assert await ledger.book([event(ORG, 1)], [], NOON) == {f"{ORG}-1"}
        await ledger.aclose()

    run(work())


FULL_DISK = """
import resource, sys
from pathlib import Path
from metering.ports import LedgerAway
from tests.conftest import run
from tests.integration.money_kit import NOON, event
from tests.integration.test_ledger import ORG, opened

async def work():
    ledger = await opened(Path(sys.argv[1]))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    number, refused = 0, 0
    while refused < 3:
        events = [event(ORG, number * 100 + i + 1) for i in range(100)]
        try:
            await ledger.book(events, [], NOON)
            number += 1
        except LedgerAway:
            refused += 1
    booked = await ledger.charged_up_to(ORG)
    assert booked.events == number * 100, (booked, number)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert len(await ledger.book(events, [], NOON)) == 100
    assert (await ledger.charged_up_to(ORG)).events == number * 100 + 100
    await ledger.aclose()

run(work())
"""


def test_a_full_disk_is_away_and_comes_back(tmp_path: Path) -> None:
    """Bookings that do not fit are refused whole; with space again the same connection goes on."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "l.db")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)


def test_the_address_names_a_file_whose_folder_is_made(tmp_path: Path) -> None:
    """`sqlite:///` and a path."""

    async def work() -> None:
        ledger = open_sqlite(f"sqlite:///{tmp_path}/new/l.db")
        await ledger.migrate()
        await ledger.aclose()
        assert (tmp_path / "new" / "l.db").exists()

    run(work())
