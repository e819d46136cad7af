"""A file of an export: whole or not at all."""

from collections.abc import Awaitable, Callable
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
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            written = await write(source, file, tell)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return written
