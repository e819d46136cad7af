"""A quote pins everything that the price came from."""

from decimal import Decimal

import pytest

from metering.clock import period_at
from metering.pricing import FxRate, Price, quote

NOON_US = 1_795_370_400_000_000


@pytest.mark.rule(23)
def test_an_order_is_the_sum_of_its_images() -> None:
    """Rounded per image, then multiplied: 3 × 0.333334, not 1.000001 (rule 23)."""
    price = Price("m", Decimal("0.3333335"), Decimal(1), "book")
    pinned = quote(price, FxRate("2026-11", Decimal(1), "test"), period_at(NOON_US), 3)
    assert pinned.unit_micro_mxn == 333_334
    assert pinned.total_micro_mxn == 1_000_002


@pytest.mark.rule(25)
def test_a_quote_names_price_rate_and_day() -> None:
    """The rate keeps its own month, which may be another one than the order's (rule 25)."""
    price = Price("fal/flux-1.1-pro", Decimal("0.04"), Decimal("1.05"), "book")
    rate = FxRate("2026-10", Decimal(20), "grace")
    pinned = quote(price, rate, period_at(NOON_US), 8)
    assert (pinned.unit_micro_mxn, pinned.total_micro_mxn) == (840_000, 6_720_000)
    assert (pinned.price, pinned.rate, pinned.period.month) == (price, rate, "2026-11")


def test_a_measured_order_costs_what_was_measured_and_never_more_than_its_quote() -> None:
    """Rule 22: the smaller of the provider's own figure and the quote; the excess is known, and ours."""
    price = Price("m", Decimal("0.02"), Decimal("1.05"), "book")
    order = quote(price, FxRate("2026-11", Decimal(20), "test"), period_at(0), 4)
    assert order.charge_micro_mxn(3, None) == 3 * 420_000
    assert order.charge_micro_mxn(3, Decimal("0.05")) == 1_050_000
    assert order.charge_micro_mxn(3, Decimal("0.06")) == order.charge_micro_mxn(3, Decimal("0.60")) == 1_260_000
    assert order.charge_micro_mxn(3, Decimal(0)) == 1
    assert order.excess_usd(3, Decimal("0.60")) == Decimal("0.54")
    assert order.excess_usd(3, Decimal("0.06")) == order.excess_usd(3, None) == 0
