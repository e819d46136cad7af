"""SQL lives in `.sql` files; this finds it there.

Both databases run the same statements but for a few, which stand in a file of their own. The shared ones are written
with `:name`, as SQLite takes it; for psycopg the placeholder is respelled. A list is given as JSON and written
`IN (:ids)`, which each database takes apart in its own way. Nothing else is ever translated.
"""

import re
from pathlib import Path
from typing import Literal

from metering.ports import LedgerError

Dialect = Literal["sqlite", "postgres"]

_HERE = Path(__file__).parent / "sql"
_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_LIST = "IN (:ids)"
_LISTS: dict[Dialect, str] = {
    "sqlite": "IN (SELECT value FROM json_each(:ids))",
    "postgres": "IN (SELECT json_array_elements_text(CAST(:ids AS json)))",
}
_PLACEHOLDER = re.compile(r":(\w+)")


def named_queries(dialect: Dialect) -> dict[str, str]:
    """Statement by name: the shared ones of `queries.sql`, and the dialect's own."""
    shared = _read("queries.sql").replace(_LIST, _LISTS[dialect])
    if dialect == "postgres":
        shared = _PLACEHOLDER.sub(r"%(\1)s", shared)
    parts = _NAME.split(shared)[1:] + _NAME.split(_read(f"queries_{dialect}.sql"))[1:]
    return {name: sql.strip() for name, sql in zip(parts[::2], parts[1::2], strict=True)}


def migrations(dialect: Dialect) -> list[tuple[int, str]]:
    """Numbered schema changes, oldest first."""
    files = sorted(_HERE.glob(f"{dialect}_*.sql"))
    return [(int(path.stem.rpartition("_")[2]), path.read_text(encoding="utf-8")) for path in files]


def pending(dialect: Dialect, current: int) -> list[tuple[int, str]]:
    """The changes that a schema of version `current` lacks. Raises LedgerError where it is newer than this program."""
    known = migrations(dialect)
    if current > known[-1][0]:
        raise LedgerError(
            f"the ledger's schema is version {current}, and this program knows {known[-1][0]}: run the newer program"
        )
    return [(version, script) for version, script in known if version > current]


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
