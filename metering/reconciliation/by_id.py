"""Lines of an invoice that name a provider's request, against the orders that made these requests."""

import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from metering.ports import Placed
from metering.reconciliation.books import LEAST_USD
from metering.reconciliation.calendars import Span
from metering.reconciliation.findings import Finding, Kind

IDS_AT_ONCE = 300_000
"""Lines that are held in memory, about 150 MB. Of a longer invoice, both sides are read once for each such part."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line that names a request. `rounding` is half of the last digit of `usd`."""

    id: str
    model: str
    day: date | None
    images: int
    usd: Decimal
    rounding: Decimal = LEAST_USD


@dataclass(slots=True)
class _Billed:
    line: Line
    times: int = 1
    known: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """One of so many parts of all ids."""

    number: int
    of: int

    def has(self, provider_id: str) -> bool:
        """True if an id is in it."""
        return self.of == 1 or zlib.crc32(provider_id.encode()) % self.of == self.number


def parts_of(lines: int) -> list[Part]:
    """Split so many lines into parts that fit into memory."""
    count = max(1, -(-lines // IDS_AT_ONCE))
    return [Part(number, count) for number in range(count)]


class ById:
    """One part of a comparison. Afterwards `without_id` has the charged orders of which no request is known."""

    def __init__(self, provider: str, span: Span, part: Part) -> None:
        self._provider = provider
        self._span = span
        self._part = part
        self._billed: dict[str, _Billed] = {}
        self.without_id = 0

    def take(self, lines: Iterable[Line]) -> None:
        """Take the lines of this part."""
        for line in lines:
            if self._part.has(line.id):
                if (billed := self._billed.get(line.id)) is None:
                    self._billed[line.id] = _Billed(line)
                else:
                    billed.times += 1

    async def compare(self, orders: AsyncIterator[Placed]) -> AsyncIterator[Finding]:
        """Yield what is off. `orders` are those of the span, of the day before and of the day after it."""
        async for order in orders:
            if not order.upstream_ids and self._part.number == 0 and self._expected(order):
                self.without_id += 1
            for provider_id in order.upstream_ids:
                if self._part.has(provider_id):
                    for finding in self._of_order(order, provider_id):
                        yield finding
        for billed in self._billed.values():
            line = billed.line
            if not billed.known:
                yield self._finding(Kind.NO_ORDER, line, line.images * billed.times, line.usd * billed.times)

    def _of_order(self, order: Placed, provider_id: str) -> Iterator[Finding]:
        requests = len(order.upstream_ids)
        billed = self._billed.get(provider_id)
        if billed is None:
            if self._expected(order):
                of_order = "" if requests == 1 else f"one of {requests} requests of the order"
                day = self._span.day_at(order.begun_us)
                images = order.images if requests == 1 else 0
                detail = f"order {order.order_id}" + (f", {of_order}" if of_order else "")
                yield Finding(
                    Kind.NOT_BILLED,
                    self._provider,
                    order.upstream,
                    day,
                    images,
                    -order.usd / requests,
                    detail,
                    provider_id,
                )
            return
        if billed.known:
            return  # two orders with one id: what one of them said is enough
        billed.known = True
        line, named = billed.line, f"order {order.order_id}"
        if billed.times > 1:
            more = billed.times - 1
            yield self._finding(Kind.TWICE, line, line.images * more, line.usd * more, f"{named}, {billed.times} times")
        if not order.charged:
            if line.usd > 0:
                yield self._finding(Kind.NOT_CHARGED, line, line.images, line.usd, named)
        elif requests == 1 and abs(line.usd - order.usd) > line.rounding:
            expected = f"{named}: {order.usd:f} expected"
            yield self._finding(Kind.PRICE, line, order.images, line.usd - order.usd, expected)
        days = {self._span.day_at(moment) for moment in (order.begun_us, order.ended_us)}
        if line.day is not None and not min(days) <= line.day <= max(days):
            called = f"{named}: the call was on {min(days)}"
            yield self._finding(Kind.MISDATED, line, line.images, line.usd, called)

    def _expected(self, order: Placed) -> bool:
        """True if it must be in the books of this month: it began and ended within its days."""
        within = self._span.start_us <= order.begun_us and order.ended_us < self._span.end_us
        return within and order.charged

    def _finding(self, kind: Kind, line: Line, images: int, usd: Decimal, detail: str = "") -> Finding:
        return Finding(kind, self._provider, line.model, line.day, images, usd, detail, line.id)
