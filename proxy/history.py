"""What an organisation was delivered, fetched again: GET /v1/images/generations, one by its id, and the list."""

from typing import Annotated, Any
from uuid import UUID

import orjson
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from metering.ports import Delivered, Ledger, LedgerAway
from metering.wallet.connection import WalletAway
from metering.wallet.wallet import Wallet
from proxy.auth import Authenticator, check_state
from proxy.errors import ApiError, Kind, wallet_away
from proxy.middleware import context_of
from proxy.operations import WholeNumber
from proxy.outcomes import reason_as_error
from proxy.reads import Read, ReadRates
from proxy.replies import Replies
from proxy.results import decode
from proxy.wire import key_hash, result_document

CHARGED_NOT_BOOKED = "This order is charged, and its images are not in the ledger yet: ask again."

BOOKED_RETRY_S = 1.0
"""The consumer takes about so long."""

RAN_OUT = (
    "No answer to this order is known. It is charged only if its gateway had answered it, and then its images are here"
    " as soon as that gateway's journal is read."
)

USUAL, MOST = 20, 100
"""Of a list."""


class HistoryQuery(BaseModel):
    """Which of the organisation's generations."""

    idempotency_key: Annotated[str | None, Field(description="The one that was placed under it.")] = None
    limit: WholeNumber = Field(USUAL, ge=1, le=MOST, description="At most so many.")


class HistoryEndpoint:
    """Only what is the caller's own; its key is checked at this moment."""

    def __init__(
        self, authenticator: Authenticator, wallet: Wallet, ledger: Ledger, replies: Replies, rates: ReadRates
    ) -> None:
        self._authenticator = authenticator
        self._wallet = wallet
        self._ledger = ledger
        self._replies = replies
        self._rates = rates

    async def one(self, request: Request) -> Response:
        """By the id that its reply had, or would have had."""
        try:
            org_id = await self._org(request)
            return _json(await self._generation(org_id, _uuid(request.path_params["id"])))
        except (WalletAway, LedgerAway):
            raise wallet_away() from None

    async def list(self, request: Request) -> Response:
        """The latest first; or, with `idempotency_key`, the one that was placed under it."""
        try:
            org_id = await self._org(request)
            query = _query(request)
            if query.idempotency_key is not None:
                request_id = await self._wallet.under_key(org_id, key_hash(query.idempotency_key))
                if request_id is None:
                    raise _unknown()
                return _json(await self._generation(org_id, UUID(request_id)))
            found = await self._ledger.results(org_id, query.limit)
        except (WalletAway, LedgerAway):
            raise wallet_away() from None
        results = [decode(delivered) for delivered in found]
        rows = [_completed(result_document(result, self._replies.items(result))) for result in results]
        return _json({"object": "list", "data": rows})

    async def _org(self, request: Request) -> str:
        caller = await self._authenticator.caller(request.headers)
        context_of(request.scope).facts |= {"org": caller.org_id, "key": caller.key_id}
        check_state((await self._wallet.read(caller.org_id, caller.key_id)).key_state)
        self._rates.take(caller.org_id, Read.HISTORY)
        return caller.org_id

    async def _generation(self, org_id: str, request_id: UUID) -> dict[str, Any]:
        for _ in range(2):  # it may end between the two questions
            if (delivered := await self._delivered(org_id, str(request_id))) is not None:
                result = decode(delivered)
                return _completed(result_document(result, self._replies.items(result)))
            stands = await self._wallet.stands(org_id, str(request_id))
            if stands is None:
                raise _unknown()
            if stands.end != "charge":
                break
        else:
            raise ApiError(Kind.UNAVAILABLE, CHARGED_NOT_BOOKED, retry_after_s=BOOKED_RETRY_S)
        row = {"id": f"req_{request_id.hex}", "object": "list", "data": []}
        if stands.end == "open":
            return row | {"status": "in_progress"}
        error = ApiError(Kind.END_UNKNOWN, RAN_OUT) if stands.end == "expiry" else reason_as_error(stands.reason)
        return row | {"status": "failed", "error": orjson.loads(error.body(f"req_{request_id.hex}"))["error"]}

    async def _delivered(self, org_id: str, request_id: str) -> Delivered | None:
        return await self._wallet.result(org_id, request_id) or await self._ledger.result(org_id, request_id)


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    return document | {"status": "completed"}


def _json(document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")


def _uuid(public_id: str) -> UUID:
    digits = public_id.removeprefix("req_")
    if len(digits) == 32 and public_id.startswith("req_") and set(digits) <= set("0123456789abcdef"):
        return UUID(digits)
    raise _unknown()


def _query(request: Request) -> HistoryQuery:
    try:
        return HistoryQuery.model_validate(dict(request.query_params))
    except ValidationError:  # the other parameter is any text
        message = f"`limit` must be an integer from 1 to {MOST}."
        raise ApiError(Kind.INVALID_REQUEST, message, param="limit") from None


def _unknown() -> ApiError:
    return ApiError(Kind.NO_GENERATION, "Your organisation has no such generation.")
