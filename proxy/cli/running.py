"""How commands run: ledger and Redis from the environment, a sentence and exit 1 for what is known to go wrong."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import typer
import uvloop
from redis.exceptions import AuthenticationError, RedisError

from config.catalogue import CatalogueError
from config.logs import set_up_logs
from config.settings import Settings, SettingsError, read_settings, unknown_names, why_no_actor
from metering.background import BeyondHelp
from metering.journal.frames import JournalError
from metering.orders import CannotKnow
from metering.ports import LedgerAway, LedgerError, LedgerMisconfigured, WrongField
from metering.wallet.connection import WalletAway
from metering.wallet.pressure import WrongPolicy
from proxy.backends import Backends, open_back
from proxy.cli.output import fail, misuse
from proxy.ports import StoreFailed, StoreMisconfigured

T = TypeVar("T")

As = Annotated[str | None, typer.Option("--as", metavar="NAME", help="Who does it, for the audit log.")]

_SENTENCES: dict[type[Exception], str] = {
    AuthenticationError: "GHUB_REDIS_URL: Redis refuses the user name or password.",
    WalletAway: "Redis is away, or not projected yet: is a gateway or a consumer running?",
    RedisError: "Redis does not answer: check GHUB_REDIS_URL.",
    StoreFailed: "the store for images does not answer: check GHUB_STORAGE_URL ({error}).",
    LedgerAway: "the ledger does not answer: check GHUB_LEDGER_URL.",
}
_OWN_WORDS = (
    BeyondHelp,
    CannotKnow,
    CatalogueError,
    JournalError,
    LedgerError,
    LedgerMisconfigured,
    SettingsError,
    StoreMisconfigured,
    WrongPolicy,
)


def run(work: Coroutine[Any, Any, T], *arguments: str) -> T:
    """Run a command; what is known to go wrong is one sentence on standard error and exit code 1.

    `arguments` are those of its fields that stand in no option: a sentence calls them as the usage does.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work)
    except Exception as error:
        if (sentence := _sentence_of(error, arguments)) is None:
            raise
        fail(sentence)


def _sentence_of(error: Exception, arguments: Collection[str] = ()) -> str | None:
    """Of a group it is the first one's, and only where all in it are known; None for what nobody foresaw."""
    if isinstance(error, ExceptionGroup):
        sentences = [_sentence_of(one, arguments) for one in error.exceptions]
        return sentences[0] if all(sentences) else None
    if isinstance(error, WrongField):
        named = error.field.upper() if error.field in arguments else f"--{error.field.replace('_', '-')}"
        return f"{named}: {error.why}"
    if isinstance(error, _OWN_WORDS):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, WalletAway) and isinstance(error.__cause__, AuthenticationError):
        error = error.__cause__
    return next((text.format(error=error) for kind, text in _SENTENCES.items() if isinstance(error, kind)), None)


def settings() -> Settings:
    """The environment's, for a command that a person runs: what is no setting there is named. Raises SettingsError."""
    found = read_settings()
    for name, nearest in unknown_names(os.environ):
        hint = f"did you mean {nearest}?" if nearest else "it changes nothing."
        sys.stderr.write(f"ghub: warning: {name} is no setting; {hint}\n")
    return found


@asynccontextmanager
async def back(who: str | None = None, logs: str = "warning") -> AsyncIterator[Backends]:
    """Ledger and Redis from the environment, the ledger's schema checked; logs go to standard error.

    `who` does it, as `--as` says; without it GHUB_ACTOR, or whoever runs the command. `logs` is the level of
    what is logged beside what the command says.
    """
    if who is not None and (why := why_no_actor(who)):
        misuse(f"--as: {why}")
    set_up_logs(logs, sys.stderr)
    async with open_back(settings(), who) as opened:
        await opened.ledger.check_schema()
        yield opened
