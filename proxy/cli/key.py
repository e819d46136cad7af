"""`ghub key`: API keys."""

from typing import Annotated, Any

import typer

from metering.accounts import IssuedKey
from metering.ports import ApiKey
from proxy.cli.output import AsJson, OrgRef, back, run, say

app = typer.Typer(help="API keys. A key is shown once, when it is created.", no_args_is_help=True)


def _row(key: ApiKey) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "name": key.name,
        "state": key.state,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }


@app.command()
def create(
    ref: OrgRef,
    name: Annotated[str, typer.Option(help="For lists and logs, such as prod-web.")],
    as_json: AsJson = False,
) -> None:
    """Issue a key and print it, once."""

    async def work() -> IssuedKey:
        async with back() as opened:
            return await opened.accounts.create_key(ref, name)

    issued = run(work())
    say({"key_id": issued.key_id, "key": issued.secret}, as_json)


@app.command("list")
def list_(ref: OrgRef, as_json: AsJson = False) -> None:
    """An organisation's keys, revoked ones too."""

    async def work() -> list[ApiKey]:
        async with back() as opened:
            org = await opened.ledger.org(ref)
            return await opened.ledger.keys(org.org_id)

    say([_row(key) for key in run(work())], as_json)


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="KEY_ID")], as_json: AsJson = False) -> None:
    """Revoke a key for good, from the next request on."""

    async def work() -> ApiKey:
        async with back() as opened:
            return await opened.accounts.revoke_key(key_id)

    say(_row(run(work())), as_json)
