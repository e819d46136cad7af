"""`ghub fx`: the month's exchange rate."""

from typing import Annotated

import typer

from metering.clock import is_month
from metering.money import AmountError, parse_rate
from metering.pricing import FxRate
from proxy.api.admin.rows import rate_fields
from proxy.cli.output import AsJson, misuse, say
from proxy.cli.running import As, back, books, run

app = typer.Typer(no_args_is_help=True)


@app.command("set")
def set_(
    month: Annotated[str, typer.Argument(metavar="YYYY-MM")],
    rate: Annotated[str, typer.Argument(metavar="RATE", help="MXN for one USD, such as 18.4512.")],
    source: Annotated[str, typer.Option(help="Where the rate comes from; it stands in every event.")],
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Add a month's rate. A month that has begun keeps the rate that it has."""
    if not is_month(month):
        misuse(f"YYYY-MM: {month!r} is not a month")
    try:
        number = parse_rate(rate)
    except AmountError as error:
        misuse(f"RATE: {error}")
    if not source.strip():
        misuse("--source: say where the rate comes from")
    wanted = FxRate(month, number, source.strip())

    async def work() -> bool:
        async with back(who) as opened:
            return await opened.accounts.add_rate(wanted)

    say(rate_fields(wanted) | {"added": run(work())}, as_json)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """The rate of every month that has one."""

    async def work() -> list[FxRate]:
        async with books() as opened:
            return await opened.ledger.rates()

    say([rate_fields(rate) for rate in run(work())], as_json)
