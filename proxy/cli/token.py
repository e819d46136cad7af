"""`ghub token`: tokens of administrators, and of finance."""

from datetime import timedelta
from typing import Annotated, get_args

import typer

from config.settings import SettingsError, operator, read_settings
from metering.clock import utc_now
from metering.ports import Right
from proxy.api.admin.minting import SUBJECT, Issuer, Role, mint
from proxy.cli.output import AsJson, fail, length_of_time, misuse, say_secret

LONGEST = timedelta(days=30)
"""The longest life of a token: only a new secret can revoke one."""

RIGHTS: tuple[Right, ...] = get_args(Right)

app = typer.Typer(no_args_is_help=True)


@app.command()
def create(
    role: Annotated[Role, typer.Option(help="What it is good for: /admin/v1 takes admin, /finance/v1 finance.")],
    ttl: Annotated[str, typer.Option(help="How long it is good: 1h, 30m, 7d.")] = "1h",
    subject: Annotated[
        str | None, typer.Option(help="Who is to stand in the audit log; whoever runs this without.")
    ] = None,
    rights: Annotated[
        str, typer.Option(metavar="A,B", help=f"What finance may do beside reading: {', '.join(RIGHTS)}.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Print a token as Supabase Auth would issue it."""
    life = length_of_time("--ttl", ttl)
    if not timedelta(0) < life <= LONGEST:
        misuse(f"--ttl: {ttl} is not from 1m to {LONGEST.days}d")
    named: list[Right] = []
    for right in filter(None, rights.split(",")):
        if right not in RIGHTS:
            misuse(f"--rights: {right!r} is none of {', '.join(RIGHTS)}")
        named.append(right)
    if named and role != "finance":
        misuse(f"--rights: they are for --role finance, and this is {role}")
    try:
        settings = read_settings()
    except SettingsError as error:
        fail(str(error))
    who = subject if subject is not None else operator(settings)
    if not SUBJECT.fullmatch(who):
        misuse(f"--subject: {who!r} must be 1 to 128 visible ASCII characters")
    if settings.jwt_secret is None:
        fail("GHUB_JWT_SECRET is not set; with GHUB_JWKS_URL, tokens come from its issuer")
    now = utc_now()
    issuer = Issuer(settings.jwt_audience, settings.jwt_issuer)
    token = mint(settings.jwt_secret.get_secret_value(), issuer, who, role, now, life, named)
    say_secret(token, "token", {"expires_at": (now + life).isoformat(timespec="seconds")}, as_json)
