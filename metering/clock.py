"""Time: aware UTC inside, America/Mexico_City for days and months."""

import re
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

DAY_US = 24 * 3600 * 1_000_000

FOREVER_US = 2**53 - 1
"""A Unix time in µs that never comes: the largest number that Redis' scripts read exactly."""

MEXICO = ZoneInfo("America/Mexico_City")
_MONTH = re.compile(r"2[0-9]{3}-(0[1-9]|1[0-2])")
_DAY = re.compile(r"2[0-9]{3}-[0-9]{2}-[0-9]{2}")
_MICRO = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def utc_at(unix_us: int) -> datetime:
    """Return the moment `unix_us` microseconds after 1970, as an aware datetime."""
    return _EPOCH + timedelta(0, 0, unix_us)


def unix_us_at(moment: datetime) -> int:
    """Convert an aware datetime to microseconds since 1970."""
    return (moment - _EPOCH) // _MICRO


def boottime_s() -> float:
    """Read the seconds of a clock that nobody sets, and that also counts while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def utc_now() -> datetime:
    """Return the current time, aware."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Period:
    """One day in Mexico City, to which an order is booked.

    `start_us` is inclusive, `end_us` exclusive, both Unix µs.
    """

    day: str
    month: str
    start_us: int
    end_us: int


def _midnight_us(day: date) -> int:
    return unix_us_at(datetime(day.year, day.month, day.day, tzinfo=MEXICO).astimezone(UTC))


def period_at(unix_us: int) -> Period:
    """Find the Mexican day that contains this moment."""
    day = utc_at(unix_us).astimezone(MEXICO).date()
    return Period(
        day=day.isoformat(),
        month=day.isoformat()[:7],
        start_us=_midnight_us(day),
        end_us=_midnight_us(day + timedelta(days=1)),
    )


def month_start_us(month: str) -> int:
    """Find midnight in Mexico City on the first day of `YYYY-MM`, in Unix µs."""
    return _midnight_us(date.fromisoformat(f"{month}-01"))


def day_start_us(day: str) -> int:
    """Find the midnight in Mexico City that begins `YYYY-MM-DD`, in Unix µs."""
    return _midnight_us(date.fromisoformat(day))


def day_end_us(day: str) -> int:
    """Find the midnight in Mexico City that ends `YYYY-MM-DD`, in Unix µs."""
    return _midnight_us(date.fromisoformat(day) + timedelta(days=1))


def is_day(text: str) -> bool:
    """True for a `YYYY-MM-DD` of the calendar, and nothing else."""
    try:
        return _DAY.fullmatch(text) is not None and date.fromisoformat(text) is not None
    except ValueError:
        return False


def is_month(text: str) -> bool:
    """True for `YYYY-MM`, and nothing else."""
    return _MONTH.fullmatch(text) is not None


def next_month(month: str) -> str:
    """Turn `"2026-12"` into `"2027-01"`."""
    year, number = int(month[:4]), int(month[5:])
    return f"{year + number // 12}-{number % 12 + 1:02d}"


def previous_month(month: str) -> str:
    """Turn `"2027-01"` into `"2026-12"`."""
    year, number = int(month[:4]), int(month[5:])
    return f"{year}-{number - 1:02d}" if number > 1 else f"{year - 1}-12"
