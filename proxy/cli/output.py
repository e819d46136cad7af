"""How commands run and report: a table for people, one JSON value with --json, a sentence and exit 1 for a failure."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated, Any, NoReturn, TypeVar

import orjson
import typer
import uvloop
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from config.catalogue import CatalogueError
from config.logs import set_up_logs
from config.settings import SettingsError, read_settings
from metering.background import BeyondHelp
from metering.frames import JournalError
from metering.ports import LedgerAway, LedgerError, LedgerMisconfigured, WrongField
from metering.wallet.connection import WalletAway
from metering.wallet.pressure import WrongPolicy
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
    CatalogueError,
    JournalError,
    LedgerError,
    LedgerMisconfigured,
    PortTaken,
    SettingsError,
    StoreMisconfigured,
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
    """Report: a mapping as two columns, a list of mappings as a table."""
    if as_json:
        sys.stdout.write(orjson.dumps(value).decode() + "\n")
        return
    rows = [value] if isinstance(value, Mapping) else list(value)
    table = Table(show_header=not isinstance(value, Mapping), box=None, pad_edge=False)
    if isinstance(value, Mapping):
        for name, cell in value.items():
            table.add_row(f"[bold]{name}", _text(cell))
    else:
        for name in rows[0] if rows else ():
            table.add_column(name)
        for row in rows:
            table.add_row(*map(_text, row.values()))
    # A pipe has no width: a key or an id must not be cut to 80 columns.
    width = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "240"))
    Console(width=width, soft_wrap=True).print(table if rows else "none")


def _text(cell: Any) -> str:
    return "–" if cell is None else str(cell)
