"""Journals of gateways that are gone: every order that they answered 200 is charged, and then they are closed."""

import asyncio
from collections.abc import Sequence

import structlog

from metering.answered import Answered, standing
from metering.answers import BATCH, Unproven, booked_of, charge
from metering.clock import utc_now
from metering.frames import Past
from metering.ports import Ledger, LedgerAway
from metering.wallet.connection import WalletAway
from metering.wallet.wallet import Replay, Wallet

log = structlog.get_logger(__name__)

PAUSE_S = 0.5
"""Between two looks at what the consumer has booked by now."""


class Recovery:
    """Brings dead incarnations to their end, however long Redis, the ledger or the consumer are away.

    `left` counts what is not done: orders that the ledger does not have, and journals that are not closed.
    """

    def __init__(self, past: Sequence[Past], wallet: Wallet, ledger: Ledger) -> None:
        self._wallet = wallet
        self._ledger = ledger
        self._open = [(one, standing([entry.data for entry in one.entries])) for one in past]
        self.orders = sum(len(orders) for _, orders in self._open)
        self.charged = 0

    @property
    def left(self) -> int:
        """Orders and journals."""
        return sum(1 + len(orders) for _, orders in self._open)

    async def run(self) -> None:
        """Until all of them are closed."""
        while self._open:
            if why := await self.round():
                log.warning("journal_waits", left=self.left, why=why)
            await asyncio.sleep(PAUSE_S)

    async def round(self) -> str:
        """One look at the oldest; returns what it waits for. Replaying twice, or twice at once, changes nothing."""
        past, orders = self._open[0]
        try:
            left = await self._unbooked(orders)
            orders[:] = left
            for order in left:
                done = await charge(order, self._wallet, self._ledger)
                self.charged += done is Replay.NOW
                if done is Replay.SERVED:
                    orders.remove(order)
            if orders:
                return "the consumer has not booked them yet"
            await self._ledger.close_incarnation(past.incarnation, past.last_number, utc_now())
        except (WalletAway, LedgerAway, Unproven) as error:
            return str(error) or type(error).__name__
        for file in past.files:
            file.unlink(missing_ok=True)
        self._open.pop(0)
        log.warning("journal_replayed", incarnation=str(past.incarnation), charged=self.charged)
        return ""

    async def _unbooked(self, orders: list[Answered]) -> list[Answered]:
        left: list[Answered] = []
        for start in range(0, len(orders), BATCH):
            batch = orders[start : start + BATCH]
            booked = await booked_of([order.request_id for order in batch], self._ledger)
            left += [order for order in batch if order.request_id not in booked]
        return left
