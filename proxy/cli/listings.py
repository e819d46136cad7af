"""`ghub audit` and `ghub notices`: who did what, and the notices to organisations, page by page."""

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import typer

from metering.events import NOTICES, Notice
from metering.ports import Audit
from proxy.api.admin.rows import (
    after_notice,
    audit_cursor,
    audit_fields,
    before_audit,
    notice_cursor,
    notice_fields,
)
from proxy.api.pages import BadCursor, page_of
from proxy.books import Books
from proxy.cli.output import AsJson, in_one_line, misuse, say
from proxy.cli.running import books, run

T = TypeVar("T", Audit, Notice)

Of = Annotated[str | None, typer.Option("--org", metavar="ORG", help="One organisation alone, by its UUID or name.")]
Rows = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Rows of a page.")]
Cursor = Annotated[str | None, typer.Option(help="As the page before has told it: what comes after.")]


def audit(
    ref: Of = None,
    actor: Annotated[str | None, typer.Option(help="Who acted, such as cli:ana or jwt:ana.")] = None,
    action: Annotated[str | None, typer.Option(help="What was done, such as key.revoke.")] = None,
    limit: Rows = 50,
    cursor: Cursor = None,
    as_json: AsJson = False,
) -> None:
    """Who did what to what, the latest first."""
    try:
        before = before_audit(cursor)
    except BadCursor:
        _no_cursor()

    async def work() -> list[Audit]:
        async with books() as opened:
            org_id = await _org_id(opened, ref)
            return await opened.ledger.audits(org_id, before, limit + 1, actor=actor, action=action)

    _say(run(work()), limit, audit_fields, audit_cursor, as_json)


def notices(
    ref: Of = None,
    what: Annotated[str | None, typer.Option(help=f"{', '.join(NOTICES)}.")] = None,
    limit: Rows = 50,
    cursor: Cursor = None,
    as_json: AsJson = False,
) -> None:
    """What organisations were told: quotas and budgets nearly used, low balances; the latest first."""
    try:
        before, after = after_notice(cursor)
    except BadCursor:
        _no_cursor()

    async def work() -> list[Notice]:
        async with books() as opened:
            org_id = await _org_id(opened, ref)
            return await opened.ledger.notices(org_id, before, limit + 1, what=what, after=after)

    _say(run(work()), limit, lambda one: {"org": one.org_id, **notice_fields(one)}, notice_cursor, as_json)


def _say(
    rows: Sequence[T],
    limit: int,
    fields: Callable[[T], dict[str, Any]],
    cursor: Callable[[T], str],
    as_json: bool,
) -> None:
    """Print a page, and the option that gives the next one; `rows` has one more than the page if there is a next."""
    page, more = page_of(rows, limit, cursor)
    found = [fields(row) for row in page]
    if as_json:
        say({"data": found, "next_cursor": more}, as_json)
        return
    say([{name: _in_a_cell(cell) for name, cell in row.items()} for row in found], as_json)
    if more:
        sys.stderr.write(f"ghub: there are more: --cursor {more}\n")


def _in_a_cell(cell: Any) -> Any:
    if not isinstance(cell, dict):
        return cell
    return ", ".join(f"{name} {in_one_line(value)}" for name, value in cell.items())


def _no_cursor() -> None:
    misuse("--cursor: must be what the page before has told")


async def _org_id(opened: Books, ref: str | None) -> str | None:
    return None if ref is None else (await opened.ledger.org(ref)).org_id
