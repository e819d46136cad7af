"""The ledger in SQLite, for one machine: one connection in one thread, off the event loop."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import orjson

from metering.clock import month_start_us, unix_us_at
from metering.events import Event, Opened, Proof, StoredImage
from metering.ledger.queries import migrations, named_queries
from metering.money import MAX_MICRO_MXN, format_mxn, format_rate
from metering.ports import (
    LAST,
    ApiKey,
    Charged,
    CreditType,
    LedgerAway,
    LedgerError,
    ListPrice,
    Org,
    SetAside,
    Snapshot,
)
from metering.pricing import Rate

T = TypeVar("T")

BUSY_S = 5.0
"""How long a writer waits for another process's write before the ledger counts as away."""

PAGE = 1_000
"""Events fetched at a time: about 1 MB."""


class SqliteLedger:
    """The record in one file. Create it with `open_sqlite`; every method may raise LedgerAway."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sql = named_queries()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._connection: sqlite3.Connection | None = None

    async def aclose(self) -> None:
        """Close the file and end the thread."""
        await self._run(self._close)
        self._thread.shutdown(wait=True)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.OperationalError, OSError) as error:
            raise LedgerAway(str(error)) from error
        except (sqlite3.IntegrityError, OverflowError) as error:
            raise LedgerError(f"the ledger refuses: {error}") from error

    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
            _use_wal(db)
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            self._connection = db
        return self._connection

    def _all(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        return self._db().execute(self._sql[query], values).fetchall()

    def _one(self, query: str, **values: Any) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self._db().execute(self._sql[query], values).fetchone()
        return row

    def _do(self, query: str, **values: Any) -> int:
        return self._db().execute(self._sql[query], values).rowcount

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        db = self._db()
        db.execute(f"BEGIN {kind}")
        try:
            yield
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")

    # --- schema ---

    async def migrate(self) -> int:
        """Bring the schema up to date under the database's write lock; returns its version."""

        def work() -> int:
            db = self._db()
            with self._transaction("EXCLUSIVE"):
                db.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY) STRICT")
                (current,) = db.execute("SELECT coalesce(max(version), 0) FROM schema_version").fetchone()
                for version, script in migrations("sqlite"):
                    if version > current:
                        for statement in _statements(script):
                            db.execute(statement)
                        db.execute("INSERT INTO schema_version VALUES (?)", (version,))
                        current = version
            return int(current)

        return await self._run(work)

    async def check_schema(self) -> None:
        """Raises LedgerError when the schema is not the one that this version needs."""
        wanted = migrations("sqlite")[-1][0]

        def work() -> int:
            found = self._db().execute("SELECT count(*) FROM sqlite_master WHERE name = 'schema_version'").fetchone()
            if not found[0]:
                return 0
            return int(self._db().execute("SELECT max(version) FROM schema_version").fetchone()[0])

        current = await self._run(work)
        if current != wanted:
            raise LedgerError(f"the ledger's schema is version {current}, this needs {wanted}: run `ghub migrate`")

    # --- organisations and keys ---

    async def create_org(self, org: Org) -> None:
        """Raises LedgerError when the name is taken."""

        def work() -> None:
            with self._transaction():
                if self._all("org", ref=org.name):
                    raise LedgerError(f"an organisation named {org.name!r} exists already")
                self._do("create_org", **_fields(org))
                self._do("change", org_id=org.org_id, what="org created", at=org.created_at)

        await self._run(work)

    async def org(self, ref: str) -> Org:
        """By id or name. Raises LedgerError when there is none."""

        def work() -> Org:
            rows = self._all("org", ref=ref)
            if not rows:
                raise LedgerError(f"there is no organisation {ref!r}")
            return Org(*rows[0])

        return await self._run(work)

    async def orgs(self) -> list[Org]:
        """All, oldest first."""
        return await self._run(lambda: [Org(*row) for row in self._all("orgs")])

    async def set_limits(self, org_id: str, changes: Mapping[str, int], at: datetime) -> None:
        """Set an organisation's own limits; what is not named stays."""
        values = {"requests_per_minute": None, "images_per_minute": None, **changes}

        def work() -> None:
            with self._transaction():
                self._do("set_limits", org_id=org_id, **values)
                self._do("change", org_id=org_id, what="limits", at=at.isoformat())

        await self._run(work)

    async def create_key(self, key: ApiKey) -> None:
        """Record a key by its hash."""

        def work() -> None:
            with self._transaction():
                self._do(
                    "create_key",
                    key_id=key.key_id,
                    org_id=key.org_id,
                    name=key.name,
                    key_hash=key.key_hash,
                    created_at=key.created_at,
                )
                self._do("change", org_id=key.org_id, what="key created", at=key.created_at)

        await self._run(work)

    async def keys(self, org_id: str) -> list[ApiKey]:
        """All keys of an organisation, revoked ones too, oldest first."""
        return await self._run(lambda: [ApiKey(*row) for row in self._all("keys", org_id=org_id)])

    async def revoke_key(self, key_id: str, at: datetime) -> ApiKey:
        """Revoke for good; a second time changes nothing. Raises LedgerError when there is no such key."""

        def work() -> ApiKey:
            with self._transaction():
                changed = self._do("revoke_key", key_id=key_id, at=at.isoformat())
                rows = self._all("key", key_id=key_id)
                if not rows:
                    raise LedgerError(f"there is no key {key_id!r}")
                key = ApiKey(*rows[0])
                if changed:
                    self._do("change", org_id=key.org_id, what="key revoked", at=at.isoformat())
            return key

        return await self._run(work)

    # --- credits ---

    async def add_credit(self, org_id: str, credit_id: str, kind: CreditType, micro_mxn: int, at: datetime) -> bool:
        """Add a numbered credit; False when this very credit is there already.

        Raises LedgerError when the id stands for another credit: a payment's id is used once.
        """

        def work() -> bool:
            with self._transaction():
                before = self._all("credit", id=credit_id)
                if before:
                    if before[0] == (org_id, kind, micro_mxn):
                        return False
                    raise LedgerError(
                        f"credit {credit_id!r} exists already: {before[0][1]} of {format_mxn(before[0][2])} MXN"
                        f" for organisation {before[0][0]}"
                    )
                number, total = self._one("last_credit", org_id=org_id)
                if abs(total + micro_mxn) > MAX_MICRO_MXN:
                    raise LedgerError(f"an organisation's credits stay within ±{format_mxn(MAX_MICRO_MXN)} MXN")
                self._do(
                    "add_credit",
                    id=credit_id,
                    org_id=org_id,
                    type=kind,
                    number=number + 1,
                    amount_micro_mxn=micro_mxn,
                    at=at.isoformat(),
                )
                self._do("change", org_id=org_id, what="credit", at=at.isoformat())
            return True

        return await self._run(work)

    # --- rates and prices ---

    async def add_rate(self, rate: Rate, at: datetime) -> bool:
        """Add a month's rate; False when it is there already.

        Raises LedgerError when the month has begun with another rate.
        """

        def work() -> bool:
            with self._transaction():
                before = {row[0]: Decimal(row[1]) for row in self._all("rates")}.get(rate.month)
                if before == rate.mxn_per_usd:
                    return False
                if before is not None and unix_us_at(at) >= month_start_us(rate.month):
                    raise LedgerError(
                        f"{rate.month} has begun at {format_rate(before)} MXN for one USD, and a month's rate is fixed"
                    )
                self._do(
                    "add_rate",
                    month=rate.month,
                    mxn_per_usd=format_rate(rate.mxn_per_usd),
                    source=rate.source,
                    at=at.isoformat(),
                )
            return True

        return await self._run(work)

    async def rates(self) -> list[Rate]:
        """The rate in force of each month, oldest month first."""
        rows = await self._run(lambda: self._all("rates"))
        return [Rate(month=month, mxn_per_usd=Decimal(rate), source=source) for month, rate, source in rows]

    async def rate_rows(self) -> set[tuple[str, Decimal]]:
        """Every rate that was ever in force, as (month, MXN for one USD)."""
        rows = await self._run(lambda: self._all("all_rates"))
        return {(month, Decimal(rate)) for month, rate in rows}

    async def register_prices(self, version: str, markup: Decimal, prices: Sequence[ListPrice], at: datetime) -> None:
        """Write a price book down, once; a version's rows never change."""

        def work() -> None:
            with self._transaction():
                if self._do("add_price_book", version=version, markup=format_rate(markup), at=at.isoformat()):
                    for price in prices:
                        self._do(
                            "add_price",
                            version=version,
                            model=price.model,
                            variant=price.variant,
                            usd_per_image=format_rate(price.usd_per_image),
                        )

        await self._run(work)

    async def price_rows(self) -> dict[tuple[str, str, str], tuple[Decimal, Decimal]]:
        """(version, model, variant) → (USD per image, markup)."""
        rows = await self._run(lambda: self._all("price_rows"))
        return {
            (version, model, variant): (Decimal(usd), Decimal(markup)) for version, model, variant, usd, markup in rows
        }

    # --- projection ---

    async def last_change(self) -> int:
        """The number of the last change that Redis has to know of."""
        return await self._run(lambda: int(self._one("last_change")[0]))

    async def changed_since(self, change: int) -> list[str]:
        """Ids of the organisations that changed after change number `change`."""
        return await self._run(lambda: [row[0] for row in self._all("changed_since", change=change)])

    async def snapshot(self, org_id: str) -> Snapshot:
        """Everything that a projection needs, of one moment."""

        def work() -> Snapshot:
            with self._transaction("DEFERRED"):
                number, total = self._one("last_credit", org_id=org_id)
                return Snapshot(
                    org=Org(*self._one("org", ref=org_id)),
                    revision=self._one("revision", org_id=org_id)[0],
                    credit_number=number,
                    credits_micro_mxn=total,
                    keys=tuple(ApiKey(*row) for row in self._all("keys", org_id=org_id)),
                )

        return await self._run(work)

    # --- events ---

    async def book(self, events: Sequence[Event], set_aside: Sequence[SetAside], at: datetime) -> set[str]:
        """Write events and their consumption in one transaction; returns the ids of those that were new."""
        booked_at = at.isoformat()

        def work() -> set[str]:
            new = set()
            with self._transaction():
                for event in events:
                    row = _event_row(event) | {"booked_at": booked_at}
                    if self._do("book_event", **row):
                        new.add(event.event_id)
                        if event.amount_micro_mxn:
                            self._do(
                                "book_consumption",
                                event_id=row["event_id"],
                                org_id=row["org_id"],
                                amount_micro_mxn=row["amount_micro_mxn"],
                                booked_at=booked_at,
                            )
                for entry in set_aside:
                    self._do("set_aside", **_fields(entry), at=booked_at)
            return new

        return await self._run(work)

    async def charged_up_to(self, org_id: str, number: int = LAST) -> Charged:
        """What the ledger has of one organisation up to its event `number`."""
        return await self._run(lambda: Charged(*self._one("charged_up_to", org_id=org_id, number=number)))

    async def count_set_aside(self) -> int:
        """Entries that wait for a person."""
        return await self._run(lambda: int(self._one("count_set_aside")[0]))

    async def events(self, *, org_id: str | None = None, month: str | None = None) -> AsyncIterator[Event]:
        """Booked events by month, organisation and number, a page at a time."""
        after: tuple[str, str, int, str] = ("", "", 0, "")
        while True:
            month_, org_, number_, event_ = after
            rows = await self._run(
                lambda m=month_, o=org_, n=number_, e=event_: self._all(  # type: ignore[misc]
                    "events",
                    org_id=org_id,
                    month=month,
                    after_month=m,
                    after_org_id=o,
                    after_number=n,
                    after_event_id=e,
                    page=PAGE,
                )
            )
            for row in rows:
                yield _event(row)
            if len(rows) < PAGE:
                return
            last = _event(rows[-1])
            after = (last.opened.month, last.opened.org_id, last.number, last.event_id)


def open_sqlite(url: str) -> SqliteLedger:
    """`sqlite:///relative.db` or `sqlite:////absolute.db`; the folder is made where it is missing."""
    return SqliteLedger(Path(url.removeprefix("sqlite:///")))


def _use_wal(db: sqlite3.Connection) -> None:
    """Waits for others that open a new file at the same moment: here SQLite itself does not."""
    give_up_s = time.monotonic() + BUSY_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > give_up_s:
                db.close()
                raise
            time.sleep(0.01)


def _statements(script: str) -> Iterator[str]:
    """`executescript` would commit first; a migration is one transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _fields(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}


def _event_row(event: Event) -> dict[str, Any]:
    opened, proof = event.opened, event.opened.proof
    return {
        "event_id": event.event_id,
        "org_id": opened.org_id,
        "number": event.number,
        "key_id": opened.key_id,
        "model": opened.model,
        "provider": opened.provider,
        "upstream": opened.upstream,
        "size": opened.size,
        "quality": opened.quality,
        "region": opened.region,
        "day": opened.day,
        "month": opened.month,
        "images_asked": opened.images,
        "end": event.end,
        "reason": event.reason,
        "quantity": event.quantity,
        **_fields(proof),
        "usd_measured": event.usd_measured,
        "amount_micro_mxn": event.amount_micro_mxn,
        "admitted_us": event.admitted_us,
        "ended_us": event.ended_us,
        "images": orjson.dumps([_fields(image) for image in event.images]).decode(),
    }


def _event(row: tuple[Any, ...]) -> Event:
    (
        number,
        event_id,
        org_id,
        key_id,
        model,
        provider,
        upstream,
        size,
        quality,
        asked,
        day,
        month,
        region,
    ) = row[:13]
    (end, reason, quantity, usd_measured, amount, admitted_us, ended_us, images) = row[21:]
    return Event(
        number=number,
        opened=Opened(
            request_id=event_id,
            org_id=org_id,
            key_id=key_id,
            model=model,
            provider=provider,
            upstream=upstream,
            size=size,
            quality=quality,
            images=asked,
            day=day,
            month=month,
            region=region,
            proof=Proof(*row[13:21]),
        ),
        end=end,
        reason=reason,
        quantity=quantity,
        amount_micro_mxn=amount,
        admitted_us=admitted_us,
        ended_us=ended_us,
        images=tuple(StoredImage(**image) for image in orjson.loads(images)),
        usd_measured=usd_measured,
    )
