"""Amounts, counts and dates as people in Mexico write them, in Spanish and in English. Pure."""

from collections.abc import Sequence
from datetime import date, datetime
from unicodedata import category

from metering.clock import MEXICO
from metering.money import format_mxn
from proxy.messages import Language

FIGURE_SPACE = "\u2007"
"""As wide as a digit: behind shorter amounts it keeps the points of a column below each other."""

_MONTHS: dict[Language, tuple[str, ...]] = {
    "es": (
        *("enero", "febrero", "marzo", "abril", "mayo", "junio"),
        *("julio", "agosto", "septiembre", "octubre", "noviembre", "diciembre"),
    ),
    "en": (
        *("January", "February", "March", "April", "May", "June"),
        *("July", "August", "September", "October", "November", "December"),
    ),
}


_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that write what follows from the other side: a name with them would be read as another."""


def plain(name: str) -> str:
    """Return a name as it is read: without characters that turn a text around, and with a space for each control."""
    return "".join(" " if category(one) in ("Cc", "Zl", "Zp") else one for one in name if one not in _TURNING)


def mxn(micro: int) -> str:
    """Format 1234500000 as `"1,234.50"`: exact, with at least two decimals and at most six."""
    whole, _, fraction = format_mxn(abs(micro)).partition(".")
    return f"{'-' if micro < 0 else ''}{int(whole):,}.{fraction}"


def column(amounts: Sequence[int]) -> list[str]:
    """Format the amounts of a column, so that their points are below each other if they end at the right."""
    texts = [mxn(amount) for amount in amounts]
    most = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [text + FIGURE_SPACE * (most - len(text.partition(".")[2])) for text in texts]


def month_name(month: str, language: Language) -> str:
    """Write `"2026-11"` as `"noviembre de 2026"` or `"November 2026"`."""
    name = _MONTHS[language][int(month[5:]) - 1]
    return f"{name} de {month[:4]}" if language == "es" else f"{name} {month[:4]}"


def long_day(day: date, language: Language) -> str:
    """Write a day as `"1 de noviembre de 2026"` or `"1 November 2026"`."""
    between = " de " if language == "es" else " "
    return f"{day.day}{between}{month_name(day.isoformat()[:7], language)}"


def short_day(day: date, language: Language) -> str:
    """Write a day as `"01/11/2026"`, or in English, where that may be January, as `"1 Nov 2026"`."""
    if language == "es":
        return f"{day.day:02d}/{day.month:02d}/{day.year}"
    return f"{day.day} {_MONTHS['en'][day.month - 1][:3]} {day.year}"


def day_of(moment: str) -> date:
    """Find the day of Mexico City of a moment in ISO 8601."""
    return datetime.fromisoformat(moment).astimezone(MEXICO).date()
