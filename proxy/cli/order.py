"""`ghub order`: one order with all that is known of it, and its refunds."""

from typing import Annotated, Any

import typer

from metering.money import AmountError, parse_mxn
from metering.orders import Orders
from proxy.api.admin.orders import order_fields, refund_fields
from proxy.cli.output import AsJson, misuse, say
from proxy.cli.running import As, back, run
from proxy.storage.opening import public_url_of

app = typer.Typer(no_args_is_help=True)

OrderId = Annotated[str, typer.Argument(metavar="ID", help="req_ and 32 hex digits, or the same as a UUID.")]


@app.command()
def show(order: OrderId, as_json: AsJson = False) -> None:
    """All that is known of an order: in the ledger, in Redis, and which journals may still bring it."""

    async def work() -> dict[str, Any]:
        async with back() as opened:
            orders = Orders(opened.ledger, opened.redis)
            return await order_fields(orders, opened.ledger, public_url_of(opened.settings), order)

    say(run(work()), as_json)


@app.command()
def refund(
    order: OrderId,
    reason: Annotated[str, typer.Option(help="Why, for the audit log and for finance.")],
    mxn: Annotated[str | None, typer.Option(help="A part, such as 0.42; all that is left without.")] = None,
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Give back what an order was charged. All its refunds together are at most that."""
    try:
        micro_mxn = None if mxn is None else parse_mxn(mxn)
    except AmountError as error:
        misuse(f"--mxn: {error}")

    async def work() -> dict[str, Any]:
        async with back(who) as opened:
            given = await opened.accounts.refund(order, reason.strip(), micro_mxn)
            return refund_fields(given, await opened.ledger.order(given.order_id))

    say(run(work()), as_json)
