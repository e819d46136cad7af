"""`ghub org`: organisations and their limits."""

from typing import Annotated, Any

import typer

from metering.ports import Org
from proxy.cli.output import AsJson, OrgRef, back, misuse, run, say

app = typer.Typer(help="Organisations and their limits.", no_args_is_help=True)

_LIMIT = {"min": 1, "max": 1_000_000}


def _row(org: Org) -> dict[str, Any]:
    return {
        "org": org.org_id,
        "name": org.name,
        "plan": org.plan,
        "requests_per_minute": org.requests_per_minute,
        "images_per_minute": org.images_per_minute,
        "created_at": org.created_at,
    }


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Unique; letters, digits, spaces, or . _ @ -")],
    plan: Annotated[str, typer.Option(help="A plan of config/plans.toml.")] = "default",
    as_json: AsJson = False,
) -> None:
    """Open an organisation at 0.00 MXN."""

    async def work() -> Org:
        async with back() as opened:
            return await opened.accounts.create_org(name, plan)

    org = run(work())
    say({"org": org.org_id, "name": org.name}, as_json)


@app.command()
def show(ref: OrgRef, as_json: AsJson = False) -> None:
    """One organisation; a limit without a number is its plan's."""

    async def work() -> Org:
        async with back() as opened:
            return await opened.ledger.org(ref)

    say(_row(run(work())), as_json)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """All organisations."""

    async def work() -> list[Org]:
        async with back() as opened:
            return await opened.ledger.orgs()

    say([_row(org) for org in run(work())], as_json)


@app.command()
def limits(
    ref: OrgRef,
    requests_per_minute: Annotated[int | None, typer.Option(**_LIMIT)] = None,
    images_per_minute: Annotated[int | None, typer.Option(**_LIMIT)] = None,
    as_json: AsJson = False,
) -> None:
    """Set an organisation's own limits, above its plan's; they hold from the next request on."""
    given = {"requests_per_minute": requests_per_minute, "images_per_minute": images_per_minute}
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        misuse("name a limit: --requests-per-minute or --images-per-minute")

    async def work() -> Org:
        async with back() as opened:
            return await opened.accounts.set_limits(ref, changes)

    say(_row(run(work())), as_json)
