"""Duplicates get the first order's result; while it is being made they wait for it, on any pod (rules 17, 18)."""

import asyncio
import time

from metering.ports import Ledger, LedgerAway
from metering.wallet.connection import WalletAway
from metering.wallet.wallet import Wallet
from proxy.errors import ApiError, Kind
from proxy.messages import PLACED_BEFORE
from proxy.orders.admission import Duplicate
from proxy.orders.result import Delivery, decode
from proxy.outcomes import reason_as_error

JOIN_POLL_S = 0.2
"""Interval between two checks of a joined order; an image takes seconds."""

JOIN_RETRY_S = 5.0
"""A hint: the hold of an order whose gateway died expires, and then its key is free."""

AWAY_RETRY_S = 1.0
"""Pause while Redis or the ledger gives no answer: it may return in a moment, or in minutes."""


class Orphaned(ApiError):
    """The gateway that made the order is dead and nobody goes on with it, so nobody needs to wait for it."""


class Replay:
    """Finds the result of a duplicate. Without an idempotency key, it comes from the ledger only.

    There is a reason. While the charge is only in Redis and a journal, a Redis that forgets would make it zero, because
    the client is gone (rule 19). But now the client is there again.
    """

    def __init__(self, wallet: Wallet, ledger: Ledger) -> None:
        self._wallet = wallet
        self._ledger = ledger

    async def of(self, duplicate: Duplicate) -> Delivery:
        """Get the result. Raises ApiError: the first order's own if that failed, 503 if there is no result yet."""
        try:
            return await self._result_of(duplicate)
        except (WalletAway, LedgerAway):
            raise ApiError(Kind.UNAVAILABLE, PLACED_BEFORE, retry_after_s=AWAY_RETRY_S) from None

    async def client_left(self, duplicate: Duplicate) -> None:
        """Leave the result to the next identical order: this client hung up, or was told to retry (rule 38).

        Raises WalletAway.
        """
        order_id, asked_by = duplicate.status.order_id, duplicate.asked_by
        await self._wallet.client_gone(duplicate.caller, order_id, duplicate.identity, asked_by=asked_by)

    async def _result_of(self, duplicate: Duplicate) -> Delivery:
        org_id, status, until_s = duplicate.caller.org_id, duplicate.status, duplicate.until_s
        while status.end == "open":
            if time.monotonic() > until_s:
                raise ApiError(Kind.UNAVAILABLE, PLACED_BEFORE, retry_after_s=JOIN_RETRY_S)
            later = await self._wallet.status_of(org_id, status.order_id)
            if later is None:
                raise ApiError(Kind.UNAVAILABLE, PLACED_BEFORE, retry_after_s=AWAY_RETRY_S)
            status = later
            if status.end == "open":
                # A long order whose gateway has gone is gone on with by another one.
                if not status.long and not await self._wallet.is_alive(org_id, status.owner):
                    raise Orphaned(Kind.UNAVAILABLE, PLACED_BEFORE, retry_after_s=JOIN_RETRY_S)
                await asyncio.sleep(JOIN_POLL_S)
        if status.end != "charge":
            raise reason_as_error(status.reason)
        keyed = duplicate.identity.key_hash is not None
        stored = await self._wallet.result(org_id, status.order_id) if keyed else None
        while stored is None:
            stored = await self._ledger.result(org_id, status.order_id)
            if stored is None:
                if time.monotonic() > until_s:
                    raise ApiError(Kind.UNAVAILABLE, PLACED_BEFORE, retry_after_s=JOIN_RETRY_S)
                await asyncio.sleep(JOIN_POLL_S)
        return Delivery(decode(stored), duplicate.available_micro_mxn, duplicate.headers, replayed=True)
