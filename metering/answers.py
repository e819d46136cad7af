"""The orders that this gateway has answered 200, from the journal's sync until the ledger has their charge."""

import asyncio
import time

import structlog
from prometheus_client import Counter, Gauge
from redis.exceptions import RedisError

from config.settings import CLOSED_S
from metering.answered import Answered, Withdrawn, encode
from metering.journal import Journal
from metering.ports import Ledger, LedgerAway
from metering.wallet.connection import WalletAway
from metering.wallet.presence import Presence
from metering.wallet.wallet import Replay, Wallet

log = structlog.get_logger(__name__)

SETTLED_S = 10.0
"""An order that Redis charged is in the ledger long before; one that is not by then may have been lost with Redis."""

OLD_S = CLOSED_S / 2
"""An order that was answered so long ago may soon be forgotten by Redis."""

BATCH = 500
"""Orders that are looked after in one round, the oldest first."""

OPEN = Gauge("ghub_journal_open_orders", "Answered orders whose charge the ledger does not have yet")
REPLAYED = Counter("ghub_journal_replayed_total", "Charges that a journal brought back, or brought later")


class Unproven(Exception):
    """It cannot be told yet whether an order was charged: the consumer is behind."""


class _Open:
    """An answered order, and whether Redis has said that it is charged.

    `charge_from_s` of `time.monotonic`: from then on it is brought there, again if need be.
    """

    def __init__(self, answered: Answered, charged: bool) -> None:
        self.answered = answered
        self.charged = charged
        self.charge_from_s = time.monotonic() + (SETTLED_S if charged else 0.0)


class Answers:
    """Writes them down, and looks after them until they are booked: `run` beside the requests."""

    def __init__(self, journal: Journal, wallet: Wallet, ledger: Ledger, presence: Presence) -> None:
        self._journal = journal
        self._presence = presence
        self._wallet = wallet
        self._ledger = ledger
        self._open: dict[int, _Open] = {}
        self._writing = 0

    @property
    def waiting(self) -> int:
        """Orders that the ledger does not have yet."""
        return len(self._open)

    async def note(self, order: Answered) -> int:
        """Write it down; on the disk when it returns, under this number. Raises JournalFailed: then nobody knows."""
        self._writing += 1
        try:
            return await self._journal.append(encode(order))
        except BaseException:
            self._writing -= 1
            raise

    def stand(self, number: int, order: Answered, *, charged: bool) -> None:
        """It is answered 200. `charged`: Redis has said so; otherwise it is brought there as soon as Redis is back."""
        self._writing -= 1
        self._open[number] = _Open(order, charged)
        OPEN.set(len(self._open))

    async def withdraw(self, number: int, request_id: str) -> None:
        """It is not answered 200 after all: nothing is charged for it. Raises JournalFailed."""
        later = await self._journal.append(encode(Withdrawn(request_id)))
        self._writing -= 1
        for one in (number, later):
            self._journal.release(one)

    async def run(self, every_s: float) -> None:
        """Look after them until cancelled. A Redis or a ledger that is away is waited for."""
        while True:
            try:
                await self._presence.beat(self._journal.incarnation, self._uncharged())
                await self.round()
            except (WalletAway, LedgerAway, Unproven, RedisError, OSError, TimeoutError) as error:
                log.warning("answers_wait", orders=len(self._open), error=type(error).__name__)
            await asyncio.sleep(every_s)

    def _uncharged(self) -> int:
        """Also those that wait for their sync at this moment, or for the look at their hold after it."""
        return self._writing + sum(not one.charged for one in self._open.values())

    async def round(self) -> None:
        """What the ledger has is let go; what it should have by now is charged. Raises WalletAway, LedgerAway."""
        batch = [(number, self._open[number]) for number in sorted(self._open)[:BATCH]]
        booked = await booked_of([one.answered for _, one in batch], self._ledger)
        for number, one in batch:
            if one.answered.request_id in booked:
                self._open.pop(number)
                self._journal.release(number)
        OPEN.set(len(self._open))
        for number, one in batch:
            if number in self._open and one.charge_from_s <= time.monotonic():
                if await charge(one.answered, self._wallet, self._ledger) is Replay.SERVED:
                    self._open.pop(number)
                    self._journal.release(number)
                one.charged = True
                one.charge_from_s = time.monotonic() + SETTLED_S


async def booked_of(orders: list[Answered], ledger: Ledger) -> set[str]:
    """Of these orders, the requests whose charge the ledger has. Raises LedgerAway."""
    ended = await ledger.ended([order.request_id for order in orders])
    return {request_id for request_id, end in ended.items() if end.charged}


async def charge(order: Answered, wallet: Wallet, ledger: Ledger) -> Replay:
    """Bring one order to its wallet, where it is charged at most once.

    Raises WalletAway, LedgerAway, Unproven.

    Redis forgets after a day how an order ended. So an old one is charged only once the ledger has every event of its
    organisation that came before, and not its charge.
    """
    if wallet.now_us(order.org_id) - order.ended_us > OLD_S * 1_000_000:
        cut = await wallet.read(order.org_id)
        booked = await ledger.charged_up_to(order.org_id, cut.number)
        if booked.events < cut.events:
            raise Unproven(f"{cut.events - booked.events} events of {order.org_id} are not booked yet")
        if await booked_of([order], ledger):
            return Replay.CHARGED
    done = await wallet.replay(order)
    if done is Replay.NOW:
        REPLAYED.inc()
        log.warning("charge_replayed", request_id=order.request_id, org=order.org_id)
    elif done is Replay.SERVED:
        log.warning("served_again", request_id=order.request_id, org=order.org_id)
    return done
