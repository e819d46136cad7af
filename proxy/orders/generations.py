"""The life of a generation, detached from the client's connection: made, then settled; a stop waits for it."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog
from redis.exceptions import RedisError

from metering.wallet.jobs import UpstreamJobs
from metering.wallet.long_orders import LongOrders
from metering.wallet.wallet import Wallet
from proxy.orders.admitted import AdmittedOrder
from proxy.orders.calls import Progress, UpstreamCalls
from proxy.orders.parts import AwaitedParts, LongParts
from proxy.orders.result import Delivery
from proxy.orders.settlement import HOLDS, Settlement, upstream_of
from proxy.orders.tasks import Tasks
from proxy.outcomes import Failure, Outcome
from proxy.ports import UNKEPT, Call, LetGo, Parts

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Kept:
    """Where the parts of orders are kept, and whether this process is about to end."""

    jobs: UpstreamJobs
    orders: LongOrders
    stopping: Callable[[], bool]


class Generations:
    """All generations of this process. A client that hangs up does not stop one; its deadline does."""

    def __init__(
        self,
        wallet: Wallet,
        calls: UpstreamCalls,
        settlement: Settlement,
        tasks: Tasks,
        kept: Kept | None = None,
    ) -> None:
        self._wallet = wallet
        self._calls = calls
        self._settlement = settlement
        self._tasks = tasks
        self._kept = kept
        self._long: set[str] = set()

    @property
    def made(self) -> Collection[str]:
        """The ids of the long orders that this process makes, and of orders that it is about to end."""
        return self._long | self._settlement.abandoned

    def start(self, admitted: AdmittedOrder) -> asyncio.Task[Delivery]:
        """Start a generation. The task ends with the delivery, or with the ApiError for the client."""
        return self._begin(admitted, (), Progress())

    async def take(self, admitted: AdmittedOrder) -> None:
        """Note, before a long order is answered 202, that another process may go on with it. If not, its begin does."""
        assert self._kept is not None, "only a gateway answers long orders"
        with suppress(RedisError, OSError, TimeoutError):
            await self._kept.orders.take(admitted.caller.org_id, admitted.order_id)

    async def tell(self, org_id: str, order_id: str) -> bool:
        """Note that a client is told of an order that it placed before. False if it has ended, or is no long one."""
        assert self._kept is not None, "only a gateway answers long orders"
        try:
            return await self._kept.orders.tell(org_id, order_id)
        except (RedisError, OSError, TimeoutError):
            return True  # as if it had been noted: if it was not, the order may end as void, and its client is told so

    def go_on(self, admitted: AdmittedOrder, calls: Sequence[Call], progress: Progress) -> asyncio.Task[Delivery]:
        """Go on with the calls of a long order that another process has begun; without any, begin it."""
        return self._begin(admitted, calls, progress)

    def parts_of(self, admitted: AdmittedOrder, known: Collection[int] = ()) -> Parts:
        """Return where an order's parts are kept. `known` are those that may have begun, by their first images."""
        if self._kept is None:
            return UNKEPT
        org_id, order_id = admitted.caller.org_id, admitted.order_id
        if not admitted.long:
            return AwaitedParts(self._kept.jobs, org_id, order_id)
        return LongParts(self._kept.orders, org_id, order_id, admitted.generate_until_s, self._kept.stopping, known)

    def _begin(self, admitted: AdmittedOrder, calls: Sequence[Call], progress: Progress) -> asyncio.Task[Delivery]:
        generation = self._tasks.detach(self._run(admitted, calls, progress))
        if admitted.long:
            self._long.add(admitted.order_id)

        def ended(_: object) -> None:
            admitted.place.give_back()
            self._long.discard(admitted.order_id)

        generation.add_done_callback(ended)
        return generation

    async def client_left(self, admitted: AdmittedOrder) -> None:
        """Record that its client left: its SDK's retry, or the next identical order, gets the result.

        Raises WalletAway.
        """
        admitted.ending.client_gone = True
        await self._wallet.client_gone(admitted.caller, admitted.order_id, admitted.identity)

    async def _run(self, admitted: AdmittedOrder, calls: Sequence[Call], progress: Progress) -> Delivery:
        with HOLDS.track_inprogress():
            return await self._make(admitted, calls, progress)

    async def _make(self, admitted: AdmittedOrder, calls: Sequence[Call], progress: Progress) -> Delivery:
        try:
            folder, until_s = admitted.folder, admitted.generate_until_s
            parts = calls[0].parts if calls else self.parts_of(admitted)
            if calls:
                await self._calls.go_on(calls, folder, until_s, progress)
            elif not progress.failures:
                await self._calls.make(admitted.order, folder, until_s, progress, parts)
        except asyncio.CancelledError:
            failure = Failure(Outcome.FAULT, "cancelled")
            self._tasks.detach(self._settlement.void(admitted, failure, upstream_of(progress)))
            raise
        finally:
            admitted.facts.update(progress.facts)
        if progress.let_go:
            await self._let_go(admitted, parts)
            raise LetGo
        # The end runs in its own task: once it has begun, no cancellation can change it into another end (rule 9).
        return await asyncio.shield(self._tasks.detach(self._settlement.close(admitted, progress)))

    async def _let_go(self, admitted: AdmittedOrder, parts: Parts) -> None:
        """Let a long order go, at once if Redis is there: otherwise others wait until this process counts as dead."""
        assert self._kept is not None, "only a long order is let go"
        try:
            released = await self._kept.orders.release(admitted.caller.org_id, admitted.order_id, parts.known)
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("order_not_released", request_id=admitted.order_id, error=type(error).__name__)
            return
        log.info("order_released" if released else "order_gone", request_id=admitted.order_id)
