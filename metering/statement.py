"""An organisation's statement of a month: everything that it says, in sums that come out exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import starmap

from metering.clock import period_at, unix_us_at
from metering.money import format_mxn, format_rate
from metering.ports import Credit, FxRecord, Ledger, LedgerError, MonthFacts, MonthSums, MonthUse, PaidSums, WrongField

MAX_LINES = 500
"""Keys, models or tags that have a line of their own, the most expensive; the others share one. 500 fill ten pages."""

MAX_CREDITS = 500
"""Credits that have a line of their own, the latest. All are in the sums, and in `GET /v1/credits/transactions`."""


class SumsDiffer(LedgerError):
    """The sums of a statement do not come out: the record is damaged, and no statement is given."""


@dataclass(frozen=True, slots=True)
class Line:
    """One key, model, tag, day or month with its charges in micro-MXN. A key has an `id` beside its name."""

    name: str
    orders: int
    images: int
    amount_micro_mxn: int
    id: str = ""


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of one kind, and what shares the last line: how many they are, and their sums. Tags have no sums there."""

    shown: tuple[Line, ...]
    others: int = 0
    rest: Line | None = None


@dataclass(frozen=True, slots=True)
class AppliedRate:
    """A rate at which orders were charged, and where it is from; `orders` is 0 if nothing was charged in the month.

    `series` is the source's name for it, and `printed` the source's own value, if it was read there.
    """

    month: str
    mxn_per_usd: str
    source: str
    series: str | None
    printed: str | None
    orders: int
    amount_micro_mxn: int


@dataclass(frozen=True, slots=True)
class Statement:
    """One organisation's month. Amounts are micro-MXN, days and months are Mexico City's.

    The charges of `days`, `keys` and `models` are each those of the month's own orders; with `late`, those of earlier
    months, they are `sums.charges_micro_mxn`. An order counts for each of its `tags`; `untagged` are those without.
    """

    org_id: str
    org: str
    month: str
    closed_at: str | None
    sums: MonthSums
    own: Line
    days: tuple[Line, ...]
    keys: Lines
    models: Lines
    tags: Lines
    untagged: Line
    late: tuple[Line, ...]
    rates: tuple[AppliedRate, ...]
    paid: tuple[PaidSums, ...]
    credits: tuple[Credit, ...]

    @property
    def provisional(self) -> bool:
        """True while the month is not closed: it may still change."""
        return self.closed_at is None

    @property
    def credits_in_all(self) -> int:
        """How many credits the month has, with those that have no line."""
        return sum(one.credits for one in self.paid)


async def read_statement(ledger: Ledger, org_id: str, month: str, now: datetime) -> Statement:
    """Read a statement. Raises WrongField if the month has not begun, NotThere, SumsDiffer, LedgerAway."""
    if month > period_at(unix_us_at(now)).month:
        raise WrongField("month", f"{month} has not begun")
    facts = await ledger.month_facts(month, org_id, max_tags=MAX_LINES, max_credits=MAX_CREDITS)
    return statement_of(month, facts)


def statement_of(month: str, facts: MonthFacts) -> Statement:
    """Put a month's facts in order. Raises SumsDiffer."""
    late = tuple(starmap(Line, facts.late))
    days = tuple(sorted(starmap(Line, facts.days), key=lambda line: line.name))
    untagged = [one for one in facts.rates if one.group == 0]
    statement = Statement(
        org_id=facts.sums.org_id,
        org=facts.names.org,
        month=month,
        closed_at=facts.closed_at,
        sums=facts.sums,
        own=total(days),
        days=days,
        keys=_lines(facts.keys, facts.names.keys),
        models=_lines(facts.models),
        tags=Lines(tuple(starmap(Line, facts.tags)), facts.all_tags - len(facts.tags)),
        untagged=Line(
            "",
            sum(one.orders for one in untagged),
            sum(one.images for one in untagged),
            sum(one.amount_micro_mxn for one in untagged),
        ),
        late=late,
        rates=_rates(month, facts),
        paid=tuple(facts.paid),
        credits=tuple(sorted(facts.credits, key=lambda one: one.number)),
    )
    _check(statement, facts)
    return statement


def total(lines: Sequence[Line]) -> Line:
    """Add lines up."""
    return Line(
        "",
        sum(line.orders for line in lines),
        sum(line.images for line in lines),
        sum(line.amount_micro_mxn for line in lines),
    )


def _lines(uses: Sequence[MonthUse], names: Mapping[str, str] | None = None) -> Lines:
    """Order lines by what they cost, and let those beyond the most share one."""
    lines = [
        Line(use.name, *use[1:]) if names is None else Line(names.get(use.name, ""), *use[1:], id=use.name)
        for use in uses
    ]
    lines.sort(key=lambda line: (-line.amount_micro_mxn, line.name, line.id))
    others = lines[MAX_LINES:]
    return Lines(tuple(lines[:MAX_LINES]), len(others), total(others) if others else None)


def _rates(month: str, facts: MonthFacts) -> tuple[AppliedRate, ...]:
    """Find the rates of the month's charges; without any, the rate that held for it, as far as the close knew one."""
    known = [
        record
        for record in facts.records
        if record.approved_at is not None and (facts.closed_at is None or record.approved_at <= facts.closed_at)
    ]
    used: dict[tuple[str, str, str], list[int]] = {}
    for use in facts.rates:
        sums = used.setdefault((use.fx_month, use.mxn_per_usd, use.source), [0, 0])
        sums[0] += use.orders
        sums[1] += use.amount_micro_mxn
    if not used and (held := [record.rate for record in known if record.rate.month == month]):
        used[month, format_rate(held[-1].mxn_per_usd), held[-1].source] = [0, 0]
    return tuple(
        AppliedRate(fx_month, rate, source, *_origin(known, fx_month, rate), *sums)
        for (fx_month, rate, source), sums in sorted(used.items())
    )


def _origin(known: Sequence[FxRecord], fx_month: str, mxn_per_usd: str) -> tuple[str | None, str | None]:
    """Find series and printed value of the last record of a month with this rate."""
    for record in reversed(known):
        if record.rate.month == fx_month and format_rate(record.rate.mxn_per_usd) == mxn_per_usd:
            return record.origin.series, record.origin.printed
    return None, None


def _check(statement: Statement, facts: MonthFacts) -> None:
    """Check that every sum is the month's. Raises SumsDiffer."""
    late = total(statement.late)
    charges = MonthUse(
        "", facts.sums.orders - late.orders, facts.sums.images - late.images,
        facts.sums.charges_micro_mxn - late.amount_micro_mxn,
    )  # fmt: skip
    for what, uses in (
        ("day", facts.days),
        ("model", facts.models),
        ("key", facts.keys),
        ("rate", [use for use in facts.rates if use.group >= 0]),
    ):
        found = (
            sum(use.orders for use in uses),
            sum(use.images for use in uses),
            sum(use.amount_micro_mxn for use in uses),
        )
        if found != charges[1:]:
            raise SumsDiffer(
                f"the charges of {statement.month} by {what} are {format_mxn(found[2])} MXN, and in all"
                f" {format_mxn(charges.amount_micro_mxn)} MXN: see `ghub verify`"
            )
    credited = sum(one.amount_micro_mxn for one in facts.paid)
    if credited != facts.sums.credits_micro_mxn:
        raise SumsDiffer(
            f"the credits of {statement.month} are {format_mxn(credited)} MXN one by one, and in all"
            f" {format_mxn(facts.sums.credits_micro_mxn)} MXN: see `ghub verify`"
        )
