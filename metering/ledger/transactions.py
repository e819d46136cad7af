"""Transactions, whichever database carries them out.

Each is a generator: it yields the name of a statement with its values, and is sent the rows. So what must hold of money
is written once, though one database is driven by a thread and the other by the event loop; and a transaction that lost
a race is simply begun again.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import orjson

from metering.ledger.queries import Dialect
from metering.ledger.rows import Row
from metering.ports import Act

T = TypeVar("T")
Steps = Generator[tuple[str, Mapping[str, Any]], Any, T]
"""A transaction: yields statement and values, is sent a list of rows, returns its result."""

Mode = Literal["read", "report", "scan", "book", "write"]
"""read: one consistent cut. report: the same for a customer, who may ask for much; it holds up nobody else. scan: for
as long as a whole history takes. book: adds events, beside others that do. write: alone among the writers of
everything else, so that what it has read still holds when it commits."""


EVENTS = 1_000
"""Events fetched at a time: about 1 MB."""


class Transactions(ABC):
    """What each part of the record is made of. Every method of theirs may raise LedgerAway."""

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

    async def _write_one(self, query: str, **values: Any) -> None:
        def steps() -> Steps[None]:
            yield query, values

        await self._run("write", steps)


def as_json(values: Sequence[str]) -> str:
    """As a statement takes a list."""
    return orjson.dumps(list(values)).decode()


def audit(act: Act, at: str) -> Steps[None]:
    """Who did it, and under which idempotency key."""
    details = orjson.dumps(act.details).decode()
    values = {"actor": act.actor, "target": act.target, "at": at}
    yield "audit", {**values, "action": act.action, "org_id": act.org_id, "details": details}
    yield from once(act, at)


def once(act: Act, at: str) -> Steps[None]:
    """Its idempotency key alone, where it changed nothing: the key stands for this request all the same."""
    if act.once is not None:
        values = {"actor": act.actor, "target": act.target, "at": at}
        yield "add_write", {**values, "key": act.once.key, "fingerprint": act.once.fingerprint}


def change_of(org_id: str, what: str, at: str) -> tuple[str, dict[str, str]]:
    """What tells Redis that something of an organisation has changed."""
    return "change", {"org_id": org_id, "what": what, "at": at}
