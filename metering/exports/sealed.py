"""The rows of an exported file with their seals, as CSV or JSON lines, for a check against the month's manifest."""

import csv
import json
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from metering.exports.rows import COLUMNS, END_COLUMNS, SEALED, cells_of_json
from metering.manifest import SealedRow

WIDE = (*COLUMNS, *END_COLUMNS)
"""Columns of a file with all ends. Those behind the seal are not sealed, and neither are rows that charge nothing."""

_KIND, _AMOUNT = SEALED.index("kind"), SEALED.index("amount_mxn")
_FREE = frozenset({"void", "expiry", "unknown"})


class NoExport(ValueError):
    """The file is no export of a month; the message says at which line."""


class SealedFile:
    """A file that is read once. `not_sealed` counts the rows that charge nothing, and so have no seal."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.not_sealed = 0

    def rows(self) -> Iterator[SealedRow]:
        """Yield the rows that are money. Places are lines of the file as a person counts them. Raises NoExport."""
        first = self._file.readline()
        self._file.seek(0)
        rows = self._json_lines() if first.startswith("{") else self._csv()
        for place, columns, cells in rows:
            if columns == WIDE and _is_free(cells):
                self.not_sealed += 1
            elif len(cells) != len(columns):
                yield SealedRow(place, "", f"{cells[:1]}", cells, "", "0.00")
            else:
                sealed = cells[: len(SEALED)]
                yield SealedRow(place, sealed[1], sealed[0], sealed, cells[len(SEALED)], sealed[_AMOUNT])

    def _csv(self) -> Iterator[tuple[int, Sequence[str], Sequence[str]]]:
        reader = csv.reader(self._file, strict=True)
        try:
            columns = tuple(next(reader, []))
            if columns not in (COLUMNS, WIDE):
                raise NoExport("its first line is not that of an export of a month")
            for place, cells in enumerate(reader, start=2):
                yield place, columns, cells
        except csv.Error as error:
            raise NoExport(f"line {reader.line_num}: {error}") from None

    def _json_lines(self) -> Iterator[tuple[int, Sequence[str], Sequence[str]]]:
        for place, line in enumerate(self._file, start=1):
            try:
                fields: dict[str, Any] = json.loads(line, object_pairs_hook=_once)
                columns = WIDE if len(fields) == len(WIDE) else COLUMNS
                if fields.keys() != set(columns):
                    raise NoExport(f"line {place}: it has other names than a row of an export")
                behind = [fields[name] or "" for name in columns[len(SEALED) :]]
                yield place, columns, [*cells_of_json(fields), *map(str, behind)]
            except (json.JSONDecodeError, AttributeError, KeyError, TypeError):
                raise NoExport(f"line {place}: it is no row of an export") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object in which each name stands once: of two, another reader may take the other. Raises NoExport."""
    if len(found := dict(pairs)) != len(pairs):
        raise NoExport("a name stands in a row twice")
    return found


def _is_free(cells: Sequence[str]) -> bool:
    """True for an order that was not charged, as `--all-ends` has it."""
    return len(cells) == len(WIDE) and (cells[_KIND] in _FREE and cells[_AMOUNT] == "0.00" and not cells[len(SEALED)])
