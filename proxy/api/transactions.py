"""GET /v1/credits/transactions: an organisation's money in and out, page by page."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from metering.money import format_mxn
from metering.ports import LAST, Credit, CreditKey, Ledger, LedgerAway
from metering.wallet.wallet import Wallet
from proxy.api.auth import Authenticator
from proxy.api.balances import corrected, tax_fields
from proxy.api.credits import checked
from proxy.api.operation import Operation, Tag, WholeNumber
from proxy.api.pages import MOST, USUAL, BadCursor, cursor_of, page_of, text_of
from proxy.api.reads import Read, ReadRates
from proxy.api.requests import bad_cursor, page_query
from proxy.api.schemas import Transactions
from proxy.errors import Kind, wallet_away
from proxy.orders.result import public_id

MAX_CURSOR = 64
"""The most characters of a cursor; ours have about 50."""


class TransactionsQuery(BaseModel):
    """Which part of the list."""

    model_config = ConfigDict(extra="forbid")

    limit: WholeNumber = Field(USUAL, ge=1, le=MOST, description="At most so many.")
    after: Annotated[str | None, Field(max_length=MAX_CURSOR, description="`next_cursor` of the page before.")] = None


class TransactionsEndpoint:
    """Recharges, bonuses, refunds, adjustments and chargebacks, from the ledger.

    The sandbox has none; for a key that reads its own orders only there is none: they are its organisation's.
    """

    def __init__(self, authenticator: Authenticator, wallet: Wallet, ledger: Ledger, rates: ReadRates) -> None:
        self._authenticator = authenticator
        self._wallet = wallet
        self._ledger = ledger
        self._rates = rates

    def operations(self) -> Sequence[Operation]:
        """Return the operation of the list."""
        return [
            Operation(
                id="list_credit_transactions",
                tag=Tag.ACCOUNT,
                method="GET",
                path="/v1/credits/transactions",
                handler=self.list,
                summary="Money in and out, the latest first",
                reply=Transactions,
                query=TransactionsQuery,
                errors=(Kind.INVALID_REQUEST, Kind.RATE_LIMIT),
            )
        ]

    async def list(self, request: Request) -> Response:
        """Answer GET /v1/credits/transactions."""
        caller, _ = await checked(request, self._authenticator, self._wallet, self._rates, Read.CREDITS)
        query = page_query(TransactionsQuery, request)
        before = _before(caller.org_id, query.after)
        found: Sequence[Credit] = []
        if not caller.test and caller.reads is None:
            try:
                found = await self._ledger.credits(caller.org_id, before, query.limit + 1)
            except LedgerAway:
                raise wallet_away() from None
        page, more = page_of(found, query.limit, lambda one: cursor_of(f"{one.number} {one.at}"))
        document = {
            "object": "list",
            "currency": "MXN",
            "data": [_transaction(one) for one in page],
            "has_more": more is not None,
            "next_cursor": more,
        }
        return Response(orjson.dumps(document), media_type="application/json")


def _transaction(credit: Credit) -> dict[str, Any]:
    new = credit.new
    return {
        "id": new.credit_id,
        "object": "credit_transaction",
        "type": new.type,
        "mxn": format_mxn(new.amount_micro_mxn),
        "created": int(datetime.fromisoformat(credit.at).timestamp()),
        "order": None if new.order_id is None else public_id(new.order_id),
        "recharge": new.recharge_id,
        "corrects": corrected(new.corrects),
        "reason": new.reason,
        **tax_fields(new.tax),
        "balance_mxn": None if credit.balance_micro_mxn is None else format_mxn(credit.balance_micro_mxn),
        "cfdi": credit.facts.get("cfdi"),
    }


def _before(org_id: str, cursor: str | None) -> CreditKey | None:
    """Parse the cursor at which a page begins. Raises ApiError 400 if it is no cursor of ours."""
    if cursor is None:
        return None
    try:
        number, _, at = text_of(cursor).partition(" ")
        key = CreditKey(datetime.fromisoformat(at).isoformat(), org_id, int(number))
    except (BadCursor, ValueError):
        raise bad_cursor() from None
    if not 0 < key.number <= LAST or cursor_of(f"{key.number} {key.at}") != cursor:
        raise bad_cursor()
    return key
