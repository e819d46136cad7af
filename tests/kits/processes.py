"""`ghub` as a process of its own, started in one of two ways that are the same to a test.

`executed` is what a user does: it loads the product, which takes most of a second of CPU. The tests start hundreds of
processes, so `Forked` has a server load the product once for each test process, and fork the rest from it.
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
"""Each is loaded when it is asked for; here once for all of them."""

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload([__name__, *COMMANDS, "metering.ledger.postgres", "simulator.server"])

ONE_AT_A_TIME = Lock()
"""`multiprocessing` looks after all of its children whenever it starts one, and forgets codes that two threads read."""


class Process(Protocol):
    """What the tests need of a `subprocess.Popen`."""

    @property
    def pid(self) -> int:
        """Its number."""

    def poll(self) -> int | None:
        """Its exit code, if it has ended; −n where signal n ended it."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, when it has ended. Raises subprocess.TimeoutExpired."""

    def send_signal(self, sig: int) -> None:
        """Unless it has ended."""

    def kill(self) -> None:
        """kill −9, unless it has ended."""


Begin = Callable[[Sequence[str], Mapping[str, str], Path, Path], Process]
"""Starts `ghub` with arguments, an environment, and the files that its output and its errors are added to."""


def executed(arguments: Sequence[str], environment: Mapping[str, str], out: Path, err: Path) -> Process:
    """`python -m proxy.cli`, loaded anew."""
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
        # Others see the server's command line. A key among these arguments is looked for here.
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
        """Its exit code, if it has ended."""
        with ONE_AT_A_TIME:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, when it has ended."""
        connection.wait([self._process.sentinel], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(["ghub", *self._arguments], timeout or 0.0)
        return code

    def send_signal(self, sig: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it ends at this moment
                os.kill(self.pid, sig)

    def kill(self) -> None:
        """kill −9, unless it has ended."""
        self.send_signal(signal.SIGKILL)


def finished(
    begin: Begin, arguments: Sequence[str], environment: Mapping[str, str], within_s: float
) -> subprocess.CompletedProcess[str]:
    """A command that comes to its end, and what it said."""
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
    """All that an exec'd process would have, and no more: its environment, its descriptors, its arguments."""
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
