"""Steps 3 and 4 of a request: an order is priced, and its price is held; or it is refused, and nothing is taken."""

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from config.settings import hold_life_s, reply_margin_s, settle_s
from metering.clock import boottime_s
from metering.end_users import EndUsers
from metering.events import ADMISSION_UNREAD, LONG, encode_opened
from metering.money import format_mxn
from metering.pricing import Quote
from metering.tracing import step
from metering.wallet.connection import NotProjected, NotSent, WalletAway
from metering.wallet.values import Admission, Caller, LongTerms, OrderIdentity, OrderStatus, Verdict
from metering.wallet.wallet import Wallet
from proxy.errors import ApiError, Kind, wallet_away
from proxy.messages import BACKLOG, BALANCE, HOLDS, IMAGES, REQUESTS, SLOW, UNPAID, Text
from proxy.orders.admitted import AdmittedOrder
from proxy.orders.capacity import BUSY_RETRY_S
from proxy.orders.context import RequestContext
from proxy.orders.deadlines import Deadlines
from proxy.orders.document import encode
from proxy.orders.gate import Gate, crowded
from proxy.orders.places import Place, Places
from proxy.orders.quotes import Quotes, as_quoted
from proxy.orders.refusals import (
    HOLDS_RETRY_S,
    balance_header,
    exceeded,
    key_refused,
    rate_headers,
    rate_limited,
)
from proxy.orders.routes import Routes
from proxy.orders.settlement import Settlement
from proxy.ports import Order


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An order that was placed before, with its `status`. Its result is due by `until_s` of `time.monotonic`.

    `headers` are its rate-limit headers.
    """

    caller: Caller
    identity: OrderIdentity
    asked_by: str
    status: OrderStatus
    available_micro_mxn: int
    until_s: float
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What an order would cost at most, and how its admission would end at this moment.

    `denial` is the error that it would get; None if it would be admitted.
    """

    quote: Quote
    admission: Admission
    denial: ApiError | None


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An order that is not admitted yet: whose it is, what tells it from others, and how long it may take.

    `labels` are the facts of its event that not every order has. None of them is an end user's clear name.
    """

    context: RequestContext
    caller: Caller
    order: Order
    identity: OrderIdentity
    deadline_s: float
    labels: Mapping[str, str]
    long: bool

    @property
    def life_s(self) -> float:
        """How long its hold lives."""
        return hold_life_s(self.deadline_s)

    @property
    def margin_s(self) -> float:
        """The time that is kept free for its reply."""
        return reply_margin_s(self.deadline_s)

    def terms(self, quote: Quote) -> LongTerms | None:
        """What makes it a long order, if it is one."""
        if not self.long:
            return None
        document = encode(self.order, self.identity, quote.price.measured_by)
        return LongTerms(document, self.deadline_s - self.margin_s)

    @property
    def ends_s(self) -> float:
        """Its deadline, by `time.monotonic`."""
        return self.context.started_s + self.deadline_s


@dataclass(frozen=True, slots=True)
class _Hold:
    """The request for a hold, and its time: the hold's life began no earlier."""

    quote: Quote
    opened: bytes
    asked_boot_s: float


class Admissions:
    """Admits orders. `owner` is this process, as the wallet knows it; `top_up` says how to get more balance.

    `deadlines` says how long an order may take.
    """

    def __init__(
        self,
        wallet: Wallet,
        places: Places,
        quotes: Quotes,
        settlement: Settlement,
        gate: Gate,
        end_users: EndUsers,
        routes: Routes,
        *,
        owner: str,
        region: str,
        deadlines: Deadlines,
        top_up: Text,
    ) -> None:
        self._wallet = wallet
        self._places = places
        self._quotes = quotes
        self._settlement = settlement
        self._gate = gate
        self._end_users = end_users
        self._routes = routes
        self._owner = owner
        self._region = region
        self._deadlines = deadlines
        self._top_up = top_up

    def check_gate(self, here_since_s: float | None) -> None:
        """Check that new orders are let in. Raises ApiError 503. `here_since_s` is explained at `Gate.refuses`."""
        if self._gate.refuses(here_since_s):
            raise crowded()

    def turn(self, context: RequestContext) -> AbstractAsyncContextManager[float]:
        """Wait for a turn to authenticate or to `admit`, within the order's deadline, as `Gate.turn` does."""
        return self._gate.turn(context.started_s + self._deadlines.awaited_s)

    async def admit(
        self, context: RequestContext, caller: Caller, order: Order, identity: OrderIdentity, *, long: bool
    ) -> AdmittedOrder | Duplicate:
        """Price an order and hold its price. Raises WalletAway, and ApiError for every denial, which takes nothing.

        `long`: its client does not wait for it.
        """
        deadline_s = self.deadline_s(order, long=long)
        labels = self._labels(caller.org_id, order) | ({"mode": LONG} if long else {})
        candidate = _Candidate(context, caller, order, identity, deadline_s, labels, long)
        if (shut := self._routes.refusal(order)) is not None:
            await self._refuse_unless_given_again(candidate, shut)
        with await self._places.take(caller.org_id, order.n, order.labels_bytes) as place:
            admission, hold = await self._hold(candidate)
            if admission.verdict is Verdict.DUPLICATE:
                return _duplicate(candidate, admission)
            if admission.verdict is not Verdict.ADMITTED:
                raise self._denial(admission, hold.quote, order)
            self._tell_end_users(candidate)
            return _admitted(candidate, admission, hold, place.hand_over())

    def deadline_s(self, order: Order, *, long: bool) -> float:
        """Say how long an order may take, in seconds from its first byte; `long` as in `admit`."""
        return self._deadlines.of(order, long=long)

    def quote(self, org_id: str, order: Order) -> Quote:
        """Price an order at this moment. Raises ApiError 503 if the month has no exchange rate."""
        return self._quotes.quote(order, self._wallet.now_us(org_id))

    async def forecast(self, caller: Caller, order: Order, order_id: str, *, long: bool) -> Forecast:
        """Price an order, and say what `admit` would do with it now if it were a new one. Nothing is taken.

        Raises WalletAway, and ApiError for what no wait and no payment would change.
        """
        await self._quotes.renew(self._wallet.now_us(caller.org_id))
        if not long and self._deadlines.too_slow(order) is not None:
            raise self._slow(order)
        quote = self.quote(caller.org_id, order)
        new = OrderIdentity(fingerprint=order_id)  # of no other order, so it repeats none
        admission = await self._wallet.would_admit(caller, order_id, quote, new)
        if refused := key_refused(admission.verdict, order.model_id):
            raise refused
        if admission.verdict is Verdict.ADMITTED:
            return Forecast(quote, admission, self._routes.refusal(order))
        return Forecast(quote, admission, self._denial(admission, quote, order))

    async def _refuse_unless_given_again(self, candidate: _Candidate, shut: ApiError) -> None:
        """Refuse an order that nobody would make now, before its hold; unless it is a duplicate, whose result is there.

        A denial by a limit goes before, as it does for any order.
        """
        quote = self.quote(candidate.caller.org_id, candidate.order)
        would = await self._wallet.would_admit(candidate.caller, candidate.context.order_id, quote, candidate.identity)
        if would.verdict is Verdict.DUPLICATE:
            return
        shut.headers |= rate_headers(would)
        raise shut if would.verdict is Verdict.ADMITTED else self._denial(would, quote, candidate.order)

    def _labels(self, org_id: str, order: Order) -> dict[str, str]:
        """Collect what an order carries to be found again; what it does not carry is left out."""
        pseudonyms = {name: self._end_users.pseudonym(org_id, value) for name, value in _end_users(order)}
        sorting = {"tags": order.tags, "metadata": order.metadata, "webhook": order.webhook}
        return pseudonyms | {name: text for name, text in sorting.items() if text is not None}

    def _tell_end_users(self, candidate: _Candidate) -> None:
        """Record whom the pseudonyms of an admitted order stand for. Nobody waits for it."""
        for name, value in _end_users(candidate.order):
            self._end_users.tell(candidate.caller.org_id, candidate.labels[name], value)

    async def _hold(self, candidate: _Candidate) -> tuple[Admission, _Hold]:
        try:
            admission, hold = await self._ask(candidate)
            if admission.verdict in (Verdict.QUOTE_OVER, Verdict.LATE):
                # The clock here and Redis' disagree, or a day, a price or its reading has just ended. Now they agree.
                await self._quotes.renew(self._wallet.now_us(candidate.caller.org_id))
                admission, hold = await self._ask(candidate)
        except (NotProjected, NotSent):
            raise
        except (WalletAway, asyncio.CancelledError):
            org_id = candidate.caller.org_id
            until_us = self._wallet.now_us(org_id) + int(candidate.life_s * 1_000_000)
            order_id = candidate.context.order_id
            self._settlement.abandon(org_id, order_id, ADMISSION_UNREAD, until_us=until_us, comes_again=True)
            raise
        return admission, hold

    async def _ask(self, candidate: _Candidate) -> tuple[Admission, _Hold]:
        caller, order, identity = candidate.caller, candidate.order, candidate.identity
        with step("quote"):
            quote = self._quotes.quote(order, self._wallet.now_us(caller.org_id))
        facts = {
            "model": order.model_id,
            "provider": order.model.provider,
            "upstream": order.model.upstream,
            "size": order.size,
            "quality": order.quality,
            "region": self._region,
            "once": f"{identity.key_hash} {identity.fingerprint}" if identity.key_hash else None,
            **candidate.labels,
        }
        opened = encode_opened(candidate.context.order_id, caller.org_id, caller.key_id, quote, facts)
        hold = _Hold(quote, opened, boottime_s())
        with step("hold") as span:
            admission = await self._wallet.admit(
                caller,
                candidate.context.order_id,
                quote,
                opened,
                identity,
                life_s=candidate.life_s,
                owner=self._owner,
                trace=candidate.context.trace,
                long=candidate.terms(quote),
                slow=not candidate.long and self._deadlines.too_slow(order) is not None,
            )
            span.set("ghub.verdict", admission.verdict.name.lower())
        return admission, hold

    def _denial(self, admission: Admission, quote: Quote, order: Order) -> ApiError:
        denial = self._told(admission, quote, order)
        denial.reason = admission.verdict.name.lower()
        return denial

    def _told(self, admission: Admission, quote: Quote, order: Order) -> ApiError:
        """Say what is wrong, with the headers that the SDKs obey."""
        if refused := key_refused(admission.verdict, quote.price.model):
            return refused
        headers = rate_headers(admission) | balance_header(admission.available_micro_mxn)
        match admission.verdict:
            case Verdict.SLOW:
                return self._slow(order)
            case Verdict.UNPAID:
                wait_s = admission.retry_us / 1_000_000
                return ApiError(Kind.QUOTA, UNPAID, retry_after_s=wait_s, retry=False, headers=headers)
            case Verdict.BALANCE:
                available = format_mxn(admission.available_micro_mxn)
                message = BALANCE.of(cost=format_mxn(quote.total_micro_mxn), available=available)
                return ApiError(Kind.BALANCE, message.then(self._top_up), headers=headers)
            case Verdict.REQUESTS:
                return rate_limited(REQUESTS, admission, admission.requests, 1, headers)
            case Verdict.IMAGES:
                return rate_limited(IMAGES, admission, admission.images, quote.images, headers)
            case Verdict.HOLDS:
                return ApiError(Kind.RATE_LIMIT, HOLDS, retry_after_s=HOLDS_RETRY_S, headers=headers)
            case Verdict.BACKLOG:
                return ApiError(Kind.UNAVAILABLE, BACKLOG, retry_after_s=BUSY_RETRY_S)
            case _ if admission.whose:
                return exceeded(admission, quote, headers)
            case _:
                return wallet_away()

    def _slow(self, order: Order) -> ApiError:
        """Build the 400 of an order that its client would wait for in vain."""
        takes_s, deadline_s = self._deadlines.too_slow(order), self._deadlines.of(order, long=False)
        message = SLOW.of(model=order.model_id, takes=takes_s, deadline=f"{deadline_s:g}")
        return ApiError(Kind.INVALID_REQUEST, message, param="quality" if order.quality else "model")


def _end_users(order: Order) -> list[tuple[str, str]]:
    """List whose order it is, by the names of an event."""
    named = (("end_user", order.user), ("safety_id", order.safety_identifier))
    return [(name, value) for name, value in named if value]


def _duplicate(candidate: _Candidate, admission: Admission) -> Duplicate:
    assert admission.earlier is not None, "the verdict says so"
    return Duplicate(
        caller=candidate.caller,
        identity=candidate.identity,
        asked_by=candidate.context.order_id,
        status=admission.earlier,
        available_micro_mxn=admission.available_micro_mxn,
        until_s=candidate.ends_s - candidate.margin_s,
        headers=rate_headers(admission),
    )


def _admitted(candidate: _Candidate, admission: Admission, hold: _Hold, place: Place) -> AdmittedOrder:
    return AdmittedOrder(
        order_id=candidate.context.order_id,
        caller=candidate.caller,
        order=as_quoted(candidate.order, hold.quote),
        identity=candidate.identity,
        quote=hold.quote,
        generate_until_s=candidate.ends_s - candidate.margin_s,
        reply_until_s=candidate.ends_s - candidate.margin_s + settle_s(candidate.deadline_s),
        hold_ends_us=admission.now_us + int(candidate.life_s * 1_000_000),
        hold_ends_boot_s=hold.asked_boot_s + candidate.life_s,
        admitted_us=admission.now_us,
        opened=hold.opened,
        place=place,
        available_micro_mxn=admission.available_micro_mxn,
        ending=candidate.context.ending,
        long=candidate.long,
        facts=candidate.context.facts,
        headers=rate_headers(admission),
        trace=candidate.context.trace,
    )
