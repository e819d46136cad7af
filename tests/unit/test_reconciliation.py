"""A provider's books against a ledger's sums: pure, by model and day."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.clock import unix_us_at
from metering.ports import HourSum, WrongField
from metering.reconciliation.books import Bill, expected
from metering.reconciliation.by_id import Part, parts_of
from metering.reconciliation.calendars import HOUR_US, Span, span_of
from metering.reconciliation.comparing import compare, known_without_books
from metering.reconciliation.findings import Finding, Findings, Kind

LATER = datetime(2036, 12, 10, tzinfo=UTC)
SPAN = span_of("2036-11", "UTC", LATER)
PRICE = Decimal("0.19")
MODEL = "gpt-image-1"
FIRST = date(2036, 11, 1)
DAY = timedelta(days=1)


def hour(text: str) -> int:
    return unix_us_at(datetime.fromisoformat(text).replace(tzinfo=UTC)) // HOUR_US


def orders(
    begun: str,
    count: int = 1,
    *,
    ended: str | None = None,
    charged: bool = True,
    asked: int | None = None,
    told: str | None = None,
    usd: str = "0.19",
    measured: bool = False,
) -> HourSum:
    images, asked = (count if charged else 0), asked or count
    told_usd = None if told is None else Decimal(told)
    last = hour(ended or begun)
    return HourSum("openai", MODEL, hour(begun), last, charged, images == asked, measured, usd, told_usd, images, asked)


def bill(*lines: tuple[date | None, int, str], counts: bool = True, sums: bool = True) -> Bill:
    found = Bill(counts, sums)
    for day, images, usd in lines:
        found.add(MODEL, day, images, Decimal(usd))
    return found


def off(sums: list[HourSum], found: Bill, span: Span = SPAN) -> list[tuple[Kind, date | None, int, str]]:
    ours = expected(sums, "openai", span)
    return [(one.kind, one.day, one.images, f"{one.usd:f}") for one in compare("openai", span, ours, found)]


@given(
    own=st.lists(st.integers(0, 5), min_size=31, max_size=31),
    crossing=st.lists(st.integers(0, 3), min_size=32, max_size=32),
    later=st.lists(st.integers(0, 3), min_size=32, max_size=32),
)
def test_whichever_day_has_what_crosses_midnight_nothing_is_off(
    own: list[int], crossing: list[int], later: list[int]
) -> None:
    """Also over the month's own borders, where it may be in another invoice; a further image is always found."""
    sums, billed = [], {FIRST + DAY * n: 0 for n in range(30)}
    for n in range(-1, 30):
        day = FIRST + DAY * n
        if n >= 0 and own[n]:
            sums.append(orders(f"{day}T12:00", own[n]))
            billed[day] += own[n]
        if crossing[n]:
            moved = min(crossing[n], later[n])
            sums.append(orders(f"{day}T23:00", crossing[n], ended=f"{day + DAY}T00:00"))
            if n >= 0:
                billed[day] += crossing[n] - moved
            if n < 29:
                billed[day + DAY] += moved
    lines = [(day, count, f"{PRICE * count}") for day, count in billed.items()]
    assert off(sums, bill(*lines)) == []
    room = sum(crossing)  # so many could have moved to a day from its neighbours
    lines[14] = (lines[14][0], lines[14][1] + room + 1, f"{PRICE * (lines[14][1] + room + 1)}")
    assert off(sums, bill(*lines)) != []


def test_one_that_is_missing_and_one_that_is_too_many() -> None:
    sums = [orders("2036-11-03T10:00", 4), orders("2036-11-20T10:00", 4)]
    found = bill((date(2036, 11, 3), 3, "0.57"), (date(2036, 11, 20), 5, "0.95"))
    assert off(sums, found) == [
        (Kind.NOT_BILLED, date(2036, 11, 3), 1, "-0.19"),
        (Kind.NO_ORDER, date(2036, 11, 20), 1, "0.19"),
    ]


def test_on_the_next_day_it_is_misdated() -> None:
    """And that is all, in either direction."""
    sums = [orders("2036-11-03T10:00", 4), orders("2036-11-04T10:00", 4)]
    for early, late, day in ((3, 5, 4), (5, 3, 3)):
        found = bill((date(2036, 11, 3), early, f"{PRICE * early}"), (date(2036, 11, 4), late, f"{PRICE * late}"))
        assert off(sums, found) == [(Kind.MISDATED, date(2036, 11, day), 1, "0.19")]


def test_a_price_that_is_another_one() -> None:
    sums = [orders("2036-11-03T10:00", 4)]
    assert off(sums, bill((date(2036, 11, 3), 4, "0.80"))) == [(Kind.PRICE, date(2036, 11, 3), 0, "0.04")]
    both = bill((date(2036, 11, 3), 5, "1.00"))
    assert off(sums, both) == [
        (Kind.NO_ORDER, date(2036, 11, 3), 1, "0.19"),
        (Kind.PRICE, date(2036, 11, 3), 0, "0.05"),
    ]


def test_orders_that_were_not_delivered_explain_what_is_billed_besides() -> None:
    """As far as they go: images of voids, and those that an order asked for and did not get."""
    day = date(2036, 11, 3)
    sums = [
        orders("2036-11-03T10:00", 4),
        orders("2036-11-03T10:00", 2, charged=False),
        orders("2036-11-03T10:00", 1, asked=2),
    ]
    assert off(sums, bill((day, 5, "0.95"))) == []
    assert off(sums, bill((day, 8, "1.52"))) == [(Kind.NOT_CHARGED, day, 3, "0.57")]
    assert off(sums, bill((day, 9, "1.71"))) == [(Kind.NOT_CHARGED, day, 3, "0.57"), (Kind.NO_ORDER, day, 1, "0.19")]
    assert off(sums, bill((day, 0, "1.52"), counts=False)) == [(Kind.NOT_CHARGED, day, 0, "0.57")]


def test_a_void_before_midnight_may_be_billed_after_it() -> None:
    sums = [orders("2036-11-03T23:00", 1, ended="2036-11-04T00:00", charged=False), orders("2036-11-04T10:00", 1)]
    assert off(sums, bill((date(2036, 11, 4), 2, "0.38"))) == [(Kind.NOT_CHARGED, date(2036, 11, 4), 1, "0.19")]


def test_books_without_a_number_of_images_or_without_days() -> None:
    sums = [orders("2036-11-03T10:00", 4), orders("2036-10-31T23:00", 1, ended="2036-11-01T00:00")]
    amount = bill((date(2036, 11, 3), 0, "0.80"), counts=False)
    assert off(sums, amount) == [(Kind.AMOUNT, date(2036, 11, 3), 0, "0.04")]
    other_day = bill((date(2036, 11, 9), 0, "0.19"), (date(2036, 11, 3), 0, "0.76"), counts=False)
    assert off(sums, other_day) == [(Kind.NO_ORDER, date(2036, 11, 9), 0, "0.19")]
    for images in (4, 5):  # the fifth came over midnight
        assert off(sums, bill((None, images, f"{PRICE * images}"))) == []
    assert off(sums, bill((None, 6, "1.14"))) == [(Kind.NO_ORDER, None, 1, "0.19")]
    last = [*sums, orders("2036-11-30T23:00", 1, ended="2036-12-01T00:00")]  # may be in December's
    for images in (4, 5, 6):
        assert off(last, bill((None, images, f"{PRICE * images}"))) == []
    assert off(last, bill((None, 3, "0.57"))) == [(Kind.NOT_BILLED, None, 1, "-0.19")]


def test_a_line_of_another_month() -> None:
    """Only what crosses the midnight between may be dated there."""
    sums = [orders("2036-11-30T23:00", 1, ended="2036-12-01T00:00"), orders("2036-11-29T10:00", 2)]
    december = date(2036, 12, 1)
    assert off(sums, bill((date(2036, 11, 29), 2, "0.38"), (december, 1, "0.19"))) == []
    assert off(sums, bill((date(2036, 11, 29), 2, "0.38"), (december, 2, "0.38"))) == [
        (Kind.NO_ORDER, december, 1, "0.19")
    ]


def test_what_crossed_a_midnight_is_on_one_side_of_it() -> None:
    """Of two lines for one call, one is too many: also at the beginning and at the end of a month."""
    sums = [
        orders("2036-10-31T23:00", 1, ended="2036-11-01T00:00"),
        orders("2036-11-30T23:00", 1, ended="2036-12-01T00:00"),
    ]
    october, december = FIRST - DAY, date(2036, 12, 1)
    one, other = (october, 1, "0.19"), (FIRST, 1, "0.19")
    assert off(sums, bill(one)) == off(sums, bill(other)) == []
    assert off(sums, bill(one, other)) == [(Kind.NO_ORDER, FIRST, 1, "0.19")]
    one, other = (date(2036, 11, 30), 1, "0.19"), (december, 1, "0.19")
    assert off(sums, bill(one)) == off(sums, bill(other)) == []
    assert off(sums, bill(one, other)) == [(Kind.NO_ORDER, december, 1, "0.19")]


def test_what_a_provider_told_is_expected_and_compared_with_the_list() -> None:
    """Of an order without a charge it is known as billed, where no books say so."""
    sums = [
        orders("2036-11-03T10:00", 2, told="0.50"),
        orders("2036-11-04T10:00", 2, told="0.10", measured=True),
        orders("2036-11-05T10:00", 1, told="0.19", charged=False),
        orders("2036-11-05T10:00", 1, told="0", charged=False),
    ]
    ours = expected(sums, "openai", SPAN)
    told = [(one.kind, one.images, f"{one.usd:f}") for one in known_without_books("openai", ours, billed=False)]
    assert told == [(Kind.NOT_CHARGED, 1, "0.19"), (Kind.PRICE, 2, "0.12")]
    assert [one.kind for one in known_without_books("openai", ours, billed=True)] == [Kind.PRICE]
    lines = ((date(2036, 11, 3), 2, "0.50"), (date(2036, 11, 4), 2, "0.10"))
    assert off(sums, bill(*lines)) == []
    assert off(sums, bill(*lines, (date(2036, 11, 5), 1, "0.19"))) == [(Kind.NOT_CHARGED, date(2036, 11, 5), 1, "0.19")]


def test_figures_with_an_end_of_binary_fractions_are_equal() -> None:
    sums = [orders("2036-11-03T10:00", 3)]
    assert off(sums, bill((date(2036, 11, 3), 3, "0.57000000000000006"))) == []


def test_days_are_the_providers() -> None:
    """In Pacific time an order of 07:59 UTC is of the day before, and winter begins within the month."""
    span = span_of("2036-11", "America/Los_Angeles", LATER)
    assert (span.start_us, span.end_us) == (
        unix_us_at(datetime(2036, 11, 1, 7, tzinfo=UTC)),
        unix_us_at(datetime(2036, 12, 1, 8, tzinfo=UTC)),
    )
    sums = [orders("2036-11-04T07:00", 1), orders("2036-11-04T08:00", 2), orders("2036-12-01T08:00", 4)]
    assert off(sums, bill((date(2036, 11, 3), 1, "0.19"), (date(2036, 11, 4), 2, "0.38")), span) == []


def test_a_month_that_is_not_over_has_the_days_that_are() -> None:
    span = span_of("2036-11", "UTC", datetime(2036, 11, 3, 1, tzinfo=UTC))
    assert span.days() == [date(2036, 11, 1), date(2036, 11, 2)]
    with pytest.raises(WrongField, match="no day of 2036-11 is over yet in UTC"):
        span_of("2036-11", "UTC", datetime(2036, 11, 1, 23, tzinfo=UTC))


def test_a_threshold_is_about_money_and_zero_is_about_everything() -> None:
    found = Findings()
    assert found.within(Decimal(0))
    found.add(Finding(Kind.MISDATED, "openai", MODEL, FIRST, 1, Decimal("0.19")))
    assert not found.within(Decimal(0)) and found.within(Decimal("0.01"))
    for usd in ("0.19", "-0.19"):
        found.add(Finding(Kind.NO_ORDER, "openai", MODEL, FIRST, 1, Decimal(usd)))
    assert found.off_usd == Decimal("0.38")
    assert found.within(Decimal("0.38")) and not found.within(Decimal("0.37"))


def test_every_id_is_in_one_part() -> None:
    parts = parts_of(1_000_000)
    assert len(parts) == 4 and parts_of(0) == [Part(0, 1)]
    assert all(sum(part.has(f"req_{n}") for part in parts) == 1 for n in range(1_000))
