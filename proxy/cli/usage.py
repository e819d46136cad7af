"""`ghub usage`: the export for finance."""

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from metering.clock import is_month, period_at, unix_us_at, utc_now
from metering.export import BYTE_ORDER_MARK, FORMATS, Written, write_file
from metering.money import format_mxn
from metering.unbooked import doubts
from proxy.cli.output import AsJson, fail, misuse, say
from proxy.cli.running import back, run

app = typer.Typer(no_args_is_help=True)

NOT_EVERYTHING = 3
"""The exit code of an export that is incomplete, because not everything is known yet."""


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="The file to write; - for standard output.", dir_okay=False)],
    month: Annotated[str | None, typer.Option(metavar="YYYY-MM", help="In Mexico City; this one without.")] = None,
    file_format: Annotated[str, typer.Option("--format", help=", ".join(FORMATS))] = "csv",
    ref: Annotated[str | None, typer.Option("--org", metavar="ORG", help="One organisation only.")] = None,
    excel: Annotated[bool, typer.Option("--excel", help="A CSV that Excel opens as UTF-8.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the charged orders of a month, and the refunds given in it; exit 3 where not everything is known yet."""
    month = period_at(unix_us_at(utc_now())).month if month is None else month
    if not is_month(month):
        misuse(f"--month: {month!r} is not a month, such as 2026-11")
    if file_format not in FORMATS:
        misuse(f"--format: {file_format!r} is not offered; there is: {', '.join(FORMATS)}")
    if excel and file_format != "csv":
        misuse(f"--excel: it is for --format csv, and this is {file_format}")
    write, mark = FORMATS[file_format], BYTE_ORDER_MARK if excel else ""
    aside = str(out) == "-"
    if not aside and not out.parent.is_dir():
        misuse(f"--out: there is no folder {str(out.parent)!r}")

    async def work() -> tuple[Written, list[str]]:
        async with back() as opened:
            ledger = opened.ledger
            org_id = (await ledger.org(ref)).org_id if ref else None
            why = await doubts(ledger, opened.redis, month, org_id)
            charges, refunds = ledger.charges(month, org_id=org_id), ledger.refunds(month, org_id=org_id)
            if aside:
                sys.stdout.write(mark)
                return await write(charges, refunds, sys.stdout), why
            try:
                return await write_file(charges, refunds, out, write, mark=mark), why
            except OSError as error:
                fail(f"--out: {str(out)!r} cannot be written: {error.strerror}")

    written, why = run(work())
    report = {
        "month": month,
        "out": str(out),
        "rows": written.rows,
        "charged_mxn": format_mxn(written.charged_micro_mxn),
        "refunded_mxn": format_mxn(written.refunded_micro_mxn),
        "amount_mxn": format_mxn(written.amount_micro_mxn),
        "complete": not why,
    }
    with redirect_stdout(sys.stderr) if aside else nullcontext():
        say(report | {"why": why} if as_json else report, as_json)
    if not written.rows:
        sys.stderr.write(f"ghub: warning: nothing was charged or refunded in {month}: the export has no rows\n")
    for sentence in why:
        sys.stderr.write(f"ghub: {sentence}\n")
    if why:
        raise typer.Exit(NOT_EVERYTHING)
