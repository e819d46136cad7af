"""The output of commands: text for people, one JSON value with --json, a sentence for a failure."""

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any, NoReturn, TextIO

import orjson
import typer

from metering.clock import is_month

Row = Mapping[str, Any]

NOT_EVERYTHING = 3
"""Exit code of a command that is done although not everything is known yet."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of a table.")]
LogsAreJson = Annotated[bool, typer.Option("--json", help="As every command has it; the log is JSON lines anyway.")]
OrgRef = Annotated[str, typer.Argument(metavar="ORG", help="The organisation's UUID or its name.")]

_LENGTH = re.compile(r"([0-9]{1,5})([hdm])")


def fail(sentence: str) -> NoReturn:
    """Print why the command failed, and exit with 1."""
    sys.stderr.write(f"ghub: {sentence}\n")
    raise typer.Exit(1)


def misuse(sentence: str) -> NoReturn:
    """Print which argument is wrong and how it should be, and exit with 2."""
    sys.stderr.write(f"ghub: {sentence}\n")
    raise typer.Exit(2)


def must_be_month(option: str, month: str) -> None:
    """Misuse ends the command unless it is `YYYY-MM`."""
    if not is_month(month):
        misuse(f"{option}: {month!r} is not a month, such as 2026-11")


def length_of_time(option: str, text: str) -> timedelta:
    """Parse `24h`, `7d` or `30m`. Misuse ends the command."""
    parsed = _LENGTH.fullmatch(text)
    if parsed is None:
        misuse(f"{option}: {text!r} is no length of time; write 24h, 7d or 30m")
    unit = {"h": "hours", "d": "days", "m": "minutes"}[parsed[2]]
    return timedelta(**{unit: int(parsed[1])})


def say(value: Row | Sequence[Row], as_json: bool) -> None:
    """Print a mapping as a block of names and values, a list of mappings as a table. No value is ever cut."""
    if as_json:
        sys.stdout.write(orjson.dumps(value).decode() + "\n")
        return
    if isinstance(value, Mapping):
        sys.stdout.writelines(f"{line}\n" for line in block(value, _width(sys.stdout)))
        return
    rows = [{name: in_one_line(cell) for name, cell in row.items()} for row in value]
    sys.stdout.writelines(f"{line}\n" for line in _table(rows, _width(sys.stdout)))


def say_secret(secret: str, name: str, more: Row, as_json: bool) -> None:
    """Print a secret once, alone on standard output, so that `X=$(ghub …)` has it; the rest goes to standard error."""
    if as_json:
        say({**more, name: secret}, as_json)
        return
    sys.stdout.write(f"{secret}\n")
    sys.stderr.writelines(f"{line}\n" for line in block(more, _width(sys.stderr)))


def _table(rows: Sequence[Mapping[str, str]], width: int | None) -> Iterator[str]:
    """Yield a line for each row; if the lines are wider than the terminal, a block for each row."""
    if not rows:
        yield "none"
        return
    wide = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    if width is not None and sum(wide.values()) + 2 * (len(wide) - 1) > width:
        for place, row in enumerate(rows):
            yield from ([""] if place else [])
            yield from block(row, width)
        return
    for cells in ({name: name for name in wide}, *rows):
        yield "  ".join(cells[name].ljust(wide[name]) for name in wide).rstrip()


def block(row: Row, width: int | None, indent: int = 0) -> Iterator[str]:
    """Yield a mapping as lines of names and values; nested values are blocks, with one `- ` for each item of a list.

    If `width` is given, lines are folded between words to that many columns. A longer word stays whole, because people
    copy addresses and digests.
    """
    margin = " " * indent
    at = max(len(name) for name in row) + 2
    for name, cell in row.items():
        parts = cell if isinstance(cell, list | tuple) else ()
        if isinstance(cell, Mapping) and cell:
            yield f"{margin}{name}"
            yield from block(cell, width, indent + 2)
        elif parts and all(isinstance(part, Mapping) and part for part in parts):
            yield f"{margin}{name}"
            for part in parts:
                first, *rest = block(part, width, indent + 4)
                yield f"{margin}  - {first.lstrip()}"
                yield from rest
        else:
            first, *rest = _folded(in_one_line(cell), None if width is None else width - indent - at)
            yield f"{margin}{name.ljust(at)}{first}"
            yield from (f"{margin}{' ' * at}{line}" for line in rest)


def _folded(text: str, width: int | None) -> list[str]:
    if width is None:
        return [text]
    return textwrap.wrap(text, max(width, 20), break_long_words=False, break_on_hyphens=False) or [""]


def _width(stream: TextIO) -> int | None:
    """Return the terminal's width. A pipe has none, unless COLUMNS gives one: output for a program is not folded."""
    if "COLUMNS" in os.environ:
        return shutil.get_terminal_size().columns
    return os.get_terminal_size(stream.fileno()).columns or None if stream.isatty() else None


def in_one_line(cell: Any) -> str:
    """Return a cell as one line, without control characters that a terminal would obey."""
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, list | tuple):
        return ", ".join(map(in_one_line, cell)) or "none"
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in str(cell))
