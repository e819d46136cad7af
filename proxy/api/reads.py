"""Limits on what reads may cost this process: rates for each organisation, and turns for long reports."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from enum import Enum

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from config.settings import (
    CANCELS_PER_MINUTE,
    CREDITS_PER_MINUTE,
    DRY_RUNS_PER_MINUTE,
    HISTORY_PER_MINUTE,
    MODELS_PER_MINUTE,
    REPORT_WAIT_S,
    REPORTS_MADE,
    REPORTS_OPEN,
    REPORTS_WAITING,
    STATEMENTS_PER_MINUTE,
    USAGE_PER_MINUTE,
)
from metering.shares import Bound
from metering.turns import Turns
from metering.wallet.values import RateState
from proxy.errors import ApiError, Kind
from proxy.messages import (
    CANCELS as CANCELS_OF_ORDERS,
)
from proxy.messages import (
    ONE_REPORT,
    READS_OF_CREDITS,
    READS_OF_DRY_RUNS,
    READS_OF_HISTORY,
    READS_OF_MODELS,
    READS_OF_STATEMENTS,
    READS_OF_USAGE,
)
from proxy.orders.refusals import reads_limited

MINUTE_S = 60.0

REPORT_RETRY_S = 2.0
"""A hint: the longest report takes about a second."""


class Read(Enum):
    """Kinds of reads: the name in a message, and the maximum per minute for an organisation."""

    USAGE = READS_OF_USAGE, USAGE_PER_MINUTE
    STATEMENTS = READS_OF_STATEMENTS, STATEMENTS_PER_MINUTE
    HISTORY = READS_OF_HISTORY, HISTORY_PER_MINUTE
    CANCELS = CANCELS_OF_ORDERS, CANCELS_PER_MINUTE
    CREDITS = READS_OF_CREDITS, CREDITS_PER_MINUTE
    DRY_RUNS = READS_OF_DRY_RUNS, DRY_RUNS_PER_MINUTE
    MODELS = READS_OF_MODELS, MODELS_PER_MINUTE


class ReadRates:
    """Rates of this process alone, because they protect its memory and its ledger: GCRA with a burst of one minute.

    `clock` gives seconds, and never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ahead: dict[tuple[str, Read], float] = {}
        self._prune_at = 1_000

    def take(self, org_id: str, read: Read) -> None:
        """Count one read. Raises ApiError 429 above the rate, and then counts nothing."""
        what, limit = read.value
        step_s, now_s = MINUTE_S / limit, self._clock()
        from_s = max(self._ahead.get((org_id, read), now_s), now_s)
        over_s = from_s + step_s - now_s - MINUTE_S
        if over_s > 1e-9:  # less is a rounding error of the sums
            raise reads_limited(what, RateState(limit, 0, int((from_s - now_s) * 1_000_000)), over_s)
        self._ahead[org_id, read] = from_s + step_s
        if len(self._ahead) > self._prune_at:
            self._ahead = {one: at_s for one, at_s in self._ahead.items() if at_s > now_s}
            self._prune_at = 2 * len(self._ahead) + 1_000


class Reports:
    """Turns: one report at a time for each organisation, from its query until it is sent; a few more may wait.

    The process makes two at a time, of different organisations: their rows are in its memory, and writing them keeps a
    thread busy.
    """

    def __init__(self, wait_s: float = REPORT_WAIT_S) -> None:
        self._wait_s = wait_s
        self._open = Turns(Bound(REPORTS_OPEN), each=1)
        self._made = Turns(Bound(REPORTS_MADE))

    async def begin(self, org_id: str) -> None:
        """Wait for an organisation's turn; `end` gives it back. Raises ApiError 429 if too many wait, or too long."""
        if self._open.waiting(org_id) >= REPORTS_WAITING:
            raise _busy()
        try:
            async with asyncio.timeout(self._wait_s):
                await self._open.take(org_id)
        except TimeoutError:
            raise _busy() from None

    @asynccontextmanager
    async def making(self, org_id: str) -> AsyncIterator[None]:
        """Hold a turn while the rows of an organisation's report are read and written."""
        async with self._made.hold(org_id):
            yield

    def end(self, org_id: str) -> None:
        """Give the turn back: the report is sent, or there is none."""
        self._open.give_back(org_id)


class SentReport(StreamingResponse):
    """A reply in pieces that calls `over` when it ends, however it ends."""

    def __init__(self, pieces: list[bytes], media: str, headers: Mapping[str, str], over: Callable[[], None]) -> None:
        length = str(sum(map(len, pieces)))
        super().__init__(_one_by_one(pieces), media_type=media, headers={**headers, "content-length": length})
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._over()


async def _one_by_one(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _busy() -> ApiError:
    return ApiError(Kind.RATE_LIMIT, ONE_REPORT, retry_after_s=REPORT_RETRY_S)
