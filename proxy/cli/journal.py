"""`ghub journal`: journals of gateways that do not come back: to inspect, charge by hand, salvage, or give up."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from config.settings import SettingsError
from metering.clock import utc_now
from metering.journal.folders import all_folders
from metering.journal.frames import Folder, OldJournal, Survey, survey
from metering.journal.orphaned import orphans
from metering.journal.recovery import PAUSE_S, Recovery
from metering.journal.salvage import ASIDE, Salvage, check_versions, ends_of, give_up, read_orders
from metering.money import format_mxn
from metering.ports import Act, Ended, Incarnation, Ledger, LedgerAway, LedgerError
from proxy.backends import Backends
from proxy.cli.output import AsJson, fail, misuse, say
from proxy.cli.replay_job import POD, SECRET, replay_job
from proxy.cli.running import As, back, books, run

app = typer.Typer(no_args_is_help=True)

PATIENCE_S = 30.0
"""Without progress for this long it gives up: the consumer is not running, or Redis is away. Safe to repeat."""

JournalDir = Annotated[Path, typer.Argument(metavar="DIR", help="The gateway's GHUB_JOURNAL_DIR.", exists=True)]


@app.command("replay")
def replay(folder: JournalDir, who: As = None, as_json: AsJson = False) -> None:
    """Charge every order that the journals in DIR say is answered, and close them. Refused while a gateway uses DIR.

    DIR is a gateway's whole folder: those of its further processes in it are replayed with it.
    """

    async def work() -> dict[str, Any]:
        with ExitStack() as claims:
            folders = [claims.enter_context(closing(Folder(one, make=one != folder))) for one in all_folders(folder)]
            past = [one for claimed in folders for one in await asyncio.to_thread(claimed.past)]
            check_versions(past)
            async with back(who) as opened:
                recovery = Recovery(past, opened.wallet(), opened.ledger)
                await _note(opened, "journal.replay", folder, past)
                await _until_none(lambda: recovery.left, recovery.round)
        return {"incarnations": len(past), "orders": recovery.orders, "charged_now": recovery.charged}

    say(run(work()), as_json)


@app.command("salvage")
def salvage(folder: JournalDir, who: As = None, as_json: AsJson = False) -> None:
    """Charge what is good of damaged journals in DIR, name the rest, and move their files aside. Deletes nothing."""

    async def work() -> dict[str, Any]:
        claimed = Folder(folder, make=False)
        try:
            past = await asyncio.to_thread(claimed.survey)
            check_versions(past)
            whole = [one for one in past if one.why_not_whole is None]
            async with back(who) as opened:
                await _note(opened, "journal.salvage", folder, past)
                recovery = Recovery(whole, opened.wallet(), opened.ledger)
                await _until_none(lambda: recovery.left, recovery.round)
                saved = [Salvage(one, opened.wallet(), opened.ledger) for one in past if one.why_not_whole is not None]
                for one in saved:
                    await _until_none(lambda one=one: one.left, one.round)  # type: ignore[misc]
                    await one.end()
        finally:
            claimed.close()
        return {
            "incarnations": len(past),
            "orders": recovery.orders + sum(one.orders for one in saved),
            "charged_now": recovery.charged + sum(len(one.charged) for one in saved),
            "damaged": [_saved(one) for one in saved],
            "moved_to": str(folder / ASIDE) if saved else None,
        }

    done = run(work())
    say(done, as_json)
    if lost := [one["incarnation"] for one in done["damaged"] if one["missing"]]:
        fail(f"entries are missing; to give them up: `ghub journal close {lost[0]} --lost --reason …`")


@app.command("inspect")
def inspect(folder: JournalDir, as_json: AsJson = False) -> None:
    """What the journals in DIR say, damaged or in use, and what the ledger knows of it. Changes nothing."""

    async def work() -> dict[str, Any]:
        found = [(one, await asyncio.to_thread(survey, one)) for one in all_folders(folder)]
        try:
            async with books() as opened:
                own, *further = [await _inspected(*one, opened.ledger, "") for one in found]
        except (SettingsError, LedgerAway, LedgerError) as error:
            why = str(error) or type(error).__name__
            own, *further = [await _inspected(*one, None, why) for one in found]
        return {**own, "processes": further}

    _show(run(work()), as_json)


@app.command("orphans")
def orphaned(as_json: AsJson = False) -> None:
    """Journals that are open although their gateway is gone, and the pod that each was in."""

    async def work() -> list[dict[str, Any]]:
        async with back() as opened:
            found = await orphans(opened.ledger, opened.presence())
        return [{"incarnation": str(one.incarnation), "pod": one.host, "opened_at": one.opened_at} for one in found]

    say(run(work()), as_json)


@app.command("job")
def job(
    pod: Annotated[
        str, typer.Argument(metavar="POD", help="The pod that is gone, as `ghub journal orphans` names it.")
    ],
    image: Annotated[str, typer.Option(help="The image of the gateways, which the Job runs.")],
    secret: Annotated[str, typer.Option(help="The Secret of the gateways: a chart's `existingSecret`.")] = SECRET,
    pull_secret: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The Secret of the image's registry: a chart's `imagePullSecrets`."),
    ] = None,
) -> None:
    """The Job that replays the journal on the claim of POD, for `kubectl create -f -`. Talks to nothing."""
    if not POD.fullmatch(pod):
        misuse("POD: a pod's name has small letters, digits and hyphens, such as gateway-3")
    typer.echo(json.dumps(replay_job(pod, image, secret, pull_secret), indent=2))


@app.command("close")
def close(
    incarnation: Annotated[UUID, typer.Argument(metavar="ID", help="The journal, as `ghub verify` names it.")],
    reason: Annotated[str, typer.Option(help="What became of it; it stands in the ledger and in the audit log.")],
    lost: Annotated[bool, typer.Option("--lost", help="It is gone, and nobody can replay it.")] = False,
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Give a journal up that is lost for good: what only it knew is never charged. Refused while its gateway lives."""
    if not lost:
        misuse("--lost: a journal that is there is closed by `ghub journal replay DIR`; this gives one up")

    async def work() -> dict[str, Any]:
        async with back(who) as opened:
            presence = opened.presence()  # without Redis nobody can know whether its gateway is alive
            now = await give_up(opened.ledger, presence, incarnation, reason.strip(), opened.actor)
            known = await opened.ledger.incarnation(incarnation)
        return {
            "incarnation": str(incarnation),
            "closed_now": now,
            "closed_at": known.closed_at,
            "lost_reason": known.lost_reason,
        }

    say(run(work()), as_json)


async def _until_none(left: Callable[[], int], look: Callable[[], Awaitable[str]]) -> None:
    """Look until nothing is left. If nothing changes for PATIENCE_S, the command ends."""
    before, since_s = left(), time.monotonic()
    while left():
        why = await look()
        if left() != before:
            before, since_s = left(), time.monotonic()
        elif time.monotonic() - since_s > PATIENCE_S:
            fail(f"{before} orders are not in the ledger yet ({why}): is a consumer running? Nothing is lost")
        if left():
            await asyncio.sleep(PAUSE_S)


async def _note(opened: Backends, action: str, folder: Path, past: list[OldJournal]) -> None:
    for one in past:
        details = {"folder": str(folder), "entries": len(one.entries), "damaged": one.why_not_whole is not None}
        await opened.ledger.note(Act(opened.actor, action, str(one.incarnation), details=details), utc_now())


def _saved(one: Salvage) -> dict[str, Any]:
    return {
        "incarnation": str(one.past.incarnation),
        "orders": one.orders,
        "charged_now": len(one.charged),
        "closed": not one.past.missing,
        **_rest(one.past),
        "may_have_been_withdrawn": one.doubtful,
    }


def _rest(past: OldJournal) -> dict[str, Any]:
    """Return the damaged and missing parts of a journal."""
    return {
        "damage": [{"file": one.file, "from_byte": one.start, "to_byte": one.end} for one in past.damage],
        "missing": [[first, last] for first, last in past.missing],
    }


async def _inspected(folder: Path, found: Survey, ledger: Ledger | None, why_not_asked: str) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "in_use": found.in_use,
        "ledger": "asked" if ledger is not None else f"not asked: {why_not_asked}",
        "incarnations": [await _incarnation(one, ledger) for one in found.incarnations],
        "other_files": [*found.strangers],
    }


async def _incarnation(past: OldJournal, ledger: Ledger | None) -> dict[str, Any]:
    orders, unreadable = read_orders(past)
    known = None if ledger is None else await ledger.incarnation(past.incarnation)
    ends = None if ledger is None else await ends_of([one.order for one in orders], ledger)
    return {
        "incarnation": str(past.incarnation),
        "in_ledger": _state(known),
        "files": [
            {"file": one.path.name, "bytes": one.size_bytes, "frames": one.frames, "entries": one.entries}
            for one in past.read
        ],
        "entries": len(past.entries),
        "first_number": past.entries[0].number if past.entries else None,
        "last_number": past.last_number,
        "orders": [
            {
                "request_id": one.order.order_id,
                "org": one.order.org_id,
                "mxn": format_mxn(one.order.amount_micro_mxn),
                "answered_at": _at(one.order.ended_us),
                "number": one.number,
                "withdrawn": one.withdrawn,
                "in_ledger": _end(one.order.order_id, ends),
            }
            for one in orders
        ],
        **_rest(past),
        "unreadable": [{"number": one.entry.number, "file": one.entry.file, "why": one.why} for one in unreadable],
    }


def _state(known: Incarnation | None) -> str:
    if known is None:
        return "not asked"
    if known.closed_at is not None:
        return "closed" if known.lost_reason is None else f"given up: {known.lost_reason}"
    return "open" if known.opened_at is not None else "unknown"


def _end(order_id: str, ends: dict[str, Ended] | None) -> str:
    if ends is None:
        return "not asked"
    return ends[order_id].end if order_id in ends else "not there"


def _at(unix_us: int) -> str:
    return datetime.fromtimestamp(unix_us // 1_000_000, UTC).isoformat()


def _short(cell: Any) -> Any:
    """Replace a list by its length, because a table has no room for the list."""
    return len(cell) if isinstance(cell, list) else cell


def _show(found: dict[str, Any], as_json: bool) -> None:
    """Print one JSON value, or tables: each folder, its journals, their orders, and what is wrong with them."""
    if as_json:
        say(found, as_json)
        return
    for one in (found, *found["processes"]):
        _show_folder(one)


def _show_folder(found: dict[str, Any]) -> None:
    journals = found["incarnations"]
    say({name: found[name] for name in ("folder", "in_use", "ledger")}, False)
    say([{name: _short(cell) for name, cell in one.items()} for one in journals], False)
    for name in ("files", "orders", "damage", "unreadable"):
        if rows := [row for one in journals for row in one[name]]:
            say(rows, False)
    for one in journals:
        for first, last in one["missing"]:
            say({"missing": f"entries {first} to {'?' if last is None else last}", "of": one["incarnation"]}, False)
    for name in found["other_files"]:
        say({"no file of a journal": name}, False)
