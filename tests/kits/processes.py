"""`ghub` as its own process, started in one of two ways that are the same to a test.
`executed` is a user's way: it loads the product, which takes most of a second of CPU. The tests start hundreds of
processes, so `Forked` has a server load the product once for each test process, and fork the others from it.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import connection, get_context
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Lock
from typing import Protocol

from metering.accounts import KEY_PREFIX
from proxy.cli.root import ENTRIES, main

COMMANDS = sorted({f"proxy.cli.{entry.module}" for entry in ENTRIES.values()})
"""Modules that are loaded when they are needed; here once for all processes."""

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload([__name__, *COMMANDS, "proxy.cli.serve", "metering.ledger.postgres", "simulator.server"])

ONE_AT_A_TIME = Lock()
"""`multiprocessing` checks all of its children whenever it starts one, and loses codes that two threads read."""


class Process(Protocol):
    """The part of `subprocess.Popen` that the tests need."""

    @property
    def pid(self) -> int:
        """Process id."""

    def poll(self) -> int | None:
        """Read its exit code, if it has ended; −n if signal n ended it."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its exit code. Raises subprocess.TimeoutExpired."""

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended."""

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""


Begin = Callable[[Sequence[str], Mapping[str, str], Path, Path], Process]
"""Starts `ghub` with arguments, an environment, and the files for its output and its errors."""


def executed(arguments: Sequence[str], environment: Mapping[str, str], out: Path, err: Path) -> Process:
    """Run `python -m proxy.cli` in a new interpreter."""
    with out.open("ab") as stdout, err.open("ab") as stderr:
        command = [sys.executable, "-m", "proxy.cli", *arguments]
        return subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr)


class Forked:
    """The same from the server; `before` is called in the new process first, so that it may change the product."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        out: Path,
        err: Path,
        before: Callable[[], None] | None = None,
    ) -> None:
        # Others see the server's command line, so check here for a key among these arguments.
        assert not any(KEY_PREFIX in argument for argument in arguments), "a key stands in a command line"
        self._arguments = arguments
        self._process = SERVER.Process(
            target=_become_ghub,
            args=(arguments, dict(environment), out, err, before),
            daemon=True,  # none outlives the test process
        )
        with ONE_AT_A_TIME:
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Read its exit code, if it has ended."""
        with ONE_AT_A_TIME:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its exit code."""
        connection.wait([self._process.sentinel], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(["ghub", *self._arguments], timeout or 0.0)
        return code

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it ends at this moment
                os.kill(self.pid, sig)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)


def finished(
    begin: Begin, arguments: Sequence[str], environment: Mapping[str, str], within_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; returns its output."""
    with NamedTemporaryFile() as out, NamedTemporaryFile() as err:
        process = begin(arguments, environment, Path(out.name), Path(err.name))
        try:
            code = process.wait(within_s)
        finally:
            process.kill()
        return subprocess.CompletedProcess(["ghub", *arguments], code, out.read().decode(), err.read().decode())


def _become_ghub(
    arguments: Sequence[str], environment: Mapping[str, str], out: Path, err: Path, before: Callable[[], None] | None
) -> None:
    """Set up what an exec'd process would have, and no more: its environment, its descriptors, its arguments."""
    os.environ.clear()
    os.environ.update(environment)
    with Path(os.devnull).open("rb") as nothing, out.open("ab") as stdout, err.open("ab") as stderr:
        for number, file in enumerate((nothing, stdout, stderr)):
            os.dup2(file.fileno(), number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    sys.argv = ["ghub", *arguments]
    if before is not None:
        before()
    main()
