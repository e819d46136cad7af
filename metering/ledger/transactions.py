"""Transactions, independent of the database that runs them.
Each is a generator: it yields the name of a statement with its values, and receives the rows. So the rules of money are
written once, although a thread runs one database and the event loop the other. A transaction that lost a race is simply
started again.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal, TypeVar

import orjson

from metering.clock import next_month
from metering.events import Event
from metering.ledger.queries import Dialect
from metering.ledger.rows import Row
from metering.ports import Act

T = TypeVar("T")
Values = Mapping[str, Any] | list[dict[str, Any]]
"""Values by name, or many rows of them. SQLite repeats the statement with each row's values in their order; PostgreSQL
takes all rows at once, as JSON with the name `rows`.
"""

Steps = Generator[tuple[str, Values], Any, T]
"""A transaction: yields statement and values, is sent a list of rows, returns its result."""

Mode = Literal["read", "report", "scan", "book", "write", "close"]
"""read: one consistent snapshot. report: the same for a customer, who may ask for much; it delays nobody else. scan:
may last as long as reading a whole history. book: adds events, concurrently with other bookings. write: the only
writer of everything else, so that what it has read is still true when it commits. close: the only writer, and nobody
books.
"""


EVENTS = 1_000
"""Events fetched at a time: about 1 MB."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The last month that is closed, its end and its close, ISO 8601; None if none is. Months close in their order."""

    through: str | None
    ends_at: str | None
    closed_at: str | None

    def posting(self, month: str) -> str | None:
        """Find the month to which an event of `month` is posted: None for its own, else the first that is open."""
        return next_month(self.through) if self.through is not None and month <= self.through else None

    def entry(self, at: str) -> str:
        """Find the moment of a credit that is entered at `at`: at the earliest, when the first open month begins."""
        return at if self.ends_at is None else max(at, self.ends_at)

    def after(self, at: str) -> str:
        """Find the moment of what is added to rows of a closed month: after its close, whatever the clock says."""
        if self.closed_at is None or at > self.closed_at:
            return at
        return (datetime.fromisoformat(self.closed_at) + timedelta(microseconds=1)).isoformat(timespec="microseconds")


class Transactions(ABC):
    """Base of each part of the record. Every method of the parts may raise LedgerAway."""

    dialect: ClassVar[Dialect]

    @abstractmethod
    async def migrate(self) -> int:
        """Bring the schema up to date, one process at a time; returns its version."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close what is open. No method may be called afterwards."""

    @abstractmethod
    async def _run(self, mode: Mode, steps: Callable[[], Steps[T]]) -> T:
        """Run a transaction, completely or not at all. Raises LedgerAway, LedgerError."""

    @abstractmethod
    def _book(self, events: Sequence[Event], booked_at: str, closed: Closed) -> Steps[set[str]]:
        """Insert events and their consumption if they are not there yet; returns the ids of the new ones."""

    async def _rows(self, query: str, **values: Any) -> list[Row]:
        def steps() -> Steps[list[Row]]:
            rows: list[Row] = yield query, values
            return rows

        return await self._run("read", steps)

    async def _write_one(self, query: str, **values: Any) -> None:
        def steps() -> Steps[None]:
            yield query, values

        await self._run("write", steps)


def as_json(values: Sequence[str]) -> str:
    """Encode a list for a statement."""
    return orjson.dumps(list(values)).decode()


def audit(act: Act, at: str) -> Steps[None]:
    """Write the audit row, and the idempotency key if there is one."""
    details = orjson.dumps(act.details).decode()
    values = {"actor": act.actor, "target": act.target, "at": at}
    yield "audit", {**values, "action": act.action, "org_id": act.org_id, "details": details}
    yield from once(act, at)


def once(act: Act, at: str) -> Steps[None]:
    """Write only the idempotency key, if nothing changed: the key still belongs to this request."""
    if act.once is not None:
        values = {"actor": act.actor, "target": act.target, "at": at}
        yield "add_write", {**values, "key": act.once.key, "fingerprint": act.once.fingerprint}


def closed_through() -> Steps[Closed]:
    """Read which months are closed. It stays so in a transaction that books or writes: a close waits for it."""
    ((through, ends_at, closed_at),) = yield "closed_through", {}
    return Closed(through, ends_at, closed_at)


def change_of(org_id: str, what: str, at: str) -> tuple[str, dict[str, str]]:
    """Build the statement that tells Redis about a change of an organisation."""
    return "change", {"org_id": org_id, "what": what, "at": at}
