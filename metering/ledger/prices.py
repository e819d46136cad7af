"""Exchange rates and list prices: rows that never change."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

from metering.clock import month_start_us, unix_us_at
from metering.ledger.transactions import Steps, Transactions, audit, once
from metering.money import format_rate
from metering.ports import Act, ListPrice, WrongField
from metering.pricing import FxRate


class PriceRecords(Transactions):
    """Rates and prices, against which the proofs of events are checked (rule 25)."""

    async def add_rate(self, rate: FxRate, at: datetime, act: Act | None = None) -> bool:
        """Add a month's rate; False if it exists already. Without `act` it is the seed of an empty table.

        Raises LedgerError if the month has begun with another rate.
        """

        def steps() -> Steps[bool]:
            rows = yield "rates", {}
            before = {month: Decimal(text) for month, text, _ in rows}.get(rate.month)
            if before == rate.mxn_per_usd:
                if act is not None:
                    yield from once(act, at.isoformat())
                return False
            if before is not None and unix_us_at(at) >= month_start_us(rate.month):
                raise WrongField(
                    "month",
                    f"{rate.month} has begun at {format_rate(before)} MXN for one USD, and a month's rate is fixed",
                )
            values = {"month": rate.month, "mxn_per_usd": format_rate(rate.mxn_per_usd), "source": rate.source}
            yield "add_rate", {**values, "at": at.isoformat()}
            if act is not None:
                yield from audit(act, at.isoformat())
            return True

        return await self._run("write", steps)

    async def rates(self) -> list[FxRate]:
        """Read the rate in force of each month, oldest month first."""
        rows = await self._rows("rates")
        return [FxRate(month=month, mxn_per_usd=Decimal(rate), source=source) for month, rate, source in rows]

    async def rate_rows(self) -> set[tuple[str, Decimal]]:
        """Read every rate that was ever in force, as (month, MXN for one USD)."""
        return {(month, Decimal(rate)) for month, rate in await self._rows("all_rates")}

    async def register_prices(self, version: str, markup: Decimal, prices: Sequence[ListPrice], at: datetime) -> None:
        """Write a price book, once. A version's rows never change."""

        def steps() -> Steps[None]:
            if (yield "price_book", {"version": version}):
                return
            yield "add_price_book", {"version": version, "markup": format_rate(markup), "at": at.isoformat()}
            for price in prices:
                usd = format_rate(price.usd_per_image)
                values = {"version": version, "model": price.model, "variant": price.variant, "usd_per_image": usd}
                yield "add_price", values

        await self._run("write", steps)

    async def price_rows(self) -> dict[tuple[str, str, str], tuple[Decimal, Decimal]]:
        """Read list prices: (version, model, variant) → (USD per image, markup)."""
        rows = await self._rows("price_rows")
        return {
            (version, model, variant): (Decimal(usd), Decimal(markup)) for version, model, variant, usd, markup in rows
        }
