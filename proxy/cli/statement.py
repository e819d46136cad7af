"""`ghub statement`: an organisation's month, for itself."""

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, get_args

import typer

from metering.clock import period_at, unix_us_at, utc_now
from metering.exports.writing import whole
from metering.money import format_mxn
from metering.statement import Statement, read_statement
from metering.unbooked import doubts
from proxy.cli.output import AsJson, OrgRef, fail, misuse, must_be_month, say
from proxy.cli.running import back, run
from proxy.messages import Language
from proxy.statements.page import page_of
from proxy.statements.pdf import is_installed, pdf_of
from proxy.statements.sheet import sheet_of

FORMATS = ("html", "pdf")

NOT_EVERYTHING = 3
"""The exit code of a statement that is incomplete, because not everything is known yet."""


def statement(
    ref: OrgRef,
    out: Annotated[Path, typer.Option(help="The file to write; - for standard output.", dir_okay=False)],
    month: Annotated[str | None, typer.Option(metavar="YYYY-MM", help="In Mexico City; this one without.")] = None,
    file_format: Annotated[str, typer.Option("--format", help=", ".join(FORMATS))] = "html",
    lang: Annotated[str, typer.Option(help="es, or en.")] = "es",
    as_json: AsJson = False,
) -> None:
    """Write an organisation's statement of a month. That of a closed month is the same for ever."""
    now = utc_now()
    month = period_at(unix_us_at(now)).month if month is None else month
    must_be_month("--month", month)
    if file_format not in FORMATS:
        misuse(f"--format: {file_format!r} is not offered; there is: {', '.join(FORMATS)}")
    languages: dict[str, Language] = {one: one for one in get_args(Language)}
    if lang not in languages:
        misuse(f"--lang: {lang!r} is not offered; there is: es, en")
    if file_format == "pdf" and not is_installed():
        fail("PDF needs the extra: pip install 'geekhub-gateway[pdf]'; --format html prints well, too")
    aside = str(out) == "-"
    if not aside and not out.parent.is_dir():
        misuse(f"--out: there is no folder {str(out.parent)!r}")

    async def work() -> tuple[Statement, list[str]]:
        async with back() as opened:
            org_id = (await opened.ledger.org(ref)).org_id
            closed = {one.month for one in await opened.ledger.closed_months()}
            why = [] if month in closed else await doubts(opened.ledger, opened.redis, month, org_id)
            return await read_statement(opened.ledger, org_id, month, now), why

    found, why = run(work())
    sheet = sheet_of(found, languages[lang])
    drawn = pdf_of(sheet, month) if file_format == "pdf" else page_of(sheet)
    if aside:
        sys.stdout.buffer.write(drawn)
    else:
        _write(out, drawn)
    report = {
        "month": month,
        "org": found.org,
        "out": str(out),
        "opening_mxn": format_mxn(found.sums.opening_micro_mxn),
        "credits_mxn": format_mxn(found.sums.credits_micro_mxn),
        "charges_mxn": format_mxn(found.sums.charges_micro_mxn),
        "closing_mxn": format_mxn(found.sums.closing_micro_mxn),
        "provisional": found.provisional,
        "complete": not why,
    }
    with redirect_stdout(sys.stderr) if aside else nullcontext():
        say(report | {"why": why} if as_json else report, as_json)
    for sentence in why:
        sys.stderr.write(f"ghub: {sentence}\n")
    if why:
        raise typer.Exit(NOT_EVERYTHING)


def _write(path: Path, drawn: bytes) -> None:
    """Write a file completely or not at all."""
    try:
        with whole(path) as part:
            part.write_bytes(drawn)
    except OSError as error:
        fail(f"--out: {str(path)!r} cannot be written: {error.strerror}")
