"""A journal in any state: inspected, saved as far as it is readable, or given up."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import structlog

from metering.answered import AnsweredError, AnsweredOrder, decode
from metering.clock import utc_now
from metering.journal.frames import Entry, JournalError, OldJournal
from metering.journal.open_orders import BATCH, Gaps, Unproven, charge
from metering.ports import Act, Ended, Ledger, LedgerAway, LedgerError, WrongField
from metering.wallet.connection import WalletAway
from metering.wallet.presence import PRESENT_S, Presence
from metering.wallet.values import Replay
from metering.wallet.wallet import Wallet

log = structlog.get_logger(__name__)

ASIDE = "salvaged"
"""Folder inside a journal's folder for the files of a damaged journal. Nothing in it is ever deleted."""

_REASON = re.compile(r"[^\x00-\x20\x7f]([^\x00-\x1f\x7f]{0,498}[^\x00-\x20\x7f])?")


@dataclass(frozen=True, slots=True)
class Noted:
    """An order in a journal, with the number of its latest entry. `withdrawn`: it was not answered 200 after all."""

    number: int
    order: AnsweredOrder
    withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An entry with a correct checksum that this version does not understand."""

    entry: Entry
    why: str


def read_orders(past: OldJournal) -> tuple[list[Noted], list[Unreadable]]:
    """Read its orders, the oldest first, and list what cannot be read."""
    orders: dict[str, Noted] = {}
    unreadable: list[Unreadable] = []
    for entry in past.entries:
        try:
            found = decode(entry.data)
        except AnsweredError as error:
            unreadable.append(Unreadable(entry, str(error)))
            continue
        if isinstance(found, AnsweredOrder):
            orders[found.order_id] = Noted(entry.number, found)
        elif (before := orders.get(found.order_id)) is not None:
            orders[found.order_id] = Noted(entry.number, before.order, withdrawn=True)
    return [*orders.values()], unreadable


def check_versions(past: Iterable[OldJournal]) -> None:
    """Check that this version can read these journals (rule 13). Raises JournalError, which says what to do.
    One process wrote all of a journal, so its first entry is enough.
    """
    for one in past:
        for entry in one.entries[:1]:
            try:
                decode(entry.data)
            except AnsweredError as error:
                raise JournalError(
                    f"entry {entry.number} in {entry.file} was written by another version of ghub ({error}): start that"
                    " version once more, or have its `ghub journal replay` bring it"
                ) from None


async def ends_of(orders: Sequence[AnsweredOrder], ledger: Ledger) -> dict[str, Ended]:
    """Read how these orders ended in the ledger, by request id. Raises LedgerAway."""
    ends: dict[str, Ended] = {}
    for start in range(0, len(orders), BATCH):
        ends |= await ledger.ended([order.order_id for order in orders[start : start + BATCH]])
    return ends


class Salvage:
    """Brings the readable orders of a damaged journal to the ledger. Twice, or twice at once, changes nothing.

    `charged` are those that it charged. `doubtful` are those among them that may have been withdrawn: a withdrawal
    comes after its order, and entries after it are missing.
    """

    def __init__(self, past: OldJournal, wallet: Wallet, ledger: Ledger) -> None:
        noted, _ = read_orders(past)
        self._numbers = {one.order.order_id: one.number for one in noted if not one.withdrawn}
        self._left = [one.order for one in noted if not one.withdrawn]
        self._wallet = wallet
        self._ledger = ledger
        self.past = past
        self.orders = len(self._left)
        self.charged: list[str] = []

    @property
    def left(self) -> int:
        """Number of orders that the ledger does not have yet."""
        return len(self._left)

    @property
    def doubtful(self) -> list[str]:
        """Orders that were charged now, and may have been withdrawn before."""
        return [one for one in self.charged if any(_ends_above(to, self._numbers[one]) for _, to in self.past.missing)]

    async def round(self) -> str:
        """Look at all of them once; returns what it waits for."""
        why = "the consumer has not booked them yet"
        try:
            ends = await ends_of(self._left, self._ledger)
            aside = await self._ledger.set_aside_of([one.order_id for one in self._left])
        except LedgerAway as error:
            return str(error)
        booked = {order_id for order_id, end in ends.items() if end.charged}
        self._left = [one for one in self._left if one.order_id not in booked | aside]
        gaps = Gaps(self._wallet, self._ledger)
        for order in [*self._left]:
            try:
                done = await charge(order, self._wallet, gaps)
            except (WalletAway, LedgerAway, Unproven) as error:
                why = str(error) or type(error).__name__
                continue
            if done is Replay.NOW:
                self.charged.append(order.order_id)
            elif done is Replay.SERVED:
                self._left.remove(order)
        return why if self._left else ""

    async def end(self) -> None:
        """Close it in the ledger if nothing is missing, and move its files aside, so that a gateway may start."""
        if not self.past.missing:
            await self._ledger.close_incarnation(self.past.incarnation, self.past.last_number, utc_now())
        for file in self.past.files:
            aside = file.parent / ASIDE
            aside.mkdir(exist_ok=True)
            _move(file, aside)
        log.warning("journal_salvaged", incarnation=str(self.past.incarnation), charged=len(self.charged))


def _ends_above(last: int | None, number: int) -> bool:
    return last is None or last > number


def _move(file: Path, folder: Path) -> None:
    """Move a file into the folder without overwriting anything."""
    place, turn = folder / file.name, 1
    while place.exists():
        place, turn = folder / f"{file.name}.{turn}", turn + 1
    file.rename(place)


async def give_up(ledger: Ledger, presence: Presence, incarnation: UUID, reason: str, actor: str) -> bool:
    """Close a journal that is lost for good; False if it is closed already (rule 12).

    Raises LedgerError if there is no such journal, if its gateway lives, or if the reason is invalid. Raises LedgerAway
    and RedisError if that cannot be determined.
    """
    if not _REASON.fullmatch(reason):
        raise WrongField("reason", "must be 1 to 500 printable characters, with no space around them")
    known = await ledger.incarnation(incarnation)
    if known.closed_at is None and known.opened_at is not None and await presence.last(incarnation) is not None:
        raise LedgerError(
            f"the gateway of journal {incarnation} lives, or did so within {PRESENT_S} s: only what is gone is given up"
        )
    act = Act(actor, "journal.close", str(incarnation), details={"lost": True, "reason": reason})
    return await ledger.lose_incarnation(incarnation, reason, utc_now(), act)
