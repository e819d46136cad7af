"""POST /v1/images/generations?dry_run=true: the most that an order can cost, before it is placed. It takes nothing."""

from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from metering.money import format_mxn
from metering.pricing import Quote
from metering.wallet.connection import WalletAway
from metering.wallet.values import Admission, RateState, Verdict
from metering.wallet.wallet import Wallet
from proxy.api.auth import Authenticator
from proxy.api.credits import checked
from proxy.api.middleware import context_of
from proxy.api.reads import Read, ReadRates
from proxy.api.requests import (
    RequestLimits,
    check_webhook,
    idempotency_key,
    language_of,
    read_body,
    responds_async,
    tags_of,
)
from proxy.errors import ApiError, Kind, wallet_away
from proxy.messages import ONE_OF, TWICE, UNKNOWN_PARAMETER, translated
from proxy.offer import Offer
from proxy.orders.admission import Admissions
from proxy.orders.lifecycle import Lifecycle
from proxy.orders.order import parse_order
from proxy.orders.refusals import balance_header, key_refused, rate_headers
from proxy.ports import Order
from proxy.webhooks.targets import WebhookHosts

NAME = "dry_run"


class OrderQuery(BaseModel):
    """The query of an order."""

    dry_run: Annotated[
        Literal["true", "false"] | None,
        Field(description="With `true`, nothing is ordered: the reply says what the order would cost at most."),
    ] = None


def is_dry_run(request: Request) -> bool:
    """Read the query of an order. Raises ApiError 400 for any other parameter: a misspelt one would buy pictures."""
    if not request.scope.get("query_string"):
        return False
    given = request.query_params.multi_items()
    for name, _ in given:
        if name != NAME:
            message = UNKNOWN_PARAMETER.of(name=name[:64], known=f"`{NAME}`")
            raise ApiError(Kind.INVALID_REQUEST, message, param=name[:64])
    if len(given) > 1:
        raise ApiError(Kind.INVALID_REQUEST, TWICE.of(name=NAME), param=NAME)
    if any(value not in ("true", "false") for _, value in given):
        raise ApiError(Kind.INVALID_REQUEST, ONE_OF.of(name=NAME, values="true, false"), param=NAME)
    return (NAME, "true") in given


class DryRuns:
    """Answers dry runs: no hold, no rate, no idempotency record, no event, no picture; not even for a test key."""

    def __init__(
        self,
        authenticator: Authenticator,
        wallet: Wallet,
        offer: Offer,
        lifecycle: Lifecycle,
        admissions: Admissions,
        reads: ReadRates,
        limits: RequestLimits,
        webhook_hosts: WebhookHosts | None,
    ) -> None:
        self._authenticator = authenticator
        self._wallet = wallet
        self._offer = offer
        self._lifecycle = lifecycle
        self._admissions = admissions
        self._reads = reads
        self._limits = limits
        self._webhook_hosts = webhook_hosts

    async def answer(self, request: Request) -> Response:
        """Answer one dry run. Raises ApiError as the order would, unless it is for a limit or for the balance."""
        context = context_of(request.scope)
        context.facts["dry_run"] = True
        caller, _ = await checked(request, self._authenticator, self._wallet, self._reads, Read.DRY_RUNS)
        body, tags = await read_body(request, self._limits), tags_of(request.headers)
        order = parse_order(body, self._offer.catalogue, caller.response_format, tags)
        long = responds_async(request.headers)
        check_webhook(order, self._webhook_hosts, long=long or caller.test)
        idempotency_key(request.headers)
        context.facts["model"] = order.model_id
        self._lifecycle.check(order.model_id, order.model)
        if caller.models and order.model_id not in caller.models:
            raise key_refused(Verdict.MODEL, order.model_id) or wallet_away()
        if caller.test:  # its orders cost nothing and have no balance; the price is what a live one would cost
            quote = self._admissions.quote(caller.org_id, order)
            return _reply(self._document(order, quote, long=False), balance_header(0))
        try:
            forecast = await self._admissions.forecast(caller, order, context.order_id, long=long)
        except WalletAway:
            raise wallet_away() from None
        admission, denial = forecast.admission, forecast.denial
        document = self._document(order, forecast.quote, long=long) | _standing(admission)
        if denial is not None:
            document |= {"admitted": False, "refusal": _refusal(denial, request.headers)}
        return _reply(document, rate_headers(admission) | balance_header(admission.available_micro_mxn))

    def _document(self, order: Order, quote: Quote, *, long: bool) -> dict[str, Any]:
        """Say what the order would cost, as if it were admitted and nobody counted."""
        quoted, tokens = (
            order.model.quoted(order.size, order.quality),
            order.model.most_tokens(order.size, order.quality),
        )
        return {
            "object": "dry_run",
            "model": order.model_id,
            "n": order.n,
            "size": order.size,
            "quality": order.quality,
            "cost_mxn": format_mxn(quote.total_micro_mxn),
            "cost_mxn_per_image": format_mxn(quote.unit_micro_mxn),
            "at_most": quoted is not None and quoted.measured,
            "tokens": {"input": tokens[0], "output": tokens[1]} if tokens is not None else None,
            "deadline_s": self._admissions.deadline_s(order, long=long),
            "admitted": True,
            "refusal": None,
            "limits": None,
            "available_mxn": None,
        }


def _standing(admission: Admission) -> dict[str, Any]:
    return {
        "limits": {"requests": _left(admission.requests), "images": _left(admission.images)},
        "available_mxn": format_mxn(admission.available_micro_mxn),
    }


def _left(state: RateState) -> dict[str, int]:
    return {"limit": state.limit, "remaining": max(0, state.remaining)}


def _refusal(denial: ApiError, headers: Headers) -> dict[str, str]:
    message, _ = translated(denial.message, language_of(headers))
    return {"code": denial.kind.value.code, "message": message}


def _reply(document: dict[str, Any], headers: dict[str, str]) -> Response:
    headers = headers | {"x-geekhub-cost-mxn": format_mxn(0)}  # of what was done, as in every reply
    return Response(orjson.dumps(document), media_type="application/json", headers=headers)
