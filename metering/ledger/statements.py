"""What a statement says: one organisation's month, read at one moment."""

from collections.abc import Mapping

from metering.ledger.credits import credit_of
from metering.ledger.months import names_of, span_of, sums_of
from metering.ledger.prices import records_of
from metering.ledger.rows import Row
from metering.ledger.transactions import Steps, Transactions
from metering.ports import LAST, LATEST, MonthFacts, MonthUse, NotThere, PaidSums, RateUse


class StatementRecords(Transactions):
    """Sums that the database makes, so that a month of ten million orders takes no more memory than one of ten."""

    async def month_facts(self, month: str, org_id: str, *, max_tags: int, max_credits: int) -> MonthFacts:
        """Read one organisation's month: at most so many of its tags and of its credits.

        Raises NotThere if there is no such organisation, or it began later.
        """

        def steps() -> Steps[MonthFacts]:
            of = {**span_of(month), "org_id": org_id}
            names = yield from names_of(month, org_id)
            sums = yield from sums_of(month, org_id, "", 1)
            if not sums:
                raise NotThere(f"organisation {names.org!r} began after {month}")
            closed = yield "closed_at", {"month": month}
            by: dict[str, list[MonthUse]] = {}
            for what in ("day", "model", "key"):
                by[what] = [MonthUse(*row) for row in (yield "month_use", {**of, "by": what})]
            tagged: list[Row] = yield "month_tags", {**of, "most": max_tags}
            before = {"before_at": LATEST, "before_org_id": "", "before_number": LAST}
            latest: list[Row] = yield "credits", {**of, **before, "type": None, "page": max_credits}
            return MonthFacts(
                sums=sums[0],
                names=names,
                closed_at=closed[0][0] if closed else None,
                days=by["day"],
                models=by["model"],
                keys=by["key"],
                tags=[MonthUse(*row[:4]) for row in tagged],
                all_tags=tagged[0][4] if tagged else 0,
                late=[MonthUse(*row) for row in (yield "month_late", of)],
                rates=(yield from _rates(of)),
                records=records_of((yield "rate_records", {})),
                paid=[PaidSums(*row) for row in (yield "month_paid", of)],
                # Facts for tax documents may be completed after the close: a statement has none.
                credits=[credit_of(row, {}) for row in latest],
            )

        return await self._run("scan", steps)


def _rates(of: Mapping[str, str]) -> Steps[list[RateUse]]:
    """Sum charges by rate, and by whether the order has tags. Nearly every month has one rate, so nothing is sorted."""
    (row,) = yield "month_rate", of
    fx_month, mxn_per_usd, source, alone, orders, images, amount, *tagged = row
    late = [RateUse(*row) for row in (yield "late_rates", of)]
    if orders and not alone:
        return [RateUse(*row) for row in (yield "month_rates", of)] + late
    rest = (total - part for total, part in zip((orders, images, amount), tagged, strict=True))
    own = [RateUse(fx_month, mxn_per_usd, source, 0, *rest), RateUse(fx_month, mxn_per_usd, source, 1, *tagged)]
    return [use for use in own if use.orders] + late
