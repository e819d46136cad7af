"""`ghub storage sweep`: objects in the store that are nobody's."""

import sys
from collections import Counter
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from config.settings import SWEEP_AGE_S, SWEEP_SHORTEST_AGE_S
from metering.clock import utc_now
from metering.ports import Act
from proxy.cli.output import AsJson, say
from proxy.cli.running import As, back, run
from proxy.storage.opening import open_store
from proxy.storage.sweep import Finding, Found, Sweep

app = typer.Typer(no_args_is_help=True)

MAX_LISTED = 100
"""The most orphans that are named one by one; all are counted."""

Age = Annotated[
    float,
    typer.Option(
        min=SWEEP_SHORTEST_AGE_S / 3600, metavar="HOURS", help="Objects that are younger are never touched; in hours."
    ),
]


COLUMNS = (
    SpinnerColumn(),
    TextColumn("{task.completed} objects, {task.fields[orphans]} orphans"),
    TimeElapsedColumn(),
)


class Report:
    """The result of a sweep, counted by finding."""

    def __init__(self, delete: bool) -> None:
        self._delete = delete
        self._objects: Counter[Finding] = Counter()
        self._bytes: Counter[Finding] = Counter()
        self._refused: Counter[str] = Counter()
        self._paths: list[dict[str, str]] = []

    @property
    def orphans(self) -> int:
        """Count the objects that are proven to be nobody's."""
        return sum(self._objects[finding] for finding in Finding if finding.orphan)

    def add(self, found: Found) -> None:
        """Count one object."""
        self._objects[found.finding] += 1
        self._bytes[found.finding] += found.object.size_bytes
        if found.why:
            self._refused[found.why] += 1
        if found.finding.orphan and len(self._paths) < MAX_LISTED:
            self._paths.append({"path": found.object.path, "why": found.finding.value})

    def summary(self) -> dict[str, Any]:
        """Return the whole report as one JSON value."""
        done = "deleted" if self._delete else "would be deleted"
        return {
            "deleted": self._delete,
            "orphans": self.orphans,
            "findings": [
                {
                    "what": finding.value,
                    "objects": self._objects[finding],
                    "bytes": self._bytes[finding],
                    "then": done if finding.orphan else "kept",
                }
                for finding in Finding
            ],
            "paths": self._paths,
            "refused": [{"why": why, "objects": objects} for why, objects in self._refused.items()],
        }


@app.command("sweep")
def sweep_(
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the orphans; without it nothing is touched.")
    ] = False,
    older_than: Age = SWEEP_AGE_S / 3600,
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Find objects that no customer was given, and never will be. A dry run, unless --delete."""

    async def work() -> dict[str, Any]:
        report = Report(delete)
        async with back(who) as opened, open_store(opened.settings) as opened_store:
            wallet = opened.wallet()
            age = timedelta(hours=older_than)
            swept = Sweep(opened_store.store, opened.ledger, wallet, opened.presence(), now=utc_now(), age=age)
            console = Console(file=sys.stderr)
            with Progress(*COLUMNS, console=console, transient=True, disable=not console.is_terminal) as progress:
                bar = progress.add_task("", total=None, orphans=0)
                async for found in swept.run(delete=delete):
                    report.add(found)
                    progress.update(bar, advance=1, orphans=report.orphans)
            if delete:
                act = Act(opened.actor, "storage.sweep", "store", details={"orphans": report.orphans})
                await opened.ledger.note(act, utc_now())
        return report.summary()

    report = run(work())
    if as_json:
        say(report, as_json)
        return
    say(report["findings"], as_json)
    for refusal in report["refused"]:
        typer.echo(f"{refusal['objects']} objects are kept, as {refusal['why']}.", err=True)
