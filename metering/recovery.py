"""Journals of gateways that are gone: every order that they answered 200 is charged, and then they are closed."""

import asyncio
from collections.abc import Sequence

import structlog

from metering.answered import Answered, standing
from metering.answers import BATCH, Unproven, booked_of, charge
from metering.clock import utc_now
from metering.journal import Past
from metering.ports import Ledger, LedgerAway
from metering.wallet.connection import WalletAway
from metering.wallet.wallet import Wallet

log = structlog.get_logger(__name__)

PAUSE_S = 0.5
"""Between two looks at what the consumer has booked by now."""


class Recovery:
    """Brings dead incarnations to their end, however long Redis, the ledger or the consumer are away."""

    def __init__(self, past: Sequence[Past], wallet: Wallet, ledger: Ledger) -> None:
        self._past = list(past)
        self._wallet = wallet
        self._ledger = ledger

    async def run(self) -> None:
        """Until all of them are closed."""
        while self._past:
            try:
                await self._round(self._past[0])
            except (WalletAway, LedgerAway, Unproven) as error:
                log.warning("journal_waits", incarnation=str(self._past[0].incarnation), why=str(error))
            await asyncio.sleep(PAUSE_S)

    async def _round(self, past: Past) -> None:
        """One look at one incarnation. Replaying twice, or twice at once, changes nothing."""
        orders = standing([entry.data for entry in past.entries])
        open_: list[Answered] = []
        for start in range(0, len(orders), BATCH):
            batch = orders[start : start + BATCH]
            booked = await booked_of(batch, self._ledger)
            open_ += [order for order in batch if order.request_id not in booked]
        for order in open_:
            await charge(order, self._wallet, self._ledger)
        if open_:
            return
        await self._ledger.close_incarnation(past.incarnation, past.last_number, utc_now())
        for file in past.files:
            file.unlink(missing_ok=True)
        self._past.remove(past)
        log.warning("journal_replayed", incarnation=str(past.incarnation), orders=len(orders))
