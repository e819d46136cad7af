"""Rights of a month: of one month, a person uses one of them."""

from datetime import datetime

from metering.ledger.transactions import Steps
from metering.ports import Act, Right, SamePerson

DID: dict[Right, str] = {
    "enter": "entered a rate or proposed an adjustment",
    "approve_fx": "approved the rate",
    "approve_adjustment": "approved an adjustment",
    "close": "closed it",
}
"""What somebody has done who used a right, as a sentence tells it."""


def use_right(act: Act, month: str, right: Right, at: datetime) -> Steps[None]:
    """Write down that an actor used a right of a month. Raises SamePerson if it has used another one.

    Commands are not kept apart: whoever may run them may do everything. All transactions that call this write, one
    after the other, so two requests at the same moment cannot use two rights; the table's key holds that, too.
    """
    if not act.apart:
        return
    used = yield "month_right", {"month": month, "actor": act.actor}
    if not used:
        yield "use_month_right", {"month": month, "actor": act.actor, "month_right": right, "at": at.isoformat()}
    elif used[0][0] != right:
        raise SamePerson(f"of {month}, {act.actor} has {DID[used[0][0]]}, and may use no other right of that month")
