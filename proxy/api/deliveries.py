"""Delivered generations, fetched again: GET /v1/images/generations, one by its id, and the list."""

from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from metering.ports import LAST, Delivered, Ledger, LedgerAway, ResultKey
from metering.wallet.connection import WalletAway
from metering.wallet.values import Caller
from metering.wallet.wallet import Wallet
from proxy.api.auth import Authenticator
from proxy.api.credits import checked
from proxy.api.operation import ORDER_EXAMPLE, Operation, Tag, WholeNumber
from proxy.api.pages import MOST, USUAL, BadCursor, cursor_of, page_of, text_of
from proxy.api.reads import Read, ReadRates
from proxy.api.replies import Replies
from proxy.api.requests import bad_cursor, language_of, page_query
from proxy.api.schemas import Found, Generation
from proxy.errors import ApiError, Kind, wallet_away
from proxy.messages import (
    CHARGED_NOT_BOOKED,
    NO_GENERATION,
    RAN_OUT,
    Language,
    translated,
)
from proxy.orders.order import key_hash, result_document
from proxy.orders.result import decode, public_id
from proxy.outcomes import reason_as_error

BOOKED_RETRY_S = 1.0
"""About the time that the consumer needs to book an order."""

MAX_CURSOR = 128
"""The most characters of a cursor; ours have about 80."""


class HistoryQuery(BaseModel):
    """Which of the organisation's generations."""

    model_config = ConfigDict(extra="forbid")

    idempotency_key: Annotated[str | None, Field(description="The one that was placed under it.")] = None
    limit: WholeNumber = Field(USUAL, ge=1, le=MOST, description="At most so many.")
    after: Annotated[str | None, Field(max_length=MAX_CURSOR, description="`next_cursor` of the page before.")] = None


class HistoryEndpoint:
    """Shows only what the caller's key may read, as if nothing else existed; the key is checked at each request."""

    def __init__(
        self, authenticator: Authenticator, wallet: Wallet, ledger: Ledger, replies: Replies, rates: ReadRates
    ) -> None:
        self._authenticator = authenticator
        self._wallet = wallet
        self._ledger = ledger
        self._replies = replies
        self._rates = rates

    def operations(self) -> Sequence[Operation]:
        """Return the operations: the list, and one generation."""
        return [
            Operation(
                id="list_generations",
                tag=Tag.IMAGES,
                method="GET",
                path="/v1/images/generations",
                handler=self.list,
                summary="What was delivered, the latest first",
                reply=Found,
                query=HistoryQuery,
                reply_headers=("vary", "content-language"),
                errors=(Kind.INVALID_REQUEST, Kind.NO_GENERATION, Kind.RATE_LIMIT),
            ),
            Operation(
                id="get_generation",
                tag=Tag.IMAGES,
                method="GET",
                path="/v1/images/generations/{id}",
                handler=self.one,
                summary="How an order stands",
                reply=Generation,
                examples={"id": ORDER_EXAMPLE},
                reply_headers=("vary", "content-language"),
                errors=(Kind.NO_GENERATION, Kind.RATE_LIMIT),
            ),
        ]

    async def one(self, request: Request) -> Response:
        """Answer with the generation whose reply had this id, or would have had it."""
        try:
            caller = await self._caller(request)
            return await self._generation(request, caller, _uuid(request.path_params["id"]))
        except (WalletAway, LedgerAway):
            raise wallet_away() from None

    async def list(self, request: Request) -> Response:
        """List generations, the latest first, page by page; with `idempotency_key`, only the one placed under it."""
        try:
            caller = await self._caller(request)
            query = page_query(HistoryQuery, request)
            if query.idempotency_key is not None:
                hashed = key_hash(query.idempotency_key, caller.scope)
                order_id = await self._wallet.order_of_key(caller.org_id, hashed)
                if order_id is None:
                    raise _unknown()
                return await self._generation(request, caller, UUID(order_id))
            found = await self._ledger.results(caller.org_id, _key(query.after), query.limit + 1, caller.reads)
        except (WalletAway, LedgerAway):
            raise wallet_away() from None
        page, cursor = page_of(found, query.limit, lambda one: _cursor(one.key))
        rows = [self._completed(one.delivered) for one in page]
        return _json({"object": "list", "data": rows, "has_more": cursor is not None, "next_cursor": cursor})

    async def _caller(self, request: Request) -> Caller:
        caller, _ = await checked(request, self._authenticator, self._wallet, self._rates, Read.HISTORY)
        return caller

    def _completed(self, delivered: Delivered) -> dict[str, Any]:
        result = decode(delivered)
        return result_document(result, self._replies.items(result)) | {"status": "completed"}

    async def _generation(self, request: Request, caller: Caller, order_id: UUID) -> Response:
        for _ in range(2):  # it may end between the two reads
            if (delivered := await self._delivered(caller, str(order_id))) is not None:
                return _json(self._completed(delivered))
            status = await self._wallet.status_of(caller.org_id, str(order_id))
            if status is None or not caller.may_read(status.key_id):
                raise _unknown()
            if status.end != "charge":
                break
        else:
            raise ApiError(Kind.UNAVAILABLE, CHARGED_NOT_BOOKED, retry_after_s=BOOKED_RETRY_S)
        known_as = public_id(str(order_id))
        row = {"id": known_as, "object": "list", "data": []}
        if status.end == "open":
            return _json(row | {"status": "in_progress"})
        error = ApiError(Kind.END_UNKNOWN, RAN_OUT) if status.end == "expiry" else reason_as_error(status.reason)
        wanted = language_of(request.headers)
        envelope = orjson.loads(error.body(known_as, wanted))
        return _json(row | {"status": "failed"} | envelope, translated(error.message, wanted)[1])

    async def _delivered(self, caller: Caller, order_id: str) -> Delivered | None:
        """Find a delivered order. Redis has it first, but may not know who placed it; the ledger does."""
        for kept in (self._wallet, self._ledger):
            found = await kept.result(caller.org_id, order_id)
            if found is not None and caller.may_read(found.key_id):
                return found
        return None


def _json(document: dict[str, Any], language: Language | None = None) -> Response:
    """Build a JSON reply; `language` is that of an error in it."""
    headers = {"vary": "accept-language"} | ({"content-language": language} if language is not None else {})
    return Response(orjson.dumps(document), media_type="application/json", headers=headers)


def _uuid(known_as: str) -> UUID:
    digits = known_as.removeprefix("req_")
    if len(digits) == 32 and known_as.startswith("req_") and set(digits) <= set("0123456789abcdef"):
        return UUID(digits)
    raise _unknown()


def _cursor(key: ResultKey) -> str:
    return cursor_of(f"{key.ended_us} {key.order_id}")


def _key(cursor: str | None) -> ResultKey | None:
    """Parse the cursor at which a page begins. Raises ApiError 400 if it is no cursor of ours."""
    if cursor is None:
        return None
    try:
        ended_us, _, order_id = text_of(cursor).partition(" ")
        key = ResultKey(int(ended_us), str(UUID(order_id)))
    except (BadCursor, ValueError):
        raise bad_cursor() from None
    if _cursor(key) != cursor or not 0 <= key.ended_us <= LAST:
        raise bad_cursor()
    return key


def _unknown() -> ApiError:
    return ApiError(Kind.NO_GENERATION, NO_GENERATION)
