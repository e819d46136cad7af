"""The price of a model at a moment: what holds, and the one change that is announced. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from metering.clock import FOREVER_US, utc_at
from metering.money import format_rate

NOTICE_S = 120.0
"""How far ahead a changed price must be: every gateway reads the ledger's prices every few seconds, and one that could
not finds its quotes refused before (LEASE_S).
"""


class PriceRefused(Exception):
    """A file changes a price in a way that gateways could not follow together; the message names the field."""


@dataclass(frozen=True, slots=True)
class BookPrice:
    """A list price of one image in one version of the price book.

    `measured_by` says how the provider's report is priced, and is empty if it is not. None: it was listed before lists
    said so, and is taken for any.
    """

    version: str
    usd_per_image: Decimal
    markup: Decimal
    measured_by: str | None = ""

    def same_as(self, other: "BookPrice | None") -> bool:
        """True if both make an order cost the same, whatever book they stand in."""
        if other is None or (self.usd_per_image, self.markup) != (other.usd_per_image, other.markup):
            return False
        return None in (self.measured_by, other.measured_by) or self.measured_by == other.measured_by


@dataclass(frozen=True, slots=True)
class Schedule:
    """The price of one variant of a model: `price` from `from_us` (Unix µs) on, and `before` until then.

    If it was never sold before, its first price holds from the beginning: `from_us` is 0.
    """

    price: BookPrice
    from_us: int = 0
    before: BookPrice | None = None

    def at(self, now_us: int) -> BookPrice:
        """Find the price that holds at a moment."""
        return self.price if self.before is None or now_us >= self.from_us else self.before

    def holds(self, now_us: int) -> tuple[int, int]:
        """Find since when, and until when (exclusive), the price of a moment is the same."""
        if self.before is None:
            return 0, FOREVER_US
        return (self.from_us, FOREVER_US) if now_us >= self.from_us else (0, self.from_us)


@dataclass(frozen=True, slots=True)
class ListedSchedule:
    """The schedule that was in force from the ledger's list `number` on, which was written at `at_us`, Unix µs."""

    number: int
    at_us: int
    schedule: Schedule


def changed(field: str, known: Schedule, price: BookPrice, effective_us: int | None, now_us: int) -> Schedule | None:
    """Judge what a file makes of a price: None if it changes nothing from now on, else the new schedule.

    `field` names the price, and `effective_us` is the file's `effective_from`, Unix µs. Raises PriceRefused if the
    change comes less than NOTICE_S after `now_us`.
    """
    first_us = first_change_us(known, price, effective_us, now_us)
    if first_us is None:
        return None
    planned = _planned(known, price, effective_us, now_us)
    if first_us < now_us + int(NOTICE_S * 1_000_000):
        raise PriceRefused(f"{field}: {_refusal(known.at(first_us), planned.at(first_us), first_us, now_us)}")
    return planned


def first_change_us(known: Schedule, price: BookPrice, effective_us: int | None, now_us: int) -> int | None:
    """Find the first moment from now on, Unix µs, at which a file makes an order cost something else; None if never."""
    planned = _planned(known, price, effective_us, now_us)
    moments = sorted({now_us, *(at_us for at_us in (known.from_us, planned.from_us) if at_us > now_us)})
    return next((at_us for at_us in moments if not planned.at(at_us).same_as(known.at(at_us))), None)


def price_of_moment(history: Sequence[ListedSchedule], at_us: int) -> BookPrice | None:
    """Find the price that an order had to have which was admitted at a moment; None if nothing was listed yet.

    `history`: of one variant, by number.
    """
    last = next((one for one in reversed(history) if one.at_us <= at_us), None)
    return last.schedule.at(at_us) if last is not None else None


def _planned(known: Schedule, price: BookPrice, effective_us: int | None, now_us: int) -> Schedule:
    return Schedule(price, effective_us or 0, known.at(now_us))


def _told(price: BookPrice) -> str:
    usd = f"{format_rate(price.usd_per_image)} × {format_rate(price.markup)}"
    return f"{usd} by {price.measured_by}" if price.measured_by else usd


def _refusal(old: BookPrice, new: BookPrice, first_us: int, now_us: int) -> str:
    was, becomes = (_told(one) for one in (old, new))
    moment = utc_at(first_us).isoformat(timespec="seconds")
    when = "at once" if first_us <= now_us else f"at {moment}"
    return (
        f"the price {was} would become {becomes} {when}; a changed price needs `effective_from`,"
        f" at least {NOTICE_S:.0f} s ahead"
    )
