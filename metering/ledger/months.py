"""Months: when they close, what they sum up to, and what things were called then (rule 37)."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from metering.clock import month_start_us, next_month, period_at, unix_us_at, utc_at
from metering.ledger.rights import use_right
from metering.ledger.rows import Row, fields
from metering.ledger.transactions import Steps, Transactions, audit, closed_through
from metering.ports import PAGE, Act, ClosedMonth, LedgerError, MonthSums, Names, NotThere, WrongField


class MonthRecords(Transactions):
    """A closed month never changes: from its close on, what is late is posted to the first open month."""

    async def closed_months(self) -> list[ClosedMonth]:
        """Read which months are closed, oldest first."""
        rows = await self._rows("closed_months")
        return [
            ClosedMonth(month, ends_at, closed_at, closed_by, bool(sealed), charges, closing)
            for month, ends_at, closed_at, closed_by, sealed, charges, closing in rows
        ]

    async def manifest(self, month: str) -> str | None:
        """Read the manifest of a closed month. None if it is not closed, or not sealed yet."""
        rows = await self._rows("manifest", month=month)
        return str(rows[0][0]) if rows else None

    async def close_month(self, month: str, at: datetime, act: Act) -> bool:
        """Close a month: it takes no further event and no further credit. False if it is closed already.

        Raises WrongField if it is not over at `at`, or another month comes first; SamePerson if the actor has used
        another right of the month.
        """
        ends_at = utc_at(month_start_us(next_month(month)))

        def steps() -> Steps[bool]:
            closed = yield from closed_through()
            if closed.through is not None and month <= closed.through:
                return False
            if at < ends_at:
                raise WrongField("month", f"{month} is not over: it ends at {ends_at.isoformat()}")
            first = next_month(closed.through) if closed.through is not None else _first(*(yield "first_data", {})[0])
            if first is None:
                raise WrongField("month", "nothing was ever charged or credited")
            if month != first:
                raise WrongField("month", f"{first} comes first: months close in their order")
            yield from use_right(act, month, "close", at)
            close = {"month": month, "ends_at": ends_at.isoformat(), "at": at.isoformat(), "closed_by": act.actor}
            yield "close_month", close
            yield "keep_names", {"month": month}
            yield from audit(act, at.isoformat())
            return True

        return await self._run("close", steps)

    async def seal_month(self, month: str, manifest: str, sums: Sequence[MonthSums], at: datetime) -> None:
        """Write a closed month's manifest and its balances, once: its `month_sums`. No effect if they are there.

        Raises LedgerError if the month is open.
        """

        def steps() -> Steps[None]:
            state = yield "month_state", {"month": month}
            if not state:
                raise LedgerError(f"{month} is not closed")
            if state[0][1]:
                return
            yield "seal_month", {"month": month, "manifest": manifest, "at": at.isoformat()}
            rows = [{"month": month, **fields(one), "closing_micro_mxn": one.closing_micro_mxn} for one in sums]
            yield "keep_balances", rows

        await self._run("write", steps)

    async def month_sums(
        self,
        month: str,
        after: MonthSums | None = None,
        most: int = PAGE,
        *,
        org_id: str | None = None,
        anew: bool = False,
    ) -> list[MonthSums]:
        """Read what was posted to a month, by organisation: of a closed month what was written at its close.

        `anew`, it is summed up again also of a closed one.
        """
        after_id = "" if after is None else after.org_id
        return await self._run("scan", lambda: sums_of(month, org_id, after_id, most, anew=anew))

    async def names(self, month: str, org_id: str) -> Names:
        """Read what an organisation and its keys are called: of a closed month, as at its close. Raises NotThere."""
        return await self._run("read", lambda: names_of(month, org_id))


def sums_of(month: str, org_id: str | None, after_id: str, most: int, *, anew: bool = False) -> Steps[list[MonthSums]]:
    """Read what was posted to a month: of a sealed one what was written then, unless it is summed up anew."""
    of = {"after_id": after_id, "org_id": org_id, "page": most}
    sealed = not anew and any(row[1] for row in (yield "month_state", {"month": month}))
    query = "balances_at_close" if sealed else "month_sums"
    rows: list[Row] = yield query, {**of, **(span_of(month) if not sealed else {"month": month})}
    return [MonthSums(*row) for row in rows]


def names_of(month: str, org_id: str) -> Steps[Names]:
    """Read names: of a closed month, as at its close. Raises NotThere."""
    rows = yield "names_at_close", {"month": month, "org_id": org_id}
    names: Mapping[str, str] = dict(rows or (yield "names_now", {"org_id": org_id}))
    if "" not in names:
        raise NotThere(f"there is no organisation {org_id!r}")
    return Names(names[""], {key_id: name for key_id, name in names.items() if key_id})


def span_of(month: str) -> dict[str, str]:
    """Build the values by which statements select a month: its days, and its moments in UTC."""
    return {
        "month": month,
        "first": f"{month}-01",
        "last": f"{month}-31",
        "first_at": utc_at(month_start_us(month)).isoformat(),
        "end_at": utc_at(month_start_us(next_month(month))).isoformat(),
    }


def _first(charged: str | None, credited_at: str | None) -> str | None:
    """Find the first month of any charge or credit."""
    credited = None if credited_at is None else period_at(unix_us_at(datetime.fromisoformat(credited_at))).month
    return min((month for month in (charged, credited) if month is not None), default=None)
