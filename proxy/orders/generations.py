"""One generation's life, detached from the client's connection: made, settled, or ended without a charge."""

import asyncio
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge
from redis.exceptions import RedisError

from metering.answered import Answered, most_bytes
from metering.answered import encode as encode_entry
from metering.clock import boottime_s
from metering.events import StoredImage
from metering.journal.answers import Answers
from metering.journal.file import JournalFailed
from metering.pricing import Quote
from metering.wallet.connection import WalletAway
from metering.wallet.jobs import Jobs
from metering.wallet.wallet import Caller, Close, Closing, Placed, Wallet
from proxy.errors import ApiError
from proxy.orders.calls import Made, Maker, fault
from proxy.orders.ending import Charge, Ending
from proxy.orders.lifecycle import Lifecycle
from proxy.orders.places import Place
from proxy.orders.result import Result
from proxy.orders.result import encode as encode_result
from proxy.orders.upload import Keeper
from proxy.outcomes import Failure, Outcome, worst
from proxy.ports import Order, Provider, Report

log = structlog.get_logger(__name__)
T = TypeVar("T")

SETTLE_PAUSE_S = 0.1
"""Between two tries of a settlement that Redis gave no verdict on."""

SETTLE_S = 1.0
"""How long a verdict is asked for before the journal alone answers for the order; Redis restarts in less."""

USD_STEP = Decimal("0.0000000001")
"""Of a provider's figure: the smallest unit that one of them reports."""

IN_FLIGHT = Gauge("ghub_generations_in_flight", "Generations under way, their ends included")
ENDS = Counter("ghub_orders_total", "Orders ended by this process", ["model", "reason"])
EXCESS = Counter("ghub_cost_above_quote_total", "Orders for which the provider took more than our quote", ["model"])
IMAGES = Counter("ghub_images_charged_total", "Images delivered and charged", ["model"])
ANSWERED_AWAY = Counter("ghub_answered_while_away_total", "Orders answered 200 while Redis gave no verdict")


@dataclass(frozen=True, slots=True)
class Job:
    """An admitted order, the admission's half of its event, and the place that it takes up until its end.

    `…_s` are seconds of `time.monotonic`, `hold_ends_boot_s` of `boottime_s`; `…_us` are Unix µs by Redis.
    """

    request_id: UUID
    caller: Caller
    order: Order
    placed: Placed
    quote: Quote
    generate_until_s: float
    reply_until_s: float
    hold_ends_us: int
    hold_ends_boot_s: float
    admitted_us: int
    opened: bytes
    place: Place
    ending: Ending = field(default_factory=Ending)

    @property
    def hold_id(self) -> str:
        """The request's id as the wallet, the event and the storage path carry it."""
        return str(self.request_id)

    def hold_lives(self) -> bool:
        """By this machine's own clock, whatever Redis says or does not say."""
        return boottime_s() < self.hold_ends_boot_s


@dataclass(frozen=True, slots=True)
class Delivery:
    """A charged order, and what is left to spend; None where Redis is away."""

    result: Result
    available_micro_mxn: int | None

    @property
    def images(self) -> tuple[StoredImage, ...]:
        """Stored, in the order of their numbers."""
        return self.result.images

    @property
    def cost_micro_mxn(self) -> int:
        """What was charged for them."""
        return self.result.cost_micro_mxn


class Generations:
    """All generations of this process. A client that hangs up does not stop one; its deadline does."""

    def __init__(
        self,
        wallet: Wallet,
        keeper: Keeper,
        answers: Answers,
        providers: Mapping[str, Provider],
        lifecycle: Lifecycle,
        jobs: Jobs | None = None,
    ) -> None:
        self._wallet = wallet
        self.answers = answers
        self._maker = Maker(keeper, providers)
        self._lifecycle = lifecycle
        self._jobs = jobs
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, job: Job) -> asyncio.Task[Delivery]:
        """Begin. The task ends with the delivery, or with the ApiError for the client."""
        generation = self._detach(self._run(job))
        generation.add_done_callback(lambda _: job.place.give_back())
        return generation

    @property
    def owner(self) -> str:
        """Who makes them, as the wallet and the jobs know this process."""
        return self._jobs.owner if self._jobs is not None else ""

    def abandon(self, org_id: str, hold_id: str, reason: str, *, until_us: int) -> None:
        """End, in the background, an order that was perhaps admitted and that nobody will generate."""
        self._detach(self._wallet.abandon(org_id, hold_id, reason, until_us=until_us))

    async def drain(self) -> None:
        """Wait for all of them; each ends by its own deadline."""
        while self._tasks:
            log.info("draining", generations=len(self._tasks))
            await asyncio.wait(set(self._tasks))

    async def _run(self, job: Job) -> Delivery:
        made = Made()
        try:
            folder = f"{job.caller.org_id}/{job.hold_id}"
            await self._maker.make(job.order, folder, job.generate_until_s, made, partial(self._note, job))
        except asyncio.CancelledError:
            self._detach(self._void(job, Failure(Outcome.FAULT, "cancelled")))
            raise
        # The end is a task of its own: once it has begun, no cancellation turns it into another end (rule 9).
        return await asyncio.shield(self._detach(self._close(job, made)))

    async def _note(self, job: Job, handle: str) -> None:
        if self._jobs is None:
            return
        try:
            await self._jobs.note(job.caller.org_id, job.hold_id, job.order.model.provider, handle)
        except (RedisError, OSError, TimeoutError) as error:
            # The job goes on, and this process calls it off itself unless it dies before Redis is back.
            log.warning("job_not_noted", request_id=job.hold_id, error=type(error).__name__)

    async def _close(self, job: Job, made: Made) -> Delivery:
        for failure in made.failures:
            log.warning("upstream_failure", request_id=job.hold_id, model=job.order.model_id, failure=str(failure))
        if refused := made.take_refused():
            self._detach(self._maker.remove(refused))
        if made.stored:
            return await self._settle(job, made)
        failure = worst(made.failures or [Failure(Outcome.CONTENT_POLICY, "all were refused")])
        await self._void(job, failure)
        if failure.outcome is Outcome.RETIRED:
            raise self._lifecycle.retire(job.order.model_id, job.order.model)
        raise failure.as_error()

    async def _settle(self, job: Job, made: Made) -> Delivery:
        """Charge for what is stored, write down that it is answered 200, and only then answer (rule 8).

        Where Redis gives no verdict and the hold still lives, the journal alone is enough: it is charged later. What
        can fail on data, an upstream's texts and figures, is checked before the settlement.
        """
        try:
            usd = _measured_usd(job, made)
            result = _result(job, made, usd)
            order, entry = self._answered(job, result, usd)
        except Exception as error:  # noqa: BLE001  # logged whole; the order must end as a void, not in the air
            failure = fault(job.order, error)
            await self._void(job, failure)
            raise failure.as_error() from None
        closing = await self._charge(job, order)
        charged = closing is not None and closing.close is Close.CHARGED
        if closing is not None:
            job.ending.known(Charge.CHARGED if charged else Charge.NONE)
        if not charged and (closing is not None or not job.hold_lives()):
            self._detach(self._take_back(job, order.images, unheard=closing is None))
            raise Failure(Outcome.DEADLINE, "not settled").as_error()
        await self._write_down(job, order, entry, charged)
        job.ending.known(Charge.CHARGED)
        ENDS.labels(job.order.model_id, "delivered").inc()
        IMAGES.labels(job.order.model_id).inc(len(order.images))
        return Delivery(result, closing.available_micro_mxn if closing is not None else None)

    def _answered(self, job: Job, result: Result, usd: Decimal | None) -> tuple[Answered, bytes]:
        """What the journal is to say, and its bytes; raises ValueError where those are more than were set aside."""
        if excess := job.quote.excess_usd(len(result.images), usd):
            EXCESS.labels(job.order.model_id).inc()
            log.error("cost_above_quote", request_id=job.hold_id, model=job.order.model_id, excess_usd=str(excess))
        order = Answered(
            org_id=job.caller.org_id,
            key_id=job.caller.key_id,
            fingerprint=job.placed.fingerprint,
            key_hash=job.placed.key_hash,
            client_gone=job.ending.client_gone,
            request_id=job.hold_id,
            amount_micro_mxn=result.cost_micro_mxn,
            images=result.images,
            usd_measured=None if usd is None else f"{usd:f}",
            opened=job.opened,
            result=encode_result(result),
            admitted_us=job.admitted_us,
            ended_us=self._wallet.now_us(job.caller.org_id),
        )
        entry = encode_entry(order)
        if len(entry) > most_bytes(job.order.n):
            raise ValueError(f"an entry of {len(entry)} bytes for {job.order.n} images")
        return order, entry

    async def _charge(self, job: Job, order: Answered) -> Closing | None:
        """Redis' verdict, asked for again for a while; None where it gives none."""
        latest_us = self._wallet.now_us(order.org_id) + int((job.reply_until_s - time.monotonic()) * 1_000_000)
        now_s = time.monotonic()
        until_s = min(now_s + SETTLE_S, (now_s + job.reply_until_s) / 2)  # the other half is the journal's
        while time.monotonic() < until_s:
            job.ending.known(Charge.UNKNOWN)
            try:
                return await self._wallet.settle(
                    order.org_id,
                    order.request_id,
                    order.amount_micro_mxn,
                    order.images,
                    latest_us=latest_us,
                    usd_measured=order.usd_measured,
                    result=order.result,
                )
            except WalletAway:
                await asyncio.sleep(SETTLE_PAUSE_S)
        return None

    async def _write_down(self, job: Job, order: Answered, entry: bytes, charged: bool) -> None:
        """The order is answered 200 when this returns. Raises ApiError where it must not be."""
        writing = self._detach(self.answers.note(entry))
        await asyncio.wait({writing}, timeout=max(0.0, job.reply_until_s - time.monotonic()))
        written = writing.done() and writing.exception() is None
        if written and (charged or job.hold_lives()):
            self.answers.stand(writing.result(), order.org_id, order.request_id, charged=charged)
            if not charged:
                ANSWERED_AWAY.inc()
            return
        self._detach(self._unanswered(job, order, writing, charged))
        if charged:
            # Its client is told to try again, and has no answer: whatever try that is, it is given this order.
            with suppress(WalletAway):
                await self._wallet.client_gone(job.caller, job.hold_id, job.placed)
        raise Failure(Outcome.DEADLINE, "not written down").as_error()

    async def _unanswered(self, job: Job, order: Answered, writing: asyncio.Task[int], charged: bool) -> None:
        """The client got an error for an order whose record is on its way to the disk, or perhaps there already."""
        try:
            number = await writing
            if charged:
                self.answers.stand(number, order.org_id, order.request_id, charged=True)
            else:
                await self.answers.withdraw(number, order.request_id)
        except JournalFailed:
            # Nobody knows what the disk has. If it has the order, a replay charges it: so its images stay, and its
            # owner finds them by the request's id. If it has not, the hold runs out, and the sweep takes the images.
            if not charged:
                log.error("end_unknown", request_id=job.hold_id, org=job.caller.org_id)
            return
        if not charged:
            await self._take_back(job, order.images, unheard=True)

    async def _take_back(self, job: Job, images: tuple[StoredImage, ...], unheard: bool) -> None:
        """After a settlement without a yes: void the order and remove its images, unless the charge came through.

        `unheard`: a settlement was sent that nobody answered. If Redis never says what became of it, the images stay:
        a charge without its images would be worse than images without a charge, which the ledger's end tells apart.
        """
        close = await self._wallet.abandon(job.caller.org_id, job.hold_id, "not_settled", until_us=job.hold_ends_us)
        if close is Close.CHARGED:
            job.ending.known(Charge.CHARGED)
            return
        ENDS.labels(job.order.model_id, "not_settled").inc()
        if close is Close.UNKNOWN and unheard:
            log.error("end_unknown", request_id=job.hold_id, org=job.caller.org_id)
            return
        job.ending.known(Charge.NONE)
        await self._maker.remove(list(images))

    async def _void(self, job: Job, failure: Failure) -> None:
        ENDS.labels(job.order.model_id, failure.outcome.reason).inc()
        again = failure.as_error().retry
        try:
            await self._wallet.void(job.caller.org_id, job.hold_id, failure.outcome.reason, comes_again=again)
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
        if fault is not None and not isinstance(fault, ApiError | JournalFailed):
            log.error("generation_fault", exc_info=fault)


def _result(job: Job, made: Made, usd: Decimal | None) -> Result:
    """What is delivered: the stored pictures in the order of their numbers."""
    numbers = sorted(made.stored)
    images = tuple(made.stored[number] for number in numbers)
    prompts = {n: text for report in made.reports for n, text in report.revised_prompts.items()}
    report = _merged(made.reports)
    return Result(
        request_id=job.request_id,
        created_s=int(time.time()),
        model_id=job.order.model_id,
        served=report.served or job.order.model.upstream,
        echo=report.echo,
        usage=report.usage,
        prompts=tuple(prompts.get(number) for number in numbers),
        cost_micro_mxn=job.quote.charge_micro_mxn(len(images), usd),
        images=images,
    )


def _merged(reports: list[Report]) -> Report:
    """What the customer is told of several calls: the first word on each thing, and a usage only if it is the whole."""
    merged = Report(served=next((report.served for report in reports if report.served), None))
    for report in reversed(reports):
        merged.echo |= report.echo
    usages = [report.usage for report in reports if report.usage is not None]
    merged.usage = usages[0] if len(usages) == 1 else None
    return merged


def _measured_usd(job: Job, made: Made) -> Decimal | None:
    """The provider's own figure for the order, where its price depends on it and every call gave one."""
    listed = job.order.model.listed(job.order.size, job.order.quality)
    reports = [report for report in made.reports if report.numbers]
    if listed is None or not listed.measured or not reports:
        return None
    usd = Decimal(0)
    for report in reports:
        if report.usd is None:
            return None
        # A picture of this call that was not stored is not the customer's to pay for.
        stored = len(made.stored.keys() & set(report.numbers.values()))
        usd += report.usd * stored / len(report.numbers)
    return usd.quantize(USD_STEP).normalize()
