"""Booked events, and what is summed, found and delivered from them."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, get_args

import orjson

from metering.clock import DAY_US, period_at, utc_now
from metering.events import End, Event, Notice, decode_images
from metering.ledger.rows import Row, event_of, fields
from metering.ledger.transactions import EVENTS, Steps, Transactions, as_json, closed_through
from metering.ledger.webhooks import put_calls
from metering.ports import (
    LAST,
    LATEST,
    PAGE,
    Charge,
    Charged,
    Delivered,
    Ended,
    Keyed,
    Label,
    Listed,
    OrgUsage,
    ResultKey,
    SetAside,
    UsageBy,
    UsageRow,
    WebhookCall,
)


class EventRecords(Transactions):
    """Each event is written once, in one transaction with its consequences (rule 30)."""

    async def book(
        self,
        events: Sequence[Event],
        set_aside: Sequence[SetAside],
        at: datetime,
        calls: Sequence[WebhookCall] = (),
    ) -> set[str]:
        """Write events and their consumption in one transaction; returns the ids of those that were new.

        `calls` are what webhooks are told of them: those of new events go into the outbox with them (rule 36).
        """
        booked_at = at.isoformat()

        def steps() -> Steps[set[str]]:
            # Results first: an organisation's total is locked from its events on, and others wait for it.
            if results := [_result_row(event) for event in events if event.result]:
                yield "add_results", results
            new = (yield from self._book(events, booked_at, (yield from closed_through()))) if events else set()
            yield from put_calls([call for call in calls if call.subject in new], booked_at)
            for entry in set_aside:
                # PostgreSQL's text cannot contain a NUL, but an entry of the stream may.
                error = entry.error.replace("\0", "\\0")
                yield "set_aside", {**fields(entry), "error": error, "at": booked_at}
            return new

        return await self._run("book", steps)

    async def book_notices(
        self, notices: Sequence[Notice], calls: Mapping[Notice, WebhookCall] | None = None
    ) -> list[Notice]:
        """Write notices down; returns those that are new. Their `calls` go into the outbox with them (rule 36)."""

        def steps() -> Steps[list[Notice]]:
            new = []
            for notice in sorted(notices, key=lambda one: (one.org_id, one.key_id, one.what, one.percent, one.period)):
                if (yield "add_notice", fields(notice)):
                    new.append(notice)
            yield from put_calls([calls[notice] for notice in new] if calls else [], utc_now().isoformat())
            return new

        return await self._run("book", steps) if notices else []

    async def notices(
        self,
        org_id: str | None,
        before: str,
        most: int,
        *,
        what: str | None = None,
        after: tuple[str, int, str, str, str] | None = None,
    ) -> list[Notice]:
        """Read notices of one organisation, or of all, before a moment, the latest first. `what` selects one kind.

        `after` (what, percent, key id, period and organisation of the last notice) continues within that moment.
        """
        names = ("what", "percent", "key_id", "period", "last_org_id")
        last = dict(zip(names, after or ("", 0, "", "", ""), strict=True))
        rows = await self._rows("notices", org_id=org_id, kind=what, before=before, page=most, **last)
        return [Notice(*row) for row in rows]

    async def usage(
        self,
        org_id: str,
        first: str,
        last: str,
        by: Collection[str],
        most: int,
        key_ids: Collection[str] | None = None,
    ) -> list[UsageRow]:
        """Sum charges from one Mexico City day to another, both included, by any of day, model and key.

        Returns at most `most` rows, in no particular order. With `key_ids`, only charges to those keys.
        """

        def steps() -> Steps[list[UsageRow]]:
            rows = yield "usage", _usage_of(org_id, first, last, by, most, key_ids)
            return [UsageRow(*row) for row in rows]

        return await self._run("report", steps)

    async def usage_by(
        self,
        org_id: str,
        first: str,
        last: str,
        by: Collection[str],
        label: Label,
        prefix: str,
        most: int,
        key_ids: Collection[str] | None = None,
    ) -> tuple[list[UsageRow], UsageRow]:
        """Sum charges as `usage` does, and also by what orders carry; the second is the sum of all of them.

        `prefix` selects pairs of the metadata: `KEY=`. An end user is named in clear if that is known. Orders that
        carry none have an empty name, but there is no such row for tags: an order counts for each tag that it has, so
        what is left of the total is unknown.
        """

        def steps() -> Steps[tuple[list[UsageRow], UsageRow]]:
            parameters = _usage_of(org_id, first, last, by, most, key_ids)
            rows = yield "usage_by", {**parameters, "kind": label, "prefix": prefix}
            total = yield "usage", _usage_of(org_id, first, last, (), 1, key_ids)
            return [UsageRow(*row) for row in rows], UsageRow(*total[0]) if total else UsageRow("", "", "", 0, 0, 0)

        return await self._run("report", steps)

    async def usage_of_orgs(
        self, org_id: str | None, first: str, last: str, by: Collection[UsageBy], most: int
    ) -> list[OrgUsage]:
        """Sum charges of all organisations, or of one, from one Mexico City day to another, both included.

        Returns at most `most` rows, in the order of organisation, day, model and key.
        """

        def steps() -> Steps[list[OrgUsage]]:
            dimensions = {f"by_{name}": name in by for name in get_args(UsageBy)}
            rows = yield "usage_of_orgs", {**dimensions, "org_id": org_id, "first": first, "last": last, "most": most}
            return [OrgUsage(*row) for row in rows]

        return await self._run("report", steps)

    async def ended(self, order_ids: Sequence[str]) -> dict[str, Ended]:
        """Find how orders ended, by request id; call it with some hundreds at a time. A charge wins over other ends."""
        rows = await self._rows("ended", ids=as_json(order_ids))
        rows.sort(key=lambda row: row[1] == "charge")
        return {
            event_id: Ended(end, reason, frozenset(image["path"] for image in orjson.loads(images)))
            for event_id, end, reason, images in rows
        }

    async def ends(self, order_ids: Sequence[str]) -> set[tuple[str, End]]:
        """Find every end of these orders, by request id; call it with some hundreds at a time."""
        return {(event_id, end) for event_id, end in await self._rows("ends", ids=as_json(order_ids))}

    async def keyed(self, org_ids: Sequence[str], since_us: int) -> list[Keyed]:
        """Find charged orders of these organisations since then that have an idempotency key."""
        return [Keyed(*row) for row in await self._rows("keyed", ids=as_json(org_ids), since_us=since_us)]

    async def charged_since(self, org_ids: Sequence[str], since_us: int) -> list[tuple[str, str, int]]:
        """Find charged orders of these organisations that ended since then: organisation, request, amount."""
        rows = await self._rows("charged_since", ids=as_json(org_ids), since_us=since_us)
        return [(org_id, order_id, amount) for org_id, order_id, amount in rows]

    async def charged(self, org_ids: Sequence[str]) -> dict[str, Charged]:
        """Read the totals of these organisations. Those without any event are left out."""
        rows = await self._rows("charged", ids=as_json(org_ids))
        return {org_id: Charged(*figures) for org_id, *figures in rows}

    async def result(self, org_id: str, order_id: str) -> Delivered | None:
        """Read what a charged order of this organisation delivered, while it is kept."""
        rows = await self._rows("result", org_id=org_id, order_id=order_id)
        return _delivered(rows[0]) if rows else None

    async def results(
        self, org_id: str, after: ResultKey | None = None, most: int = PAGE, key_ids: Collection[str] | None = None
    ) -> list[Listed]:
        """Read a page of an organisation's results, the latest first; the next page begins `after` this one's last.

        With `key_ids`, only results of orders that these keys placed.
        """
        until_us, after_id = (after.ended_us, after.order_id) if after is not None else (LAST, "")
        page = {"org_id": org_id, "until_us": until_us, "after_id": after_id, "page": most}

        def steps() -> Steps[list[Row]]:
            if key_ids is None:
                every: list[Row] = yield "results", page
                return every
            found: list[Row] = []
            for key_id in key_ids:
                found += yield "results_of_key", {**page, "key_id": key_id}
            found.sort(key=lambda row: (-row[4], row[0]))
            return found[:most]

        rows = await self._run("read", steps)
        return [Listed(_delivered(row[:4]), ResultKey(row[4], row[0])) for row in rows]

    async def charged_up_to(self, org_id: str, number: int = LAST) -> Charged:
        """Read one organisation's totals up to its event `number`, from its running total."""
        rows = await self._rows("charged_up_to", org_id=org_id, number=number)
        return Charged(*rows[0]) if rows else Charged(events=0, last_event=0, charged_micro_mxn=0)

    async def recount(self, org_id: str, number: int = LAST) -> Charged:
        """Count the same from the events. It reads an organisation's whole history, so only `verify` uses it."""

        def steps() -> Steps[Charged]:
            (row,) = yield "recount", {"org_id": org_id, "number": number}
            return Charged(*row)

        return await self._run("scan", steps)

    async def missing_numbers(self, org_id: str, number: int, most: int) -> list[tuple[int, int]]:
        """Find event numbers up to this one that the ledger lacks, as the first and the last of each gap."""

        def steps() -> Steps[list[tuple[int, int]]]:
            rows = yield "missing_numbers", {"org_id": org_id, "number": number, "most": most}
            return [(first, last) for first, last in rows]

        return await self._run("scan", steps)

    async def refunded_above(self) -> list[tuple[str, str, int, int]]:
        """Find orders refunded above their charge: organisation, order, refunded, charged (rule 33)."""

        def steps() -> Steps[list[tuple[str, str, int, int]]]:
            rows = yield "refunded_above", {}
            return [(org_id, order_id, refunded, charged) for org_id, order_id, refunded, charged in rows]

        return await self._run("scan", steps)

    async def events(self, *, org_id: str | None = None, since_us: int = 0) -> AsyncIterator[Event]:
        """Yield booked events that ended since then, by month, organisation and number, one page at a time."""
        # An event's month is that of its admission, and may be the month before its end.
        first = period_at(since_us - DAY_US).month if since_us else ""
        after: dict[str, Any] = {"after_month": first, "after_org_id": "", "after_number": 0, "after_event_id": ""}
        since = {"org_id": org_id, "since_us": since_us}
        while True:
            page = [event_of(row) for row in await self._rows("events", page=EVENTS, **since, **after)]
            for event in page:
                yield event
            if len(page) < EVENTS:
                return
            last = page[-1]
            after = {
                "after_month": last.opened.month,
                "after_org_id": last.opened.org_id,
                "after_number": last.number,
                "after_event_id": last.event_id,
            }

    async def charges(
        self, month: str, *, org_id: str | None = None, first: str = "", last: str = LATEST, charged: bool = True
    ) -> AsyncIterator[Sequence[Charge]]:
        """Yield pages of the charges that are posted to a month of Mexico City, by organisation and number.

        Those that came after the close of their own month follow the others; they count on the month's first day. Only
        days from `first` to `last` are read. Without `charged`, the orders that ended otherwise.
        """
        of = {"org_id": org_id, "month": month, "page": EVENTS, "charged": charged}
        queries: dict[str, dict[str, Any]] = {"charges": {"first": first, "last": last}}
        if first <= f"{month}-01":
            queries["late_charges"] = {}
        for query, days in queries.items():
            after: dict[str, Any] = {"after_org_id": "", "after_number": 0, "after_event_id": ""}
            while page := [*map(Charge._make, await self._rows(query, **of, **days, **after))]:
                yield page
                end = page[-1]
                after = {"after_org_id": end.org_id, "after_number": end.number, "after_event_id": end.event_id}


def _usage_of(
    org_id: str, first: str, last: str, by: Collection[str], most: int, key_ids: Collection[str] | None
) -> dict[str, Any]:
    """Build the parameters of a report."""
    grouped = {f"by_{name}": name in by for name in ("day", "model", "key")}
    ids = None if key_ids is None else as_json([*key_ids])
    return {**grouped, "org_id": org_id, "first": first, "last": last, "most": most, "ids": ids}


def _result_row(event: Event) -> dict[str, Any]:
    opened = event.opened
    return {
        "request_id": opened.request_id,
        "org_id": opened.org_id,
        "ended_us": event.ended_us,
        "document": event.result,
    }


def _delivered(row: Row) -> Delivered:
    order_id, images, document, key_id = row
    return Delivered(order_id, decode_images(images), document.encode(), key_id)
