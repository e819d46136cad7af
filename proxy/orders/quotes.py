"""Step 3 of a request: the price of an order, at the prices and the rate of its month."""

from decimal import Decimal

from metering.clock import period_at
from metering.fx import FxRateMissing, FxTable
from metering.pricing import Price, Quote, quote
from proxy.errors import ApiError, Kind
from proxy.messages import FX_MISSING
from proxy.ports import Order


class Quotes:
    """Quotes orders. `price_book` is the version that a quote names."""

    def __init__(self, rates: FxTable, *, markup: Decimal, price_book: str) -> None:
        self._rates = rates
        self._markup = markup
        self._price_book = price_book

    def quote(self, order: Order, now_us: int) -> Quote:
        """Quote an order at a Unix time in µs. Raises ApiError 503 if the month has no exchange rate."""
        period = period_at(now_us)
        try:
            rate = self._rates.rate_for(period.month, now_us)
        except FxRateMissing:
            raise ApiError(Kind.FX_MISSING, FX_MISSING.of(month=period.month)) from None
        listed = order.model.listed(order.size, order.quality)
        assert listed is not None, "an order for an unpriced model is not parsed"
        price = Price(
            model=order.model_id,
            usd_per_image=listed.usd_per_image,
            variant=listed.variant,
            markup=self._markup,
            price_book=self._price_book,
        )
        return quote(price, rate, period, order.n)
