"""The ledger in PostgreSQL, for production: any number of gateways, consumers and commands at once.

A session keeps nothing between two transactions (no prepared statement, no setting). So it also works behind a pooler
that gives every transaction another server.
"""

import asyncio
import os
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Self, TypeVar

import orjson
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import DeadlockDetected, SerializationFailure
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from metering.events import Event
from metering.ledger.queries import named_queries, pending
from metering.ledger.record import SqlLedger
from metering.ledger.rows import Row, event_row
from metering.ledger.transactions import Closed, Mode, Steps
from metering.ports import DatabaseRefused, LedgerAway, LedgerMisconfigured

T = TypeVar("T")

CONNECTIONS = 4
"""Maximum connections of one process, opened only when needed.

A consumer books one batch at a time, and a gateway polls for changes and rates. Twenty processes stay below a new
server's limit of 100.
"""

CONNECT_S = 3.0
"""Timeout for name resolution, TCP, TLS and log-in. If an address names several hosts, for each of them."""

CALL_S = 5.0
"""Timeout for a free connection, its turn and the work together.

After it the ledger counts as away, as in SQLite. A full batch takes about 100 ms.
"""

SCAN_S = 600.0
"""Timeout for a migration, and for reading a whole history: ten million events take a few seconds."""

ATTEMPTS = CONNECTIONS + 1
"""How often a transaction is tried if it lost a race, or if its connection was dead before it began.

After a restart of the server, every connection in the pool is dead.
"""

_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
"""Each statement sees what was committed before it.

A snapshot from the transaction's beginning would be older than the turn that the transaction then waits for.
"""

_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

_TURNS: dict[Mode, tuple[str, ...]] = {
    "write": ("take_turn",),
    "book": ("while_no_month_closes",),
    "close": ("while_nobody_books", "take_turn"),
}
"""The locks for which a transaction waits before it begins to read."""

_USUAL: dict[str, Any] = {
    "application_name": "ghub",
    "connect_timeout": round(CONNECT_S),
    "target_session_attrs": "read-write",  # a standby may lag, and a wallet rebuilt from it would have money twice
}


_REFUSED = re.compile(
    r"password authentication failed.*|no password supplied|role .* does not exist|database .* does not exist"
    r"|permission denied for database .*|role .* is not permitted to log in|.*pg_hba\.conf.*|session is read-only"
)
"""Log-in failures that need a person to repair them. libpq gives no code, only the server's words; no password is in
them.
"""

_UNTRUSTED = re.compile(
    r"root certificate file .* does not exist|could not read root certificate file .*|certificate verify failed.*"
    r"|server certificate for .* does not match host name .*|server does not support SSL.*"
)
"""TLS failures that need a person, in libpq's words."""

_HINTS = {
    "42501": "grant its role SELECT and INSERT on the ledger's tables, as docs/operations.md says",
    "42P01": "run `ghub migrate`, or set the role's search_path to the schema of the ledger",
    "25006": "it takes no writes: is its disk full, or is it a standby?",
}
_CLASSES = {"42": "run `ghub migrate`", "3D": "create it", "3F": "create it", "28": "look at the role and its password"}
"""What to do, by SQLSTATE or its class, for failures that need a person to repair them."""


class PostgresLedger(SqlLedger):
    """The record in a PostgreSQL database, created by `open_postgres`. Every method may raise LedgerAway."""

    dialect = "postgres"

    def __init__(self, conninfo: str) -> None:
        self._sql = {name: sql.encode() for name, sql in named_queries(self.dialect).items()}
        self._pool = AsyncConnectionPool(
            conninfo,
            connection_class=_Line,
            kwargs={"autocommit": True, "prepare_threshold": None},
            min_size=0,
            max_size=CONNECTIONS,
            reconnect_timeout=CALL_S,
            open=False,
        )

    async def migrate(self) -> int:
        """Bring the schema up to date, one process at a time; returns its version."""

        async def work(line: _Line) -> int:
            await line.execute(self._sql["take_turn"])
            await line.execute("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT PRIMARY KEY)")
            ((current,),) = await (await line.execute(self._sql["schema_version"])).fetchall()
            for version, script in pending(self.dialect, current):
                await line.execute(script.encode())
                await line.execute("INSERT INTO schema_version VALUES (%s)", (version,))
                current = version
            return int(current)

        return await self._transaction(_WRITE, SCAN_S, work)

    async def aclose(self) -> None:
        await self._pool.close()

    async def _run(self, mode: Mode, steps: Callable[[], Steps[T]]) -> T:
        async def work(line: _Line) -> T:
            for turn in _TURNS.get(mode, ()):
                await line.execute(self._sql[turn])
            return await self._walk(line, steps())

        begin = _WRITE if mode in _TURNS else _READ
        return await self._transaction(begin, SCAN_S if mode == "scan" else CALL_S, work)

    def _book(self, events: Sequence[Event], booked_at: str, closed: Closed) -> Steps[set[str]]:
        booked = yield "book", [event_row(event, booked_at, closed.posting(event.opened.month)) for event in events]
        return {event_id for (event_id,) in booked}

    async def _walk(self, line: "_Line", steps: Steps[T]) -> T:
        rows: list[Row] | None = None
        while True:
            try:
                query, values = steps.send(rows)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(values, list):
                values = {"rows": orjson.dumps(values).decode()}
            cursor = await line.execute(self._sql[query], values)
            rows = await cursor.fetchall() if cursor.description else []

    async def _transaction(self, begin: str, limit_s: float, work: Callable[["_Line"], Awaitable[T]]) -> T:
        until_s = asyncio.get_running_loop().time() + limit_s
        try:
            for _ in range(ATTEMPTS - 1):
                with suppress(SerializationFailure, DeadlockDetected, _NotBegun):
                    return await self._attempt(begin, limit_s, until_s, work)
            return await self._attempt(begin, limit_s, until_s, work)
        except PoolTimeout as error:
            if refused := _REFUSED.search(_Line.failure):
                raise LedgerMisconfigured(f"the database refuses: {refused[0]}") from error
            if untrusted := _UNTRUSTED.search(_Line.failure):
                raise LedgerMisconfigured(
                    f"GHUB_LEDGER_URL: {untrusted[0]}; name who signed the server's certificate:"
                    " sslrootcert=/path/ca.pem, or sslrootcert=system for public ones"
                ) from error
            raise LedgerAway(f"no connection: {_Line.failure or 'all are in use'}") from error
        except (psycopg.DataError, psycopg.IntegrityError, orjson.JSONEncodeError) as error:
            raise DatabaseRefused(f"the ledger refuses: {error}") from error
        except psycopg.Error as error:
            if (hint := _hint(error.sqlstate)) is not None:
                raise LedgerMisconfigured(f"the database refuses: {error.diag.message_primary}; {hint}") from error
            raise LedgerAway(str(error)) from error
        except OSError as error:
            raise LedgerAway(str(error)) from error

    async def _attempt(self, begin: str, limit_s: float, until_s: float, work: Callable[["_Line"], Awaitable[T]]) -> T:
        loop = asyncio.get_running_loop()
        await self._pool.open()
        line = await self._connection(until_s)
        deadline = loop.call_at(until_s, line.hang_up)
        try:
            async with line:  # commits, or rolls back
                await line.begin(begin, limit_s)
                return await work(line)
        finally:
            deadline.cancel()
            await self._pool.putconn(line)

    async def _connection(self, until_s: float) -> "_Line":
        """Wait for a connection until `until_s`, but at most CALL_S if none can be opened. Raises PoolTimeout."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await self._pool.getconn(min(CALL_S, until_s - loop.time()))
            except PoolTimeout:
                if _Line.failure or loop.time() >= until_s:
                    raise


def _hint(sqlstate: str | None) -> str | None:
    """Find advice for an operator; None if waiting may help."""
    return _HINTS.get(sqlstate or "") or _CLASSES.get((sqlstate or "")[:2])


class _NotBegun(psycopg.OperationalError):
    """The connection was dead before it did anything: another one may be tried."""


class _Line(psycopg.AsyncConnection[Row]):
    """A connection that can be given up at once."""

    failure = ""
    """Why the last attempt to connect failed; empty if it succeeded.

    The pool itself only reports that it has waited.
    """

    @classmethod
    async def connect(cls, *args: Any, **kwargs: Any) -> Self:
        """Connect as psycopg does, and remember a failure."""
        try:
            line = await super().connect(*args, **kwargs)
        except psycopg.Error as error:
            _Line.failure = str(error)
            raise
        _Line.failure = ""
        return line

    async def begin(self, begin: str, limit_s: float) -> None:
        """Begin a transaction that the server also ends after `limit_s`: this process may be frozen or cut off."""
        limit_ms = round(limit_s * 1000)
        try:
            await self.execute(
                f"{begin}; SET LOCAL statement_timeout = {limit_ms};"
                f" SET LOCAL idle_in_transaction_session_timeout = {limit_ms}".encode()
            )
        except psycopg.OperationalError as error:
            raise (_NotBegun(str(error)) if self.closed else error) from error

    def hang_up(self) -> None:
        """Raise an error in this connection's callers now; a frozen server would never send one."""
        with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(self.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)


def open_postgres(url: str) -> PostgresLedger:
    """Open `postgresql://user:password@host:5432/database` with libpq's options.

    Raises ValueError without the password.
    """
    try:
        wanted = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise ValueError("is no address of a database; it is postgresql://user:password@host:5432/database") from None
    return PostgresLedger(make_conninfo("", **{**_USUAL, **wanted}))
