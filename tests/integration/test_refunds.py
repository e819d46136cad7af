"""A refund names its order, and all of an order's refunds together are at most what it was charged (rule 33)."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from metering.accounts import Accounts
from metering.money import parse_mxn
from metering.orders import Orders
from metering.ports import LedgerError, NotThere, WrongField
from metering.wallet.values import Caller, Close
from tests.conftest import run
from tests.kits.books import IVA, NOON, UNIT, Books, drain, open_books, race, sql


@asynccontextmanager
async def charged(redis_url: str, ledger_url: str, images: int = 1) -> AsyncIterator[tuple[Books, Caller, str]]:
    """An organisation with one booked charge of 0.84 MXN an image; its order's id as the record has it."""
    async with open_books(redis_url, ledger_url) as books:
        caller, order = await books.org(), str(uuid4())
        await books.charge(caller, order, images)
        await drain(books)
        yield books, caller, order


def given(ledger_url: str) -> list[tuple[Any, ...]]:
    """The refunds of a ledger: id, amount, order, reason."""
    return sql(
        ledger_url,
        "SELECT id, amount_micro_mxn, order_id, reason FROM credit_transactions WHERE type = 'refund' ORDER BY number",
    )


@pytest.mark.rule(33)
async def test_a_refund_gives_back_what_is_left_once(redis_url: str, ledger_url: str) -> None:
    """(rule 33) Whole by default, spendable at once; again it is refused in a sentence, and nothing changes."""
    async with charged(redis_url, ledger_url, images=2) as (books, caller, order):
        refund = await books.accounts.refund(f"req_{order.replace('-', '')}", "blurred")
        assert (refund.credit_id, refund.amount_micro_mxn) == (f"refund-{order}-1", 2 * UNIT)
        assert (await books.cut(caller)).available_micro_mxn == parse_mxn("8.40")
        with pytest.raises(LedgerError, match=r"charged 1\.68 MXN, and is refunded whole already: refund-"):
            await books.accounts.refund(order, "blurred")
        assert (await books.cut(caller)).available_micro_mxn == parse_mxn("8.40")
        (row, *_) = await books.ledger.audits(caller.org_id, 2**53, 1)
        assert (row.action, row.target, row.org_id) == ("order.refund", refund.credit_id, caller.org_id)
        assert row.details == f'{{"order":"{order}","reason":"blurred","mxn":"1.68"}}'
    assert [row[1] for row in given(ledger_url)] == [2 * UNIT]


@pytest.mark.rule(33)
async def test_parts_may_be_refunded_until_nothing_is_left(redis_url: str, ledger_url: str) -> None:
    """(rule 33) Two of the same amount are two; what is above the rest is refused with the amounts; then the rest."""
    async with charged(redis_url, ledger_url) as (books, caller, order):
        part = parse_mxn("0.30")
        for number in (1, 2):
            assert (await books.accounts.refund(order, "part", part)).credit_id == f"refund-{order}-{number}"
        left = r"mxn: .* charged 0\.84 MXN; 0\.60 MXN of it are refunded, 0\.24 MXN are left"
        with pytest.raises(WrongField, match=left):
            await books.accounts.refund(order, "part", part)
        assert (await books.accounts.refund(order, "the rest")).amount_micro_mxn == parse_mxn("0.24")
        cut = await books.cut(caller)
        assert cut.credits_micro_mxn - cut.charged_micro_mxn == cut.available_micro_mxn == parse_mxn("8.40")
    assert [row[1] for row in given(ledger_url)] == [300_000, 300_000, 240_000]


@pytest.mark.rule(33)
@pytest.mark.parametrize("micro", [0, -1, 1_000 * UNIT, UNIT + 1])
async def test_a_wrong_amount_is_refused(redis_url: str, ledger_url: str, micro: int) -> None:
    """(rule 33) 840.00 for an order of 0.84, one millionth too much, nothing, and less."""
    async with charged(redis_url, ledger_url) as (books, _, order):
        with pytest.raises(WrongField, match="mxn: "):
            await books.accounts.refund(order, "x", micro)
    assert given(ledger_url) == []


@pytest.mark.rule(33)
async def test_what_was_not_charged_is_not_refunded(redis_url: str, ledger_url: str) -> None:
    """(rule 33) A void order, one that nobody knows, one that is still open, and what is no id."""
    async with charged(redis_url, ledger_url) as (books, caller, _):
        void, open_ = str(uuid4()), str(uuid4())
        for order in (void, open_):
            await books.admit(caller, order)
        assert (await books.wallet.void(caller.org_id, void, "store_failed")).close is Close.VOIDED
        await drain(books)
        with pytest.raises(LedgerError, match=r"ended as void \(store_failed\): nothing was charged"):
            await books.accounts.refund(void, "x")
        for order in (open_, str(uuid4())):
            with pytest.raises(NotThere, match="the ledger has no order"):
                await books.accounts.refund(order, "x")
        for order in ("req_", "x", str(uuid4()).upper(), uuid4().hex):
            with pytest.raises(NotThere, match="32 hex digits"):
                await books.accounts.refund(order, "x")
    assert given(ledger_url) == []


@pytest.mark.rule(33)
@pytest.mark.parametrize("reason", ["", " ", "x\n", "\x1b[2J", "x" * 201, "ghub_sk_live_" + "a" * 32])
async def test_a_reason_is_a_line_of_text(redis_url: str, tmp_path: Any, reason: str) -> None:
    """(rule 33) It stands in the audit log and in what finance takes away, and is no key."""
    async with charged(redis_url, f"sqlite:///{tmp_path}/l.db") as (books, _, order):
        with pytest.raises(LedgerError, match=r"reason|API key"):
            await books.accounts.refund(order, reason)


@pytest.mark.rule(33)
async def test_a_credit_of_type_refund_needs_its_order(redis_url: str, ledger_url: str) -> None:
    """(rule 33) Without one it is refused and told the command; with one it is bounded, and its id counts once."""
    async with charged(redis_url, ledger_url) as (books, caller, order):
        add, org_id = books.accounts.add_credit, caller.org_id
        with pytest.raises(WrongField, match=r"order: .*`ghub order refund ID --reason TEXT`"):
            await add(org_id, "r1", "refund", UNIT)
        with pytest.raises(WrongField, match="reason: "):
            await add(org_id, "r1", "refund", UNIT, order=order)
        with pytest.raises(WrongField, match="order: only a refund"):
            await add(org_id, "r1", "bonus", UNIT, order=order)
        with pytest.raises(WrongField, match="recharge: only a chargeback"):
            await add(org_id, "r1", "bonus", UNIT, recharge="x")
        with pytest.raises(WrongField, match="order: "):
            await add(org_id, "r1", "refund", UNIT, order=str(uuid4()), reason="x")
        other = await books.accounts.create_org("other", "default")
        with pytest.raises(WrongField, match=r"order: .*of this organisation"):
            await add(other.org_id, "r1", "refund", UNIT, order=order, reason="x")
        with pytest.raises(WrongField, match="mxn: "):
            await add(org_id, "r1", "refund", 1_000 * UNIT, order=order, reason="x")
        with pytest.raises(WrongField, match="id: credit 'first-acme' exists already"):
            await add(org_id, "first-acme", "refund", UNIT, order=order, reason="x")
        assert await add(org_id, "r1", "refund", UNIT // 2, order=order, reason="x")
        assert not await add(org_id, "r1", "refund", UNIT // 2, order=order, reason="x")
        assert (await books.accounts.refund(order, "the rest")).amount_micro_mxn == UNIT // 2
    assert [row[1] for row in given(ledger_url)] == [UNIT // 2] * 2


@pytest.mark.rule(33)
async def test_an_id_that_somebody_took_is_stepped_over(redis_url: str, ledger_url: str) -> None:
    """(rule 33) A bonus under the very id that the refund would have had does not stop the refund."""
    async with charged(redis_url, ledger_url) as (books, caller, order):
        await books.accounts.add_credit(caller.org_id, f"refund-{order}-1", "bonus", 1)
        assert (await books.accounts.refund(order, "x")).credit_id == f"refund-{order}-2"


@pytest.mark.rule(33)
@pytest.mark.parametrize("order", ["NULL", "'{order}'", "'nobody'"])
def test_the_database_itself_refuses_more(redis_url: str, ledger_url: str, order: str) -> None:
    """(rule 33) Past all of our code: a refund without an order, one above its charge, one of nobody's order."""

    async def work() -> tuple[str, str]:
        async with charged(redis_url, ledger_url) as (_, caller, order):
            return caller.org_id, order

    org_id, charged_id = run(work())
    statement = (
        "INSERT INTO credit_transactions (id, org_id, type, number, amount_micro_mxn, at, order_id)"
        f" VALUES ('x', '{org_id}', 'refund', 9, {UNIT + 1}, '2036', {order.format(order=charged_id)})"
    )
    with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError), match="above what its order was charged"):
        sql(ledger_url, statement)


@pytest.mark.rule(33)
@pytest.mark.parametrize("micro", [None, UNIT * 2 // 3])
def test_race_refunds_at_once_are_at_most_the_charge(redis_url: str, ledger_url: str, micro: int | None) -> None:
    """(rule 33) Four processes refund the same orders at the same moment: each once, and never above its charge."""

    async def work() -> list[str]:
        async with open_books(redis_url, ledger_url) as books:
            caller = await books.org(mxn="84.00")
            orders = [str(uuid4()) for _ in range(12)]
            for order in orders:
                await books.charge(caller, order)
            await drain(books)
            arguments = (ledger_url, micro or 0, *orders)
            found = await asyncio.to_thread(race, "refund", *[arguments] * 4)
            assert sum(found) == len(orders)
            await books.projector.round()
            cut = await books.cut(caller)
            assert cut.credits_micro_mxn == 100 * UNIT + len(orders) * (micro or UNIT)
            return orders

    orders = run(work())
    assert sorted(row[2] for row in given(ledger_url)) == sorted(orders)


@pytest.mark.rule(1, 33)
async def test_a_refund_is_of_record_though_redis_is_away(redis_url: str, ledger_url: str) -> None:
    """(rules 1, 33) It is written first; any process that can reach Redis projects it."""
    async with charged(redis_url, ledger_url) as (books, caller, order):
        await Accounts(books.ledger, None, {}, (), IVA, "test").refund(order, "x")
        assert (await books.cut(caller)).credits_micro_mxn == parse_mxn("8.40")
        await books.projector.round()
        assert (await books.cut(caller)).credits_micro_mxn == parse_mxn("9.24")
        shown = await Orders(books.ledger, None).look(order)
        assert shown.refundable_micro_mxn == 0 and shown.away == "GHUB_REDIS_URL is not set"


@pytest.mark.rule(13, 33)
async def test_a_late_charge_may_be_refunded(redis_url: str, ledger_url: str) -> None:
    """(rules 13, 33) An order with an expiry and the charge that a journal brought: the charge is the bound."""
    async with charged(redis_url, ledger_url) as (books, _, order):
        (booked,) = [one async for one in books.ledger.events()]
        nothing = {"quantity": 0, "amount_micro_mxn": 0, "images": ()}
        late = replace(booked, number=2, end="expiry", reason="hold_expired", **nothing)  # type: ignore[arg-type]
        await books.ledger.book([late], [], NOON)
        assert (await books.accounts.refund(order, "late")).amount_micro_mxn == UNIT
