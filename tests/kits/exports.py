"""A ledger of a few rows, for what an export writes of them."""

import io
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, cast

from metering.clock import month_start_us, period_at, utc_at
from metering.events import Event
from metering.exports.formats import FORMATS
from metering.exports.reading import Scope
from metering.exports.rows import Written
from metering.exports.writing import Source, untold
from metering.ports import ApiKey, Charge, ClosedMonth, Ledger, Names, NewCredit, Org, Refunded
from metering.tax import tax_on
from tests.kits.books import ACT, DAY_US, NOON, event

MONTH = "2036-11"
HOUR_US = 3_600_000_000
IVA_RATE = Decimal("0.16")


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

ORGS = ("Panadería La Ñusta, S.A. de C.V.", '=HYPERLINK("http://x")', '@ "quoted", 1')
KEYS = ("web", "+1", "-cmd|' /C calc'!A0")
EVENTS_OF_ORG = 12
END = utc_at(month_start_us("2036-12"))
CLOSE = END + timedelta(days=2)


def org_id_of(number: int) -> str:
    """Make an organisation's id."""
    return f"{number + 1}1111111-1111-4111-8111-111111111111"


async def fill(ledger: Ledger, *, month: str = MONTH) -> None:
    """Enter three organisations with nasty names, their money, and a month's orders of each kind; refunds, too."""
    begins = utc_at(month_start_us(month))
    for number, (name, key) in enumerate(zip(ORGS, KEYS, strict=True)):
        org_id = org_id_of(number)
        await ledger.create_org(Org(org_id, name, "default", begins.isoformat()), ACT)
        await ledger.create_key(ApiKey(f"key_{number}", org_id, key, f"hash {number}", begins.isoformat()), ACT)
        recharge = NewCredit(f"spei-{number}", org_id, "recharge", 500_000_000, tax=tax_on(500_000_000, IVA_RATE))
        await ledger.add_credit(recharge, begins + timedelta(days=1), ACT)
        bonus = NewCredit(f"=bonus-{number}", org_id, "bonus", 50_000_000, reason="-bienvenida")
        await ledger.add_credit(bonus, begins + timedelta(days=1), ACT)
    await ledger.book([_order(org, number) for org in range(len(ORGS)) for number in range(EVENTS_OF_ORG)], [], NOON)
    order = f"{org_id_of(0)}-1"
    await ledger.refund(order, 500_000, "=borrosa", begins + timedelta(days=20), ACT)


def _order(org: int, number: int) -> Event:
    """Make an order on one of the month's days, each other one of them an hour before midnight."""
    end = ("charge", "charge", "charge", "void", "expiry")[number % 5]
    made = event(org_id_of(org), number + 1, images=number % 3 + 1, end=end)
    at_us = month_start_us(MONTH) + (2 * number + 1) * DAY_US - (HOUR_US if number % 2 else 0)
    period = period_at(at_us)
    opened = replace(
        made.opened,
        key_id=f"key_{org}",
        day=period.day,
        month=period.month,
        end_user=f"eu_{number}" if number % 2 else None,
        tags='["campaña","=1+1"]' if number % 2 else None,
        metadata='{"proyecto":"@x"}' if number % 3 else None,
    )
    return replace(
        made,
        opened=opened,
        reason="no_answer" if end == "void" else made.reason,
        admitted_us=at_us,
        ended_us=at_us + 9_123_456,
        upstream_ids='["=up-1"]' if number % 2 else None,
        upstream_usd="0.04" if number % 2 else None,
    )
