"""`ghub credit` and `ghub balance`: money in, and what is left."""

from typing import Annotated

import typer

from metering.money import AmountError, format_mxn, parse_mxn
from proxy.api.balances import balance_fields
from proxy.cli.output import AsJson, OrgRef, misuse, say
from proxy.cli.running import As, back, run

app = typer.Typer(no_args_is_help=True)


@app.command()
def add(
    ref: OrgRef,
    mxn: Annotated[str, typer.Option(help="Amount, such as 500.00; only an adjustment may be negative.")],
    kind: Annotated[str, typer.Option("--type", help="bonus, recharge or adjustment; refund only with --order.")],
    credit_id: Annotated[str, typer.Option("--id", help="The payment's id: the same one counts once.")],
    order: Annotated[str | None, typer.Option(metavar="ID", help="The order that a refund gives back.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why a refund is given.")] = None,
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Add credit, once per id. A refund is easier by `ghub order refund`, which takes all that is left."""

    try:
        micro_mxn = parse_mxn(mxn)
    except AmountError as error:
        misuse(f"--mxn: {error}")

    async def work() -> dict[str, object]:
        async with back(who) as opened:
            added = await opened.accounts.add_credit(ref, credit_id, kind, micro_mxn, order=order, reason=reason)
        return {"id": credit_id, "mxn": format_mxn(micro_mxn), "type": kind, "added": added}

    say(run(work()), as_json)


def balance(ref: OrgRef, as_json: AsJson = False) -> None:
    """What an organisation can spend, what open orders hold, and their sum."""

    async def work() -> dict[str, str]:
        async with back() as opened:
            org = await opened.ledger.org(ref)
            return balance_fields(await opened.wallet().read(org.org_id))

    say(run(work()), as_json)
