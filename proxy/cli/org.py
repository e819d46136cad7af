"""`ghub org`: organisations and their limits."""

from typing import Annotated, Any

import typer

from metering.limits import NONE, told
from metering.pages import pages
from metering.ports import Org
from proxy.cli.limits import OrgBudget, OrgQuota, PerMinute, limit_changes
from proxy.cli.output import AsJson, OrgRef, back, run, say

app = typer.Typer(help="Organisations and their limits.", no_args_is_help=True)


def _row(org: Org) -> dict[str, Any]:
    return {
        "org": org.org_id,
        "name": org.name,
        "plan": org.plan,
        **told(org.limits.values()),
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
            return [org async for page in pages(opened.ledger.orgs) for org in page]

    say([_row(org) for org in run(work())], as_json)


@app.command()
def limits(
    ref: OrgRef,
    requests_per_minute: PerMinute = None,
    images_per_minute: PerMinute = None,
    in_flight: OrgQuota = None,
    images_per_day: OrgQuota = None,
    images_per_month: OrgQuota = None,
    mxn_per_month: OrgBudget = None,
    as_json: AsJson = False,
) -> None:
    """Set an organisation's own limits, above its plan's; they hold from the next request on."""
    changes = limit_changes(
        {
            "requests_per_minute": requests_per_minute,
            "images_per_minute": images_per_minute,
            "in_flight": in_flight,
            "images_per_day": images_per_day,
            "images_per_month": images_per_month,
            "mxn_per_month": mxn_per_month,
        },
        words={"plan": None, "none": NONE},
    )

    async def work() -> Org:
        async with back() as opened:
            return await opened.accounts.set_limits(ref, changes)

    say(_row(run(work())), as_json)
