"""Money as text and as whole micro-MXN."""

from decimal import Decimal, Inexact

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.money import (
    MAX_MICRO_MXN,
    AmountError,
    format_mxn,
    format_rate,
    parse_mxn,
    unit_price_micro_mxn,
)
from tests.long import examples

CANONICAL = [
    (0, "0.00"),
    (1, "0.000001"),
    (10, "0.00001"),
    (100, "0.0001"),
    (1_000, "0.001"),
    (10_000, "0.01"),
    (100_000, "0.10"),
    (840_000, "0.84"),
    (1_000_000, "1.00"),
    (1_500_000, "1.50"),
    (123_456_789, "123.456789"),
    (-840_000, "-0.84"),
    (-1, "-0.000001"),
    (10**15, "1000000000.00"),
    (MAX_MICRO_MXN, "9007199254.740991"),
]


@pytest.mark.rule(23)
@pytest.mark.parametrize(("micro", "text"), CANONICAL)
def test_money_has_one_canonical_form(micro: int, text: str) -> None:
    """At least two decimals, no exponent, no trailing zeros beyond them (rule 23)."""
    assert format_mxn(micro) == text
    assert parse_mxn(text) == micro


@given(st.integers(-MAX_MICRO_MXN, MAX_MICRO_MXN))
@settings(max_examples=examples(300), derandomize=True)
def test_every_amount_survives_its_text(micro: int) -> None:
    """A printed amount reads back as the same number, and its text is plain digits."""
    text = format_mxn(micro)
    assert parse_mxn(text) == micro
    assert "e" not in text.lower()
    assert len(text.rpartition(".")[2]) >= 2


@pytest.mark.parametrize(("text", "micro"), [("5", 5_000_000), ("-5", -5_000_000), ("007.5", 7_500_000), ("-0", 0)])
def test_other_plain_decimals_are_read(text: str, micro: int) -> None:
    """A person may write fewer decimals."""
    assert parse_mxn(text) == micro


@pytest.mark.parametrize(
    "text",
    ["", " ", "1,5", "1.", ".5", "1.0000001", "1e3", "+1", "--1", "1 000", "NaN", "inf", "0x10", "1_0", "١", "1\n"],
)
def test_what_is_no_plain_decimal_is_refused(text: str) -> None:
    """The message repeats the text and says what is expected."""
    with pytest.raises(AmountError, match="is not an amount in MXN"):
        parse_mxn(text)


@pytest.mark.parametrize("text", ["9007199254.740992", "9999999999", "-9999999999"])
def test_an_amount_that_a_script_could_not_keep_exact_is_refused(text: str) -> None:
    """The largest amount is 2^53 - 1 micro-MXN."""
    with pytest.raises(AmountError, match=r"is more than 9007199254\.740991 MXN"):
        parse_mxn(text)


def test_a_float_is_no_money() -> None:
    """Neither a price nor an amount passes through a float."""
    with pytest.raises(TypeError):
        unit_price_micro_mxn(0.04, Decimal("1.05"), Decimal(20))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        unit_price_micro_mxn(Decimal("0.04"), Decimal("1.05"), 20.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="float"):
        format_mxn(0.84)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        parse_mxn(0.84)  # type: ignore[arg-type]


def test_the_published_price_is_exact() -> None:
    """USD 0.04 × 1.05 × 20 is 0.84 MXN to the last digit."""
    assert unit_price_micro_mxn(Decimal("0.04"), Decimal("1.05"), Decimal("20.00")) == 840_000


@pytest.mark.parametrize(
    ("usd", "markup", "fx", "micro"),
    [
        ("0.0000005", "1", "1", 1),  # exactly half: up, where half-even would say 0
        ("0.0000015", "1", "1", 2),
        ("0.0000025", "1", "1", 3),  # half-even would say 2
        ("0.00000049999999999999999999", "1", "1", 0),
        ("0.003", "1.05", "18.12345", 57_089),  # 57088.8675
        ("0.19", "1.05", "18.4567", 3_682_112),  # 3682111.65
        # Rounding USD × markup to micro first would give 2 × 20 = 40.
        ("0.0000015", "1.05", "20", 32),  # 31.5
        ("0.0000015", "1.03", "20", 31),  # 30.9
    ],
)
def test_the_price_is_rounded_half_up_once_after_the_whole_product(usd: str, markup: str, fx: str, micro: int) -> None:
    """Rule 23."""
    assert unit_price_micro_mxn(Decimal(usd), Decimal(markup), Decimal(fx)) == micro


@given(*[st.decimals("0.000001", "1000", places=6)] * 3)
@settings(max_examples=examples(300), derandomize=True)
def test_the_price_is_within_half_a_micro_of_the_exact_product(usd: Decimal, markup: Decimal, fx: Decimal) -> None:
    """Checked in whole numbers, with no decimal arithmetic."""
    price = unit_price_micro_mxn(usd, markup, fx)
    exact = int(usd * 10**6) * int(markup * 10**6) * int(fx * 10**6)  # in 10^-18 MXN
    assert 2 * price * 10**12 - 10**12 <= 2 * exact < 2 * price * 10**12 + 10**12


def test_a_product_that_would_not_be_exact_is_an_error() -> None:
    """Never a silent loss of digits."""
    long = Decimal("0." + "1" * 60)
    with pytest.raises(Inexact):
        unit_price_micro_mxn(long, long, Decimal(1))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        ("20", "20.00"),
        ("2E+1", "20.00"),
        ("18.50", "18.50"),
        ("18.12340", "18.1234"),
        ("0.040", "0.04"),
        ("1E-7", "0.0000001"),
    ],
)
def test_a_rate_has_one_canonical_form(number: str, text: str) -> None:
    """Plain digits; the number itself stays the same."""
    assert format_rate(Decimal(number)) == text
    assert Decimal(text) == Decimal(number)
