"""An order that was placed before is given its result: joined while it is made, on whatever pod (rules 17, 18)."""

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
"""How often a request that joined an order asks how that stands; an image takes seconds."""

JOIN_RETRY_S = 5.0
"""A hint: the hold of an order whose gateway died runs out, and then its key is free."""

AWAY_RETRY_S = 1.0
"""Redis or the ledger gave no answer: they are back in a moment, or in minutes."""


class Orphaned(ApiError):
    """The gateway that makes the order is gone, so that nobody need wait for it."""


class Replay:
    """Without an idempotency key the result is given from the ledger only.

    As long as the charge is in Redis and a journal alone, a Redis that forgets would have it recorded at zero for a
    client that is gone (rule 19), and now it is not gone.
    """

    def __init__(self, wallet: Wallet, ledger: Ledger) -> None:
        self._wallet = wallet
        self._ledger = ledger

    async def of(self, duplicate: Duplicate) -> Delivery:
        """The result. Raises ApiError: the earlier order's own where that failed, 503 where there is no result yet."""
        try:
            return await self._result_of(duplicate)
        except (WalletAway, LedgerAway):
            raise ApiError(Kind.UNAVAILABLE, PLACED_BEFORE, retry_after_s=AWAY_RETRY_S) from None

    async def client_left(self, duplicate: Duplicate) -> None:
        """Who hangs up, or is told to come again, leaves it to the next that places the same (rule 38).

        Raises WalletAway.
        """
        order_id, asked_by = duplicate.status.request_id, duplicate.asked_by
        await self._wallet.client_gone(duplicate.caller, order_id, duplicate.identity, asked_by=asked_by)

    async def _result_of(self, duplicate: Duplicate) -> Delivery:
        org_id, status, until_s = duplicate.caller.org_id, duplicate.status, duplicate.until_s
        while status.end == "open":
            if time.monotonic() > until_s:
                raise ApiError(Kind.UNAVAILABLE, PLACED_BEFORE, retry_after_s=JOIN_RETRY_S)
            if not await self._wallet.is_alive(org_id, status.owner):
                raise Orphaned(Kind.UNAVAILABLE, PLACED_BEFORE, retry_after_s=JOIN_RETRY_S)
            await asyncio.sleep(JOIN_POLL_S)
            later = await self._wallet.status_of(org_id, status.request_id)
            if later is None:
                raise ApiError(Kind.UNAVAILABLE, PLACED_BEFORE, retry_after_s=AWAY_RETRY_S)
            status = later
        if status.end != "charge":
            raise reason_as_error(status.reason)
        keyed = duplicate.identity.key_hash is not None
        stored = await self._wallet.result(org_id, status.request_id) if keyed else None
        while stored is None:
            stored = await self._ledger.result(org_id, status.request_id)
            if stored is None:
                if time.monotonic() > until_s:
                    raise ApiError(Kind.UNAVAILABLE, PLACED_BEFORE, retry_after_s=JOIN_RETRY_S)
                await asyncio.sleep(JOIN_POLL_S)
        return Delivery(decode(stored), duplicate.available_micro_mxn, duplicate.headers, replayed=True)
