"""Money is whole micro-MXN in code and a decimal string at every border; no float anywhere."""

import re
from decimal import ROUND_HALF_UP, Context, Decimal, Inexact

MICRO = 1_000_000
"""Micro-MXN in one MXN."""

MAX_MICRO_MXN = 2**53 - 1
"""Maximum amount, about nine thousand million MXN: the largest integer that a Redis script keeps exact."""

_AMOUNT = re.compile(r"(-?)([0-9]{1,10})(?:\.([0-9]{1,6}))?")
_EXACT = Context(prec=100, traps=[Inexact])
_ROUND = Context(prec=100, rounding=ROUND_HALF_UP)


_RATE = re.compile(r"[0-9]{1,5}(?:\.[0-9]{1,8})?")
LOWEST_RATE, HIGHEST_RATE = Decimal("0.0001"), Decimal(10_000)


class AmountError(ValueError):
    """The text is not an amount in MXN, or not an exchange rate: the message says which digits are allowed."""


def parse_mxn(text: str) -> int:
    """Parse `"500.00"` into 500000000 micro-MXN. Raises AmountError for anything that is not a plain decimal."""
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise AmountError(f"{text!r} is not an amount in MXN: digits, with at most six after the point")
    sign, whole, fraction = match.groups()
    micro = int(whole) * MICRO + int((fraction or "").ljust(6, "0"))
    if micro > MAX_MICRO_MXN:
        raise AmountError(f"{text!r} is more than {format_mxn(MAX_MICRO_MXN)} MXN")
    return -micro if sign else micro


def parse_rate(text: str) -> Decimal:
    """Parse `"18.4512"` into MXN for one USD. Raises AmountError."""
    if _RATE.fullmatch(text) is None or not LOWEST_RATE <= (rate := Decimal(text)) <= HIGHEST_RATE:
        raise AmountError(f"{text!r} must be from {LOWEST_RATE} to {HIGHEST_RATE}, with at most 8 decimals")
    return rate


def format_mxn(micro: int) -> str:
    """Format 840000 as `"0.84"`: at least two decimals, no exponent, no trailing zeros beyond them."""
    whole, fraction = divmod(abs(micro), MICRO)
    digits = f"{fraction:06d}"
    return f"{'-' if micro < 0 else ''}{whole}.{digits[:2]}{digits[2:].rstrip('0')}"


def unit_price_micro_mxn(usd: Decimal, markup: Decimal, mxn_per_usd: Decimal) -> int:
    """Compute the price of one image: the exact product, rounded half up to one micro-MXN, once (rule 23).

    Raises decimal.Inexact if a factor has too many digits for an exact product.
    """
    product = _EXACT.multiply(_EXACT.multiply(usd, markup), mxn_per_usd)
    return int(_ROUND.quantize(_EXACT.multiply(product, Decimal(MICRO)), Decimal(1)))


def measured_micro_mxn(usd: Decimal, markup: Decimal, mxn_per_usd: Decimal, max_micro_mxn: int) -> int:
    """Compute the charge from a provider's own figure: the same product and rounding, from 1 to the quote (rule 22)."""
    return max(1, min(unit_price_micro_mxn(usd, markup, mxn_per_usd), max_micro_mxn))


def format_rate(number: Decimal) -> str:
    """Format a price or a rate canonically: plain digits, without trailing zeros after two decimals."""
    text = f"{number:f}"
    whole, _, fraction = text.partition(".")
    kept = fraction.rstrip("0")
    return f"{whole}.{kept.ljust(2, '0')}"
