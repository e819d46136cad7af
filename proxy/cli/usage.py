"""`ghub usage`: the export for finance."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn

from metering.clock import is_day, period_at, unix_us_at, utc_now
from metering.exports.formats import FORMATS, ExtraMissing
from metering.exports.reading import Scope, days
from metering.exports.rows import Written
from metering.exports.writing import Source, Tell, write_file
from metering.money import format_mxn
from metering.pages import pages
from metering.ports import MonthSums
from metering.unbooked import doubts
from proxy.cli.manifests import manifest_of, write_manifest
from proxy.cli.output import NOT_EVERYTHING, AsJson, fail, misuse, must_be_month, say
from proxy.cli.running import back, run

app = typer.Typer(no_args_is_help=True)

COLUMNS = (SpinnerColumn(), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="The file to write; - for standard output.", dir_okay=False)],
    month: Annotated[str | None, typer.Option(metavar="YYYY-MM", help="In Mexico City; this one without.")] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="DAY", help="Instead of a month: from a day.")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="DAY", help="To this day, which is included.")] = None,
    file_format: Annotated[str, typer.Option("--format", help=", ".join(FORMATS))] = "csv",
    focus_version: Annotated[
        str | None, typer.Option("--focus-version", help="1.2 or 1.4, of --format focus; 1.2 without.")
    ] = None,
    ref: Annotated[str | None, typer.Option("--org", metavar="ORG", help="One organisation only.")] = None,
    excel: Annotated[bool, typer.Option("--excel", help="A CSV that Excel opens as UTF-8.")] = False,
    all_ends: Annotated[
        bool, typer.Option("--all-ends", help="Also orders that were not charged, with their provider's ids and cost.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the charged orders of a month, and the refunds given in it; exit 3 where not everything is known yet."""
    scope = _scope(month, first, last, all_ends)
    if file_format not in FORMATS:
        misuse(f"--format: {file_format!r} is not offered; there is: {', '.join(FORMATS)}")
    chosen = FORMATS[file_format]
    if excel and "excel" not in chosen.variants:
        misuse(f"--excel: it is for --format csv, and this is {file_format}")
    if focus_version is not None and file_format != "focus":
        misuse(f"--focus-version: it is for --format focus, and this is {file_format}")
    if focus_version is not None and focus_version not in chosen.variants:
        misuse(f"--focus-version: {focus_version!r} is not offered; there is: {', '.join(chosen.variants)}")
    if all_ends and not chosen.all_ends:
        misuse(f"--all-ends: --format {file_format} has no place for orders that were not charged")
    aside = str(out) == "-"
    if aside and not chosen.is_text and sys.stdout.isatty():
        misuse(f"--out: {file_format} cannot be read on a terminal; name a file")
    if not aside and not out.parent.is_dir():
        misuse(f"--out: there is no folder {str(out.parent)!r}")
    try:
        write = chosen.load("excel" if excel else focus_version)
    except ExtraMissing as error:
        fail(f"--format {file_format}: {error}")

    async def work() -> tuple[Written, list[str]]:
        async with back() as opened:
            ledger = opened.ledger
            org_id = (await ledger.org(ref)).org_id if ref else None
            closed = {one.month for one in await ledger.closed_months()}  # what comes now is posted to a later one
            unsure = [of for of in scope.months if of not in closed]
            why = [one for of in unsure for one in await doubts(ledger, opened.redis, of, org_id)]
            source = Source(ledger, replace(scope, org_id=org_id))
            with _progress(await _expected(source)) as tell:
                if aside:
                    written = await write(source, sys.stdout.buffer, tell)
                    sys.stdout.buffer.flush()
                    return written, why
                try:
                    written = await write_file(source, out, write, tell)
                except OSError as error:
                    fail(f"--out: {str(out)!r} cannot be written: {error.strerror}")
            # Only if it was closed before the first row was read: earlier rows have no seal.
            text = await ledger.manifest(scope.month) if scope.month in closed and chosen.sealed else None
            if text is not None:
                write_manifest(manifest_of(out), text)
                sealed.append(str(manifest_of(out)))
            return written, why

    sealed: list[str] = []
    written, why = run(work())
    why = list(dict.fromkeys(why))
    span = {"month": scope.month} if scope.month else {"from": scope.first, "to": scope.last}
    report = {
        **span,
        "out": str(out),
        "rows": written.rows,
        "charged_mxn": format_mxn(written.charged_micro_mxn),
        "refunded_mxn": format_mxn(written.refunded_micro_mxn),
        "amount_mxn": format_mxn(written.amount_micro_mxn),
        "complete": not why,
        **({"manifest": sealed[0]} if sealed else {}),
    }
    with redirect_stdout(sys.stderr) if aside else nullcontext():
        say(report | {"why": why} if as_json else report, as_json)
    if not written.rows:
        when = " to ".join(span.values())
        sys.stderr.write(f"ghub: warning: nothing was charged or refunded in {when}: the export has no rows\n")
    for sentence in why:
        sys.stderr.write(f"ghub: {sentence}\n")
    if why:
        raise typer.Exit(NOT_EVERYTHING)


def _scope(month: str | None, first: str | None, last: str | None, all_ends: bool) -> Scope:
    """Read which month or days are meant. Misuse ends the command."""
    if first is None and last is None:
        month = period_at(unix_us_at(utc_now())).month if month is None else month
        must_be_month("--month", month)
        return Scope((month,), all_ends=all_ends)
    if month is not None:
        misuse("--month: it is a whole month; with --from and --to leave it out")
    if first is None or last is None:
        misuse("--from and --to: give both, such as --from 2026-11-01 --to 2026-11-15")
    for option, day in (("--from", first), ("--to", last)):
        if not is_day(day):
            misuse(f"{option}: {day!r} is not a day, such as 2026-11-22")
    if last < first:
        misuse(f"--to: {last} is before {first}")
    return days(first, last, all_ends=all_ends)


async def _expected(source: Source) -> int | None:
    """Find how many orders a bar will count. None for a range of days, or if nobody looks."""
    scope = source.scope
    if scope.month is None or not sys.stderr.isatty():
        return None
    month = scope.month

    async def sums(after: MonthSums | None) -> list[MonthSums]:
        return await source.ledger.month_sums(month, after, org_id=scope.org_id)

    return sum([one.orders async for page in pages(sums) for one in page])


@contextmanager
def _progress(expected: int | None) -> Iterator[Tell]:
    """Count the rows that are written for a person who waits."""
    console = Console(file=sys.stderr)
    with Progress(*COLUMNS, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("", total=expected)
        yield lambda rows: progress.advance(bar, rows)
