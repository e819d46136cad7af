"""The parts of an order, kept in Redis while their providers make them: to cancel them, or to go on with them."""

import time
from collections.abc import Awaitable, Callable, Collection

import structlog
from redis.exceptions import RedisError

from metering.pauses import Pauses
from metering.wallet.jobs import UpstreamJobs
from metering.wallet.long_orders import LongOrders, Noted, Part
from proxy.outcomes import Failure, Outcome
from proxy.ports import Call, LetGo

log = structlog.get_logger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
"""Pauses between two tries while Redis is away."""

NOTE_S = 30.0
"""How long a handle is brought to Redis while it is away. The job goes on; after this, a death makes it unknown."""


class AwaitedParts:
    """Those of an order whose client waits: if this process dies, another one cancels its jobs."""

    leaving = patient = False
    known: Collection[int] = ()

    def __init__(self, jobs: UpstreamJobs, org_id: str, order_id: str) -> None:
        self._jobs = jobs
        self._org_id = org_id
        self._order_id = order_id

    async def begin(self, call: Call) -> None:
        """Note nothing: a job that is not known yet cannot be cancelled."""

    async def untaken(self, call: Call) -> None:
        """Note nothing."""

    async def note(self, call: Call, handle: str) -> None:
        """Store the handle with the order's hold, if Redis is there."""
        try:
            await self._jobs.note(self._org_id, self._order_id, call.order.model.provider, handle)
        except (RedisError, OSError, TimeoutError) as error:
            # The job goes on, and this process cancels it itself, unless it dies before Redis is back.
            log.warning("job_not_noted", request_id=self._order_id, error=type(error).__name__)


class LongParts:
    """Those of a long order. `stopping`: this process is about to end. `until_s`: its deadline, of `time.monotonic`.

    `known` are the parts that a provider has or may have, by their first images: at first those of other processes.
    """

    patient = True

    def __init__(
        self,
        orders: LongOrders,
        org_id: str,
        order_id: str,
        until_s: float,
        stopping: Callable[[], bool],
        known: Collection[int] = (),
    ) -> None:
        self._orders = orders
        self._org_id = org_id
        self._order_id = order_id
        self._until_s = until_s
        self._stopping = stopping
        self._firm: set[int] = set()
        self.known = set(known)

    @property
    def leaving(self) -> bool:
        """True if the process stops, and every part that has begun can be gone on with elsewhere."""
        return self._stopping() and not self._firm

    async def begin(self, call: Call) -> None:
        """Note that a part is about to be given to its provider."""
        if self.leaving:
            raise LetGo
        part = _part(call)
        self._firm.add(call.first)
        noted = await self._until(self._until_s, lambda: self._orders.begin(self._org_id, self._order_id, part))
        if noted is Noted.OURS:
            self.known.add(call.first)
        else:
            self._firm.discard(call.first)
        if noted is Noted.CANCELLED:
            raise Failure(Outcome.CANCELLED)
        if noted is None:  # Redis is away, and so is the time: nothing was given to anybody
            raise Failure(Outcome.DEADLINE, "not begun")

    async def note(self, call: Call, handle: str) -> None:
        """Note a handle. From now on, this process may leave the part to another one."""
        part = _part(call, handle)
        until_s = min(self._until_s, time.monotonic() + NOTE_S)
        if await self._until(until_s, lambda: self._orders.note(self._org_id, self._order_id, part)) is None:
            log.warning("job_not_noted", request_id=self._order_id, error="Redis is away")
            return
        self._firm.discard(call.first)

    async def untaken(self, call: Call) -> None:
        """Note that a part may begin again."""
        until_s = min(self._until_s, time.monotonic() + NOTE_S)
        await self._until(until_s, lambda: self._orders.untaken(self._org_id, self._order_id, call.first))
        self.known.discard(call.first)
        self._firm.discard(call.first)

    async def _until(self, until_s: float, ask: Callable[[], Awaitable[Noted]]) -> Noted | None:
        """Ask Redis until it answers; None if it has not by `until_s`. Raises LetGo if the order is not ours."""
        async for _ in Pauses(FIRST_PAUSE_S, LONGEST_PAUSE_S, until_s=until_s, least=0.5):
            try:
                noted = await ask()
            except (RedisError, OSError, TimeoutError):
                continue
            if noted is Noted.GONE:
                raise LetGo
            return noted
        return None


def _part(call: Call, handle: str = "") -> Part:
    model = call.order.model
    return Part(model.provider, call.first, call.images, handle, model.upstream)
