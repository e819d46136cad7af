"""THE HOT PATH: POST /v1/images/generations, top to bottom."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from config.catalogue import Catalogue
from config.settings import hold_life_s, reply_margin_s
from metering.clock import boottime_s, period_at
from metering.events import encode_opened
from metering.fx import FxRateMissing, Rates
from metering.money import format_mxn
from metering.ports import Ledger, LedgerAway
from metering.pricing import Price, Quote, quote
from metering.wallet.connection import NotProjected, WalletAway
from metering.wallet.wallet import Admission, Caller, Placed, Verdict, Wallet
from proxy.api.auth import Authenticator
from proxy.api.middleware import RequestContext, context_of
from proxy.api.operation import MOST_KEY_CHARACTERS
from proxy.api.replies import Replies
from proxy.api.requests import RequestLimits, idempotency_key, read_body
from proxy.api.sandbox import Sandbox
from proxy.errors import ApiError, Kind, wallet_away
from proxy.messages import (
    BACKLOG,
    BALANCE,
    FX_MISSING,
    HOLDS,
    IMAGES,
    PLACED_BEFORE,
    REQUESTS,
    Text,
)
from proxy.orders.capacity import BUSY_RETRY_S
from proxy.orders.generations import Delivery, Generations, Job
from proxy.orders.lifecycle import Lifecycle, lifecycle_headers
from proxy.orders.order import fingerprint, parse_order
from proxy.orders.places import Place, Places
from proxy.orders.refusals import (
    HOLDS_RETRY_S,
    balance_header,
    exceeded,
    key_refused,
    rate_headers,
    rate_limited,
    telling_rates,
)
from proxy.orders.result import decode as decode_result
from proxy.outcomes import reason_as_error
from proxy.ports import Order

JOIN_POLL_S = 0.2
"""How often a request that joined an order asks how that stands; an image takes seconds."""

JOIN_RETRY_S = 5.0
"""A hint: the hold of an order whose gateway died runs out, and then its key is free."""

AWAY_RETRY_S = 1.0
"""Redis or the ledger gave no answer: they are back in a moment, or in minutes."""


class OrderHeaders(BaseModel):
    """Of the request, beside its key."""

    idempotency_key: Annotated[
        str | None,
        Field(
            alias="Idempotency-Key",
            min_length=1,
            max_length=MOST_KEY_CHARACTERS,
            description="The same order under the same key is made and charged once within 24 hours.",
        ),
    ] = None


class _Orphaned(ApiError):
    """The gateway that makes the order is gone, so that nobody need wait for it."""


@dataclass(frozen=True, slots=True)
class _Held:
    """What a hold was asked for with, and when: its life began no earlier."""

    placed: Placed
    price: Quote
    opened: bytes
    asked_boot_s: float


class ImagesEndpoint:
    """Authenticate, parse, quote, hold, generate (make, store, settle), reply.

    `price_book` is the version that quotes name; `top_up` tells how to get more balance.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        catalogue: Catalogue,
        rates: Rates,
        wallet: Wallet,
        ledger: Ledger,
        places: Places,
        generations: Generations,
        lifecycle: Lifecycle,
        replies: Replies,
        sandbox: Sandbox,
        limits: RequestLimits,
        *,
        price_book: str,
        region: str,
        top_up: Text,
    ) -> None:
        self._authenticator = authenticator
        self._catalogue = catalogue
        self._rates = rates
        self._wallet = wallet
        self._ledger = ledger
        self._places = places
        self._generations = generations
        self._lifecycle = lifecycle
        self._replies = replies
        self._sandbox = sandbox
        self._limits = limits
        self._price_book = price_book
        self._region = region
        self._top_up = top_up

    async def create(self, request: Request) -> Response:
        """The whole job of one request."""
        context = context_of(request.scope)
        try:
            caller = await self._authenticator.caller(request.headers)
            context.facts |= {"org": caller.org_id, "key": caller.key_id}
            order = parse_order(await read_body(request, self._limits), self._catalogue, caller.response_format)
            context.facts |= {"model": order.model_id, "n": order.n}
            self._lifecycle.check(order.model_id, order.model)
            asked = placed(request.headers, order, caller.scope)
            with await self._places.take(caller.org_id, order.n) as place:
                if caller.test:
                    return await self._sandbox.create(context, caller, order, asked)
                admission, held = await self._admit(context, caller, order, asked)
                if admission.verdict is not Verdict.EARLIER:
                    job = self._job(context, caller, order, admission, held, place.hand_over())
        except WalletAway:
            raise wallet_away() from None
        if admission.verdict is Verdict.EARLIER:
            with telling_rates(admission):
                delivery = await self._join(request, order, admission, caller, asked)
            return self._reply(context, order, admission, delivery, replayed=True)
        generation = self._generations.start(job)
        await self._watch(request, generation, partial(self._left, job))
        # A client that hangs up ends this wait, and not the generation.
        with telling_rates(admission):
            delivery = await asyncio.shield(generation)
        context.facts |= {"images": len(delivery.images), "cost_mxn": format_mxn(delivery.cost_micro_mxn)}
        return self._reply(context, order, admission, delivery, replayed=False)

    async def _admit(
        self, context: RequestContext, caller: Caller, order: Order, placed: Placed
    ) -> tuple[Admission, _Held]:
        """Price the order and set its price aside; every denial is an ApiError, and took nothing."""
        hold_id = str(context.request_id)
        life_s = hold_life_s(self._deadline_s(order))
        try:
            admission, held = await self._hold(caller, hold_id, order, placed, life_s)
            if admission.verdict in (Verdict.OTHER_PERIOD, Verdict.LATE):
                # The clock here and Redis' disagree, or midnight has just passed in Mexico City. Now they agree.
                admission, held = await self._hold(caller, hold_id, order, placed, life_s)
        except NotProjected:
            raise
        except (WalletAway, asyncio.CancelledError):
            until_us = self._wallet.now_us(caller.org_id) + int(life_s * 1_000_000)
            self._generations.abandon(caller.org_id, hold_id, "admission_unread", until_us=until_us)
            raise
        if admission.verdict not in (Verdict.ADMITTED, Verdict.EARLIER):
            raise self._denial(admission, held.price)
        return admission, held

    def _job(
        self, context: RequestContext, caller: Caller, order: Order, admission: Admission, held: _Held, place: Place
    ) -> Job:
        deadline_s = self._deadline_s(order)
        ends_s, life_s = context.started_s + deadline_s, hold_life_s(deadline_s)
        margin_s = reply_margin_s(deadline_s)
        return Job(
            request_id=context.request_id,
            caller=caller,
            order=order,
            placed=held.placed,
            quote=held.price,
            generate_until_s=ends_s - margin_s,
            reply_until_s=ends_s - margin_s / 4,
            hold_ends_us=admission.now_us + int(life_s * 1_000_000),
            hold_ends_boot_s=held.asked_boot_s + life_s,
            admitted_us=admission.now_us,
            opened=held.opened,
            place=place,
            ending=context.ending,
        )

    def _deadline_s(self, order: Order) -> float:
        return order.model.deadline_s or self._limits.deadline_s

    async def _hold(
        self, caller: Caller, hold_id: str, order: Order, placed: Placed, life_s: float
    ) -> tuple[Admission, _Held]:
        price = self._quote(caller.org_id, order)
        facts = {
            "model": order.model_id,
            "provider": order.model.provider,
            "upstream": order.model.upstream,
            "size": order.size,
            "quality": order.quality,
            "region": self._region,
            "once": f"{placed.key_hash} {placed.fingerprint}" if placed.key_hash else None,
        }
        opened = encode_opened(hold_id, caller.org_id, caller.key_id, price, facts)
        held = _Held(placed, price, opened, boottime_s())
        owner = self._generations.owner
        return await self._wallet.admit(caller, hold_id, price, opened, placed, life_s=life_s, owner=owner), held

    def _quote(self, org_id: str, order: Order) -> Quote:
        now_us = self._wallet.now_us(org_id)
        period = period_at(now_us)
        try:
            rate = self._rates.rate_for(period.month, now_us)
        except FxRateMissing:
            raise ApiError(Kind.FX_MISSING, FX_MISSING.of(month=period.month)) from None
        listed = order.model.listed(order.size, order.quality)
        assert listed is not None, "an order for an unpriced model is not parsed"
        price = Price(
            model=order.model_id,
            usd_per_image=listed.usd_per_image,
            variant=listed.variant,
            markup=self._catalogue.markup,
            price_book=self._price_book,
        )
        return quote(price, rate, period, order.n)

    def _denial(self, admission: Admission, price: Quote) -> ApiError:
        if refused := key_refused(admission.verdict, price.price.model):
            return refused
        headers = rate_headers(admission) | balance_header(admission.available_micro_mxn)
        match admission.verdict:
            case Verdict.BALANCE:
                available = format_mxn(admission.available_micro_mxn)
                message = BALANCE.of(cost=format_mxn(price.total_micro_mxn), available=available)
                return ApiError(Kind.BALANCE, message.then(self._top_up), headers=headers)
            case Verdict.BUDGET | Verdict.DAY | Verdict.MONTH | Verdict.FLIGHT:
                return exceeded(admission, price, headers)
            case Verdict.REQUESTS:
                return rate_limited(REQUESTS, admission, admission.requests, 1, headers)
            case Verdict.IMAGES:
                return rate_limited(IMAGES, admission, admission.images, price.images, headers)
            case Verdict.HOLDS:
                return ApiError(Kind.RATE_LIMIT, HOLDS, retry_after_s=HOLDS_RETRY_S, headers=headers)
            case Verdict.BACKLOG:
                return ApiError(Kind.UNAVAILABLE, BACKLOG, retry_after_s=BUSY_RETRY_S)
            case _:
                return wallet_away()

    async def _join(
        self, request: Request, order: Order, admission: Admission, caller: Caller, asked: Placed
    ) -> Delivery:
        """The result of an order that was placed before.

        Who hangs up, or is told to come again, leaves it to the next that places the same (rule 38).
        """
        context, stands = context_of(request.scope), admission.earlier
        assert stands is not None, "the verdict says so"
        asked_by = str(context.request_id)
        left = partial(self._wallet.client_gone, caller, stands.request_id, asked, asked_by=asked_by)
        joining = asyncio.create_task(
            self._earlier(context, order, admission, caller, keyed=asked.key_hash is not None)
        )
        try:
            await self._watch(request, joining, left)
            return await joining
        except _Orphaned:
            raise
        except ApiError:
            with suppress(WalletAway):
                await left()
            raise
        finally:
            joining.cancel()

    async def _earlier(
        self, context: RequestContext, order: Order, admission: Admission, caller: Caller, *, keyed: bool
    ) -> Delivery:
        """The result of an order that was placed before: joined while it is made, on whatever pod (rules 17, 18).

        Without a key it is given from the ledger only. As long as the charge is in Redis and a journal alone, a Redis
        that forgets would have it recorded at zero for a client that is gone (rule 19), and now it is not gone.
        """
        try:
            return await self._result_of(context, order, admission, caller, keyed=keyed)
        except (WalletAway, LedgerAway):
            raise ApiError(Kind.UNAVAILABLE, PLACED_BEFORE, retry_after_s=AWAY_RETRY_S) from None

    async def _result_of(
        self, context: RequestContext, order: Order, admission: Admission, caller: Caller, *, keyed: bool
    ) -> Delivery:
        stands = admission.earlier
        assert stands is not None, "the verdict says so"
        deadline_s = self._deadline_s(order)
        until_s = context.started_s + deadline_s - reply_margin_s(deadline_s)
        while stands.end == "open":
            if time.monotonic() > until_s:
                raise ApiError(Kind.UNAVAILABLE, PLACED_BEFORE, retry_after_s=JOIN_RETRY_S)
            if not await self._wallet.lives(caller.org_id, stands.owner):
                raise _Orphaned(Kind.UNAVAILABLE, PLACED_BEFORE, retry_after_s=JOIN_RETRY_S)
            await asyncio.sleep(JOIN_POLL_S)
            later = await self._wallet.stands(caller.org_id, stands.request_id)
            if later is None:
                raise ApiError(Kind.UNAVAILABLE, PLACED_BEFORE, retry_after_s=AWAY_RETRY_S)
            stands = later
        if stands.end != "charge":
            raise reason_as_error(stands.reason)
        stored = await self._wallet.result(caller.org_id, stands.request_id) if keyed else None
        while stored is None:
            stored = await self._ledger.result(caller.org_id, stands.request_id)
            if stored is None:
                if time.monotonic() > until_s:
                    raise ApiError(Kind.UNAVAILABLE, PLACED_BEFORE, retry_after_s=JOIN_RETRY_S)
                await asyncio.sleep(JOIN_POLL_S)
        return Delivery(decode_result(stored), admission.available_micro_mxn)

    async def _watch(self, request: Request, work: asyncio.Task[Delivery], left: Callable[[], Awaitable[None]]) -> None:
        """Until the work is done, or the client has `left` it: that ends nothing, and is told at once."""
        leaving = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if leaving.done():
                with suppress(WalletAway):
                    await left()
        finally:
            leaving.cancel()

    async def _left(self, job: Job) -> None:
        """An order is made although nobody waits for it: its SDK's retry, or who places the same next, is given it."""
        job.ending.client_gone = True
        await self._wallet.client_gone(job.caller, job.hold_id, job.placed)

    def _reply(
        self, context: RequestContext, order: Order, admission: Admission, delivery: Delivery, *, replayed: bool
    ) -> Response:
        result = delivery.result
        headers = rate_headers(admission) | lifecycle_headers(order.model_id, order.model)
        if delivery.available_micro_mxn is not None:
            headers |= balance_header(delivery.available_micro_mxn)
        if replayed:
            headers |= {"idempotent-replayed": "true", "x-geekhub-cost-mxn": "0.00"}
        else:
            headers |= {"x-geekhub-cost-mxn": format_mxn(result.cost_micro_mxn)}
        if order.response_format == "b64_json":
            until_s = context.started_s + self._deadline_s(order)
            if replayed:
                return self._replies.replay_with_images(context.facts["org"], result, headers, until_s)
            return self._replies.with_images(result, headers, until_s)
        return self._replies.with_urls(result, headers)


def placed(headers: Headers, order: Order, scope: str) -> Placed:
    """How the order was placed. Raises ApiError 400 for an idempotency key that is none; `scope` is where it holds.

    An SDK counts its own retries; a key that its user gave goes before that count.
    """
    key_hash = idempotency_key(headers, scope)
    if key_hash is None:
        tries = headers.get("x-stainless-retry-count", "")
        counted = tries.isascii() and tries.isdigit() and len(tries) < 3
        return Placed(fingerprint(order), tries=int(tries) if counted else None)
    return Placed(fingerprint(order), key_hash=key_hash)


async def _gone(request: Request) -> None:
    """Returns when the client has hung up; the body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
