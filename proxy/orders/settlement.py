"""Steps 7 and 8 of a request: an order's end.

It is charged and journaled before its 200, or void; nothing in between.
"""

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from decimal import Decimal

import orjson
import structlog
from prometheus_client import Counter, Gauge

from metering.answered import AnsweredOrder, max_bytes
from metering.answered import encode as encode_entry
from metering.events import NOT_SETTLED, UNTOLD, Upstream
from metering.journal.file import JournalFailed
from metering.journal.open_orders import OpenOrders
from metering.money import MAX_MICRO_MXN
from metering.pauses import Pauses
from metering.tracing import step
from metering.wallet.connection import WalletAway
from metering.wallet.values import Close, Closing
from metering.wallet.wallet import Wallet
from proxy.orders.admitted import AdmittedOrder
from proxy.orders.calls import AGAIN, OK, STORED_BYTES, UPSTREAM_S, Progress, UpstreamCalls, fault
from proxy.orders.ending import Charge
from proxy.orders.lifecycle import Lifecycle
from proxy.orders.result import Delivery, Result
from proxy.orders.result import encode as encode_result
from proxy.orders.routes import as_route
from proxy.orders.tasks import Tasks
from proxy.outcomes import Failure, Outcome, worst
from proxy.ports import LetGo, Report

log = structlog.get_logger(__name__)

SETTLE_PAUSE_S = 0.1
"""Pause between two tries of a settlement without a verdict from Redis."""

SETTLE_S = 1.0
"""How long a verdict is requested before the journal alone is enough for the order. Redis restarts in less."""

MAX_UPSTREAM_IDS = 24
"""Maximum ids of an order's upstream requests in its event: eight calls of three tries. The first ones are kept."""

USD_STEP = Decimal("0.0000000001")
"""Smallest unit of USD that a provider reports."""

ENDS = Counter("ghub_orders_total", "Orders ended by this process", ["model", "reason"])
EXCESS = Counter("ghub_cost_above_quote_total", "Orders for which the provider took more than our quote", ["model"])
CHARGED_MXN = Counter("ghub_charged_micro_mxn_total", "Millionths of MXN charged for orders of this process", ["model"])
HOLDS = Gauge("ghub_holds_open", "Holds of this process: of orders being made, and of orders being voided")
IMAGES = Counter("ghub_images_charged_total", "Images delivered and charged", ["model"])
ANSWERED_AWAY = Counter("ghub_answered_while_away_total", "Orders answered 200 while Redis gave no verdict")

DELIVERED = "delivered"
"""Reason of an order's charge."""


def count_from_zero(models: Iterable[tuple[str, str]]) -> None:
    """Begin what is counted by model, from pairs of provider and model: an increase from nothing would not be seen."""
    for provider, model_id in models:
        for counter in (AGAIN, CHARGED_MXN, EXCESS, IMAGES, STORED_BYTES):
            counter.labels(model_id)
        for reason in (DELIVERED, NOT_SETTLED, *(outcome.reason for outcome in Outcome)):
            ENDS.labels(model_id, reason)
        UPSTREAM_S.labels(provider, model_id, OK)


class Settlement:
    """Ends orders. Stored images are charged; an order without any is void. `owner` is this process, as holds name it.

    A long order that another process has taken over is not ended here, and its images are not touched. `abandoned` are
    the ids of those orders whose end has no verdict of Redis yet.
    """

    def __init__(
        self,
        wallet: Wallet,
        open_orders: OpenOrders,
        calls: UpstreamCalls,
        lifecycle: Lifecycle,
        tasks: Tasks,
        owner: str = "",
    ) -> None:
        self._wallet = wallet
        self._open_orders = open_orders
        self._calls = calls
        self._lifecycle = lifecycle
        self._tasks = tasks
        self._owner = owner
        self.abandoned: set[str] = set()

    def abandon(
        self,
        org_id: str,
        order_id: str,
        reason: str,
        *,
        until_us: int,
        comes_again: bool,
        upstream: Upstream = UNTOLD,
    ) -> None:
        """End, in the background, an order that was perhaps admitted and that nobody will generate.

        `comes_again`: its client was told to try again.
        """
        self._tasks.detach(self._abandon(org_id, order_id, reason, until_us, upstream, comes_again=comes_again))

    async def _abandon(
        self, org_id: str, order_id: str, reason: str, until_us: int, upstream: Upstream, *, comes_again: bool = False
    ) -> Close:
        self.abandoned.add(order_id)
        try:
            with HOLDS.track_inprogress():
                return await self._wallet.abandon(
                    org_id,
                    order_id,
                    reason,
                    until_us=until_us,
                    owner=self._owner,
                    comes_again=comes_again,
                    upstream=upstream,
                )
        finally:
            self.abandoned.discard(order_id)

    async def close(self, admitted: AdmittedOrder, progress: Progress) -> Delivery:
        """Charge and deliver what was made of an order. If nothing was, void it and raise ApiError."""
        for failure in progress.failures:
            model_id = admitted.order.model_id
            log.warning("upstream_failure", request_id=admitted.order_id, model=model_id, failure=str(failure))
        if refused := progress.take_refused():
            self._tasks.detach(self._calls.remove(refused))
        if progress.stored:
            return await self._settle(admitted, progress)
        failure = worst(progress.failures or [Failure(Outcome.CONTENT_POLICY, "all were refused")])
        await self.void(admitted, failure, upstream_of(progress))
        if failure.outcome is Outcome.RETIRED:
            raise self._lifecycle.retire(admitted.order.model_id, admitted.order.model)
        raise failure.as_error()

    async def _settle(self, admitted: AdmittedOrder, progress: Progress) -> Delivery:
        """Charge what is stored, journal that it is answered 200, and only then answer (rule 8).

        If Redis gives no verdict and the hold still lives, the journal alone is enough: the charge follows later. Data
        that may be invalid (an upstream's texts and figures) is checked before the settlement.
        """
        try:
            usd = _usd(admitted, progress)
            result = _result(admitted, progress, usd)
            answered, entry = self._answered(admitted, result, usd, upstream_of(progress))
        except Exception as error:  # noqa: BLE001  # the whole error is logged; the order must still end as a void
            failure = fault(admitted.order, error)
            await self.void(admitted, failure, upstream_of(progress))
            raise failure.as_error() from None
        with step("settle") as span:
            span.set("ghub.amount_micro_mxn", answered.amount_micro_mxn)
            closing = await self._charge(admitted, answered)
            span.set("ghub.verdict", "none" if closing is None else closing.close.name.lower())
        charged = closing is not None and closing.close is Close.CHARGED
        if closing is not None and closing.close is Close.NOT_OWNER:
            raise LetGo
        if closing is not None:
            admitted.ending.known(Charge.CHARGED if charged else Charge.NONE)
        if charged:
            _count_charge(admitted, answered)
        # A long order's client does not wait, and its owner may have been replaced: without a yes it is not answered.
        if not charged and (closing is not None or admitted.long or not admitted.hold_is_open()):
            self._tasks.detach(self._take_back(admitted, answered, unheard=closing is None))
            raise Failure(Outcome.DEADLINE, "not settled").as_error()
        with step("journal"):
            await self._write_down(admitted, answered, entry, charged)
        admitted.ending.known(Charge.CHARGED)
        if not charged:
            _count_charge(admitted, answered)
        ENDS.labels(admitted.order.model_id, DELIVERED).inc()
        IMAGES.labels(admitted.order.model_id).inc(len(answered.images))
        available_micro_mxn = closing.available_micro_mxn if closing is not None else None
        return Delivery(result, available_micro_mxn, admitted.headers)

    def _answered(
        self, admitted: AdmittedOrder, result: Result, usd: Decimal | None, upstream: Upstream
    ) -> tuple[AnsweredOrder, bytes]:
        """Build the journal's entry and its bytes. Raises ValueError if they are more than was reserved."""
        if excess := admitted.quote.excess_usd(len(result.images), usd):
            EXCESS.labels(admitted.order.model_id).inc()
            model_id = admitted.order.model_id
            log.error("cost_above_quote", request_id=admitted.order_id, model=model_id, excess_usd=str(excess))
        answered = AnsweredOrder(
            org_id=admitted.caller.org_id,
            key_id=admitted.caller.key_id,
            fingerprint=admitted.identity.fingerprint,
            key_hash=admitted.identity.key_hash,
            client_gone=admitted.ending.client_gone,
            order_id=admitted.order_id,
            amount_micro_mxn=result.cost_micro_mxn,
            images=result.images,
            usd_measured=None if usd is None else f"{usd:f}",
            opened=admitted.opened,
            result=encode_result(result),
            admitted_us=admitted.admitted_us,
            ended_us=self._wallet.now_us(admitted.caller.org_id),
            upstream=upstream,
            trace=admitted.trace,
        )
        entry = encode_entry(answered)
        if len(entry) > max_bytes(admitted.order.n, admitted.order.labels_bytes):
            raise ValueError(f"an entry of {len(entry)} bytes for {admitted.order.n} images")
        return answered, entry

    async def _charge(self, admitted: AdmittedOrder, answered: AnsweredOrder) -> Closing | None:
        """Ask Redis for a verdict, again for a while; None if it gives none."""
        latest_us = self._wallet.now_us(answered.org_id) + int((admitted.reply_until_s - time.monotonic()) * 1_000_000)
        now_s = time.monotonic()
        half_s = (now_s + admitted.reply_until_s) / 2  # the other half is the journal's
        until_s = half_s if admitted.long else min(now_s + SETTLE_S, half_s)
        async for _ in Pauses(SETTLE_PAUSE_S, until_s=until_s):
            admitted.ending.known(Charge.UNKNOWN)
            try:
                return await self._wallet.settle(
                    answered.org_id,
                    answered.order_id,
                    answered.amount_micro_mxn,
                    answered.images,
                    owner=self._owner,
                    latest_us=latest_us,
                    usd_measured=answered.usd_measured,
                    result=answered.result,
                    upstream=answered.upstream,
                )
            except WalletAway:
                continue
        return None

    async def _write_down(self, admitted: AdmittedOrder, answered: AnsweredOrder, entry: bytes, charged: bool) -> None:
        """Journal the order; when this returns it is answered 200. Raises ApiError if it must not be."""
        writing = self._tasks.detach(self._open_orders.note(entry))
        await asyncio.wait({writing}, timeout=max(0.0, admitted.reply_until_s - time.monotonic()))
        written = writing.done() and writing.exception() is None
        if written and (charged or admitted.hold_is_open()):
            self._open_orders.confirm(writing.result(), answered.org_id, answered.order_id, charged=charged)
            if not charged:
                ANSWERED_AWAY.inc()
            return
        self._tasks.detach(self._unanswered(admitted, answered, writing, charged))
        if charged:
            # Its client has no answer and is told to retry. Any retry, by whatever count, gets this order.
            with suppress(WalletAway):
                await self._wallet.client_gone(admitted.caller, admitted.order_id, admitted.identity)
        raise Failure(Outcome.DEADLINE, "not written down").as_error()

    async def _unanswered(
        self, admitted: AdmittedOrder, answered: AnsweredOrder, writing: asyncio.Task[int], charged: bool
    ) -> None:
        """Finish an order whose client got an error while its entry may be on the disk, or on its way there."""
        try:
            number = await writing
            if charged:
                self._open_orders.confirm(number, answered.org_id, answered.order_id, charged=True)
            else:
                await self._open_orders.withdraw(number, answered.order_id)
        except JournalFailed:
            # Nobody knows what is on the disk. If the order is, a replay charges it: so its images stay, and its owner
            # finds them by the request's id. If it is not, the hold expires, and the sweep deletes the images.
            if not charged:
                log.error("end_unknown", request_id=admitted.order_id, org=admitted.caller.org_id)
            return
        if not charged:
            await self._take_back(admitted, answered, unheard=True)

    async def _take_back(self, admitted: AdmittedOrder, answered: AnsweredOrder, unheard: bool) -> None:
        """Void an order after a settlement without a yes, and delete its images, unless it was charged after all.

        `unheard`: a settlement was sent and not answered. If Redis never reports its outcome, the images stay. A charge
        without images would be worse than images without a charge, which the ledger's end identifies.
        """
        close = await self._abandon(
            admitted.caller.org_id, admitted.order_id, NOT_SETTLED, admitted.hold_ends_us, answered.upstream
        )
        if close is Close.CHARGED:
            admitted.ending.known(Charge.CHARGED)
            _count_charge(admitted, answered)
            return
        if close is Close.NOT_OWNER:  # and so are its images
            return
        ENDS.labels(admitted.order.model_id, NOT_SETTLED).inc()
        if close is Close.UNKNOWN and unheard:
            log.error("end_unknown", request_id=admitted.order_id, org=admitted.caller.org_id)
            return
        admitted.ending.known(Charge.NONE)
        await self._calls.remove(list(answered.images))

    async def void(self, admitted: AdmittedOrder, failure: Failure, upstream: Upstream = UNTOLD) -> None:
        """End an order without a charge, now or as soon as Redis is back."""
        org_id, reason = admitted.caller.org_id, failure.outcome.reason
        ENDS.labels(admitted.order.model_id, reason).inc()
        comes_again = failure.as_error().retry
        try:
            with step("void") as span:
                span.set("ghub.reason", reason)
                await self._wallet.void(
                    org_id,
                    admitted.order_id,
                    reason,
                    owner=self._owner,
                    comes_again=comes_again,
                    upstream=upstream,
                )
        except WalletAway:
            self.abandon(
                org_id,
                admitted.order_id,
                reason,
                until_us=admitted.hold_ends_us,
                comes_again=comes_again,
                upstream=upstream,
            )


def _count_charge(admitted: AdmittedOrder, answered: AnsweredOrder) -> None:
    CHARGED_MXN.labels(admitted.order.model_id).inc(answered.amount_micro_mxn)


def _result(admitted: AdmittedOrder, progress: Progress, usd: Decimal | None) -> Result:
    """Build the result: the stored pictures in the order of their numbers."""
    numbers = sorted(progress.stored)
    images = tuple(progress.stored[number] for number in numbers)
    prompts = {n: text for report in progress.reports for n, text in report.revised_prompts.items()}
    report = _merged(progress.reports)
    return Result(
        order_id=admitted.order_id,
        created_s=int(time.time()),
        model_id=admitted.order.model_id,
        served=report.served or (progress.second or admitted.order).model.upstream,
        echo=report.echo,
        usage=report.usage,
        prompts=tuple(prompts.get(number) for number in numbers),
        cost_micro_mxn=admitted.quote.charge_micro_mxn(len(images), usd),
        images=images,
    )


def _merged(reports: list[Report]) -> Report:
    """Merge several calls' reports: the first value of each field, and the usage only if one call gave it."""
    merged = Report(served=next((report.served for report in reports if report.served), None))
    for report in reversed(reports):
        merged.echo |= report.echo
    usages = [report.usage for report in reports if report.usage is not None]
    merged.usage = usages[0] if len(usages) == 1 else None
    return merged


def upstream_of(progress: Progress) -> Upstream:
    """Collect what the provider called its requests, those that failed too, and its own figure for those that gave one.

    And the second route, if it went by that. None of it depends on what was stored or is charged.
    """
    ids = [*dict.fromkeys(name for report in progress.reports for name in report.ids)][:MAX_UPSTREAM_IDS]
    figures = [report.usd for report in progress.reports if report.usd is not None]
    usd = sum(figures, Decimal(0))
    known = bool(figures) and usd < MAX_MICRO_MXN  # more is no figure, and no event may have it
    return Upstream(
        ids=orjson.dumps(ids).decode() if ids else None,
        usd=f"{usd.quantize(USD_STEP).normalize():f}" if known else None,
        route=as_route(progress.second) if progress.second is not None else None,
    )


def _usd(admitted: AdmittedOrder, progress: Progress) -> Decimal | None:
    """Compute what the order cost in USD, if the price depends on it: by the provider's figure, or by the list price of
    the route that served it, where the order was quoted by a dearer one. None: it costs what was quoted.
    """
    served = progress.second or admitted.order
    listed = served.model.listed(served.size, served.quality)
    if listed is None:
        return None
    if listed.measured and (measured := _measured_usd(progress)) is not None:
        return measured
    if admitted.order.model.second is None or listed.usd_per_image >= admitted.quote.price.usd_per_image:
        return None
    return (listed.usd_per_image * len(progress.stored)).quantize(USD_STEP).normalize()


def _measured_usd(progress: Progress) -> Decimal | None:
    """Sum up the provider's own figure for the order, if every call gave one."""
    reports = [report for report in progress.reports if report.numbers]
    if not reports:
        return None
    usd = Decimal(0)
    for report in reports:
        if report.usd is None:
            return None
        # The customer does not pay for a picture of this call that was not stored.
        stored = len(progress.stored.keys() & set(report.numbers.values()))
        usd += report.usd * stored / len(report.numbers)
    return usd.quantize(USD_STEP).normalize()
