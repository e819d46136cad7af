"""The effect of one entry, one answer or one bug on the consumer: the rest is unaffected, and nothing is silent."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as NoConnection

from metering import consumer as module
from metering.events import Event, EventError, decode
from metering.ports import DatabaseRefused, SetAside, WebhookCall
from metering.wallet import keys
from metering.wallet.kept import KNOWN, NEW, Commit, Commits, Done
from metering.wallet.script import Call, Script
from tests.kits.books import UNIT, drain, make_groups, open_books, waiting, wipe
from tests.kits.cluster_orgs import everywhere
from tests.kits.consumer import drained_s, entry_of, fill


async def marks(books: Any) -> int:
    """Partitions that are projected."""
    return int(keys.PARTITIONS - await books.projector.missing(None))


async def test_a_lost_reply_of_the_commit_is_no_wiped_stream(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis took 32 partitions' events out, and its answer was lost: told again, it knows, and every mark stays."""
    async with open_books(redis_url, ledger_url) as books:
        callers = await everywhere(books)
        await make_groups(books.redis)
        for caller in callers:
            await books.charge(caller, caller.org_id)
        consumer, each = books.consumer(), Script.each

        async def lose(script: Script, calls: Sequence[Call]) -> list[Any]:
            answers = await each(script, calls)
            names, args = calls[0]
            if names[-1] == keys.last_commit(keys.partition_in(names), "c1") and len(args) > 6:
                monkeypatch.setattr(Script, "each", each)
                raise NoConnection("the answer was lost")
            return answers

        monkeypatch.setattr(Script, "each", lose)
        with pytest.raises(NoConnection):
            await consumer.round()
        assert await waiting(books.redis) == 0
        await consumer.round()
        assert await marks(books) == keys.PARTITIONS
        assert (await books.ledger.charged_up_to(callers[5].org_id)).charged_micro_mxn == UNIT


async def test_a_lost_reply_in_the_middle_of_a_batch_is_no_wiped_stream(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that is told in three calls goes on at the one whose answer was lost, and every mark stays."""
    monkeypatch.setattr(module, "TOLD", 2)
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        await make_groups(books.redis)
        for number in range(5):
            await books.charge(caller, f"r{number}")
        consumer, tell, told = books.consumer(), Commits.tell, list[int]()

        async def lose(commits: Commits, commit: Commit) -> None:
            await tell(commits, commit)
            told.append(sum(map(len, commit.by_partition.values())))
            if len(told) == 2:
                raise NoConnection("the answer was lost")

        monkeypatch.setattr(Commits, "tell", lose)
        with pytest.raises(NoConnection):
            await consumer.round()
        assert await waiting(books.redis) == 1
        await consumer.round()
        assert (told, await waiting(books.redis)) == ([2, 2, 2, 1], 0)
        assert await marks(books) == keys.PARTITIONS
        assert (await books.ledger.charged_up_to(caller.org_id)).charged_micro_mxn == 5 * UNIT


@pytest.mark.rule(27)
async def test_a_wipe_between_commit_and_its_repetition_is_noticed(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wallet was rebuilt without the event: the mark goes, as a lost answer alone never has it (rule 27)."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        await make_groups(books.redis)
        await books.charge(caller, "r")
        consumer, each = books.consumer(), Script.each

        async def away(script: Script, calls: Sequence[Call]) -> list[Any]:
            if calls and len(calls[0].args) > 6 and calls[0].keys[-1].endswith(":commit:c1"):
                raise NoConnection("never asked")
            return await each(script, calls)

        monkeypatch.setattr(Script, "each", away)
        with pytest.raises(NoConnection):
            await consumer.round()
        monkeypatch.setattr(Script, "each", each)
        await wipe(books.redis)
        await make_groups(books.redis)
        await books.redis.set(keys.OrgKeys(caller.org_id).mark, "0")
        await consumer.round()
        assert not await books.redis.exists(keys.OrgKeys(caller.org_id).mark)


@pytest.mark.rule(30)
async def test_a_notice_that_the_database_refuses_is_set_aside(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends nothing: the other notices are told, the events booked, and it is kept for a person (rule 30)."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        stream = keys.OrgKeys(caller.org_id).events
        notice: dict[Any, Any] = {
            "notice": "balance",
            "org": caller.org_id,
            "key": "",
            "percent": 0,
            "limit": 10,
            "used": 8,
            "at_us": 1,
        }
        for period in ("1", "refuse me", "2"):
            await books.redis.xadd(stream, {**notice, "period": period})
        await books.charge(caller, "r")
        book = books.ledger.book_notices

        async def picky(notices: Sequence[Any], calls: Any) -> list[Any]:
            if any(one.period == "refuse me" for one in notices):
                raise DatabaseRefused("the ledger refuses: for a test")
            return await book(notices, calls)

        monkeypatch.setattr(books.ledger, "book_notices", picky)
        stop = asyncio.Event()
        task = asyncio.create_task(books.consumer().run(stop))
        await drained_s(books.redis, 10.0)
        stop.set()
        await task
        (kept,) = await books.ledger.set_asides()
        assert (kept.org_id, kept.error) == (caller.org_id, "the ledger refuses: for a test")
        told = await books.ledger.notices(caller.org_id, "9999", 10)
        assert {one.period for one in told if one.what == "balance"} >= {"1", "2"}
        assert (await books.ledger.charged_up_to(caller.org_id)).events == 1


@pytest.mark.rule(30)
async def test_one_poison_event_of_a_full_batch_is_found_in_few_transactions(redis_url: str, ledger_url: str) -> None:
    """An entry that the database refuses is found by halving; the others are booked (rule 30)."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        stream = keys.OrgKeys(caller.org_id).events
        await fill(books.redis, [caller], module.BATCH // 2)
        stranger = entry_of(type(caller)("99999999-9999-4999-8999-999999999999", "key_1"), 1)
        poison_id = await books.redis.xadd(stream, stranger)  # type: ignore[arg-type]
        await fill(books.redis, [caller], module.BATCH // 2 - 1)
        await make_groups(books.redis)
        book, count = books.ledger.book, 0

        async def counted(
            events: Sequence[Event], set_aside: Sequence[SetAside], at: datetime, calls: Sequence[WebhookCall] = ()
        ) -> set[str]:
            nonlocal count
            count += 1
            return await book(events, set_aside, at, calls)

        books.ledger.book = counted  # type: ignore[method-assign]
        while await waiting(books.redis):
            await books.consumer().round()
        assert count < 30
        (kept,) = await books.ledger.set_asides()
        assert kept.entry_id == poison_id.decode()  # type: ignore[union-attr]  # bytes, as this client reads
        assert (await books.ledger.charged_up_to(caller.org_id)).events == module.BATCH - 1


async def test_a_lane_that_dies_ends_the_consumer(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in one of 32 lanes is raised at once: nothing goes on without it, and nobody waits for it.

    Started again it fails again, for its supervisor to count. Once the fault is gone it goes on with its entries in
    memory.
    """
    monkeypatch.setattr(module, "lanes", lambda _: [range(one, one + 1) for one in range(keys.PARTITIONS)])
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        await make_groups(books.redis)
        await books.charge(caller, "r")

        def bug(fields: Any) -> Any:
            raise ZeroDivisionError("a bug")

        consumer, stop = books.consumer(), asyncio.Event()
        with monkeypatch.context() as faulty:
            faulty.setattr(module, "decode", bug)
            for _ in range(2):
                with pytest.raises(ExceptionGroup) as raised:
                    await asyncio.wait_for(asyncio.create_task(consumer.run(stop)), 10)
                assert raised.group_contains(ZeroDivisionError)
        task = asyncio.create_task(consumer.run(stop))
        async with asyncio.timeout(10):
            while await waiting(books.redis):
                await asyncio.sleep(0.01)
        stop.set()
        await asyncio.wait_for(task, 10)
        assert (await books.ledger.charged_up_to(caller.org_id)).events == 1


OF_TODAY = {
    b"number": b"7",
    b"end": b"charge",
    b"reason": b"delivered",
    b"quantity": b"1",
    b"amount": b"840000",
    b"admitted_us": b"1795370400000000",
    b"ended_us": b"1795370404000000",
    b"opened": (
        b'{"v":1,"request_id":"3f2504e0-4f89-41d3-9a0c-0305e82c3301","org_id":"ORG","key_id":"key_1","images":1,'
        b'"day":"2036-11-22","month":"2036-11","proof":{"variant":"","usd_per_image":"0.04","price_book":'
        b'"2026-11-22+test","markup":"1.05","mxn_per_usd":"20","fx_month":"2036-11","fx_source":"test",'
        b'"unit_micro_mxn":840000},"model":"fal/flux-1.1-pro","provider":"fal","upstream":"fal-ai/flux-pro/v1.1",'
        b'"size":"1024x1024","quality":null,"region":"local","once":null}'
    ),
    b"images": (
        b'[{"path":"2036/11/a_0.png","content_type":"image/png","size_bytes":1000,"sha256":'
        b'"0000000000000000000000000000000000000000000000000000000000000000","width_px":1024,"height_px":1024}]'
    ),
    b"usd_measured": b"",
    b"result": b'{"v":1,"created":1795370404,"prompts":["caf\xc3\xa9"]}',
}
"""An entry in the form of 2026-11-26."""


async def test_an_entry_of_the_tree_before_is_booked_and_one_of_a_later_is_set_aside(
    redis_url: str, ledger_url: str
) -> None:
    """In a roll-out either may be read by either: a later one is a sentence that names the version, not a traceback."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        ours = {**OF_TODAY, b"opened": OF_TODAY[b"opened"].replace(b"ORG", caller.org_id.encode())}
        later = {
            **ours,
            b"opened": ours[b"opened"].replace(b'"v":1', b'"v":2').replace(b'"once"', b'"tax":1,"once"'),
        }
        more = {**ours, b"opened": ours[b"opened"].replace(b'"once"', b'"tax":1,"once"')}
        for entry in (ours, later, more):
            await books.redis.xadd(keys.OrgKeys(caller.org_id).events, entry)  # type: ignore[arg-type]
        await drain(books)
        (booked,) = [one async for one in books.ledger.events()]
        assert (booked.event_id, booked.amount_micro_mxn) == ("3f2504e0-4f89-41d3-9a0c-0305e82c3301", UNIT)
        assert {one.error for one in await books.ledger.set_asides()} == {
            "opened: holds 'tax', which version 1 does not know",
            "opened.v: is 2, and this program reads version 1: run the newer consumer, then `ghub event retry`",
        }


@pytest.mark.parametrize(
    "change",
    [
        {b"opened": b"[1]"},
        {b"opened": b"{}"},
        {b"opened": b'{"v":{"x":1}}'},
        {b"opened": b"[" * 100_000},
        {b"images": b'{"a":1}'},
        {b"images": b"7"},
        {b"number": b"9" * 5_000},
        {b"usd_measured": b"sNaN"},
        {b"result": b"\xff"},
        {b"opened": OF_TODAY[b"opened"].replace(b'"0.04"', b'"0,04"')},
        {b"opened": OF_TODAY[b"opened"].replace(b'"0.04"', b'"1E+999999999"')},
    ],
)
def test_what_is_no_event_is_said_to_be_none(change: dict[bytes, bytes]) -> None:
    """However an entry is damaged, it is one error of one kind, in one line."""
    with pytest.raises(EventError) as raised:
        decode({**OF_TODAY, **change})
    assert "\n" not in str(raised.value)


@pytest.mark.rule(28)
@pytest.mark.parametrize("wiped", [False, True])
async def test_an_entry_that_another_consumer_took_out_is_not_lost(redis_url: str, tmp_path: Path, wiped: bool) -> None:
    """Two had it in hand, and the one that did not book it tells so first: no mark goes. Where Redis was wiped between
    the reading and the telling it does (rule 28)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        await make_groups(books.redis)
        caller = await books.org()
        await books.charge(caller, "r")
        partition = keys.partition_of(caller.org_id)
        entries: Any = await books.redis.xrange(keys.events(partition))
        ((entry_id, _),) = entries
        one, other = (Commits(books.redis, "ledger", name, 3600.0) for name in ("one", "other"))
        if wiped:
            await books.redis.delete(keys.events(partition))
        else:
            await other.tell(Commit([Done(partition, entry_id, KNOWN, "charge:r")]))
        await one.tell(Commit([Done(partition, entry_id, NEW, "charge:r")]))
        assert bool(await books.redis.exists(keys.mark(partition))) is not wiped
