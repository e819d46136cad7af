"""`python -m tests.soak --seconds 3600 --rate 10 --keep DIR`: the verdict on standard output, pictures where asked.

`--draw DIR` draws a kept run again. Exit code 1 if something grew, or if the books are not right.
"""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tests.soak.draw import dashboard_picture, soak_picture
from tests.soak.record import Record
from tests.soak.run import soak
from tests.soak.verdict import BOUNDS, growth, judge

PICTURES = Path(__file__).parents[2] / "docs/pictures"


def main(
    seconds: Annotated[float, typer.Option(help="How long the load lasts.")] = 3600.0,
    rate: Annotated[float, typer.Option(help="Orders a second.")] = 10.0,
    keep: Annotated[Path | None, typer.Option(help="A new folder for the run's logs, storage and record.")] = None,
    draw: Annotated[Path | None, typer.Option(help="Draw the run that is kept there, and run nothing.")] = None,
    pictures: Annotated[Path, typer.Option(help="The folder for the two pictures.")] = PICTURES,
) -> None:
    """Run it, judge it, draw it."""
    if draw is not None:
        record = Record.load(draw)
    else:
        with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
            folder = keep or Path(temporary)
            if folder.exists() and any(folder.iterdir()) and keep is not None:
                sys.exit(f"--keep: {keep} is not empty; name a new folder")
            record = soak(folder, seconds, rate)
            record.save(folder)
    findings = judge(record)
    print(f"{record.orders:,} orders in {record.seconds:.0f} s: {record.answers}; ghub verify: {record.verify}")
    for name, bound in BOUNDS.items():
        print(f"{name:30} {growth(record.series[name]):>14,.1f} {bound.unit} (at most {bound.most:,.0f})")
    pictures.mkdir(parents=True, exist_ok=True)
    (pictures / "soak.svg").write_text(soak_picture(record))
    (pictures / "dashboard.svg").write_text(dashboard_picture(record))
    print(*findings, sep="\n")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    typer.run(main)
