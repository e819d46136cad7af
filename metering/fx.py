"""The month's exchange rate: fixed per calendar month in Mexico City, one source of truth in SQL."""

from collections.abc import Sequence

import structlog
from prometheus_client import Gauge

from metering.background import every
from metering.clock import month_start_us, next_month, period_at, previous_month, utc_now
from metering.ports import Ledger, LedgerAway
from metering.pricing import FxRate

log = structlog.get_logger(__name__)

WARN_US = 3 * 24 * 3600 * 1_000_000
"""A missing rate raises an alarm from three days before its month begins."""


MISSING = Gauge(
    "ghub_fx_months_missing",
    "Months without an approved exchange rate that should have one: this one, and from three days before it the next",
)


class FxRateMissing(Exception):
    """The month has no rate, and the grace period of last month's rate is over."""


class FxTable:
    """The rate table as one process last read it."""

    def __init__(self, ledger: Ledger, grace_h: float) -> None:
        self._ledger = ledger
        self._grace_us = int(grace_h * 3_600_000_000)
        self._by_month: dict[str, FxRate] = {}
        self._waiting: set[str] = set()  # months that have a rate which nobody has approved

    def rate_for(self, month: str, now_us: int) -> FxRate:
        """Find the month's rate, or last month's within the grace period; it names its own month.

        Raises FxRateMissing.
        """
        if rate := self._by_month.get(month):
            return rate
        last = self._by_month.get(previous_month(month))
        if last is not None and now_us - month_start_us(month) < self._grace_us:
            return last
        raise FxRateMissing(month)

    def missing(self, now_us: int) -> list[str]:
        """List months that lack a rate and should have one: this one, and the next from three days before it."""
        month = period_at(now_us).month
        ahead = next_month(month)
        due = [month] if month_start_us(ahead) - now_us > WARN_US else [month, ahead]
        return [wanted for wanted in due if wanted not in self._by_month]

    async def refresh(self) -> None:
        """Read the table again. Raises LedgerAway; then the last reading still holds."""
        records = await self._ledger.rate_records()
        self._by_month = {one.rate.month: one.rate for one in records if one.approved_by is not None}
        self._waiting = {one.rate.month for one in records} - set(self._by_month)

    async def run(self, every_s: float) -> None:
        """Refresh the table every `every_s` seconds until cancelled."""
        await every(every_s, self._follow, away=(LedgerAway,), name="fx_rates_not_read")

    async def _follow(self) -> None:
        """Refresh once, and log an error for each missing rate even if the refresh failed.

        One that waits for its approval is missing, too.
        """
        try:
            await self.refresh()
        finally:
            missing = self.missing(int(utc_now().timestamp() * 1_000_000))
            MISSING.set(len(missing))
            for month in missing:
                log.error("fx_rate_not_approved" if month in self._waiting else "fx_rate_missing", month=month)


async def seed(ledger: Ledger, rates: Sequence[FxRate]) -> None:
    """Fill the rate table if it is empty. What seeds it counts as approved."""
    if not await ledger.rate_records():
        for rate in rates:
            await ledger.add_rate(rate, utc_now())
