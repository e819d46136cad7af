"""How fast events are booked and exported: PostgreSQL and SQLite take turns in one run, both synced to disk.

Events are booked as a consumer of a cluster does it: BOOKINGS transactions at a time, of BATCH stream entries each.
They are decoded, and written with their consumption and running totals. Beside each ledger stand its statements alone,
with ready values on one connection: no code of ours can be faster than they are.
"""

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import psycopg
import uvloop
from rich.console import Console
from rich.progress import track

from bench.figures import Figure
from metering.clock import utc_now
from metering.consumer import BATCH, BOOKINGS
from metering.events import Event, decode, encode_images, encode_opened
from metering.exports.csv_lines import write
from metering.exports.reading import Scope
from metering.exports.writing import Source, write_file
from metering.ledger.postgres import open_postgres
from metering.ledger.queries import named_queries
from metering.ledger.record import SqlLedger
from metering.ledger.rows import event_row
from metering.ledger.sqlite import CACHE_KIB, CHECKPOINT_PAGES, open_sqlite
from metering.ports import Act, Org
from tests.kits.books import FACTS, NOW_US, SECOND_US, UNIT, pictures, pinned
from tests.kits.postgres import PostgresServer

ROUNDS = 3
BATCHES = 10
"""In each round, for each ledger; and as many again for its statements alone."""

ORGS = 50
LEAST_BOOKED = {"PostgreSQL": 20_000, "SQLite": 30_000}
LEAST_EXPORTED = 500_000

RESULT = b'{"v":1,"created":1795370404,"model":"fal/flux-1.1-pro","served":"fal-ai/flux-pro/v1.1","prompts":[null]}'
"""Result for an order's owner: kept with its event."""

Entry = Mapping[bytes, bytes]


def measure() -> list[Figure]:
    """Run all rounds; one more before them warms up and does not count."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        server = PostgresServer(Path(folder))
        server.start()
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_measure(server.url("postgres"), Path(folder)))
        finally:
            server.kill()


async def _measure(postgres_url: str, folder: Path) -> list[Figure]:
    file, orgs, number = folder / "ledger.db", [str(uuid4()) for _ in range(ORGS)], 1
    booked, alone, exported = ({name: list[float]() for name in LEAST_BOOKED} for _ in range(3))
    async with AsyncExitStack() as stack:
        ledgers: dict[str, SqlLedger] = {
            "PostgreSQL": open_postgres(postgres_url),
            "SQLite": open_sqlite(f"sqlite:///{file}"),
        }
        for ledger in ledgers.values():
            await stack.enter_async_context(aclosing(ledger))
            await ledger.migrate()
            for org_id in orgs:
                await ledger.create_org(Org(org_id, org_id, "default", utc_now().isoformat()), Act("b", "b", org_id))
        for turn in track(range(ROUNDS + 1), "ledger", console=Console(stderr=True)):
            for name, ledger in ledgers.items():
                batches = [_entries(orgs, number + batch * BATCH) for batch in range(2 * BATCHES)]
                number += 2 * BATCHES * BATCH
                seconds = await _book(ledger, batches[:BATCHES])
                ready = [[decode(entry) for entry in batch] for batch in batches[BATCHES:]]
                seconds_alone = (
                    _postgres_alone(postgres_url, ready) if name == "PostgreSQL" else _sqlite_alone(file, ready)
                )
                lines_per_s = await _export(ledger, folder / "out.csv")
                if turn:
                    booked[name].append(BATCHES * BATCH / seconds)
                    alone[name].append(BATCHES * BATCH / seconds_alone)
                    exported[name].append(lines_per_s)
    return [
        *(Figure(f"booked, {name}", "events/s", booked[name], least=least) for name, least in LEAST_BOOKED.items()),
        *(Figure(f"its statements alone, {name}", "events/s", rounds) for name, rounds in alone.items()),
        *(Figure(f"CSV, {name}", "lines/s", rounds, least=LEAST_EXPORTED) for name, rounds in exported.items()),
    ]


async def _book(ledger: SqlLedger, batches: Sequence[Sequence[Entry]]) -> float:
    """Decode and book; returns the seconds."""
    left = iter(batches)

    async def book() -> None:
        for batch in left:
            assert len(await ledger.book([decode(entry) for entry in batch], [], utc_now())) == BATCH

    began_s = time.perf_counter()
    await asyncio.gather(*(book() for _ in range(BOOKINGS)))
    return time.perf_counter() - began_s


async def _export(ledger: SqlLedger, path: Path) -> float:
    """Export everything; returns the lines per second."""
    began_s = time.perf_counter()
    written = await write_file(Source(ledger, Scope(("2036-11",))), path, write)
    return written.rows / (time.perf_counter() - began_s)


def _postgres_alone(url: str, batches: Sequence[Sequence[Event]]) -> float:
    """Run what a booking runs, with JSON that is ready; returns the seconds."""
    sql = {name: text.encode() for name, text in named_queries("postgres").items()}
    ready = [
        tuple({"rows": orjson.dumps(rows).decode()} for rows in (_results(batch), _events(batch))) for batch in batches
    ]
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        began_s = time.perf_counter()
        for results, events in ready:
            with connection.transaction():
                connection.execute(sql["add_results"], results)
                connection.execute(sql["book"], events)
        took_s = time.perf_counter() - began_s
        # As autovacuum does within a minute: without it, the planner of the export takes the table for a small one.
        connection.execute("ANALYZE events")
        return took_s


def _sqlite_alone(file: Path, batches: Sequence[Sequence[Event]]) -> float:
    """Run what a booking runs, with rows that are ready; returns the seconds."""
    sql, ready = named_queries("sqlite"), []
    for batch in batches:
        events = _events(batch)
        consumed = [(row["event_id"], row["org_id"], -row["amount_micro_mxn"], row["booked_at"]) for row in events]
        ready.append(([*map(_values, _results(batch))], [*map(_values, events)], consumed))
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        for pragma in ("synchronous = FULL", f"cache_size = -{CACHE_KIB}", f"wal_autocheckpoint = {CHECKPOINT_PAGES}"):
            db.execute(f"PRAGMA {pragma}")
        began_s = time.perf_counter()
        for rows in ready:
            db.execute("BEGIN IMMEDIATE")
            for name, values in zip(("add_results", "book_events", "book_consumption"), rows, strict=True):
                db.executemany(sql[name], values)
            db.execute("COMMIT")
        return time.perf_counter() - began_s


def _values(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.values())


def _events(batch: Sequence[Event]) -> list[dict[str, Any]]:
    return [event_row(event, utc_now().isoformat()) for event in batch]


def _results(batch: Sequence[Event]) -> list[dict[str, Any]]:
    return [
        {
            "request_id": event.event_id,
            "org_id": event.opened.org_id,
            "ended_us": event.ended_us,
            "document": event.result,
        }
        for event in batch
    ]


def _entries(orgs: Sequence[str], first: int) -> list[Entry]:
    """Make a batch of charges of one image in stream form; their numbers begin with `first`."""
    return list(_charges(orgs, range(first, first + BATCH)))


def _charges(orgs: Sequence[str], numbers: range) -> Iterator[Entry]:
    for number in numbers:
        order_id, ended_us = str(uuid4()), NOW_US + number * 1_234
        yield {
            b"number": str(number).encode(),
            b"end": b"charge",
            b"reason": b"delivered",
            b"quantity": b"1",
            b"amount": str(UNIT).encode(),
            b"admitted_us": str(ended_us - 4 * SECOND_US).encode(),
            b"ended_us": str(ended_us).encode(),
            b"opened": encode_opened(order_id, orgs[number % ORGS], "key_1", pinned(), FACTS),
            b"images": encode_images(pictures(1, order_id)),
            b"usd_measured": b"",
            b"result": RESULT,
        }
