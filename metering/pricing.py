"""An order's price, pinned: everything that is needed to compute it again."""

from dataclasses import dataclass
from decimal import Decimal

from metering.clock import FOREVER_US, Period
from metering.money import measured_micro_mxn, unit_price_micro_mxn


@dataclass(frozen=True, slots=True)
class Price:
    """One model's list price in one version of the price book.

    `variant` is the row's size and quality if the price depends on them, else empty. It holds from `from_us` to
    `until_us` (exclusive), Unix µs. `measured_by` says how the provider's report is priced, and is empty if it is not;
    None if nobody has said so.
    """

    model: str
    usd_per_image: Decimal
    markup: Decimal
    price_book: str
    variant: str = ""
    from_us: int = 0
    until_us: int = FOREVER_US
    measured_by: str | None = None


MAX_FX_JUMP = Decimal("0.1")
"""How far a month's rate may be from the one before it, as a share, unless somebody insists."""


@dataclass(frozen=True, slots=True)
class FxRate:
    """MXN for one USD in one calendar month, from the rate table."""

    month: str
    mxn_per_usd: Decimal
    source: str


@dataclass(frozen=True, slots=True)
class Quote:
    """The pinned price of an order: USD list × markup × FX, per image, and the day that it is booked to."""

    price: Price
    rate: FxRate
    period: Period
    images: int
    unit_micro_mxn: int

    @property
    def from_us(self) -> int:
        """First moment at which an order may be admitted at this quote, Unix µs: it is of one day and one price."""
        return max(self.period.start_us, self.price.from_us)

    @property
    def until_us(self) -> int:
        """Moment from which on it must be quoted again, Unix µs."""
        return min(self.period.end_us, self.price.until_us)

    @property
    def total_micro_mxn(self) -> int:
        """Price if every image is delivered. The hold sets it aside."""
        return self.unit_micro_mxn * self.images

    def charge_micro_mxn(self, delivered: int, usd_measured: Decimal | None) -> int:
        """Compute the price of `delivered` images: their unit prices, or less if the provider reported less in USD."""
        quoted = self.unit_micro_mxn * delivered
        if usd_measured is None:
            return quoted
        return measured_micro_mxn(usd_measured, self.price.markup, self.rate.mxn_per_usd, quoted)

    def excess_usd(self, delivered: int, usd_measured: Decimal | None) -> Decimal:
        """Compute how far the provider's figure is above the delivered images' list price: our loss, never charged."""
        if usd_measured is None:
            return Decimal(0)
        return max(Decimal(0), usd_measured - self.price.usd_per_image * delivered)


def quote(price: Price, rate: FxRate, period: Period, images: int) -> Quote:
    """Build the quote of an order. Each image is rounded once; an order is the sum of its images (rule 23)."""
    unit = unit_price_micro_mxn(price.usd_per_image, price.markup, rate.mxn_per_usd)
    return Quote(price=price, rate=rate, period=period, images=images, unit_micro_mxn=unit)


def charge_micro_mxn(
    usd_per_image: Decimal, markup: Decimal, mxn_per_usd: Decimal, quantity: int, usd_measured: Decimal | None
) -> int:
    """Compute a charge from the factors of its proof: unit prices, or less if the provider reported less in USD."""
    quoted = unit_price_micro_mxn(usd_per_image, markup, mxn_per_usd) * quantity
    return quoted if usd_measured is None else measured_micro_mxn(usd_measured, markup, mxn_per_usd, quoted)
