"""Steps 3 and 4 of a request: an order is priced, and its price set aside; or it is refused, and took nothing."""

import asyncio
from dataclasses import dataclass

from config.settings import hold_life_s, reply_margin_s
from metering.clock import boottime_s
from metering.events import encode_opened
from metering.money import format_mxn
from metering.pricing import Quote
from metering.wallet.connection import NotProjected, WalletAway
from metering.wallet.values import Admission, Caller, OrderIdentity, OrderStatus, Verdict
from metering.wallet.wallet import Wallet
from proxy.errors import ApiError, Kind, wallet_away
from proxy.messages import BACKLOG, BALANCE, HOLDS, IMAGES, REQUESTS, Text
from proxy.orders.admitted import AdmittedOrder
from proxy.orders.capacity import BUSY_RETRY_S
from proxy.orders.context import RequestContext
from proxy.orders.places import Place, Places
from proxy.orders.quotes import Quotes
from proxy.orders.refusals import (
    HOLDS_RETRY_S,
    balance_header,
    exceeded,
    key_refused,
    rate_headers,
    rate_limited,
)
from proxy.orders.settlement import Settlement
from proxy.ports import Order


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An order that was placed before, as `status` says; its result is due by `until_s` of `time.monotonic`.

    `headers` tell what is left of its rates.
    """

    caller: Caller
    identity: OrderIdentity
    asked_by: str
    status: OrderStatus
    available_micro_mxn: int
    until_s: float
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Hold:
    """What a hold was asked for with, and when: its life began no earlier."""

    quote: Quote
    opened: bytes
    asked_boot_s: float


class Admissions:
    """`owner` is this process, as the wallet knows it; `top_up` tells how to get more balance.

    `deadline_s` is an order's where its model has none of its own.
    """

    def __init__(
        self,
        wallet: Wallet,
        places: Places,
        quotes: Quotes,
        settlement: Settlement,
        *,
        owner: str,
        region: str,
        deadline_s: float,
        top_up: Text,
    ) -> None:
        self._wallet = wallet
        self._places = places
        self._quotes = quotes
        self._settlement = settlement
        self._owner = owner
        self._region = region
        self._deadline_s = deadline_s
        self._top_up = top_up

    async def admit(
        self, context: RequestContext, caller: Caller, order: Order, identity: OrderIdentity
    ) -> AdmittedOrder | Duplicate:
        """Price an order and set its price aside. Raises ApiError for every denial, which took nothing; WalletAway."""
        deadline_s = order.model.deadline_s or self._deadline_s
        with await self._places.take(caller.org_id, order.n) as place:
            admission, hold = await self._hold(context, caller, order, identity, hold_life_s(deadline_s))
            if admission.verdict is Verdict.DUPLICATE:
                return _duplicate(context, caller, identity, admission, deadline_s)
            if admission.verdict is not Verdict.ADMITTED:
                raise self._denial(admission, hold.quote)
            return _admitted(context, caller, order, identity, admission, hold, place.hand_over(), deadline_s)

    async def _hold(
        self, context: RequestContext, caller: Caller, order: Order, identity: OrderIdentity, life_s: float
    ) -> tuple[Admission, _Hold]:
        order_id = str(context.request_id)
        try:
            admission, hold = await self._ask(order_id, caller, order, identity, life_s)
            if admission.verdict in (Verdict.OTHER_PERIOD, Verdict.LATE):
                # The clock here and Redis' disagree, or midnight has just passed in Mexico City. Now they agree.
                admission, hold = await self._ask(order_id, caller, order, identity, life_s)
        except NotProjected:
            raise
        except (WalletAway, asyncio.CancelledError):
            until_us = self._wallet.now_us(caller.org_id) + int(life_s * 1_000_000)
            self._settlement.abandon(caller.org_id, order_id, "admission_unread", until_us=until_us)
            raise
        return admission, hold

    async def _ask(
        self, order_id: str, caller: Caller, order: Order, identity: OrderIdentity, life_s: float
    ) -> tuple[Admission, _Hold]:
        quote = self._quotes.quote(order, self._wallet.now_us(caller.org_id))
        facts = {
            "model": order.model_id,
            "provider": order.model.provider,
            "upstream": order.model.upstream,
            "size": order.size,
            "quality": order.quality,
            "region": self._region,
            "once": f"{identity.key_hash} {identity.fingerprint}" if identity.key_hash else None,
        }
        opened = encode_opened(order_id, caller.org_id, caller.key_id, quote, facts)
        hold = _Hold(quote, opened, boottime_s())
        return await self._wallet.admit(
            caller, order_id, quote, opened, identity, life_s=life_s, owner=self._owner
        ), hold

    def _denial(self, admission: Admission, quote: Quote) -> ApiError:
        if refused := key_refused(admission.verdict, quote.price.model):
            return refused
        headers = rate_headers(admission) | balance_header(admission.available_micro_mxn)
        match admission.verdict:
            case Verdict.BALANCE:
                available = format_mxn(admission.available_micro_mxn)
                message = BALANCE.of(cost=format_mxn(quote.total_micro_mxn), available=available)
                return ApiError(Kind.BALANCE, message.then(self._top_up), headers=headers)
            case Verdict.BUDGET | Verdict.DAY | Verdict.MONTH | Verdict.IN_FLIGHT:
                return exceeded(admission, quote, headers)
            case Verdict.REQUESTS:
                return rate_limited(REQUESTS, admission, admission.requests, 1, headers)
            case Verdict.IMAGES:
                return rate_limited(IMAGES, admission, admission.images, quote.images, headers)
            case Verdict.HOLDS:
                return ApiError(Kind.RATE_LIMIT, HOLDS, retry_after_s=HOLDS_RETRY_S, headers=headers)
            case Verdict.BACKLOG:
                return ApiError(Kind.UNAVAILABLE, BACKLOG, retry_after_s=BUSY_RETRY_S)
            case _:
                return wallet_away()


def _duplicate(
    context: RequestContext, caller: Caller, identity: OrderIdentity, admission: Admission, deadline_s: float
) -> Duplicate:
    assert admission.earlier is not None, "the verdict says so"
    return Duplicate(
        caller=caller,
        identity=identity,
        asked_by=str(context.request_id),
        status=admission.earlier,
        available_micro_mxn=admission.available_micro_mxn,
        until_s=context.started_s + deadline_s - reply_margin_s(deadline_s),
        headers=rate_headers(admission),
    )


def _admitted(
    context: RequestContext,
    caller: Caller,
    order: Order,
    identity: OrderIdentity,
    admission: Admission,
    hold: _Hold,
    place: Place,
    deadline_s: float,
) -> AdmittedOrder:
    ends_s, life_s = context.started_s + deadline_s, hold_life_s(deadline_s)
    margin_s = reply_margin_s(deadline_s)
    return AdmittedOrder(
        request_id=context.request_id,
        caller=caller,
        order=order,
        identity=identity,
        quote=hold.quote,
        generate_until_s=ends_s - margin_s,
        reply_until_s=ends_s - margin_s / 4,
        hold_ends_us=admission.now_us + int(life_s * 1_000_000),
        hold_ends_boot_s=hold.asked_boot_s + life_s,
        admitted_us=admission.now_us,
        opened=hold.opened,
        place=place,
        ending=context.ending,
        headers=rate_headers(admission),
    )
