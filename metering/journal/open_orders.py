"""The orders that this gateway has answered 200, from the journal's sync until the ledger has their charge."""

import asyncio
import socket
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge
from redis.exceptions import RedisError

from config.settings import CLOSED_S
from metering.answered import AnsweredError, AnsweredOrder, TakenOver, Withdrawn, decode, encode
from metering.journal.file import Journal, JournalFailed
from metering.journal.frames import JournalError
from metering.ports import Ledger, LedgerAway
from metering.wallet import keys
from metering.wallet.alarms import ledger_restored
from metering.wallet.connection import WalletAway
from metering.wallet.presence import Presence
from metering.wallet.values import Replay
from metering.wallet.wallet import Wallet

log = structlog.get_logger(__name__)

SETTLED_S = 10.0
"""Time after which a charged order that the ledger still lacks may have been lost with Redis.

Booking takes far less.
"""

LONGEST_S = 600.0
"""Maximum pause before an order's charge is brought to Redis again.

Doubled from `SETTLED_S` while the consumer is away.
"""

OLD_S = CLOSED_S / 2
"""Age of an answered order from which Redis may soon forget it."""

PROOFS = 200
"""Number of recently booked orders that are checked for a restore.

It goes unseen if so many are booked between checks.
"""

BATCH = 500
"""Orders in one query to the ledger."""

OPEN = Gauge("ghub_journal_open_orders", "Answered orders whose charge the ledger does not have yet")
OLDEST = Gauge("ghub_journal_oldest_seconds", "Age of the oldest answered order whose charge the ledger does not have")
REPLAYED = Counter("ghub_journal_replayed_total", "Charges that a journal brought back, or brought later")


class Unproven(Exception):
    """It is not known yet whether an order was charged: the consumer is behind."""


class Gaps:
    """Charges that the ledger lacks although it has every event that their wallets have numbered: neither has them.

    Use one for one round of one caller. It reads an organisation's wallet once; what this same round charges comes
    after that reading.
    """

    def __init__(self, wallet: Wallet, ledger: Ledger) -> None:
        self._wallet = wallet
        self._ledger = ledger
        self._looks: dict[str, tuple[int, int]] = {}

    async def lacks(self, order: AnsweredOrder) -> int | None:
        """Find the event number up to which this order's charge is missing; None if it is not missing.

        Raises Unproven if the ledger does not have every event yet.
        """
        if order.org_id not in self._looks:
            cut = await self._wallet.read(order.org_id)
            booked = await self._ledger.charged_up_to(order.org_id, cut.number)
            self._looks[order.org_id] = (cut.number, cut.events - booked.events)
        if await booked_of([order.order_id], self._ledger):
            return None
        number, waiting = self._looks[order.org_id]
        if waiting != 0:  # below zero the ledger has more than the wallet: no proof either
            raise Unproven(f"{waiting} events of {order.org_id} are not booked yet")
        return number


class Waiting:
    """An answered order that the ledger does not have yet. The rest is read from the journal when it is needed.

    Its charge is brought to Redis from `charge_from_s` (of `time.monotonic`) on, and after that every `pause_s`.
    `since_s` (of the same) is when this gateway answered it, or found that the ledger had lost it.
    """

    __slots__ = ("charge_from_s", "order_id", "org_id", "pause_s", "since_s")

    def __init__(self, org_id: str, order_id: str, charge_from_s: float) -> None:
        self.org_id = org_id
        self.order_id = order_id
        self.since_s = time.monotonic()
        self.charge_from_s = charge_from_s
        self.pause_s = SETTLED_S

    def brought(self) -> None:
        """Wait for its pause before the next try; the pause doubles each time."""
        self.charge_from_s = time.monotonic() + self.pause_s
        self.pause_s = min(2 * self.pause_s, LONGEST_S)


class OpenOrders:
    """Writes answered orders down, and watches them until they are booked. `run` is background work."""

    def __init__(self, journal: Journal, wallet: Wallet, ledger: Ledger, presence: Presence) -> None:
        self._journal = journal
        self._presence = presence
        self._wallet = wallet
        self._ledger = ledger
        self._uncharged: dict[int, Waiting] = {}
        self._charged: dict[int, Waiting] = {}
        self._cursor = 0
        self._booked: deque[str] = deque(maxlen=PROOFS)
        self._looking = asyncio.Lock()
        self._writing = 0
        self._withdrawals: list[tuple[int, str]] = []
        OLDEST.set_function(lambda: self.oldest_s)

    @property
    def waiting(self) -> int:
        """Number of orders that the ledger does not have yet."""
        return len(self._uncharged) + len(self._charged)

    @property
    def oldest_s(self) -> float:
        """Age of the oldest of them in seconds; 0 if there is none."""
        since = [one.since_s for orders in (self._uncharged, self._charged) for one in orders.values()]
        return time.monotonic() - min(since) if since else 0.0

    async def begin(self, at: datetime) -> None:
        """Register the journal in the ledger, before any order is admitted. Raises LedgerAway."""
        await self._ledger.open_incarnation(self._journal.incarnation, at, socket.gethostname())
        self._journal.registered = True

    async def end(self, at: datetime) -> None:
        """Close the journal if the ledger has everything in it. Otherwise its files wait for the next start.

        Raises WalletAway, LedgerAway, JournalFailed, OSError.
        """
        await self.round()  # a ledger that was just restored lacks what it had
        if self.waiting or self._writing:
            return
        last = self._journal.last_number
        if await self._ledger.close_incarnation(self._journal.incarnation, last, at, self._booked):
            self._journal.registered = False

    async def note(self, entry: bytes) -> int:
        """Write an order; when this returns its number, it is on the disk.

        After JournalFailed nobody knows whether it is.
        """
        self._writing += 1
        try:
            return await self._journal.append(entry)
        except BaseException:
            self._writing -= 1
            raise

    @property
    def incarnation(self) -> UUID:
        """The journal's incarnation, by which others name it."""
        return self._journal.incarnation

    async def take_over(self, order_id: str) -> int:
        """Write down that a long order of another gateway goes on here; returns its number. Raises JournalFailed."""
        return await self._journal.append(encode(TakenOver(order_id)))

    def let_go(self, number: int) -> None:
        """Forget such an order: it has ended, or goes on elsewhere."""
        self._journal.release(number)

    def confirm(self, number: int, org_id: str, order_id: str, *, charged: bool) -> None:
        """Record that it is answered 200.

        `charged`: Redis has confirmed it. If not, the charge follows when Redis is back.
        """
        self._writing -= 1
        self._watch(number, Waiting(org_id, order_id, time.monotonic() + (SETTLED_S if charged else 0.0)), charged)

    async def withdraw(self, number: int, order_id: str) -> None:
        """Record that it is not answered 200 after all, and not charged.

        Raises JournalFailed; then it is tried again until the disk accepts it.
        """
        try:
            await self._note_withdrawn(order_id)
        except JournalFailed:
            self._withdrawals.append((number, order_id))
            raise
        self._writing -= 1
        self._journal.release(number)

    async def _note_withdrawn(self, order_id: str) -> None:
        self._journal.release(await self._journal.append(encode(Withdrawn(order_id))))

    async def _withdraw_again(self) -> None:
        again, self._withdrawals = self._withdrawals, []
        for number, order_id in again:
            await self.withdraw(number, order_id)

    async def run(self, every_s: float) -> None:
        """Watch the orders until cancelled. If Redis or the ledger is away, wait for it."""
        while True:
            try:
                await self._journal.probe()
                await self._presence.beat(self._journal.incarnation, self._writing + len(self._uncharged))
                await self.round()
            except (WalletAway, LedgerAway, JournalFailed, RedisError, OSError, TimeoutError) as error:
                log.warning("answers_wait", orders=self.waiting, error=type(error).__name__)
            await asyncio.sleep(every_s)

    async def round(self) -> None:
        """Release what the ledger has; charge what it should have by now. Two rounds never overlap.

        Raises WalletAway, LedgerAway, JournalFailed, OSError, after everything else that is possible is done.
        """
        async with self._looking:
            await self._look_back()  # first, because what is booked from now on does not prove what was booked before
            away = await self._uncharged_round() + await self._charged_round()
            await self._withdraw_again()
            await self._compact()
            self._journal.tidy()
        if away:
            raise away[0]

    async def _uncharged_round(self) -> list[WalletAway]:
        """Look at all uncharged orders, the oldest first: while they wait, their money may be spent again."""
        away: list[WalletAway] = []
        gaps = Gaps(self._wallet, self._ledger)
        for page in _pages(sorted(self._uncharged)):
            await self._let_go(page, self._uncharged)
            away += await self._charge_due(page, self._uncharged, gaps)
        return away

    async def _charged_round(self) -> list[WalletAway]:
        """Look at charged orders page by page in a circle.

        Stop if the ledger has none of a page: the consumer is away.
        """
        numbers = sorted(self._charged)
        at = bisect_right(numbers, self._cursor)
        away: list[WalletAway] = []
        gaps = Gaps(self._wallet, self._ledger)
        for page in _pages(numbers[at:] + numbers[:at]):
            self._cursor = page[-1]
            booked = await self._let_go(page, self._charged)
            away += await self._charge_due(page, self._charged, gaps)
            if not booked:
                break
        return away

    async def _let_go(self, page: Sequence[int], orders: dict[int, Waiting]) -> int:
        """Forget orders that the ledger has, or whose event it has set aside (rule 30); returns how many."""
        ids = [orders[number].order_id for number in page]
        booked = await booked_of(ids, self._ledger)
        known = booked | await self._ledger.set_aside_of(ids)
        gone = [number for number in page if orders[number].order_id in known]
        for number in gone:
            if orders[number].order_id in booked:
                self._booked.append(orders[number].order_id)
            self._forget(number, orders)
        return len(gone)

    async def _charge_due(self, page: Sequence[int], orders: dict[int, Waiting], gaps: Gaps) -> list[WalletAway]:
        """Bring due charges to Redis. A failed one, or a partition that is away, does not delay the others."""
        away: dict[int, WalletAway] = {}
        for number in page:
            one = orders.get(number)
            if one is None or one.charge_from_s > time.monotonic() or keys.partition_of(one.org_id) in away:
                continue
            try:
                done = await charge(decode_order(await self._journal.read(number)), self._wallet, gaps)
            except WalletAway as error:
                away[keys.partition_of(one.org_id)] = error
                continue
            except Unproven as error:
                log.warning("charge_waits", request_id=one.order_id, org=one.org_id, why=str(error))
            except (AnsweredError, OSError) as error:
                log.error("journal_entry_unreadable", number=number, request_id=one.order_id, error=str(error))
            else:
                if done is Replay.SERVED:
                    await self._note_withdrawn(one.order_id)  # otherwise a later start would bring it again
                    self._forget(number, orders)
                    continue
                if orders is self._uncharged:
                    self._charged[number] = orders.pop(number)
            one.brought()
        return list(away.values())

    async def _look_back(self) -> None:
        """Check whether the ledger was restored and lost orders.

        If so, watch again what the journal keeps (rule 30).
        """
        if lacking := {*self._booked} - await booked_of(self._booked, self._ledger):
            ledger_restored(lacks=len(lacking))
            await self._watch_kept()
            self._booked.clear()  # if interrupted before this line, it starts again and skips what is watched already

    async def _watch_kept(self) -> None:
        passed = {one.order_id for orders in (self._uncharged, self._charged) for one in orders.values()}
        try:
            async for entries in self._journal.kept():
                found = [decode(data) for data in entries]
                passed |= {entry.order_id for entry in found if isinstance(entry, Withdrawn)}
                orders = [one for one in found if isinstance(one, AnsweredOrder) and one.order_id not in passed]
                for start in range(0, len(orders), BATCH):
                    await self._watch_again(orders[start : start + BATCH])
        except (JournalError, AnsweredError) as error:
            log.error("journal_entry_unreadable", error=str(error))

    async def _watch_again(self, orders: Sequence[AnsweredOrder]) -> None:
        booked = await booked_of([order.order_id for order in orders], self._ledger)
        lost = [order for order in orders if order.order_id not in booked]
        await doubt({order.org_id for order in lost}, self._wallet, self._ledger)
        for order in lost:
            number = await self._journal.append(encode(order))
            self._watch(number, Waiting(order.org_id, order.order_id, time.monotonic() + SETTLED_S), True)

    async def _compact(self) -> None:
        """Write a few old waiting orders again at the journal's end, so that they do not keep every later file."""
        for number in self._journal.stuck:
            for orders in (self._uncharged, self._charged):
                if number in orders:
                    again = await self._journal.append(await self._journal.read(number))
                    orders[again] = orders.pop(number)
                    self._journal.release(number)

    def _watch(self, number: int, one: Waiting, charged: bool) -> None:
        (self._charged if charged else self._uncharged)[number] = one
        OPEN.set(self.waiting)

    def _forget(self, number: int, orders: dict[int, Waiting]) -> None:
        del orders[number]
        self._journal.release(number)
        OPEN.set(self.waiting)


def _pages(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), BATCH):
        yield numbers[start : start + BATCH]


def decode_order(data: bytes) -> AnsweredOrder:
    """Decode an order. Raises AnsweredError if the entry is not an order."""
    entry = decode(data)
    if not isinstance(entry, AnsweredOrder):
        raise AnsweredError("no answered order")
    return entry


async def booked_of(order_ids: Collection[str], ledger: Ledger) -> set[str]:
    """Find which of these orders have their charge in the ledger. Raises LedgerAway."""
    ended = await ledger.ended(list(order_ids)) if order_ids else {}
    return {order_id for order_id, end in ended.items() if end.charged}


async def doubt(org_ids: Collection[str], wallet: Wallet, ledger: Ledger) -> None:
    """Request a rebuild of wallets that know events which the ledger lacks. Raises WalletAway, LedgerAway."""
    ahead = []
    for org_id in org_ids:
        cut = await wallet.read(org_id)
        if (await ledger.charged_up_to(org_id, cut.number)).events != cut.events:
            ahead.append(org_id)
    await wallet.doubt(ahead)


async def charge(order: AnsweredOrder, wallet: Wallet, gaps: Gaps) -> Replay:
    """Bring one order to its wallet, which charges it at most once.

    Raises WalletAway, LedgerAway, Unproven.

    Redis forgets after a day how an order ended. So an old order is charged only if the ledger has every earlier event
    of its organisation, and not this charge. There is a second case: Redis has charged an order, but a restored ledger
    lacks it for good, and the wallet was rebuilt from that ledger. The same proof shows this, and the order is charged
    again.
    """
    up_to, age_us = None, wallet.now_us(order.org_id) - order.ended_us
    if age_us > OLD_S * 1_000_000 and (up_to := await gaps.lacks(order)) is None:
        return Replay.CHARGED
    done = await wallet.replay(order)
    if done is Replay.CHARGED:
        with suppress(Unproven):  # its event is still on its way
            if (up_to := await gaps.lacks(order) if up_to is None else up_to) is not None:
                done = await wallet.replay(order, lost_up_to=up_to)
    if done is Replay.NOW:
        REPLAYED.inc()
        log.warning("charge_replayed", request_id=order.order_id, org=order.org_id)
    elif done is Replay.SERVED:
        log.warning("served_again", request_id=order.order_id, org=order.org_id)
    return done
