"""Delivered generations, fetched again: GET /v1/images/generations, one by its id, and the list."""

from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from metering.ports import LAST, Ledger, LedgerAway, ResultKey
from metering.wallet.connection import WalletAway
from metering.wallet.values import Caller
from metering.wallet.wallet import Wallet
from proxy.api.auth import Authenticator
from proxy.api.credits import checked
from proxy.api.operation import ORDER_EXAMPLE, Operation, Tag, WholeNumber
from proxy.api.pages import MOST, USUAL, BadCursor, cursor_of, page_of, text_of
from proxy.api.reads import Read, ReadRates
from proxy.api.requests import bad_cursor, language_of, page_query
from proxy.api.schemas import Found, Generation
from proxy.api.standing import OPEN, POLL_S, Standing, order_id_of, unknown
from proxy.errors import Kind, wallet_away
from proxy.messages import (
    Language,
    translated,
)
from proxy.orders.order import key_hash

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
        self, authenticator: Authenticator, wallet: Wallet, ledger: Ledger, standing: Standing, rates: ReadRates
    ) -> None:
        self._authenticator = authenticator
        self._wallet = wallet
        self._ledger = ledger
        self._standing = standing
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
            return await self._generation(request, caller, order_id_of(request.path_params["id"]))
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
                    raise unknown()
                return await self._generation(request, caller, order_id)
            found = await self._ledger.results(caller.org_id, _key(query.after), query.limit + 1, caller.reads)
        except (WalletAway, LedgerAway):
            raise wallet_away() from None
        page, cursor = page_of(found, query.limit, lambda one: _cursor(one.key))
        rows = [self._standing.completed(one.delivered) for one in page]
        return _json({"object": "list", "data": rows, "has_more": cursor is not None, "next_cursor": cursor})

    async def _caller(self, request: Request) -> Caller:
        caller, _ = await checked(request, self._authenticator, self._wallet, self._rates, Read.HISTORY)
        return caller

    async def _generation(self, request: Request, caller: Caller, order_id: str) -> Response:
        document, error = await self._standing.of(caller, order_id)
        if document["status"] in OPEN:
            return _json(document, retry_after_s=POLL_S)
        if error is None:
            return _json(document)
        wanted = language_of(request.headers)
        envelope = orjson.loads(error.body(document["id"], wanted))
        return _json(document | envelope, translated(error.message, wanted)[1])


def _json(document: dict[str, Any], language: Language | None = None, *, retry_after_s: int | None = None) -> Response:
    """Build a JSON reply; `language` is that of an error in it, `retry_after_s` when to ask again."""
    headers = {"vary": "accept-language"} | ({"content-language": language} if language is not None else {})
    if retry_after_s is not None:
        headers |= {"retry-after": str(retry_after_s), "cache-control": "no-store"}
    return Response(orjson.dumps(document), media_type="application/json", headers=headers)


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
