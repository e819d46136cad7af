"""`ghub webhook`: where an organisation's events are sent, and what became of them."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from metering.pages import pages
from metering.ports import LATEST, Webhook, WebhookDelivery, WebhookState
from proxy.api.admin.rows import delivery_fields, webhook_fields
from proxy.cli.output import AsJson, OrgRef, length_of_time, misuse, say, say_secret
from proxy.cli.running import As, back, books, run

if TYPE_CHECKING:
    from metering.webhooks.registry import AddedWebhook

app = typer.Typer(no_args_is_help=True)

WebhookId = Annotated[str, typer.Argument(metavar="WEBHOOK_ID", help="As `ghub webhook list` has it.")]


@app.command()
def add(
    ref: OrgRef,
    url: Annotated[str, typer.Argument(metavar="URL", help="https, on the public internet.")],
    events: Annotated[
        str,
        typer.Option(
            help="Types of events, with commas: image.generation.completed, .failed, .cancelled (each in full);"
            " balance.low, quota.threshold, budget.threshold, key.expiring, model.retiring."
        ),
    ],
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Send events to a URL. With the first one, the organisation's secret is made and printed, once."""

    async def work() -> "AddedWebhook":
        async with back(who) as opened:
            return await opened.accounts.webhooks.add(ref, url, [one.strip() for one in events.split(",")])

    added = run(work(), "url")
    row = _row(added.webhook)
    if added.secret is None:
        say(row, as_json)
    else:
        say_secret(added.secret, "secret", row, as_json)


@app.command("list")
def list_(ref: OrgRef, as_json: AsJson = False) -> None:
    """An organisation's webhooks, disabled ones too."""

    async def work() -> list[Webhook]:
        async with books() as opened:
            return await opened.ledger.webhooks((await opened.ledger.org(ref)).org_id)

    say([_row(one) for one in run(work())], as_json)


@app.command()
def rotate(
    ref: OrgRef,
    overlap: Annotated[str, typer.Option(help="How long the secret before signs too: 24h, 7d, 30m.")] = "24h",
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Make a new secret for an organisation, or its first, and print it once."""
    both = length_of_time("--overlap", overlap)

    async def work() -> tuple[str, str]:
        async with back(who) as opened:
            return await opened.accounts.webhooks.rotate(ref, both)

    org_id, secret = run(work())
    say_secret(secret, "secret", {"org": org_id}, as_json)


@app.command()
def disable(webhook_id: WebhookId, who: As = None, as_json: AsJson = False) -> None:
    """Send nothing to a webhook any more, for good; what waits for it is set aside."""

    async def work() -> Webhook:
        async with back(who) as opened:
            return await opened.accounts.webhooks.disable(webhook_id)

    say(_row(run(work())), as_json)


@app.command()
def deliveries(
    ref: OrgRef,
    state: Annotated[WebhookState | None, typer.Option(help="Only those in this state.")] = None,
    as_json: AsJson = False,
) -> None:
    """What was sent for an organisation, the latest first: the last 30 days'."""

    async def work() -> list[WebhookDelivery]:
        async with books() as opened:
            org_id = (await opened.ledger.org(ref)).org_id

            async def page(after: WebhookDelivery | None = None) -> list[WebhookDelivery]:
                before = (LATEST, "") if after is None else (after.at, after.delivery_id)
                return await opened.ledger.webhook_deliveries(org_id, state, before)

            return [one async for found in pages(page) for one in found]

    say([delivery_fields(one) for one in run(work())], as_json)


@app.command()
def replay(
    delivery_id: Annotated[
        str | None, typer.Argument(metavar="DELIVERY_ID", help="One delivery, in any state.")
    ] = None,
    webhook: Annotated[str | None, typer.Option(help="All that is set aside for this webhook.")] = None,
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Send one delivery again, or all that is set aside for a webhook, under the same ids."""
    if (delivery_id is None) == (webhook is None):
        misuse("give a DELIVERY_ID, or --webhook WEBHOOK_ID")

    async def work() -> dict[str, Any]:
        async with back(who) as opened:
            registry = opened.accounts.webhooks
            if delivery_id is not None:
                return delivery_fields(await registry.replay(delivery_id))
            assert webhook is not None
            return {"webhook": webhook, "deliveries": await registry.replay_all(webhook)}

    say(run(work()), as_json)


def _row(webhook: Webhook) -> dict[str, Any]:
    """Return a webhook as a row of a table: a list is one cell, in the form that `add` takes."""
    return webhook_fields(webhook) | {"events": ",".join(webhook.events)}
