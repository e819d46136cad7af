"""The gate before admission: so many orders are being admitted at once, and the others wait in order.

A crowd that comes at one moment waits here, where an order costs little, and each is served within its own deadline.
Only if more orders come than this process can serve, and go on coming, are new ones refused.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple, NoReturn

import structlog
from prometheus_client import Counter, Gauge, Histogram

from metering.tracing import step
from proxy.errors import ApiError, Kind
from proxy.messages import CROWDED

MOST = 32
"""Maximum orders that are being admitted at once: two for each connection to Redis, so that none of them is idle."""

FEW = 4
"""The same while the event loop is late: then orders that are already admitted go first, and are soon done."""

LATE_S = 0.1
"""Lateness of the event loop from which only `FEW` are admitted. An idle process is late by a millisecond."""

LOOK_S = 0.05
"""Interval between two measurements of the lateness, while there are orders: half a percent of a core."""

GROWS_S = 2.0
"""If the queue was never empty for this long, and more orders came than were served in its last half, new ones may
be refused. A crowd that came at one moment is in the first half.
"""

LONG_S, SHORT_S = 2.0, 1.0
"""They are refused when the queue gets longer than what is served in the first time, until it is no longer than what is
served in the second: so those that are let in wait for a second or two, and the process is never idle.
"""

SOONEST_S, LATEST_S = 1.0, 10.0
"""A refused client is told to return after a time between these, by chance: so not all return at the same moment."""

REASON = "crowded"
"""Reason of a refusal at the gate."""

LATE = Histogram(
    "ghub_loop_late_seconds",
    "How late the event loop was, measured 20 times a second while there are orders",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
WAITED = Histogram(
    "ghub_admission_wait_seconds",
    "Time that an order waited for its turn to be admitted",
    buckets=(0.001, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0),
)
WAITING = Gauge("ghub_orders_waiting", "Orders that wait for their turn to be admitted")
TURNED_AWAY = Counter("ghub_orders_turned_away_total", "Orders refused because more came than this process can serve")

log = structlog.get_logger(__name__)


def crowded() -> ApiError:
    """Build the 503 of an order that was refused at the gate: nothing of it was looked at, and nothing was charged."""
    return ApiError(Kind.BUSY, CROWDED, retry_after_s=random.uniform(SOONEST_S, LATEST_S), reason=REASON)  # noqa: S311  # jitter


class _Mark(NamedTuple):
    """How many orders had come, and how many had been served, at a moment of `time.monotonic`."""

    at_s: float
    came: int
    served: int


class Gate:
    """Lets orders in. Times are in seconds of `time.monotonic`. `run` must run, or nobody is ever refused."""

    def __init__(self) -> None:
        self._under_way = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._late_s = 0.0
        self._came = self._served = self._refused = 0
        self._empty_s = time.monotonic()
        self._marks = deque([_Mark(self._empty_s, 0, 0)])
        self._refusing_since_s: float | None = None
        self._busy = asyncio.Event()

    @property
    def is_refusing(self) -> bool:
        """True if new orders are refused now."""
        return self._refusing_since_s is not None

    def refuses(self, here_since_s: float | None = None) -> bool:
        """True if a new order must be refused, which is counted.

        `here_since_s`: when its client connected, if this is its first request. One that connected before the first
        refusal belongs to the crowd that is served.
        """
        since_s = self._refusing_since_s
        if since_s is None or (here_since_s is not None and here_since_s < since_s):
            return False
        self._refused += 1
        TURNED_AWAY.inc()
        return True

    @asynccontextmanager
    async def turn(self, until_s: float) -> AsyncIterator[float]:
        """Wait for a turn, for the length of a block, which gets the seconds that it has waited.

        Raises ApiError 503 if there was none until `until_s`.
        """
        self._busy.set()
        waited_s = 0.0
        if self._queue or not self._has_room:
            with step("wait"):
                waited_s = await self._wait(until_s)
        else:
            self._let_in()
        try:
            yield waited_s
        finally:
            self._under_way -= 1
            self._serve()

    async def run(self) -> NoReturn:
        """Measure the lateness of the event loop, and judge the queue by it, at intervals, while there are orders."""
        loop, refused, told_s = asyncio.get_running_loop(), 0, time.monotonic()
        while True:
            if not (self._under_way or self._queue or self.is_refusing):
                await self._rest()
            due_s = loop.time() + LOOK_S
            await asyncio.sleep(LOOK_S)
            self._late_s = max(0.0, loop.time() - due_s)
            LATE.observe(self._late_s)
            self.look(now_s := time.monotonic())
            if self._refused > refused and now_s >= told_s + 1:
                log.warning(
                    "orders_turned_away",
                    orders=self._refused - refused,
                    waiting=len(self._queue),
                    late_ms=round(self._late_s * 1000),
                )
                refused, told_s = self._refused, now_s

    async def _rest(self) -> None:
        """Wait until there is an order. An idle process must not wake up for nothing."""
        self._busy.clear()
        await self._busy.wait()
        self._empty_s = time.monotonic()
        self._late_s = 0.0
        self._marks = deque([_Mark(self._empty_s, self._came, self._served)])

    def look(self, now_s: float) -> None:
        """Judge the queue: whether it grows, and is too long."""
        self._serve()
        WAITING.set(len(self._queue))
        if not self._queue:
            self._empty_s = now_s
        while len(self._marks) > 1 and self._marks[1].at_s <= now_s - GROWS_S:
            self._marks.popleft()
        self._marks.append(_Mark(now_s, self._came, self._served))
        first, half = self._marks[0], next(mark for mark in self._marks if mark.at_s >= now_s - GROWS_S / 2)
        grows = self._came - half.came > self._served - half.served
        per_s = (self._served - first.served) / max(now_s - first.at_s, LOOK_S)
        if self._refusing_since_s is not None:
            if len(self._queue) <= per_s * SHORT_S:
                self._refusing_since_s = None
        elif now_s - self._empty_s >= GROWS_S and grows and len(self._queue) > per_s * LONG_S:
            self._refusing_since_s = now_s

    @property
    def _has_room(self) -> bool:
        return self._under_way < (MOST if self._late_s < LATE_S else FEW)

    def _let_in(self) -> None:
        self._under_way += 1
        self._came += 1
        self._served += 1

    async def _wait(self, until_s: float) -> float:
        began_s = time.monotonic()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self._came += 1
        try:
            async with asyncio.timeout(until_s - began_s):
                await turn
        except (TimeoutError, asyncio.CancelledError) as error:
            if turn.done() and not turn.cancelled():  # its turn came at the same moment
                self._under_way -= 1
                self._serve()
            turn.cancel()
            if isinstance(error, TimeoutError):
                raise crowded() from None
            raise
        waited_s = time.monotonic() - began_s
        WAITED.observe(waited_s)
        return waited_s

    def _serve(self) -> None:
        while self._queue and self._has_room:
            turn = self._queue.popleft()
            if not turn.done():
                self._under_way += 1
                self._served += 1
                turn.set_result(None)
        if not self._queue:
            self._empty_s = time.monotonic()
