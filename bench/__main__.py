"""`make bench`: every figure with its goal, in one table; `ONLY=point,point` measures some. It fails if one is missed.

The figures are also written to `bench/results.json`, from which `python -m bench.pictures` draws what docs show.
"""

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.figures import Figure, number

POINTS = {
    "overload": "bursts on a cold gateway; half, once, twice and five times of what it can serve; 7 minutes",
    "job": "CPU for each image beside two bare scripts, http and TLS, URL and base64; 8 minutes",
    "others": "images a second and core beside LiteLLM and Portkey; 2 minutes, and once their installation",
    "in_flight": "5,000 generations open in one process; 10 minutes",
    "memory": "an image in flight, 1 to 40 MB; 200 of 20 MB at once; 3 minutes",
    "start": "what commands need before their work begins, and an idle gateway",
    "ledger": "events booked and lines exported a second, PostgreSQL and SQLite",
    "exports": "lines exported a second by format, and the memory of a million beside that of 100,000; 10 minutes",
    "wallet": "Redis: round trips of an order, its scripts' time on the server, admissions on one core",
    "growth": "what each of these costs with 10, 100, 1,000 times as many organisations, keys, events, objects",
}
"""Each is a module of this folder with `measure() -> list[Figure]`, which shows its own progress on stderr."""

RESULTS = Path(__file__).with_name("results.json")


def main() -> int:
    """Exit with 1 if a goal is missed."""
    listed = "\n".join(f"  {name:<10} {about}" for name, about in POINTS.items())
    parser = argparse.ArgumentParser("bench", description=__doc__, epilog=listed)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", default=os.environ.get("ONLY", ""), help="points, separated by commas")
    chosen = [name for name in parser.parse_args().only.split(",") if name] or list(POINTS)
    if unknown := [name for name in chosen if name not in POINTS]:
        parser.error(f"no such point: {', '.join(unknown)}; there are {', '.join(POINTS)}")
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    missed = 0
    table = Table("point", "figure", "median", "lowest–highest", "unit", "goal", "")
    for name in chosen:
        figures: list[Figure] = importlib.import_module(f"bench.{name}").measure()
        kept[name] = {
            "measured": time.strftime("%Y-%m-%d"),
            "cores": os.cpu_count(),
            "figures": [figure.as_json() for figure in figures],
        }
        RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        for place, figure in enumerate(figures):
            missed += not figure.reached
            spread = f"{number(min(figure.rounds))}–{number(max(figure.rounds))}" if len(figure.rounds) > 1 else ""
            mark = "" if not figure.goal else "[green]reached" if figure.reached else "[red]missed"
            table.add_row(
                "" if place else name, figure.name, number(figure.median), spread, figure.unit, figure.goal, mark
            )
        table.add_section()
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
