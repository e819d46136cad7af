"""SQL lives in `.sql` files; this finds it there.

Both databases run the same statements but for a few, which stand in a file of their own. The shared ones are written
with `:name`, as SQLite takes it; for psycopg the placeholder is respelled. A list is given as JSON and written
`IN (:ids)`, which each database takes apart in its own way. What stands in braces is written out for each kind of limit
(`metering/limits.py`), with its column for the word `limit`: `{limit = :limit}`. Nothing else is ever translated.
"""

import re
from pathlib import Path
from typing import Literal

from metering.limits import LIMITS
from metering.ports import LedgerError

Dialect = Literal["sqlite", "postgres"]

_HERE = Path(__file__).parent / "sql"
_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_LIST = "IN (:ids)"
_LISTS: dict[Dialect, str] = {
    "sqlite": "IN (SELECT value FROM json_each(:ids))",
    "postgres": "IN (SELECT json_array_elements_text(CAST(:ids AS json)))",
}
_OF_EACH_LIMIT = re.compile(r"\{(.+?)\}")
_PLACEHOLDER = re.compile(r":(\w+)")


def named_queries(dialect: Dialect) -> dict[str, str]:
    """Statement by name: the shared ones of `queries.sql`, and the dialect's own."""
    shared = _OF_EACH_LIMIT.sub(_written_out, _read("queries.sql")).replace(_LIST, _LISTS[dialect])
    if dialect == "postgres":
        shared = _PLACEHOLDER.sub(r"%(\1)s", shared)
    parts = _NAME.split(shared)[1:] + _NAME.split(_read(f"queries_{dialect}.sql"))[1:]
    return {name: sql.strip() for name, sql in zip(parts[::2], parts[1::2], strict=True)}


def migrations(dialect: Dialect) -> list[tuple[int, str]]:
    """Read numbered schema changes, oldest first."""
    files = sorted(_HERE.glob(f"{dialect}_*.sql"))
    return [(int(path.stem.rpartition("_")[2]), path.read_text(encoding="utf-8")) for path in files]


def pending(dialect: Dialect, current: int) -> list[tuple[int, str]]:
    """List the changes that schema version `current` lacks. Raises LedgerError if it is newer than this program."""
    known = migrations(dialect)
    if current > known[-1][0]:
        raise LedgerError(
            f"the ledger's schema is version {current}, and this program knows {known[-1][0]}: run the newer program"
        )
    return [(version, script) for version, script in known if version > current]


def _written_out(of_each: re.Match[str]) -> str:
    return ", ".join(of_each[1].replace("limit", column) for column in LIMITS)


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
