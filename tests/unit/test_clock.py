"""Days and months in Mexico City."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.clock import (
    is_month,
    month_start_us,
    next_month,
    period_at,
    previous_month,
    unix_us_at,
    utc_at,
    utc_now,
)
from tests.long import examples

HOUR_US = 3_600_000_000


def us(text: str) -> int:
    return unix_us_at(datetime.fromisoformat(text).replace(tzinfo=UTC))


@pytest.mark.rule(24)
@pytest.mark.parametrize(
    ("utc", "day"),
    [
        ("2026-11-22T05:59:59.999999", "2026-11-21"),
        ("2026-11-22T06:00:00", "2026-11-22"),
        ("2026-11-23T05:59:59.999999", "2026-11-22"),
        ("2026-12-01T05:59:59.999999", "2026-11-30"),
        ("2026-12-01T06:00:00", "2026-12-01"),
        ("2027-01-01T05:59:59.999999", "2026-12-31"),
        ("2028-02-29T12:00:00", "2028-02-29"),
        ("2028-03-01T05:59:59", "2028-02-29"),
        ("2027-03-01T05:59:59", "2027-02-28"),
        ("2026-07-01T05:30:00", "2026-06-30"),  # no summer time since 2022
        ("2021-07-01T05:30:00", "2021-07-01"),  # summer time, UTC-5
        ("2021-07-01T04:59:59", "2021-06-30"),
        ("2022-10-30T05:30:00", "2022-10-30"),  # the last day that was in summer time as it began
        ("2022-10-31T05:30:00", "2022-10-30"),
    ],
)
def test_a_moment_belongs_to_its_mexican_day(utc: str, day: str) -> None:
    """UTC-6 now, and the zone's own history before (rule 24)."""
    period = period_at(us(utc))
    assert (period.day, period.month) == (day, day[:7])


@pytest.mark.parametrize(
    ("day", "hours"),
    [
        ("2026-11-22", 24),
        ("2026-04-05", 24),
        ("2021-04-04", 23),
        ("2021-10-31", 25),
        ("2022-10-30", 25),
        ("2023-04-02", 24),
    ],
)
def test_a_day_is_as_long_as_it_was(day: str, hours: int) -> None:
    """23 and 25 hours when the clocks were changed, 24 ever since."""
    period = period_at(us(f"{day}T18:00:00"))
    assert period.end_us - period.start_us == hours * HOUR_US


@given(st.integers(us("1997-01-01"), us("2100-01-01")))
@settings(max_examples=examples(300), derandomize=True)
def test_days_tile_the_time(at: int) -> None:
    """The start is inclusive, the end exclusive: every moment is in exactly one day."""
    period = period_at(at)
    assert period.start_us <= at < period.end_us
    assert period_at(period.start_us) == period == period_at(period.end_us - 1)
    assert period_at(period.end_us).start_us == period.end_us
    assert period_at(period.start_us - 1).end_us == period.start_us


def test_a_month_begins_with_its_first_day() -> None:
    """Midnight in Mexico City is 06:00 UTC."""
    assert month_start_us("2026-12") == us("2026-12-01T06:00:00")
    assert period_at(month_start_us("2026-12")).start_us == month_start_us("2026-12")


def test_months_follow_each_other() -> None:
    """Over the turn of a year, too."""
    assert next_month("2026-11") == "2026-12"
    assert next_month("2026-12") == "2027-01"
    assert previous_month("2027-01") == "2026-12"
    assert previous_month("2026-12") == "2026-11"
    month = "1999-01"
    for _ in range(60):
        assert previous_month(next_month(month)) == month
        assert period_at(month_start_us(next_month(month)) - 1).month == month
        month = next_month(month)
    assert month == "2004-01"


@pytest.mark.parametrize("text", ["2026-00", "2026-13", "2026-1", "26-01", "2026-11\n", "2026-11-01", ""])
def test_other_texts_are_no_month(text: str) -> None:
    """`YYYY-MM`, and nothing else."""
    assert not is_month(text)
    assert is_month("2026-11")


def test_microseconds_are_exact_both_ways() -> None:
    """No float on the way, in any century."""
    for at in (0, 1, us("2026-11-22T18:00:00.000001"), us("2199-12-31T23:59:59.999999")):
        assert unix_us_at(utc_at(at)) == at
    assert utc_at(1) - utc_at(0) == timedelta(microseconds=1)
    assert utc_now().tzinfo is UTC
