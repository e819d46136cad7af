"""The chart of a statement: a bar for the cost of each day, as SVG of numbers alone. Pure."""

from calendar import monthrange
from collections.abc import Mapping
from decimal import Decimal
from html import escape

from metering.money import MICRO
from proxy.statements.numbers import mxn

WIDTH, HEIGHT = 720, 190
LEFT, RIGHT, TOP, BOTTOM = 74, 6, 10, 22
"""Room for the axis' amounts and the days, in the same units."""

FONT = 'font-family="\'Libertinus Serif\', Arial, sans-serif" font-size="11"'
LABELLED = (1, 5, 10, 15, 20, 25, 30)
"""Days that are named below their bars; all 31 would touch each other."""

_STEPS = tuple(Decimal(step) for step in ("1", "1.5", "2", "3", "4", "5", "6", "8", "10"))


def chart(month: str, costs: Mapping[int, int], title: str, description: str) -> str:
    """Draw costs in micro-MXN by day of the month. The bars are as high as their costs, from zero."""
    days = monthrange(int(month[:4]), int(month[5:]))[1]
    top = axis_top(max(costs.values(), default=0))
    high, slot = HEIGHT - TOP - BOTTOM, Decimal(WIDTH - LEFT - RIGHT) / days
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        f' role="img" aria-labelledby="chart-title chart-desc">'
        f'<title id="chart-title">{escape(title)}</title><desc id="chart-desc">{escape(description)}</desc>'
    ]
    for part in (0, 1, 2):
        y = TOP + high - high * part // 2
        parts.append(
            f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="{"#555" if part == 0 else "#ccc"}" stroke-width="1"/>'
            f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end" fill="#333" {FONT}>{mxn(top * part // 2)}</text>'
        )
    for day in range(1, days + 1):
        x = LEFT + slot * (day - 1)
        if cost := costs.get(day, 0):
            height = max(Decimal(high) * cost / top, Decimal(1))  # a day that cost little is seen, too
            parts.append(
                f'<rect x="{_digits(x + slot * Decimal("0.15"))}" y="{_digits(TOP + high - height)}"'
                f' width="{_digits(slot * Decimal("0.7"))}" height="{_digits(height)}" fill="#1f5fa8"/>'
            )
        if day in LABELLED:
            middle = _digits(x + slot / 2)
            parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle" fill="#333" {FONT}>{day}</text>')
    return "".join([*parts, "</svg>"])


def axis_top(highest: int) -> int:
    """Find the round amount at the axis' top, of which a half is round too: at least the highest, at least 0.02 MXN."""
    power = Decimal(MICRO) / 50
    while True:
        for step in _STEPS:
            if (top := int(power * step)) >= highest:
                return top
        power *= 10


def _digits(number: Decimal) -> str:
    """Write a length with at most two decimals."""
    return f"{number:.2f}".rstrip("0").rstrip(".")
