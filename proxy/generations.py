"""One generation's life, detached from the client's connection: made, stored, settled, or ended without a charge."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge

from metering.events import StoredImage
from metering.pricing import Quote
from metering.wallet.connection import WalletAway
from metering.wallet.wallet import Caller, Close, Wallet
from proxy.errors import ApiError
from proxy.media import Measured, NotAnImage, peek, sniff
from proxy.outcomes import Failure, Outcome, worst
from proxy.ports import Call, ImageStore, Order, Picture, Provider, StoreFailed

log = structlog.get_logger(__name__)
T = TypeVar("T")

SETTLE_PAUSE_S = 0.1
"""Between two tries of a settlement that Redis gave no verdict on."""

IN_FLIGHT = Gauge("ghub_generations_in_flight", "Generations under way, their ends included")
ENDS = Counter("ghub_orders_total", "Orders ended by this process", ["model", "reason"])
IMAGES = Counter("ghub_images_charged_total", "Images delivered and charged", ["model"])
CHARGED_AFTER_ERROR = Counter("ghub_charged_after_error_total", "Orders charged although the customer saw an error")


@dataclass(frozen=True, slots=True)
class Job:
    """An admitted order. `…_s` are seconds of `time.monotonic`; `hold_ends_us` is Unix µs by Redis."""

    request_id: UUID
    caller: Caller
    order: Order
    quote: Quote
    generate_until_s: float
    reply_until_s: float
    hold_ends_us: int

    @property
    def hold_id(self) -> str:
        """The request's id as the wallet, the event and the storage path carry it."""
        return str(self.request_id)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A settled order: its stored images, what they cost, and what is left to spend."""

    images: tuple[StoredImage, ...]
    cost_micro_mxn: int
    available_micro_mxn: int


@dataclass(slots=True)
class _Work:
    """What has come of a generation so far, image by image."""

    stored: dict[int, StoredImage] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


class Generations:
    """All generations of this process. A client that hangs up does not stop one; its deadline does."""

    def __init__(
        self, wallet: Wallet, store: ImageStore, providers: Mapping[str, Provider], most_image_bytes: int
    ) -> None:
        self._wallet = wallet
        self._store = store
        self._providers = providers
        self._most_image_bytes = most_image_bytes
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, job: Job) -> asyncio.Task[Delivery]:
        """Begin. The task ends with the delivery, or with the ApiError for the client."""
        return self._detach(self._run(job))

    def abandon(self, org_id: str, hold_id: str, reason: str, *, until_us: int) -> None:
        """End, in the background, an order that was perhaps admitted and that nobody will generate."""
        self._detach(self._wallet.abandon(org_id, hold_id, reason, until_us=until_us))

    async def drain(self) -> None:
        """Wait for all of them; each ends by its own deadline."""
        while self._tasks:
            log.info("draining", generations=len(self._tasks))
            await asyncio.wait(set(self._tasks))

    async def _run(self, job: Job) -> Delivery:
        work = _Work()
        try:
            async with asyncio.timeout(job.generate_until_s - time.monotonic()), asyncio.TaskGroup() as calls:
                for call in split(job.order):
                    calls.create_task(self._call(job, call, work))
        except TimeoutError:
            work.failures.append(Failure(Outcome.DEADLINE))
        except asyncio.CancelledError:
            self._detach(self._void(job, Failure(Outcome.FAULT, "cancelled")))
            raise
        # The end is a task of its own: once it has begun, no cancellation turns it into another end (rule 9).
        return await asyncio.shield(self._detach(self._close(job, work)))

    async def _call(self, job: Job, call: Call, work: _Work) -> None:
        """One upstream call: every picture that it brings into the store, or a failure into `work`."""
        pictures = self._providers[call.order.model.provider].generate(call)
        brought = 0
        async with contextlib.aclosing(pictures), asyncio.TaskGroup() as beside:
            try:
                async for picture in pictures:
                    brought += 1
                    storing = self._keep(job, picture, work)
                    if picture.concurrent:
                        beside.create_task(storing)
                    else:
                        await storing
                if brought < call.images:
                    raise Failure(Outcome.NO_IMAGE, f"{brought} of {call.images}")
            except Failure as failure:
                work.failures.append(failure)
            except Exception as error:  # noqa: BLE001  # logged whole; the order must end as a void, not in the air
                work.failures.append(_fault(job.order, error))

    async def _keep(self, job: Job, picture: Picture, work: _Work) -> None:
        """One picture from the upstream's response into the store, while it arrives."""
        try:
            async with picture.open() as chunks:
                head, whole = await peek(chunks)
                kind = sniff(head)
                measured = Measured(whole, self._most_image_bytes)
                path = f"{job.caller.org_id}/{job.hold_id}/{picture.index}.{kind.extension}"
                await self._store.put(path, aiter(measured), kind.content_type)
            work.stored[picture.index] = StoredImage(path, kind.content_type, measured.size_bytes, measured.sha256)
        except NotAnImage as error:
            work.failures.append(Failure(Outcome.BAD_IMAGE, str(error)))
        except StoreFailed as error:
            log.error("store_failed", error=str(error))
            work.failures.append(Failure(Outcome.STORE_FAILED))
        except Failure as failure:
            work.failures.append(failure)
        except Exception as error:  # noqa: BLE001  # as above
            work.failures.append(_fault(job.order, error))

    async def _close(self, job: Job, work: _Work) -> Delivery:
        for failure in work.failures:
            log.warning("upstream_failure", request_id=job.hold_id, model=job.order.model_id, failure=str(failure))
        if work.stored:
            return await self._settle(job, tuple(work.stored[index] for index in sorted(work.stored)))
        failure = worst(work.failures)
        await self._void(job, failure)
        raise failure.as_error()

    async def _settle(self, job: Job, images: tuple[StoredImage, ...]) -> Delivery:
        """Charge for what is stored. Without Redis' yes nobody is answered 200, and the images go."""
        cost = job.quote.unit_micro_mxn * len(images)
        latest_us = self._wallet.now_us() + int((job.reply_until_s - time.monotonic()) * 1_000_000)
        refused = False
        while not refused and time.monotonic() < job.reply_until_s:
            try:
                closing = await self._wallet.settle(job.caller.org_id, job.hold_id, cost, images, latest_us=latest_us)
            except WalletAway:
                await asyncio.sleep(SETTLE_PAUSE_S)
                continue
            if closing.close is Close.CHARGED:
                ENDS.labels(job.order.model_id, "delivered").inc()
                IMAGES.labels(job.order.model_id).inc(len(images))
                return Delivery(images, cost, closing.available_micro_mxn)
            refused = True
        self._detach(self._take_back(job, images))
        raise Failure(Outcome.DEADLINE, "not settled").as_error()

    async def _take_back(self, job: Job, images: tuple[StoredImage, ...]) -> None:
        """After a settlement without a yes: void the order and remove its images, unless the charge came through."""
        close = await self._wallet.abandon(job.caller.org_id, job.hold_id, "not_settled", until_us=job.hold_ends_us)
        if close is Close.CHARGED:
            CHARGED_AFTER_ERROR.inc()
            log.error("charged_after_error", request_id=job.hold_id, org=job.caller.org_id)
            return
        ENDS.labels(job.order.model_id, "not_settled").inc()
        for image in images:
            try:
                await self._store.delete(image.path)
            except StoreFailed as error:
                log.error("image_left_behind", path=image.path, error=str(error))

    async def _void(self, job: Job, failure: Failure) -> None:
        ENDS.labels(job.order.model_id, failure.outcome.reason).inc()
        try:
            await self._wallet.void(job.caller.org_id, job.hold_id, failure.outcome.reason)
        except WalletAway:
            self.abandon(job.caller.org_id, job.hold_id, failure.outcome.reason, until_us=job.hold_ends_us)

    def _detach(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` to its end, whatever becomes of whoever asked for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        IN_FLIGHT.set(len(self._tasks))
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        IN_FLIGHT.set(len(self._tasks))
        if task.cancelled():
            return
        fault = task.exception()
        if fault is not None and not isinstance(fault, ApiError):
            log.error("generation_fault", exc_info=fault)


def _fault(order: Order, error: Exception) -> Failure:
    """What nobody foresaw: the order ends without a charge like every other failure, and the log has the trace."""
    log.error("fault_in_generation", model=order.model_id, exc_info=error)
    return Failure(Outcome.FAULT, type(error).__name__)


def split(order: Order) -> list[Call]:
    """The upstream calls that make an order, each within what the model makes at once."""
    most = order.model.images_per_call
    return [Call(order, first, min(most, order.n - first)) for first in range(0, order.n, most)]
