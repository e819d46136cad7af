"""Days and months as providers count them: each in its own zone."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from metering.clock import next_month, previous_month, unix_us_at, utc_at
from metering.ports import WrongField

HOUR_US = 3_600 * 1_000_000

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Calendar:
    """A provider's zone, and how it is known."""

    zone: str
    known: str


CALENDARS: Mapping[str, Calendar] = {
    "openai": Calendar("UTC", "its help page on API usage: all times are UTC; buckets of a day begin at midnight UTC"),
    "fal": Calendar("UTC", "its usage API: the default of `timezone`"),
    "google": Calendar("America/Los_Angeles", "Google Cloud's reports: days are midnight to midnight, Pacific time"),
    "xai": Calendar("UTC", "not published; assumed"),
}
"""The zones of the providers that we know. Any other one is taken for UTC."""

UNKNOWN = Calendar("UTC", "not known; assumed")


@dataclass(frozen=True, slots=True)
class Span:
    """The days of a month in one zone, those that are over; `end` is the first day after them."""

    month: str
    zone: ZoneInfo
    first: date
    end: date

    @property
    def start_us(self) -> int:
        """Midnight at its beginning, in Unix µs."""
        return self._midnight_us(self.first)

    @property
    def end_us(self) -> int:
        """Midnight at its end, in Unix µs."""
        return self._midnight_us(self.end)

    @property
    def whole(self) -> bool:
        """True if the month is over."""
        return self.end == date.fromisoformat(f"{next_month(self.month)}-01")

    @property
    def months(self) -> tuple[str, str, str]:
        """Months of Mexico City in which its orders may have been admitted."""
        return previous_month(self.month), self.month, next_month(self.month)

    def day_at(self, unix_us: int) -> date:
        """Find the day of a moment."""
        return utc_at(unix_us).astimezone(self.zone).date()

    def days(self) -> list[date]:
        """List its days."""
        return [self.first + DAY * number for number in range((self.end - self.first).days)]

    def _midnight_us(self, day: date) -> int:
        return unix_us_at(datetime(day.year, day.month, day.day, tzinfo=self.zone).astimezone(UTC))


def span_of(month: str, zone: str, now: datetime) -> Span:
    """Find the days of `YYYY-MM` that are over in a zone. Raises WrongField if none is."""
    found = ZoneInfo(zone)
    first = date.fromisoformat(f"{month}-01")
    end = min(date.fromisoformat(f"{next_month(month)}-01"), now.astimezone(found).date())
    if end <= first:
        raise WrongField("month", f"no day of {month} is over yet in {zone}")
    return Span(month, found, first, end)
