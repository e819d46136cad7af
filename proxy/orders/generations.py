"""The life of a generation, detached from the client's connection: made, then settled; a stop waits for it."""

import asyncio
from functools import partial

import structlog
from redis.exceptions import RedisError

from metering.wallet.jobs import UpstreamJobs
from metering.wallet.wallet import Wallet
from proxy.orders.admitted import AdmittedOrder
from proxy.orders.calls import Progress, UpstreamCalls
from proxy.orders.result import Delivery
from proxy.orders.settlement import HOLDS, Settlement, upstream_of
from proxy.orders.tasks import Tasks
from proxy.outcomes import Failure, Outcome

log = structlog.get_logger(__name__)


class Generations:
    """All generations of this process. A client that hangs up does not stop one; its deadline does."""

    def __init__(
        self,
        wallet: Wallet,
        calls: UpstreamCalls,
        settlement: Settlement,
        tasks: Tasks,
        jobs: UpstreamJobs | None = None,
    ) -> None:
        self._wallet = wallet
        self._calls = calls
        self._settlement = settlement
        self._tasks = tasks
        self._jobs = jobs

    def start(self, admitted: AdmittedOrder) -> asyncio.Task[Delivery]:
        """Start a generation. The task ends with the delivery, or with the ApiError for the client."""
        generation = self._tasks.detach(self._run(admitted))
        generation.add_done_callback(lambda _: admitted.place.give_back())
        return generation

    async def client_left(self, admitted: AdmittedOrder) -> None:
        """Record that its client left: its SDK's retry, or the next identical order, gets the result.

        Raises WalletAway.
        """
        admitted.ending.client_gone = True
        await self._wallet.client_gone(admitted.caller, admitted.order_id, admitted.identity)

    async def _run(self, admitted: AdmittedOrder) -> Delivery:
        with HOLDS.track_inprogress():
            return await self._make(admitted, Progress())

    async def _make(self, admitted: AdmittedOrder, progress: Progress) -> Delivery:
        try:
            note = partial(self._note, admitted)
            await self._calls.make(admitted.order, admitted.folder, admitted.generate_until_s, progress, note)
        except asyncio.CancelledError:
            failure = Failure(Outcome.FAULT, "cancelled")
            self._tasks.detach(self._settlement.void(admitted, failure, upstream_of(progress)))
            raise
        finally:
            admitted.facts.update(progress.facts)
        # The end runs in its own task: once it has begun, no cancellation can change it into another end (rule 9).
        return await asyncio.shield(self._tasks.detach(self._settlement.close(admitted, progress)))

    async def _note(self, admitted: AdmittedOrder, provider: str, handle: str) -> None:
        if self._jobs is None:
            return
        try:
            await self._jobs.note(admitted.caller.org_id, admitted.order_id, provider, handle)
        except (RedisError, OSError, TimeoutError) as error:
            # The job goes on, and this process cancels it itself, unless it dies before Redis is back.
            log.warning("job_not_noted", request_id=admitted.order_id, error=type(error).__name__)
