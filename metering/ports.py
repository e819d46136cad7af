"""The seam to the permanent record: what this layer asks of a ledger."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal, Protocol
from uuid import UUID

from metering.events import End, Event, StoredImage
from metering.pricing import Rate

LAST = 2**53
"""Above every event number."""

CreditType = Literal["bonus", "recharge", "refund", "adjustment"]


class LedgerError(Exception):
    """The record refuses: the message is a sentence for whoever asked."""


class LedgerAway(Exception):
    """The database did not answer in time, or not at all."""


@dataclass(frozen=True, slots=True)
class Org:
    """An organisation. Its own limits are None where the plan's hold."""

    org_id: str
    name: str
    plan: str
    requests_per_minute: int | None
    images_per_minute: int | None
    created_at: str


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without the key: its hash is all that is kept."""

    key_id: str
    org_id: str
    name: str
    key_hash: str
    created_at: str
    revoked_at: str | None

    @property
    def state(self) -> str:
        """`active` or `revoked`."""
        return "revoked" if self.revoked_at else "active"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One organisation as the record has it at one moment: everything that its projection needs."""

    org: Org
    revision: int
    credit_number: int
    credits_micro_mxn: int
    keys: tuple[ApiKey, ...]


@dataclass(frozen=True, slots=True)
class Charged:
    """The ledger's view of one organisation up to one of its event numbers."""

    events: int
    last_event: int
    charged_micro_mxn: int


@dataclass(frozen=True, slots=True)
class Ended:
    """How the ledger has an order; `paths` names its stored images."""

    end: End
    paths: frozenset[str]

    @property
    def charged(self) -> bool:
        """Does its customer pay for it?"""
        return self.end == "charge"


@dataclass(frozen=True, slots=True)
class Delivered:
    """A charged order as its owner may fetch it again; `document` is the gateway's own."""

    request_id: str
    images: tuple[StoredImage, ...]
    document: bytes


@dataclass(frozen=True, slots=True)
class Keyed:
    """A charged order that came with an idempotency key; `once` is the key's hash and the order's fingerprint."""

    request_id: str
    once: str
    amount_micro_mxn: int
    ended_us: int


@dataclass(frozen=True, slots=True)
class SetAside:
    """A stream entry that could not be booked, kept for a person."""

    partition: int
    entry_id: str
    error: str
    fields: bytes


@dataclass(frozen=True, slots=True)
class ListPrice:
    """One row of an immutable price book; `variant` is empty where a model has one price for everything."""

    model: str
    usd_per_image: Decimal
    variant: str = ""


class Ledger(Protocol):
    """Organisations, keys, credits, prices, rates and events of record. Every method may raise LedgerAway."""

    async def migrate(self) -> int: ...
    async def check_schema(self) -> None: ...
    async def aclose(self) -> None: ...

    async def create_org(self, org: Org) -> None: ...
    async def org(self, ref: str) -> Org: ...
    async def orgs(self) -> list[Org]: ...
    async def set_limits(self, org_id: str, changes: Mapping[str, int], at: datetime) -> None: ...

    async def create_key(self, key: ApiKey) -> None: ...
    async def keys(self, org_id: str) -> list[ApiKey]: ...
    async def revoke_key(self, key_id: str, at: datetime) -> ApiKey: ...

    async def add_credit(self, org_id: str, credit_id: str, kind: CreditType, micro_mxn: int, at: datetime) -> bool: ...

    async def add_rate(self, rate: Rate, at: datetime) -> bool: ...
    async def rates(self) -> list[Rate]: ...
    async def rate_rows(self) -> set[tuple[str, Decimal]]: ...
    async def register_prices(
        self, version: str, markup: Decimal, prices: Sequence[ListPrice], at: datetime
    ) -> None: ...

    async def last_change(self) -> int: ...
    async def changed_since(self, change: int) -> list[str]: ...
    async def snapshot(self, org_id: str) -> Snapshot: ...

    async def book(self, events: Sequence[Event], set_aside: Sequence[SetAside], at: datetime) -> set[str]: ...
    async def ended(self, request_ids: Sequence[str]) -> dict[str, Ended]: ...
    async def keyed(self, org_id: str, since_us: int) -> list[Keyed]: ...
    async def result(self, org_id: str, request_id: str) -> Delivered | None: ...
    async def results(self, org_id: str, most: int) -> list[Delivered]: ...
    async def charged_up_to(self, org_id: str, number: int = LAST) -> Charged: ...
    async def recount(self, org_id: str, number: int = LAST) -> Charged: ...
    async def open_incarnation(self, incarnation: UUID, at: datetime) -> None: ...
    async def close_incarnation(self, incarnation: UUID, last_number: int, at: datetime) -> None: ...
    async def open_incarnations(self) -> list[UUID]: ...
    async def count_set_aside(self) -> int: ...
    async def price_rows(self) -> dict[tuple[str, str, str], tuple[Decimal, Decimal]]: ...
    def events(self, *, org_id: str | None = None, month: str | None = None) -> AsyncIterator[Event]: ...
