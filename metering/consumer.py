"""The billing consumer: events → ledger, exactly once in effect.

Read, write to the ledger in one transaction, then acknowledge and trim. Whatever dies in between is read again, and
the ledger's unique event id makes the second time count for nothing.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import asdict
from typing import Any

import orjson
import structlog
from prometheus_client import Counter
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from metering.background import told
from metering.clock import utc_now
from metering.events import Event, EventError, Notice, decode, decode_notice
from metering.ports import Ledger, LedgerAway, LedgerError, SetAside
from metering.wallet import keys
from metering.wallet.connection import lanes, load_script

log = structlog.get_logger(__name__)

GROUP = "ledger"

BATCH = 200
"""Entries per stream and read: about 200 kB, one transaction."""

WAIT_MS = 500
"""How long a read waits for the first event: bounds how late a stop is noticed."""

IDLE_MS = 10_000
"""An entry that its consumer has not acknowledged for this long is taken over."""

SWEEP_S = 5.0
"""How often dead consumers' entries and holds that ran out are looked for."""

MOST_ENDED = 500
"""Run-out holds that one script call writes down before it stops: about 10 ms. The next sweep goes on."""

NOTICES = Counter("ghub_notices_total", "Thresholds that organisations reached", ["what", "percent"])

Entry = tuple[bytes, dict[bytes, bytes] | None]
Batch = list[tuple[int, Entry]]


class Consumer:
    """One of any number of consumers of the same group. `redis` must allow calls longer than WAIT_MS.

    On one server it waits for all streams at once. In a cluster a read names one partition only, so there each
    partition has a lane of its own, with a connection of its own: one that is away holds up no other.
    """

    def __init__(self, redis: Redis, ledger: Ledger, name: str, remember_s: int) -> None:
        self._lanes = [_Lane(redis, ledger, name, remember_s, partitions) for partitions in lanes(redis)]

    @property
    def alive(self) -> bool:
        """Did every partition's last look succeed?"""
        return all(lane.alive for lane in self._lanes)

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop`; what is being booked then is finished first."""
        async with asyncio.TaskGroup() as running:  # one that fails ends the others, and all are begun anew together
            for lane in self._lanes:
                running.create_task(lane.run(stop))

    async def round(self) -> int:
        """Book one batch of each lane's new events, and what others left behind. Returns how many were new."""
        return sum(await asyncio.gather(*(lane.round() for lane in self._lanes)))


class _Lane:
    """Consumes the streams of `partitions`."""

    def __init__(self, redis: Redis, ledger: Ledger, name: str, remember_s: int, partitions: Sequence[int]) -> None:
        self._redis = redis
        self._ledger = ledger
        self._name = name
        self._remember_s = remember_s
        self._expire = load_script(redis, "expire_v1")
        self._streams = {partition: keys.events(partition) for partition in partitions}
        self._next_sweep = 0.0
        self._written: dict[tuple[int, bytes], bool] = {}
        self._booked: dict[int, str] = {}
        self.alive = False

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop`; what is being booked then is finished first."""
        groups_lost = False
        while not stop.is_set():
            try:
                if groups_lost:
                    await self._make_groups()
                await self.round()
                groups_lost, self.alive = False, True
            except (RedisError, LedgerAway, OSError, TimeoutError) as error:
                groups_lost = isinstance(error, ResponseError) and str(error).startswith("NOGROUP")
                if groups_lost:
                    continue
                self.alive = False
                log.warning("consumer_waits", **told(error))
                await _first(stop.wait(), asyncio.sleep(1.0))

    async def round(self) -> int:
        """Book one batch of new events, and now and then what others left behind. Returns how many were new."""
        await self._acknowledge()
        new = 0
        if (now := asyncio.get_running_loop().time()) >= self._next_sweep:
            new += await self._sweep()
            self._next_sweep = now + SWEEP_S
        fresh = await self._redis.xreadgroup(
            GROUP, self._name, dict.fromkeys(self._streams.values(), ">"), count=BATCH, block=WAIT_MS
        )
        batch = [(_partition(stream), entry) for stream, pages in _pairs(fresh) for page in pages for entry in page]
        return new + await self._book(batch)

    async def _book(self, batch: Batch) -> int:
        if not batch:
            return 0
        events: dict[tuple[int, bytes], Event] = {}
        notices: list[Notice] = []
        set_aside: list[SetAside] = []
        for partition, (entry_id, fields) in batch:
            try:
                if fields and b"notice" in fields:
                    notices.append(decode_notice(fields))
                else:
                    events[partition, entry_id] = decode(fields or {})
            except EventError as error:
                log.error("event_set_aside", partition=partition, entry=entry_id.decode(), error=str(error))
                set_aside.append(_aside(partition, entry_id, fields or {}, str(error)))
        await self._pass_on(notices)  # first: an event that is booked is told again by nobody
        new = await self._write(events, set_aside)
        for partition, (entry_id, _) in batch:
            event = events.get((partition, entry_id))
            self._written[partition, entry_id] = event is not None and event.event_id in new
            if event is not None and event.event_id in new:
                self._booked[partition] = f"{'charge' if event.end == 'charge' else 'other'}:{event.event_id}"
        log.info("booked", new=len(new), again=len(events) - len(new), set_aside=len(set_aside))
        await self._acknowledge()
        return len(new)

    async def _write(self, events: dict[tuple[int, bytes], Event], set_aside: list[SetAside]) -> set[str]:
        try:
            return await self._ledger.book(list(events.values()), set_aside, utc_now())
        except LedgerError:
            pass
        # One of them is none that the record takes. Singly, it is found and set aside; the others are booked.
        new = await self._ledger.book([], set_aside, utc_now())
        for (partition, entry_id), event in events.items():
            try:
                new |= await self._ledger.book([event], [], utc_now())
            except LedgerError as error:
                log.error("event_set_aside", partition=partition, entry=entry_id.decode(), error=str(error))
                poison = SetAside(partition, entry_id.decode(), str(error), orjson.dumps(event))
                await self._ledger.book([], [poison], utc_now())
        return new

    async def _pass_on(self, notices: Sequence[Notice]) -> None:
        """Tell them: in the log, for whoever sends mail, and in the ledger, where each is told once."""
        for notice in await self._ledger.book_notices(notices):
            NOTICES.labels(notice.what, notice.percent).inc()
            log.warning("notice", **asdict(notice))

    async def _acknowledge(self) -> None:
        """Tell Redis what is committed. Where Redis is away it stays to be told: its answer says what was lost."""
        if not self._written:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for partition, entry_id in self._written:
                # In this order: an entry that was acknowledged and stayed would be nobody's, and never go.
                pipe.xdel(keys.events(partition), entry_id)
                pipe.xack(keys.events(partition), GROUP, entry_id)
            for partition, end in self._booked.items():
                pipe.set(keys.booked(partition), end)  # by this a ledger is known that lost it (rule 34)
            deleted = (await pipe.execute())[: 2 * len(self._written) : 2]
        told = zip(self._written.items(), deleted, strict=True)
        # New to the ledger, yet no longer in the stream: nobody else has booked it, so Redis was wiped meanwhile, and
        # a wallet may have been rebuilt without it. Without its mark the partition is rebuilt again, from the ledger;
        # a rebuild that is under way loses its fence, and begins again.
        for lost in {partition for ((partition, _), new), gone in told if new and not gone}:
            log.warning("stream_lost", partition=lost)
            await self._redis.delete(keys.mark(lost), keys.fence(lost))
        self._written.clear()
        self._booked.clear()

    async def _sweep(self) -> int:
        new = 0
        for partition, stream in self._streams.items():
            await self._expire(
                keys=[keys.mark(partition), keys.busy(partition)], args=[0, MOST_ENDED, self._remember_s]
            )
            _, entries, *_ = await self._redis.xautoclaim(
                stream, GROUP, self._name, min_idle_time=IDLE_MS, start_id="0-0", count=BATCH
            )
            new += await self._book([(partition, entry) for entry in entries])
        return new

    async def _make_groups(self) -> None:
        """From the stream's beginning, never from `$`: a lost group must not lose an event (rule 28)."""
        for stream in self._streams.values():
            try:
                await self._redis.xgroup_create(stream, GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise


def _aside(partition: int, entry_id: bytes, fields: dict[bytes, bytes], error: str) -> SetAside:
    text = {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in fields.items()}
    return SetAside(partition=partition, entry_id=entry_id.decode(), error=error, fields=orjson.dumps(text))


def _partition(stream: bytes) -> int:
    return int(stream[2 : stream.index(b"}")])


def _pairs(reply: Any) -> list[tuple[bytes, Any]]:
    return list(reply.items()) if isinstance(reply, dict) else []


async def _first(*waits: Awaitable[Any]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
