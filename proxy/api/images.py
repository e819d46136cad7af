"""THE HOT PATH: POST /v1/images/generations, top to bottom."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from metering.money import format_mxn
from metering.ports import LedgerAway
from metering.tracing import step
from metering.wallet.connection import WalletAway
from metering.wallet.values import Caller, OrderIdentity
from proxy.api.auth import Authenticator
from proxy.api.dry_run import DryRuns, OrderQuery, is_dry_run
from proxy.api.middleware import context_of
from proxy.api.operation import BALANCE, IMAGE_RATES, MAX_KEY_CHARACTERS, REQUEST_RATES, Operation, Tag
from proxy.api.replies import Replies
from proxy.api.requests import (
    RESPOND_ASYNC,
    RequestLimits,
    check_webhook,
    idempotency_key,
    read_body,
    responds_async,
    tags_of,
)
from proxy.api.schemas import Made, Queued
from proxy.api.standing import OPEN, POLL_S, QUEUED, Standing
from proxy.errors import ApiError, Kind, wallet_away
from proxy.offer import Offer
from proxy.orders import denials
from proxy.orders.admission import Admissions, Duplicate
from proxy.orders.admitted import AdmittedOrder
from proxy.orders.context import RequestContext
from proxy.orders.generations import Generations
from proxy.orders.lifecycle import Lifecycle
from proxy.orders.order import MAX_TAGS, TAG_CHARACTERS, TAGS_HEADER, OrderBody, fingerprint, open_document, parse_order
from proxy.orders.refusals import balance_header, with_headers
from proxy.orders.replay import Orphaned, Replay
from proxy.orders.result import Delivery, public_id
from proxy.orders.sandbox import Sandbox
from proxy.ports import Order
from proxy.server.connections import HERE_SINCE_S
from proxy.webhooks.targets import WebhookHosts

PATH = "/v1/images/generations"

RATES = (*REQUEST_RATES, *IMAGE_RATES)


class OrderHeaders(BaseModel):
    """Of the request, beside its key."""

    idempotency_key: Annotated[
        str | None,
        Field(
            alias="Idempotency-Key",
            min_length=1,
            max_length=MAX_KEY_CHARACTERS,
            description="The same order under the same key is made and charged once within 24 hours.",
        ),
    ] = None
    prefer: Annotated[
        str | None,
        Field(
            alias="Prefer",
            description="`respond-async`: the answer is a 202 at once, and the result is fetched by its id. For images"
            " that take longer than an answer is waited for.",
        ),
    ] = None
    tags: Annotated[
        str | None,
        Field(
            alias=TAGS_HEADER,
            description=f"Groups of GET /v1/usage: at most {MAX_TAGS} of {TAG_CHARACTERS} characters, with commas"
            " between them. No part of the order.",
        ),
    ] = None


class ImagesEndpoint:
    """Orders: authenticate, parse, admit (price, hold), generate (make, store, settle), reply.

    Without `webhook_hosts`, nobody signs webhooks, and an order may name none.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        offer: Offer,
        lifecycle: Lifecycle,
        admissions: Admissions,
        replay: Replay,
        generations: Generations,
        sandbox: Sandbox,
        replies: Replies,
        dry_runs: DryRuns,
        limits: RequestLimits,
        standing: Standing,
        webhook_hosts: WebhookHosts | None,
    ) -> None:
        self._authenticator = authenticator
        self._offer = offer
        self._lifecycle = lifecycle
        self._admissions = admissions
        self._replay = replay
        self._generations = generations
        self._sandbox = sandbox
        self._replies = replies
        self._dry_runs = dry_runs
        self._limits = limits
        self._standing = standing
        self._webhook_hosts = webhook_hosts

    def operations(self) -> Sequence[Operation]:
        return [
            Operation(
                id="create_images",
                tag=Tag.IMAGES,
                method="POST",
                path=PATH,
                handler=self.create,
                summary="Make images",
                description="What is delivered is charged, and nothing else. The order goes on if its client hangs up:"
                " its result is found by its id or its `Idempotency-Key`.",
                reply=Made,
                accepted=Queued,
                accepted_headers=(
                    *BALANCE,
                    *RATES,
                    *("location", "retry-after", "preference-applied", "x-geekhub-held-mxn", "cache-control"),
                    *("idempotent-replayed", "deprecation", "sunset", "link"),
                ),
                body=OrderBody,
                query=OrderQuery,
                headers=OrderHeaders,
                reply_headers=(
                    *BALANCE,
                    *RATES,
                    "x-geekhub-cost-mxn",
                    "idempotent-replayed",
                    "deprecation",
                    "sunset",
                    "link",
                ),
                # Its limits may have been read before it was refused or failed.
                error_headers=dict.fromkeys((400, 404, 409, 500, 502, 503, 504), RATES)
                | dict.fromkeys((402, 429), (*BALANCE, *RATES)),
                errors=(
                    Kind.CONTENT_POLICY,
                    Kind.BALANCE,
                    Kind.BUDGET,
                    Kind.MODEL_NOT_ALLOWED,
                    Kind.SUSPENDED,
                    Kind.MODEL_NOT_FOUND,
                    Kind.KEY_REUSED,
                    Kind.RATE_LIMIT,
                    Kind.QUOTA,
                    Kind.PROVIDER,
                    Kind.FX_MISSING,
                    Kind.BUSY,
                    Kind.CHARGED,
                    Kind.DEADLINE,
                    Kind.END_UNKNOWN,
                    Kind.CANCELLED,
                    Kind.OUTCOME_UNKNOWN,
                ),
            )
        ]

    async def create(self, request: Request) -> Response:
        """Handle one order, from its body to its reply."""
        if is_dry_run(request):
            return await self._dry_runs.answer(request)
        context = context_of(request.scope)
        try:
            with denials.counted():
                caller = await self._caller(context, request)
                context.facts |= {"org": caller.org_id, "key": caller.key_id}
                body = await read_body(request, self._limits)
                async with self._admissions.turn(context) as waited_s:
                    context.wait(waited_s)
                    long = not caller.test and responds_async(request.headers)
                    order, identity = self._parse(context, caller, body, request.headers, long=long)
                    admitted = (
                        None
                        if caller.test
                        else await self._admissions.admit(context, caller, order, identity, long=long)
                    )
            if admitted is None:  # a test key's order, which holds nothing
                delivery = await self._sandbox.deliver(context, caller, order, identity)
                return self._reply(context, caller, order, delivery)
            if long:
                return await self._accepted(request, context, caller, order, admitted)
        except (WalletAway, LedgerAway):
            raise wallet_away() from None
        if isinstance(admitted, Duplicate):
            with step("replay"):
                delivery = await joined(self._replay, request, admitted)
            return self._reply(context, caller, order, delivery)
        generation = self._generations.start(admitted)
        await _until_done_or_left(request, generation, partial(self._generations.client_left, admitted))
        # A client that hangs up ends this wait, but not the generation.
        with with_headers(admitted.headers):
            delivery = await asyncio.shield(generation)
        return self._reply(context, caller, order, delivery)

    async def _accepted(
        self,
        request: Request,
        context: RequestContext,
        caller: Caller,
        order: Order,
        admitted: AdmittedOrder | Duplicate,
    ) -> Response:
        """Answer a long order at once: where its result will be, and what is held for it. Nothing is charged yet."""
        left = await request.is_disconnected()  # the next identical order receives it (rule 38)
        headers: Mapping[str, str]
        if isinstance(admitted, Duplicate):
            if left:
                await self._replay.client_left(admitted)
            order_id, headers = admitted.status.order_id, admitted.headers | {"idempotent-replayed": "true"}
            available_micro_mxn = admitted.available_micro_mxn
            document = await self._document_again(caller, order_id)
            context.facts["replay_of"] = public_id(order_id)
        else:
            await self._generations.take(admitted)
            self._generations.start(admitted)
            if left:
                await self._generations.client_left(admitted)
            order_id, headers, quote = admitted.order_id, admitted.headers, admitted.quote
            available_micro_mxn = admitted.available_micro_mxn
            created_s, held_micro_mxn = admitted.admitted_us // 1_000_000, quote.total_micro_mxn
            document = open_document(order_id, order.model_id, QUEUED, created_s, held_micro_mxn)
        context.facts["long"] = True
        if "held_mxn" in document:
            headers = {**headers, "x-geekhub-held-mxn": document["held_mxn"]}
        headers = {
            **headers,
            **balance_header(available_micro_mxn),
            **self._lifecycle.headers(order.model_id, order.model),
            "location": f"{PATH}/{public_id(order_id)}",
            "preference-applied": RESPOND_ASYNC,
            "retry-after": str(POLL_S),
            "cache-control": "no-store",
        }
        return Response(orjson.dumps(document), 202, headers, media_type="application/json")

    async def _document_again(self, caller: Caller, order_id: str) -> dict[str, Any]:
        """Say how an order stands that was placed before. If it is open it is gone on with, as it is told of now.

        Raises ApiError if it was void in this moment, so that it may be placed again.
        """
        document, error = await self._standing.of(caller, order_id)
        if document["status"] in OPEN and not await self._generations.tell(caller.org_id, order_id):
            document, error = await self._standing.of(caller, order_id)
        if error is not None and error.retry:
            raise error
        return document

    async def _caller(self, context: RequestContext, request: Request) -> Caller:
        """Authenticate. Raises ApiError, also if the gate is shut, before any of the body is read."""
        with step("authenticate"):
            caller = self._authenticator.known(request.headers)
            self._admissions.check_gate(request.scope.get("state", {}).get(HERE_SINCE_S))
            if caller is not None:
                return caller
            async with self._admissions.turn(context) as waited_s:
                context.wait(waited_s)
                return await self._authenticator.caller(request.headers)

    def _parse(
        self, context: RequestContext, caller: Caller, body: bytes, headers: Headers, *, long: bool
    ) -> tuple[Order, OrderIdentity]:
        """Read the order, by what is on offer now. Raises ApiError."""
        with step("parse"):
            order = parse_order(body, self._offer.catalogue, caller.response_format, tags_of(headers))
            check_webhook(order, self._webhook_hosts, long=long or caller.test)
            context.of(order, sandbox=caller.test)
            self._lifecycle.check(order.model_id, order.model)
            identity = identity_of(headers, order, caller.scope)
            context.told(keyed=identity.key_hash is not None, tries=tries_of(headers))
        return order, identity

    def _reply(self, context: RequestContext, caller: Caller, order: Order, delivery: Delivery) -> Response:
        result, charged_micro_mxn = delivery.result, 0 if delivery.replayed else delivery.result.cost_micro_mxn
        headers = {**delivery.headers, **self._lifecycle.headers(order.model_id, order.model)}
        if delivery.available_micro_mxn is not None:
            headers |= balance_header(delivery.available_micro_mxn)
        headers |= {"x-geekhub-cost-mxn": format_mxn(charged_micro_mxn)}
        context.facts |= {"images": len(result.images), "cost_mxn": format_mxn(charged_micro_mxn)}
        context.facts["bytes"] = sum(image.size_bytes for image in result.images)
        if delivery.replayed:
            headers |= {"idempotent-replayed": "true"}
            context.facts["replay_of"] = result.public_id
        if order.response_format == "b64_json":
            until_s = context.started_s + (order.model.deadline_s or self._limits.deadline_s)
            if delivery.replayed:
                return self._replies.replay_with_images(caller.org_id, result, headers, until_s)
            return self._replies.with_images(result, headers, until_s)
        return self._replies.with_urls(result, headers)


def identity_of(headers: Headers, order: Order, scope: str) -> OrderIdentity:
    """Read an order's identity from its headers. Raises ApiError 400 for an invalid idempotency key.

    `scope`: where the key must be unique. An SDK counts its own retries; a key from its user takes precedence over that
    count.
    """
    key_hash = idempotency_key(headers, scope)
    if key_hash is None:
        return OrderIdentity(fingerprint(order), tries=tries_of(headers))
    return OrderIdentity(fingerprint(order), key_hash=key_hash)


def tries_of(headers: Headers) -> int | None:
    """Read how often an SDK says that it has tried this order before; None if it does not count."""
    tries = headers.get("x-stainless-retry-count", "")
    return int(tries) if tries.isascii() and tries.isdigit() and len(tries) < 3 else None


async def joined(replay: Replay, request: Request, duplicate: Duplicate) -> Delivery:
    """Wait for a duplicate's result. Raises ApiError; then the order is left to the next identical one (rule 38)."""
    left = partial(replay.client_left, duplicate)
    joining = asyncio.create_task(replay.of(duplicate))
    try:
        with with_headers(duplicate.headers):
            await _until_done_or_left(request, joining, left)
            return await joining
    except Orphaned:
        raise
    except ApiError:
        with suppress(WalletAway):
            await left()
        raise
    finally:
        joining.cancel()


async def _until_done_or_left(
    request: Request, work: asyncio.Task[Delivery], left: Callable[[], Awaitable[None]]
) -> None:
    """Wait until the work is done or the client has hung up. Hanging up ends no work; `left` is called at once."""
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            context_of(request.scope).facts["client_gone"] = True
            with suppress(WalletAway):
                await left()
    finally:
        leaving.cancel()


async def _gone(request: Request) -> None:
    """Wait until the client has hung up. The body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
