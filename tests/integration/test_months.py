"""A month that is closed takes nothing more; what is late is posted to the first open one (rules 24 and 37)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from unittest.mock import AsyncMock
from uuid import uuid4

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from metering.clock import month_start_us, next_month, period_at, previous_month, unix_us_at, utc_at, utc_now
from metering.events import Event, encode_images
from metering.ledger.record import SqlLedger
from metering.money import parse_mxn
from metering.months import NotWhole, check_month, close_month
from metering.ports import LedgerAway, LedgerError, MonthSums, NewCredit, NotThere, Org, SamePerson, WrongField
from metering.pricing import FxRate
from metering.wallet import keys
from tests.kits.books import ACT, NOON, UNIT, Books, drain, event, open_books, open_ledger, sql

ORG, OTHER = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
DECEMBER = datetime(2036, 12, 1, 6, tzinfo=UTC)
"""The midnight in Mexico City that ends November."""


@asynccontextmanager
async def record(place: Path | str) -> AsyncIterator[SqlLedger]:
    """A ledger with two organisations, and 100.00 MXN of each, since November."""
    async with aclosing(open_ledger(place)) as ledger:
        await ledger.migrate()
        for org_id, name in ((ORG, "acme"), (OTHER, "other")):
            await ledger.create_org(Org(org_id, name, "default", NOON.isoformat()), ACT)
            await ledger.add_credit(NewCredit(f"r-{name}", org_id, "recharge", parse_mxn("100.00")), NOON, ACT)
        yield ledger


def of_month(number: int, month: str, org_id: str = ORG, images: int = 1) -> Event:
    made = event(org_id, number, images=images)
    return replace(made, opened=replace(made.opened, month=month, day=f"{month}-30"))


async def exported(ledger: SqlLedger, month: str) -> list[tuple[str, int, str | None]]:
    return [(one.org_id, one.number, one.posted) async for page in ledger.charges(month) for one in page]


async def sums_of(ledger: SqlLedger, month: str, org_id: str = ORG) -> MonthSums:
    (found,) = await ledger.month_sums(month, org_id=org_id)
    return found


@pytest.mark.rule(24, 37)
async def test_what_is_late_is_posted_to_the_first_open_month(ledger_url: str) -> None:
    """Its own period stays; exports, opening and closing balances go by the month of posting."""
    async with record(ledger_url) as ledger:
        await ledger.book([of_month(1, "2036-11"), of_month(2, "2036-12")], [], DECEMBER)
        assert await ledger.close_month("2036-11", DECEMBER, ACT)
        before = await sums_of(ledger, "2036-11"), await exported(ledger, "2036-11")
        await ledger.seal_month("2036-11", "{}", await ledger.month_sums("2036-11"), DECEMBER)
        await ledger.book([of_month(3, "2036-11", images=2), of_month(4, "2036-12")], [], DECEMBER)
        assert (await sums_of(ledger, "2036-11"), await exported(ledger, "2036-11")) == before
        assert await exported(ledger, "2036-12") == [(ORG, 2, None), (ORG, 4, None), (ORG, 3, "2036-12")]
        december = await sums_of(ledger, "2036-12")
        assert (december.orders, december.images, december.charges_micro_mxn) == (3, 4, 4 * UNIT)
        assert december.opening_micro_mxn == before[0].closing_micro_mxn == parse_mxn("100.00") - UNIT
        assert december.closing_micro_mxn == parse_mxn("100.00") - 5 * UNIT
        assert [(one.opened.month, one.number) async for one in ledger.events(org_id=ORG)][:2] == [
            ("2036-11", 1),
            ("2036-11", 3),
        ]
        january = await sums_of(ledger, "2037-01")
        assert (january.opening_micro_mxn, january.charges_micro_mxn) == (december.closing_micro_mxn, 0)


@pytest.mark.rule(37)
async def test_months_close_in_their_order_and_when_they_are_over(ledger_url: str) -> None:
    async with record(ledger_url) as ledger:
        with pytest.raises(WrongField, match=r"month: 2036-11 is not over: it ends at 2036-12-01T06:00:00\+00:00"):
            await ledger.close_month("2036-11", DECEMBER - timedelta(microseconds=1), ACT)
        for other in ("2036-12", "2036-10"):
            with pytest.raises(WrongField, match="month: 2036-11 comes first"):
                await ledger.close_month(other, DECEMBER + timedelta(days=31), ACT)
        assert await ledger.close_month("2036-11", DECEMBER, ACT)
        assert not await ledger.close_month("2036-11", DECEMBER, ACT)
        with pytest.raises(WrongField, match="month: 2036-12 comes first"):
            await ledger.close_month("2037-01", DECEMBER + timedelta(days=62), ACT)
        with pytest.raises(LedgerError, match="2036-12 is not closed"):
            await ledger.seal_month("2036-12", "{}", [], DECEMBER)
        (closed,) = await ledger.closed_months()
        assert (closed.month, closed.closed_by, closed.sealed) == ("2036-11", "test", False)
        sums = await ledger.month_sums("2036-11")
        await ledger.seal_month("2036-11", "first", sums, DECEMBER)
        await ledger.seal_month("2036-11", "second", sums, DECEMBER)
        assert await ledger.manifest("2036-11") == "first"
        (closed,) = await ledger.closed_months()
        assert (closed.sealed, closed.charges_micro_mxn, closed.closing_micro_mxn) == (True, 0, parse_mxn("200.00"))
        assert [one.action for one in await ledger.audits(None, 2**53, 1)] == ["test"]


@pytest.mark.rule(37)
async def test_no_path_leads_into_a_closed_month(ledger_url: str) -> None:
    """The database itself refuses; a credit that comes with an old moment is entered when the open month begins."""
    async with record(ledger_url) as ledger:
        await ledger.book([of_month(1, "2036-11")], [], NOON)
        await ledger.close_month("2036-11", DECEMBER, ACT)
        await ledger.add_credit(NewCredit("late", ORG, "bonus", UNIT), NOON, ACT)
        await ledger.refund(event(ORG, 1).event_id, UNIT, "blurred", NOON, ACT)
        sums = await sums_of(ledger, "2036-11")
        assert (sums.bonuses_micro_mxn, sums.refunds_micro_mxn) == (0, 0)
        sums = await sums_of(ledger, "2036-12")
        assert (sums.bonuses_micro_mxn, sums.refunds_micro_mxn) == (UNIT, UNIT)
        assert (await ledger.credit("late")).at == DECEMBER.isoformat()
        assert [one.refund.at async for one in ledger.refunds("2036-12")] == [DECEMBER.isoformat()]
    columns = "event_id, org_id, number, key_id, model, provider, upstream, size, region, day, month, images_asked"
    columns += ', "end", reason, quantity, variant, usd_per_image, price_book, markup, mxn_per_usd, fx_month, fx_source'
    columns += ", unit_micro_mxn, amount_micro_mxn, admitted_us, ended_us, images, booked_at"
    new = f"INSERT INTO events ({columns}) SELECT 'new'{columns.removeprefix('event_id')} FROM events"
    for statement in (
        new,
        "INSERT INTO credit_transactions (id, org_id, type, number, amount_micro_mxn, at)"
        f" VALUES ('x', '{ORG}', 'bonus', 99, 1, '2036-11-30T00:00:00+00:00')",
        "DELETE FROM months",
        "UPDATE months SET closed_by = 'x'",
        "UPDATE month_names SET name = 'x'",
    ):
        with pytest.raises(Exception, match=r"month that is closed|append-only"):
            sql(ledger_url, statement)


@pytest.mark.rule(37)
async def test_names_are_as_they_were_at_the_close(ledger_url: str) -> None:
    async with record(ledger_url) as ledger:
        await ledger.close_month("2036-11", DECEMBER, ACT)
        await ledger.rename(ORG, "acme-2", DECEMBER, ACT)
        assert (await ledger.names("2036-11", ORG)).org == "acme"
        assert (await ledger.names("2036-12", ORG)).org == "acme-2"


@pytest.mark.rule(37)
async def test_a_close_races_with_bookings(ledger_url: str) -> None:
    """Each event is in the closed month or after it, never in neither and never in both."""
    async with record(ledger_url) as ledger, aclosing(open_ledger(ledger_url)) as other:
        events = [of_month(number, "2036-11", org_id) for org_id in (ORG, OTHER) for number in range(1, 151)]
        batches = [events[first : first + 10] for first in range(0, len(events), 10)]

        async def close() -> None:
            await asyncio.sleep(0)
            assert await other.close_month("2036-11", DECEMBER, ACT)

        work = [ledger.book(batch, [], DECEMBER) for batch in batches]
        await asyncio.gather(*work[:15], close(), *work[15:])
        inside, after = await exported(ledger, "2036-11"), await exported(ledger, "2036-12")
        assert sorted((org_id, number) for org_id, number, _ in inside + after) == sorted(
            (one.opened.org_id, one.number) for one in events
        )
        assert {posted for _, _, posted in inside} <= {None} and {posted for _, _, posted in after} <= {"2036-12"}
        for org_id in (ORG, OTHER):
            november, december = [await sums_of(ledger, month, org_id) for month in ("2036-11", "2036-12")]
            assert november.closing_micro_mxn == december.opening_micro_mxn
            assert december.closing_micro_mxn == parse_mxn("100.00") - 150 * UNIT


KEY = Ed25519PrivateKey.from_private_bytes(b"m" * 32)


async def last_month(books: Books, name: str = "acme") -> tuple[str, str]:
    """An organisation with a bonus in the month before this one; returns its id and that month."""
    month = previous_month(period_at(unix_us_at(utc_now())).month)
    org_id = (await books.org(name)).org_id
    at = utc_at(month_start_us(month)) + timedelta(days=1)
    await books.ledger.add_credit(NewCredit(f"bonus-{name}", org_id, "bonus", parse_mxn("9.00")), at, ACT)
    return org_id, month


def opened_bytes(made: Event) -> bytes:
    opened = made.opened
    known = {name: getattr(opened, name) for name in opened.__slots__ if getattr(opened, name) is not None}
    return orjson.dumps({"v": 1, "quality": None, **known})


def fields_of(made: Event) -> dict[str, bytes | str | int]:
    """An entry of the stream."""
    return {
        "opened": opened_bytes(made),
        "number": made.number,
        "end": made.end,
        "reason": made.reason,
        "quantity": made.quantity,
        "amount": made.amount_micro_mxn,
        "admitted_us": made.admitted_us,
        "ended_us": unix_us_at(utc_now()) - 1_000_000,
        "images": encode_images(made.images),
        "usd_measured": "",
        "result": "",
    }


async def hold(books: Books, org_id: str, order_id: str, month: str) -> None:
    """A hold of a month: as one looks that was admitted at its last moment."""
    names = keys.OrgKeys(org_id)
    await books.redis.hset(names.hold(order_id), "opened", opened_bytes(of_month(1, month, org_id)))
    await books.redis.zadd(names.open, {order_id: 2**52})
    await books.redis.zadd(keys.busy(names.partition), {org_id: 2**52})


@pytest.mark.rule(37)
async def test_a_month_closes_only_when_it_is_whole(redis_url: str, ledger_url: str) -> None:
    """Over by Redis' clock; no hold of it lives; the consumer has caught up; every journal is in."""
    async with open_books(redis_url, ledger_url, now_us=0) as books:
        org_id, month = await last_month(books)
        close = partial(close_month, books.ledger, books.redis, act=ACT, key=KEY)
        with pytest.raises(NotWhole, match="it is not over by Redis' clock"):
            await close(next_month(month))
        await hold(books, org_id, "11111111", month)
        with pytest.raises(NotWhole, match="1 orders of it still run, or their holds have not run out"):
            await close(month)
        await hold(books, org_id, "11111111", next_month(month))
        ended = of_month(7, month, org_id)
        await books.redis.xadd(keys.OrgKeys(org_id).events, fields_of(ended))  # type: ignore[arg-type]
        with pytest.raises(NotWhole, match=r"1 events of .* or before it are not booked yet"):
            await close(month)
        await drain(books)
        journal = uuid4()
        await books.ledger.open_incarnation(journal, NOON)
        with pytest.raises(NotWhole, match=f"journal {journal} is not provable: its gateway is gone"):
            await close(month)
        await books.ledger.close_incarnation(journal, 0, NOON)
        assert await books.ledger.closed_months() == []
        with pytest.raises(NotWhole, match="GHUB_REDIS_URL is not set"):
            await close_month(books.ledger, None, month, ACT, KEY)
        closed = await close(month)
        assert closed.new and closed.manifest.charges_mxn == "0.84" and closed.manifest.rows == 1
        assert not (await close(month)).new
        await books.redis.xadd(keys.OrgKeys(org_id).events, fields_of(of_month(8, month, org_id)))  # type: ignore[arg-type]
        await drain(books)
        assert [posted for _, _, posted in await exported(books.ledger, next_month(month))] == [next_month(month)]


@pytest.mark.rule(37)
async def test_a_close_that_stopped_half_way_is_gone_on_with(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed, and not sealed: what came between stays out; the next call seals the same sums."""
    async with open_books(redis_url, ledger_url, now_us=0) as books:
        org_id, month = await last_month(books)
        await books.ledger.book([of_month(1, month, org_id)], [], NOON)
        seal, stopped = books.ledger.seal_month, AsyncMock(side_effect=LedgerAway("stopped"))
        monkeypatch.setattr(books.ledger, "seal_month", stopped)
        with pytest.raises(LedgerAway):
            await close_month(books.ledger, books.redis, month, ACT, KEY)
        monkeypatch.setattr(books.ledger, "seal_month", seal)
        with pytest.raises(NotThere, match="is not closed"):
            await check_month(books.ledger, month)
        await books.ledger.book([of_month(2, month, org_id)], [], NOON)
        closed = await close_month(books.ledger, books.redis, month, ACT, KEY)
        assert not closed.new and (closed.manifest.charges_mxn, closed.manifest.orders) == ("0.84", 1)
        assert (await check_month(books.ledger, month))[1] == []
        assert stopped.await_count == 1


@pytest.mark.rule(37)
async def test_a_ledger_that_was_changed_behind_its_own_back_is_found(redis_url: str, tmp_path: Path) -> None:
    """Whoever may drop the triggers may change a row: the manifest then says so."""
    place = tmp_path / "l.db"
    async with open_books(redis_url, place, now_us=0) as books:
        org_id, month = await last_month(books)
        await books.ledger.book([of_month(number, month, org_id) for number in (1, 2)], [], NOON)
        await close_month(books.ledger, books.redis, month, ACT, KEY)
        sql(f"sqlite:///{place}", "DROP TRIGGER events_stay")
        sql(f"sqlite:///{place}", "UPDATE events SET key_id = 'key_2' WHERE number = 2")
        _, wrong = await check_month(books.ledger, month)
        assert wrong == [f"organisation acme ({org_id}): the ledger has other rows than were sealed"]


@pytest.mark.rule(37)
@pytest.mark.parametrize("what", ["credits", "balances", "rows"])
async def test_what_was_changed_behind_the_triggers_is_found(redis_url: str, tmp_path: Path, what: str) -> None:
    """Credits, balances of the close and rows: the manifest has all of them."""
    place = f"sqlite:///{tmp_path}/l.db"
    async with open_books(redis_url, place, now_us=0) as books:
        org_id, month = await last_month(books)
        await books.ledger.book([of_month(1, month, org_id)], [], NOON)
        await close_month(books.ledger, books.redis, month, ACT, KEY)
        assert (await check_month(books.ledger, month))[1] == []
        trigger, change = {
            "credits": (
                "credit_transactions_stay",
                "UPDATE credit_transactions SET amount_micro_mxn = 1 WHERE type = 'bonus'",
            ),
            "balances": (
                "month_balances_stay",
                "UPDATE month_balances SET bonuses_micro_mxn = 1, closing_micro_mxn = closing_micro_mxn - 8999999",
            ),
            "rows": ("events_stay", "UPDATE events SET key_id = 'key_2'"),
        }[what]
        sql(place, f"DROP TRIGGER {trigger}")
        sql(place, change)
        _, wrong = await check_month(books.ledger, month)
        assert wrong and all(org_id in one for one in wrong)


@pytest.mark.rule(37)
async def test_totals_that_drifted_are_never_signed(redis_url: str, tmp_path: Path) -> None:
    """The rows and the running totals are compared before the signature; mended, the close goes on."""
    place = f"sqlite:///{tmp_path}/l.db"
    async with open_books(redis_url, place, now_us=0) as books:
        org_id, month = await last_month(books)
        await books.ledger.book([of_month(1, month, org_id)], [], NOON)
        sql(place, "UPDATE usage SET amount_micro_mxn = amount_micro_mxn + 1000000")
        with pytest.raises(
            LedgerError, match=r"its orders and refunds give 0\.84 MXN, and its running totals 1\.84 MXN"
        ):
            await close_month(books.ledger, books.redis, month, ACT, KEY)
        sql(place, "UPDATE usage SET amount_micro_mxn = amount_micro_mxn - 1000000")
        assert (await close_month(books.ledger, books.redis, month, ACT, KEY)).manifest.charges_mxn == "0.84"


@pytest.mark.rule(37)
async def test_what_is_completed_after_a_close_is_after_it_on_any_clock(ledger_url: str) -> None:
    """A fact of a tax document, and an approval: a machine whose clock is behind does not reach into a closed month."""
    async with record(ledger_url) as ledger:
        closed_at = DECEMBER + timedelta(days=2)
        await ledger.close_month("2036-11", closed_at, ACT)
        before = [one async for page in ledger.month_credits("2036-11") for one in page]
        await ledger.complete_credit("r-acme", {"cp": "06000"}, DECEMBER, ACT)
        assert [one async for page in ledger.month_credits("2036-11") for one in page] == before
        assert (await ledger.credit("r-acme")).facts == {"cp": "06000"}
        await ledger.add_rate(FxRate("2037-01", Decimal(20), "x"), DECEMBER, ACT, approved=True)
        (rate,) = [one for one in await ledger.rate_records() if one.rate.month == "2037-01"]
        assert rate.approved_at is not None and rate.approved_at > closed_at.isoformat()


@pytest.mark.rule(24, 37)
async def test_what_was_owed_at_a_closed_months_end_stays(ledger_url: str) -> None:
    """`credit liability` of a month's last day is its closing balance, also when something is late."""
    async with record(ledger_url) as ledger:
        await ledger.book([of_month(1, "2036-11")], [], NOON)
        await ledger.close_month("2036-11", DECEMBER, ACT)
        await ledger.book([of_month(2, "2036-11")], [], DECEMBER)
        closing = (await sums_of(ledger, "2036-11")).closing_micro_mxn
        owed = {one.org_id: one.balance_micro_mxn for one in await ledger.balances_at("2036-11-30")}
        assert owed[ORG] == closing == parse_mxn("100.00") - UNIT
        owed = {one.org_id: one.balance_micro_mxn for one in await ledger.balances_at("2036-12-01")}
        assert owed[ORG] == closing - UNIT


@pytest.mark.rule(37)
async def test_an_organisation_of_a_wrong_clock_is_in_every_month_in_which_it_has_a_balance(ledger_url: str) -> None:
    async with record(ledger_url) as ledger:
        third = "33333333-3333-4333-8333-333333333333"
        await ledger.create_org(Org(third, "third", "default", (DECEMBER + timedelta(days=90)).isoformat()), ACT)
        await ledger.add_credit(NewCredit("r-third", third, "recharge", UNIT), NOON, ACT)
        for month in ("2036-11", "2036-12", "2037-01"):
            assert (await sums_of(ledger, month, third)).closing_micro_mxn == UNIT


@pytest.mark.rule(37)
async def test_late_events_of_an_earlier_month_are_waited_for(redis_url: str, ledger_url: str) -> None:
    """They are posted to the month that is about to close."""
    async with open_books(redis_url, ledger_url, now_us=0) as books:
        org_id, last = await last_month(books)
        month = previous_month(last)
        at = utc_at(month_start_us(month)) + timedelta(days=1)
        await books.ledger.add_credit(NewCredit("earlier", org_id, "bonus", UNIT), at, ACT)
        await close_month(books.ledger, books.redis, month, ACT, KEY)
        await books.redis.xadd(keys.OrgKeys(org_id).events, fields_of(of_month(1, month, org_id)))  # type: ignore[arg-type]
        with pytest.raises(NotWhole, match="1 events of"):
            await close_month(books.ledger, books.redis, last, ACT, KEY)
        await drain(books)
        closed = await close_month(books.ledger, books.redis, last, ACT, KEY)
        assert (closed.manifest.charges_mxn, closed.manifest.rows) == ("0.84", 1)


@pytest.mark.rule(37)
async def test_whoever_proposed_an_adjustment_closes_no_month_that_it_is_posted_to(ledger_url: str) -> None:
    """Also if it was proposed in the month before; and who has used another right of that month proposed it in vain."""
    async with record(ledger_url) as ledger:
        ana, bea, eva = (replace(ACT, actor=f"jwt:{name}", apart=True) for name in ("ana", "bea", "eva"))
        first = await ledger.propose_adjustment(ORG, UNIT, "a mistake", None, DECEMBER - timedelta(hours=1), ana)
        second = await ledger.propose_adjustment(ORG, UNIT, "another", None, DECEMBER - timedelta(hours=1), eva)
        await ledger.close_month("2036-11", DECEMBER, ACT)
        await ledger.approve_adjustment(first.proposal_id, DECEMBER, bea)
        january = DECEMBER + timedelta(days=31)
        with pytest.raises(SamePerson, match="of 2036-12, jwt:ana has entered a rate or proposed an adjustment"):
            await ledger.close_month("2036-12", january, ana)
        assert await ledger.close_month("2036-12", january, eva)
        await ledger.approve_adjustment(second.proposal_id, january, bea)
