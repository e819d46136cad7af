"""`ghub key`: API keys."""

from datetime import datetime
from functools import partial
from typing import Annotated, Any

import typer

from metering.accounts import IssuedKey
from metering.clock import utc_at, utc_now
from metering.limits import told
from metering.pages import pages
from metering.ports import ApiKey, Reading, ResponseFormat
from proxy.cli.limits import KeyBudget, KeyLimit, limit_changes
from proxy.cli.output import AsJson, OrgRef, length_of_time, misuse, say, say_secret
from proxy.cli.running import As, back, run

app = typer.Typer(no_args_is_help=True)


KeyId = Annotated[str, typer.Argument(metavar="KEY_ID")]


def _row(key: ApiKey, last_used_us: int | None = None) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "name": key.name,
        "state": key.state(utc_now()),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": None if last_used_us is None else utc_at(last_used_us).isoformat(timespec="seconds"),
        "models": ",".join(key.models) or None,
        "read": key.read,
        "response_format": key.response_format,
        "origins": ",".join(key.origins) or None,
        **told(key.limits.values()),
    }


@app.command()
def create(
    ref: OrgRef,
    name: Annotated[str, typer.Option(help="For lists and logs, such as prod-web.")],
    expires: Annotated[str | None, typer.Option(help="ISO 8601 with its zone: 2027-01-31T00:00:00-06:00.")] = None,
    models: Annotated[str | None, typer.Option(help="The models that it may use, with commas; all without.")] = None,
    test: Annotated[bool, typer.Option("--test", help="For the sandbox: labelled pictures that cost nothing.")] = False,
    read: Annotated[
        Reading | None,
        typer.Option(help="Orders that it may read; without it all, or its own where --models is given."),
    ] = None,
    response_format: Annotated[
        ResponseFormat, typer.Option(help="How images come where an order does not say.")
    ] = "url",
    origins: Annotated[
        str | None, typer.Option(help="Pages that may use it, with commas: https://app.example.mx; none without.")
    ] = None,
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Issue a key and print it, once."""
    ends = None if expires is None else _moment(expires)
    chosen = tuple(models.split(",")) if models is not None else ()
    pages = tuple(origins.split(",")) if origins is not None else ()

    async def work() -> IssuedKey:
        async with back(who) as opened:
            return await opened.accounts.create_key(
                ref,
                name,
                expires=ends,
                models=chosen,
                test=test,
                read=read,
                response_format=response_format,
                origins=pages,
            )

    issued = run(work())
    say_secret(issued.secret, "key", {"key_id": issued.key_id}, as_json)


@app.command()
def rotate(
    key_id: KeyId,
    overlap: Annotated[str, typer.Option(help="How long both work: 24h, 7d, 30m.")],
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Issue a key that may do what this one may, print it once, and let this one end after the overlap."""
    both = length_of_time("--overlap", overlap)

    async def work() -> IssuedKey:
        async with back(who) as opened:
            return await opened.accounts.rotate_key(key_id, both)

    issued = run(work())
    say_secret(issued.secret, "key", {"key_id": issued.key_id}, as_json)


@app.command()
def show(key_id: KeyId, as_json: AsJson = False) -> None:
    """One key: what it may do, and when it was last used."""

    async def work() -> dict[str, Any]:
        async with back() as opened:
            key = await opened.ledger.key(key_id)
            return _row(key, (await opened.last_used(key.org_id)).get(key_id))

    say(run(work()), as_json)


@app.command("list")
def list_(ref: OrgRef, as_json: AsJson = False) -> None:
    """An organisation's keys, revoked ones too."""

    async def work() -> list[dict[str, Any]]:
        async with back() as opened:
            org = await opened.ledger.org(ref)
            used = await opened.last_used(org.org_id)
            every = pages(partial(opened.ledger.keys, org.org_id))
            return [_row(key, used.get(key.key_id)) async for page in every for key in page]

    say(run(work()), as_json)


@app.command()
def limits(
    key_id: KeyId,
    requests_per_minute: KeyLimit = None,
    images_per_minute: KeyLimit = None,
    in_flight: KeyLimit = None,
    images_per_day: KeyLimit = None,
    images_per_month: KeyLimit = None,
    mxn_per_month: KeyBudget = None,
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Set a key's own limits, which hold beside its organisation's from the next request on."""
    changes = limit_changes(
        {
            "requests_per_minute": requests_per_minute,
            "images_per_minute": images_per_minute,
            "in_flight": in_flight,
            "images_per_day": images_per_day,
            "images_per_month": images_per_month,
            "mxn_per_month": mxn_per_month,
        },
        words={"none": None},
    )

    async def work() -> ApiKey:
        async with back(who) as opened:
            return await opened.accounts.set_key_limits(key_id, changes)

    say(_row(run(work())), as_json)


@app.command()
def revoke(key_id: KeyId, who: As = None, as_json: AsJson = False) -> None:
    """Revoke a key for good, from the next request on."""

    async def work() -> ApiKey:
        async with back(who) as opened:
            return await opened.accounts.revoke_key(key_id)

    say(_row(run(work())), as_json)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        misuse(f"--expires: {text!r} is not ISO 8601, such as 2027-01-31T00:00:00-06:00")
    if moment.tzinfo is None:
        misuse(f"--expires: {text!r} has no zone; add Z or -06:00")
    return moment
