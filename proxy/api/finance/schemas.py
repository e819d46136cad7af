"""The finance API as data: its bodies, its queries and its replies.

As in the admin API, a field's description says how it must be.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from metering.ports import CreditType
from proxy.api.admin.schemas import Asked, EventFacts, Mxn, PageQuery, Reason
from proxy.messages import Language

MonthText = Annotated[str, StringConstraints(pattern=r"^2[0-9]{3}-(0[1-9]|1[0-2])$")]
Day = Annotated[str, StringConstraints(pattern=r"^2[0-9]{3}-(0[1-9]|1[0-2])-[0-9]{2}$")]

_ORG = "an organisation's id or name"
_MONTH = "a month such as 2026-11"


class CreditsQuery(PageQuery):
    """Which credits: of one organisation or all, of one kind or all, of one month or all."""

    org: str | None = Field(None, max_length=64, description=_ORG)
    type: CreditType | None = Field(None, description="bonus, recharge, refund, adjustment or chargeback")
    month: MonthText | None = Field(None, description=_MONTH)


class UsageQuery(BaseModel):
    """Whose usage, when, and by what it is summed. Without days it is this month of Mexico City."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    first: Day | None = Field(None, alias="from", description="the first day, of Mexico City, such as 2026-11-01")
    last: Day | None = Field(None, alias="to", description="the last day, included, such as 2026-11-30")
    org: str | None = Field(None, max_length=64, description=_ORG)
    group_by: str = Field(
        "org", max_length=64, description="any of org, day, model and key, with commas between them; empty for one sum"
    )


class ExportQuery(BaseModel):
    """Which rows of a month, and in which variant of the format."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    org: str | None = Field(None, max_length=64, description=_ORG)
    variant: str | None = Field(None, max_length=32, description="a variant of the format, such as excel of csv")
    all_ends: Literal["true", "false"] = Field(
        "false", description="true or false: whether orders are in it that were not charged"
    )


class StatementQuery(BaseModel):
    """In which language."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    lang: Language | None = Field(None, description="es or en; before `Accept-Language`, and Spanish without both")


class ReconciliationsQuery(PageQuery):
    """Which comparisons: of one month or all."""

    month: MonthText | None = Field(None, description=_MONTH)


class NewAdjustment(Asked):
    """An adjustment to propose. Another person approves it."""

    org: str = Field(min_length=1, max_length=64, description=_ORG)
    mxn: Mxn = Field(description='an amount such as "-0.42", with at most six decimals')
    reason: Reason = Field(description="why it is given, in up to 200 printable characters")
    corrects: str | None = Field(
        None, max_length=128, description="the id of the order or the credit that it corrects, or null"
    )


class UsageItem(EventFacts):
    """Charged orders, the images that they delivered, and their price; null is what it was not grouped by."""

    org: str | None
    org_name: str | None
    day: str | None
    model: str | None
    key_id: str | None
    orders: int
    images: int
    cost_mxn: str


class UsageTotal(EventFacts):
    """The sum of all groups."""

    orders: int
    images: int
    cost_mxn: str


class FinanceUsage(EventFacts):
    """What was used, from one day of Mexico City to another, both included."""

    object: Literal["usage"] = "usage"
    currency: Literal["MXN"] = "MXN"
    first: str = Field(serialization_alias="from")
    last: str = Field(serialization_alias="to")
    group_by: list[str]
    data: list[UsageItem]
    total: UsageTotal


class MonthRow(EventFacts):
    """A month. It is closed for good, and sealed once its manifest is signed; its sums are those that are signed."""

    month: str
    state: Literal["open", "closed"]
    closed_at: str | None
    closed_by: str | None
    sealed: bool
    charges_mxn: str | None
    closing_mxn: str | None


class ClosedMonthRow(MonthRow):
    """The same; `new` is false where it was closed before this request."""

    new: bool


class OrgSumsRow(EventFacts):
    """What was posted to a month for an organisation: opening + credits − charges = closing."""

    org: str
    name: str
    orders: int
    images: int
    opening_mxn: str
    recharges_mxn: str
    bonuses_mxn: str
    refunds_mxn: str
    adjustments_mxn: str
    chargebacks_mxn: str
    charges_mxn: str
    closing_mxn: str


class MonthSheet(MonthRow):
    """A month, and a page of its organisations; those of an open month are as they stand."""

    data: list[OrgSumsRow]
    next_cursor: str | None


class Signed(EventFacts):
    """A closed month's manifest, exactly as it was signed: `ghub month verify` checks a file against it."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)

    month: str
    public_key: str
    signature: str


class AdjustmentRow(EventFacts):
    """An adjustment that was proposed. `credit` is what was written for it when it was approved."""

    id: int
    org: str
    mxn: str
    reason: str
    corrects: str | None
    proposed_by: str
    proposed_at: str
    credit: str | None
    approved_by: str | None
    approved_at: str | None


class ReconciliationRow(EventFacts):
    """A comparison of the ledger with providers' books; `provider` is null for all. `ok`: within its threshold."""

    id: int
    month: str
    provider: str | None
    ok: bool
    ledger_usd: str
    billed_usd: str
    off_usd: str
    findings: int
    by: str
    at: str


class ReconciliationSheet(ReconciliationRow):
    """A comparison, and what was found, as `ghub reconcile --json` told it."""

    report: dict[str, Any]
