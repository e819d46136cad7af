"""What the finance API shows: single rows, and pages of them."""

import orjson

from metering.clock import is_month, month_start_us, next_month, utc_at
from metering.ports import LAST, LATEST, ClosedMonth, FxRecord, Ledger, NotThere
from proxy.api.admin.call import Call, checked_ref
from proxy.api.admin.reads import paged
from proxy.api.admin.rows import (
    Fields,
    after_rate,
    before_credit,
    credit_cursor,
    credit_fields,
    rate_cursor,
    rate_fields,
)
from proxy.api.finance.rows import (
    adjustment_cursor,
    adjustment_fields,
    after_month,
    after_sums,
    before_number,
    month_cursor,
    month_fields,
    reconciliation_cursor,
    reconciliation_fields,
    sums_cursor,
    sums_fields,
)


class FinanceReads:
    """Reads what a call requests, as the reply's fields."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    # --- what was written, by its target ---

    async def show_new_rate(self, call: Call, target: str) -> Fields:
        return [rate_fields(one) for one in await self.ledger.rate_records() if one.rate.month == target][-1]

    async def show_rate(self, call: Call, target: str) -> Fields:
        return rate_fields(await self.rate(call))

    async def show_adjustment(self, call: Call, target: str) -> Fields:
        return adjustment_fields(await self.ledger.adjustment(int(target)))

    async def show_month(self, call: Call, target: str) -> Fields:
        return month_fields(target, await self.closed(target))

    # --- what is read ---

    async def credits(self, call: Call) -> Fields:
        query = call.query
        org_id = None if query.org is None else (await self.ledger.org(checked_ref(query.org))).org_id
        month = query.month
        rows = await self.ledger.credits(
            org_id,
            before_credit(query.cursor),
            query.limit + 1,
            kind=query.type,
            first_at="" if month is None else utc_at(month_start_us(month)).isoformat(),
            end_at=LATEST if month is None else utc_at(month_start_us(next_month(month))).isoformat(),
        )
        return paged(call, rows, credit_fields, credit_cursor)

    async def months(self, call: Call) -> Fields:
        after = after_month(call.query.cursor)
        rows = [one for one in await self.ledger.closed_months() if one.month > after]
        return paged(call, rows, lambda one: month_fields(one.month, one), month_cursor)

    async def month(self, call: Call) -> Fields:
        month = month_in(call)
        page = await self.ledger.month_sums(month, after_sums(call.query.cursor), call.query.limit + 1)
        names = {one.org_id: (await self.ledger.names(month, one.org_id)).org for one in page[: call.query.limit]}
        sums = paged(call, page, lambda one: sums_fields(one, names[one.org_id]), sums_cursor)
        return month_fields(month, await self.closed(month)) | sums

    async def rates(self, call: Call) -> Fields:
        after = after_rate(call.query.cursor)
        rows = [one for one in await self.ledger.rate_records() if (one.rate.month, one.rate_id) > after]
        return paged(call, rows, rate_fields, rate_cursor)

    async def adjustments(self, call: Call) -> Fields:
        rows = await self.ledger.adjustments(before_number(call.query.cursor), call.query.limit + 1)
        return paged(call, rows, adjustment_fields, adjustment_cursor)

    async def reconciliations(self, call: Call) -> Fields:
        query = call.query
        rows = await self.ledger.reconciliations(query.month, before_number(query.cursor), query.limit + 1)
        return paged(call, rows, reconciliation_fields, reconciliation_cursor)

    async def reconciliation(self, call: Call) -> Fields:
        number = number_in(call)
        rows = await self.ledger.reconciliations(None, number + 1, 1)
        if not rows or rows[0].id != number:
            raise NotThere(f"there is no comparison {number}")
        return reconciliation_fields(rows[0]) | {"report": orjson.loads(rows[0].report)}

    # --- parts ---

    async def closed(self, month: str) -> ClosedMonth | None:
        """Find a closed month."""
        return next((one for one in await self.ledger.closed_months() if one.month == month), None)

    async def rate(self, call: Call) -> FxRecord:
        """Find the rate in the path. Raises NotThere."""
        number = number_in(call)
        for one in await self.ledger.rate_records():
            if one.rate_id == number:
                return one
        raise NotThere(f"no rate {number} was entered")


def month_in(call: Call) -> str:
    """Read the month in the path. Raises NotThere."""
    month = call.at["month"]
    if not is_month(month):
        raise NotThere("there is no such month; a month is written as 2026-11")
    return month


def number_in(call: Call) -> int:
    """Read the number in the path. Raises NotThere."""
    number = call.at["number"]
    if not (number.isascii() and number.isdigit() and len(number) < 17) or int(number) > LAST:
        raise NotThere("there is nothing of this number")
    return int(number)
