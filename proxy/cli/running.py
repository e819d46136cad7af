"""How commands run: ledger and Redis from the environment, a sentence and exit 1 for each known error."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
import uvloop

from config.logs import set_up_logs
from config.settings import Settings, read_settings, unknown_names, why_no_actor
from metering.ports import WrongField
from proxy.books import Books, open_books
from proxy.cli.loading import loading
from proxy.cli.output import fail, misuse

if TYPE_CHECKING:
    from proxy.backends import Backends

T = TypeVar("T")

As = Annotated[str | None, typer.Option("--as", metavar="NAME", help="Who does it, for the audit log.")]

SENTENCES = {
    "config.catalogue.CatalogueError": "{error}",
    "config.settings.SettingsError": "{error}",
    "metering.background.BeyondHelp": "{error}",
    "metering.journal.frames.JournalError": "{error}",
    "metering.orders.CannotKnow": "{error}",
    "metering.ports.LedgerError": "{error}",
    "metering.ports.LedgerMisconfigured": "{error}",
    "metering.wallet.pressure.WrongPolicy": "{error}",
    "proxy.ports.StoreMisconfigured": "{error}",
    "proxy.server.supervisor.StopFailed": "{error}",
    "redis.exceptions.AuthenticationError": "GHUB_REDIS_URL: Redis refuses the user name or password.",
    "metering.wallet.connection.WalletAway": (
        "Redis is away, or not projected yet: is a gateway or a consumer running?"
    ),
    "redis.exceptions.RedisError": "Redis does not answer: check GHUB_REDIS_URL.",
    "proxy.ports.StoreFailed": "the store for images does not answer: check GHUB_STORAGE_URL ({error}).",
    "metering.ports.LedgerAway": "the ledger does not answer: check GHUB_LEDGER_URL.",
}
"""The sentence of each known error; the first one counts. The classes are named and not imported: they would bring
every library, Redis' too, into commands that never use it."""


def run(work: Coroutine[Any, Any, T], *arguments: str) -> T:
    """Run a command; a known error becomes one sentence on standard error and exit code 1.

    `arguments` are those of its fields that are no options: a sentence names them as the usage does.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work)
    except Exception as error:
        if (sentence := _sentence_of(error, arguments)) is None:
            raise
        fail(sentence)


def _sentence_of(error: Exception, arguments: Collection[str] = ()) -> str | None:
    """Return an error's sentence; None if it is unknown. A group has its first error's, if all its errors are known."""
    if isinstance(error, ExceptionGroup):
        sentences = [_sentence_of(one, arguments) for one in error.exceptions]
        return sentences[0] if all(sentences) else None
    if isinstance(error, WrongField):
        named = error.field.upper() if error.field in arguments else f"--{error.field.replace('_', '-')}"
        return f"{named}: {error.why}"
    names = _names_of(error)
    if "metering.wallet.connection.WalletAway" in names and error.__cause__ is not None:
        names |= _names_of(error.__cause__) & {"redis.exceptions.AuthenticationError"}
    if (text := next((text for name, text in SENTENCES.items() if name in names), None)) is not None:
        return text.format(error=error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None


def _names_of(error: BaseException) -> set[str]:
    """Return the full names of an error's classes."""
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}


def settings() -> Settings:
    """Read the settings for a command that a person runs, and name unknown GHUB_ variables. Raises SettingsError."""
    found = read_settings()
    for name, nearest in unknown_names(os.environ):
        hint = f"did you mean {nearest}?" if nearest else "it changes nothing."
        sys.stderr.write(f"ghub: warning: {name} is no setting; {hint}\n")
    return found


@asynccontextmanager
async def books() -> AsyncIterator[Books]:
    """Open the ledger alone from the environment, and check its schema; the log goes to standard error."""
    set_up_logs("warning", sys.stderr)
    async with open_books(settings()) as opened:
        await opened.ledger.check_schema()
        yield opened


@asynccontextmanager
async def back(who: str | None = None, logs: str = "warning") -> AsyncIterator["Backends"]:
    """Open ledger and Redis from the environment, and check the ledger's schema; the log goes to standard error.

    `who` is the actor, from `--as`; without it GHUB_ACTOR, or the user who runs the command. `logs` is the level of the
    log, which is separate from the command's output.
    """
    with loading():
        from proxy.backends import open_back  # noqa: PLC0415  # the loader of Redis, which `books` does not need

    if who is not None and (why := why_no_actor(who)):
        misuse(f"--as: {why}")
    set_up_logs(logs, sys.stderr)
    async with open_back(settings(), who) as opened:
        await opened.ledger.check_schema()
        yield opened
