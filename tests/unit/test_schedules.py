"""The price of a moment, and what a file may change about it."""

from decimal import Decimal

import pytest

from metering.clock import FOREVER_US
from metering.schedules import (
    NOTICE_S,
    BookPrice,
    ListedSchedule,
    PriceRefused,
    Schedule,
    changed,
    price_of_moment,
)

NOW_US = 2_000_000_000_000_000
NOTICE_US = int(NOTICE_S * 1_000_000)
SOON_US = NOW_US + NOTICE_US - 1
THEN_US = NOW_US + NOTICE_US
LATER_US = NOW_US + 10 * NOTICE_US


def priced(usd: str, version: str = "", markup: str = "1.05") -> BookPrice:
    return BookPrice(version or usd, Decimal(usd), Decimal(markup))


OLD, NEW, OTHER = priced("0.04"), priced("0.05"), priced("0.06")
HELD = Schedule(OLD)
ANNOUNCED = Schedule(NEW, THEN_US, OLD)


@pytest.mark.parametrize(
    ("schedule", "at_us", "price", "holds"),
    [
        (HELD, 0, OLD, (0, FOREVER_US)),
        (HELD, NOW_US, OLD, (0, FOREVER_US)),
        (ANNOUNCED, THEN_US - 1, OLD, (0, THEN_US)),
        (ANNOUNCED, THEN_US, NEW, (THEN_US, FOREVER_US)),
        (Schedule(NEW, LATER_US), NOW_US, NEW, (0, FOREVER_US)),  # never sold before: its first price
    ],
)
def test_a_moment_has_one_price(schedule: Schedule, at_us: int, price: BookPrice, holds: tuple[int, int]) -> None:
    """The moment of the change itself has the new one."""
    assert (schedule.at(at_us), schedule.holds(at_us)) == (price, holds)


@pytest.mark.parametrize(
    ("known", "price", "effective_us", "planned"),
    [
        # Nothing changes: no notice is needed, whatever the file says of its beginning.
        (HELD, OLD, None, None),
        (HELD, OLD, NOW_US - 1, None),
        (HELD, OLD, SOON_US, None),
        (HELD, priced("0.040", "another book"), None, None),
        (ANNOUNCED, NEW, THEN_US, None),
        # Announced in time.
        (HELD, NEW, THEN_US, ANNOUNCED),
        (HELD, priced("0.04", markup="1.06"), THEN_US, Schedule(priced("0.04", markup="1.06"), THEN_US, OLD)),
        # What was announced is withdrawn, moved, or made another price.
        (ANNOUNCED, OLD, None, Schedule(OLD, 0, OLD)),
        (ANNOUNCED, NEW, LATER_US, Schedule(NEW, LATER_US, OLD)),
        (ANNOUNCED, OTHER, THEN_US, Schedule(OTHER, THEN_US, OLD)),
    ],
)
def test_a_change_that_is_announced_is_planned(
    known: Schedule, price: BookPrice, effective_us: int | None, planned: Schedule | None
) -> None:
    """From its first moment on, and the price of now until then."""
    assert changed("models.m", known, price, effective_us, NOW_US) == planned


@pytest.mark.parametrize(
    ("known", "price", "effective_us"),
    [
        (HELD, NEW, None),
        (HELD, NEW, NOW_US - 1),
        (HELD, NEW, NOW_US),
        (HELD, NEW, SOON_US),
        (Schedule(NEW, SOON_US, OLD), OLD, None),  # too late to withdraw it
        (Schedule(NEW, SOON_US, OLD), NEW, LATER_US),  # too late to move it
        (Schedule(NEW, LATER_US, OLD), NEW, SOON_US),
        (Schedule(NEW, NOW_US - 1, OLD), OLD, None),  # it has begun
    ],
)
def test_a_change_that_comes_too_soon_is_refused(known: Schedule, price: BookPrice, effective_us: int | None) -> None:
    """The sentence names the price and the way out."""
    with pytest.raises(PriceRefused, match=r"^models\.m: the price 0\.0. × 1\.05 would become .* `effective_from`"):
        changed("models.m", known, price, effective_us, NOW_US)


def test_the_price_of_a_past_moment_is_that_of_the_list_of_then() -> None:
    """A list that was written later says nothing of it; before the first list nothing is known."""
    history = [
        ListedSchedule(1, NOW_US, HELD),
        ListedSchedule(4, NOW_US + 5, ANNOUNCED),
        ListedSchedule(6, THEN_US + 5, Schedule(OTHER, LATER_US, NEW)),
    ]
    assert price_of_moment(history, NOW_US - 1) is None
    assert price_of_moment(history, NOW_US) == OLD
    assert price_of_moment(history, THEN_US - 1) == OLD
    assert price_of_moment(history, THEN_US) == NEW
    assert price_of_moment(history, LATER_US - 1) == NEW
    assert price_of_moment(history, LATER_US) == OTHER
    assert price_of_moment([], NOW_US) is None
