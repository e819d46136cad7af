"""Properties of SQLite: one file, one writer, and a schema that even REPLACE cannot bypass."""

import sqlite3
import subprocess
import sys
from contextlib import aclosing, closing
from decimal import Decimal
from pathlib import Path

import pytest

from metering.ledger.sqlite import open_sqlite
from metering.ports import LedgerAway, ListPrice, NewCredit
from metering.pricing import FxRate
from tests.conftest import run
from tests.integration.test_ledger import ORG, migrate_many, opened
from tests.kits.books import ACT, NOON, ROOT, SCHEMA, event, sql

KEYS = {
    "credit_transactions": "id",
    "events": "event_id",
    "changes": "seq",
    "price_books": "version",
    "prices": "model",
    "fx_rates": "id",
}


@pytest.mark.rule(3)
@pytest.mark.parametrize(("table", "key"), KEYS.items())
async def test_nothing_is_replaced(tmp_path: Path, table: str, key: str) -> None:
    """INSERT OR REPLACE would delete without a DELETE: by a row's key, by its number, or by its rowid (rule 3)."""
    async with aclosing(await opened(tmp_path / "l.db")) as ledger:
        await ledger.add_credit(NewCredit("c1", ORG, "recharge", 5), NOON, ACT)
        await ledger.add_rate(FxRate("2036-11", Decimal(20), "test"), NOON)
        await ledger.register_prices("book", Decimal(1), [ListPrice("m", Decimal(1))], NOON)
        await ledger.book([event(ORG, 1)], [], NOON)
    url = f"sqlite:///{tmp_path}/l.db"
    before = sql(url, f"SELECT rowid, * FROM {table}")
    columns = [name for (name,) in sql(url, f"SELECT name FROM pragma_table_info('{table}')")]
    named = ", ".join(f'"{column}"' for column in columns)
    other = named.replace(f'"{key}"', f"\"{key}\" || 'x'")
    replacing = [f"INSERT OR REPLACE INTO {table} ({named}) SELECT {named} FROM {table}"]
    if key not in ("seq", "number") and table != "fx_rates":
        replacing.append(f"INSERT OR REPLACE INTO {table} (rowid, {named}) SELECT rowid, {other} FROM {table}")
    if table == "credit_transactions":
        replacing.append(f"INSERT OR REPLACE INTO {table} ({named}) SELECT {other} FROM {table} WHERE number = 1")
    for statement in replacing:
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            sql(url, statement)
    assert sql(url, f"SELECT rowid, * FROM {table}") == before


def test_race_many_migrate_many_new_files(tmp_path: Path) -> None:
    """A new file is opened by eight at the same moment, ten times: SQLite itself does not wait for the others there."""
    for turn in range(10):
        assert run(migrate_many(str(tmp_path / str(turn) / "l.db"))) == [SCHEMA] * 8


async def test_a_locked_database_is_away_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that waits too long raises LedgerAway, and writes once the lock is gone."""
    monkeypatch.setattr("metering.ledger.sqlite.BUSY_S", 0.05)
    async with aclosing(await opened(tmp_path / "l.db")) as ledger:
        with closing(sqlite3.connect(tmp_path / "l.db", isolation_level=None)) as blocker:
            blocker.execute("BEGIN IMMEDIATE")
            with pytest.raises(LedgerAway):
                await ledger.book([event(ORG, 1)], [], NOON)
        assert await ledger.book([event(ORG, 1)], [], NOON) == {f"{ORG}-1"}


FULL_DISK = """
import resource, sys
from pathlib import Path
from metering.ports import LedgerAway
from tests.conftest import run
from tests.kits.books import NOON, event
from tests.integration.test_ledger import ORG, opened

async def work():
    ledger = await opened(Path(sys.argv[1]))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    number, refused = 0, 0
    while refused < 3:
        events = [event(ORG, number * 100 + i + 1) for i in range(100)]
        try:
            await ledger.book(events, [], NOON)
            number += 1
        except LedgerAway:
            refused += 1
    booked = await ledger.charged_up_to(ORG)
    assert booked.events == number * 100, (booked, number)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert len(await ledger.book(events, [], NOON)) == 100
    assert (await ledger.charged_up_to(ORG)).events == number * 100 + 100
    await ledger.aclose()

run(work())
"""


def test_a_full_disk_is_away_and_comes_back(tmp_path: Path) -> None:
    """Bookings that do not fit are refused whole; with space again the same connection goes on."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "l.db")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)


async def test_the_address_names_a_file_whose_folder_is_made(tmp_path: Path) -> None:
    """`sqlite:///` and a path."""
    async with aclosing(open_sqlite(f"sqlite:///{tmp_path}/new/l.db")) as ledger:
        await ledger.migrate()
    assert (tmp_path / "new" / "l.db").exists()
