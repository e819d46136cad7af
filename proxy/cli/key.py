"""`ghub key`: API keys."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metering.pages import pages
from metering.ports import ApiKey, Reading, ResponseFormat
from metering.uses import last_used
from proxy.api.admin.rows import key_fields
from proxy.cli.limits import Changes, takes_limits
from proxy.cli.output import AsJson, OrgRef, length_of_time, misuse, say, say_secret
from proxy.cli.running import As, back, run

if TYPE_CHECKING:
    from metering.accounts import IssuedKey
    from proxy.backends import Backends

app = typer.Typer(no_args_is_help=True)


KeyId = Annotated[str, typer.Argument(metavar="KEY_ID")]


def _row(key: ApiKey, last_used_us: int | None = None) -> dict[str, Any]:
    """Return a key as a row of a table: a list is one cell, in the form that `create` takes."""
    fields = key_fields(key, last_used_us)
    del fields["org"], fields["test"]
    return fields | {"models": ",".join(key.models) or None, "origins": ",".join(key.origins) or None}


async def _rows(opened: "Backends", org_id: str, keys: Sequence[ApiKey]) -> list[dict[str, Any]]:
    wallet = opened.wallet() if opened.redis is not None else None
    used = await last_used(opened.ledger, wallet, org_id, keys)
    return [_row(key, used.get(key.key_id)) for key in keys]


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

    async def work() -> "IssuedKey":
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

    async def work() -> "IssuedKey":
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
            return (await _rows(opened, key.org_id, [key]))[0]

    say(run(work()), as_json)


@app.command("list")
def list_(ref: OrgRef, as_json: AsJson = False) -> None:
    """An organisation's keys, revoked ones too."""

    async def work() -> list[dict[str, Any]]:
        async with back() as opened:
            org = await opened.ledger.org(ref)
            every = pages(partial(opened.ledger.keys, org.org_id))
            return [row async for page in every for row in await _rows(opened, org.org_id, page)]

    say(run(work()), as_json)


@app.command()
@takes_limits(words={"none": None})
def limits(key_id: KeyId, changes: Changes, who: As = None, as_json: AsJson = False) -> None:
    """Set a key's own limits, which hold beside its organisation's from the next request on."""

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
