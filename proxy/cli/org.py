"""`ghub org`: organisations, their plans, limits and states."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metering.limits import NONE, Limits
from metering.pages import pages
from metering.plans import read_plans
from metering.ports import Org
from proxy.api.admin.rows import org_fields
from proxy.books import Books
from proxy.cli.limits import Changes, takes_limits
from proxy.cli.output import AsJson, OrgRef, say
from proxy.cli.running import As, back, books, run

if TYPE_CHECKING:
    from metering.accounts import Accounts
    from proxy.backends import Backends

app = typer.Typer(no_args_is_help=True)

NewName = Annotated[str, typer.Argument(metavar="NAME", help="Unique; letters, digits, spaces, or . _ @ -")]


def _rows(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows for a person: for each limit, the value that holds and whose it is."""
    return [
        {name: cell for name, cell in row.items() if name != "effective"}
        | {name: f"{one['limit']} ({one['of']})" for name, one in row["effective"].items()}
        for row in found
    ]


def _say(found: dict[str, Any], as_json: bool) -> None:
    say(found if as_json else _rows([found])[0], as_json)


async def _plans(opened: "Books | Backends") -> Mapping[str, Limits]:
    """Read the plans that a gateway has registered; before the first gateway starts, those of the file."""
    return await opened.ledger.plans() or read_plans(opened.settings.plans)


@app.command()
def create(
    name: NewName,
    plan: Annotated[str, typer.Option(help="A plan of config/plans.toml.")] = "default",
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Open an organisation at 0.00 MXN."""

    async def work() -> Org:
        async with back(who) as opened:
            return await opened.accounts.create_org(name, plan)

    org = run(work(), "name")
    say({"org": org.org_id, "name": org.name}, as_json)


@app.command()
def show(ref: OrgRef, as_json: AsJson = False) -> None:
    """One organisation, its state, and the limits that hold of it: its own, or its plan's."""

    async def work() -> dict[str, Any]:
        async with books() as opened:
            return org_fields(await opened.ledger.org(ref), await _plans(opened))

    _say(run(work()), as_json)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """All organisations."""

    async def work() -> list[dict[str, Any]]:
        async with books() as opened:
            plans = await _plans(opened)
            return [org_fields(org, plans) async for page in pages(opened.ledger.orgs) for org in page]

    found = run(work())
    say(found if as_json else _rows(found), as_json)


Change = Callable[["Accounts"], Awaitable[Org]]


def _change(who: str | None, change: Change, as_json: bool, *arguments: str) -> None:
    """Make a change, and print the organisation as it is now."""

    async def work() -> dict[str, Any]:
        async with back(who) as opened:
            return org_fields(await change(opened.accounts), await _plans(opened))

    _say(run(work(), *arguments), as_json)


@app.command()
def suspend(
    ref: OrgRef,
    reason: Annotated[str, typer.Option(help="Why, for the audit log.")] = "",
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Refuse the orders of all its keys within seconds. What is being made is delivered, and reads go on."""
    _change(who, lambda accounts: accounts.suspend_org(ref, reason.strip()), as_json)


@app.command()
def resume(ref: OrgRef, who: As = None, as_json: AsJson = False) -> None:
    """Take its orders again."""
    _change(who, lambda accounts: accounts.resume_org(ref), as_json)


@app.command()
def rename(ref: OrgRef, name: NewName, who: As = None, as_json: AsJson = False) -> None:
    """Call it otherwise. Its id, its keys and its images' addresses stay."""
    _change(who, lambda accounts: accounts.rename_org(ref, name), as_json, "name")


@app.command()
def plan(
    ref: OrgRef,
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A plan of config/plans.toml.")],
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Give it another plan. Its own limits stay above the plan's."""
    _change(who, lambda accounts: accounts.set_plan(ref, plan), as_json, "plan")


@app.command()
@takes_limits(words={"plan": None, "none": NONE})
def limits(ref: OrgRef, changes: Changes, who: As = None, as_json: AsJson = False) -> None:
    """Set an organisation's own limits, above its plan's; they hold from the next request on."""
    _change(who, lambda accounts: accounts.set_limits(ref, changes), as_json)
