"""`ghub credit` and `ghub balance`: money in and out, and what is left."""

import sys
from functools import partial
from typing import Annotated, Any, get_args

import typer

from metering.clock import (
    day_end_us,
    is_day,
    month_start_us,
    next_month,
    period_at,
    unix_us_at,
    utc_at,
    utc_now,
)
from metering.money import AmountError, format_mxn, parse_mxn
from metering.pages import pages
from metering.ports import LATEST, Credit, CreditType
from proxy.api.admin.rows import before_credit, credit_cursor, credit_fields, liability_fields
from proxy.api.balances import organisation_fields
from proxy.api.pages import BadCursor, page_of
from proxy.cli.output import AsJson, OrgRef, misuse, must_be_month, say
from proxy.cli.running import As, back, books, run

app = typer.Typer(no_args_is_help=True)

_TYPES: tuple[CreditType, ...] = get_args(CreditType)


@app.command()
def add(
    ref: OrgRef,
    mxn: Annotated[str, typer.Option(help="What enters the wallet, without IVA, such as 500.00.")],
    kind: Annotated[str, typer.Option("--type", help="bonus, recharge, adjustment, chargeback; refund with --order.")],
    credit_id: Annotated[str, typer.Option("--id", help="The payment's id: the same one counts once.")],
    order: Annotated[str | None, typer.Option(metavar="ID", help="The order that a refund gives back.")] = None,
    recharge: Annotated[str | None, typer.Option(metavar="ID", help="What a chargeback takes back.")] = None,
    corrects: Annotated[
        str | None, typer.Option(metavar="ID", help="The order or the credit that an adjustment corrects.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why; a refund must say it.")] = None,
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Add credit, once per id. An adjustment may be negative, a chargeback is.

    A refund is easier by `ghub order refund`, which takes all that is left.
    """
    try:
        micro_mxn = parse_mxn(mxn)
    except AmountError as error:
        misuse(f"--mxn: {error}")

    async def work() -> dict[str, object]:
        async with back(who) as opened:
            added = await opened.accounts.add_credit(
                ref, credit_id, kind, micro_mxn, order=order, reason=reason, recharge=recharge, corrects=corrects
            )
            credit = credit_fields(await opened.ledger.credit(credit_id))
        return {name: value for name, value in credit.items() if value not in (None, {})} | {"added": added}

    say(run(work()), as_json)


@app.command("list")
def list_(
    ref: Annotated[str | None, typer.Argument(metavar="[ORG]", help="Its UUID or name; all of them without.")] = None,
    kind: Annotated[str | None, typer.Option("--type", help=", ".join(_TYPES))] = None,
    month: Annotated[str | None, typer.Option(metavar="YYYY-MM", help="Those of one month of Mexico City.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Rows of a page.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="As the page before has told it: what comes after.")] = None,
    as_json: AsJson = False,
) -> None:
    """Money in and out, latest first: who gave what to whom and when, what was paid for it, and what it left."""
    if kind is not None and kind not in _TYPES:
        misuse(f"--type: {kind!r} is none of {', '.join(_TYPES)}")
    if month is not None:
        must_be_month("--month", month)
    try:
        before = before_credit(cursor)
    except BadCursor:
        misuse("--cursor: must be what the page before has told")
    first_at = "" if month is None else utc_at(month_start_us(month)).isoformat()
    end_at = LATEST if month is None else utc_at(month_start_us(next_month(month))).isoformat()

    async def work() -> list[Credit]:
        async with books() as opened:
            org_id = None if ref is None else (await opened.ledger.org(ref)).org_id
            return await opened.ledger.credits(
                org_id,
                before,
                limit + 1,
                kind=kind,
                first_at=first_at,
                end_at=end_at,
            )

    page, more = page_of(run(work(), "org"), limit, credit_cursor)
    rows = [credit_fields(row) for row in page]
    if as_json:
        say({"data": rows, "next_cursor": more}, as_json)
        return
    say([{**row, "facts": [f"{name} {value}" for name, value in row["facts"].items()]} for row in rows], as_json)
    if more:
        sys.stderr.write(f"ghub: there are more: --cursor {more}\n")


@app.command()
def liability(
    day: Annotated[str | None, typer.Option(metavar="YYYY-MM-DD", help="Of Mexico City; yesterday without.")] = None,
    as_json: AsJson = False,
) -> None:
    """What was owed to every organisation at a day's end: prepaid, and not used yet."""
    day = _yesterday() if day is None else day
    if not is_day(day):
        misuse(f"--day: {day!r} is not a day, such as 2026-11-30")
    if utc_at(day_end_us(day)) > utc_now():
        misuse(f"--day: {day} is not over yet in Mexico City")

    async def work() -> tuple[list[dict[str, Any]], int]:
        rows, owed = [], 0
        async with books() as opened:
            async for page in pages(partial(opened.ledger.balances_at, day)):
                rows += [liability_fields(one) for one in page]
                owed += sum(one.balance_micro_mxn for one in page)
        return rows, owed

    rows, owed = run(work())
    if as_json:
        say({"day": day, "organizations": rows, "liability_mxn": format_mxn(owed)}, as_json)
        return
    say(rows, as_json)
    sys.stdout.write(f"\nowed at the end of {day}: {format_mxn(owed)} MXN\n")


def _yesterday() -> str:
    return period_at(period_at(unix_us_at(utc_now())).start_us - 1).day


@app.command()
def complete(
    credit_id: Annotated[str, typer.Argument(metavar="ID", help="The credit's id.")],
    rfc: Annotated[str | None, typer.Option(help="RFC, 12 or 13 characters.")] = None,
    name: Annotated[str | None, typer.Option(help="Name on the tax document.")] = None,
    regimen: Annotated[str | None, typer.Option(help="c_RegimenFiscal, such as 601.")] = None,
    cp: Annotated[str | None, typer.Option(help="Postal code, five digits.")] = None,
    uso_cfdi: Annotated[str | None, typer.Option(help="c_UsoCFDI, such as G03.")] = None,
    forma_pago: Annotated[str | None, typer.Option(help="c_FormaPago, such as 03.")] = None,
    cfdi: Annotated[str | None, typer.Option(metavar="UUID", help="The CFDI's UUID.")] = None,
    who: As = None,
    as_json: AsJson = False,
) -> None:
    """Add what a credit's tax document says, or correct it; older rows stay."""
    given = {"rfc": rfc, "name": name, "regimen": regimen, "cp": cp, "uso_cfdi": uso_cfdi, "forma_pago": forma_pago}
    facts = {key: value for key, value in {**given, "cfdi": cfdi}.items() if value is not None}

    async def work() -> dict[str, Any]:
        async with back(who) as opened:
            changed = await opened.accounts.complete_credit(credit_id, facts)
            return {"id": credit_id, **(await opened.ledger.credit(credit_id)).facts, "changed": changed}

    say(run(work(), "credit"), as_json)


def balance(ref: OrgRef, as_json: AsJson = False) -> None:
    """What an organisation can spend, what open orders hold, and their sum; and what it may have cost us in vain.

    That is the most that providers may bill us for its orders that ended as unknown, or were cancelled while they were
    made.
    """

    async def work() -> dict[str, str]:
        async with back() as opened:
            org = await opened.ledger.org(ref)
            return organisation_fields(await opened.wallet().read(org.org_id))

    say(run(work()), as_json)
