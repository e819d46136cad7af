"""What an export reads of the ledger: the charges and the refunds of a month or of a range of days, in batches."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from metering.clock import next_month
from metering.ports import LATEST, Charge, Ledger, Names, NotThere, Refunded

REFUNDS = 1_000
"""Refunds in one batch."""

KNOWN = 1_000
"""Organisations whose names are kept: charges come by organisation, refunds as they were given."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What is exported: whole months, or the days from `first` to `last` in them; of one organisation or of all.

    `all_ends` adds the orders that were not charged.
    """

    months: tuple[str, ...]
    org_id: str | None = None
    first: str = ""
    last: str = LATEST
    all_ends: bool = False

    @property
    def month(self) -> str | None:
        """The month that is exported whole, and so may be closed."""
        return self.months[0] if len(self.months) == 1 and not self.first else None


def days(first: str, last: str, org_id: str | None = None, *, all_ends: bool = False) -> Scope:
    """Build the scope of a range of days of Mexico City, `YYYY-MM-DD`, both included."""
    months = [first[:7]]
    while months[-1] < last[:7]:
        months.append(next_month(months[-1]))
    return Scope(tuple(months), org_id, first, last, all_ends)


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of the ledger, posted to `month`, with the names of their organisations. One of the lists is filled.

    `others` are orders that were not charged.
    """

    month: str
    names: Mapping[str, Names]
    charges: Sequence[Charge] = ()
    refunds: Sequence[Refunded] = ()
    others: Sequence[Charge] = ()


async def read(ledger: Ledger, scope: Scope) -> AsyncIterator[Batch]:
    """Yield all charges, then all refunds, then the other ends; within each by month. Raises LedgerAway."""
    names = NamesOf(ledger)
    of = {"org_id": scope.org_id, "first": scope.first, "last": scope.last}
    for month in scope.months:
        async for page in ledger.charges(month, **of):  # type: ignore[arg-type]  # one of them may be None
            yield Batch(month, await names.of(month, {one.org_id for one in page}), charges=page)
    for month in scope.months:
        async for refunds in _refunds(ledger, month, of):
            org_ids = {one.refund.org_id for one in refunds}
            yield Batch(month, await names.of(month, org_ids), refunds=refunds)
    if scope.all_ends:
        for month in scope.months:
            async for page in ledger.charges(month, charged=False, **of):  # type: ignore[arg-type]
                yield Batch(month, await names.of(month, {one.org_id for one in page}), others=page)


async def _refunds(ledger: Ledger, month: str, of: Mapping[str, str | None]) -> AsyncIterator[Sequence[Refunded]]:
    batch: list[Refunded] = []
    async for one in ledger.refunds(month, **of):  # type: ignore[arg-type]
        batch.append(one)
        if len(batch) == REFUNDS:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass(slots=True)
class NamesOf:
    """Names of organisations and their keys, as they were at a month's close, or are now."""

    ledger: Ledger
    _known: dict[tuple[str, str], Names] = field(default_factory=dict)

    async def of(self, month: str, org_ids: Collection[str]) -> Mapping[str, Names]:
        names = {}
        for org_id in org_ids:
            if (month, org_id) not in self._known:
                if len(self._known) >= KNOWN:
                    self._known.pop(next(iter(self._known)))
                self._known[month, org_id] = await self._read(month, org_id)
            names[org_id] = self._known[month, org_id]
        return names

    async def _read(self, month: str, org_id: str) -> Names:
        """Read an organisation's names. An order that was not charged may be of one that the ledger does not know."""
        try:
            return await self.ledger.names(month, org_id)
        except NotThere:
            return Names("", {})
