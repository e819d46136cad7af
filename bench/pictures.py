"""Draws what `docs/performance.md` shows, as SVG, from `bench/results.json` and `bench/parts.json`.

`python -m bench.pictures`, after `make bench`. The colours can be told apart by people who see few of them, and each
picture has its words in itself.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from rich.console import Console

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "pictures"

WIDTH, LEFT, RIGHT, TOP, ROW = 760, 250, 90, 64, 26
INK, GREY, OURS, OTHERS, GOAL = "#1c2733", "#8a949e", "#0072b2", "#b9c4cd", "#d55e00"
PARTS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#b9c4cd")


def bars(title: str, note: str, rows: Sequence[tuple[str, float, str, bool]], goal: float | None, unit: str) -> str:
    """Draw one bar for each (name, value, value as text, is it ours), and a line at the goal."""
    height = TOP + ROW * len(rows) + 34
    scale = (WIDTH - LEFT - RIGHT) / max([value for _, value, _, _ in rows] + [goal or 0.0])
    parts = [_text(16, 26, title, size=17, weight="bold"), _text(16, 46, note, colour=GREY)]
    for place, (name, value, as_text, ours) in enumerate(rows):
        y = TOP + place * ROW
        parts.append(_text(LEFT - 10, y + 16, name, anchor="end"))
        parts.append(_rect(LEFT, y + 3, max(1.0, value * scale), ROW - 8, OURS if ours else OTHERS))
        parts.append(_text(LEFT + max(1.0, value * scale) + 6, y + 16, f"{as_text} {unit}"))
    if goal is not None:
        x = LEFT + goal * scale
        parts.append(
            f'<path d="M{x:.1f} {TOP - 4}V{height - 26}" stroke="{GOAL}" stroke-width="2" stroke-dasharray="5 4"/>'
        )
        parts.append(_text(x, height - 10, f"goal: {goal:g} {unit}", anchor="middle", colour=GOAL))
    return _svg(height, title, parts)


def stacks(title: str, note: str, names: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]], unit: str) -> str:
    """Draw one bar for each row, made of its parts in the order of `names`."""
    legend = TOP + ROW * len(rows) + 14
    height = legend + 22 * ((len(names) + 1) // 2) + 10
    scale = (WIDTH - LEFT - RIGHT) / max(sum(values) for _, values in rows)
    parts = [_text(16, 26, title, size=17, weight="bold"), _text(16, 46, note, colour=GREY)]
    for place, (name, values) in enumerate(rows):
        x, y = float(LEFT), TOP + place * ROW
        parts.append(_text(LEFT - 10, y + 16, name, anchor="end"))
        for value, colour in zip(values, PARTS, strict=True):
            parts.append(_rect(x, y + 3, value * scale, ROW - 8, colour))
            x += value * scale
        parts.append(_text(x + 6, y + 16, f"{sum(values):.1f} {unit}"))
    for place, (name, colour) in enumerate(zip(names, PARTS, strict=True)):
        x, y = LEFT - 200 + 300 * (place % 2), legend + 22 * (place // 2)
        parts += [_rect(x, y, 12, 12, colour), _text(x + 18, y + 11, name)]
    return _svg(height, title, parts)


def _text(
    x: float, y: float, words: str, *, size: int = 13, anchor: str = "start", colour: str = INK, weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )


def _rect(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" fill="{colour}"/>'


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    lines = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n{lines}\n</svg>\n'
    )


def load_picture(results: Mapping[str, Any]) -> str:
    """Draw what was delivered against what was offered."""
    of = _medians(results, "overload")
    best = of["the best"]
    rows = []
    for factor in ("0.5", "1", "2", "5"):
        offered, delivered = of[f"{factor} ×: offered"], of[f"{factor} ×: of the best"] * best
        rows.append((f"{factor} × of what it can do: offered", offered, f"{offered:.0f}", False))
        rows.append(("delivered", delivered, f"{delivered:.0f}", True))
    title = "An overloaded gateway goes on delivering"
    return bars(
        title, "orders a second, images of 16 KB, one core; what is too much is refused early", rows, None, "/s"
    )


def job_picture(results: Mapping[str, Any]) -> str:
    """Draw the CPU of the gateway beside the two bare scripts."""
    of = _medians(results, "job")
    rows = []
    for case in ("16 KB by URL", "16 KB by base64", "1.6 MB by URL", "1.6 MB by base64"):
        for server in ("gateway", "hypercorn", "granian"):
            took = of[f"{case}, http: {server}"]
            name = f"{case}: gateway" if server == "gateway" else f"bare script, {server}"
            rows.append((name, took, f"{took:.1f}", server == "gateway"))
    title = "CPU for one image, beside scripts that check and record nothing"
    return bars(title, "milliseconds on one core, 64 in flight, http", rows, None, "ms")


def memory_picture(results: Mapping[str, Any]) -> str:
    """Draw memory for each image in flight by its size."""
    of = _medians(results, "memory")
    rows = []
    for size in (1, 8, 40):
        for way in ("URL", "base64"):
            naive = of[f"{size} MB by {way}: the naive way"]
            ours = of[f"{size} MB by {way}: an image in flight"]
            rows.append((f"{size} MB by {way}: gateway", ours, f"{ours:,.0f}", True))
            rows.append(("the naive way", naive, f"{naive:,.0f}", False))
    title = "Memory for an image in flight does not grow with the image"
    return bars(title, "KiB of resident memory for each of 16 images at once", rows, 512.0, "KiB")


def lag_picture(results: Mapping[str, Any]) -> str:
    """Draw how late the loop is, with few and with many calls in flight."""
    of = _medians(results, "in_flight")
    rows = []
    for many in ("one organisation", "200 organisations"):
        for count, ours in (("100", False), ("5,000", True)):
            late = of[f"{count} open, {many}: loop late, p99"]
            rows.append((f"{count} in flight, {many}", late, f"{late:.0f}", ours))
    title = "How late the event loop is with 100 and with 5,000 generations open"
    return bars(title, "99 of 100 looks at the loop were at most so late", rows, 50.0, "ms")


def parts_picture(parts: Mapping[str, Any]) -> str:
    """Draw the CPU of an image by part, before and after."""
    rows = [(name, [float(value) for value in values]) for name, values in parts["rows"].items()]
    title = "Where the CPU of an image goes, before and after"
    return stacks(title, "milliseconds for one image; from samples of the process", parts["parts"], rows, "ms")


def _medians(results: Mapping[str, Any], point: str) -> dict[str, float]:
    return {figure["name"]: figure["median"] for figure in results[point]["figures"]}


def main() -> None:
    """Draw all pictures for which there are figures; say which are missing."""
    results = json.loads((HERE / "results.json").read_text())
    DOCS.mkdir(exist_ok=True)
    pictures = {"overload": load_picture, "job": job_picture, "memory": memory_picture, "in_flight": lag_picture}
    for name, draw in pictures.items():
        if name in results:
            (DOCS / f"{name}.svg").write_text(draw(results))
        else:
            Console(stderr=True).print(f"no figures of {name}: make bench ONLY={name}")
    (DOCS / "parts.svg").write_text(parts_picture(json.loads((HERE / "parts.json").read_text())))


if __name__ == "__main__":
    main()
