"""A month that was charged at a wrong rate: every organisation gets the difference, once, and no proof changes."""

import asyncio
import csv
import io
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from decimal import Decimal
from uuid import uuid4

import pytest

from metering.corrections import corrections
from metering.events import Event, recompute
from metering.exports import focus
from metering.exports.reading import Scope
from metering.exports.writing import Source, untold
from metering.money import format_mxn, parse_mxn, unit_price_micro_mxn
from metering.ports import AtRate, Credit, WrongField
from metering.pricing import charge_micro_mxn
from tests.kits.books import NOON, UNIT, Books, drain, event, open_books, race, sql, start_worker

MONTH, NEXT = "2036-11", "2036-12"
WRONG = Decimal("20.00")


def at_wrong_rate(
    org_id: str, number: int, *, usd: str = "0.04", images: int = 1, measured: str | None = None, month: str = MONTH
) -> Event:
    """A charge whose proof has the wrong rate of November, whatever month it is of."""
    one = event(org_id, number, images=images, name=str(uuid4()))
    unit = unit_price_micro_mxn(Decimal(usd), Decimal("1.05"), WRONG)
    proof = replace(one.opened.proof, usd_per_image=usd, unit_micro_mxn=unit)
    opened = replace(one.opened, proof=proof, month=month, day=f"{month}-22", images=images)
    made = replace(one, opened=opened, usd_measured=measured)
    return replace(made, amount_micro_mxn=recompute(made))


@asynccontextmanager
async def booked(redis_url: str, ledger_url: str, **events: list[Event]) -> AsyncIterator[tuple[Books, dict[str, str]]]:
    """Books with organisations of these names, and their events."""
    async with open_books(redis_url, ledger_url) as books:
        orgs = {}
        for name, its in events.items():
            orgs[name] = (await books.org(name)).org_id
            mine = [replace(one, opened=replace(one.opened, org_id=orgs[name])) for one in its]
            await books.ledger.book(mine, [], NOON)
        yield books, orgs


async def correct(books: Books, rate: str, *, give: bool = True, reason: str = "a typo") -> dict[str, AtRate]:
    accounts = books.accounts if give else None
    return {org.name: one async for org, one in corrections(books.ledger, accounts, MONTH, Decimal(rate), reason)}


async def adjustments(books: Books, org_id: str) -> list[Credit]:
    return await books.ledger.credits(org_id, None, 100, kind="adjustment")


def mxn(found: AtRate) -> tuple[str, str, str]:
    return (
        format_mxn(found.charged_micro_mxn),
        format_mxn(found.right_micro_mxn),
        format_mxn(found.adjustment_micro_mxn),
    )


async def test_each_image_is_rounded_as_it_was_charged(redis_url: str, ledger_url: str) -> None:
    """0.0033 × 1.05 × 19.33 is 0.06697845, rounded for each image: eight are not the rounded eightfold.

    Two prices, several orders; an organisation without any gets nothing.
    """
    rate = "19.33"
    events = [
        at_wrong_rate("x", 1, usd="0.0033", images=8),
        at_wrong_rate("x", 2, usd="0.0033", images=3),
        at_wrong_rate("x", 3),
    ]
    async with booked(redis_url, ledger_url, acme=events, idle=[]) as (books, orgs):
        found = await correct(books, rate)
        unit = unit_price_micro_mxn(Decimal("0.0033"), Decimal("1.05"), Decimal(rate))
        right = 11 * unit + unit_price_micro_mxn(Decimal("0.04"), Decimal("1.05"), Decimal(rate))
        assert 8 * unit != unit_price_micro_mxn(8 * Decimal("0.0033"), Decimal("1.05"), Decimal(rate)), "it tells"
        assert set(found) == {"acme"} and found["acme"].right_micro_mxn == right
        assert found["acme"].charged_micro_mxn == sum(one.amount_micro_mxn for one in events)
        (credit,) = await adjustments(books, orgs["acme"])
        assert credit.new.amount_micro_mxn == found["acme"].charged_micro_mxn - right > 0
        assert (credit.new.corrects, credit.new.reason, credit.actor) == ("fx:2036-11", "a typo", "test")
        assert credit.number == 2 and credit.new.credit_id == f"fx-2036-11-{orgs['acme']}-1"
        (row,) = [row for row in await books.ledger.audits(orgs["acme"], 2**53, 100) if row.action == "fx.correct"]
        assert row.target == credit.new.credit_id and b'"mxn_per_usd":"19.33"' in row.details.encode()
        assert await adjustments(books, orgs["idle"]) == []


async def test_measured_orders_keep_their_bounds(redis_url: str, ledger_url: str) -> None:
    """By the provider's own figure, at most the quote, at least one micro-MXN; more of them than a page has."""
    measured = ["0.01", "0.0399999", "0.5", "0.00000001", "0"]
    events = [at_wrong_rate("x", 1 + place, measured=measured[place % 5]) for place in range(1_203)]
    async with booked(redis_url, ledger_url, acme=events) as (books, _):
        found = (await correct(books, "1.00", give=False))["acme"]
        each = [
            charge_micro_mxn(Decimal("0.04"), Decimal("1.05"), Decimal(1), 1, Decimal(one.usd_measured or "0"))
            for one in events
        ]
        assert found.right_micro_mxn == sum(each) and min(each) == 1 and max(each) == 42_000
        assert found.charged_micro_mxn == sum(one.amount_micro_mxn for one in events)


async def test_orders_of_the_next_month_count_where_they_had_this_rate(redis_url: str, ledger_url: str) -> None:
    """A month without a rate goes on at the last one's; other months' rates and voids do not count."""
    december = [at_wrong_rate("x", 1, month=NEXT), at_wrong_rate("x", 2, month=NEXT, measured="0.02")]
    other = at_wrong_rate("x", 3)
    other = replace(other, opened=replace(other.opened, proof=replace(other.opened.proof, fx_month="2036-10")))
    void = event("x", 4, end="void", name=str(uuid4()))
    async with booked(redis_url, ledger_url, acme=[*december, other, void]) as (books, _):
        assert mxn((await correct(books, "10", give=False))["acme"]) == ("1.26", "0.63", "0.63")


@pytest.mark.rule(33)
async def test_what_was_refunded_is_not_corrected(redis_url: str, ledger_url: str) -> None:
    """(rule 33) Of a half refunded order the other half is; one that was refunded in parts counts once."""
    events = [
        at_wrong_rate("x", 1),
        at_wrong_rate("x", 2),
        at_wrong_rate("x", 3, measured="0.02"),
        at_wrong_rate("x", 4),
    ]
    async with booked(redis_url, ledger_url, acme=events) as (books, orgs):
        refund = books.accounts.refund
        await refund(events[0].event_id, "blurred")
        await refund(events[1].event_id, "blurred", parse_mxn("0.20"))
        await refund(events[1].event_id, "blurred", parse_mxn("0.22"))
        await refund(events[2].event_id, "blurred", parse_mxn("0.21"))
        # left: nothing, 0.42 of 0.84, 0.21 of 0.42, all of 0.84; at half the rate each is half of that
        assert mxn((await correct(books, "10"))["acme"]) == ("1.47", "0.735", "0.735")
        await refund(events[3].event_id, "blurred")
        assert mxn((await correct(books, "10"))["acme"]) == ("0.63", "0.315", "-0.42"), "its correction is taken back"
        assert [format_mxn(one.new.amount_micro_mxn) for one in await adjustments(books, orgs["acme"])] == [
            "-0.42",
            "0.735",
        ]
        assert (await correct(books, "10"))["acme"].adjustment_micro_mxn == 0


@pytest.mark.rule(10)
async def test_too_little_was_charged_and_a_balance_falls_below_zero(redis_url: str, ledger_url: str) -> None:
    """(rule 10) It is told, orders are 402 until a top-up, and the wallet knows at once. The other sign goes up."""
    async with open_books(redis_url, ledger_url) as books:
        poor, rich = await books.org("poor", "0.84"), await books.org("rich", "100.00")
        for caller in (poor, rich):
            await books.charge(caller, str(uuid4()))
        await drain(books)
        await correct(books, "40.00")
        assert (await books.cut(poor)).available_micro_mxn == -UNIT
        assert (await books.cut(rich)).available_micro_mxn == parse_mxn("98.32")
        admission = await books.admit(poor, str(uuid4()))
        assert admission.verdict.name == "BALANCE", admission
        below = await books.redis.hgetall("ghub:alarms") if await books.redis.exists("ghub:alarms") else None
        assert below is None or below
        await correct(books, "10.00")
        assert (await books.cut(poor)).available_micro_mxn == UNIT // 2, "charged 0.42 in all of 0.84"
        assert [one.new.amount_micro_mxn for one in await adjustments(books, poor.org_id)] == [UNIT + UNIT // 2, -UNIT]


async def test_a_second_time_gives_only_what_has_come_since(redis_url: str, ledger_url: str) -> None:
    """A month's rate is fixed, so orders go on at the wrong one; and a right one that was wrong, too, is corrected."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org("acme", "100.00")
        for _ in range(3):
            await books.charge(caller, str(uuid4()))
            await drain(books)
            found = (await correct(books, "10.00"))["acme"]
            assert found.adjustment_micro_mxn == UNIT // 2
            assert (await correct(books, "10.00"))["acme"].adjustment_micro_mxn == 0
        assert (await correct(books, "15.00"))["acme"].adjustment_micro_mxn == -3 * UNIT // 4
        assert (await correct(books, "20.00"))["acme"].adjustment_micro_mxn == -3 * UNIT // 4, "as it was charged"
        given = await adjustments(books, caller.org_id)
        assert [one.new.credit_id[-2:] for one in given] == ["-5", "-4", "-3", "-2", "-1"]
        assert sum(one.new.amount_micro_mxn for one in given) == 0


async def test_an_id_that_is_taken_by_hand_is_passed_over(redis_url: str, ledger_url: str) -> None:
    async with booked(redis_url, ledger_url, acme=[at_wrong_rate("x", 1)]) as (books, orgs):
        name = f"fx-2036-11-{orgs['acme']}-1"
        await books.accounts.add_credit(orgs["acme"], name, "bonus", UNIT)
        await correct(books, "10.00")
        assert [one.new.credit_id for one in await adjustments(books, orgs["acme"])] == [f"{name[:-1]}2"]


@pytest.mark.parametrize("killed_at", [1, 2, 3])
async def test_a_crash_in_the_middle_gives_nothing_twice(redis_url: str, ledger_url: str, killed_at: int) -> None:
    """The process is killed inside the transaction of one organisation: the next one finds what is left to be given."""
    names = ["a", "b", "c", "d"]
    async with booked(redis_url, ledger_url, **{name: [at_wrong_rate(name, 1)] for name in names}) as (books, orgs):
        worker = start_worker("correct_rate", ledger_url, MONTH, "10.00", killed_at)
        assert worker.stdout is not None
        assert await asyncio.to_thread(worker.stdout.readline) == b"ready\n"
        assert worker.stdin is not None
        worker.stdin.write(b"go\n")
        worker.stdin.flush()
        assert await asyncio.to_thread(worker.stdout.readline) == b"written\n"
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        worker.stdin.close()
        worker.stdout.close()
        assert [len(await adjustments(books, orgs[name])) for name in names] == [1] * (killed_at - 1) + [0] * (
            5 - killed_at
        )
        for _ in range(2):
            await correct(books, "10.00")
            for name in names:
                assert [one.new.amount_micro_mxn for one in await adjustments(books, orgs[name])] == [UNIT // 2]


async def test_two_at_once_give_it_once(redis_url: str, ledger_url: str) -> None:
    """Two processes: whoever is second finds that it is given."""
    events = {name: [at_wrong_rate(name, 1)] for name in "abcdefgh"}
    async with booked(redis_url, ledger_url, **events) as (books, orgs):
        each = [(ledger_url, MONTH, "10.00", 0)] * 2
        given = await asyncio.to_thread(race, "correct_rate", *each)
        assert sum(given) == 8
        for org_id in orgs.values():
            assert [one.new.amount_micro_mxn for one in await adjustments(books, org_id)] == [UNIT // 2]


@pytest.mark.rule(37)
async def test_a_closed_month_is_corrected_in_the_open_one(redis_url: str, ledger_url: str) -> None:
    """(rule 37) Its sums stay; the adjustment is of the first open month, and names what it corrects."""
    async with booked(redis_url, ledger_url, acme=[at_wrong_rate("x", 1)]) as (books, orgs):
        sql(ledger_url, f"INSERT INTO months VALUES ('{MONTH}', '2036-12-01T06:00:00+00:00', 'x', 'x')")
        await correct(books, "10.00")
        (credit,) = await adjustments(books, orgs["acme"])
        assert credit.at == "2036-12-01T06:00:00+00:00" and credit.new.corrects == "fx:2036-11"
        (sums,) = await books.ledger.month_sums(NEXT)
        assert sums.adjustments_micro_mxn == UNIT // 2
        file = io.BytesIO()
        await focus.write_1_2(Source(books.ledger, Scope((NEXT,))), file, untold)
        rows = csv.DictReader(io.StringIO(file.getvalue().decode()))
        classes = [row["ChargeClass"] for row in rows if row["ChargeCategory"] == "Adjustment"]
        assert classes == ["Correction"], "of a period that is over"


async def test_what_cannot_be_corrected_is_told(redis_url: str, ledger_url: str) -> None:
    async with booked(redis_url, ledger_url, acme=[at_wrong_rate("x", 1)]) as (books, orgs):
        with pytest.raises(WrongField, match="month: no rate of 2036-10 was ever in force"):
            async for _ in corrections(books.ledger, books.accounts, "2036-10", Decimal(20), "x"):
                pass
        with pytest.raises(WrongField, match="reason: "):
            await correct(books, "10.00", reason="")
        assert await adjustments(books, orgs["acme"]) == []


# --- adjustments by hand, linked ---


async def test_an_adjustment_names_the_order_or_the_credit_that_it_corrects(redis_url: str, ledger_url: str) -> None:
    """By both forms of an order's id; another organisation's, a void order and an unknown one are refused."""
    charged, void = at_wrong_rate("x", 1), event("x", 2, end="void", name=str(uuid4()))
    payment = str(uuid4())
    async with booked(redis_url, ledger_url, acme=[charged, void], other=[at_wrong_rate("y", 1)]) as (books, orgs):
        add = books.accounts.add_credit
        acme, other = orgs["acme"], orgs["other"]
        await add(acme, payment, "recharge", UNIT)
        public = f"req_{charged.event_id.replace('-', '')}"
        expected = {
            "a1": (public, f"order:{charged.event_id}"),
            "a2": (charged.event_id, f"order:{charged.event_id}"),
            "a3": ("first-acme", "credit:first-acme"),
            "a4": (payment, f"credit:{payment}"),
        }
        for name, (named, written) in expected.items():
            assert await add(acme, name, "adjustment", -1, corrects=named)
            assert not await add(acme, name, "adjustment", -1, corrects=named), "once by its id"
            assert (await books.ledger.credit(name)).new.corrects == written
        with pytest.raises(WrongField, match="id: credit 'a1' exists already"):
            await add(acme, "a1", "adjustment", -1)
        for wrong in ("first-other", void.event_id, str(uuid4()), "fx:2036-11"):
            with pytest.raises(WrongField, match=r"corrects: organisation .* has no charged order and no credit"):
                await add(acme, "a5", "adjustment", -1, corrects=wrong)
        with pytest.raises(WrongField, match="corrects: organisation"):
            await add(other, "a5", "adjustment", -1, corrects=public)
        with pytest.raises(WrongField, match="corrects: only an adjustment has one"):
            await add(acme, "a5", "bonus", 1, corrects=public)
        with pytest.raises(WrongField, match="corrects: must be the id"):
            await add(acme, "a5", "adjustment", 1, corrects="a b")


@pytest.mark.rule(3)
async def test_the_database_refuses_a_correction_that_is_no_adjustment(redis_url: str, ledger_url: str) -> None:
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        for kind, stays in (("bonus", False), ("adjustment", True)):
            row = {
                "id": f"'{kind}'",
                "org_id": f"'{caller.org_id}'",
                "number": "2",
                "amount_micro_mxn": "1",
                "at": "'now'",
            }
            row |= {"type": f"'{kind}'", "corrects": "'credit:x'"}
            with suppress(Exception):
                sql(
                    ledger_url, f"INSERT INTO credit_transactions ({', '.join(row)}) VALUES ({', '.join(row.values())})"
                )
            found = sql(ledger_url, "SELECT count(*) FROM credit_transactions WHERE corrects IS NOT NULL")
            assert found == [(int(stays),)]
