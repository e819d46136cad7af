"""Banxico's exchange rates (SIE): a series' values between two days, and the month's rate that follows from them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import httpx2
import orjson

from metering.clock import previous_month, utc_now
from metering.money import HIGHEST_RATE, LOWEST_RATE, format_rate
from metering.ports import FxOrigin, LedgerError, WrongField
from metering.pricing import FxRate

SERIES = "SF43718"
"""The FIX by the day on which it is set; SF60653 has the same rates by the day of settlement."""

NO_VALUE = "N/E"
"""What a series says for a day without a value, such as a holiday."""

TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 256 * 1024
"""Maximum size of an answer: a month has 23 values of 50 bytes."""

DECIMALS = Decimal("0.0001")
"""To which an average is rounded, as the FIX itself is printed."""


class BanxicoFailed(LedgerError):
    """Banxico gave no rate; the message is a sentence for an operator, and has no token in it."""


@dataclass(frozen=True, slots=True)
class Fix:
    """One value of a series, as it was printed."""

    day: date
    printed: str

    @property
    def rate(self) -> Decimal:
        """MXN for one USD."""
        return Decimal(self.printed.replace(",", ""))


@dataclass(frozen=True, slots=True)
class Span:
    """The days whose values make a rate: those of the month before it, until today. `is_over`: all are known."""

    first: date
    last: date
    is_over: bool


def last_of(values: Sequence[Fix]) -> tuple[Decimal, str]:
    """Take the last value: it holds on the days after it that have none."""
    return values[-1].rate, values[-1].printed


def average_of(values: Sequence[Fix]) -> tuple[Decimal, str]:
    """Take the average of all values, rounded half up to four decimals once."""
    mean = sum((one.rate for one in values), Decimal(0)) / len(values)
    return mean.quantize(DECIMALS, ROUND_HALF_UP), " ".join(one.printed for one in values)


METHODS: Mapping[str, Callable[[Sequence[Fix]], tuple[Decimal, str]]] = {"last": last_of, "average": average_of}
"""How a month's rate follows from the values of the month before it."""


def span_of(month: str, method: str, today: date) -> Span:
    """Find the days whose values make a month's rate. Raises WrongField if they cannot be known yet."""
    before = previous_month(month)
    first, end = date.fromisoformat(f"{before}-01"), date.fromisoformat(f"{month}-01")
    if today < first:
        raise WrongField("month", f"the values for {month} are those of {before}, which has not begun")
    if method == "average" and today < end:
        raise WrongField("method", f"the average of {before} is known when that month is over")
    return Span(first, min(end - timedelta(days=1), today), today >= end)


async def fetch(
    client: httpx2.AsyncClient, url: str, token: str, month: str, span: Span, method: str
) -> tuple[FxRate, FxOrigin]:
    """Fetch the values of a span, and make the rate of `month` of them. Raises BanxicoFailed."""
    address = f"{url}/series/{SERIES}/datos/{span.first}/{span.last}"
    raw = b""
    try:
        async with client.stream("GET", address, headers={"bmx-token": token}, timeout=TIMEOUT_S) as reply:
            async for piece in reply.aiter_bytes():
                raw += piece
                if len(raw) > MAX_ANSWER_BYTES:
                    raise BanxicoFailed("Banxico: the answer is too large to be one")
    except httpx2.HTTPError as error:
        raise BanxicoFailed(
            f"Banxico does not answer ({type(error).__name__}); try again, or use `ghub fx set`"
        ) from None
    if reply.status_code in (401, 403):
        raise BanxicoFailed("GHUB_BANXICO_TOKEN: Banxico refuses the token")
    if reply.status_code != 200:
        raise BanxicoFailed(f"Banxico answers {reply.status_code}; try again, or use `ghub fx set`")
    values = values_of(raw, span)
    if not values:
        raise BanxicoFailed(f"Banxico has no value of {SERIES} from {span.first} to {span.last}")
    number, printed = METHODS[method](values)
    days = f"{values[-1].day}" if method == "last" else f"{values[0].day} to {values[-1].day}, {len(values)} values"
    origin = FxOrigin(SERIES, method, printed, utc_now().isoformat(), hashlib.sha256(raw).hexdigest())
    return FxRate(month, Decimal(format_rate(number)), f"Banxico {SERIES} {method} {days}"), origin


def values_of(raw: bytes, span: Span) -> list[Fix]:
    """Read an answer, oldest value first. Raises BanxicoFailed if it is none, or not of what was requested."""
    try:
        (found,) = orjson.loads(raw)["bmx"]["series"]
        values = [_value(row) for row in found.get("datos", []) if row["dato"] != NO_VALUE]
        named = found["idSerie"]
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError):
        raise BanxicoFailed("Banxico: the answer is not what its documentation says") from None
    if named != SERIES or not all(span.first <= one.day <= span.last for one in values):
        raise BanxicoFailed(f"Banxico: the answer is not of {SERIES} from {span.first} to {span.last}")
    return sorted(values, key=lambda one: one.day)


def _value(row: Mapping[str, Any]) -> Fix:
    """Parse `{"fecha": "dd/mm/yyyy", "dato": "18.1234"}`. Raises ValueError."""
    day, month, year = row["fecha"].split("/")
    one = Fix(date(int(year), int(month), int(day)), row["dato"])
    if not LOWEST_RATE <= one.rate <= HIGHEST_RATE:
        raise ValueError("no rate")
    return one
