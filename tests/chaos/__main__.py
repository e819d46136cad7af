"""`python -m tests.chaos --seed 1 --seconds 180`: chaos, and what the judge says of it; exit 1 for any finding."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.chaos import faults, run
from tests.chaos.ghub import PROTECTIONS
from tests.chaos.proofs import prove

HEALS_S = 90.0
"""About as long the peace takes after the last fault, for the bar."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    seed: Annotated[int, typer.Option(min=0, help="Decides faults, clients and upstreams.")] = 1,
    seconds: Annotated[float, typer.Option(min=1, help="Under fire; peace takes a minute or two more.")] = 1500,
    without: Annotated[str | None, typer.Option(help=f"Switch one off: {', '.join(PROTECTIONS)}.")] = None,
    directed: Annotated[bool, typer.Option(help="Only the faults that protections guard against.")] = False,
    pace: Annotated[float, typer.Option(min=0.1, help="Seconds from one fault to the next, on average.")] = 2.5,
    keep: Annotated[Path | None, typer.Option(help="An empty folder, in which all logs and files stay.")] = None,
) -> None:
    """Run it."""
    if without not in (None, *PROTECTIONS):
        raise typer.BadParameter(f"is none of {', '.join(PROTECTIONS)}", param_hint="--without")
    console = Console()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if directed:
            report = runner.run(prove(without))
            console.print(*report.findings or ["no findings"], sep="\n", markup=False)
            raise typer.Exit(bool(report.findings))
        text = (
            "{task.description}  {task.fields[hits]} faults, {task.fields[flying]} in flight, {task.fields[ok]} × 200"
        )
        with Progress(TextColumn(text), BarColumn(), TimeElapsedColumn(), console=console) as progress:
            bar = progress.add_task(f"seed {seed}", total=seconds + HEALS_S, hits=0, flying=0, ok=0)

            def watch(now: run.Progress) -> None:
                progress.update(bar, advance=0.5, hits=now.faults, flying=now.in_flight, ok=now.answered)

            outcome = runner.run(run.chaos(seed, seconds, without=without, pace_s=pace, folder=keep, watch=watch))
    show(console, outcome)
    raise typer.Exit(bool(outcome.report.findings))


def show(console: Console, outcome: run.Outcome) -> None:
    """The table, the figures and the findings."""
    table = Table("component", "fault", "times", f"with {faults.BUSY} or more in flight", "fewest", "most")
    for row in run.table(outcome):
        table.add_row(*map(str, row))
    table.add_row("client", "hang-up", str(outcome.hang_ups))
    console.print(table)
    console.print(f"{len(outcome.struck)} faults and {outcome.hang_ups} hang-ups", markup=False)
    for name, count in outcome.report.figures.items():
        console.print(f"{count:>8}  {name}", markup=False)
    for name, count in outcome.ended_alone.items():
        console.print(f"{count:>8}  times {name} ended by itself and was started again", markup=False)
    for finding in outcome.report.findings or ["no findings"]:
        console.print(finding, markup=False, style="red" if outcome.report.findings else "green")


if __name__ == "__main__":
    app()
