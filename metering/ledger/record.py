"""The record's transactions, whichever database keeps them.

Each is a generator: it yields the name of a statement with its values, and is sent the rows. So what must hold of money
is written once, though one database is driven by a thread and the other by the event loop; and a transaction that lost
a race is simply begun again.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, Literal, TypeVar
from uuid import UUID

import orjson

from metering.clock import month_start_us, unix_us_at
from metering.events import Event, decode_images
from metering.ledger.queries import Dialect, pending
from metering.ledger.rows import Row, event_of, event_row, fields
from metering.money import MAX_MICRO_MXN, format_mxn, format_rate
from metering.ports import (
    LAST,
    ApiKey,
    Charged,
    CreditType,
    Delivered,
    Ended,
    Keyed,
    LedgerError,
    ListPrice,
    Org,
    SetAside,
    Snapshot,
)
from metering.pricing import Rate

T = TypeVar("T")
Steps = Generator[tuple[str, Mapping[str, Any]], Any, T]
"""A transaction: yields statement and values, is sent a list of rows, returns its result."""

Mode = Literal["read", "scan", "book", "write"]
"""read: one consistent cut. scan: the same, for as long as a whole history takes. book: adds events, beside others
that do. write: alone among the writers of everything else, so that what it has read still holds when it commits."""

PAGE = 1_000
"""Events fetched at a time: about 1 MB."""


class SqlLedger(ABC):
    """Everything of a ledger but the database itself. Every method may raise LedgerAway."""

    dialect: ClassVar[Dialect]

    @abstractmethod
    async def migrate(self) -> int:
        """Bring the schema up to date, one process at a time; returns its version."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close what is open; nothing may be asked any more."""

    @abstractmethod
    async def _run(self, mode: Mode, steps: Callable[[], Steps[T]]) -> T:
        """Carry a transaction out, wholly or not at all. Raises LedgerAway, LedgerError."""

    @abstractmethod
    def _book(self, rows: list[dict[str, Any]]) -> Steps[set[str]]:
        """Insert events and their consumption where they are not there yet; returns the ids of those that were not."""

    async def _rows(self, query: str, **values: Any) -> list[Row]:
        def steps() -> Steps[list[Row]]:
            rows: list[Row] = yield query, values
            return rows

        return await self._run("read", steps)

    # --- schema ---

    async def check_schema(self) -> None:
        """Raises LedgerError when the schema is not the one that this version needs."""

        def steps() -> Steps[int]:
            ((migrated,),) = yield "is_migrated", {}
            ((current,),) = (yield "schema_version", {}) if migrated else [(0,)]
            return int(current)

        current = await self._run("read", steps)
        if missing := pending(self.dialect, current):
            raise LedgerError(
                f"the ledger's schema is version {current}, this needs {missing[-1][0]}: run `ghub migrate`"
            )

    # --- organisations and keys ---

    async def create_org(self, org: Org) -> None:
        """Raises LedgerError when the name is taken."""

        def steps() -> Steps[None]:
            if (yield "org", {"ref": org.name}):
                raise LedgerError(f"an organisation named {org.name!r} exists already")
            yield "create_org", fields(org)
            yield _change(org.org_id, "org created", org.created_at)

        await self._run("write", steps)

    async def org(self, ref: str) -> Org:
        """By id or name. Raises LedgerError when there is none."""
        rows = await self._rows("org", ref=ref)
        if not rows:
            raise LedgerError(f"there is no organisation {ref!r}")
        return Org(*rows[0])

    async def orgs(self) -> list[Org]:
        """All, oldest first."""
        return [Org(*row) for row in await self._rows("orgs")]

    async def set_limits(self, org_id: str, changes: Mapping[str, int], at: datetime) -> None:
        """Set an organisation's own limits; what is not named stays."""
        values = {"requests_per_minute": None, "images_per_minute": None, **changes}

        def steps() -> Steps[None]:
            yield "set_limits", {"org_id": org_id, **values}
            yield _change(org_id, "limits", at.isoformat())

        await self._run("write", steps)

    async def create_key(self, key: ApiKey) -> None:
        """Record a key by its hash."""

        def steps() -> Steps[None]:
            yield "create_key", fields(key)
            yield _change(key.org_id, "key created", key.created_at)

        await self._run("write", steps)

    async def keys(self, org_id: str) -> list[ApiKey]:
        """All keys of an organisation, revoked ones too, oldest first."""
        return [ApiKey(*row) for row in await self._rows("keys", org_id=org_id)]

    async def revoke_key(self, key_id: str, at: datetime) -> ApiKey:
        """Revoke for good; a second time changes nothing. Raises LedgerError when there is no such key."""

        def steps() -> Steps[ApiKey]:
            revoked = yield "revoke_key", {"key_id": key_id, "at": at.isoformat()}
            rows = yield "key", {"key_id": key_id}
            if not rows:
                raise LedgerError(f"there is no key {key_id!r}")
            key = ApiKey(*rows[0])
            if revoked:
                yield _change(key.org_id, "key revoked", at.isoformat())
            return key

        return await self._run("write", steps)

    # --- credits ---

    async def add_credit(self, org_id: str, credit_id: str, kind: CreditType, micro_mxn: int, at: datetime) -> bool:
        """Add a numbered credit; False when this very credit is there already.

        Raises LedgerError when the id stands for another credit: a payment's id is used once.
        """

        def steps() -> Steps[bool]:
            if before := (yield "credit", {"id": credit_id}):
                if before[0] == (org_id, kind, micro_mxn):
                    return False
                raise LedgerError(
                    f"credit {credit_id!r} exists already: {before[0][1]} of {format_mxn(before[0][2])} MXN"
                    f" for organisation {before[0][0]}"
                )
            ((number, total),) = yield "last_credit", {"org_id": org_id}
            if abs(total + micro_mxn) > MAX_MICRO_MXN:
                raise LedgerError(f"an organisation's credits stay within ±{format_mxn(MAX_MICRO_MXN)} MXN")
            values = {"id": credit_id, "org_id": org_id, "type": kind, "number": number + 1, "at": at.isoformat()}
            yield "add_credit", {**values, "amount_micro_mxn": micro_mxn}
            yield _change(org_id, "credit", at.isoformat())
            return True

        return await self._run("write", steps)

    # --- rates and prices ---

    async def add_rate(self, rate: Rate, at: datetime) -> bool:
        """Add a month's rate; False when it is there already.

        Raises LedgerError when the month has begun with another rate.
        """

        def steps() -> Steps[bool]:
            rows = yield "rates", {}
            before = {month: Decimal(text) for month, text, _ in rows}.get(rate.month)
            if before == rate.mxn_per_usd:
                return False
            if before is not None and unix_us_at(at) >= month_start_us(rate.month):
                raise LedgerError(
                    f"{rate.month} has begun at {format_rate(before)} MXN for one USD, and a month's rate is fixed"
                )
            values = {"month": rate.month, "mxn_per_usd": format_rate(rate.mxn_per_usd), "source": rate.source}
            yield "add_rate", {**values, "at": at.isoformat()}
            return True

        return await self._run("write", steps)

    async def rates(self) -> list[Rate]:
        """The rate in force of each month, oldest month first."""
        rows = await self._rows("rates")
        return [Rate(month=month, mxn_per_usd=Decimal(rate), source=source) for month, rate, source in rows]

    async def rate_rows(self) -> set[tuple[str, Decimal]]:
        """Every rate that was ever in force, as (month, MXN for one USD)."""
        return {(month, Decimal(rate)) for month, rate in await self._rows("all_rates")}

    async def register_prices(self, version: str, markup: Decimal, prices: Sequence[ListPrice], at: datetime) -> None:
        """Write a price book down, once; a version's rows never change."""

        def steps() -> Steps[None]:
            if (yield "price_book", {"version": version}):
                return
            yield "add_price_book", {"version": version, "markup": format_rate(markup), "at": at.isoformat()}
            for price in prices:
                usd = format_rate(price.usd_per_image)
                values = {"version": version, "model": price.model, "variant": price.variant, "usd_per_image": usd}
                yield "add_price", values

        await self._run("write", steps)

    async def price_rows(self) -> dict[tuple[str, str, str], tuple[Decimal, Decimal]]:
        """(version, model, variant) → (USD per image, markup)."""
        rows = await self._rows("price_rows")
        return {
            (version, model, variant): (Decimal(usd), Decimal(markup)) for version, model, variant, usd, markup in rows
        }

    # --- projection ---

    async def last_change(self) -> int:
        """The number of the last change that Redis has to know of. None below it can appear later."""
        return int((await self._rows("last_change"))[0][0])

    async def changed_since(self, change: int) -> list[str]:
        """Ids of the organisations that changed after change number `change`."""
        return [org_id for (org_id,) in await self._rows("changed_since", change=change)]

    async def snapshot(self, org_id: str) -> Snapshot:
        """Everything that a projection needs, of one moment."""

        def steps() -> Steps[Snapshot]:
            ((number, total),) = yield "last_credit", {"org_id": org_id}
            (org,) = yield "org", {"ref": org_id}
            ((revision,),) = yield "revision", {"org_id": org_id}
            keys = yield "keys", {"org_id": org_id}
            return Snapshot(
                org=Org(*org),
                revision=revision,
                credit_number=number,
                credits_micro_mxn=total,
                keys=tuple(ApiKey(*row) for row in keys),
            )

        return await self._run("read", steps)

    # --- events ---

    async def book(self, events: Sequence[Event], set_aside: Sequence[SetAside], at: datetime) -> set[str]:
        """Write events and their consumption in one transaction; returns the ids of those that were new."""
        booked_at = at.isoformat()

        def steps() -> Steps[set[str]]:
            new = yield from self._book([event_row(event, booked_at) for event in events])
            if results := [_result_row(event) for event in events if event.result]:
                yield "add_results", {"results": orjson.dumps(results).decode()}
            for entry in set_aside:
                # Whatever came over the stream can be kept: PostgreSQL knows no text with a NUL in it.
                error = entry.error.replace("\0", "\\0")
                yield "set_aside", {**fields(entry), "error": error, "at": booked_at}
            return new

        return await self._run("book", steps)

    async def ended(self, request_ids: Sequence[str]) -> dict[str, Ended]:
        """Those of these orders that the ledger has, by request id: some hundreds at a time. A charge goes first."""
        rows = await self._rows("ended", ids=orjson.dumps(list(request_ids)).decode())
        rows.sort(key=lambda row: row[1] == "charge")
        return {
            event_id: Ended(end, frozenset(image["path"] for image in orjson.loads(images)))
            for event_id, end, images in rows
        }

    async def keyed(self, org_id: str, since_us: int) -> list[Keyed]:
        """Charged orders of an organisation that came with an idempotency key, since then."""
        return [Keyed(*row) for row in await self._rows("keyed", org_id=org_id, since_us=since_us)]

    async def result(self, org_id: str, request_id: str) -> Delivered | None:
        """What a charged order of this organisation delivered, as long as it is kept."""
        rows = await self._rows("result", org_id=org_id, request_id=request_id)
        return _delivered(rows[0]) if rows else None

    async def results(self, org_id: str, most: int) -> list[Delivered]:
        """Of an organisation, the latest first."""
        return [_delivered(row) for row in await self._rows("results", org_id=org_id, most=most)]

    async def charged_up_to(self, org_id: str, number: int = LAST) -> Charged:
        """What the ledger has of one organisation up to its event `number`, from its running total."""
        rows = await self._rows("charged_up_to", org_id=org_id, number=number)
        return Charged(*rows[0]) if rows else Charged(events=0, last_event=0, charged_micro_mxn=0)

    async def recount(self, org_id: str, number: int = LAST) -> Charged:
        """The same from the events themselves. It reads an organisation's whole history: for `verify`."""

        def steps() -> Steps[Charged]:
            (row,) = yield "recount", {"org_id": org_id, "number": number}
            return Charged(*row)

        return await self._run("scan", steps)

    async def count_set_aside(self) -> int:
        """Entries that wait for a person."""
        return int((await self._rows("count_set_aside"))[0][0])

    # --- gateways' journals ---

    async def open_incarnation(self, incarnation: UUID, at: datetime) -> None:
        """A gateway begins a journal: before it has admitted anything."""
        await self._write_one("open_incarnation", id=str(incarnation), at=at.isoformat())

    async def close_incarnation(self, incarnation: UUID, last_number: int, at: datetime) -> None:
        """Everything that its journal says is in this ledger, up to its last number. Safe to repeat."""
        await self._write_one("close_incarnation", id=str(incarnation), last_number=last_number, at=at.isoformat())

    async def open_incarnations(self) -> list[UUID]:
        """Those whose journals may say more than this ledger knows, the oldest first."""
        return [UUID(row[0]) for row in await self._rows("open_incarnations")]

    async def _write_one(self, query: str, **values: Any) -> None:
        def steps() -> Steps[None]:
            yield query, values

        await self._run("write", steps)

    async def events(self, *, org_id: str | None = None, month: str | None = None) -> AsyncIterator[Event]:
        """Booked events by month, organisation and number, a page at a time."""
        after: dict[str, Any] = {"after_month": "", "after_org_id": "", "after_number": 0, "after_event_id": ""}
        while True:
            page = [event_of(row) for row in await self._rows("events", org_id=org_id, month=month, page=PAGE, **after)]
            for event in page:
                yield event
            if len(page) < PAGE:
                return
            last = page[-1]
            after = {
                "after_month": last.opened.month,
                "after_org_id": last.opened.org_id,
                "after_number": last.number,
                "after_event_id": last.event_id,
            }


def _change(org_id: str, what: str, at: str) -> tuple[str, dict[str, str]]:
    return "change", {"org_id": org_id, "what": what, "at": at}


def _result_row(event: Event) -> dict[str, Any]:
    opened = event.opened
    return {
        "request_id": opened.request_id,
        "org_id": opened.org_id,
        "ended_us": event.ended_us,
        "document": event.result,
    }


def _delivered(row: Row) -> Delivered:
    request_id, images, document = row
    return Delivered(request_id, decode_images(images), document.encode())
