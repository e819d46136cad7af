"""`ghub sink`: receivers of metering events."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from metering.clock import is_day, utc_now
from metering.ports import Act, ItemSetAside, SinkState
from metering.sinks.file import PROFILES
from metering.sinks.lag import age_s
from proxy.cli.output import AsJson, misuse, say
from proxy.cli.running import As, back, books, run

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="As `ghub sink list` has it.")]
First = Annotated[str | None, typer.Option("--from", metavar="DAY", help="A day of Mexico City, such as 2026-11-22.")]
Last = Annotated[str | None, typer.Option("--to", metavar="DAY", help="The last day, included.")]

SHOWN = 100
"""Items that `show` prints at most, oldest first."""


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Every registered sink: what it has not taken, what it has refused, and until when it recognises a repeat."""

    async def work() -> list[SinkState]:
        async with books() as opened:
            return await opened.ledger.sinks()

    say([_row(state) for state in run(work())], as_json)


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """What a sink has refused for good, and what it said: the oldest 100."""

    async def work() -> list[ItemSetAside]:
        async with books() as opened:
            return await opened.ledger.items_set_aside(name, most=SHOWN)

    say([_set_aside(item) for item in run(work())], as_json)


@app.command()
def replay(
    name: Name,
    first: First = None,
    last: Last = None,
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Send again what was set aside; with --from and --to, all that was charged and refunded on those days, too."""
    if (first is None) != (last is None):
        misuse("--from and --to: give both, or none to send again what was set aside")
    for option, day in (("--from", first), ("--to", last)):
        if day is not None and not is_day(day):
            misuse(f"{option}: {day!r} is not a day, such as 2026-11-22")
    if first is not None and last is not None and first > last:
        misuse(f"--to: {last} is before {first}")

    async def work() -> dict[str, Any]:
        async with back(who) as opened:
            at, ledger = utc_now(), opened.ledger
            items = await ledger.send_again(name, at)
            if first is not None and last is not None:
                async for page in ledger.send_days_again(name, first, last, at):
                    items += page
            details = {"items": items, "from": first, "to": last}
            await ledger.note(Act(opened.actor, "sink.replay", name, details=details), at)
            return {"name": name, "from": first, "to": last, "items": items}

    say(run(work()), as_json)


@app.command()
def remove(name: Name, who: As = None, as_json: AsJson = False) -> None:
    """Forget a sink, and all that it has not taken. First take it out of GHUB_SINKS of every consumer."""

    async def work() -> dict[str, Any]:
        async with back(who) as opened:
            act = Act(opened.actor, "sink.remove", name)
            return {"name": name, "items_removed": await opened.ledger.remove_sink(name, utc_now(), act)}

    say(run(work()), as_json)


def _row(state: SinkState) -> Mapping[str, Any]:
    profile = PROFILES.get(state.profile)
    age = age_s(state)
    return {
        "name": state.name,
        "profile": state.profile,
        "since": state.since,
        "pending": state.pending,
        "oldest_age_s": None if age is None else round(age),
        "set_aside": state.set_aside,
        "last_success": state.delivered_at,
        "last_error": state.error,
        "repeats": profile.REPEATS if profile is not None else "this version does not know the profile",
    }


def _set_aside(item: ItemSetAside) -> Mapping[str, Any]:
    return {
        "id": item.item_id,
        "kind": item.kind,
        "booked_at": item.at,
        "set_aside_at": item.set_aside_at,
        "error": item.error,
    }
