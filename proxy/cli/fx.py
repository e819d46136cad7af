"""`ghub fx`: the month's exchange rate."""

import sys
from datetime import date
from decimal import Decimal
from typing import Annotated, Any

import typer

from metering.clock import is_month, next_month, period_at, unix_us_at, utc_now
from metering.money import AmountError, format_rate, parse_rate
from metering.ports import AtRate, FxOrigin, FxRecord, Org, WrongField
from metering.pricing import MAX_FX_JUMP, FxRate
from proxy.api.admin.rows import correction_fields, rate_fields
from proxy.cli.loading import loading
from proxy.cli.output import NOT_EVERYTHING, AsJson, fail, misuse, say
from proxy.cli.running import As, back, books, run

app = typer.Typer(no_args_is_help=True)

Month = Annotated[str, typer.Argument(metavar="YYYY-MM")]
Rate = Annotated[str, typer.Argument(metavar="RATE", help="MXN for one USD, such as 18.4512.")]
Force = Annotated[bool, typer.Option("--force", help=f"Also if it is over {MAX_FX_JUMP:.0%} from the rate before.")]

ALONE = (
    "ghub: entered and approved by one and the same. A command proves no second person: whoever may run it may do both;"
    " the audit log has both.\n"
)

GIVEN_ALONE = "ghub: given by one person. A command proves no second one; the audit log has every adjustment.\n"


@app.command("set")
def set_(
    month: Month,
    rate: Rate,
    source: Annotated[str, typer.Option(help="Where the rate comes from; it stands in every event.")],
    force: Force = False,
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Enter a month's rate. It is in force once it is approved; a month that has begun keeps the rate that it has."""
    _check_month(month)
    number = _parsed(rate)
    if not source.strip():
        misuse("--source: say where the rate comes from")
    _enter(FxRate(month, number, source.strip()), None, force, who, as_json)


@app.command()
def fetch(
    month: Annotated[str | None, typer.Argument(metavar="[YYYY-MM]", help="The next month without.")] = None,
    method: Annotated[str, typer.Option(help="last value of the month before, or the average of all.")] = "last",
    force: Force = False,
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a month's rate from Banxico's SIE, and enter it. GHUB_BANXICO_TOKEN is the token that Banxico gives."""
    with loading():
        import httpx2  # noqa: PLC0415  # the loader of HTTP, which `set` does not need

        from proxy import banxico  # noqa: PLC0415

    today = date.fromisoformat(period_at(unix_us_at(utc_now())).day)
    month = next_month(f"{today}"[:7]) if month is None else month
    _check_month(month)
    if method not in banxico.METHODS:
        misuse(f"--method: {method!r} is none of {', '.join(banxico.METHODS)}")

    async def read() -> tuple[FxRate, FxOrigin]:
        span = banxico.span_of(month, method, today)
        if not span.is_over:
            sys.stderr.write(f"ghub: warning: later days of {span.first:%Y-%m} may still bring another last value\n")
        async with books() as opened:
            token = opened.settings.banxico_token
            if token is None:
                fail("GHUB_BANXICO_TOKEN is not set; Banxico gives one on the page of its SIE API")
            async with httpx2.AsyncClient(trust_env=False) as client:
                url = opened.settings.banxico_url
                return await banxico.fetch(client, url, token.get_secret_value(), month, span, method)

    rate, origin = run(read(), "month")
    _enter(rate, origin, force, who, as_json)


@app.command()
def approve(month: Month, rate: Rate, who: As = None, as_json: AsJson = False) -> None:
    """Approve the last rate that was entered for a month, if it is RATE: it is in force from then on."""
    _check_month(month)
    number = _parsed(rate)

    async def work() -> FxRecord:
        async with back(who) as opened:
            return await opened.accounts.approve_rate(month, number)

    approved = run(work(), "month", "rate")
    say(rate_fields(approved), as_json)
    if approved.entered_by == approved.approved_by:
        sys.stderr.write(ALONE)


@app.command()
def correct(
    month: Month,
    rate: Rate,
    reason: Annotated[str, typer.Option(help="Why; it stands in every adjustment.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be given.")] = False,
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Give every organisation what it was charged too much at a month's wrong rate, or take what was too little.

    RATE is the right one. It may be repeated while orders go on at the wrong one: only what is new is given. Exit 3
    where not everything of the month is booked yet.
    """
    with loading():
        from metering.corrections import corrections  # noqa: PLC0415  # the loader of Redis, which `list` does not need
        from metering.unbooked import doubts  # noqa: PLC0415

    _check_month(month)
    number = _parsed(rate)

    async def work() -> tuple[list[tuple[Org, AtRate]], list[str]]:
        async with back(who) as opened:
            why = await doubts(opened.ledger, opened.redis, month, None)
            accounts = None if dry_run else opened.accounts
            found = [one async for one in corrections(opened.ledger, accounts, month, number, reason.strip())]
        return found, why

    found, why = run(work(), "month", "rate")
    rows = [correction_fields(org.name, at_rate) for org, at_rate in found]
    total = {name: text for name, text in correction_fields("", _sum(found)).items() if name != "organization"}
    if as_json:
        told = {"month": month, "mxn_per_usd": format_rate(number), "dry_run": dry_run, "organizations": rows}
        say({**told, **total, "complete": not why, "why": why}, as_json)
    else:
        say(rows, as_json)
        sys.stdout.write("\n")
        say(total, as_json)
    if dry_run:
        sys.stderr.write("ghub: nothing was given: this was a trial\n")
    elif any(row["adjustment_mxn"] != "0.00" for row in rows):
        sys.stderr.write(GIVEN_ALONE)
    if period_at(unix_us_at(utc_now())).month <= month:
        sys.stderr.write(f"ghub: {month} is not over, and its orders go on at the rate that it has: repeat this then\n")
    for sentence in why:
        sys.stderr.write(f"ghub: {sentence}\n")
    if why:
        raise typer.Exit(NOT_EVERYTHING)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Every rate that was entered: where it comes from, and who entered and approved it. The last approved holds."""

    async def work() -> list[FxRecord]:
        async with books() as opened:
            return await opened.ledger.rate_records()

    say([rate_fields(record) for record in run(work())], as_json)


def _sum(found: list[tuple[Org, AtRate]]) -> AtRate:
    return AtRate(
        "",
        sum(one.charged_micro_mxn for _, one in found),
        sum(one.right_micro_mxn for _, one in found),
        sum(one.times for _, one in found),
        sum(one.adjusted_micro_mxn for _, one in found),
    )


def _parsed(rate: str) -> Decimal:
    try:
        return parse_rate(rate)
    except AmountError as error:
        misuse(f"RATE: {error}")


def _check_month(month: str) -> None:
    if not is_month(month):
        misuse(f"YYYY-MM: {month!r} is not a month")


def _enter(rate: FxRate, origin: FxOrigin | None, force: bool, who: str | None, as_json: bool) -> None:
    """Enter a rate, and say what it was before."""

    async def work() -> dict[str, Any]:
        async with back(who) as opened:
            before = await opened.accounts.rate_before(rate.month)
            at_once = opened.settings.fx_approval == "none"
            try:
                added = await opened.accounts.add_rate(rate, origin=origin, force=force, approved=at_once)
            except WrongField as error:
                raise (WrongField("rate", error.why) if error.field == "mxn_per_usd" else error) from None
            record = [one for one in await opened.ledger.rate_records() if one.rate.month == rate.month][-1]
        was = None if before is None else f"{format_rate(before.mxn_per_usd)} ({before.month})"
        return rate_fields(record) | {"was": was, "added": added}

    entered = run(work(), "rate", "month")
    say(entered, as_json)
    if entered["approved_by"] is None:
        command = f"ghub fx approve {rate.month} {format_rate(rate.mxn_per_usd)}"
        sys.stderr.write(f"ghub: it is in force once it is approved: {command}\n")
