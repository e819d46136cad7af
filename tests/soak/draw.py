"""Draws a soak as SVG: what must not grow, and the dashboard's panels from Prometheus' own answers. Pure."""

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from math import ceil, floor, log10
from xml.sax.saxutils import escape

from docs.dashboard import ROWS, Panel
from tests.soak.record import Line, Record
from tests.soak.verdict import BOUNDS, MIB, WARM_UP, growth

INK, GREY, FAINT = "#1c2733", "#6b7680", "#dfe4e8"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6a00", "#8a949e")
"""Colours that people can tell apart who see few of them."""

WIDTH, COLUMNS, MARGIN = 1200, 3, 16
CHART_HEIGHT, HEAD, LEGEND_LINE = 150, 34, 15
AXIS = 58
"""Room for the numbers at the left."""

MAX_LEGENDS = 6
MAX_POINTS = 150
"""Of a line: two pixels each."""

CHARACTERS = 30
"""Of a legend: half of a panel's width."""

TITLES = {
    "memory of the gateway": "bytes",
    "memory of the consumer": "bytes",
    "memory of Redis": "bytes",
    "descriptors of the gateway": "short",
    "descriptors of the consumer": "short",
    "keys of Redis that expire": "short",
    "tasks of the gateway": "short",
    "tasks of the consumer": "short",
    "keys of Redis without an end": "short",
}


def soak_picture(record: Record) -> str:
    """What must not grow, over the time of the run, each with what it grew by after the warm-up."""
    charts = []
    for name, unit in TITLES.items():
        points = record.series[name]
        grown = growth(points)
        told = f"{'+' if grown >= 0 else '−'}{_number(abs(grown), unit)} after the warm-up"
        if name in BOUNDS:
            told += f", at most {_number(BOUNDS[name].most, unit)}"
        charts.append(_chart(name[0].upper() + name[1:], told, unit, [Line("", points)], record.seconds, zero=False))
    answers = ", ".join(f"{many:,} × {status}" for status, many in sorted(record.answers.items()))
    note = f"{record.orders:,} orders in {_span(record.seconds)}: {answers}; the first {WARM_UP:.0%} are warm-up"
    title = "An hour of steady load" if record.seconds >= 3600 else "Steady load"
    return _grid(title, note, [("", charts)], legend_lines=0)


def dashboard_picture(record: Record) -> str:
    """All panels of the dashboard, in its order."""
    rows = []
    for row in ROWS:
        charts = [_panel(panel, record) for panel in row.panels]
        rows.append((row.title, charts))
    note = f"by Prometheus, over {_span(record.seconds)} of a soak"
    return _grid("The dashboard's panels", note, rows, legend_lines=MAX_LEGENDS // 2 + 1)


Chart = Callable[[float, float, float], str]
"""Draws itself at a place, in a width."""


def _panel(panel: Panel, record: Record) -> Chart:
    return _chart(panel.title, "", panel.unit, record.panels[panel.title], record.seconds)


def _chart(title: str, told: str, unit: str, lines: Sequence[Line], seconds: float, *, zero: bool = True) -> Chart:
    values = [value for line in lines for _, value in line.points]
    low = 0.0 if zero or not values else min(values)
    high = max(values, default=1.0)
    low, high, step = _scale(low, high, MIB if unit == "bytes" and high > MIB else 1)

    def draw(x: float, y: float, width: float) -> str:
        left, right, top, bottom = x + AXIS, x + width - 8, y + HEAD, y + HEAD + CHART_HEIGHT
        across = right - left
        parts = [_text(x, y + 14, title, 13, weight="bold"), _text(x, y + 28, told, 11, colour=GREY)]
        ticks = round((high - low) / step)
        for place in range(ticks + 1):
            at = bottom - CHART_HEIGHT * place / ticks
            parts.append(f'<path d="M{left:.1f} {at:.1f}H{right:.1f}" stroke="{FAINT}"/>')
            parts.append(_text(left - 6, at + 4, _number(low + place * step, unit), 10, "end", GREY))
        if not values:
            parts.append(_text((left + right) / 2, (top + bottom) / 2, "nothing happened", 12, "middle", GREY))
        for line, colour in zip(lines, _colours(), strict=False):
            places = " ".join(
                f"{left + across * at / seconds:.1f},{bottom - CHART_HEIGHT * (value - low) / (high - low):.1f}"
                for at, value in line.points[:: len(line.points) // MAX_POINTS + 1]
            )
            parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for place, (at, share) in enumerate(((left, 0.0), ((left + right) / 2, 0.5), (right, 1.0))):
            parts.append(_text(at, bottom + 14, _span(seconds * share), 10, ("start", "middle", "end")[place], GREY))
        named = [line for line in lines if line.legend]
        for place, (line, colour) in enumerate(zip(named[:MAX_LEGENDS], _colours(), strict=False)):
            at, below = left + (right - left) / 2 * (place % 2), bottom + 30 + LEGEND_LINE * (place // 2)
            parts.append(f'<rect x="{at:.1f}" y="{below - 8:.1f}" width="9" height="9" fill="{colour}"/>')
            parts.append(_text(at + 13, below, line.legend[:CHARACTERS], 10))
        if len(named) > MAX_LEGENDS:
            below = bottom + 30 + LEGEND_LINE * (MAX_LEGENDS // 2)
            parts.append(_text(left, below, f"and {len(named) - MAX_LEGENDS} more", 10, colour=GREY))
        return "\n".join(parts)

    return draw


def _grid(title: str, note: str, rows: Sequence[tuple[str, Sequence[Chart]]], legend_lines: int) -> str:
    each = (WIDTH - MARGIN * (COLUMNS + 1)) / COLUMNS
    height_each = HEAD + CHART_HEIGHT + 36 + LEGEND_LINE * legend_lines
    parts, y = [_text(MARGIN, 30, title, 20, weight="bold"), _text(MARGIN, 52, note, 13, colour=GREY)], 70.0
    for name, charts in rows:
        if name:
            parts.append(_text(MARGIN, y + 16, name, 16, weight="bold", colour=COLOURS[0]))
            y += 30
        for place, chart in enumerate(charts):
            x = MARGIN + (each + MARGIN) * (place % COLUMNS)
            parts.append(chart(x, y + height_each * (place // COLUMNS), each))
        y += height_each * ((len(charts) + COLUMNS - 1) // COLUMNS)
    lines = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + MARGIN:.0f}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif">\n'
        f'<rect width="{WIDTH}" height="{y + MARGIN:.0f}" fill="#ffffff"/>\n{lines}\n</svg>\n'
    )


def _colours() -> Iterator[str]:
    return cycle(COLOURS)


def _scale(low: float, high: float, size: int) -> tuple[float, float, float]:
    """Choose round numbers for an axis, in units of `size`: its ends and its step, with three to six steps."""
    low, high = low / size, high / size
    if high <= low:
        low, high = (0.0, high * 2) if high > 0 else (0.0, 1.0)
    rough = (high - low) / 4
    power = 10 ** floor(log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    return floor(low / step) * step * size, ceil(high / step) * step * size, step * size


def _number(value: float, unit: str) -> str:
    """Write a value as Grafana would."""
    if unit == "bytes":
        for name, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value:.3g} B"
    if unit == "s":
        return f"{value * 1000:.3g} ms" if 0 < abs(value) < 1 else f"{value:.3g} s"
    if unit == "percentunit":
        return f"{value:.0%}"
    suffix = {"reqps": "/s", "ops": "/s"}.get(unit, " MXN" if unit.startswith("currency") else "")
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}") + suffix


def _span(seconds: float) -> str:
    return f"{seconds / 60:.3g} min" if seconds >= 60 else f"{seconds:.3g} s"


def _text(
    x: float, y: float, words: str, size: int, anchor: str = "start", colour: str = INK, weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )
