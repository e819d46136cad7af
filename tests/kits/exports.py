"""A ledger of a few rows, for what an export writes of them."""

import io
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from metering.exports.formats import FORMATS
from metering.exports.reading import Scope
from metering.exports.rows import Written
from metering.exports.writing import Source, untold
from metering.ports import Charge, ClosedMonth, Ledger, Names, Refunded

MONTH = "2036-11"


@dataclass
class Rows:
    """Pages of charges, refunds, and names, whatever is asked for; as a ledger has them of one month."""

    pages: Sequence[Sequence[Charge]] = ()
    given: Sequence[Refunded] = ()
    called: Names = field(default_factory=lambda: Names("acme", {"key_1": "web"}))
    closed: Sequence[ClosedMonth] = ()

    async def charges(self, month: str, *, charged: bool = True, **_: Any) -> AsyncIterator[Sequence[Charge]]:
        for page in self.pages:
            if chosen := [one for one in page if (one.end == "charge") == charged]:
                yield chosen

    async def refunds(self, month: str, **_: Any) -> AsyncIterator[Refunded]:
        for one in self.given:
            yield one

    async def names(self, month: str, org_id: str) -> Names:
        return self.called

    async def closed_months(self) -> Sequence[ClosedMonth]:
        return self.closed


def source(pages: Sequence[Sequence[Charge]] = (), given: Sequence[Refunded] = (), **more: Any) -> Source:
    """Make the source of an export of these rows."""
    return Source(cast(Ledger, Rows(pages, given, **more)), Scope((MONTH,)))


async def exported(of: Source, name: str = "csv", variant: str | None = None) -> tuple[bytes, Written]:
    """Export into memory; returns the file and its totals."""
    file = io.BytesIO()
    written = await FORMATS[name].load(variant)(of, file, untold)
    return file.getvalue(), written


CLOSED: Mapping[str, Any] = {
    "closed": [ClosedMonth(MONTH, "2036-12-01T06:00:00+00:00", "2036-12-03T18:00:00+00:00", "ana", False, 0, 0)]
}
