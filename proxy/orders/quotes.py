"""Step 3 of a request: the price of an order, at the prices of its moment and the rate of its month."""

from dataclasses import replace

from metering.clock import period_at
from metering.fx import FxRateMissing, FxTable
from metering.price_table import PriceTable
from metering.pricing import Quote, quote
from proxy.errors import ApiError, Kind
from proxy.messages import FX_MISSING
from proxy.ports import Order


class Quotes:
    """Quotes orders, as the ledger's prices and rates say."""

    def __init__(self, rates: FxTable, prices: PriceTable) -> None:
        self._rates = rates
        self._prices = prices

    async def renew(self, now_us: int) -> None:
        """Have the prices read again if the last reading does not hold any more at a Unix time in µs."""
        await self._prices.renew(now_us)

    def quote(self, order: Order, now_us: int) -> Quote:
        """Quote an order at a Unix time in µs. Raises ApiError 503 if the month has no exchange rate."""
        period = period_at(now_us)
        try:
            rate = self._rates.rate_for(period.month, now_us)
        except FxRateMissing:
            raise ApiError(Kind.FX_MISSING, FX_MISSING.of(month=period.month)) from None
        listed = order.model.quoted(order.size, order.quality)
        assert listed is not None, "an order for an unpriced model is not parsed"
        price = self._prices.price(order.model_id, listed.variant, now_us)
        return quote(price, rate, period, order.n)


def as_quoted(order: Order, quote: Quote) -> Order:
    """Pin how the provider's report is priced: by the list of the quote, which may be another than this file's."""
    return replace(order, model=order.model.as_listed(quote.price.measured_by, quote.price.usd_per_image))
