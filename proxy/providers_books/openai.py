"""OpenAI's books: images by model and UTC day, and costs by line item and UTC day. It takes an admin key."""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from metering.clock import unix_us_at
from metering.reconciliation.books import Bill
from metering.reconciliation.calendars import Span
from proxy.providers_books.names import Names
from proxy.providers_books.reading import Books

MAX_NAME = 200
"""Maximum length of a model's name: findings with it are kept."""

DAYS = 31
"""Days of one page: the maximum for images; costs have 180."""


async def bill(books: Books, url: str, span: Span, names: Names, project: str | None = None) -> Bill:
    """Read what OpenAI bills for images in a span. Raises BooksFailed.

    Line items of other models are summed apart: the organisation may use more of OpenAI than its images.
    """
    found = Bill(counts=True, sums=True)
    query = [
        ("start_time", str(span.start_us // 1_000_000)),
        ("end_time", str(span.end_us // 1_000_000)),
        ("bucket_width", "1d"),
        ("limit", str(DAYS)),
        *([("project_ids", project)] if project else []),
    ]
    usage = [*query, ("group_by", "model")]
    async for day, result in _results(books, f"{url}/organization/usage/images", usage, span):
        images, model = result.get("images"), result.get("model")
        if type(images) is not int or images < 0 or not isinstance(model, str) or len(model) > MAX_NAME:
            books.strange()
        found.add(names.find(model) or model, day, images, Decimal(0))
    costs = [*query, ("group_by", "line_item")]
    async for day, result in _results(books, f"{url}/organization/costs", costs, span):
        amount, item = result.get("amount"), result.get("line_item")
        if not isinstance(amount, dict) or not isinstance(item, str) or amount.get("currency") not in ("usd", "USD"):
            books.strange()
        usd = books.usd(amount.get("value"))
        model = names.find(item) or next((model for model, _ in found.cells if item.startswith(model)), None)
        if model is None:
            found.others_usd += usd
        else:
            found.add(model, day, 0, usd)
    return found


async def _results(
    books: Books, url: str, query: list[tuple[str, str]], span: Span
) -> AsyncIterator[tuple[date, dict[str, Any]]]:
    """Yield the results of all pages, each with its day. Raises BooksFailed unless each day comes once."""
    seen: set[date] = set()
    cursors: set[str] = set()
    page: list[tuple[str, str]] = []
    while True:
        document = await books.get(url, query + page)
        buckets = document.get("data")
        if not isinstance(buckets, list):
            books.strange()
        for bucket in buckets:
            day = _day(books, bucket, span)
            if day in seen:
                books.fail(f"the answer has {day} twice")
            seen.add(day)
            results = bucket.get("results", bucket.get("result"))  # replies have the one, the specification the other
            if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
                books.strange()
            for result in results:
                yield day, result
        if document.get("has_more") is not True:
            break
        cursor = document.get("next_page")
        if not isinstance(cursor, str) or cursor in cursors:
            books.strange()
        cursors.add(cursor)
        page = [("page", cursor)]
    if missing := set(span.days()) - seen:
        books.fail(f"the answer has no {min(missing)}")


def _day(books: Books, bucket: Any, span: Span) -> date:
    start = bucket.get("start_time") if isinstance(bucket, dict) else None
    if type(start) is not int or not span.start_us <= start * 1_000_000 < span.end_us:
        books.strange()
    moment = datetime.fromtimestamp(start, UTC)
    if unix_us_at(datetime(moment.year, moment.month, moment.day, tzinfo=UTC)) != start * 1_000_000:
        books.strange()
    return moment.date()
