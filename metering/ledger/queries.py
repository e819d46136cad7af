"""SQL lives in `.sql` files; this finds it there."""

import re
from pathlib import Path

_HERE = Path(__file__).parent / "sql"
_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def named_queries() -> dict[str, str]:
    """Statement by name, from `queries.sql`."""
    parts = _NAME.split((_HERE / "queries.sql").read_text(encoding="utf-8"))
    return {name: sql.strip() for name, sql in zip(parts[1::2], parts[2::2], strict=True)}


def migrations(dialect: str) -> list[tuple[int, str]]:
    """Numbered schema changes of one dialect (`sqlite`), oldest first."""
    files = sorted(_HERE.glob(f"{dialect}_*.sql"))
    return [(int(path.stem.rpartition("_")[2]), path.read_text(encoding="utf-8")) for path in files]
