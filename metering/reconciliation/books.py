"""Both sides of a comparison, by model and day: what the ledger expects of a provider, and what the provider bills."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal

from metering.ports import HourSum
from metering.reconciliation.calendars import HOUR_US, Span

LEAST_USD = Decimal("0.000001")
"""Differences up to it are none: figures that pass through binary fractions end like 0.06000000000000001."""

ZERO = Decimal(0)


@dataclass(slots=True)
class Flow:
    """Images and USD of some orders, and the images that they asked for in vain: a provider may bill those, or not."""

    images: int = 0
    usd: Decimal = ZERO
    in_vain: int = 0

    def add(self, images: int, usd: Decimal, in_vain: int) -> None:
        """Add some more."""
        self.images += images
        self.usd += usd
        self.in_vain += in_vain


@dataclass(slots=True)
class Ours:
    """What the ledger expects on one day for one model.

    `crossing` is the part of it that ended after its day's midnight: a provider may have it on either day. `uncharged`
    is what the provider said that orders cost for which nobody was charged; it is not expected. `listed_usd` and
    `told_usd` are the list price and the provider's own figure of orders that have both. `prices` are the prices of an
    image, if they do not depend on a measurement.
    """

    expected: Flow = field(default_factory=Flow)
    crossing: Flow = field(default_factory=Flow)
    uncharged: Flow = field(default_factory=Flow)
    listed_usd: Decimal = ZERO
    told_usd: Decimal = ZERO
    told_images: int = 0
    prices: set[Decimal] = field(default_factory=set)

    @property
    def unit_usd(self) -> Decimal | None:
        """The price of each of its images, if all have the same."""
        if len(self.prices) != 1:
            return None
        (price,) = self.prices
        return price if self.expected.usd == price * self.expected.images else None

    def add(self, other: "Ours") -> None:
        """Add another day's orders; `crossing` stays, as it belongs to one midnight."""
        self.expected.add(other.expected.images, other.expected.usd, other.expected.in_vain)
        self.uncharged.add(other.uncharged.images, other.uncharged.usd, 0)
        self.listed_usd += other.listed_usd
        self.told_usd += other.told_usd
        self.told_images += other.told_images
        self.prices |= other.prices


@dataclass(slots=True)
class Theirs:
    """What a provider bills on one day for one model. `rounding` is half of the last digit that it prints."""

    images: int = 0
    usd: Decimal = ZERO
    rounding: Decimal = LEAST_USD

    def add(self, images: int, usd: Decimal, rounding: Decimal = LEAST_USD) -> None:
        """Add a line of its books. A sum of rounded figures is what is really paid, so roundings do not add up."""
        self.images += images
        self.usd += usd
        self.rounding = max(self.rounding, rounding)


Cell = tuple[str, date | None]
"""A model, by the provider's name, and a day of the provider; None if its books do not say days."""


@dataclass(slots=True)
class Bill:
    """A provider's books of a month. `counts` and `sums`: whether they say images, and money.

    What is paid besides orders, or given back without naming them, is only summed.
    """

    counts: bool
    sums: bool
    cells: dict[Cell, Theirs] = field(default_factory=dict)
    credits_usd: Decimal = ZERO
    taxes_usd: Decimal = ZERO
    others_usd: Decimal = ZERO
    total_usd: Decimal | None = None
    total_rounding: Decimal = ZERO

    @property
    def by_day(self) -> bool:
        """True if every line has its day."""
        return all(day is not None for _, day in self.cells)

    @property
    def usd(self) -> Decimal:
        """What it bills for images."""
        return sum((one.usd for one in self.cells.values()), ZERO)

    @property
    def images(self) -> int:
        """How many images it bills."""
        return sum(one.images for one in self.cells.values())

    def add(self, model: str, day: date | None, images: int, usd: Decimal, rounding: Decimal = LEAST_USD) -> None:
        """Add a line."""
        self.cells.setdefault((model, day), Theirs()).add(images, usd, rounding)


def expected(sums: Iterable[HourSum], provider: str, span: Span) -> dict[Cell, Ours]:
    """Sort a ledger's sums into days of the provider, by the time of the call.

    The day before the span has only what crosses the midnight at its beginning.
    """
    cells: dict[Cell, Ours] = {}
    for one in sums:
        begun, ended = (span.day_at(hour * HOUR_US) for hour in (one.begun_hour, one.ended_hour))
        if one.provider != provider or begun >= span.end or ended < span.first:
            continue
        cell = cells.setdefault((one.upstream, begun), Ours())
        images, usd, in_vain = _expected(one)
        if begun >= span.first:
            cell.expected.add(images, usd, in_vain)
            _tell(cell, one)
        if ended > begun:
            cell.crossing.add(images, usd, in_vain)
    return cells


def _expected(one: HourSum) -> tuple[int, Decimal, int]:
    """Find images and USD that the provider should bill, and images that it may bill besides."""
    if not one.charged:
        return 0, ZERO, one.images_asked if one.told_usd is None or one.told_usd else 0
    usd = Decimal(one.usd_per_image) * one.images if one.told_usd is None else one.told_usd
    return one.images, usd, one.images_asked - one.images


def _tell(cell: Ours, one: HourSum) -> None:
    """Note what can be said of prices, and of what was billed without a charge."""
    listed = Decimal(one.usd_per_image)
    if one.charged and not one.measured:
        cell.prices.add(listed)
    if one.told_usd is None:
        return
    if not one.charged and one.told_usd:
        cell.uncharged.add(one.images_asked, one.told_usd, 0)
    elif one.charged and one.complete and not one.measured:
        cell.listed_usd += listed * one.images
        cell.told_usd += one.told_usd
        cell.told_images += one.images
