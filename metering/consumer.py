"""The billing consumer: events → ledger, exactly once in effect.

Read, write to the ledger in one transaction, then take out of the stream. Whatever dies in between is read again, and
the ledger's unique event id makes the second time count for nothing. What was read stays in hand while the ledger is
away, and nothing else is read meanwhile.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from config.settings import KEEP_H
from metering.aside import pack, told_of
from metering.background import told
from metering.clock import utc_now
from metering.events import Event, EventError, Notice, decode, decode_notice
from metering.ports import Ledger, LedgerAway, LedgerError, SetAside
from metering.wallet import keys
from metering.wallet.connection import lanes
from metering.wallet.kept import KNOWN, NEW, NO_EVENT, Commit, Commits, Done, heal, proof_of
from metering.wallet.script import load_script

log = structlog.get_logger(__name__)

T = TypeVar("T")
R = TypeVar("R")

GROUP = "ledger"

BATCH = 200
"""Entries that are in hand at a time, and at most in one transaction: about 200 kB."""

FIRST = 2
"""Entries of each stream that a read takes which waits for the first of them; where there may be more it goes on."""

LARGEST_BYTES = 256 * 1024
"""Of one entry: eight images, each with 4,000 characters that JSON has to escape. Room is made as if all were so."""

MAX_BYTES = 8 * 1024 * 1024
"""Of entries that one process has in hand, beside the first of each stream."""

BOOKED_BYTES = 2 * 1024 * 1024
"""Of entries in one transaction. Decoded, as rows and on their way they take up to fifteen times that."""

BOOKINGS = 2
"""Transactions of one process at a time: one is made while the other is synced."""

WAIT_MS = 500
"""How long a read waits for the first event: bounds how late a stop is noticed."""

PAUSE_S = 0.5
"""Before Redis or a ledger that is away is asked again."""

IDLE_MS = 10_000
"""An entry that its consumer has not acknowledged for this long is taken over."""

SWEEP_S = 5.0
"""How often dead consumers' entries, holds that ran out and a ledger that lost something are looked for."""

MAX_ENDED = 500
"""Run-out holds that one script call writes down before it stops: about 10 ms. The next sweep goes on."""

NOTICES = Counter("ghub_notices_total", "Thresholds that organisations reached", ["what", "percent"])
SET_ASIDE = Counter("ghub_events_set_aside_total", "Entries of the stream that could not be booked")


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """One entry as it was read. `fields` is None where it had left the stream before."""

    partition: int
    entry_id: bytes
    fields: dict[bytes, bytes] | None
    size_bytes: int


class Consumer:
    """One of any number of consumers of the same group. `redis` must allow calls longer than WAIT_MS.

    On one server it waits for all streams at once. In a cluster a read names one partition only, so there each
    partition has a lane of its own, with a connection of its own: one that is away holds up no other. `remember_s` is
    how long Redis knows how an order ended, `keep_s` how long an event can be fed again, both in seconds.
    """

    def __init__(self, redis: Redis, ledger: Ledger, name: str, remember_s: int, keep_s: float = KEEP_H * 3600) -> None:
        self._shared = _Shared()
        self._lanes = [
            _Lane(redis, ledger, name, remember_s, Commits(redis, GROUP, name, keep_s), self._shared, partitions)
            for partitions in lanes(redis)
        ]

    @property
    def alive(self) -> bool:
        """Did every partition's last look succeed?"""
        return all(lane.alive for lane in self._lanes)

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop`; what is being booked then is finished first. What no lane expects ends all of them.

        It may be begun again after such an end: what was in hand then is booked first.
        """
        self._shared.over = False
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(lane.run(stop))

    async def round(self) -> int:
        """Book one batch of each lane: new events, and what others left behind. Returns how many the ledger lacked."""
        return sum(await asyncio.gather(*(lane.round() for lane in self._lanes)))


class _Shared:
    """What the lanes of one process share: memory for entries, and the ledger's time.

    `over` is set where one of them has failed: a cancellation of the others may be lost in the library.
    """

    def __init__(self) -> None:
        self.bookings = asyncio.Semaphore(BOOKINGS)
        self.over = False
        self._free_bytes = MAX_BYTES

    @property
    def room(self) -> int:
        """Entries that may be read, however large they are."""
        return max(0, self._free_bytes) // LARGEST_BYTES

    @contextmanager
    def reserved(self, entries: int) -> Iterator[None]:
        """Room for so many of them, until it is known how large they are."""
        self._free_bytes -= entries * LARGEST_BYTES
        try:
            yield
        finally:
            self._free_bytes += entries * LARGEST_BYTES

    def take(self, entries: Sequence[_Entry]) -> None:
        """They are in hand."""
        self._free_bytes -= sum(entry.size_bytes for entry in entries)

    def give_back(self, entries: Sequence[_Entry]) -> None:
        """They are in the ledger."""
        self._free_bytes += sum(entry.size_bytes for entry in entries)


class _Lane:
    """Consumes the streams of `partitions`."""

    def __init__(
        self,
        redis: Redis,
        ledger: Ledger,
        name: str,
        remember_s: int,
        commits: Commits,
        shared: _Shared,
        partitions: Sequence[int],
    ) -> None:
        self._redis = redis
        self._ledger = ledger
        self._name = name
        self._remember_s = remember_s
        self._commits = commits
        self._shared = shared
        self._expire = load_script(redis, "expire_v1")
        self._streams = {partition: keys.events(partition) for partition in partitions}
        self._next_sweep = 0.0
        self._claiming: deque[tuple[int, bytes]] = deque()
        self._batch: list[_Entry] = []
        self._commit: Commit | None = None
        self.alive = False

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop`; what is being booked then is finished first."""
        try:
            await self._run(stop)
        except BaseException:
            self._shared.over = True
            raise

    async def _run(self, stop: asyncio.Event) -> None:
        groups_lost = False
        while not stop.is_set() and not self._shared.over:
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
                log.warning("consumer_waits", entries=len(self._batch), **told(error))
                await _first(stop.wait(), asyncio.sleep(PAUSE_S))

    async def round(self) -> int:
        """What is in hand, or else a batch of what others left behind and of what is new. Returns how many events the
        ledger lacked."""
        await self._acknowledge()
        new = await self._book()
        if (now := asyncio.get_running_loop().time()) >= self._next_sweep:
            await self._sweep()
            self._next_sweep = now + SWEEP_S
        await self._claim()
        await self._read()
        return new + await self._book()

    # --- out of the streams, into hand ---

    async def _sweep(self) -> None:
        """Holds that ran out are ended, kept events let go; then entries that nobody acknowledges are looked for."""
        await self._expire.each(
            [
                self._expire.call(
                    {"mark": keys.mark(partition), "busy": keys.busy(partition)},
                    now_us=0,
                    most=MAX_ENDED,
                    remember_s=self._remember_s,
                )
                for partition in self._streams
            ]
        )
        await self._commits.trim(self._streams)
        await heal(self._redis, self._ledger, self._streams)
        if not self._claiming:
            self._claiming.extend((partition, b"0-0") for partition in self._streams)

    async def _claim(self) -> None:
        """Take over what others left behind, page by page until there is no more."""
        while self._claiming and (most := self._most()):
            partition, cursor = self._claiming[0]
            with self._shared.reserved(most):
                following, page, *_ = await self._redis.xautoclaim(
                    self._streams[partition], GROUP, self._name, IDLE_MS, start_id=cursor, count=most
                )
            self._hold(partition, page)
            self._claiming.popleft()
            if following != b"0-0":
                self._claiming.appendleft((partition, following))

    async def _read(self) -> None:
        """New entries: some of every stream, and then more of those that may have more. A count is one stream's own."""
        fresh = await self._take(list(self._streams.values()), FIRST, None if self._batch else WAIT_MS)
        count = FIRST
        while (most := self._most()) and (more := [stream for stream, taken in fresh.items() if taken >= count][:most]):
            count = most // len(more)
            with self._shared.reserved(count * len(more)):
                fresh = await self._take(more, count, None)

    async def _take(self, streams: Sequence[str], count: int, wait_ms: int | None) -> dict[str, int]:
        """New entries of these streams into hand; returns how many of each."""
        fresh = await self._redis.xreadgroup(GROUP, self._name, dict.fromkeys(streams, ">"), count=count, block=wait_ms)
        found = {stream.decode(): [entry for page in pages for entry in page] for stream, pages in _pairs(fresh)}
        for stream, entries in found.items():
            self._hold(_partition(stream), entries)
        return {stream: len(entries) for stream, entries in found.items()}

    def _most(self) -> int:
        """Entries that may be taken in hand beside those that are."""
        return min(max(0, BATCH - len(self._batch)), self._shared.room)

    def _hold(self, partition: int, page: Sequence[tuple[bytes, dict[bytes, bytes] | None]]) -> None:
        entries = [_Entry(partition, entry_id, fields, _size(fields)) for entry_id, fields in page]
        self._shared.take(entries)
        self._batch += entries

    # --- from hand to the ledger ---

    async def _book(self) -> int:
        """Book what is in hand, and tell Redis. What is not booked when the ledger goes away stays in hand."""
        if self._batch:
            await heal(self._redis, self._ledger, {entry.partition for entry in self._batch})
        new = 0
        while part := _portion(self._batch):
            async with self._shared.bookings:
                done = await self._write(part)
            del self._batch[: len(part)]
            self._shared.give_back(part)
            self._commit = Commit(done)
            new += sum(one.what == NEW for one in done)
            await self._acknowledge()
        return new

    async def _write(self, entries: Sequence[_Entry]) -> list[Done]:
        """Into the ledger, or set aside; returns what has become of each. Raises LedgerAway."""
        events: dict[_Entry, Event] = {}
        notices: dict[_Entry, Notice] = {}
        refused: dict[_Entry, str] = {}
        for entry in entries:
            try:
                if entry.fields is not None and b"notice" in entry.fields:
                    notices[entry] = decode_notice(entry.fields)
                elif entry.fields is not None:
                    events[entry] = decode(entry.fields)
            except EventError as error:
                refused[entry] = str(error)
        # Notices first: an event that is booked is told again by nobody.
        for notice in await _book_all(list(notices.items()), self._ledger.book_notices, refused):
            NOTICES.labels(notice.what, notice.percent).inc()
            log.warning("notice", **asdict(notice))
        new = set(await _book_all(list(events.items()), self._book_events, refused))
        await self._set_aside(refused)
        booked = {entry: event for entry, event in events.items() if entry not in refused}
        log.info("booked", new=len(new), again=len(booked) - len(new), set_aside=len(refused))
        return [_done(entry, booked.get(entry), new) for entry in entries]

    async def _book_events(self, events: Sequence[Event]) -> set[str]:
        return await self._ledger.book(events, [], utc_now())

    async def _set_aside(self, refused: Mapping[_Entry, str]) -> None:
        if not refused:
            return
        await self._ledger.book([], [_aside(entry, error) for entry, error in refused.items()], utc_now())
        for entry, error in refused.items():
            SET_ASIDE.inc()
            log.error("event_set_aside", partition=entry.partition, entry=entry.entry_id.decode(), error=error)

    async def _acknowledge(self) -> None:
        """Tell Redis what is committed. Where it gives no answer it is told again, by the same name."""
        if self._commit is not None:
            await self._commits.tell(self._commit)
            self._commit = None

    async def _make_groups(self) -> None:
        """From the stream's beginning, never from `$`: a lost group must not lose an event (rule 28)."""
        for stream in self._streams.values():
            try:
                await self._redis.xgroup_create(stream, GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise


async def _book_all(
    rows: Sequence[tuple[_Entry, T]],
    book: Callable[[list[T]], Awaitable[Collection[R]]],
    refused: dict[_Entry, str],
) -> list[R]:
    """Book them together. Where the record takes not all of them, halves are tried, down to the one that it refuses."""
    if not rows:
        return []
    try:
        return list(await book([row for _, row in rows]))
    except LedgerError as error:
        if len(rows) == 1:
            refused[rows[0][0]] = str(error)
            return []
    half = len(rows) // 2
    return await _book_all(rows[:half], book, refused) + await _book_all(rows[half:], book, refused)


def _portion(batch: Sequence[_Entry]) -> list[_Entry]:
    """The first entries: as many as one transaction takes, and at least one."""
    size_bytes = 0
    for place, entry in enumerate(batch[:BATCH]):
        size_bytes += entry.size_bytes
        if place and size_bytes > BOOKED_BYTES:
            return list(batch[:place])
    return list(batch[:BATCH])


def _done(entry: _Entry, event: Event | None, new: Collection[str]) -> Done:
    if event is None:
        return Done(entry.partition, entry.entry_id, NO_EVENT)
    what = NEW if event.event_id in new else KNOWN
    return Done(entry.partition, entry.entry_id, what, proof_of(event.event_id, event.end))


def _aside(entry: _Entry, error: str) -> SetAside:
    fields = entry.fields or {}
    told = told_of(fields)
    return SetAside(entry.partition, entry.entry_id.decode(), error, pack(fields), told.request_id, told.org_id)


def _size(fields: dict[bytes, bytes] | None) -> int:
    return sum(len(name) + len(value) for name, value in (fields or {}).items())


def _partition(stream: str) -> int:
    return int(stream[2 : stream.index("}")])


def _pairs(reply: Any) -> list[tuple[bytes, Any]]:
    return list(reply.items()) if isinstance(reply, dict) else []


async def _first(*waits: Awaitable[Any]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
