"""The admin API as data: its bodies, its queries and its replies.

A field's description says how it must be: it completes "`field` must be …" in the message for one that is not. The
validators are made when they are first used: most gateways never use most of them.
"""

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from metering.accounts import CREDIT_FACTS, LONGEST_OVERLAP, MAX_ORIGINS, REASON, SOURCE
from metering.events import End
from metering.limits import LimitKind, limit_fields
from metering.ports import CreditType, Reading, ResponseFormat, WebhookState
from metering.webhooks.calls import TYPES, EventType
from metering.webhooks.registry import LONGEST_OVERLAP as LONGEST_SECRET_OVERLAP
from proxy.api.operation import MAX_KEY_CHARACTERS, WholeNumber
from proxy.api.pages import MOST, USUAL
from proxy.webhooks.targets import MAX_CHARACTERS

T = TypeVar("T")

MAX_MODELS = 100
"""The most models that one key may name."""

_NAME = "a name: up to 64 letters, digits, spaces, or . _ @ -"
_BOTH_SIGN_H = int(LONGEST_SECRET_OVERLAP.total_seconds() // 3600)
_OVERLAP_H = int(LONGEST_OVERLAP.total_seconds() // 3600)

Name = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Mxn = Annotated[str, StringConstraints(pattern=r"^-?[0-9]{1,10}(\.[0-9]{1,6})?$")]
Budget = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}(\.[0-9]{1,6})?$")]
Month = Annotated[str, StringConstraints(pattern=r"^20[0-9]{2}-(0[1-9]|1[0-2])$")]
Reason = Annotated[str, StringConstraints(pattern=REASON)]
Lifted = Literal["none"]


def _written_out(value: object) -> object:
    """Refuse a number of seconds: the parser reads it as a moment, also as text, but nobody chose its time zone."""
    if not isinstance(value, str) or "-" not in value[1:]:
        raise ValueError("no moment with its zone")
    return value


Moment = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_written_out)]


class Asked(BaseModel):
    """What a client sends as JSON: nothing else in it, and no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)


class NewOrg(Asked):
    """An organisation to open."""

    name: Name = Field(description=_NAME)
    plan: str = Field("default", max_length=64, description="the name of a plan")


class Suspension(Asked):
    """Why an organisation's orders are refused from now on."""

    reason: Reason = Field(description="why it is suspended, in up to 200 printable characters")


class Renaming(Asked):
    """An organisation's new name."""

    name: Name = Field(description=_NAME)


class PlanChange(Asked):
    """An organisation's new plan."""

    plan: str = Field(max_length=64, description="the name of a plan")


# --- limits: a field for each row of `metering.limits.Limits` ---


def _input(kind: LimitKind) -> tuple[Any, str]:
    """Return the type of what may be set, and the description of how it must be."""
    if kind.money:
        return Budget, 'an amount such as "500.00"'
    return Annotated[int, Field(ge=1, le=kind.max)], f"a whole number from 1 to {kind.max}"


def _input_of_org(kind: LimitKind) -> tuple[Any, Any]:
    value, must = _input(kind)
    if kind.required:
        return value | None, Field(None, description=f"{must}, or null for the plan's")
    return value | Lifted | None, Field(None, description=f'{must}, "none", or null for the plan\'s')


def _input_of_key(kind: LimitKind) -> tuple[Any, Any]:
    value, must = _input(kind)
    return value | None, Field(None, description=f"{must}, or null")


class OrgLimits(limit_fields(Asked, _input_of_org)):  # type: ignore[misc]
    """An organisation's own limits: what is absent stays, null is the plan's again, "none" lifts a quota."""


class KeyLimits(limit_fields(Asked, _input_of_key)):  # type: ignore[misc]
    """A key's own limits, beside its organisation's: what is absent stays, null is none."""


# --- the other bodies and queries ---


class NewKey(Asked):
    """A key to issue."""

    name: Name = Field(description=_NAME)
    expires: Moment | None = Field(
        None, description="a moment with its zone, such as 2027-01-31T00:00:00-06:00, or null"
    )
    models: list[str] = Field([], max_length=MAX_MODELS, description="a list of model ids; empty for all")
    test: bool = Field(False, description="true for a key of the sandbox, else false")
    read: Reading | None = Field(
        None, description='"org", "own", or null: its own orders where models are named, else all of its organisation'
    )
    response_format: ResponseFormat = Field("url", description='"url" or "b64_json"')
    origins: list[str] = Field(
        [], max_length=MAX_ORIGINS, description="a list of origins such as https://app.example.mx; empty for no page"
    )


class Rotation(Asked):
    """How long the old key works beside the new one."""

    overlap_h: int = Field(ge=0, le=_OVERLAP_H, description=f"a whole number of hours from 0 to {_OVERLAP_H}")


class NewWebhook(Asked):
    """Where an organisation's events are sent."""

    url: str = Field(max_length=MAX_CHARACTERS, description="an https address on the public internet")
    events: list[EventType] = Field(
        min_length=1, max_length=len(TYPES), description=f"a list of at least one of {', '.join(TYPES)}"
    )


class SecretRotation(Asked):
    """How long the secret before signs too."""

    overlap_h: int = Field(24, ge=0, le=_BOTH_SIGN_H, description=f"a whole number of hours from 0 to {_BOTH_SIGN_H}")


_WHY = "why the refund is given, in up to 200 printable characters"


class NewCredit(Asked):
    """Money to add, once per id. `order` is a refund's alone, `recharge` a chargeback's, `corrects` an adjustment's."""

    id: str = Field(min_length=1, max_length=128, description="the payment's id: 1 to 128 visible ASCII characters")
    type: CreditType = Field(description="bonus, recharge, refund, adjustment or chargeback")
    mxn: Mxn = Field(description='what enters the wallet, without IVA, such as "500.00", with at most six decimals')
    order: str | None = Field(None, max_length=64, description="the id of the order that a refund gives back")
    reason: Reason | None = Field(None, description=_WHY)
    recharge: str | None = Field(
        None, max_length=128, description="the id of the recharge that a chargeback takes back"
    )
    corrects: str | None = Field(
        None, max_length=128, description="the id of the order or the credit that an adjustment corrects"
    )


class CreditFacts(Asked):
    """What a credit's tax document says. What is absent stays as it is."""

    rfc: str | None = Field(None, description=CREDIT_FACTS["rfc"][1])
    name: str | None = Field(None, description=CREDIT_FACTS["name"][1])
    regimen: str | None = Field(None, description=CREDIT_FACTS["regimen"][1])
    cp: str | None = Field(None, description=CREDIT_FACTS["cp"][1])
    uso_cfdi: str | None = Field(None, description=CREDIT_FACTS["uso_cfdi"][1])
    forma_pago: str | None = Field(None, description=CREDIT_FACTS["forma_pago"][1])
    cfdi: str | None = Field(None, description=CREDIT_FACTS["cfdi"][1])


class NewRefund(Asked):
    """What to give back of an order: all that is left of its charge, where no amount is named."""

    reason: Reason = Field(description=_WHY)
    mxn: Mxn | None = Field(
        None, description='an amount such as "0.42", with at most six decimals, or null for the rest'
    )


class NewRate(Asked):
    """A month's exchange rate."""

    month: Month = Field(description="a month such as 2027-01")
    mxn_per_usd: str = Field(
        pattern=r"^[0-9]{1,5}(\.[0-9]{1,8})?$",
        description='MXN for one USD, such as "18.4512", with at most 8 decimals',
    )
    source: str = Field(
        pattern=SOURCE,
        description="where the rate comes from, in up to 200 printable characters",
    )
    force: bool = Field(False, description="true or false: whether it may be over 10 % from the rate before")


class PageQuery(BaseModel):
    """Which part of a list."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    limit: WholeNumber = Field(USUAL, ge=1, le=MOST, description=f"a whole number from 1 to {MOST}")
    cursor: str | None = Field(None, max_length=1024, description="`next_cursor` of the page before")


class CreditsQuery(PageQuery):
    """Which part of an organisation's credits."""

    type: CreditType | None = Field(None, description="bonus, recharge, refund, adjustment or chargeback")


class DeliveriesQuery(PageQuery):
    """Which part of an organisation's deliveries to webhooks."""

    state: WebhookState | None = Field(None, description="waiting, delivered or set_aside")


class AuditQuery(PageQuery):
    """Which part of the audit log."""

    org: str | None = Field(None, max_length=64, description="an organisation's id or name")
    actor: str | None = Field(None, max_length=160, description="who acted, such as jwt:ana or cli:ana")
    action: str | None = Field(None, max_length=64, description="what was done, such as key.revoke")


class WriteHeaders(BaseModel):
    """Of a write, beside the token."""

    idempotency_key: str | None = Field(
        None,
        alias="Idempotency-Key",
        min_length=1,
        max_length=MAX_KEY_CHARACTERS,
        description="The same write under the same key is done once.",
    )


class EventFacts(BaseModel):
    """What a client is answered."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Page(EventFacts, Generic[T]):
    """A part of a list; `next_cursor` asks for the next one, and is null after the last."""

    object: Literal["list"] = "list"
    data: list[T]
    next_cursor: str | None


class InForce(EventFacts):
    """A limit that holds, and whose it is; "none" where nothing is limited."""

    limit: int | str
    of: Literal["plan", "organisation"]


def _shown_in_force(kind: LimitKind) -> tuple[Any, Any]:
    return InForce, ...


def _shown_of_org(kind: LimitKind) -> tuple[Any, Any]:
    if kind.money:
        return str | None, ...
    return (int | None if kind.required else int | Lifted | None), ...


def _shown_of_key(kind: LimitKind) -> tuple[Any, Any]:
    return (str if kind.money else int) | None, ...


class Effective(limit_fields(EventFacts, _shown_in_force)):  # type: ignore[misc]
    """The limits that hold of an organisation: its own, and where it has none its plan's."""


class _Org(EventFacts):
    org: str
    name: str
    plan: str
    state: Literal["active", "suspended"]


class OrgRow(limit_fields(_Org, _shown_of_org)):  # type: ignore[misc]
    """An organisation; of its own limits null is the plan's, "none" is lifted. `effective` is what holds of both."""

    effective: Effective
    suspended_at: str | None
    created_at: str


class _Key(EventFacts):
    key_id: str
    org: str
    name: str
    state: Literal["active", "expired", "revoked"]
    test: bool
    models: list[str]
    read: Reading
    response_format: ResponseFormat
    origins: list[str]
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None


class KeyRow(limit_fields(_Key, _shown_of_key)):  # type: ignore[misc]
    """A key without the key; of its own limits null is none. `models` is empty where it may use all.

    `read` is whose orders it may read: its organisation's, or its own and those of the keys that it was rotated from.
    """


class IssuedKeyRow(KeyRow):
    """A key that this request has issued. `key` is told this once; when the request is repeated it is null."""

    key: str | None


class CreditRow(EventFacts):
    """Money in or out. `mxn` is what enters the wallet, without IVA; what was paid for a recharge stands beside it.

    What an adjustment `corrects` is `order:ID`, `credit:ID`, or `fx:YYYY-MM` where a month was charged at a wrong rate.
    `balance_mxn` is credits less charges after it, as the ledger had them. `by` and `balance_mxn` are null in rows of
    earlier versions.
    """

    id: str
    org: str
    number: int
    type: CreditType
    mxn: str
    at: str
    by: str | None
    order: str | None
    recharge: str | None
    corrects: str | None
    reason: str | None
    base_mxn: str | None
    iva_rate: str | None
    iva_mxn: str | None
    total_mxn: str | None
    balance_mxn: str | None
    facts: dict[str, str]


class NewCreditRow(CreditRow):
    """A credit; `added` is false where it was there before this request."""

    added: bool


class LiabilityRow(EventFacts):
    """What was owed to an organisation at a day's end: its credits until then, less the charges of its days."""

    org: str
    name: str
    credits_mxn: str
    charged_mxn: str
    balance_mxn: str


class RefundRow(EventFacts):
    """A refund, and what its order was charged, what of that is refunded in all, and what still may be."""

    id: str
    order: str
    org: str
    mxn: str
    reason: str
    at: str
    charged_mxn: str
    refunded_mxn: str
    refundable_mxn: str


class PriceRow(EventFacts):
    """How an order's unit price came about."""

    usd_per_image: str
    variant: str | None
    price_book: str
    markup: str
    mxn_per_usd: str
    fx_month: str
    fx_source: str
    unit_mxn: str


class Handover(EventFacts):
    """A gateway that went on with a long order: its journal's incarnation, and the order's number there."""

    incarnation: str
    number: int


class RouteRow(EventFacts):
    """The second route of a model, and its list price in USD."""

    provider: str
    upstream: str
    usd_per_image: str


class EndRow(EventFacts):
    """How an order ended; `booked_at` is null until the ledger has it.

    `route` is the second one if it went by that; null if it went by the order's own provider.
    """

    end: End
    reason: str
    ended_at: str
    booked_at: str | None
    number: int
    quantity: int
    amount_mxn: str
    upstream_ids: list[str]
    upstream_usd: str | None
    handed_over: list[Handover]
    route: RouteRow | None


class ImageRow(EventFacts):
    """A delivered image."""

    path: str
    url: str | None
    content_type: str
    bytes: int
    sha256: str
    width_px: int
    height_px: int


class OrderRefundRow(EventFacts):
    """A refund of the order."""

    id: str
    mxn: str
    reason: str
    at: str


class SetAsideRow(EventFacts):
    """An end of the order that could not be booked, and when it was fed again."""

    partition: int
    entry: str
    error: str
    at: str
    fed_again_at: str | None


class HoldRow(EventFacts):
    """The hold of an open order, and the gateway that makes it."""

    held_mxn: str
    images: int
    expires_at: str | None
    owner: str | None
    owner_lives: bool


class WaitingRow(EventFacts):
    """Where its event waits in the stream."""

    partition: int
    entry: str


class RedisRow(EventFacts):
    """What Redis knows of it, which is null after a day."""

    state: Literal["open", "ran_out", "charge", "void", "expiry"] | None
    reason: str | None
    amount_mxn: str | None
    hold: HoldRow | None
    waiting: WaitingRow | None


class OpenJournalRow(EventFacts):
    """A gateway's journal that is not closed, with its answered orders that Redis has yet to charge; null: unknown."""

    incarnation: str
    uncharged: int | None


class OrderRow(EventFacts):
    """What is known of an order. A charge that is `booked` may be refunded; `redis_away` says why `redis` is null."""

    id: str
    order: str
    status: Literal["charged", "void", "expired", "open", "ran_out", "set_aside", "unknown"]
    booked: bool
    org: str | None
    org_name: str | None
    key_id: str | None
    key_name: str | None
    model: str | None
    provider: str | None
    upstream: str | None
    size: str | None
    quality: str | None
    region: str | None
    images_asked: int | None
    end_user: Annotated[str | None, Field(description="The pseudonym of `user`")]
    safety_identifier: Annotated[str | None, Field(description="Its pseudonym")]
    tags: list[str]
    metadata: dict[str, str]
    admitted_at: str | None
    day: str | None
    month: str | None
    price: PriceRow | None
    quantity: int
    amount_mxn: str
    usd_measured: str | None
    refunded_mxn: str
    refundable_mxn: str
    result_kept: bool
    ends: list[EndRow]
    images: list[ImageRow]
    refunds: list[OrderRefundRow]
    set_aside: list[SetAsideRow]
    redis: RedisRow | None
    redis_away: str | None
    journals_not_closed: list[OpenJournalRow]


class BalanceRow(EventFacts):
    """What an organisation can spend, what open orders hold, and their sum; and what it may have cost us in vain."""

    org: str
    currency: Literal["MXN"] = "MXN"
    available_mxn: str
    held_mxn: str
    balance_mxn: str
    unpaid_mxn: str


class NoticeRow(EventFacts):
    """What an organisation was told. `limit` and `used` are images, or MXN as a decimal string."""

    what: str
    key_id: str | None
    percent: int
    period: str
    limit: int | str
    used: int | str
    at: str


class WebhookRow(EventFacts):
    """Where an organisation's events of some types are sent."""

    id: str
    org: str
    url: str
    events: list[str]
    state: Literal["active", "disabled"]
    created_at: str
    disabled_at: str | None


class IssuedWebhookRow(WebhookRow):
    """A new webhook. `secret` is told once: with the organisation's first webhook, and not when that is repeated."""

    secret: str | None


class SecretRow(EventFacts):
    """An organisation's new secret. It is told this once; when the request is repeated it is null."""

    org: str
    secret: str | None


class DeliveryRow(EventFacts):
    """A delivery to a webhook, or with `webhook` null to the address that an order named."""

    id: str
    org: str
    webhook: str | None
    url: str
    type: str
    subject: str
    state: WebhookState
    at: str
    attempts: int
    next_at: str | None
    ended_at: str | None
    error: str | None


class ReplayRow(WebhookRow):
    """A webhook, and how many deliveries that were set aside this request has put back: 0 when it is repeated."""

    deliveries: int


class RateRow(EventFacts):
    """A rate that was entered for a month. It is in force once it is approved; of a month, the last of those."""

    id: int
    month: str
    mxn_per_usd: str
    source: str
    series: str | None
    method: str | None
    printed: str | None
    fetched_at: str | None
    raw_sha256: str | None
    entered_by: str | None
    entered_at: str
    approved_by: str | None
    approved_at: str | None


class NewRateRow(RateRow):
    """The same; `added` is false where it was there before this request."""

    added: bool


class AuditRow(EventFacts):
    """Who did what to which target."""

    id: int
    at: str
    actor: str
    action: str
    org: str | None
    target: str
    details: dict[str, Any]
