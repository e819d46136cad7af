"""The ledger in SQLite, for one machine: a connection in a thread, off the event loop, and another for long reads."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from metering.ledger.queries import named_queries, pending
from metering.ledger.record import SqlLedger
from metering.ledger.transactions import Mode, Steps
from metering.ports import DatabaseRefused, LedgerAway, LedgerError, LedgerMisconfigured

T = TypeVar("T")

BUSY_S = 5.0
"""How long a writer waits for another process's write before the ledger counts as away."""

_BEGIN: dict[Mode, str] = {
    "read": "BEGIN DEFERRED",
    "report": "BEGIN DEFERRED",
    "scan": "BEGIN DEFERRED",
    "book": "BEGIN IMMEDIATE",
    "write": "BEGIN IMMEDIATE",
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
"""What fails until somebody mends it; of anything else waiting may be enough."""


class SqliteLedger(SqlLedger):
    """The record in one file. Create it with `open_sqlite`; every method may raise LedgerAway."""

    dialect = "sqlite"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sql = named_queries(self.dialect)
        self._short, self._long = Lane(path, "ledger"), Lane(path, "ledger-long")

    async def migrate(self) -> int:
        """Bring the schema up to date under the database's write lock; returns its version."""
        return await self._in(self._short, self._migrate)

    async def check_schema(self) -> None:
        """Raises LedgerError when it is not the one that this version needs; a file that is not there is not made."""
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
            rows = db.execute(self._sql[query], values).fetchall()

    def _book(self, rows: list[dict[str, Any]]) -> Steps[set[str]]:
        new = set()
        for row in rows:
            if (yield "book_event", row):
                new.add(row["event_id"])
                if row["amount_micro_mxn"]:
                    yield "book_consumption", row
        return new

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
    """One connection and the only thread that uses it; nothing in another lane waits for it."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    @contextmanager
    def transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        """In the lane's thread."""
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
        """In the lane's thread."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
            _use_wal(db)
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            self._connection = db
        return self._connection


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
        except sqlite3.DatabaseError as error:
            if _code(error) in _TO_BE_MENDED or time.monotonic() > give_up_s:
                db.close()
                raise
            time.sleep(0.01)


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary code."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE)  # Python's own errors have none
    return code & 0xFF


def _statements(script: str) -> Iterator[str]:
    """`executescript` would commit first; a migration is one transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
