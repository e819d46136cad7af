"""What providers may bill, and what was found when it was compared with their books."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import orjson

from metering.ledger.rows import Row, fields
from metering.ledger.transactions import EVENTS, Steps, Transactions, as_json, audit
from metering.ports import Act, HourSum, Placed, Reconciliation


class ReconciliationRecords(Transactions):
    """The ledger's side of a comparison, read without regard to who ordered, and its results."""

    async def provider_sums(self, months: Sequence[str], first_us: int, end_us: int) -> list[HourSum]:
        """Sum orders of some months of Mexico City that were on their way in a span of time.

        They ended at `first_us` or later, and began before `end_us`. Some ten thousand rows for a month, however many
        orders it has.
        """

        def steps() -> Steps[list[HourSum]]:
            rows = yield "provider_sums", {"ids": as_json(months), "first_us": first_us, "end_us": end_us}
            return [_sum_of(row) for row in rows]

        return await self._run("scan", steps)

    async def placed(self, provider: str, months: Sequence[str], first_us: int, end_us: int) -> AsyncIterator[Placed]:
        """Yield the same orders of one provider, one by one, a page at a time."""
        after: dict[str, Any] = {
            "after_month": min(months),
            "after_org_id": "",
            "after_number": 0,
            "after_event_id": "",
        }
        span = {"last_month": max(months), "provider": provider, "first_us": first_us, "end_us": end_us}

        def steps() -> Steps[list[Row]]:
            rows: list[Row] = yield "placed", {**span, "page": EVENTS, **after}
            return rows

        while page := await self._run("scan", steps):
            for row in page:
                yield _placed(row)
            after |= dict(zip(after, page[-1], strict=False))

    async def charged_in(self, month: str, order_ids: Sequence[str]) -> set[str]:
        """Find which of these orders have a charge that is posted to a month; call it with some hundreds at a time."""
        return {order_id for (order_id,) in await self._rows("charged_in", month=month, ids=as_json(order_ids))}

    async def add_reconciliation(self, found: Reconciliation, at: datetime, act: Act) -> Reconciliation:
        """Write down a result, with who made it; returns it with its number."""
        kept = replace(found, actor=act.actor, at=at.isoformat())

        def steps() -> Steps[Reconciliation]:
            ((number,),) = yield (
                "add_reconciliation",
                {name: value for name, value in fields(kept).items() if name != "id"},
            )
            yield from audit(act, kept.at)
            return replace(kept, id=number)

        return await self._run("write", steps)

    async def reconciliations(self, month: str | None, before: int, most: int) -> list[Reconciliation]:
        """Read a page of results below the number `before`, the latest first, of one month or of all."""
        rows = await self._rows("reconciliations", month=month, before=before, page=most)
        return [Reconciliation(row[0], row[1], bool(row[2]), *row[3:]) for row in rows]


def _sum_of(row: Row) -> HourSum:
    provider, upstream, begun, ended, charged, complete, measured, usd, told, images, asked = row
    told_usd = None if told is None else Decimal(told)
    return HourSum(
        provider, upstream, begun, ended, bool(charged), bool(complete), bool(measured), usd, told_usd, images, asked
    )


def _placed(row: Row) -> Placed:
    month, org_id, number, order_id, upstream, charged, begun_us, ended_us, images, ids, usd_per_image, told = row
    listed = Decimal(usd_per_image) * images if charged else Decimal(0)
    return Placed(
        month,
        org_id,
        number,
        order_id,
        upstream,
        bool(charged),
        begun_us,
        ended_us,
        images,
        tuple(orjson.loads(ids)) if ids else (),
        listed if told is None else Decimal(told),
    )
