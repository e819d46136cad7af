"""How commands run and report: text for people, one JSON value with --json, a sentence and exit 1 for a failure."""

import asyncio
import os
import re
import shutil
import sys
import textwrap
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated, Any, NoReturn, TypeVar

import orjson
import typer
import uvloop
from redis.exceptions import RedisError

from config.catalogue import CatalogueError
from config.logs import set_up_logs
from config.settings import SettingsError, read_settings
from metering.background import BeyondHelp
from metering.frames import JournalError
from metering.orders import CannotKnow
from metering.ports import LedgerAway, LedgerError, LedgerMisconfigured, WrongField
from metering.wallet.connection import WalletAway
from metering.wallet.pressure import WrongPolicy
from proxy.descriptors import TooFewFiles
from proxy.ports import StoreFailed, StoreMisconfigured
from proxy.server import PortTaken
from proxy.wiring import Back, open_back

T = TypeVar("T")

Row = Mapping[str, Any]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of a table.")]
OrgRef = Annotated[str, typer.Argument(metavar="ORG", help="The organisation's UUID or its name.")]

_SENTENCES: dict[type[Exception], str] = {
    WalletAway: "Redis is away, or not projected yet: is a gateway or a consumer running?",
    RedisError: "Redis does not answer: check GHUB_REDIS_URL.",
    StoreFailed: "the store for images does not answer: check GHUB_STORAGE_URL ({error}).",
    LedgerAway: "the ledger does not answer: check GHUB_LEDGER_URL.",
}
_LENGTH = re.compile(r"([0-9]{1,5})([hdm])")
_OWN_WORDS = (
    BeyondHelp,
    CannotKnow,
    CatalogueError,
    JournalError,
    LedgerError,
    LedgerMisconfigured,
    PortTaken,
    SettingsError,
    StoreMisconfigured,
    TooFewFiles,
    WrongPolicy,
)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command; what is known to go wrong is one sentence on standard error and exit code 1."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work)
    except Exception as error:
        if (sentence := _sentence_of(error)) is None:
            raise
        fail(sentence)


def _sentence_of(error: Exception) -> str | None:
    """Of a group it is the first one's, and only where all in it are known; None for what nobody foresaw."""
    if isinstance(error, ExceptionGroup):
        sentences = [_sentence_of(one) for one in error.exceptions]
        return sentences[0] if all(sentences) else None
    if isinstance(error, WrongField):
        return f"--{error.field.replace('_', '-')}: {error.why}"
    if isinstance(error, _OWN_WORDS):
        return str(error)
    return next((text.format(error=error) for kind, text in _SENTENCES.items() if isinstance(error, kind)), None)


def fail(sentence: str) -> NoReturn:
    """Say why, and end with 1."""
    sys.stderr.write(f"ghub: {sentence}\n")
    raise typer.Exit(1)


def misuse(sentence: str) -> NoReturn:
    """An argument is wrong: say which and how it should be, and end with 2."""
    sys.stderr.write(f"ghub: {sentence}\n")
    raise typer.Exit(2)


def length_of_time(option: str, text: str) -> timedelta:
    """`24h`, `7d` or `30m`. Misuse ends the command."""
    parsed = _LENGTH.fullmatch(text)
    if parsed is None:
        misuse(f"{option}: {text!r} is no length of time; write 24h, 7d or 30m")
    unit = {"h": "hours", "d": "days", "m": "minutes"}[parsed[2]]
    return timedelta(**{unit: int(parsed[1])})


@asynccontextmanager
async def back() -> AsyncIterator[Back]:
    """Ledger and Redis from the environment, the ledger's schema checked; logs go to standard error."""
    settings = read_settings()
    set_up_logs("warning", sys.stderr)
    async with open_back(settings) as opened:
        await opened.ledger.check_schema()
        yield opened


def say(value: Row | Sequence[Row], as_json: bool) -> None:
    """Report: a mapping as a block of names and values, a list of mappings as a table. No value is ever cut."""
    if as_json:
        sys.stdout.write(orjson.dumps(value).decode() + "\n")
        return
    if isinstance(value, Mapping):
        sys.stdout.writelines(f"{line}\n" for line in block(value, _width()))
        return
    rows = [{name: _text(cell) for name, cell in row.items()} for row in value]
    sys.stdout.writelines(f"{line}\n" for line in _table(rows, _width()))


def _table(rows: Sequence[Mapping[str, str]], width: int | None) -> Iterator[str]:
    """A line for each; where they are wider than the terminal, a block for each."""
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
    """A mapping as lines of names and values; what is in it as blocks of their own, one `- ` for each of a list.

    Folded between words to `width` columns, where there is one. A word that is longer stays whole: an address or a
    digest is there to be copied.
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
            first, *rest = _folded(_text(cell), None if width is None else width - indent - at)
            yield f"{margin}{name.ljust(at)}{first}"
            yield from (f"{margin}{' ' * at}{line}" for line in rest)


def _folded(text: str, width: int | None) -> list[str]:
    if width is None:
        return [text]
    return textwrap.wrap(text, max(width, 20), break_long_words=False, break_on_hyphens=False) or [""]


def _width() -> int | None:
    """Of the terminal. A pipe has none, unless COLUMNS says one: what is read by a program is not folded."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return shutil.get_terminal_size().columns
    return None


def _text(cell: Any) -> str:
    """In one line, and with nothing in it that a terminal would obey."""
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, list | tuple):
        return ", ".join(map(_text, cell)) or "none"
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in str(cell))
