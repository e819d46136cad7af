"""Credits and refunds: numbered for each organisation, within its maximum."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime

from metering.clock import month_start_us, next_month, utc_at
from metering.events import Event
from metering.ledger.rows import Row, event_of
from metering.ledger.transactions import EVENTS, Steps, Transactions, audit, change_of, once
from metering.money import MAX_MICRO_MXN, format_mxn
from metering.ports import (
    Act,
    Booked,
    Charge,
    CreditType,
    LedgerError,
    NotThere,
    OrderRecord,
    OrderSetAside,
    Refund,
    Refunded,
    WrongField,
)


class CreditRecords(Transactions):
    """Credits, and refunds, which name their order (rule 33)."""

    async def add_credit(
        self, org_id: str, credit_id: str, kind: CreditType, micro_mxn: int, at: datetime, act: Act
    ) -> bool:
        """Add a numbered credit; False if this very credit exists already.

        Raises LedgerError if the id belongs to another credit: a payment's id is used once.
        """

        def steps() -> Steps[bool]:
            if before := (yield "credit", {"id": credit_id}):
                if before[0] == (org_id, kind, micro_mxn):
                    yield from once(act, at.isoformat())
                    return False
                raise WrongField(
                    "id",
                    f"credit {credit_id!r} exists already: {before[0][1]} of {format_mxn(before[0][2])} MXN"
                    f" for organisation {before[0][0]}",
                )
            yield from _add_credit(org_id, credit_id, kind, micro_mxn, at.isoformat())
            yield from audit(act, at.isoformat())
            return True

        return await self._run("write", steps)

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
            name = (yield from _unused_id(order_id, len(before))) if credit_id is None else credit_id
            if credit_id is not None and (yield "credit", {"id": credit_id}):
                raise WrongField("id", f"credit {credit_id!r} exists already, and is another one")
            new = Refund(name, charge.opened.org_id, order_id, amount, reason, at.isoformat())
            yield from _add_credit(new.org_id, name, "refund", amount, new.at, order_id, reason)
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

    async def refunds(self, month: str, *, org_id: str | None = None) -> AsyncIterator[Refunded]:
        """Yield refunds given in a month of Mexico City, oldest first, one page at a time."""
        span = {
            "first_at": utc_at(month_start_us(month)).isoformat(),
            "end_at": utc_at(month_start_us(next_month(month))).isoformat(),
        }
        after = {"after_at": "", "after_id": ""}
        while True:
            rows = await self._rows("refunds", org_id=org_id, page=EVENTS, **span, **after)
            for row in rows:
                yield Refunded(Refund(*row[:6]), Charge(*row[6:]))
            if len(rows) < EVENTS:
                return
            after = {"after_at": rows[-1][5], "after_id": rows[-1][0]}


def _add_credit(
    org_id: str,
    credit_id: str,
    kind: CreditType,
    micro_mxn: int,
    at: str,
    order_id: str | None = None,
    reason: str | None = None,
) -> Steps[None]:
    """Add the organisation's next credit, and the change that Redis must know."""
    ((number, total),) = yield "last_credit", {"org_id": org_id}
    if abs(total + micro_mxn) > MAX_MICRO_MXN:
        raise WrongField("mxn", f"an organisation's credits stay within ±{format_mxn(MAX_MICRO_MXN)} MXN")
    values = {"id": credit_id, "org_id": org_id, "type": kind, "number": number + 1, "amount_micro_mxn": micro_mxn}
    yield "add_credit", {**values, "at": at, "order_id": order_id, "reason": reason}
    yield change_of(org_id, "credit", at)


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


def _unused_id(order_id: str, before: int) -> Steps[str]:
    """Find an id for an order's next refund: by its number, unless another credit has that id."""
    number = before + 1
    while (yield "credit", {"id": f"refund-{order_id}-{number}"}):
        number += 1
    return f"refund-{order_id}-{number}"
