"""A file of an export: whole or not at all."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from metering.exports.reading import Scope
from metering.exports.rows import Written
from metering.ports import Ledger

Tell = Callable[[int], None]
"""Is told of rows that were written, for a person who waits."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is exported, and from where."""

    ledger: Ledger
    scope: Scope


Format = Callable[[Source, BinaryIO, Tell], Awaitable[Written]]
"""Writes an export to an open file. Raises LedgerAway, OSError."""


def untold(rows: int) -> None:
    """Tell nobody."""


async def write_file(source: Source, path: Path, write: Format, tell: Tell = untold) -> Written:
    """Write to `path` completely or not at all. Raises LedgerAway, OSError."""
    with whole(path) as part, part.open("wb") as file:
        return await write(source, file, tell)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Name a file beside `path` that takes its place once it is written, and is removed if it is not."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
