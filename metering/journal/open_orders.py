"""The orders that this gateway has answered 200, from the journal's sync until the ledger has their charge."""

import asyncio
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from datetime import datetime

import structlog
from prometheus_client import Counter, Gauge
from redis.exceptions import RedisError

from config.settings import CLOSED_S
from metering.answered import AnsweredError, AnsweredOrder, Withdrawn, decode, encode
from metering.journal.file import Journal, JournalFailed
from metering.journal.frames import JournalError
from metering.ports import Ledger, LedgerAway
from metering.wallet import keys
from metering.wallet.connection import WalletAway
from metering.wallet.presence import Presence
from metering.wallet.values import Replay
from metering.wallet.wallet import Wallet

log = structlog.get_logger(__name__)

SETTLED_S = 10.0
"""An order that Redis charged is in the ledger long before; one that is not by then may have been lost with Redis."""

LONGEST_S = 600.0
"""Between two times that an order's charge is brought to Redis: doubled from `SETTLED_S` while the consumer is away."""

OLD_S = CLOSED_S / 2
"""An order that was answered so long ago may soon be forgotten by Redis."""

PROOFS = 200
"""Of what the ledger has booked last: as many would have to be booked between two looks for a restore to go unseen."""

BATCH = 500
"""Orders that the ledger is asked about at once."""

OPEN = Gauge("ghub_journal_open_orders", "Answered orders whose charge the ledger does not have yet")
REPLAYED = Counter("ghub_journal_replayed_total", "Charges that a journal brought back, or brought later")
RESTORED = Counter("ghub_ledger_restored_total", "Times that the ledger lacked what it had committed before")


class Unproven(Exception):
    """It cannot be told yet whether an order was charged: the consumer is behind."""


class Gaps:
    """Which charges the ledger lacks although it has every event that their wallets have numbered: so neither has them.

    To be asked in one round, by one looker: an organisation's wallet is read once, and what this very round charges
    comes after that.
    """

    def __init__(self, wallet: Wallet, ledger: Ledger) -> None:
        self._wallet = wallet
        self._ledger = ledger
        self._looks: dict[str, tuple[int, int]] = {}

    async def lacks(self, order: AnsweredOrder) -> int | None:
        """Up to which of its organisation's events this order's charge is missing; None where it is not.

        Raises Unproven where the ledger does not have every event yet.
        """
        if order.org_id not in self._looks:
            cut = await self._wallet.read(order.org_id)
            booked = await self._ledger.charged_up_to(order.org_id, cut.number)
            self._looks[order.org_id] = (cut.number, cut.events - booked.events)
        if await booked_of([order.request_id], self._ledger):
            return None
        number, waiting = self._looks[order.org_id]
        if waiting != 0:  # below zero the ledger knows more than the wallet: no proof either
            raise Unproven(f"{waiting} events of {order.org_id} are not booked yet")
        return number


class Waiting:
    """An answered order that the ledger does not have yet. All else is read from the journal when it is needed.

    From `charge_from_s` of `time.monotonic` on its charge is brought to Redis, and after that every `pause_s`.
    """

    __slots__ = ("charge_from_s", "org_id", "pause_s", "request_id")

    def __init__(self, org_id: str, request_id: str, charge_from_s: float) -> None:
        self.org_id = org_id
        self.request_id = request_id
        self.charge_from_s = charge_from_s
        self.pause_s = SETTLED_S

    def brought(self) -> None:
        """Not again before its pause, which is doubled each time."""
        self.charge_from_s = time.monotonic() + self.pause_s
        self.pause_s = min(2 * self.pause_s, LONGEST_S)


class OpenOrders:
    """Writes them down, and looks after them until they are booked: `run` beside the requests."""

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

    @property
    def waiting(self) -> int:
        """Orders that the ledger does not have yet."""
        return len(self._uncharged) + len(self._charged)

    async def begin(self, at: datetime) -> None:
        """Register the journal, before anything is admitted. Raises LedgerAway."""
        await self._ledger.open_incarnation(self._journal.incarnation, at)
        self._journal.registered = True

    async def end(self, at: datetime) -> None:
        """Close the journal, if the ledger has all that it says. Otherwise its files wait for the next start.

        Raises WalletAway, LedgerAway, JournalFailed, OSError.
        """
        await self.round()  # a ledger that was restored just now lacks what it had
        if self.waiting or self._writing:
            return
        last = self._journal.last_number
        if await self._ledger.close_incarnation(self._journal.incarnation, last, at, self._booked):
            self._journal.registered = False

    async def note(self, entry: bytes) -> int:
        """Write an order down; on the disk when it returns, under this number. Raises JournalFailed: nobody knows."""
        self._writing += 1
        try:
            return await self._journal.append(entry)
        except BaseException:
            self._writing -= 1
            raise

    def confirm(self, number: int, org_id: str, request_id: str, *, charged: bool) -> None:
        """It is answered 200. `charged`: Redis has said so; otherwise it is brought there as soon as Redis is back."""
        self._writing -= 1
        self._watch(number, Waiting(org_id, request_id, time.monotonic() + (SETTLED_S if charged else 0.0)), charged)

    async def withdraw(self, number: int, request_id: str) -> None:
        """It is not answered 200 after all: nothing is charged for it.

        Raises JournalFailed; then it is tried again until the disk takes it.
        """
        try:
            await self._note_withdrawn(request_id)
        except JournalFailed:
            self._withdrawals.append((number, request_id))
            raise
        self._writing -= 1
        self._journal.release(number)

    async def _note_withdrawn(self, request_id: str) -> None:
        self._journal.release(await self._journal.append(encode(Withdrawn(request_id))))

    async def _withdraw_again(self) -> None:
        again, self._withdrawals = self._withdrawals, []
        for number, request_id in again:
            await self.withdraw(number, request_id)

    async def run(self, every_s: float) -> None:
        """Look after them until cancelled. A Redis or a ledger that is away is waited for."""
        while True:
            try:
                await self._journal.probe()
                await self._presence.beat(self._journal.incarnation, self._writing + len(self._uncharged))
                await self.round()
            except (WalletAway, LedgerAway, JournalFailed, RedisError, OSError, TimeoutError) as error:
                log.warning("answers_wait", orders=self.waiting, error=type(error).__name__)
            await asyncio.sleep(every_s)

    async def round(self) -> None:
        """What the ledger has is let go; what it should have by now is charged. Two rounds never overlap.

        Raises WalletAway, LedgerAway, JournalFailed, OSError: then what could be done without it is done.
        """
        async with self._looking:
            await self._look_back()  # first: what is booked from now on is no proof of what was
            away = await self._uncharged_round() + await self._charged_round()
            await self._withdraw_again()
            await self._compact()
            self._journal.tidy()
        if away:
            raise away[0]

    async def _uncharged_round(self) -> list[WalletAway]:
        """All of them, the oldest first: as long as they wait, their money may be spent again."""
        away: list[WalletAway] = []
        gaps = Gaps(self._wallet, self._ledger)
        for page in _pages(sorted(self._uncharged)):
            await self._let_go(page, self._uncharged)
            away += await self._charge_due(page, self._uncharged, gaps)
        return away

    async def _charged_round(self) -> list[WalletAway]:
        """Page by page in a circle, as long as the ledger has some of a page: else the consumer is away."""
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
        """Forget those that the ledger has, and those whose event it has set aside (rule 30); returns how many."""
        ids = [orders[number].request_id for number in page]
        booked = await booked_of(ids, self._ledger)
        known = booked | await self._ledger.set_aside_of(ids)
        gone = [number for number in page if orders[number].request_id in known]
        for number in gone:
            if orders[number].request_id in booked:
                self._booked.append(orders[number].request_id)
            self._forget(number, orders)
        return len(gone)

    async def _charge_due(self, page: Sequence[int], orders: dict[int, Waiting], gaps: Gaps) -> list[WalletAway]:
        """Bring charges to Redis. One that cannot be brought holds up no other, nor does a partition that is away."""
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
                log.warning("charge_waits", request_id=one.request_id, org=one.org_id, why=str(error))
            except (AnsweredError, OSError) as error:
                log.error("journal_entry_unreadable", number=number, request_id=one.request_id, error=str(error))
            else:
                if done is Replay.SERVED:
                    await self._note_withdrawn(one.request_id)  # or a later start would bring it once more
                    self._forget(number, orders)
                    continue
                if orders is self._uncharged:
                    self._charged[number] = orders.pop(number)
            one.brought()
        return list(away.values())

    async def _look_back(self) -> None:
        """Has the ledger lost what it had? Then it was restored: what the journal keeps is watched again (rule 30)."""
        if lacking := {*self._booked} - await booked_of(self._booked, self._ledger):
            log.error("ledger_restored", lacks=len(lacking))
            RESTORED.inc()
            await self._watch_kept()
            self._booked.clear()  # what is interrupted before this begins again, and passes over what is watched

    async def _watch_kept(self) -> None:
        passed = {one.request_id for orders in (self._uncharged, self._charged) for one in orders.values()}
        try:
            async for entries in self._journal.kept():
                found = [decode(data) for data in entries]
                passed |= {entry.request_id for entry in found if isinstance(entry, Withdrawn)}
                orders = [one for one in found if isinstance(one, AnsweredOrder) and one.request_id not in passed]
                for start in range(0, len(orders), BATCH):
                    await self._watch_again(orders[start : start + BATCH])
        except (JournalError, AnsweredError) as error:
            log.error("journal_entry_unreadable", error=str(error))

    async def _watch_again(self, orders: Sequence[AnsweredOrder]) -> None:
        booked = await booked_of([order.request_id for order in orders], self._ledger)
        lost = [order for order in orders if order.request_id not in booked]
        await doubt({order.org_id for order in lost}, self._wallet, self._ledger)
        for order in lost:
            number = await self._journal.append(encode(order))
            self._watch(number, Waiting(order.org_id, order.request_id, time.monotonic() + SETTLED_S), True)

    async def _compact(self) -> None:
        """A few old orders that wait must not keep every later file: they are written again, at the end."""
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
    """Raises AnsweredError for an entry that is no order."""
    entry = decode(data)
    if isinstance(entry, Withdrawn):
        raise AnsweredError("a withdrawal")
    return entry


async def booked_of(request_ids: Collection[str], ledger: Ledger) -> set[str]:
    """Those of these orders whose charge the ledger has. Raises LedgerAway."""
    ended = await ledger.ended(list(request_ids)) if request_ids else {}
    return {request_id for request_id, end in ended.items() if end.charged}


async def doubt(org_ids: Collection[str], wallet: Wallet, ledger: Ledger) -> None:
    """Have those wallets made anew that know of events which the ledger lacks. Raises WalletAway, LedgerAway."""
    ahead = []
    for org_id in org_ids:
        cut = await wallet.read(org_id)
        if (await ledger.charged_up_to(org_id, cut.number)).events != cut.events:
            ahead.append(org_id)
    await wallet.doubt(ahead)


async def charge(order: AnsweredOrder, wallet: Wallet, gaps: Gaps) -> Replay:
    """Bring one order to its wallet, where it is charged at most once.

    Raises WalletAway, LedgerAway, Unproven.

    Redis forgets after a day how an order ended. So an old one is charged only once the ledger has every event of its
    organisation that came before, and not its charge. And one that Redis has charged may be missing in the ledger for
    good: that was restored, and the wallet made anew from it. The same proof tells, and it is charged once more.
    """
    up_to, age_us = None, wallet.now_us(order.org_id) - order.ended_us
    if age_us > OLD_S * 1_000_000 and (up_to := await gaps.lacks(order)) is None:
        return Replay.CHARGED
    done = await wallet.replay(order)
    if done is Replay.CHARGED:
        with suppress(Unproven):  # its event is on its way
            if (up_to := await gaps.lacks(order) if up_to is None else up_to) is not None:
                done = await wallet.replay(order, lost_up_to=up_to)
    if done is Replay.NOW:
        REPLAYED.inc()
        log.warning("charge_replayed", request_id=order.request_id, org=order.org_id)
    elif done is Replay.SERVED:
        log.warning("served_again", request_id=order.request_id, org=order.org_id)
    return done
