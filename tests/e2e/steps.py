"""Starts `ghub` processes that kill or freeze themselves right before or after a step of the money's way.

Nothing in the product knows of it: `python -m tests.e2e.steps` loads the product once, and forks a process for each
line of JSON that it reads; the child wraps one function of the product and then runs the ordinary command.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from redis.asyncio.client import Pipeline
from starlette.types import Message, Receive, Scope, Send

import proxy.simulator.server  # noqa: F401  # loaded once, for all the children
from metering.journal import Journal
from metering.ledger.sqlite import SqliteLedger
from metering.wallet.projection import Projector
from metering.wallet.wallet import Wallet
from proxy.cli.root import main as ghub
from proxy.middleware import RequestMiddleware
from proxy.providers.fal import Fal
from proxy.storage.local import LocalStore

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Stop:
    """Where a process stops itself, the first time that it comes by; `file` is there as soon as it has."""

    step: str
    when: str
    number: int
    file: str

    def here(self, when: str) -> None:
        """Stop, if this is where."""
        if when == self.when and not Path(self.file).exists():
            Path(self.file).touch()
            os.kill(os.getpid(), self.number)


# --- the wrappers: each is given the real function --------------------------------------------------------------------


def around_call(real: Any, stop: Stop) -> Any:
    """A coroutine function."""

    async def wrapped(*arguments: Any, **named: Any) -> Any:
        stop.here("before")
        answer = await real(*arguments, **named)
        stop.here("after")
        return answer

    return wrapped


def around_sync(real: Any, stop: Stop) -> Any:
    """The journal's write and sync, in its own thread."""

    def wrapped(*arguments: Any) -> Any:
        stop.here("before")
        answer = real(*arguments)
        stop.here("after")
        return answer

    return wrapped


def around_reply(real: Any, stop: Stop) -> Any:
    """What an order's client is sent: from the first byte of the reply to its last."""

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
    """The statements that book events, inside their transaction."""

    def wrapped(*arguments: Any) -> Generator[Any, Any, Any]:
        stop.here("before")
        new = yield from real(*arguments)
        stop.here("after")
        return new

    return wrapped


def around_commit(real: Any, stop: Stop) -> Any:
    """The COMMIT of a transaction that writes."""

    @contextmanager
    def wrapped(self: SqliteLedger, begin: str) -> Iterator[Any]:
        with real(self, begin) as db:
            yield db
            if begin != "BEGIN DEFERRED":
                stop.here("before")
        if begin != "BEGIN DEFERRED":
            stop.here("after")

    return wrapped


def around_half(real: Any, stop: Stop) -> Any:
    """A consumer's pipeline of pairs, XACK and XDEL: it may be cut between any two of its bytes."""

    async def wrapped(self: Pipeline, connection: Any, commands: Any, raise_on_error: bool) -> Any:
        halves = commands[0::2], commands[1::2]
        named = [{"XACK": "acknowledge", "XDEL": "trim"}.get(str(half[0][0][0])) if half else None for half in halves]
        if stop.step not in named:
            return await real(self, connection, commands, raise_on_error)
        answers = []
        for name, half in zip(named, halves, strict=True):
            if name == stop.step:
                stop.here("before")
            answers.append(await real(self, connection, half, raise_on_error))
            if name == stop.step:
                stop.here("after")
        return [answer for pair in zip(*answers, strict=True) for answer in pair]

    return wrapped


STEPS: dict[str, tuple[type, str, Callable[[Any, Stop], Any]]] = {
    "admit": (Wallet, "admit", around_call),
    "submit": (Fal, "_submitted", around_call),
    "publish": (LocalStore, "put", around_call),
    "settle": (Wallet, "settle", around_call),
    "sync": (Journal, "_commit", around_sync),
    "reply": (RequestMiddleware, "__call__", around_reply),
    "insert": (SqliteLedger, "_book", around_insert),
    "commit": (SqliteLedger, "_transaction", around_commit),
    "acknowledge": (Pipeline, "_execute_pipeline", around_half),
    "trim": (Pipeline, "_execute_pipeline", around_half),
    "credit": (SqliteLedger, "_transaction", around_commit),
    "rebuild": (Projector, "_rebuild", around_call),
    "replace": (Projector, "_replace", around_call),
}
"""Owner, name and wrapper of the function that is the step."""


# --- the process that forks, and its children -------------------------------------------------------------------------


def child(arguments: list[str], environment: dict[str, str], log: str, stop: dict[str, Any] | None) -> None:
    """Become `ghub`; its exit code is written beside its log."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.update(environment)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if stop is not None:
        owner, name, wrap = STEPS[stop["step"]]
        setattr(owner, name, wrap(getattr(owner, name), Stop(**stop)))
    sys.argv = ["ghub", *arguments]
    code = 1
    try:
        ghub()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        Path(f"{log}.code").write_text(str(code))
        os._exit(code)


def fork_for_ever() -> None:
    """A child for each line; its id is the answer."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: they leave no zombies
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(**json.loads(line))
        print(pid, flush=True)


class Forked:
    """A child, as much of a `subprocess.Popen` as a test needs."""

    def __init__(self, pid: int, log: str) -> None:
        self.pid = pid
        self._code = Path(f"{log}.code")

    def poll(self) -> int | None:
        """Its exit code; −9 where it was killed."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return int(self._code.read_text()) if self._code.exists() else -signal.SIGKILL
        return None

    def send_signal(self, number: int) -> None:
        """Unless it is gone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, timeout: float = 60.0) -> int:
        """Until it is gone."""
        until_s = time.monotonic() + timeout
        while (code := self.poll()) is None:
            assert time.monotonic() < until_s, "it does not end"
            time.sleep(0.02)
        return code


class Forks:
    """The process that forks; any number of threads may ask it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.steps"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._lock = Lock()

    def ghub(self, arguments: list[str], environment: dict[str, str], log: str, stop: Stop | None) -> Forked:
        """A `ghub` of these arguments."""
        wanted = {
            "arguments": arguments,
            "environment": environment,
            "log": log,
            "stop": None if stop is None else vars(stop),
        }
        Path(f"{log}.code").unlink(missing_ok=True)
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(wanted).encode() + b"\n")
            self._process.stdin.flush()
            return Forked(int(self._process.stdout.readline()), log)

    def close(self) -> None:
        """No more of them."""
        self._process.kill()
        self._process.communicate()


if __name__ == "__main__":
    fork_for_ever()
