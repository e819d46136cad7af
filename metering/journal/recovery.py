"""Journals of dead gateways: every order that they answered 200 is charged, and then they are closed."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import structlog

from metering.answered import AnsweredOrder, Withdrawn, decode
from metering.clock import utc_now
from metering.journal.file import Keep
from metering.journal.frames import WRITTEN, Entry, OldJournal
from metering.journal.open_orders import (
    BATCH,
    PROOFS,
    Gaps,
    Unproven,
    Waiting,
    booked_of,
    charge,
    decode_order,
    doubt,
)
from metering.ports import Ledger, LedgerAway
from metering.wallet import keys
from metering.wallet.alarms import ledger_restored
from metering.wallet.connection import WalletAway
from metering.wallet.values import Replay
from metering.wallet.wallet import Wallet

log = structlog.get_logger(__name__)

PAUSE_S = 0.5
"""Pause between two checks of what the consumer has booked."""

LOOK_BACK_S = 10.0
"""Pause between two checks of kept journals. Each takes some queries."""


class _Order(Waiting):
    """An order of a dead gateway, charged without delay. Its entry is read again when it is needed."""

    __slots__ = ("entry",)

    def __init__(self, order: AnsweredOrder, entry: Entry) -> None:
        super().__init__(order.org_id, order.order_id, 0.0)
        self.entry = entry


class _Journal:
    """A journal of a dead gateway. `orders` is None until they were searched; `doubtful`: the ledger had them once.

    `charged` are some of the orders that the ledger had. If one of them disappears, the ledger was restored.
    """

    def __init__(self, past: OldJournal) -> None:
        self.past = past
        self.orders: list[_Order] | None = None
        self.charged: deque[str] = deque(maxlen=PROOFS)
        self.doubtful = False

    def again(self) -> None:
        """Forget which of its orders are in the ledger, after a restore: they are searched again."""
        self.orders = None
        self.charged.clear()
        self.doubtful = True

    def read(self) -> list[_Order]:
        """Read the orders that are answered and not withdrawn, in the order of their entries. Raises AnsweredError."""
        orders: dict[str, _Order] = {}
        there = {path for path in self.past.files if path.exists()}
        for entry in self.past.entries:
            if entry.path not in there:  # kept files are deleted from the oldest on
                continue
            found = decode(entry.data)
            if isinstance(found, Withdrawn):
                orders.pop(found.order_id, None)
            elif isinstance(found, AnsweredOrder):
                orders[found.order_id] = _Order(found, entry)
        return list(orders.values())


class Recovery:
    """Brings the journals of dead gateways to their end, however long Redis, the ledger or the consumer are away.

    `left` counts what is not done: orders that the ledger lacks, and journals that are not closed. Files of closed
    journals are kept for a while, so that a restored ledger can be fed from them (rule 30).
    """

    def __init__(self, past: Sequence[OldJournal], wallet: Wallet, ledger: Ledger, keep: Keep | None = None) -> None:
        self._wallet = wallet
        self._ledger = ledger
        self._keep = keep or Keep()
        self._open = [_Journal(one) for one in past]
        self._kept: list[_Journal] = []
        self.orders = 0
        self.charged = 0

    @property
    def left(self) -> int:
        return sum(1 + len(one.orders or ()) for one in self._open)

    async def run(self) -> None:
        """Close the journals, then watch the kept ones, until cancelled."""
        while True:
            if why := await self.round():
                log.warning("journal_waits", left=self.left, why=why)
            with suppress(LedgerAway):
                await self.look_back()
            await asyncio.sleep(PAUSE_S if self._open else LOOK_BACK_S)

    async def round(self) -> str:
        """Look at all of them once; returns what they wait for. Replaying twice, or twice at once, changes nothing."""
        gaps = Gaps(self._wallet, self._ledger)
        waits = [await self._look(one, gaps) for one in [*self._open]]
        return next((why for why in waits if why), "")

    async def _look(self, journal: _Journal, gaps: Gaps) -> str:
        past = journal.past
        try:
            if journal.orders is None:
                if await self._is_blank(past):
                    return f"nothing of the journal {past.incarnation} can be read: `ghub journal close` gives it up"
                journal.orders = [] if await self._is_done(past) else await asyncio.to_thread(journal.read)
                self.orders += len(journal.orders)
            journal.orders = await self._unbooked(journal.orders, journal.charged)
            if journal.doubtful:
                await doubt({order.org_id for order in journal.orders}, self._wallet, self._ledger)
                journal.doubtful = False
            if why := await self._charge(journal.orders, gaps):
                return why
            if journal.orders:
                return "the consumer has not booked them yet"
            if not await self._ledger.close_incarnation(past.incarnation, past.last_number, utc_now(), journal.charged):
                journal.again()
                return "the ledger was restored just now"
        except (LedgerAway, WalletAway, OSError) as error:
            return str(error) or type(error).__name__
        self._open.remove(journal)
        self._kept.append(journal)
        self._tidy()
        log.warning("journal_replayed", incarnation=str(past.incarnation), charged=self.charged)
        return ""

    async def look_back(self) -> None:
        """Delete what was kept long enough; reopen what a restored ledger lacks. Raises LedgerAway."""
        self._tidy()
        for journal in [*self._kept]:
            if not await self._is_done(journal.past):  # it was done, so the ledger was restored
                ledger_restored(journal=str(journal.past.incarnation))
                journal.again()
                self._kept.remove(journal)
                self._open.append(journal)

    def _tidy(self) -> None:
        """Delete kept files that are too old, and the oldest if there are too many bytes."""
        files = {path: path.stat() for one in self._kept for path in one.past.files if path.exists()}
        kept_bytes = sum(stat.st_size for stat in files.values())
        for path, stat in sorted(files.items(), key=lambda one: one[1].st_mtime):
            if kept_bytes > self._keep.max_bytes or time.time() - stat.st_mtime >= self._keep.age_s:
                path.unlink(missing_ok=True)
                kept_bytes -= stat.st_size
        self._kept = [one for one in self._kept if any(path.exists() for path in one.past.files)]

    async def _is_blank(self, past: OldJournal) -> bool:
        """True if it was in use and nothing of it is left.

        Its first file begins with a frame before it is registered.
        """
        if any(file.frames for file in past.read) or not any(WRITTEN in path.name for path in past.files):
            return False
        known = await self._ledger.incarnation(past.incarnation)
        return known.opened_at is not None and known.closed_at is None

    async def _is_done(self, past: OldJournal) -> bool:
        """True if it is closed. Then the ledger had all of it: it is only kept, and not read again."""
        return (await self._ledger.incarnation(past.incarnation)).closed_at is not None

    async def _charge(self, orders: list[_Order], gaps: Gaps) -> str:
        """Bring orders to Redis; a failed one does not delay the others (rule 30). Returns what it waits for."""
        why, away = "", set[int]()
        for order in [*orders]:
            partition = keys.partition_of(order.org_id)
            if order.charge_from_s > time.monotonic() or partition in away:
                continue
            try:
                done = await charge(decode_order(order.entry.data), self._wallet, gaps)
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

    async def _unbooked(self, orders: list[_Order], charged: deque[str]) -> list[_Order]:
        """List orders that the ledger neither has nor has set aside.

        What it has is added to `charged`. Raises LedgerAway.
        """
        left: list[_Order] = []
        for start in range(0, len(orders), BATCH):
            batch = orders[start : start + BATCH]
            ids = [order.order_id for order in batch]
            booked = await booked_of(ids, self._ledger)
            known = booked | await self._ledger.set_aside_of(ids)
            charged.extend(booked)
            left += [order for order in batch if order.order_id not in known]
        return left
