"""The billing consumer: events → ledger, exactly once in effect.

Each batch is read, written to the ledger in one transaction, and only then removed from the stream. After a crash in
between it is read again, and the unique event id makes the second write count for nothing. While the ledger is away,
the batch stays in memory and nothing else is read.
"""

import asyncio
import time
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
from metering.aside import facts_of, pack
from metering.background import error_fields
from metering.clock import utc_now
from metering.events import Event, EventError, Notice, decode, decode_notice
from metering.ports import Ledger, LedgerAway, LedgerError, SetAside
from metering.tracing import OFF, Tracer, read_traceparent
from metering.wallet import keys
from metering.wallet.connection import lanes
from metering.wallet.kept import KNOWN, NEW, NO_EVENT, Commit, Commits, Done, heal, proof_of
from metering.wallet.script import load_script
from metering.webhooks.calls import Explain, by_reason, notice_call, order_calls

log = structlog.get_logger(__name__)

T = TypeVar("T")
R = TypeVar("R")

GROUP = "ledger"

BATCH = 1_000
"""Maximum entries in memory at a time, and in one transaction: about 1 MB.

The larger a transaction, the less a sync to disk and a page that many events change cost each of them.
"""

TOLD = 200
"""Maximum entries that one script call removes: about 2 ms, in which Redis admits no order."""

FIRST = 2
"""Entries of each stream in a read that waits for the first one. If a stream may have more, another read follows."""

LARGEST_BYTES = 256 * 1024
"""Largest size of one entry: eight images, each with 4,000 characters that JSON must escape.

Memory is reserved for this.
"""

MAX_BYTES = 8 * 1024 * 1024
"""Maximum bytes of entries that one process has in memory, without the first entries of each stream."""

BOOKED_BYTES = 2 * 1024 * 1024
"""Maximum bytes of entries in one transaction.

Decoded, as rows and while sent, they take up to fifteen times as much.
"""

BOOKINGS = 2
"""Maximum transactions of one process at a time: one is prepared while the other is synced."""

WAIT_MS = 500
"""How long a read waits for the first event. A stop is noticed after at most this time."""

PAUSE_S = 0.5
"""Pause before another try, if Redis or the ledger is away."""

IDLE_MS = 10_000
"""An entry that its consumer has not acknowledged for this long is taken over."""

SWEEP_S = 5.0
"""Interval between two checks for dead consumers' entries, expired holds and a ledger that lost something."""

MAX_ENDED = 500
"""Maximum expired holds that one script call writes down: about 10 ms. The next sweep goes on."""

NOTICES = Counter("ghub_notices_total", "Thresholds that organisations reached", ["what", "percent"])
BOOKED = Counter("ghub_events_booked_total", "Events that this consumer has brought into the ledger, each once")
SET_ASIDE = Counter("ghub_events_set_aside_total", "Entries of the stream that could not be booked")


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """One entry as it was read. `fields` is None if the entry had already left the stream."""

    partition: int
    entry_id: bytes
    fields: dict[bytes, bytes] | None
    size_bytes: int


class Consumer:
    """One of any number of consumers of the same group. `redis` must allow calls longer than WAIT_MS.

    On one server it waits for all streams at once. In a cluster a read can name only one partition. So there each
    partition has its own lane and its own connection, and one that is away does not delay the others. `remember_s` is
    how long Redis knows how an order ended, `keep_s` how long an event can be fed again, both in seconds. `tracer`
    records the booking of traced orders. `explain` says of a long order which error it has ended with.
    """

    def __init__(
        self,
        redis: Redis,
        ledger: Ledger,
        name: str,
        remember_s: int,
        keep_s: float = KEEP_H * 3600,
        tracer: Tracer = OFF,
        explain: Explain = by_reason,
    ) -> None:
        self._shared = _Shared()
        self._lanes = [
            _Lane(
                redis,
                ledger,
                name,
                remember_s,
                Commits(redis, GROUP, name, keep_s),
                self._shared,
                partitions,
                tracer,
                explain,
            )
            for partitions in lanes(redis)
        ]

    @property
    def alive(self) -> bool:
        """True if every partition's last check succeeded."""
        return all(lane.alive for lane in self._lanes)

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop`; the current transaction is finished first. An unexpected error in one lane ends all.

        It may be started again after such an end: entries in memory are booked first.
        """
        self._shared.over = False
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(lane.run(stop))

    async def round(self) -> int:
        """Book one batch of each lane: new events, and entries of dead consumers.

        Returns how many the ledger lacked.
        """
        return sum(await asyncio.gather(*(lane.round() for lane in self._lanes)))


class _Shared:
    """Shared resources of one process' lanes: memory for entries, and turns at the ledger.

    `over` is set when one lane has failed, because the library may lose a cancellation of the others.
    """

    def __init__(self) -> None:
        self.bookings = asyncio.Semaphore(BOOKINGS)
        self.over = False
        self._free_bytes = MAX_BYTES

    @property
    def room(self) -> int:
        """Number of entries that may be read, whatever their size."""
        return max(0, self._free_bytes) // LARGEST_BYTES

    @contextmanager
    def reserved(self, entries: int) -> Iterator[None]:
        """Reserve memory for this many entries, until their sizes are known."""
        self._free_bytes -= entries * LARGEST_BYTES
        try:
            yield
        finally:
            self._free_bytes += entries * LARGEST_BYTES

    def take(self, entries: Sequence[_Entry]) -> None:
        """Count entries that are now in memory."""
        self._free_bytes -= sum(entry.size_bytes for entry in entries)

    def give_back(self, entries: Sequence[_Entry]) -> None:
        """Free the memory of entries that are in the ledger."""
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
        tracer: Tracer,
        explain: Explain,
    ) -> None:
        self._redis = redis
        self._ledger = ledger
        self._name = name
        self._remember_s = remember_s
        self._commits = commits
        self._shared = shared
        self._tracer = tracer
        self._explain = explain
        self._expire = load_script(redis, "expire_v1")
        self._streams = {partition: keys.events(partition) for partition in partitions}
        self._next_sweep = 0.0
        self._claiming: deque[tuple[int, bytes]] = deque()
        self._batch: list[_Entry] = []
        self._untold: deque[Commit] = deque()
        self.alive = False

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop`; the current transaction is finished first."""
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
                log.warning("consumer_waits", entries=len(self._batch), **error_fields(error))
                await _first(stop.wait(), asyncio.sleep(PAUSE_S))

    async def round(self) -> int:
        """Book what is in memory, or else a batch of dead consumers' and new entries.

        Returns how many the ledger lacked.
        """
        await self._acknowledge()
        new = await self._book()
        if (now := asyncio.get_running_loop().time()) >= self._next_sweep:
            await self._sweep()
            self._next_sweep = now + SWEEP_S
        await self._claim()
        await self._read()
        return new + await self._book()

    # --- out of the streams, into memory ---

    async def _sweep(self) -> None:
        """End expired holds and delete kept events that are too old; then look for entries that nobody acknowledges."""
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
        """Take over entries of dead consumers, page by page until there are no more."""
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
        """Read new entries: some of every stream, then more of those that may have more. `count` is for each stream."""
        fresh = await self._take(list(self._streams.values()), FIRST, None if self._batch else WAIT_MS)
        count = FIRST
        while (most := self._most()) and (more := [stream for stream, taken in fresh.items() if taken >= count][:most]):
            count = most // len(more)
            with self._shared.reserved(count * len(more)):
                fresh = await self._take(more, count, None)

    async def _take(self, streams: Sequence[str], count: int, wait_ms: int | None) -> dict[str, int]:
        """Read new entries of these streams into memory; returns how many of each."""
        fresh = await self._redis.xreadgroup(GROUP, self._name, dict.fromkeys(streams, ">"), count=count, block=wait_ms)
        found = {stream.decode(): [entry for page in pages for entry in page] for stream, pages in _pairs(fresh)}
        for stream, entries in found.items():
            self._hold(_partition(stream), entries)
        return {stream: len(entries) for stream, entries in found.items()}

    def _most(self) -> int:
        """Count the entries that may be read in addition to those in memory."""
        return min(max(0, BATCH - len(self._batch)), self._shared.room)

    def _hold(self, partition: int, page: Sequence[tuple[bytes, dict[bytes, bytes] | None]]) -> None:
        entries = [_Entry(partition, entry_id, fields, _size(fields)) for entry_id, fields in page]
        self._shared.take(entries)
        self._batch += entries

    # --- from memory to the ledger ---

    async def _book(self) -> int:
        """Book what is in memory, and tell Redis. If the ledger goes away, the rest stays in memory."""
        if self._batch:
            await heal(self._redis, self._ledger, {entry.partition for entry in self._batch})
        new = 0
        while part := _portion(self._batch):
            async with self._shared.bookings:
                done = await self._write(part)
            del self._batch[: len(part)]
            self._shared.give_back(part)
            self._untold.extend(Commit(done[first : first + TOLD]) for first in range(0, len(done), TOLD))
            new += sum(one.what == NEW for one in done)
            await self._acknowledge()
        return new

    async def _write(self, entries: Sequence[_Entry]) -> list[Done]:
        """Write entries to the ledger, or set them aside; returns the outcome of each. Raises LedgerAway."""
        began_ns = time.time_ns()
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
        # Notices first: once an event is booked, nobody repeats its notice.
        for notice in await _book_all(list(notices.items()), self._book_notices, refused):
            NOTICES.labels(notice.what, notice.percent).inc()
            log.warning("notice", **asdict(notice))
        new = set(await _book_all(list(events.items()), self._book_events, refused))
        await self._set_aside(refused)
        booked = {entry: event for entry, event in events.items() if entry not in refused}
        BOOKED.inc(len(new))
        log.info("booked", new=len(new), again=len(booked) - len(new), set_aside=len(refused))
        self._trace(entries, refused, began_ns)
        return [_done(entry, booked.get(entry), new) for entry in entries]

    def _trace(self, entries: Sequence[_Entry], refused: Collection[_Entry], began_ns: int) -> None:
        """Record the booking of traced orders, each in the trace of its request. It began at this Unix time."""
        for entry in entries:
            trace = (entry.fields or {}).get(b"trace")
            parent = None if trace is None else read_traceparent(trace.decode("latin-1"))
            span = None if parent is None else self._tracer.follow("book", parent, began_ns)
            if span is None:
                continue
            span.set("ghub.entries", len(entries))
            if entry in refused:
                span.fail("event_set_aside")
            span.end()

    async def _book_events(self, events: Sequence[Event]) -> set[str]:
        return await self._ledger.book(events, [], utc_now(), order_calls(events, self._explain))

    async def _book_notices(self, notices: Sequence[Notice]) -> list[Notice]:
        return await self._ledger.book_notices(notices, {notice: notice_call(notice) for notice in notices})

    async def _set_aside(self, refused: Mapping[_Entry, str]) -> None:
        if not refused:
            return
        await self._ledger.book([], [_aside(entry, error) for entry, error in refused.items()], utc_now())
        for entry, error in refused.items():
            SET_ASIDE.inc()
            log.error("event_set_aside", partition=entry.partition, entry=entry.entry_id.decode(), error=error)

    async def _acknowledge(self) -> None:
        """Tell Redis what is committed. If there is no answer, it is told again, under the same name."""
        while self._untold:
            await self._commits.tell(self._untold[0])
            self._untold.popleft()

    async def _make_groups(self) -> None:
        """Create the groups at the stream's beginning, never at `$`: a lost group must not lose an event (rule 28)."""
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
    """Book rows together. If the record refuses them, try halves, down to the one row that it refuses."""
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
    """Choose the first entries of the batch: as many as one transaction may have, and at least one."""
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
    facts = facts_of(fields)
    return SetAside(entry.partition, entry.entry_id.decode(), error, pack(fields), facts.order_id, facts.org_id)


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
