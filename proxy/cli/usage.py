"""`ghub usage`: what finance takes away."""

from pathlib import Path
from typing import Annotated

import typer

from metering.clock import is_month
from metering.export import write_csv
from metering.money import format_mxn
from proxy.cli.output import AsJson, back, misuse, run, say

app = typer.Typer(help="Charged orders of a month.", no_args_is_help=True)


@app.command()
def export(
    month: Annotated[str, typer.Option(metavar="YYYY-MM", help="A month in Mexico City.")],
    out: Annotated[Path, typer.Option(help="The file to write.", dir_okay=False)],
    file_format: Annotated[str, typer.Option("--format", help="csv")] = "csv",
    ref: Annotated[str | None, typer.Option("--org", metavar="ORG", help="One organisation only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the charged orders of a month from the ledger."""
    if not is_month(month):
        misuse(f"--month: {month!r} is not a month, such as 2026-11")
    if file_format != "csv":
        misuse(f"--format: {file_format!r} is not offered; there is: csv")
    if not out.parent.is_dir():
        misuse(f"--out: there is no folder {str(out.parent)!r}")

    async def work() -> tuple[int, int]:
        async with back() as opened:
            org_id = (await opened.ledger.org(ref)).org_id if ref else None
            return await write_csv(opened.ledger.events(org_id=org_id, month=month), out)

    rows, total = run(work())
    say({"month": month, "out": str(out), "rows": rows, "amount_mxn": format_mxn(total)}, as_json)
