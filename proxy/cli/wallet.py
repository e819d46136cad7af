"""`ghub wallet`: rebuild wallets from the ledger, and accept what a restored ledger lost of them."""

import asyncio
import time
from typing import Annotated, Any

import typer

from metering.aside import amount_of, left_out
from metering.clock import utc_now
from metering.money import format_mxn
from metering.ports import Act
from metering.verify import journals
from metering.wallet import keys
from proxy.cli.output import AsJson, fail, say
from proxy.cli.running import As, back, run

app = typer.Typer(no_args_is_help=True)

PATIENCE_S = 30.0
"""A rebuild waits this long for the consumer to book what is in the stream; with a consumer it takes well under 1 s."""


@app.command("rebuild")
def rebuild(
    org: Annotated[str | None, typer.Argument(metavar="ORG", help="Its UUID or name; all of them without.")] = None,
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Fence the organisation's partition (503), and replace its wallets by what ledger, stream and open holds say."""

    async def work() -> tuple[dict[str, Any], list[str]]:
        async with back(who, logs="error") as opened:  # a rebuild is logged as a warning, but here it is intended
            projector, presence = opened.projection(), opened.presence()
            org_id = (await opened.ledger.org(org)).org_id if org else None
            await opened.ledger.note(Act(opened.actor, "wallet.rebuild", org_id or "all", org_id), utc_now())
            await projector.forget(org_id)
            until_s = time.monotonic() + PATIENCE_S
            while waiting := await projector.missing(org_id):
                if time.monotonic() > until_s:
                    fail(f"{waiting} partitions wait for the consumer to book their events: is one running?")
                await projector.round()
                await asyncio.sleep(0.1)
            unreplayed = [str(incarnation) for incarnation in await opened.ledger.open_incarnations()]
            doubtful = [] if as_json else await journals(opened.ledger, presence)
            left = await left_out(
                opened.ledger, range(keys.PARTITIONS) if org_id is None else [keys.partition_of(org_id)]
            )
        without = [
            {"org": entry.org_id, "event": entry.name, "request_id": entry.order_id, "amount_mxn": amount_of(entry)}
            for entry in left
        ]
        report = {"rebuilt": org or "all", "journals_not_closed": unreplayed, "rebuilt_without": without}
        return report, [f"{one.what}: {one.found}" for one in doubtful]

    report, doubts = run(work())
    without = report["rebuilt_without"]
    if without:
        typer.echo(
            "ghub: warning: the rebuilt wallets do not contain charges that were set aside; their customers have that"
            " money again until `ghub event retry` books them:",
            err=True,
        )
        for row in without:
            amount = row["amount_mxn"] or "an unreadable amount of"
            typer.echo(f"ghub: warning: organisation {row['org'] or '?'}: event {row['event']}, {amount} MXN", err=True)
    for sentence in doubts:
        typer.echo(f"ghub: warning: what it answered may be missing in the wallets: {sentence}", err=True)
    say(report if as_json else {"rebuilt": report["rebuilt"]}, as_json)


@app.command("accept")
def accept(
    org: Annotated[str, typer.Argument(metavar="ORG", help="As `ghub verify` names it: its name, or its UUID.")],
    reason: Annotated[str, typer.Option(help="Why it is given up, for the audit log.")],
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Give up what a restored ledger lost of an organisation: charges, credits, or the whole of it."""

    async def work() -> dict[str, Any]:
        async with back(who) as opened:
            charged, credits_ = await opened.accounts.accept_loss(org, reason)
        return {"org": org, "charged_mxn": format_mxn(charged), "credits_mxn": format_mxn(credits_)}

    say(run(work()), as_json)
