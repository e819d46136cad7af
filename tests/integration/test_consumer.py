"""Events → ledger: nothing lost, nothing doubled, whatever dies (rules 28 and 30)."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from functools import partial

import orjson
import pytest
from redis import Redis as SyncRedis
from redis.exceptions import ResponseError

from metering import consumer as module
from metering.consumer import GROUP, Consumer
from metering.events import Event
from metering.ledger.record import SqlLedger
from metering.ports import SetAside, WebhookCall
from metering.verify import verify
from metering.wallet import keys
from metering.wallet.presence import Presence
from metering.wallet.values import Caller, Close, Verdict
from tests.kits.books import (
    LIMITS,
    NOW_US,
    UNIT,
    Books,
    drain,
    event,
    make_groups,
    open_books,
    open_ledger,
    patiently,
    start_worker,
    waiting,
    wipe,
)


async def stored(path: str) -> bool:
    return True


async def booked(books: Books, caller: Caller) -> tuple[int, int]:
    charged = await books.ledger.charged_up_to(caller.org_id)
    return charged.events, charged.charged_micro_mxn


class Gate:
    """Holds a ledger's bookings up, before or after their commit; tells when one has come, and waits for leave."""

    def __init__(self, ledger: SqlLedger, *, after: bool = False) -> None:
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        self._book, self._after = ledger.book, after
        ledger.book = self._through  # type: ignore[method-assign]

    async def _through(
        self, events: Sequence[Event], set_aside: Sequence[SetAside], at: datetime, calls: Sequence[WebhookCall] = ()
    ) -> set[str]:
        new = await self._book(events, set_aside, at, calls) if self._after else set()
        self.reached.set()
        await self.go_on.wait()
        return new if self._after else await self._book(events, set_aside, at, calls)


async def read_and_wiped(books: Books, consumer: Consumer, gate: Gate) -> asyncio.Task[int]:
    """The consumer has read what the streams hold, and waits at its ledger's gate; Redis is wiped meanwhile."""
    task = asyncio.create_task(consumer.round())
    await asyncio.wait_for(gate.reached.wait(), 20)
    await wipe(books.redis)
    return task


async def test_events_reach_the_ledger_and_leave_the_stream(redis_url: str, ledger_url: str) -> None:
    """Acknowledged and trimmed after the commit; a second look finds nothing."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        for i in range(3):
            await books.charge(caller, f"r{i}")
        await make_groups(books.redis)
        consumer, new = books.consumer(), 0
        while await waiting(books.redis):  # in a cluster lanes share the room, so one round may not take all
            new += await consumer.round()
        assert new == 3
        assert await booked(books, caller) == (3, 3 * UNIT)
        stream = keys.OrgKeys(caller.org_id).events
        assert await books.redis.xlen(stream) == 0
        assert (await books.redis.xpending(stream, GROUP))["pending"] == 0
        assert await books.consumer("other").round() == 0


@pytest.mark.parametrize("how", ["cancelled", "SIGKILL"])
async def test_a_consumer_that_dies_between_commit_and_acknowledgement_doubles_nothing(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Another takes its entries over, finds them in the ledger, and acknowledges them."""
    monkeypatch.setattr(module, "IDLE_MS", 0)
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        for i in range(4):
            await books.charge(caller, f"r{i}")
        if how == "cancelled":
            ledger = open_ledger(ledger_url)
            gate = Gate(ledger, after=True)
            task = asyncio.create_task(Consumer(books.redis, ledger, "doomed", 60).run(asyncio.Event()))
            await asyncio.wait_for(gate.reached.wait(), 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await ledger.aclose()
        else:
            worker = start_worker("consume_and_hang", redis_url, ledger_url)
            assert worker.stdout is not None
            assert await asyncio.to_thread(worker.stdout.readline) == b"committed\n"
            worker.kill()
            worker.communicate()
        assert await waiting(books.redis) == 4
        assert await booked(books, caller) == (4, 4 * UNIT)
        await drain(books)
        assert await booked(books, caller) == (4, 4 * UNIT)
        assert await verify(books.ledger, books.wallet, Presence(books.redis), stored) == []


@pytest.mark.rule(28)
async def test_a_dead_consumers_entries_are_claimed(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read by one that never booked them, they are booked by the next (rule 28)."""
    monkeypatch.setattr(module, "IDLE_MS", 0)
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        for i in range(3):
            await books.charge(caller, f"r{i}")
        await make_groups(books.redis)
        stream = keys.OrgKeys(caller.org_id).events
        await books.redis.xreadgroup(GROUP, "dead", {stream: ">"}, count=2)
        assert await books.consumer().round() == 3
        assert await booked(books, caller) == (3, 3 * UNIT)


@pytest.mark.rule(28)
async def test_a_lost_group_starts_from_the_beginning(redis_url: str, ledger_url: str) -> None:
    """Destroyed with entries in the stream, some of them read: all are booked, none twice (rule 28)."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org(mxn="100.00")
        stream = keys.OrgKeys(caller.org_id).events
        consumer, stop = books.consumer(), asyncio.Event()
        task = asyncio.create_task(consumer.run(stop))
        for i in range(30):
            await books.charge(caller, f"r{i}")
            if i % 10 == 5:
                await books.redis.xgroup_destroy(stream, GROUP)
        for _ in range(1_000):
            if await books.redis.xlen(stream) == 0:
                break
            await asyncio.sleep(0.01)
        stop.set()
        await task
        assert await booked(books, caller) == (30, 30 * UNIT)
        assert await verify(books.ledger, books.wallet, Presence(books.redis), stored) == []


@pytest.mark.rule(27)
@pytest.mark.parametrize("rebuilt", ["before the commit", "around the commit", "after the commit"])
async def test_a_redis_wiped_between_read_and_commit_is_rebuilt_with_what_was_committed(
    redis_url: str, ledger_url: str, rebuilt: str
) -> None:
    """A rebuild that could not know of the event is made again: the balance is exact, and verify is clean (rule 27)."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org(mxn="8.40")
        await books.charge(caller, "early")
        await drain(books)
        await books.charge(caller, "in-flight")
        gate = Gate(ledger := open_ledger(ledger_url))
        consumer = Consumer(books.redis, ledger, "c", 60)
        task = await read_and_wiped(books, consumer, gate)
        if rebuilt == "before the commit":
            await books.projector.round()
            assert (await books.cut(caller)).charged_micro_mxn == UNIT
            await books.charge(caller, "next")
        if rebuilt == "around the commit":
            # A rebuild that has read the ledger already, and has not written yet: its fence stands.
            await books.redis.set(keys.OrgKeys(caller.org_id).fence, "another")
        gate.go_on.set()
        await task
        assert not await books.redis.exists(keys.OrgKeys(caller.org_id).mark, keys.OrgKeys(caller.org_id).fence)
        await make_groups(books.redis)
        await drain(books)
        await books.projector.round()
        wanted = 3 if rebuilt == "before the commit" else 2
        cut = await books.cut(caller)
        assert (cut.available_micro_mxn, cut.charged_micro_mxn) == ((10 - wanted) * UNIT, wanted * UNIT)
        await books.charge(caller, "later")
        await drain(books)
        assert await verify(books.ledger, books.wallet, Presence(books.redis), stored) == []
        await ledger.aclose()


async def test_an_answer_that_was_not_read_is_asked_for_again(redis_url: str, ledger_url: str) -> None:
    """Redis was away when a wiped event was acknowledged: its loss is noticed once Redis is back."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org(mxn="8.40")
        await books.charge(caller, "in-flight")
        await make_groups(books.redis)
        gate = Gate(ledger := open_ledger(ledger_url))
        consumer = Consumer(books.redis, ledger, "c", 60)
        task = await read_and_wiped(books, consumer, gate)
        await books.projector.round()
        # What the acknowledgement names is of another kind for a moment: Redis answers it with an error.
        stream = keys.OrgKeys(caller.org_id).events
        await books.redis.set(stream, "no stream")
        gate.go_on.set()
        with pytest.raises(ResponseError):
            await task
        assert (await books.cut(caller)).charged_micro_mxn == 0
        await books.redis.delete(stream)
        await make_groups(books.redis)
        await consumer.round()
        await books.projector.round()
        assert (await books.cut(caller)).charged_micro_mxn == UNIT
        await ledger.aclose()


def poison(caller: Caller) -> list[dict[str, bytes]]:
    """Entries that are no events of ours, in every way that we know."""
    stranger = event("99999999-9999-4999-8999-999999999999", 1)
    opened = {"v": 1, **{name: getattr(stranger.opened, name) for name in stranger.opened.__slots__}}
    foreign = {
        "number": b"1",
        "end": b"charge",
        "reason": b"delivered",
        "quantity": b"1",
        "amount": str(UNIT).encode(),
        "admitted_us": b"1",
        "ended_us": b"2",
        "opened": orjson.dumps(opened),
        "images": orjson.dumps(stranger.images),
        "usd_measured": b"",
    }
    return [{"x": b"1"}, {"opened": b"null"}, {"opened": b"\xff\x00"}, foreign]


@pytest.mark.rule(30)
async def test_a_poison_entry_is_set_aside_and_the_rest_is_booked(redis_url: str, ledger_url: str) -> None:
    """It stops nobody, it is kept for a person, and verify reports it (rule 30)."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        entries = poison(caller)
        for i, entry in enumerate(entries):
            await books.charge(caller, f"r{i}")
            await books.redis.xadd(keys.OrgKeys(caller.org_id).events, entry)  # type: ignore[arg-type]
        await books.charge(caller, "last")
        await drain(books)
        assert await booked(books, caller) == (len(entries) + 1, (len(entries) + 1) * UNIT)
        assert await books.ledger.count_set_aside() == len(entries)
        (difference,) = await verify(books.ledger, books.wallet, Presence(books.redis), stored)
        assert (difference.what, difference.found) == ("events set aside", str(len(entries)))


async def test_race_three_consumers_book_each_event_once(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They claim from each other all the while, and 300 events are 300 rows."""
    monkeypatch.setattr(module, "IDLE_MS", 0)
    monkeypatch.setattr(module, "SWEEP_S", 0.0)
    monkeypatch.setattr(module, "WAIT_MS", 5)
    async with open_books(redis_url, ledger_url) as books:
        callers = [await books.org(f"org-{i}", "100.00") for i in range(3)]
        ledgers = [open_ledger(ledger_url) for _ in range(3)]
        stop = asyncio.Event()
        consumers = [Consumer(books.redis, ledger, f"c{i}", 60) for i, ledger in enumerate(ledgers)]
        tasks = [asyncio.create_task(consumer.run(stop)) for consumer in consumers]
        projecting = asyncio.create_task(books.projector.run(0.01))
        for i in range(100):
            for caller in callers:
                name = f"{caller.org_id}-{i}"
                assert (await patiently(partial(books.admit, caller, name))).verdict is Verdict.ADMITTED
                assert (await patiently(partial(books.settle, caller, name))).close is Close.CHARGED
        for _ in range(2_000):
            if await waiting(books.redis) == 0:
                break
            await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*tasks)
        for ledger in ledgers:
            await ledger.aclose()
        projecting.cancel()
        await books.projector.round()
        for caller in callers:
            assert await booked(books, caller) == (100, 100 * UNIT)
            cut = await patiently(partial(books.cut, caller))
            assert cut.charged_micro_mxn == 100 * UNIT


@pytest.mark.rule(28)
async def test_a_full_redis_is_drained_and_the_consumer_lives(redis_url: str, ledger_url: str) -> None:
    """If Redis refuses every write that needs memory, the consumer goes on, because it frees memory (rule 28)."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        await make_groups(books.redis)
        for i in range(3):
            await books.charge(caller, f"r{i}")
        await books.admit(caller, "open")
        stop = asyncio.Event()
        with SyncRedis.from_url(redis_url) as server:
            server.config_set("maxmemory", 1)
            try:
                task = asyncio.create_task(books.consumer().run(stop))
                await asyncio.wait({task}, timeout=1.5)
                assert not task.done()
                assert await booked(books, caller) == (3, 3 * UNIT)
                assert (await books.settle(caller, "open")).close.name == "CHARGED"
            finally:
                server.config_set("maxmemory", 0)
        stop.set()
        await task
        await drain(books)
        assert await booked(books, caller) == (4, 4 * UNIT)


async def test_a_consumer_waits_for_what_is_away(redis_url: str, ledger_url: str) -> None:
    """A read-only Redis, as in a failover, is an outage and no reason to die; afterwards it goes on."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        await books.charge(caller, "r")
        stop, consumer = asyncio.Event(), books.consumer()
        with SyncRedis.from_url(redis_url) as server:
            server.replicaof("127.0.0.1", 1)
            try:
                task = asyncio.create_task(consumer.run(stop))
                await asyncio.wait({task}, timeout=0.3)
                assert not task.done()
                assert not consumer.alive
            finally:
                server.replicaof("NO", "ONE")
        for _ in range(500):
            if await booked(books, caller) == (1, UNIT):
                break
            await asyncio.sleep(0.01)
        stop.set()
        await task
        assert await booked(books, caller) == (1, UNIT)
        assert consumer.alive


async def test_the_sweep_writes_down_what_ran_out(redis_url: str, ledger_url: str) -> None:
    """An order whose gateway died ends as an expiry in the ledger, though nobody asks for its organisation again."""
    async with open_books(redis_url, ledger_url, now_us=1_000_000_000_000_000) as books:
        caller = await books.org()
        from_then = books.wallet.now_us()
        assert from_then < NOW_US
        await make_groups(books.redis)
        await books.admit(caller, "forgotten")
        await books.consumer().round()
        (end,) = [one async for one in books.ledger.events()]
        assert (end.end, end.reason, end.amount_micro_mxn) == ("expiry", "hold_expired", 0)
        assert LIMITS.remember_s > 0
