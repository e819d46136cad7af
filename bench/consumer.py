"""How fast a real consumer drains one partition, without an outage of the ledger and after one, and its memory at its
peak: `make bench-consumer`.

The outage is a real one: PostgreSQL is killed, SQLite's file is locked by another. The largest events have eight
images, each with 4,000 characters of revised prompt; one of four bytes makes Python's strings four times as large.
"""

import argparse
import asyncio
import sqlite3
import sys
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psycopg
import uvloop
from rich.console import Console
from rich.table import Table

from tests.conftest import ValkeyServer
from tests.kits.books import open_books, waiting
from tests.kits.cluster_orgs import everywhere
from tests.kits.consumer import consuming, drained_s, fill, peak_mib
from tests.kits.postgres import PostgresServer

T = TypeVar("T")

LEAST_PER_S = 400
LEAST_RATIO = 0.9
MAX_MIB = 200
WITHIN_S = 600.0
PROMPTS = {"ASCII": "x" * 4_000, "four bytes": "🖼" * 4_000, "mixed": "x" * 3_999 + "🖼"}


class Database(Protocol):
    """Place of ledgers, and how one goes away."""

    def url(self, number: int) -> str:
        """Make a new ledger; returns its address."""

    def go(self) -> None:
        """Make the first ledger accept nothing from now on."""

    def back(self) -> None:
        """Bring it back."""


@dataclass
class Postgres:
    """A server, which is killed."""

    server: PostgresServer

    def url(self, number: int) -> str:
        """Make a database."""
        with psycopg.connect(self.server.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE bench_{number}".encode())
        return self.server.url(f"bench_{number}")

    def go(self) -> None:
        """Kill it."""
        self.server.kill()

    def back(self) -> None:
        """Start it."""
        self.server.start()


@dataclass
class Sqlite:
    """Files, the first of which another process locks."""

    folder: Path
    locks: list[sqlite3.Connection] = field(default_factory=list)

    def url(self, number: int) -> str:
        """Make a file."""
        return f"sqlite:///{self.folder}/{number}.db"

    def go(self) -> None:
        """Lock it."""
        db = sqlite3.connect(self.folder / "0.db", isolation_level=None, timeout=30, check_same_thread=False)
        db.execute("BEGIN EXCLUSIVE")
        self.locks.append(db)

    def back(self) -> None:
        """Unlock it."""
        self.locks.pop().close()


async def rates(redis_url: str, database: Database, folder: Path, events: int, outage_s: float) -> tuple[float, float]:
    """Measure events per second of one partition, from the first that is booked: without an outage, and after one."""
    url = database.url(0)

    async def drain() -> float:
        while await waiting(books.redis) == events:  # noqa: ASYNC110  # in another process
            await asyncio.sleep(0.001)
        return events / await drained_s(books.redis, WITHIN_S)

    async with open_books(redis_url, url) as books:
        callers = [await books.org()]
        await fill(books.redis, callers, events)
        with consuming(redis_url, url, folder):
            before = await drain()
            await asyncio.to_thread(database.go)
            await fill(books.redis, callers, events)
            await asyncio.sleep(outage_s)
            await asyncio.to_thread(database.back)
            return before, await drain()


async def peak(redis_url: str, url: str, folder: Path, each: int, prompt: str) -> float:
    """Measure the consumer's peak in MiB, with this many of the largest events in every partition."""
    async with open_books(redis_url, url) as books:
        await fill(books.redis, await everywhere(books), each, 8, prompt)
        with consuming(redis_url, url, folder) as process:
            await drained_s(books.redis, WITHIN_S)
            return peak_mib(process.pid)


@contextmanager
def valkey(folder: Path) -> Iterator[str]:
    """Run an empty server."""
    server = ValkeyServer(folder)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run one coroutine on a fresh loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def main() -> int:
    """Exit with 1 if a rate is too low, or a peak too high."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--events", type=int, default=10_000, help="of one partition")
    arguments.add_argument("--outage", type=float, default=30.0, help="in seconds")
    arguments.add_argument("--largest", type=int, default=40, help="of the largest events, in each partition")
    given = arguments.parse_args()
    table, good = Table("ledger", "events/s", f"after {given.outage:.0f} s away", "ratio", *PROMPTS), True
    with tempfile.TemporaryDirectory(prefix="ghub-") as place, tempfile.TemporaryDirectory(prefix="ghub-") as name:
        folder, server = Path(name), PostgresServer(Path(place))
        server.start()
        databases: dict[str, Database] = {"PostgreSQL": Postgres(server), "SQLite": Sqlite(folder)}
        try:
            for kind, database in databases.items():
                with valkey(folder) as url:
                    before, after = run(rates(url, database, folder, given.events, given.outage))
                peaks = []
                for number, prompt in enumerate(PROMPTS.values(), 1):
                    with valkey(folder) as url:
                        peaks.append(run(peak(url, database.url(number), folder, given.largest, prompt)))
                shown = [f"{one:.0f} MiB" for one in peaks]
                table.add_row(kind, f"{before:,.0f}", f"{after:,.0f}", f"{after / before:.2f}", *shown)
                good &= after >= max(LEAST_PER_S, LEAST_RATIO * before) and max(peaks) < MAX_MIB
        finally:
            server.kill()
    Console(width=110).print(table, f"at least {LEAST_PER_S} events/s, {LEAST_RATIO:.0%}; at most {MAX_MIB} MiB")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
