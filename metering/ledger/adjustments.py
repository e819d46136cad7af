"""Adjustments: of a month that was charged at a wrong rate, and those that one person proposes and another approves."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from metering.clock import next_month, period_at, unix_us_at
from metering.ledger.credits import check_corrected, insert_credit, unused_id
from metering.ledger.rights import use_right
from metering.ledger.transactions import EVENTS, Steps, Transactions, audit, closed_through, once
from metering.money import format_mxn
from metering.ports import LAST, Act, Adjustment, AtRate, NewCredit, NotThere, SamePerson
from metering.pricing import charge_micro_mxn


class AdjustmentRecords(Transactions):
    """Adjustments are credits like others: numbered, never changed, linked to what they correct."""

    async def at_rate(self, org_id: str, month: str, mxn_per_usd: Decimal) -> AtRate:
        """Compute what an organisation was charged at a month's rate, and what it should have been at `mxn_per_usd`.

        It reads at one moment, and a page at a time what cannot be summed.
        """
        of = {"org_id": org_id, "month": month}

        def steps() -> Steps[AtRate]:
            charged = right = 0
            for usd, markup, quantity, amount in (yield "priced_at_rate", {**of, "following": next_month(month)}):
                charged += amount
                right += charge_micro_mxn(Decimal(usd), Decimal(markup), mxn_per_usd, quantity, None)
            for of_month in (month, next_month(month)):
                after = {"after_number": 0, "after_event_id": ""}
                while rows := (yield "measured_at_rate", {**of, "of_month": of_month, "page": EVENTS, **after}):
                    charged += sum(row[6] for row in rows)
                    right += sum(_right(row[2:6], mxn_per_usd) for row in rows)
                    after = {"after_number": rows[-1][0], "after_event_id": rows[-1][1]}
            number = 0
            while rows := (yield "refunded_at_rate", {**of, "page": EVENTS, "after_number": number}):
                charged -= sum(row[6] for row in rows)
                right -= sum(_refunded_share(_right(row[1:5], mxn_per_usd), *row[5:]) for row in rows)
                number = rows[-1][0]
            ((times, adjusted),) = yield "corrected", {"org_id": org_id, "corrects": f"fx:{month}"}
            return AtRate(org_id, charged, right, times, adjusted)

        return await self._run("scan", steps)

    async def correct_rate(self, found: AtRate, month: str, reason: str, at: datetime, act: Act) -> bool:
        """Give the adjustment that was found; False if the rate was corrected meanwhile: then it must be found again.

        Raises WrongField if the organisation's credits would leave their bounds.
        """
        org_id, corrects, amount = found.org_id, f"fx:{month}", found.adjustment_micro_mxn

        def steps() -> Steps[bool]:
            ((times, adjusted),) = yield "corrected", {"org_id": org_id, "corrects": corrects}
            if (times, adjusted) != (found.times, found.adjusted_micro_mxn):
                return False
            credit_id = yield from unused_id(f"fx-{month}-{org_id}", found.times + 1)
            new = NewCredit(credit_id, org_id, "adjustment", amount, reason=reason, corrects=corrects)
            yield from insert_credit(new, at.isoformat(), act.actor)
            details = {**act.details, "mxn": format_mxn(amount)}
            yield from audit(replace(act, target=credit_id, org_id=org_id, details=details), at.isoformat())
            return True

        return await self._run("write", steps)

    async def propose_adjustment(
        self, org_id: str, micro_mxn: int, reason: str, corrects: str | None, at: datetime, act: Act
    ) -> Adjustment:
        """Write a proposal down. No money moves before it is approved. Raises SamePerson, WrongField."""

        def steps() -> Steps[Adjustment]:
            yield from use_right(act, (yield from _posting_month(at)), "enter", at)
            if corrects is not None:
                yield from check_corrected(org_id, corrects)
            values = {"org_id": org_id, "amount_micro_mxn": micro_mxn, "reason": reason, "corrects": corrects}
            ((number,),) = yield "propose_adjustment", {**values, "proposed_by": act.actor, "at": at.isoformat()}
            yield from audit(replace(act, target=str(number)), at.isoformat())
            return (yield from _adjustment(number))

        return await self._run("write", steps)

    async def approve_adjustment(self, proposal_id: int, at: datetime, act: Act) -> Adjustment:
        """Write a proposal's credit. No effect if it is approved already.

        Raises NotThere; SamePerson if it is the proposer who approves, or who has used another right of the month to
        which the credit is posted; WrongField if the organisation's credits would leave their bounds.
        """

        def steps() -> Steps[Adjustment]:
            found = yield from _adjustment(proposal_id)
            if found.credit_id is not None:
                yield from once(act, at.isoformat())
                return found
            if act.apart and found.proposed_by == act.actor:
                raise SamePerson(f"adjustment {proposal_id} was proposed by {act.actor}: another person approves it")
            month = yield from _posting_month(at)
            yield from use_right(act, month, "approve_adjustment", at)
            # The proposal may be of the month before: whoever made it enters into this one, too.
            yield from use_right(replace(act, actor=found.proposed_by), month, "enter", at)
            credit_id = yield from _credit_id(proposal_id)
            new = NewCredit(
                credit_id,
                found.org_id,
                "adjustment",
                found.amount_micro_mxn,
                reason=found.reason,
                corrects=found.corrects,
            )
            yield from insert_credit(new, at.isoformat(), act.actor)
            values = {"proposal_id": proposal_id, "credit_id": credit_id}
            yield "approve_adjustment", {**values, "approved_by": act.actor, "at": at.isoformat()}
            details = {**act.details, "credit": credit_id, "mxn": format_mxn(found.amount_micro_mxn)}
            yield from audit(replace(act, org_id=found.org_id, details=details), at.isoformat())
            return replace(found, credit_id=credit_id, approved_by=act.actor, approved_at=at.isoformat())

        return await self._run("write", steps)

    async def adjustments(self, before: int, most: int) -> list[Adjustment]:
        """Read proposals below a number, latest first."""
        return [Adjustment(*row) for row in await self._rows("adjustments", before=before, page=most)]

    async def adjustment(self, proposal_id: int) -> Adjustment:
        """Read a proposal. Raises NotThere."""
        return await self._run("read", lambda: _adjustment(proposal_id))


def _adjustment(proposal_id: int) -> Steps[Adjustment]:
    rows = (yield "adjustment", {"proposal_id": proposal_id}) if proposal_id <= LAST else []
    if not rows:
        raise NotThere(f"no adjustment {proposal_id} was proposed")
    return Adjustment(*rows[0])


def _credit_id(proposal_id: int) -> Steps[str]:
    """Name a proposal's credit after it, unless somebody has given a credit this name by hand."""
    name = f"adjustment-{proposal_id}"
    return (yield from unused_id(name, 2)) if (yield "credit", {"id": name}) else name


def _posting_month(at: datetime) -> Steps[str]:
    """Find the month to which a credit is posted that is written at `at`."""
    entry = (yield from closed_through()).entry(at.isoformat())
    return period_at(unix_us_at(datetime.fromisoformat(entry))).month


def _right(proof: Sequence[object], mxn_per_usd: Decimal) -> int:
    """Compute a charge at another rate, from its list price, markup, quantity and measured USD."""
    usd, markup, quantity, measured = proof
    assert isinstance(quantity, int)
    figure = None if measured is None else Decimal(str(measured))
    return charge_micro_mxn(Decimal(str(usd)), Decimal(str(markup)), mxn_per_usd, quantity, figure)


def _refunded_share(right: int, charged: int, refunded: int) -> int:
    """Compute the refunded share of what a charge should have been, rounded half up to one micro-MXN."""
    left = (2 * right * (charged - refunded) + charged) // (2 * charged)
    return right - left
