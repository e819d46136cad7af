"""Credits and refunds: numbered for each organisation, within its maximum."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from metering.clock import day_end_us, day_start_us, month_start_us, next_month, utc_at
from metering.events import Event
from metering.ledger.rows import Row, event_of
from metering.ledger.transactions import EVENTS, Steps, Transactions, as_json, audit, change_of, closed_through, once
from metering.money import MAX_MICRO_MXN, format_mxn, format_rate
from metering.ports import (
    LAST,
    LATEST,
    PAGE,
    Act,
    BalanceAt,
    Booked,
    Charge,
    Credit,
    CreditKey,
    CreditType,
    LedgerError,
    NewCredit,
    NotThere,
    OrderRecord,
    OrderSetAside,
    Refund,
    Refunded,
    WrongField,
)
from metering.tax import Tax


class CreditRecords(Transactions):
    """Credits, and refunds, which name their order (rule 33)."""

    async def add_credit(self, new: NewCredit, at: datetime, act: Act) -> bool:
        """Add a numbered credit; False if this very credit exists already.

        Raises LedgerError if the id belongs to another credit: a payment's id is used once. Raises WrongField if a
        chargeback takes back no recharge of this organisation, or more than it was.
        """

        def steps() -> Steps[bool]:
            if before := (yield "credit", {"id": new.credit_id}):
                if before[0] == (new.org_id, new.type, new.amount_micro_mxn, new.recharge_id, new.corrects):
                    yield from once(act, at.isoformat())
                    return False
                raise WrongField(
                    "id",
                    f"credit {new.credit_id!r} exists already: {before[0][1]} of {format_mxn(before[0][2])} MXN"
                    f" for organisation {before[0][0]}",
                )
            if new.recharge_id is not None:
                yield from _check_recharge(new, new.recharge_id)
            if new.corrects is not None:
                yield from check_corrected(new.org_id, new.corrects)
            yield from insert_credit(new, at.isoformat(), act.actor)
            yield from audit(act, at.isoformat())
            return True

        return await self._run("write", steps)

    async def credit(self, credit_id: str) -> Credit:
        """Read one credit. Raises NotThere."""

        def steps() -> Steps[Credit]:
            rows = yield "credit_row", {"id": credit_id}
            if not rows:
                raise NotThere(f"there is no credit {credit_id!r}")
            return (yield from _with_facts(rows))[0]

        return await self._run("read", steps)

    async def credits(
        self,
        org_id: str | None,
        before: CreditKey | None,
        most: int,
        *,
        kind: CreditType | None = None,
        first_at: str = "",
        end_at: str = LATEST,
    ) -> list[Credit]:
        """Read credits, latest first: of one organisation or all, of one kind or all, from a moment until another."""
        last = before or CreditKey(LATEST, "", LAST)

        def steps() -> Steps[list[Credit]]:
            rows = yield (
                "credits",
                {
                    "org_id": org_id,
                    "type": kind,
                    "first_at": first_at,
                    "end_at": end_at,
                    "before_at": last.at,
                    "before_org_id": last.org_id,
                    "before_number": last.number,
                    "page": most,
                },
            )
            return (yield from _with_facts(rows))

        return await self._run("read", steps)

    async def month_credits(
        self, month: str, *, org_id: str | None = None, first: str = "", last: str = LATEST
    ) -> AsyncIterator[Sequence[Credit]]:
        """Yield pages of the credits of a month of Mexico City, oldest first, of the days from `first` to `last` alone.

        Those of a closed month have the facts that were known at its close.
        """
        after = {"after_at": "", "after_org_id": "", "after_number": 0}
        of = {**_span(month, first, last), "org_id": org_id, "page": EVENTS}

        def steps() -> Steps[list[Credit]]:
            closed = {row[0]: row[2] for row in (yield "closed_months", {})}
            rows = yield "month_credits", {**of, **after}
            return (yield from _with_facts(rows, closed.get(month, LATEST)))

        while page := await self._run("read", steps):
            yield page
            end = page[-1]
            after = {"after_at": end.at, "after_org_id": end.new.org_id, "after_number": end.number}

    async def complete_credit(self, credit_id: str, facts: Mapping[str, str], at: datetime, act: Act) -> bool:
        """Add facts for a credit's tax document; False if it has just these. Raises NotThere."""

        def steps() -> Steps[bool]:
            if not (yield "credit", {"id": credit_id}):
                raise NotThere(f"there is no credit {credit_id!r}")
            known = {
                name: value for _, name, value in (yield "credit_facts", {"ids": as_json([credit_id]), "until": LATEST})
            }
            new = {name: value for name, value in facts.items() if known.get(name) != value}
            entered_at = (yield from closed_through()).after(at.isoformat())
            for name, value in new.items():
                yield "add_credit_fact", {"credit_id": credit_id, "name": name, "value": value, "at": entered_at}
            if new:
                yield from audit(act, at.isoformat())
            else:
                yield from once(act, at.isoformat())
            return bool(new)

        return await self._run("write", steps)

    async def balances_at(self, day: str, after: BalanceAt | None = None, most: int = PAGE) -> list[BalanceAt]:
        """Compute what was owed to each organisation at the end of a day of Mexico City, in the order of their ids."""
        end_at = utc_at(day_end_us(day)).isoformat()
        after_id = "" if after is None else after.org_id
        rows = await self._rows("balances_at", day=day, end_at=end_at, after_id=after_id, page=most)
        return [BalanceAt(*row) for row in rows]

    async def refund(
        self,
        order_id: str,
        micro_mxn: int | None,
        reason: str,
        at: datetime,
        act: Act,
        *,
        org_id: str | None = None,
        credit_id: str | None = None,
    ) -> tuple[Refund, bool]:
        """Refund `micro_mxn` of an order's charge, or all that is left; False for a refund that existed already.

        All refunds of an order together are at most its charge (rule 33). Without a `credit_id` they are numbered. With
        one, the same refund is given once. Raises NotThere, also if the order is another organisation's; WrongField,
        LedgerError.
        """

        def steps() -> Steps[tuple[Refund, bool]]:
            charge = _charge_of((yield "order_ends", {"order_id": order_id}), order_id, org_id)
            before = [Refund(*row) for row in (yield "refunds_of_order", {"order_id": order_id})]
            given = next((one for one in before if one.credit_id == credit_id), None)
            if given is not None and given.amount_micro_mxn == micro_mxn:
                yield from once(replace(act, target=given.credit_id), at.isoformat())
                return given, False
            amount = _refundable(charge, before, micro_mxn)
            name = (yield from unused_id(f"refund-{order_id}", len(before) + 1)) if credit_id is None else credit_id
            if credit_id is not None and (yield "credit", {"id": credit_id}):
                raise WrongField("id", f"credit {credit_id!r} exists already, and is another one")
            new = Refund(name, charge.opened.org_id, order_id, amount, reason, at.isoformat())
            credit = NewCredit(name, new.org_id, "refund", amount, reason=reason, order_id=order_id)
            yield from insert_credit(credit, new.at, act.actor)
            details = {**act.details, "mxn": format_mxn(amount)}
            yield from audit(replace(act, target=name, org_id=new.org_id, details=details), new.at)
            return new, True

        return await self._run("write", steps)

    async def order(self, order_id: str) -> OrderRecord:
        """Read everything about one order; empty if there is nothing."""

        def steps() -> Steps[OrderRecord]:
            parameters = {"order_id": order_id}
            ends = [Booked(event_of(row[:-1]), row[-1]) for row in (yield "order_ends", parameters)]
            refunds = [Refund(*row) for row in (yield "refunds_of_order", parameters)]
            set_aside = [OrderSetAside(*row) for row in (yield "set_aside_of_order", parameters)]
            ((kept,),) = yield "result_kept", parameters
            return OrderRecord(tuple(ends), tuple(refunds), tuple(set_aside), bool(kept))

        return await self._run("read", steps)

    async def refunds(
        self, month: str, *, org_id: str | None = None, first: str = "", last: str = LATEST
    ) -> AsyncIterator[Refunded]:
        """Yield refunds given in a month of Mexico City, oldest first, one page at a time.

        Only days from `first` to `last` are read.
        """
        span = _span(month, first, last)
        after = {"after_at": "", "after_id": ""}
        while True:
            rows = await self._rows("refunds", org_id=org_id, page=EVENTS, **span, **after)
            for row in rows:
                yield Refunded(Refund(*row[:6]), Charge(*row[6:]))
            if len(rows) < EVENTS:
                return
            after = {"after_at": rows[-1][5], "after_id": rows[-1][0]}


def _span(month: str, first: str, last: str) -> dict[str, str]:
    """Find the moments of the days from `first` to `last` that are of a month."""
    begins_us, ends_us = month_start_us(month), month_start_us(next_month(month))
    return {
        "first_at": utc_at(begins_us if first <= f"{month}-01" else day_start_us(first)).isoformat(),
        "end_at": utc_at(ends_us if last >= f"{month}-31" else day_end_us(last)).isoformat(),
    }


def insert_credit(new: NewCredit, at: str, actor: str) -> Steps[None]:
    """Add the organisation's next credit, and the change that Redis must know."""
    org_id, amount, tax = new.org_id, new.amount_micro_mxn, new.tax
    at = (yield from closed_through()).entry(at)
    ((number, total),) = yield "last_credit", {"org_id": org_id}
    if abs(total + amount) > MAX_MICRO_MXN:
        raise WrongField("mxn", f"an organisation's credits stay within ±{format_mxn(MAX_MICRO_MXN)} MXN")
    charged = sum(row[3] for row in (yield "charged", {"ids": as_json([org_id])}))
    yield (
        "add_credit",
        {
            "id": new.credit_id,
            "org_id": org_id,
            "type": new.type,
            "number": number + 1,
            "amount_micro_mxn": amount,
            "at": at,
            "order_id": new.order_id,
            "reason": new.reason,
            "actor": actor,
            "recharge_id": new.recharge_id,
            "base_micro_mxn": None if tax is None else tax.base_micro_mxn,
            "iva_rate": None if tax is None else format_rate(tax.rate),
            "iva_micro_mxn": None if tax is None else tax.iva_micro_mxn,
            "balance_micro_mxn": total + amount - charged,
            "corrects": new.corrects,
        },
    )
    yield change_of(org_id, "credit", at)


def _check_recharge(new: NewCredit, recharge_id: str) -> Steps[None]:
    """Raises WrongField if there is no such recharge of the organisation, or less is left of it."""
    rows = yield "credit", {"id": recharge_id}
    if not rows or rows[0][:2] != (new.org_id, "recharge"):
        raise WrongField("recharge", f"{recharge_id!r} is no recharge of organisation {new.org_id}")
    ((taken,),) = yield "charged_back", {"id": recharge_id}
    left = rows[0][2] + taken
    if left + new.amount_micro_mxn < 0:
        raise WrongField(
            "mxn",
            f"recharge {recharge_id!r} was of {format_mxn(rows[0][2])} MXN; {format_mxn(left)} MXN of it are left",
        )


def check_corrected(org_id: str, corrects: str) -> Steps[None]:
    """Raises WrongField unless an organisation has the order or the credit that is to be corrected."""
    kind, _, name = corrects.partition(":")
    if kind == "order":
        found = [row[2] for row in (yield "order_ends", {"order_id": name}) if event_of(row[:-1]).end == "charge"]
    else:
        found = [row[0] for row in (yield "credit", {"id": name})]
    if org_id not in found:
        raise WrongField("corrects", f"organisation {org_id} has no charged order and no credit {name!r}")


def unused_id(stem: str, number: int) -> Steps[str]:
    """Find an id for a credit: by its number, unless another credit has that id."""
    while (yield "credit", {"id": f"{stem}-{number}"}):
        number += 1
    return f"{stem}-{number}"


def _with_facts(rows: list[Row], until: str = LATEST) -> Steps[list[Credit]]:
    """Build credits of rows of the statement `credits`, with what was completed of each until a moment."""
    facts: dict[str, dict[str, str]] = {}
    values = {"ids": as_json([row[0] for row in rows]), "until": until}
    for credit_id, name, value in (yield "credit_facts", values):
        facts.setdefault(credit_id, {})[name] = value
    return [credit_of(row, facts.get(row[0], {})) for row in rows]


def credit_of(row: Row, facts: Mapping[str, str]) -> Credit:
    """Build a credit from a row of the statement `credits`."""
    base, rate, iva = row[7:10]
    tax = None if base is None else Tax(base, Decimal(rate), iva)
    number, at, actor, balance, corrects = row[10:]
    new = replace(NewCredit(*row[:7]), tax=tax, corrects=corrects)
    return Credit(new, number, at, actor, balance, facts)


def _charge_of(rows: list[Row], order_id: str, org_id: str | None) -> Event:
    """Find the charge among an order's ends, if it is this organisation's. Raises NotThere, LedgerError."""
    ends = [event_of(row[:-1]) for row in rows]
    if not ends or org_id not in (None, ends[0].opened.org_id):
        whose = " of this organisation" if org_id else ""
        raise NotThere(f"the ledger has no order {order_id!r}{whose}; a charge can be refunded once it is booked")
    for one in ends:
        if one.end == "charge":
            return one
    raise LedgerError(f"order {order_id!r} ended as {ends[0].end} ({ends[0].reason}): nothing was charged")


def _refundable(charge: Event, before: list[Refund], micro_mxn: int | None) -> int:
    """Compute the refund: the requested amount, or all that is left.

    Raises WrongField, LedgerError if less or nothing is left.
    """
    charged, refunded = charge.amount_micro_mxn, sum(one.amount_micro_mxn for one in before)
    message = f"order {charge.event_id!r} was charged {format_mxn(charged)} MXN"
    if refunded >= charged:
        last = before[-1]
        raise LedgerError(f"{message}, and is refunded whole already: {last.credit_id} of {last.at} was the last")
    left = charged - refunded
    if micro_mxn is not None and micro_mxn > left:
        raise WrongField(
            "mxn", f"{message}; {format_mxn(refunded)} MXN of it are refunded, {format_mxn(left)} MXN are left"
        )
    return left if micro_mxn is None else micro_mxn
