"""How an order stands, as its customer is told: by Redis while it is open, by Redis or the ledger after its end."""

from typing import Any
from uuid import UUID

from metering.events import CANCELLED
from metering.ports import Delivered, Ledger
from metering.wallet.values import Caller
from metering.wallet.wallet import Wallet
from proxy.api.replies import Replies
from proxy.errors import ApiError, Kind
from proxy.messages import CHARGED_NOT_BOOKED, NO_GENERATION, RAN_OUT
from proxy.orders.order import GENERATION, open_document, result_document
from proxy.orders.result import decode, public_id
from proxy.outcomes import reason_as_error

BOOKED_RETRY_S = 1.0
"""About the time that the consumer needs to book an order."""

POLL_S = 3
"""When a client may ask again for an order that is being made. Most take more than ten seconds."""

QUEUED, IN_PROGRESS = OPEN = ("queued", "in_progress")
"""States of an order that has not ended."""


class Standing:
    """Tells only what the caller's key may read, as if nothing else existed."""

    def __init__(self, wallet: Wallet, ledger: Ledger, replies: Replies) -> None:
        self._wallet = wallet
        self._ledger = ledger
        self._replies = replies

    async def of(self, caller: Caller, order_id: str) -> tuple[dict[str, Any], ApiError | None]:
        """Say how an order stands, and the error that it would have had if somebody had waited for it.

        Raises ApiError 404, WalletAway, LedgerAway.
        """
        for _ in range(2):  # it may end between the two reads
            if (delivered := await self._delivered(caller, order_id)) is not None:
                return self.completed(delivered), None
            status = await self._wallet.status_of(caller.org_id, order_id)
            if status is None or not caller.may_read(status.key_id):
                raise unknown()
            if status.end != "charge":
                break
        else:
            raise ApiError(Kind.UNAVAILABLE, CHARGED_NOT_BOOKED, retry_after_s=BOOKED_RETRY_S)
        if status.end == "open":
            state = QUEUED if status.long and not status.begun else IN_PROGRESS
            created_s = status.admitted_us // 1_000_000
            return open_document(order_id, status.model, state, created_s, status.held_micro_mxn), None
        ended = {"id": public_id(order_id), "object": GENERATION, "data": []}
        if status.end == "expiry":
            return ended | {"status": "expired"}, ApiError(Kind.END_UNKNOWN, RAN_OUT)
        if status.reason == CANCELLED:
            return ended | {"status": "cancelled"}, None
        return ended | {"status": "failed"}, reason_as_error(status.reason)

    def completed(self, delivered: Delivered) -> dict[str, Any]:
        """Build the document of a delivered order."""
        result = decode(delivered)
        return result_document(result, self._replies.items(result)) | {"status": "completed"}

    async def _delivered(self, caller: Caller, order_id: str) -> Delivered | None:
        """Find a delivered order. Redis has it first, but may not know who placed it; the ledger does."""
        for kept in (self._wallet, self._ledger):
            found = await kept.result(caller.org_id, order_id)
            if found is not None and caller.may_read(found.key_id):
                return found
        return None


def order_id_of(known_as: str) -> str:
    """Read an order's id as its customer knows it. Raises ApiError 404 for any other text."""
    digits = known_as.removeprefix("req_")
    if len(digits) == 32 and known_as.startswith("req_") and set(digits) <= set("0123456789abcdef"):
        return str(UUID(digits))
    raise unknown()


def unknown() -> ApiError:
    """Build the 404 for an order that the caller may not read, or that nobody placed."""
    return ApiError(Kind.NO_GENERATION, NO_GENERATION)
