"""The interface to the permanent record: what this layer needs from a ledger."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple, Protocol
from uuid import UUID

from metering.clock import Period
from metering.events import UNKNOWN, End, Event, Notice, StoredImage
from metering.limits import Limits
from metering.pricing import FxRate
from metering.schedules import ListedSchedule
from metering.tax import Tax

PAGE = 500
"""Organisations or keys in one page."""

LAST = 2**53
"""A number above every event number."""

LATEST = "\x7f"
"""A text that sorts after every moment."""

TEST_KEY_ID = "key_test_"
"""Prefix of the short id of a sandbox key."""

Reading = Literal["org", "own"]
"""Orders that a key may read: all of its organisation; or its own, and those of the keys that it was rotated from."""

ResponseFormat = Literal["url", "b64_json"]
"""How images are returned if an order does not say."""

CreditType = Literal["bonus", "recharge", "refund", "adjustment", "chargeback"]

Right = Literal["enter", "approve_fx", "approve_adjustment", "close"]
"""What finance does of a month. enter: enters a rate, or proposes an adjustment."""


class LedgerError(Exception):
    """The record refuses; the message is a sentence for the caller."""


class NotThere(LedgerError):
    """There is no such organisation, key or order."""


class WrongField(LedgerError):
    """One part of the request is invalid: `field` names it, `why` says what it must be like."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field
        self.why = why


class SamePerson(LedgerError):
    """This takes another person: whoever asks for it has done the other half, or used another right of the month."""


class DatabaseRefused(LedgerError):
    """Its tables do not accept a value. The message is the database's own, and not for customers."""


class LedgerAway(Exception):
    """The database did not answer in time, or not at all."""


class LedgerMisconfigured(LedgerAway):
    """The database answers, but its set-up is wrong: a right, a table or a password is wrong or missing.

    Callers wait as for one that is away: once it is repaired, nothing needs a restart. The message is a sentence for an
    operator. It names GHUB_LEDGER_URL and what is missing, and contains no password.
    """

    def __init__(self, why: str) -> None:
        super().__init__(f"GHUB_LEDGER_URL: {why}")


@dataclass(frozen=True, slots=True)
class Org:
    """An organisation. In its own limits, None means that the plan's limit holds."""

    org_id: str
    name: str
    plan: str
    created_at: str
    limits: Limits = field(default_factory=Limits)
    suspended_at: str | None = None

    @property
    def suspended(self) -> bool:
        """True if its orders are refused."""
        return self.suspended_at is not None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key, without its secret: only the hash is kept. `models` is empty if it may use all.

    `origins` are the origins of the web pages from which browsers may use it. `replaces` is the id of the key that it
    was rotated from.
    """

    key_id: str
    org_id: str
    name: str
    key_hash: str
    created_at: str
    revoked_at: str | None = None
    expires_at: str | None = None
    models: tuple[str, ...] = ()
    read: Reading = "org"
    response_format: ResponseFormat = "url"
    origins: tuple[str, ...] = ()
    replaces: str | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def test(self) -> bool:
        """True for a sandbox key. Its id says so, as the key itself does."""
        return self.key_id.startswith(TEST_KEY_ID)

    def state(self, at: datetime) -> Literal["active", "expired", "revoked"]:
        """Find the key's state at this moment."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and datetime.fromisoformat(self.expires_at) <= at else "active"


@dataclass(frozen=True, slots=True)
class Used:
    """Usage of an organisation or a key in the ledger: images of a day; images and money of its month."""

    day_images: int = 0
    month_images: int = 0
    month_micro_mxn: int = 0

    def plus(self, other: "Used") -> "Used":
        """Add two usages."""
        return Used(
            self.day_images + other.day_images,
            self.month_images + other.month_images,
            self.month_micro_mxn + other.month_micro_mxn,
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One organisation in the record at one moment: everything that its projection needs.

    `limits` are its own on top of its plan's. `used` is by key id, for the day and the month of `period`.
    """

    org: Org
    revision: int
    credit_number: int
    credits_micro_mxn: int
    keys: tuple[ApiKey, ...]
    limits: Limits
    used: Mapping[str, Used]
    period: Period


@dataclass(frozen=True, slots=True)
class FxOrigin:
    """Where a rate was read: the source's series, how the month's rate follows from it, the value as it is printed.

    `fetched_at` is the moment, and `raw_sha256` the hash of the source's whole answer.
    """

    series: str | None = None
    method: str | None = None
    printed: str | None = None
    fetched_at: str | None = None
    raw_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class FxRecord:
    """A rate of record. Only one that is approved is ever in force; of a month, the last of those.

    Rates of earlier versions have no `entered_by`.
    """

    rate_id: int
    rate: FxRate
    origin: FxOrigin
    entered_by: str | None
    at: str
    approved_by: str | None
    approved_at: str | None


@dataclass(frozen=True, slots=True)
class IdempotentWrite:
    """The idempotency key of a write, and the fingerprint of its request."""

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Act:
    """Who does what. It is written in the same transaction as the change. `details` never contains a key.

    `apart`: of one month, the actor uses one right only, which the same transaction checks.
    """

    actor: str
    action: str
    target: str
    org_id: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    once: IdempotentWrite | None = None
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Audit:
    """One row of the audit log; `details` is JSON."""

    id: int
    at: str
    actor: str
    action: str
    org_id: str | None
    target: str
    details: str


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Charges of one model to one key on one Mexico City day. A dimension that was summed over is empty.

    `name` is that of a tag, a value of the metadata or an end user, if it was asked for; orders without any have none.
    """

    day: str
    model: str
    key_id: str
    orders: int
    images: int
    amount_micro_mxn: int
    name: str = ""


Label = Literal["user", "safety_identifier", "tag", "metadata"]
"""What an order may carry to be found again."""


@dataclass(frozen=True, slots=True)
class EndUser:
    """Whom a pseudonym stands for; `at` is the moment of an order for this end user, ISO 8601."""

    org_id: str
    pseudonym: str
    value: str
    at: str


@dataclass(frozen=True, slots=True)
class LabelUse:
    """What was charged to orders that carry one name as this label, from a first to a last Mexico City day."""

    label: Label
    orders: int
    images: int
    amount_micro_mxn: int
    first_day: str
    last_day: str


@dataclass(frozen=True, slots=True)
class EndUserUse:
    """An end user as the ledger knows it, and what was charged for it under each field that named it.

    `value` and `told_at` are None if nobody told the clear text, or if it was erased.
    """

    pseudonym: str
    value: str | None
    told_at: str | None
    used: tuple[LabelUse, ...]


UsageBy = Literal["org", "day", "model", "key"]


@dataclass(frozen=True, slots=True)
class OrgUsage:
    """Charges of an organisation, of one model, to one key, on one day. A dimension that was summed over is empty."""

    org_id: str
    day: str
    model: str
    key_id: str
    orders: int
    images: int
    amount_micro_mxn: int


@dataclass(frozen=True, slots=True)
class Charged:
    """The ledger's totals for one organisation up to one of its event numbers."""

    events: int
    last_event: int
    charged_micro_mxn: int


@dataclass(frozen=True, slots=True)
class Ended:
    """End of an order in the ledger; `paths` names its stored images."""

    end: End
    reason: str
    paths: frozenset[str]

    @property
    def charged(self) -> bool:
        """True if its customer pays for it."""
        return self.end == "charge"

    @property
    def frees(self) -> bool:
        """True if its idempotency key may be used again."""
        return not self.charged and self.reason not in UNKNOWN


@dataclass(frozen=True, slots=True)
class Refund:
    """A credit that gives back an order's charge or a part of it. `reason` is in the giver's words."""

    credit_id: str
    org_id: str
    order_id: str
    amount_micro_mxn: int
    reason: str
    at: str


@dataclass(frozen=True, slots=True)
class NewCredit:
    """Money that enters or leaves a wallet other than by orders. `amount_micro_mxn` has no IVA in it.

    `tax` is what was paid for a recharge. A refund gives back `order_id`, a chargeback takes back `recharge_id`. What
    an adjustment `corrects` is written as `order:ID`, `credit:ID` or `fx:YYYY-MM`.
    """

    credit_id: str
    org_id: str
    type: CreditType
    amount_micro_mxn: int
    reason: str | None = None
    order_id: str | None = None
    recharge_id: str | None = None
    tax: Tax | None = None
    corrects: str | None = None


@dataclass(frozen=True, slots=True)
class Credit:
    """A credit of record. `number` counts its organisation's. `balance_micro_mxn` is credits less charges after it.

    `facts` are for its tax document, as they were last completed. Rows of earlier versions have no actor and balance.
    """

    new: NewCredit
    number: int
    at: str
    actor: str | None
    balance_micro_mxn: int | None
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Adjustment:
    """An adjustment that was proposed; once it is approved, the credit that was written for it."""

    proposal_id: int
    org_id: str
    amount_micro_mxn: int
    reason: str
    corrects: str | None
    proposed_by: str
    at: str
    credit_id: str | None
    approved_by: str | None
    approved_at: str | None


@dataclass(frozen=True, slots=True)
class AtRate:
    """An organisation's charges at a month's rate, and what they should have been at another one, in micro-MXN.

    Of a refunded order what is left of the charge counts, and the same share of what it should have been. `adjusted` is
    the sum of the `times` adjustments that correct the rate already.
    """

    org_id: str
    charged_micro_mxn: int
    right_micro_mxn: int
    times: int
    adjusted_micro_mxn: int

    @property
    def adjustment_micro_mxn(self) -> int:
        """What is still to be given; negative if too little was charged."""
        return self.charged_micro_mxn - self.right_micro_mxn - self.adjusted_micro_mxn


@dataclass(frozen=True, slots=True)
class CreditKey:
    """Position of a credit in the list of all of them: by its moment, then its organisation, then its number."""

    at: str
    org_id: str
    number: int


@dataclass(frozen=True, slots=True)
class BalanceAt:
    """What was owed to an organisation at a day's end: its credits until then, less the charges of its days."""

    org_id: str
    name: str
    credits_micro_mxn: int
    charged_micro_mxn: int

    @property
    def balance_micro_mxn(self) -> int:
        """Credits less charges."""
        return self.credits_micro_mxn - self.charged_micro_mxn


@dataclass(frozen=True, slots=True)
class ClosedMonth:
    """A month that is closed, and what it sums up to in micro-MXN. It is sealed once its manifest is made."""

    month: str
    ends_at: str
    closed_at: str
    closed_by: str
    sealed: bool
    charges_micro_mxn: int
    closing_micro_mxn: int


@dataclass(frozen=True, slots=True)
class MonthSums:
    """What was posted to a month for one organisation, and its balance before, in micro-MXN.

    Refunds are positive, chargebacks negative, adjustments have either sign; charges are positive and taken off.
    """

    org_id: str
    opening_micro_mxn: int
    recharges_micro_mxn: int
    bonuses_micro_mxn: int
    refunds_micro_mxn: int
    adjustments_micro_mxn: int
    chargebacks_micro_mxn: int
    charges_micro_mxn: int
    orders: int
    images: int

    @property
    def credits_micro_mxn(self) -> int:
        """Sum of all credits, with their signs."""
        return (
            self.recharges_micro_mxn
            + self.bonuses_micro_mxn
            + self.refunds_micro_mxn
            + self.adjustments_micro_mxn
            + self.chargebacks_micro_mxn
        )

    @property
    def closing_micro_mxn(self) -> int:
        """Opening balance, and credits, less charges."""
        return self.opening_micro_mxn + self.credits_micro_mxn - self.charges_micro_mxn


@dataclass(frozen=True, slots=True)
class Names:
    """What an organisation and its keys, by their ids, are called; of a closed month as at its close."""

    org: str
    keys: Mapping[str, str]


class MonthUse(NamedTuple):
    """Charges that are posted to a month, of one day, model, key or tag; `name` is that one's."""

    name: str
    orders: int
    images: int
    amount_micro_mxn: int


class RateUse(NamedTuple):
    """Charges that are posted to a month, at one rate; `fx_month` is the rate's own month.

    `group` is 1 for orders with tags, 0 for those without, -1 for those of earlier months.
    """

    fx_month: str
    mxn_per_usd: str
    source: str
    group: int
    orders: int
    images: int
    amount_micro_mxn: int


class PaidSums(NamedTuple):
    """Credits of a month of one kind and IVA rate, with the sums of what was paid for them."""

    type: CreditType
    iva_rate: str | None
    credits: int
    amount_micro_mxn: int
    base_micro_mxn: int
    iva_micro_mxn: int


@dataclass(frozen=True, slots=True)
class MonthFacts:
    """What a statement says of one organisation's month, read at one moment.

    Days, models, keys and tags are of orders of the month itself; `late` is of orders of earlier months, by month.
    `tags` and `credits` are the largest and the latest; `all_tags` counts them all.
    """

    sums: MonthSums
    names: Names
    closed_at: str | None
    days: Sequence[MonthUse]
    models: Sequence[MonthUse]
    keys: Sequence[MonthUse]
    tags: Sequence[MonthUse]
    all_tags: int
    late: Sequence[MonthUse]
    rates: Sequence[RateUse]
    records: Sequence[FxRecord]
    paid: Sequence[PaidSums]
    credits: Sequence[Credit]


class Charge(NamedTuple):
    """A charged order as it is exported: a row of the ledger as it was read. `images` is what `encode_images` wrote.

    Of an order that ended otherwise it is what would have been charged, and `amount_micro_mxn` is 0.

    `posted` is the month to which it is posted, if its own was closed when it was booked. `tags` and `upstream_ids` are
    JSON lists, `metadata` is a JSON object, `end_user` and `safety_id` are pseudonyms.
    """

    event_id: str
    org_id: str
    number: int
    key_id: str
    day: str
    month: str
    admitted_us: int
    ended_us: int
    model: str
    provider: str
    upstream: str
    size: str
    quality: str | None
    region: str
    images_asked: int
    quantity: int
    variant: str
    usd_per_image: str
    price_book: str
    markup: str
    mxn_per_usd: str
    fx_month: str
    fx_source: str
    unit_micro_mxn: int
    usd_measured: str | None
    amount_micro_mxn: int
    images: str
    posted: str | None
    end_user: str | None
    safety_id: str | None
    tags: str | None
    metadata: str | None
    upstream_ids: str | None
    upstream_usd: str | None
    end: End
    reason: str

    @property
    def posting_month(self) -> str:
        """Month of the exports and balances in which it stands (rule 24)."""
        return self.posted or self.month


@dataclass(frozen=True, slots=True)
class Refunded:
    """A refund and its charge, from whatever month."""

    refund: Refund
    charge: Charge


@dataclass(frozen=True, slots=True)
class Booked:
    """An end of an order, and when it was booked."""

    event: Event
    booked_at: str


@dataclass(frozen=True, slots=True)
class OrderSetAside:
    """An end of an order that could not be booked.

    `fed_again_at` is set if somebody has put it back into the stream.
    """

    partition: int
    entry_id: str
    org_id: str | None
    error: str
    at: str
    fed_again_at: str | None


@dataclass(frozen=True, slots=True)
class OrderRecord:
    """One order in the ledger at one moment. It may have two ends: an expiry, and the charge that a journal brought."""

    ends: tuple[Booked, ...]
    refunds: tuple[Refund, ...]
    set_aside: tuple[OrderSetAside, ...]
    result_kept: bool

    @property
    def charge(self) -> Event | None:
        """The end that its customer pays for."""
        return next((one.event for one in self.ends if one.event.end == "charge"), None)

    @property
    def refunded_micro_mxn(self) -> int:
        """Sum of its refunds."""
        return sum(refund.amount_micro_mxn for refund in self.refunds)


@dataclass(frozen=True, slots=True)
class Delivered:
    """A charged order, as its owner may fetch it again; `document` is the gateway's own format.

    `key_id` is the key that placed it. It is empty if a version wrote to Redis that did not store it.
    """

    order_id: str
    images: tuple[StoredImage, ...]
    document: bytes
    key_id: str


@dataclass(frozen=True, slots=True)
class ResultKey:
    """Position of a delivered order in its organisation's list: by its end in Unix µs, then by its id."""

    ended_us: int
    order_id: str


@dataclass(frozen=True, slots=True)
class Listed:
    delivered: Delivered
    key: ResultKey


@dataclass(frozen=True, slots=True)
class Keyed:
    """A charged order that came with an idempotency key; `once` is the key's hash and the order's fingerprint."""

    org_id: str
    order_id: str
    once: str
    amount_micro_mxn: int
    ended_us: int


@dataclass(frozen=True, slots=True)
class Incarnation:
    """One start of a gateway in the ledger. `lost_reason` is set if its journal was given up.

    `host` is where it ran: in Kubernetes the pod, whose claim has its journal. None if it is unknown.
    """

    opened_at: str | None
    closed_at: str | None
    last_number: int | None
    lost_reason: str | None
    host: str | None


@dataclass(frozen=True, slots=True)
class SetAside:
    """A stream entry that could not be booked, kept for a person. `metering.aside` writes and reads `fields`.

    `request_id` and `org_id` are empty if they cannot be read, and None in rows of versions that did not look. `at` is
    when it was set aside, `fed_at` when it was put back into its stream.
    """

    partition: int
    entry_id: str
    error: str
    fields: bytes
    order_id: str | None = None
    org_id: str | None = None
    at: str = ""
    fed_at: str | None = None

    @property
    def name(self) -> str:
        """Name of the entry for people."""
        return f"p{self.partition}-{self.entry_id}"


@dataclass(frozen=True, slots=True)
class ListPrice:
    """One row of an immutable price book; `variant` is empty if a model has one price for everything.

    `measured_by` says how the provider's report is priced, empty if it is not.
    """

    model: str
    usd_per_image: Decimal
    variant: str = ""
    measured_by: str = ""


@dataclass(frozen=True, slots=True)
class PriceBook:
    """A file's prices. What it changes about prices that were sold before holds from `effective_us` on, Unix µs."""

    version: str
    markup: Decimal
    prices: Sequence[ListPrice]
    effective_us: int | None = None


@dataclass(frozen=True, slots=True)
class PriceListId:
    """Which list of prices: a ledger that was restored gives a number again, but never to one of the same moment."""

    number: int = 0
    at_us: int = 0

    @property
    def name(self) -> str:
        return f"{self.number}:{self.at_us}"


ItemKind = Literal["charge", "refund"]
"""What a sink is told of: a charged order, or a refund."""


class Sold(NamedTuple):
    """A charge or a refund as a sink is told of it, from rows that never change. A refund's amount is negative.

    `event_id` is a refund's credit id. A charge has `ended_us`, a refund `given_at`, and no price, day or quantity. If
    its order is unknown, as with the first version's, it has no model either. `posted` is the month of the exports.
    """

    event_id: str
    order_id: str | None
    org_id: str
    key_id: str | None
    ended_us: int | None
    given_at: str | None
    day: str | None
    month: str | None
    posted: str | None
    region: str | None
    model: str | None
    provider: str | None
    upstream: str | None
    size: str | None
    quality: str | None
    images_asked: int
    quantity: int
    variant: str | None
    usd_per_image: str | None
    price_book: str | None
    markup: str | None
    mxn_per_usd: str | None
    fx_month: str | None
    unit_micro_mxn: int | None
    usd_measured: str | None
    amount_micro_mxn: int


@dataclass(frozen=True, slots=True)
class ToSend:
    """An item of a sink that is to be sent now. `attempts` counts this one, too."""

    kind: ItemKind
    item_id: str
    attempts: int
    sold: Sold


@dataclass(frozen=True, slots=True)
class ItemSetAside:
    """An item that its sink has refused for good, and what it said."""

    item_id: str
    kind: ItemKind
    at: str
    set_aside_at: str
    error: str


@dataclass(frozen=True, slots=True)
class SinkState:
    """A registered sink, and what it has not taken: `oldest_at` is when the oldest of the `pending` was booked.

    `delivered_at` is when it last took something, within some seconds; `error` is why the last delivery failed.
    """

    name: str
    profile: str
    since: str
    delivered_at: str | None
    error: str | None
    pending: int
    oldest_at: str | None
    set_aside: int


@dataclass(frozen=True, slots=True)
class HourSum:
    """Orders that began in one hour and ended in one hour, summed, as far as a provider may bill them.

    `begun_hour` and `ended_hour` are hours since 1970. `told_usd` is the sum of the provider's own figures, if it gives
    one for these orders; `measured` if their price depends on it. `complete`: every image that was asked is delivered.
    """

    provider: str
    upstream: str
    begun_hour: int
    ended_hour: int
    charged: bool
    complete: bool
    measured: bool
    usd_per_image: str
    told_usd: Decimal | None
    images: int
    images_asked: int


@dataclass(frozen=True, slots=True)
class Placed:
    """One order as its provider knows it. `usd` is what it should cost; without a charge, what the provider said."""

    month: str
    org_id: str
    number: int
    order_id: str
    upstream: str
    charged: bool
    begun_us: int
    ended_us: int
    images: int
    upstream_ids: tuple[str, ...]
    usd: Decimal


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The result of one comparison with providers' books. Sums are decimal text in USD; `report` is JSON.

    `provider` is None for all. `ok` is true if what is off is within the threshold, and all was read.
    """

    month: str
    provider: str | None
    ok: bool
    ledger_usd: str
    billed_usd: str
    off_usd: str
    findings: int
    report: str
    actor: str = ""
    at: str = ""
    id: int = 0


class Outbox(Protocol):
    """What sinks have not taken yet (rule 36). Every method may raise LedgerAway."""

    async def register_sinks(self, sinks: Mapping[str, str], at: datetime) -> None: ...
    async def sinks(self) -> list[SinkState]: ...
    async def remove_sink(self, name: str, at: datetime, act: Act) -> int: ...
    async def claim_items(self, sink: str, now: datetime, lease: datetime, most: int) -> list[ToSend]: ...
    async def conclude_items(self, sink: str, conclusions: Sequence["Conclusion"], lease: datetime) -> None: ...
    async def items_set_aside(
        self, sink: str, after: ItemSetAside | None = None, most: int = PAGE
    ) -> list[ItemSetAside]: ...
    async def send_again(self, sink: str, at: datetime) -> int: ...
    def send_days_again(self, sink: str, first: str, last: str, at: datetime) -> AsyncIterator[int]: ...


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What became of items that were sent together, at a moment.

    `delivered`: they are at the sink. `later`: they are sent again from `next_at` on, or at once. `refused`: a person
    must look. `error` is empty if they were not sent.
    """

    what: Literal["delivered", "later", "refused"]
    items: Sequence[ToSend]
    at: datetime
    error: str = ""
    next_at: datetime | None = None


WebhookState = Literal["waiting", "delivered", "set_aside"]


@dataclass(frozen=True, slots=True)
class Webhook:
    """An address to which an organisation's events of some types are sent, until it is disabled."""

    webhook_id: str
    org_id: str
    url: str
    events: tuple[str, ...]
    created_at: str
    disabled_at: str | None = None


@dataclass(frozen=True, slots=True)
class WebhookCall:
    """What webhooks of an organisation are told, once for each `type` and `subject`; `body` is JSON.

    `url` is an address that the order itself named.
    """

    org_id: str
    type: str
    subject: str
    body: str
    url: str | None = None


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """A call to one address, with moments in ISO 8601. `webhook_id` is None for an order's own address."""

    delivery_id: str
    org_id: str
    webhook_id: str | None
    url: str
    type: str
    subject: str
    at: str
    state: WebhookState
    attempts: int
    next_at: str
    error: str | None
    ended_at: str | None


@dataclass(frozen=True, slots=True)
class WebhookToSend:
    """A claimed delivery. `since` is when its attempts began; `secrets` are encrypted, the latest first."""

    delivery_id: str
    org_id: str
    url: str
    server: str
    type: str
    body: str
    since: str
    attempts: int
    secrets: tuple[str, ...]

    @property
    def lane(self) -> str:
        """What it shares its turns with: an organisation's deliveries to one server."""
        return f"{self.org_id} {self.server}"


@dataclass(frozen=True, slots=True)
class WebhookEnd:
    """What became of a delivery that was claimed until `lease`; while `waiting`, it is sent again at `next_at`."""

    delivery_id: str
    state: WebhookState
    at: datetime
    lease: datetime
    next_at: datetime
    error: str | None = None


@dataclass(frozen=True, slots=True)
class WebhookClaim:
    """Which deliveries are wanted: at most `most`, none of `busy` lanes, of each `failing` one a single one."""

    now: datetime
    lease: datetime
    most: int
    per_server: int
    busy: Collection[str] = ()
    failing: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class WebhookLag:
    """How many deliveries wait, since when the turn of one of them has come (ISO 8601), and how many are set aside."""

    waiting: int
    due_at: str | None
    set_aside: int


class ExpiringKey(NamedTuple):
    """A key whose end is near, of an organisation with webhooks."""

    key_id: str
    org_id: str
    name: str
    expires_at: str


class WebhookOutbox(Protocol):
    """Webhooks, and what was not delivered to them yet (rule 36). Every method may raise LedgerAway."""

    async def add_webhook(self, webhook: Webhook, secret: str, most: int, act: Act) -> bool: ...
    async def rotate_webhook_secret(
        self, org_id: str, secret: str, at: datetime, until: datetime, act: Act
    ) -> None: ...
    async def webhook(self, webhook_id: str) -> Webhook: ...
    async def webhooks(self, org_id: str) -> list[Webhook]: ...
    async def orgs_with_webhooks(self, after_id: str = "", most: int = PAGE) -> list[str]: ...
    async def disable_webhook(self, webhook_id: str, at: datetime, act: Act) -> Webhook: ...
    async def call_webhooks(self, calls: Sequence[WebhookCall], at: datetime) -> None: ...
    async def claim_webhooks(self, claim: WebhookClaim) -> list[WebhookToSend]: ...
    async def conclude_webhooks(self, ends: Sequence[WebhookEnd]) -> None: ...
    async def webhook_deliveries(
        self, org_id: str, state: WebhookState | None, before: tuple[str, str], most: int = PAGE
    ) -> list[WebhookDelivery]: ...
    async def webhook_delivery(self, delivery_id: str) -> WebhookDelivery: ...
    async def replay_delivery(self, delivery_id: str, at: datetime, act: Act) -> WebhookDelivery: ...
    async def replay_webhook(self, webhook_id: str, at: datetime, act: Act) -> int: ...
    async def tidy_webhooks(self, at: datetime, late: datetime, old: datetime) -> int: ...
    async def webhook_lag(self, now: datetime, since: datetime) -> WebhookLag: ...
    async def expiring_keys(
        self, now: datetime, until: datetime, after_id: str = "", most: int = PAGE
    ) -> list[ExpiringKey]: ...


class Ledger(Outbox, WebhookOutbox, Protocol):
    """Organisations, keys, credits, prices, rates and events of record. Every method may raise LedgerAway."""

    async def migrate(self) -> int: ...
    async def check_schema(self) -> None: ...
    async def aclose(self) -> None: ...

    async def create_org(self, org: Org, act: Act) -> None: ...
    async def org(self, ref: str) -> Org: ...
    async def orgs(self, after: Org | None = None, most: int = PAGE) -> list[Org]: ...
    async def set_limits(self, org_id: str, changes: Mapping[str, int | None], at: datetime, act: Act) -> Org: ...
    async def suspend(self, org_id: str, suspended: bool, at: datetime, act: Act) -> Org: ...
    async def rename(self, org_id: str, name: str, at: datetime, act: Act) -> Org: ...
    async def set_plan(self, org_id: str, plan: str, at: datetime, act: Act) -> Org: ...
    async def plans(self) -> dict[str, Limits]: ...
    async def register_plans(self, plans: Mapping[str, Limits], at: datetime) -> bool: ...

    async def create_key(self, key: ApiKey, act: Act, *, until: datetime | None = None) -> None: ...
    async def key(self, key_id: str) -> ApiKey: ...
    async def given_end(self, key: ApiKey) -> str | None: ...
    async def keys(self, org_id: str, after: ApiKey | None = None, most: int = PAGE) -> list[ApiKey]: ...
    async def revoke_key(self, key_id: str, at: datetime, act: Act) -> ApiKey: ...
    async def set_key_limits(
        self, key_id: str, changes: Mapping[str, int | None], at: datetime, act: Act
    ) -> ApiKey: ...
    async def last_used(self, org_id: str) -> dict[str, int]: ...
    async def origins(self, at: datetime) -> set[str]: ...

    async def add_credit(self, new: NewCredit, at: datetime, act: Act) -> bool: ...
    async def credit(self, credit_id: str) -> Credit: ...
    async def credits(
        self,
        org_id: str | None,
        before: CreditKey | None,
        most: int,
        *,
        kind: CreditType | None = None,
        first_at: str = "",
        end_at: str = LATEST,
    ) -> list[Credit]: ...
    def month_credits(
        self, month: str, *, org_id: str | None = None, first: str = "", last: str = LATEST
    ) -> AsyncIterator[Sequence[Credit]]: ...
    async def complete_credit(self, credit_id: str, facts: Mapping[str, str], at: datetime, act: Act) -> bool: ...
    async def balances_at(self, day: str, after: BalanceAt | None = None, most: int = PAGE) -> list[BalanceAt]: ...
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
    ) -> tuple[Refund, bool]: ...
    async def order(self, order_id: str) -> OrderRecord: ...

    async def at_rate(self, org_id: str, month: str, mxn_per_usd: Decimal) -> AtRate: ...
    async def correct_rate(self, found: AtRate, month: str, reason: str, at: datetime, act: Act) -> bool: ...
    async def propose_adjustment(
        self, org_id: str, micro_mxn: int, reason: str, corrects: str | None, at: datetime, act: Act
    ) -> Adjustment: ...
    async def approve_adjustment(self, proposal_id: int, at: datetime, act: Act) -> Adjustment: ...
    async def adjustments(self, before: int, most: int) -> list[Adjustment]: ...
    async def adjustment(self, proposal_id: int) -> Adjustment: ...

    async def written(self, actor: str, key: str) -> tuple[str, str] | None: ...
    async def audits(
        self, org_id: str | None, before: int, most: int, *, actor: str | None = None, action: str | None = None
    ) -> list[Audit]: ...
    async def usage(
        self,
        org_id: str,
        first: str,
        last: str,
        by: Collection[str],
        most: int,
        key_ids: Collection[str] | None = None,
    ) -> list[UsageRow]: ...
    async def usage_by(
        self,
        org_id: str,
        first: str,
        last: str,
        by: Collection[str],
        label: Label,
        prefix: str,
        most: int,
        key_ids: Collection[str] | None = None,
    ) -> tuple[list[UsageRow], UsageRow]: ...
    async def pseudonym_secret(self) -> str: ...
    async def tell_end_users(self, told: Sequence[EndUser]) -> None: ...
    async def end_user(self, org_id: str, pseudonym: str) -> EndUserUse: ...
    async def erase_end_user(self, org_id: str, pseudonym: str, at: datetime, act: Act) -> bool: ...
    async def usage_of_orgs(
        self, org_id: str | None, first: str, last: str, by: Collection[UsageBy], most: int
    ) -> list[OrgUsage]: ...
    async def notices(
        self,
        org_id: str | None,
        before: str,
        most: int,
        *,
        what: str | None = None,
        after: tuple[str, int, str, str, str] | None = None,
    ) -> list[Notice]: ...

    async def add_rate(
        self,
        rate: FxRate,
        at: datetime,
        act: Act | None = None,
        *,
        origin: FxOrigin | None = None,
        approved: bool = False,
    ) -> bool: ...
    async def approve_rate(
        self, month: str, mxn_per_usd: Decimal, at: datetime, act: Act, *, rate_id: int | None = None
    ) -> FxRecord: ...
    async def rate_records(self) -> list[FxRecord]: ...
    async def rates(self) -> list[FxRate]: ...
    async def rate_rows(self) -> set[tuple[str, Decimal]]: ...
    async def register_prices(
        self, version: str, markup: Decimal, prices: Sequence[ListPrice], at: datetime
    ) -> None: ...
    async def list_prices(
        self, book: PriceBook, now_us: int, at: datetime, lost: Mapping[tuple[str, str], ListedSchedule] | None = None
    ) -> bool: ...
    async def last_price_list(self) -> PriceListId: ...
    async def price_schedules(self) -> dict[tuple[str, str], list[ListedSchedule]]: ...

    async def last_change(self) -> int: ...
    async def begin_rebuild(self, at: datetime) -> int: ...
    async def fingerprints(self, changes: Collection[int]) -> dict[int, str]: ...
    async def changed_since(self, change: int) -> list[str]: ...
    async def known_orgs(self, org_ids: Sequence[str]) -> set[str]: ...
    async def known_keys(self, key_ids: Sequence[str]) -> set[str]: ...
    async def known_hashes(self, key_hashes: Sequence[str]) -> set[str]: ...
    async def snapshots(self, org_ids: Sequence[str], period: Period) -> list[Snapshot]: ...

    async def book(
        self,
        events: Sequence[Event],
        set_aside: Sequence[SetAside],
        at: datetime,
        calls: Sequence[WebhookCall] = (),
    ) -> set[str]: ...
    async def book_notices(
        self, notices: Sequence[Notice], calls: Mapping[Notice, WebhookCall] | None = None
    ) -> list[Notice]: ...
    async def ended(self, order_ids: Sequence[str]) -> dict[str, Ended]: ...
    async def keyed(self, org_ids: Sequence[str], since_us: int) -> list[Keyed]: ...
    async def charged_since(self, org_ids: Sequence[str], since_us: int) -> list[tuple[str, str, int]]: ...
    async def result(self, org_id: str, order_id: str) -> Delivered | None: ...
    async def results(
        self, org_id: str, after: ResultKey | None = None, most: int = PAGE, key_ids: Collection[str] | None = None
    ) -> list[Listed]: ...
    async def charged(self, org_ids: Sequence[str]) -> dict[str, Charged]: ...
    async def charged_up_to(self, org_id: str, number: int = LAST) -> Charged: ...
    async def recount(self, org_id: str, number: int = LAST) -> Charged: ...
    async def missing_numbers(self, org_id: str, number: int, most: int) -> list[tuple[int, int]]: ...
    async def refunded_above(self) -> list[tuple[str, str, int, int]]: ...
    async def note(self, act: Act, at: datetime) -> None: ...
    async def open_incarnation(self, incarnation: UUID, at: datetime, host: str = "") -> None: ...
    async def close_incarnation(
        self, incarnation: UUID, last_number: int, at: datetime, charged: Collection[str] = ()
    ) -> bool: ...
    async def open_incarnations(self) -> list[UUID]: ...
    async def incarnation(self, incarnation: UUID) -> Incarnation: ...
    async def lose_incarnation(self, incarnation: UUID, reason: str, at: datetime, act: Act) -> bool: ...
    async def ends(self, order_ids: Sequence[str]) -> set[tuple[str, End]]: ...
    async def count_set_aside(self) -> int: ...
    async def set_asides(self, after: SetAside | None = None, most: int = PAGE) -> list[SetAside]: ...
    async def set_aside(self, partition: int, entry_id: str) -> SetAside: ...
    async def set_aside_of(self, order_ids: Collection[str]) -> set[str]: ...
    async def end_set_aside(self, entry: SetAside, at: datetime, act: Act) -> bool: ...
    async def price_rows(self) -> dict[tuple[str, str, str], tuple[Decimal, Decimal]]: ...
    def events(self, *, org_id: str | None = None, since_us: int = 0) -> AsyncIterator[Event]: ...
    async def closed_months(self) -> list[ClosedMonth]: ...
    async def close_month(self, month: str, at: datetime, act: Act) -> bool: ...
    async def seal_month(self, month: str, manifest: str, sums: Sequence[MonthSums], at: datetime) -> None: ...
    async def manifest(self, month: str) -> str | None: ...
    async def month_sums(
        self,
        month: str,
        after: MonthSums | None = None,
        most: int = PAGE,
        *,
        org_id: str | None = None,
        anew: bool = False,
    ) -> list[MonthSums]: ...
    async def names(self, month: str, org_id: str) -> Names: ...
    async def month_facts(self, month: str, org_id: str, *, max_tags: int, max_credits: int) -> MonthFacts: ...
    def charges(
        self, month: str, *, org_id: str | None = None, first: str = "", last: str = LATEST, charged: bool = True
    ) -> AsyncIterator[Sequence[Charge]]: ...
    def refunds(
        self, month: str, *, org_id: str | None = None, first: str = "", last: str = LATEST
    ) -> AsyncIterator[Refunded]: ...

    async def provider_sums(self, months: Sequence[str], first_us: int, end_us: int) -> list[HourSum]: ...
    def placed(self, provider: str, months: Sequence[str], first_us: int, end_us: int) -> AsyncIterator[Placed]: ...
    async def charged_in(self, month: str, order_ids: Sequence[str]) -> set[str]: ...
    async def add_reconciliation(self, found: Reconciliation, at: datetime, act: Act) -> Reconciliation: ...
    async def reconciliations(self, month: str | None, before: int, most: int) -> list[Reconciliation]: ...
