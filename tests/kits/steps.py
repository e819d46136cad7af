"""`ghub` processes that kill or freeze themselves right before or after a step of the money's way.
The product does not know this: a new process wraps one function of the product, and then runs the normal command.
"""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.types import Message, Receive, Scope, Send

import simulator.server  # noqa: F401  # loaded once, for all the children
from metering.journal.file import Journal
from metering.ledger.sqlite import Lane, SqliteLedger
from metering.wallet.kept import Commits
from metering.wallet.projection import Projector
from metering.wallet.wallet import Wallet
from proxy.api.middleware import RequestMiddleware
from proxy.providers.fal import Fal
from proxy.storage.local import LocalStore
from proxy.storage.probe import is_probe

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Stop:
    """Place where a process stops itself the first time it gets there; then `file` exists."""

    step: str
    when: str
    number: int
    file: str

    def here(self, when: str) -> None:
        """Stop, if this is the place."""
        if when == self.when and not Path(self.file).exists():
            Path(self.file).touch()
            os.kill(os.getpid(), self.number)


# --- the wrappers: each is given the real function --------------------------------------------------------------------


def around_call(real: Any, stop: Stop) -> Any:
    """Wrap a coroutine function."""

    async def wrapped(*arguments: Any, **named: Any) -> Any:
        stop.here("before")
        answer = await real(*arguments, **named)
        stop.here("after")
        return answer

    return wrapped


def around_publish(real: Any, stop: Stop) -> Any:
    """Wrap a picture's way into the store; probes of the store do not count."""

    async def wrapped(self: LocalStore, path: str, *arguments: Any, **named: Any) -> None:
        picture = not is_probe(path)
        if picture:
            stop.here("before")
        await real(self, path, *arguments, **named)
        if picture:
            stop.here("after")

    return wrapped


def around_sync(real: Any, stop: Stop) -> Any:
    """Wrap the journal's write and sync, in its own thread."""

    def wrapped(*arguments: Any) -> Any:
        stop.here("before")
        answer = real(*arguments)
        stop.here("after")
        return answer

    return wrapped


def around_reply(real: Any, stop: Stop) -> Any:
    """Wrap the reply to an order's client, from its first byte to its last."""

    async def wrapped(self: RequestMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        async def stopping(message: Message) -> None:
            stop.here("before")
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                stop.here("after")

        order = scope["type"] == "http" and scope["method"] == "POST"
        await real(self, scope, receive, stopping if order else send)

    return wrapped


def around_insert(real: Any, stop: Stop) -> Any:
    """Wrap the statements that book events, inside their transaction."""

    def wrapped(*arguments: Any) -> Generator[Any, Any, Any]:
        stop.here("before")
        new = yield from real(*arguments)
        stop.here("after")
        return new

    return wrapped


def around_commit(real: Any, stop: Stop) -> Any:
    """Wrap the COMMIT of a transaction that writes."""

    @contextmanager
    def wrapped(self: Lane, begin: str) -> Iterator[Any]:
        with real(self, begin) as db:
            yield db
            if begin != "BEGIN DEFERRED":
                stop.here("before")
        if begin != "BEGIN DEFERRED":
            stop.here("after")

    return wrapped


STEPS: dict[str, tuple[type, str, Callable[[Any, Stop], Any]]] = {
    "admit": (Wallet, "admit", around_call),
    "submit": (Fal, "_submitted", around_call),
    "publish": (LocalStore, "put", around_publish),
    "settle": (Wallet, "settle", around_call),
    "sync": (Journal, "_commit", around_sync),
    "reply": (RequestMiddleware, "__call__", around_reply),
    "insert": (SqliteLedger, "_book", around_insert),
    "commit": (Lane, "transaction", around_commit),
    "acknowledge": (Commits, "tell", around_call),
    "credit": (Lane, "transaction", around_commit),
    "rebuild": (Projector, "_rebuild", around_call),
    "replace": (Projector, "_replace", around_call),
}
"""Owner, name and wrapper of the step's function."""


def arm(stop: Stop) -> None:
    """Make this process stop itself there from now on."""
    owner, name, wrap = STEPS[stop.step]
    setattr(owner, name, wrap(getattr(owner, name), stop))
