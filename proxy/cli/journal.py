"""`ghub journal replay`: what a gateway that does not come back has answered, charged by hand."""

import asyncio
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from metering.frames import Folder
from metering.recovery import PAUSE_S, Recovery
from proxy.cli.output import AsJson, back, fail, run, say

app = typer.Typer(help="Journals of gateways.", no_args_is_help=True)

PATIENCE_S = 30.0
"""Without any progress for so long it gives up: the consumer is not running, or Redis is away. Safe to repeat."""


@app.command("replay")
def replay(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The gateway's GHUB_JOURNAL_DIR.", exists=True)],
    as_json: AsJson = False,
) -> None:
    """Charge every order that the journals in DIR say is answered, and close them. Refused while a gateway uses DIR."""

    async def work() -> dict[str, Any]:
        claimed = Folder(folder)
        try:
            past = await asyncio.to_thread(claimed.past)
            async with back() as opened:
                recovery = Recovery(past, opened.wallet(), opened.ledger)
                left, since_s = recovery.left, time.monotonic()
                while recovery.left:
                    why = await recovery.round()
                    if recovery.left != left:
                        left, since_s = recovery.left, time.monotonic()
                    elif time.monotonic() - since_s > PATIENCE_S:
                        fail(f"{left} orders are not in the ledger yet ({why}): is a consumer running? Nothing is lost")
                    await asyncio.sleep(PAUSE_S)
        finally:
            claimed.close()
        return {"incarnations": len(past), "orders": recovery.orders, "charged_now": recovery.charged}

    say(run(work()), as_json)
