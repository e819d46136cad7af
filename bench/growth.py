"""What grows with organisations, keys, events and objects: each figure is a ratio, large by small, of one run.

A ratio of 1 is flat. Both sides take turns, and each round gives a ratio of its own. Redis is filled through our own
projection script; the ledger and the store by copying rows and files that our own code has written.
"""

import asyncio
import random
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing, closing
from pathlib import Path
from uuid import uuid4

from rich.console import Console
from rich.progress import Progress

from bench.admissions import ALLOCATOR, JEMALLOC, Filled, filled
from bench.figures import Figure, ratios
from metering.accounts import hash_key
from metering.clock import utc_now
from metering.events import Event
from metering.exports.csv_lines import csv_lines
from metering.exports.reading import Scope
from metering.exports.rows import pages
from metering.ledger.record import SqlLedger
from metering.ledger.sqlite import open_sqlite
from metering.ports import ApiKey, Org
from proxy.storage.local import LocalStore
from tests.conftest import run
from tests.kits.books import ACT, NOON, event

SCRIPTS_MAX = 1.10
FLAT = 1.3
"""What counts as flat where a disk takes part: an index is one level deeper, and caches are colder."""

BOOKING_MAX = 2.5
"""An event's id falls anywhere into an index. Among a million each writes pages of its own; few events share theirs."""

CROWD_MAX = 1.5
"""A batch of 200 events brings the totals of 200 organisations up to date, where there were ten."""

SIZES = (10, 100, 1_000, 100_000)
ROUNDS, ADMISSIONS = 10, 500
TURNS, LISTINGS = 7, 3
FEW_EVENTS, MANY_EVENTS = 10_000, 1_000_000
FEW_ORGS, MANY_ORGS = 10, 10_000
FEW_KEYS, MANY_KEYS = 10, 10_000
FEW_OBJECTS, MANY_OBJECTS = 1_000, 100_000
BATCH, BATCHES = 200, 5
LINES = 5_000
PAGES = 10
LATER = "strftime('%Y-%m-%dT%H:%M:%S+00:00', created_at, i || ' seconds')"
NEW_ORG = {"id": "hex(randomblob(16))", "name": "hex(randomblob(8))", "created_at": LATER}
NEW_KEY = {"id": "hex(randomblob(8))", "hash": "hex(randomblob(32))", "created_at": LATER}
"""What differs in a copy of a row, as SQL; `i` counts the copies."""

MONTH, DAYS = "2036-11", ("2036-11-01", "2036-11-30")

Work = Callable[[], Awaitable[float]]
"""Does something once; returns seconds for one event, line, page or object."""


def measure() -> list[Figure]:
    """Measure all of it; four minutes, most of which fill what is large."""
    with Progress(console=Console(stderr=True), transient=True) as progress, tempfile.TemporaryDirectory() as folder:
        task = progress.add_task("", total=None)

        def say(what: str) -> None:
            progress.update(task, description=what)

        return [
            *run(_scripts(Path(folder), say)),
            *run(_ledger(Path(folder), say)),
            *run(_store(Path(folder), say)),
        ]


async def _scripts(folder: Path, say: Callable[[str], None]) -> list[Figure]:
    with ExitStack() as stack:
        servers = [stack.enter_context(filled(folder, orgs)) for orgs in SIZES]
        for server in servers:
            say(f"filling: {server.orgs:,} organisations")
            await server.fill(lambda done: None)
        say("admitting and settling")
        us: dict[str, dict[int, list[float]]] = {
            what: {orgs: [] for orgs in SIZES} for what in ("admission", "settlement")
        }
        for number in range(ROUNDS + 1):  # the first one warms up and does not count
            for server in servers:
                for what, took in zip(us, await _orders(server, number), strict=True):
                    us[what][server.orgs].append(took)
    few, *more = SIZES
    # The C library's allocator pays for very many keys; no server that is built for Linux has it.
    goal = SCRIPTS_MAX if JEMALLOC else None
    return [
        Figure(
            f"{what}, {orgs:,} organisations by {few}, {ALLOCATOR}", "×", ratios(of[orgs][1:], of[few][1:]), most=goal
        )
        for what, of in us.items()
        for orgs in more
    ]


async def _orders(server: Filled, number: int) -> tuple[float, float]:
    admissions, settlements = await server.orders(ADMISSIONS, random.Random(number))
    took = min(await server.server_us(admissions)), min(await server.server_us(settlements))
    await server.empty_streams()
    return took


async def _ledger(folder: Path, say: Callable[[str], None]) -> list[Figure]:
    """Measure a ledger with few events and one with many, then few organisations and many, then few keys and many."""
    figures = []
    say(f"filling: {MANY_EVENTS:,} events")
    few, orgs = await _booked(folder / "few.db", FEW_EVENTS)
    many, _ = await _booked(folder / "many.db", MANY_EVENTS, orgs)
    crowded, crowd = await _booked(folder / "crowded.db", 0)
    crowd += _copied(folder / "crowded.db", "organizations", MANY_ORGS - FEW_ORGS, **NEW_ORG)
    bare, alone = await _booked(folder / "bare.db", 0)
    async with aclosing(few), aclosing(many), aclosing(crowded), aclosing(bare):
        numbers = iter(range(10_000_000, 20_000_000))
        say("booking")
        figures.append(
            await _compared(
                f"booking an event, {MANY_EVENTS:,} events by {FEW_EVENTS:,}",
                lambda: _book(few, orgs, numbers),
                lambda: _book(many, orgs, numbers),
                BOOKING_MAX,
            )
        )
        figures.append(
            await _compared(
                f"booking an event, {MANY_ORGS:,} organisations by {FEW_ORGS}",
                lambda: _book(bare, alone, numbers),
                lambda: _book(crowded, crowd, numbers),
                CROWD_MAX,
            )
        )
        say("reading")
        figures.append(
            await _compared(
                f"usage report, {MANY_EVENTS:,} events by {FEW_EVENTS:,}",
                lambda: _report(few, orgs[0]),
                lambda: _report(many, orgs[0]),
            )
        )
        figures.append(
            await _compared(
                f"export of a line, {MANY_EVENTS:,} events by {FEW_EVENTS:,}",
                lambda: _export(few),
                lambda: _export(many),
            )
        )
        holder = crowd[0]
        await _give_keys(crowded, holder)
        await _give_keys(bare, alone[0])
        _copied(folder / "crowded.db", "api_keys", MANY_KEYS - FEW_KEYS, **NEW_KEY)
        figures.append(
            await _compared(
                f"page of keys, {MANY_KEYS:,} keys by {FEW_KEYS}",
                lambda: _page(bare, alone[0]),
                lambda: _page(crowded, holder),
            )
        )
    return figures


async def _compared(name: str, small: Work, large: Work, most: float = FLAT, turns: int = TURNS) -> Figure:
    """Let both sides take turns; the first round warms up and does not count."""
    found: tuple[list[float], list[float]] = [], []
    for _ in range(turns + 1):
        found[0].append(await small())
        found[1].append(await large())
    return Figure(name, "×", ratios(found[1][1:], found[0][1:]), most=most)


async def _booked(path: Path, events: int, orgs: list[str] | None = None) -> tuple[SqlLedger, list[str]]:
    """Make a ledger with ten organisations and this many events of theirs."""
    ledger = open_sqlite(f"sqlite:///{path}")
    await ledger.migrate()
    orgs = orgs or [str(uuid4()) for _ in range(FEW_ORGS)]
    for org_id in orgs:
        await ledger.create_org(Org(org_id, org_id, "default", NOON.isoformat()), ACT)
    written = min(events, FEW_EVENTS)
    for first in range(0, written, BATCH):
        await ledger.book([_event(orgs[n % len(orgs)], n) for n in range(first, first + BATCH)], [], utc_now())
    # A charge and its consumption have one id, so copies are of both.
    await asyncio.to_thread(_copy_events, path, written, events // FEW_EVENTS - 1)
    return ledger, orgs


def _copy_events(path: Path, written: int, copies: int) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -400000")  # in KiB: the indexes are written all over
        for copy in range(1, copies + 1):
            for table, key, of in (
                ("events", "event_id", ""),
                ("credit_transactions", "id", "type = 'consumption' AND "),
            ):
                names = [f'"{row[1]}"' for row in db.execute(f"PRAGMA table_info({table})")]
                again = {f'"{key}"': f"{key} || '-{copy}'", '"number"': f"number + {copy * written}"}
                values = ", ".join(again.get(name, name) for name in names)
                db.execute(
                    f"INSERT INTO {table} ({', '.join(names)}) SELECT {values} FROM {table}"
                    f" WHERE {of}rowid <= {written + FEW_ORGS}"
                )
            db.commit()


def _copied(path: Path, table: str, count: int, **instead: str) -> list[str]:
    """Copy the first row of a table this many times, with these columns made anew; returns the new ids."""
    with closing(sqlite3.connect(path)) as db, db:
        names = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        values = ", ".join(instead.get(name, f'"{name}"') for name in names)
        listed = ", ".join(f'"{name}"' for name in names)
        before = {row[0] for row in db.execute(f"SELECT id FROM {table}")}
        db.execute(
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
            f" INSERT INTO {table} ({listed}) SELECT {values} FROM n, (SELECT * FROM {table} ORDER BY rowid LIMIT 1)"
        )
        return [row[0] for row in db.execute(f"SELECT id FROM {table}") if row[0] not in before]


def _event(org_id: str, number: int) -> Event:
    return event(org_id, number, name=str(uuid4()))


async def _book(ledger: SqlLedger, orgs: list[str], numbers: Iterator[int]) -> float:
    batches = [[_event(random.choice(orgs), next(numbers)) for _ in range(BATCH)] for _ in range(BATCHES)]
    began = time.perf_counter()
    for batch in batches:
        await ledger.book(batch, [], utc_now())
    return (time.perf_counter() - began) / BATCH / BATCHES


async def _report(ledger: SqlLedger, org_id: str) -> float:
    began = time.perf_counter()
    for _ in range(PAGES):
        assert await ledger.usage(org_id, *DAYS, ("day", "model", "key"), 1_000)
    return (time.perf_counter() - began) / PAGES


async def _export(ledger: SqlLedger) -> float:
    """Export the first lines of a month: what comes after them costs the same."""

    began, left = time.perf_counter(), LINES
    async with aclosing(pages(ledger, Scope((MONTH,)))) as found:  # type: ignore[type-var]
        async for page in found:
            csv_lines(page.safe)
            left -= len(page.safe)
            if left <= 0:
                break
    assert left == 0
    return (time.perf_counter() - began) / LINES


async def _give_keys(ledger: SqlLedger, org_id: str) -> None:
    for number in range(FEW_KEYS):
        key = ApiKey(f"key_{number}", org_id, f"key {number}", hash_key(f"{org_id} {number}"), NOON.isoformat())
        await ledger.create_key(key, ACT)


async def _page(ledger: SqlLedger, org_id: str) -> float:
    began = time.perf_counter()
    for _ in range(PAGES):
        assert len(await ledger.keys(org_id, None, FEW_KEYS)) == FEW_KEYS
    return (time.perf_counter() - began) / PAGES


async def _store(folder: Path, say: Callable[[str], None]) -> list[Figure]:
    say(f"filling: {MANY_OBJECTS:,} objects")
    for objects in (FEW_OBJECTS, MANY_OBJECTS):
        await asyncio.to_thread(_make_objects, folder / f"objects-{objects}", objects)
    say("listing")
    name = f"listing an object, {MANY_OBJECTS:,} objects by {FEW_OBJECTS:,}"
    few, many = (folder / f"objects-{objects}" for objects in (FEW_OBJECTS, MANY_OBJECTS))
    return [await _compared(name, lambda: _list(few, FEW_OBJECTS), lambda: _list(many, MANY_OBJECTS), turns=LISTINGS)]


def _make_objects(root: Path, count: int) -> None:
    """Make objects of a hundred organisations, each in the folder of its order."""
    for number in range(count):
        place = root / f"org-{number % 100}" / str(uuid4())
        place.mkdir(parents=True)
        (place / "0.png").touch()


async def _list(root: Path, objects: int) -> float:
    """List all objects as the sweep does, often enough to be measured."""
    times = max(1, FEW_OBJECTS * 5 // objects)
    began = time.perf_counter()
    for _ in range(times):
        async with aclosing(LocalStore(root).objects()) as found:
            assert sum([1 async for _ in found]) == objects
    return (time.perf_counter() - began) / objects / times
