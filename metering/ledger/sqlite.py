"""The ledger in SQLite, for one machine: a connection in a thread, off the event loop, and another for long reads."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Context, Decimal, Inexact
from pathlib import Path
from typing import Any, TypeVar

from metering.events import Event
from metering.ledger.queries import named_queries, pending
from metering.ledger.record import SqlLedger
from metering.ledger.rows import event_row
from metering.ledger.transactions import Closed, Mode, Steps, as_json
from metering.ports import DatabaseRefused, LedgerAway, LedgerError, LedgerMisconfigured

T = TypeVar("T")

BUSY_S = 5.0
"""How long a writer waits for another process's write. After it the ledger counts as away."""

CACHE_KIB = 32 * 1024
"""Maximum memory for pages of each connection.

A booking changes pages all over the indexes of ids. What does not fit is written to the disk and read again before the
transaction ends.
"""

CHECKPOINT_PAGES = 16_384
"""Pages in the write-ahead log, of 4 KiB each, from which on a commit copies them into the file.

Most are changed by many bookings, and are copied once.
"""

_BEGIN: dict[Mode, str] = {
    "read": "BEGIN DEFERRED",
    "report": "BEGIN DEFERRED",
    "scan": "BEGIN DEFERRED",
    "book": "BEGIN IMMEDIATE",
    "write": "BEGIN IMMEDIATE",
    "close": "BEGIN IMMEDIATE",
}


_TO_BE_MENDED = (
    sqlite3.SQLITE_ERROR,  # no such table, for example
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_NOTADB,
)
"""Errors that need a person to repair them. After any other, waiting may be enough."""


_EXACT = Context(prec=100, traps=[Inexact])


class SqliteLedger(SqlLedger):
    """The record in one file, created by `open_sqlite`. Every method may raise LedgerAway."""

    dialect = "sqlite"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sql = named_queries(self.dialect)
        self._short, self._long = Lane(path, "ledger"), Lane(path, "ledger-long")

    async def migrate(self) -> int:
        """Bring the schema up to date under the database's write lock; returns its version."""
        return await self._in(self._short, self._migrate)

    async def check_schema(self) -> None:
        """Raise LedgerError if the schema is not the one that this version needs. A missing file is not created."""
        if not await self._in(self._short, self._path.exists):
            raise LedgerError(f"GHUB_LEDGER_URL: {self._path} cannot be used: it is not there; run `ghub migrate`")
        await super().check_schema()

    async def aclose(self) -> None:
        """Close the file and end the threads."""
        for lane in (self._short, self._long):
            await self._in(lane, lane.close)
            lane.thread.shutdown(wait=True)

    async def _run(self, mode: Mode, steps: Callable[[], Steps[T]]) -> T:
        lane = self._long if mode in ("report", "scan") else self._short

        def work() -> T:
            with lane.transaction(_BEGIN[mode]) as db:
                return self._walk(db, steps())

        return await self._in(lane, work)

    async def _in(self, lane: "Lane", work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(lane.thread, work)
        except (sqlite3.IntegrityError, OverflowError) as error:
            raise DatabaseRefused(f"the ledger refuses: {error}") from error
        except OSError as error:
            raise LedgerMisconfigured(f"{self._path} cannot be used: {error.strerror}") from error
        except sqlite3.DatabaseError as error:
            if _code(error) in _TO_BE_MENDED:
                raise LedgerMisconfigured(f"{self._path} cannot be used: {error}") from error
            if isinstance(error, sqlite3.OperationalError):
                raise LedgerAway(str(error)) from error
            raise

    def _walk(self, db: sqlite3.Connection, steps: Steps[T]) -> T:
        rows: list[tuple[Any, ...]] | None = None
        while True:
            try:
                query, values = steps.send(rows)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(values, list):
                rows = db.executemany(self._sql[query], [tuple(row.values()) for row in values]).fetchall()
            else:
                rows = db.execute(self._sql[query], values).fetchall()

    def _book(self, events: Sequence[Event], booked_at: str, closed: Closed) -> Steps[set[str]]:
        # There is one writer, so what is missing now stays missing until it is inserted.
        ends = yield "ends", {"ids": as_json([event.event_id for event in events])}
        known = {(event_id, end == "charge") for event_id, end in ends}
        new = []
        for event in events:
            if (name := (event.event_id, event.end == "charge")) not in known:
                known.add(name)
                new.append(event_row(event, booked_at, closed.posting(event.opened.month)))
        yield "book_events", new
        yield "book_consumption", [_consumption(row) for row in new if row["amount_micro_mxn"]]
        return {row["event_id"] for row in new}

    def _migrate(self) -> int:
        with self._short.transaction("BEGIN EXCLUSIVE") as db:
            db.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY) STRICT")
            ((current,),) = db.execute(self._sql["schema_version"]).fetchall()
            for version, script in pending(self.dialect, current):
                for statement in _statements(script):
                    db.execute(statement)
                db.execute("INSERT INTO schema_version VALUES (?)", (version,))
                current = version
        return int(current)


class Lane:
    """One connection, and the only thread that uses it. Other lanes do not wait for it."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    @contextmanager
    def transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        """Run a block as one transaction, in the lane's thread."""
        db = self._db()
        db.execute(begin)
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the connection, in the lane's thread."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
            _use_wal(db)
            db.execute("PRAGMA synchronous = FULL")
            db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            db.execute("PRAGMA foreign_keys = ON")
            db.create_aggregate("sum_usd", 1, _UsdSum)  # type: ignore[arg-type]  # it takes a number of values
            self._connection = db
        return self._connection


class _UsdSum:
    """The exact sum of decimal text, as text; null if there is nothing to sum."""

    def __init__(self) -> None:
        self._sum: Decimal | None = None

    def step(self, usd: Any, /) -> None:
        """Add one value."""
        if usd is not None:
            self._sum = _EXACT.add(self._sum or Decimal(0), Decimal(usd))

    def finalize(self) -> str | None:
        """Give the sum to SQLite."""
        return None if self._sum is None else f"{self._sum:f}"


def open_sqlite(url: str) -> SqliteLedger:
    """Open `sqlite:///relative.db` or `sqlite:////absolute.db`. A missing folder is created later."""
    return SqliteLedger(Path(url.removeprefix("sqlite:///")))


def _consumption(row: dict[str, Any]) -> dict[str, Any]:
    """Build the credit transaction of an event's row."""
    return {
        "id": row["event_id"],
        "org_id": row["org_id"],
        "amount_micro_mxn": -row["amount_micro_mxn"],
        "at": row["booked_at"],
    }


def _use_wal(db: sqlite3.Connection) -> None:
    """Wait for others that open a new file at the same moment, because SQLite itself does not wait here."""
    give_up_s = time.monotonic() + BUSY_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.DatabaseError as error:
            if _code(error) in _TO_BE_MENDED or time.monotonic() > give_up_s:
                db.close()
                raise
            time.sleep(0.01)


def _code(error: sqlite3.Error) -> int:
    """Find SQLite's primary error code."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE)  # Python's own errors have none
    return code & 0xFF


def _statements(script: str) -> Iterator[str]:
    """Split a script into statements. `executescript` would commit first, but a migration is one transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
