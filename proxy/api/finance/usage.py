"""What all organisations used, or one of them: GET /finance/v1/usage, as JSON or CSV."""

import asyncio
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, get_args

import orjson
from starlette.requests import Request
from starlette.responses import Response

from config.settings import REPORT_ROWS, REPORTS_MADE
from metering.clock import is_day, next_month, period_at, unix_us_at, utc_now
from metering.exports.rows import text_cell
from metering.money import format_mxn
from metering.pages import pages
from metering.ports import OrgUsage, UsageBy
from proxy.api.admin.call import Call, checked_ref
from proxy.api.finance.reads import FinanceReads
from proxy.api.finance.schemas import FinanceUsage
from proxy.api.requests import weighed
from proxy.api.usage import MAX_DAYS
from proxy.errors import ApiError, Kind

COLUMNS = ("org", "org_name", "day", "model", "key_id", "orders", "images", "cost_mxn")


class UsageReports:
    """Makes reports, a few at a time: their rows are in memory."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(REPORTS_MADE)

    async def send(self, reads: FinanceReads, call: Call, request: Request) -> Response:
        """Answer GET /finance/v1/usage. Raises ApiError 400, NotThere, LedgerAway."""
        async with self._turns:
            return await _report(reads, call, request)


async def _report(reads: FinanceReads, call: Call, request: Request) -> Response:
    query = call.query
    first, last = _days(query.first, query.last)
    by = _groups(query.group_by)
    org_id = None if query.org is None else (await reads.ledger.org(checked_ref(query.org))).org_id
    rows = await reads.ledger.usage_of_orgs(org_id, first, last, by, REPORT_ROWS + 1)
    if len(rows) > REPORT_ROWS:
        raise _bad("group_by", f"makes more than {REPORT_ROWS:,} rows; ask for fewer days, or group by less")
    names = {}
    if "org" in by:
        names = {org.org_id: org.name async for page in pages(reads.ledger.orgs) for org in page}
    headers = {"vary": "accept"}
    if _wants_csv(request.headers.get("accept", "")):
        headers["content-disposition"] = f'attachment; filename="usage-{first}-{last}.csv"'
        return Response(await asyncio.to_thread(_csv, rows, by, names), 200, headers, "text/csv")
    body = await asyncio.to_thread(_json, rows, by, names, first, last)
    return Response(body, 200, headers, "application/json")


def _days(first: str | None, last: str | None) -> tuple[str, str]:
    """Check the days. Raises ApiError 400."""
    month = period_at(unix_us_at(utc_now())).month
    if first is None and last is None:
        end = date.fromisoformat(f"{next_month(month)}-01") - timedelta(days=1)
        return f"{month}-01", end.isoformat()
    for name, day in (("from", first), ("to", last)):
        if day is None:
            raise _bad(name, "is missing; give both days, or neither for this month")
        if not is_day(day):
            raise _bad(name, "must be a day of the calendar, such as 2026-11-30")
    assert first is not None
    assert last is not None
    if last < first:
        raise _bad("to", "is before `from`")
    if (date.fromisoformat(last) - date.fromisoformat(first)).days >= MAX_DAYS:
        raise _bad("to", f"is too far from `from`: at most {MAX_DAYS} days")
    return first, last


def _groups(text: str) -> tuple[UsageBy, ...]:
    """Read what is grouped by. Raises ApiError 400."""
    names = text.split(",") if text else []
    if len(set(names)) < len(names) or not set(names) <= set(get_args(UsageBy)):
        raise _bad("group_by", "must be any of org, day, model and key, each once, with commas between them")
    return tuple(one for one in get_args(UsageBy) if one in names)


def _rows(rows: Sequence[OrgUsage], by: Sequence[UsageBy], names: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield items as `UsageItem` describes them."""
    for row in rows:
        yield {
            "org": row.org_id if "org" in by else None,
            "org_name": names.get(row.org_id, "") if "org" in by else None,
            "day": row.day if "day" in by else None,
            "model": row.model if "model" in by else None,
            "key_id": row.key_id if "key" in by else None,
            "orders": row.orders,
            "images": row.images,
            "cost_mxn": format_mxn(row.amount_micro_mxn),
        }


def _json(rows: Sequence[OrgUsage], by: Sequence[UsageBy], names: Mapping[str, str], first: str, last: str) -> bytes:
    total = {
        "orders": sum(row.orders for row in rows),
        "images": sum(row.images for row in rows),
        "cost_mxn": format_mxn(sum(row.amount_micro_mxn for row in rows)),
    }
    reply = FinanceUsage.model_validate(
        {"first": first, "last": last, "group_by": list(by), "data": [], "total": total}
    )
    before, empty, after = reply.model_dump_json(by_alias=True).encode().partition(b'"data":[]')
    assert empty, "the reply was made without items"
    # One model for each of tens of thousands of items would take ten times the memory.
    return before + b'"data":[' + b",".join(map(orjson.dumps, _rows(rows, by, names))) + b"]" + after


def _csv(rows: Sequence[OrgUsage], by: Sequence[UsageBy], names: Mapping[str, str]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for row in _rows(rows, by, names):
        writer.writerow("" if row[name] is None else text_cell(str(row[name])) for name in COLUMNS)
    return file.getvalue().encode()


def _bad(name: str, why: str) -> ApiError:
    return ApiError(Kind.INVALID_REQUEST, f"`{name}` {why}.", param=name)


def _wants_csv(accept: str) -> bool:
    """True if CSV has a higher weight than JSON, or the same and is named first."""
    named = [(weight, kind) for kind, weight in weighed(accept) if kind in ("text/csv", "application/json")]
    return bool(named) and max(named, key=lambda one: one[0])[1] == "text/csv" and max(named)[0] > 0
