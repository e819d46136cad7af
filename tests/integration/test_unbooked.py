"""An export says when not everything of its month is booked (the month's close relies on the same, rule 37)."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest

from metering import unbooked
from metering.clock import period_at
from metering.events import decode
from metering.exports.csv_lines import write
from metering.exports.reading import Scope
from metering.exports.writing import Source, write_file
from metering.ledger import booked
from metering.ledger import credits as credit_records
from metering.ports import SetAside
from metering.unbooked import LATE_S, doubts
from metering.wallet import keys
from metering.wallet.connection import open_redis
from metering.wallet.presence import Presence
from metering.wallet.values import Caller, Close, Verdict
from tests.kits.books import NOON, SECOND_US, Books, drain, open_books, pinned
from tests.kits.cluster import Cluster


async def charge(books: Books, caller: Caller, age_s: float) -> str:
    """A charge in the stream that ended so long ago by Redis' clock; returns its month."""
    order, price = str(uuid4()), pinned(now_us=books.wallet.now_us())
    assert (await books.admit(caller, order, price)).verdict is Verdict.ADMITTED
    assert (await books.settle(caller, order)).close is Close.CHARGED
    stream = keys.OrgKeys(caller.org_id).events
    last: Any = await books.redis.xrevrange(stream, count=1)
    ((entry_id, fields),) = last
    ended_us = int(fields[b"ended_us"]) - int(age_s * SECOND_US)
    await books.redis.xadd(stream, fields | {b"ended_us": str(ended_us)})
    await books.redis.xdel(stream, entry_id)
    return price.period.month


async def find(books: Books, month: str, org_id: str | None = None) -> list[str]:
    """The doubts about a month."""
    return await doubts(books.ledger, books.redis, month, org_id)


@pytest.mark.rule(37)
async def test_charges_that_no_consumer_has_booked_are_told(redis_url: str, ledger_url: str) -> None:
    """(rule 37) Number and sum, of that month and organisation only; and no more once they are booked."""
    async with open_books(redis_url, ledger_url, now_us=0) as books:
        caller, other = await books.org(), await books.org("other")
        for age_s in (LATE_S + 1, 3_600.0, LATE_S - 15):
            month = await charge(books, caller, age_s)
        told = f"2 events of {month} that ended over 30 s ago are not booked yet, 2 of them charges of 1.68 MXN in all"
        assert await find(books, month) == [f"{told}: is a consumer running?"]
        assert await find(books, month, caller.org_id) == [f"{told}: is a consumer running?"]
        assert await find(books, month, other.org_id) == []
        assert await find(books, "2031-01") == []
        await drain(books)
        assert await find(books, month) == []


async def test_what_is_booked_and_only_not_taken_from_the_stream_is_no_doubt(redis_url: str, ledger_url: str) -> None:
    """A consumer that dies between its commit and its acknowledgement leaves the entry there."""
    async with open_books(redis_url, ledger_url, now_us=0) as books:
        caller = await books.org()
        month = await charge(books, caller, 60)
        entries: Any = await books.redis.xrange(keys.OrgKeys(caller.org_id).events)
        await books.ledger.book([decode(fields) for _, fields in entries], [], NOON)
        assert await find(books, month) == []


async def test_many_are_counted_a_page_at_a_time(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a page of the stream, and more than a batch of the ledger's."""
    monkeypatch.setattr(unbooked, "BATCH", 70)
    async with open_books(redis_url, tmp_path / "l.db", now_us=0) as books:
        caller = await books.org(mxn="840.00")
        for _ in range(205):
            month = await charge(books, caller, 60)
        assert (await find(books, month))[0].startswith("205 events of")


@pytest.mark.rule(30)
async def test_an_entry_that_nobody_can_read_is_a_doubt(redis_url: str, ledger_url: str) -> None:
    """(rule 30) In the stream; and set aside, unless it says that it is another month's or organisation's."""
    async with open_books(redis_url, ledger_url, now_us=0) as books:
        caller = await books.org()
        await books.redis.xadd(keys.OrgKeys(caller.org_id).events, {"number": "x"})
        assert await find(books, "2036-11") == ["1 entries of the event streams cannot be read, and may be of 2036-11"]
        await drain(books)
        told = "events are set aside that are of 2036-11, or do not say of which month: ghub event list"
        assert await find(books, "2036-11") == [f"1 {told}"]
        opened = {"month": "2036-10", "org_id": caller.org_id, "request_id": "r"}
        for number, kept in enumerate(({"opened": opened}, {"opened": orjson.dumps(opened).decode()})):
            aside = SetAside(5, f"1-{number}", "amount: wrong", orjson.dumps(kept))
            await books.ledger.book([], [aside], NOON)
        assert await find(books, "2036-11") == [f"1 {told}"]
        assert (await find(books, "2036-10"))[0].startswith("3 events are set aside")
        assert (await find(books, "2036-10", str(uuid4())))[0].startswith("1 events are set aside")


@pytest.mark.rule(15, 37)
async def test_a_journal_that_is_not_in_is_a_doubt(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(rules 15, 37) Of a gateway that is gone; not of one that is closed."""
    async with open_books(redis_url, ledger_url) as books:
        gone = uuid4()
        await books.ledger.open_incarnation(gone, NOON)
        assert await find(books, "2036-11") == [f"journal {gone} is not provable: its gateway is gone"]
        await Presence(books.redis).beat(gone, 0)  # a beat of before does not count
        assert await find(books, "2036-11") == [f"journal {gone} is not provable: its gateway is gone"]
        await books.ledger.close_incarnation(gone, 0, NOON)
        assert await find(books, "2036-11") == []


@pytest.mark.rule(2)
async def test_without_redis_nobody_can_say(redis_url: str, tmp_path: Path) -> None:
    """(rule 2) Not set, away, or wiped and not projected again: never "everything is there"."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        cannot = "nobody can say whether events of 2036-11 are still to be booked"
        nowhere = open_redis(f"unix://{tmp_path}/nobody.sock", connections=1, call_timeout_s=0.1)
        assert await doubts(books.ledger, None, "2036-11", None) == [f"GHUB_REDIS_URL is not set: {cannot}"]
        assert await doubts(books.ledger, nowhere, "2036-11", None) == [f"Redis does not answer: {cannot}"]
        await nowhere.aclose()
        await books.redis.delete(keys.mark(9))
        assert await find(books, "2036-11") == [f"Redis is not projected yet: {cannot}"]


async def test_the_streams_of_a_cluster_are_read(cluster: Cluster, tmp_path: Path) -> None:
    """All masters'."""
    async with open_books(cluster.url, tmp_path / "l.db", now_us=0) as books:
        for name in ("a", "b", "c", "d"):
            month = await charge(books, await books.org(name), 60)
        assert (await find(books, month))[0].startswith(f"4 events of {month}")


@pytest.mark.rule(33)
async def test_refunds_are_in_the_export_of_the_month_in_which_they_were_given(
    redis_url: str, ledger_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(rule 33) By Mexico's clock, whenever the order was; page by page, of one organisation or of all."""
    for part in (booked, credit_records):
        monkeypatch.setattr(part, "EVENTS", 2)
    async with open_books(redis_url, ledger_url) as books:
        callers = [await books.org("acme"), await books.org("other")]
        for caller in callers:
            for _ in range(3):
                order = str(uuid4())
                await books.charge(caller, order)
                await drain(books)
                await books.accounts.refund(order, "x")
        now = await books.redis.time()
        month = period_at(int(now[0]) * SECOND_US).month
        ledger = books.ledger
        for org_id, rows, micro in ((None, 6, 6 * 840_000), (callers[0].org_id, 3, 3 * 840_000)):
            out = tmp_path / "out.csv"
            written = await write_file(Source(ledger, Scope((month,), org_id)), out, write)
            assert (written.rows, written.refunded_micro_mxn, written.charged_micro_mxn) == (rows, micro, 0)
            of_orders = await write_file(Source(ledger, Scope(("2036-11",))), out, write)
            assert (of_orders.rows, of_orders.refunded_micro_mxn) == (6, 0)
