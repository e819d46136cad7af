"""`ghub event`: entries of the stream that could not be booked, and how they come back (rule 30)."""

import re
from typing import Annotated, Any

import typer

from metering.aside import amount_of, facts_of_kept, fields_of
from metering.pages import pages
from metering.ports import LedgerError, SetAside
from metering.wallet import keys
from proxy.cli.loading import loading
from proxy.cli.output import AsJson, misuse, say
from proxy.cli.running import As, back, books, run

app = typer.Typer(no_args_is_help=True)

_NAME = re.compile(r"p([0-9]{1,2})-([0-9]{1,20}-[0-9]{1,20})")

Name = Annotated[str, typer.Argument(metavar="ID", help="As `ghub event list` has it, such as p17-1700000000000-0.")]


def _place(name: str) -> tuple[int, str]:
    parsed = _NAME.fullmatch(name)
    if parsed is None or int(parsed[1]) >= keys.PARTITIONS:
        misuse(f"ID: {name!r} is no event that was set aside; it looks like p17-1700000000000-0")
    return int(parsed[1]), parsed[2]


def _row(entry: SetAside) -> dict[str, Any]:
    return {
        "id": entry.name,
        "at": entry.at,
        "org": entry.org_id or None,
        "request_id": entry.order_id or None,
        "end": facts_of_kept(entry.fields).end or None,
        "amount_mxn": amount_of(entry),
        "error": entry.error,
    }


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """All that wait for a person, the oldest first."""

    async def work() -> list[SetAside]:
        async with books() as opened:
            return [entry async for page in pages(opened.ledger.set_asides) for entry in page]

    say([_row(entry) for entry in run(work())], as_json)


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """One of them with its fields; what is no text in them is shown with a replacement."""
    place = _place(name)

    async def work() -> SetAside:
        async with books() as opened:
            return await opened.ledger.set_aside(*place)

    entry = run(work())
    try:
        fields = fields_of(entry)
    except LedgerError:
        fields = {b"kept as": entry.fields}
    texts = {part.decode("utf-8", "replace"): value.decode("utf-8", "replace") for part, value in fields.items()}
    row = {**_row(entry), "fed_at": entry.fed_at}
    say({**row, "fields": texts} if as_json else row | texts, as_json)


@app.command()
def retry(name: Name, who: As = None, as_json: AsJson = False) -> None:
    """Put it back into its stream, and say what became of it; exit 1 where it is refused again, under a new id."""
    with loading():
        from metering.feeding import Feeding  # noqa: PLC0415  # the loader of what the other commands here do not need

    place = _place(name)

    async def work() -> dict[str, Any]:
        async with back(who) as opened:
            feeding = Feeding(opened.with_redis(), opened.ledger, opened.wallet(), opened.projection())
            fed = await feeding.retry(await opened.ledger.set_aside(*place), opened.actor)
            return {
                "id": name,
                "fed_as": fed.entry.name,
                "outcome": fed.outcome,
                "error": fed.error or None,
                "wallet_rebuilt": fed.rebuilt,
                "amount_mxn": amount_of(fed.entry),
            }

    report = run(work())
    say(report, as_json)
    if report["outcome"] == "waits for the consumer":
        typer.echo("ghub: warning: no consumer has taken it yet: is one running? Nothing is lost.", err=True)
    if report["error"]:
        typer.echo(f"ghub: it was refused again, and set aside as {report['fed_as']}: {report['error']}", err=True)
        raise typer.Exit(1)
