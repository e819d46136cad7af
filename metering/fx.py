"""The month's rate: fixed per calendar month in Mexico City, one source of truth in SQL."""

from collections.abc import Sequence

import structlog

from metering.background import every
from metering.clock import month_start_us, next_month, period_at, previous_month, utc_now
from metering.ports import Ledger, LedgerAway
from metering.pricing import FxRate

log = structlog.get_logger(__name__)

WARN_US = 3 * 24 * 3600 * 1_000_000
"""A month's missing rate is alarmed from three days before it begins."""


class FxRateMissing(Exception):
    """There is no rate for the month, and last month's has run out of grace."""


class FxTable:
    """The rate table as one process last read it."""

    def __init__(self, ledger: Ledger, grace_h: float) -> None:
        self._ledger = ledger
        self._grace_us = int(grace_h * 3_600_000_000)
        self._by_month: dict[str, FxRate] = {}

    def rate_for(self, month: str, now_us: int) -> FxRate:
        """The month's rate, or last month's within the grace; the rate names its own month. Raises FxRateMissing."""
        if rate := self._by_month.get(month):
            return rate
        last = self._by_month.get(previous_month(month))
        if last is not None and now_us - month_start_us(month) < self._grace_us:
            return last
        raise FxRateMissing(month)

    def missing(self, now_us: int) -> list[str]:
        """Months without a rate that should have one by now: this one, and from three days before it the next."""
        month = period_at(now_us).month
        ahead = next_month(month)
        due = [month] if month_start_us(ahead) - now_us > WARN_US else [month, ahead]
        return [wanted for wanted in due if wanted not in self._by_month]

    async def refresh(self) -> None:
        """Read the table anew. Raises LedgerAway, and then the last reading stands."""
        self._by_month = {rate.month: rate for rate in await self._ledger.rates()}

    async def run(self, every_s: float) -> None:
        """Follow the table until cancelled."""
        await every(every_s, self._follow, away=(LedgerAway,), name="fx_rates_not_read")

    async def _follow(self) -> None:
        """One look, and an alarm for what is missing in the last reading, be it this one's or not."""
        try:
            await self.refresh()
        finally:
            for month in self.missing(int(utc_now().timestamp() * 1_000_000)):
                log.error("fx_rate_missing", month=month)


async def seed(ledger: Ledger, rates: Sequence[FxRate]) -> None:
    """Fill an empty rate table, and nothing else."""
    if not await ledger.rates():
        for rate in rates:
            await ledger.add_rate(rate, utc_now())
