"""`ghub reconcile`: a month compared with the providers' books."""

import csv
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from metering.clock import period_at, previous_month, unix_us_at, utc_now
from metering.exports.rows import text_cell
from metering.exports.writing import whole
from metering.ports import Reconciliation
from metering.reconciliation.findings import Finding, Findings
from proxy.cli.output import AsJson, fail, misuse, must_be_month, say
from proxy.cli.running import As, back, run
from proxy.reconciliation import Scope, Tell, finding_row, is_zone, keep
from proxy.reconciliation import reconcile as compare_books

MAX_LISTED = 20
"""Findings that are printed one by one; `--csv` has all."""

NOT_EVERYTHING = 3
"""The exit code if something could not be read."""

WIDTH = 79
"""Columns of a sentence, for a person's terminal."""

SHOWN = ("day", "model", "images", "usd", "id", "detail")
"""What is printed of a finding under the heading of its kind, if it has it."""

STEP = 500
"""How many are read between two looks at the clock: drawing takes longer than reading."""

COLUMNS = ("what", "provider", "model", "day", "images", "usd", "id", "detail")


def reconcile(
    month: Annotated[
        str | None, typer.Option(metavar="YYYY-MM", help="In each provider's own zone; last month without.")
    ] = None,
    provider: Annotated[str | None, typer.Option(help="Compare this provider alone.")] = None,
    invoice: Annotated[
        Path | None, typer.Option(metavar="CSV", exists=True, dir_okay=False, help="The provider's invoice.")
    ] = None,
    threshold: Annotated[
        str, typer.Option("--threshold-usd", metavar="D", help="Exit 1 above it; 0 tolerates nothing.")
    ] = "0",
    zone: Annotated[
        str | None, typer.Option(help="Whose days an invoice has, if not the provider's usual ones.")
    ] = None,
    no_images: Annotated[bool, typer.Option("--no-images", help="Do not compare with the store.")] = False,
    out: Annotated[
        Path | None, typer.Option("--csv", metavar="PATH", dir_okay=False, help="Write every finding there.")
    ] = None,
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Compare a month with the providers' books and the store; exit 1 with what is off, 3 if not all could be read."""
    month = previous_month(period_at(unix_us_at(utc_now())).month) if month is None else month
    must_be_month("--month", month)
    if invoice is not None and provider is None:
        misuse("--invoice: say whose it is with --provider")
    if zone is not None and (provider is None or not is_zone(zone)):
        misuse(f"--zone: {zone!r} is no zone, such as UTC" if provider else "--zone: say whose it is with --provider")
    threshold_usd = _usd(threshold)
    scope = Scope(month, provider, invoice, zone, not no_images and provider is None)

    async def work() -> tuple[dict[str, Any], Reconciliation]:
        now = utc_now()
        async with back(who) as opened:
            with _written(out) as write, _progress() as tell:
                outcome = await compare_books(opened, scope, Findings(write), now, tell)
            return outcome.report(threshold_usd), await keep(opened, outcome, threshold_usd, now)

    report, kept = run(work())
    if as_json:
        say(report | {"id": kept.id, "at": kept.at}, as_json)
    else:
        _print(report, out)
    for sentence in report["unread"]:
        sys.stderr.write(f"ghub: {sentence}\n")
    if not kept.ok:
        raise typer.Exit(1 if _is_off(report, threshold_usd) else NOT_EVERYTHING)


def _is_off(report: dict[str, Any], threshold_usd: Decimal) -> bool:
    return bool(report["totals"]) if threshold_usd == 0 else Decimal(report["off_usd"]) > threshold_usd


def _print(report: dict[str, Any], out: Path | None) -> None:
    """Print the sums by provider, then each kind of finding with its sum and the first of them."""
    say(
        [
            {
                "provider": side["provider"],
                "ledger_usd": side["ledger_usd"],
                "billed_usd": side["billed_usd"],
                "images": side["ledger_images"],
                "billed": side["billed_images"],
                "until": side["until"],
                "zone": side["zone"],
            }
            for side in report["providers"]
        ],
        False,
    )
    if not report["totals"]:
        typer.echo(f"\nNothing is off in {report['month']}.")
        return
    listed = report["findings"][:MAX_LISTED]
    for total in report["totals"]:
        heading = f"{total['what']} ({total['count']}): {total['images']} images, {total['usd']} USD: {total['means']}"
        typer.echo("\n" + textwrap.fill(heading[0].upper() + heading[1:], WIDTH))
        found = [one for one in listed if one["what"] == total["what"]]
        names = [name for name in SHOWN if any(one[name] != "" for one in found)]
        if found:
            typer.echo()
            say([{name: None if one[name] == "" else one[name] for name in names} for one in found], False)
    count = sum(total["count"] for total in report["totals"])
    if count > len(listed) and out is None:
        typer.echo(f"And {count - len(listed)} more: --csv PATH writes them all.")
    typer.echo(f"\n{report['off_usd']} USD are off, and {report['threshold_usd']} are tolerated.")


@contextmanager
def _written(out: Path | None) -> Iterator[Callable[[Finding], None]]:
    """Write each finding to a CSV, completely or not at all."""
    if out is None:
        yield lambda _: None
        return
    try:
        with whole(out) as part, part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            yield lambda finding: writer.writerow(_cells(finding))
    except OSError as error:
        fail(f"--csv: {str(out)!r} cannot be written: {error.strerror}")


def _cells(finding: Finding) -> list[str]:
    """Return a finding's cells; a spreadsheet must not run a text of a provider."""
    row = finding_row(finding)
    return [str(row[name]) if name == "usd" else text_cell(str(row[name])) for name in COLUMNS]


@contextmanager
def _progress() -> Iterator[Tell]:
    """Show what was read to a person who waits."""
    read: Counter[str] = Counter()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("reading", total=None)

        def tell(what: str, count: int) -> None:
            before = read[what] // STEP
            read[what] += count
            if read[what] // STEP > before:
                progress.update(bar, description=", ".join(f"{number} {name}" for name, number in read.items()))

        yield tell


def _usd(text: str) -> Decimal:
    try:
        figure = Decimal(text)
    except InvalidOperation:
        figure = Decimal(-1)
    if not figure.is_finite() or figure < 0:
        misuse(f"--threshold-usd: {text!r} is no amount in USD, such as 5.00")
    return figure
