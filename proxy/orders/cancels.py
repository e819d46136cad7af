"""Cancelling a long order: before a provider has it, or when its providers confirm that they have stopped."""

import asyncio
import time
from collections.abc import Mapping

from redis.exceptions import RedisError

from metering.events import CANCELLED
from metering.pauses import Pauses
from metering.wallet.connection import WalletAway
from metering.wallet.long_orders import Cancel, LongOrders, Part
from metering.wallet.wallet import Wallet
from proxy.errors import ApiError, Kind
from proxy.messages import NOT_CANCELLED_AWAITED, NOT_CANCELLED_ENDED, NOT_CANCELLED_RUNS, Text
from proxy.orders.result import public_id
from proxy.ports import Cancels

CONFIRM_S = 5.0
"""How long a cancel waits for its providers' confirmation: a job's status is read every 1.5 s at least."""

LOOK_S = 0.25
"""Pause between two looks at the order meanwhile."""


class Cancellations:
    """Cancels orders. `providers` are those whose jobs can be cancelled."""

    def __init__(self, orders: LongOrders, wallet: Wallet, providers: Mapping[str, Cancels]) -> None:
        self._orders = orders
        self._wallet = wallet
        self._providers = providers

    async def cancel(self, org_id: str, order_id: str) -> None:
        """Cancel an order; when this returns it is void. Raises ApiError 409, WalletAway.

        It may still turn out to be cancelled after a 409: its providers are asked, and may confirm it later.
        """
        until_s = time.monotonic() + CONFIRM_S
        async for _ in Pauses(LOOK_S, until_s=until_s):
            answer, parts = await self._ask(org_id, order_id)
            match answer:
                case Cancel.CANCELLED:
                    return None
                case Cancel.AWAY:
                    raise WalletAway
                case Cancel.ENDED:
                    raise _not(order_id, NOT_CANCELLED_ENDED)
                case Cancel.AWAITED:
                    raise _not(order_id, NOT_CANCELLED_AWAITED)
                case Cancel.RUNS:  # a job that is being submitted has a handle in a moment, if it will ever have one
                    if not all(part.provider in self._providers for part in parts):
                        break
                case Cancel.ASKED:
                    known = [part for part in parts if part.provider in self._providers]
                    asked = [(self._providers[part.provider], part.handle) for part in known]
                    await asyncio.gather(*(provider.cancel_job(handle) for provider, handle in asked))
                    return await self._confirmed(org_id, order_id, until_s)
        raise _not(order_id, NOT_CANCELLED_RUNS)

    async def _ask(self, org_id: str, order_id: str) -> tuple[Cancel, tuple[Part, ...]]:
        try:
            wallet = self._wallet
            return await self._orders.cancel(org_id, order_id, wallet.remember_s, wallet.max_unpaid_micro_mxn)
        except (RedisError, OSError, TimeoutError) as error:
            raise WalletAway(type(error).__name__) from error

    async def _confirmed(self, org_id: str, order_id: str, until_s: float) -> None:
        """Wait until the order has ended: its owner reads what became of its jobs."""
        async for _ in Pauses(LOOK_S, until_s=until_s):
            status = await self._wallet.status_of(org_id, order_id)
            if status is None or status.end == "open":
                continue
            if status.reason == CANCELLED:
                return
            raise _not(order_id, NOT_CANCELLED_ENDED)
        raise _not(order_id, NOT_CANCELLED_RUNS)


def _not(order_id: str, why: Text) -> ApiError:
    return ApiError(Kind.NOT_CANCELLED, why.of(where=f"GET /v1/images/generations/{public_id(order_id)}"))
