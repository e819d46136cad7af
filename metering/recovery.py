"""Journals of gateways that are gone: every order that they answered 200 is charged, and then they are closed."""

import asyncio
import time
from collections.abc import Sequence

import structlog

from metering.answered import Answered, standing
from metering.answers import BATCH, LONGEST_S, SETTLED_S, Unproven, booked_of, charge
from metering.clock import utc_now
from metering.frames import Past
from metering.ports import Ledger, LedgerAway
from metering.wallet import keys
from metering.wallet.connection import WalletAway
from metering.wallet.wallet import Replay, Wallet

log = structlog.get_logger(__name__)

PAUSE_S = 0.5
"""Between two looks at what the consumer has booked by now."""


class _Order:
    """An answered order that the ledger does not have yet; from `charge_from_s` on it is brought to Redis (again)."""

    def __init__(self, answered: Answered) -> None:
        self.answered = answered
        self.charge_from_s = 0.0
        self.pause_s = SETTLED_S

    def brought(self) -> None:
        """Not again before its pause, which is doubled each time."""
        self.charge_from_s = time.monotonic() + self.pause_s
        self.pause_s = min(2 * self.pause_s, LONGEST_S)


class Recovery:
    """Brings dead incarnations to their end, however long Redis, the ledger or the consumer are away.

    `left` counts what is not done: orders that the ledger does not have, and journals that are not closed. Files of a
    journal that is closed stay for `keep_s` seconds after they were last written to, for a ledger that is restored.
    """

    def __init__(self, past: Sequence[Past], wallet: Wallet, ledger: Ledger, keep_s: float = 0.0) -> None:
        self._wallet = wallet
        self._ledger = ledger
        self._keep_s = keep_s
        self._open = [
            (one, [_Order(order) for order in standing([entry.data for entry in one.entries])]) for one in past
        ]
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
        """One look at all of them; returns what they wait for. Replaying twice, or twice at once, changes nothing."""
        waits = [await self._look(past, orders) for past, orders in [*self._open]]
        return next((why for why in waits if why), "")

    async def _look(self, past: Past, orders: list[_Order]) -> str:
        try:
            orders[:] = await self._unbooked(orders)
            if why := await self._charge(orders):
                return why
            if orders:
                return "the consumer has not booked them yet"
            await self._ledger.close_incarnation(past.incarnation, past.last_number, utc_now())
        except LedgerAway as error:
            return str(error) or type(error).__name__
        for file in past.files:
            if time.time() - file.stat().st_mtime >= self._keep_s:
                file.unlink(missing_ok=True)
        self._open = [one for one in self._open if one[0] is not past]
        log.warning("journal_replayed", incarnation=str(past.incarnation), charged=self.charged)
        return ""

    async def _charge(self, orders: list[_Order]) -> str:
        """Bring them to Redis; one that cannot be brought holds up no other (rule 30). Returns what it waits for."""
        why, away = "", set[int]()
        for order in [*orders]:
            partition = keys.partition_of(order.answered.org_id)
            if order.charge_from_s > time.monotonic() or partition in away:
                continue
            try:
                done = await charge(order.answered, self._wallet, self._ledger)
            except WalletAway as error:
                away.add(partition)
                why = str(error) or type(error).__name__
                continue
            except Unproven as error:
                why = str(error)
            else:
                self.charged += done is Replay.NOW
                if done is Replay.SERVED:
                    orders.remove(order)
            order.brought()
        return why

    async def _unbooked(self, orders: list[_Order]) -> list[_Order]:
        """Those that the ledger neither has nor has set aside. Raises LedgerAway."""
        left: list[_Order] = []
        for start in range(0, len(orders), BATCH):
            batch = orders[start : start + BATCH]
            ids = [order.answered.request_id for order in batch]
            known = await booked_of(ids, self._ledger) | await self._ledger.set_aside_of(ids)
            left += [order for order in batch if order.answered.request_id not in known]
        return left
