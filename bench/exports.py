"""Exports of very many rows: lines a second and peak memory of each format, large beside small.

`python -m bench.exports` measures 100,000 and a million; `ROWS=10000000` names another large one. Rows are written
straight into the tables of a ledger of their own, for no gateway makes ten million orders in a benchmark.
"""

import asyncio
import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import aclosing, closing
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from bench.figures import Figure
from metering.clock import utc_now
from metering.exports.formats import FORMATS
from metering.exports.reading import Scope
from metering.exports.writing import Format, Source, write_file
from metering.ledger import sqlite
from metering.ledger.sqlite import open_sqlite
from metering.ports import ApiKey, Org
from tests.kits.books import ACT, NOON, event

MONTH = "2036-11"
FEW, MANY = 100_000, 1_000_000
ORGS = 10
PARQUET = "metering.exports.parquet"
SMALL_CACHE_KIB, SMALL_ROW_GROUP = 1_024, 2_000
MEMORY_MAX = 1.2
"""Peak memory of a large export, by that of a small one."""

MEASURED = ("csv", "jsonl", "parquet", "focus", "xlsx")
SLOW = frozenset({"xlsx"})
"""Not measured with more than MANY rows: nobody opens such a workbook."""


def measure() -> list[Figure]:
    """Measure all formats; ten minutes with a million rows."""
    many = int(os.environ.get("ROWS", MANY))
    formats = [name for name in MEASURED if many <= MANY or name not in SLOW]
    figures = []
    with Progress(console=Console(stderr=True), transient=True) as progress, tempfile.TemporaryDirectory() as name:
        task, folder = progress.add_task("", total=None), Path(name)
        for rows in (FEW, many):
            progress.update(task, description=f"filling: {rows:,} rows")
            fill(folder / f"{rows}.db", rows)
        for file_format in formats:
            progress.update(task, description=file_format)
            few, large = (exported(folder / f"{rows}.db", file_format, folder) for rows in (FEW, many))
            what = f"{file_format}, {many:,} rows"
            figures.append(Figure(what, "lines/s", [many / large.took_s]))
            figures.append(Figure(f"{what}: of CPU alone", "lines/s", [many / large.cpu_s]))
            figures.append(Figure(f"{what}: memory by {FEW:,}", "×", [large.peak_mb / few.peak_mb], most=MEMORY_MAX))
            figures.append(Figure(f"{what}: memory", "MB", [large.peak_mb]))
    return figures


class Exported:
    """What an export in a process of its own took."""

    def __init__(self, told: str) -> None:
        found = json.loads(told)
        self.rows: int = found["rows"]
        self.took_s: float = found["took_s"]
        self.cpu_s: float = found["cpu_s"]
        self.peak_mb: float = found["peak_mb"]


def exported(ledger: Path, file_format: str, folder: Path, *, small: bool = False) -> Exported:
    """Export in a new process: the peak of its memory is the export's own.

    SQLite's cache and a row group are full with 100,000 rows. For fewer rows, `small` makes both smaller.
    """
    out = folder / f"out.{file_format}"
    command = (sys.executable, "-m", "bench.exports", str(ledger), file_format, str(out), "small" if small else "")
    environment = os.environ | {"TMPDIR": str(folder)}
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    out.unlink()
    return Exported(told)


def fill(path: Path, rows: int) -> None:
    """Make a ledger in which a closed month has so many charges: copies of one that was booked, by organisation."""
    asyncio.run(_begin(path))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        # A copied row needs no sums and no checks, and only the indexes that an export reads by.
        triggers = db.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'events'"
        ).fetchall()
        indexes = db.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'events'"
            " AND name NOT IN ('events_by_month', 'events_by_posting')"
        ).fetchall()
        for kind, found in (("TRIGGER", triggers), ("INDEX", indexes)):
            for (name,) in found:
                db.execute(f"DROP {kind} {name}")
        db.execute("PRAGMA synchronous = OFF")
        columns = [name for _, name, *_ in db.execute("PRAGMA table_info(events)")]
        new = {
            "event_id": "printf('%s-0000-4000-8000-%012x', substr(:org_id, 1, 8), i)",
            "org_id": ":org_id",
            "number": "i",
            "day": "printf('2036-11-%02d', 1 + i % 30)",
            "images": "replace(images, 'picture', printf('%08x', i))",
        }
        values = ", ".join(new.get(name, f'template."{name}"') for name in columns)
        # A table of its own, and one organisation after the other: so nothing is copied or sorted on the way.
        db.execute("CREATE TEMP TABLE template AS SELECT * FROM events LIMIT 1")
        db.execute("BEGIN")
        for (org_id,) in db.execute("SELECT id FROM organizations ORDER BY id").fetchall():
            db.execute(
                f"""
                WITH RECURSIVE many(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM many WHERE i <= :rows)
                INSERT INTO events SELECT {values} FROM many, template
                """,
                {"rows": rows // ORGS, "org_id": org_id},
            )
        db.execute("DELETE FROM events WHERE number = 1")
        ends = "2036-12-01T06:00:00+00:00"
        db.execute("INSERT INTO months VALUES (?, ?, ?, 'bench')", (MONTH, ends, utc_now().isoformat()))
        db.execute("COMMIT")


async def _begin(path: Path) -> None:
    async with aclosing(open_sqlite(f"sqlite:///{path}")) as ledger:
        await ledger.migrate()
        for number in range(ORGS):
            org_id = f"{number:08d}-0000-4000-8000-000000000000"
            await ledger.create_org(Org(org_id, f"org {number}", "default", NOON.isoformat()), ACT)
        key = ApiKey("key_1", "00000000-0000-4000-8000-000000000000", "web", "hash", NOON.isoformat())
        await ledger.create_key(key, ACT)
        await ledger.book([event(key.org_id, 1, images=2, name="picture")], [], NOON)


async def _export(path: Path, write: Format, out: Path) -> int:
    async with aclosing(open_sqlite(f"sqlite:///{path}")) as ledger:
        source = Source(ledger, Scope((MONTH,)))
        return (await write_file(source, out, write)).rows


def _main(path: str, file_format: str, out: str, small: str) -> None:
    write = FORMATS[file_format].load()
    if small:
        sqlite.CACHE_KIB = SMALL_CACHE_KIB
        if (parquet := sys.modules.get(PARQUET)) is not None:  # imported above, it would weigh on every format
            vars(parquet)["ROW_GROUP"] = SMALL_ROW_GROUP
    began = time.perf_counter()
    rows = asyncio.run(_export(Path(path), write, Path(out)))
    took_s = time.perf_counter() - began
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": rows, "took_s": took_s, "cpu_s": time.process_time(), "peak_mb": peak_mb}))


if __name__ == "__main__":
    if len(sys.argv) == 5:
        _main(*sys.argv[1:])
    else:
        for one in measure():
            print(f"{one.name}: {one.median:,.2f} {one.unit}")
