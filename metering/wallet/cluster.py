"""Redis or Valkey Cluster as one client, which sends every command to the master of its partition.
redis-py's own cluster client is not used. If one node is silent, it searches for the others again under a lock that
everybody waits for, and then it also closes all connections of the healthy nodes. Here a node that is away affects its
own partitions only, and nothing is sent twice unless the server itself said that it has done nothing.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.crc import key_slot
from redis.exceptions import AuthenticationError, ClusterDownError, MovedError, RedisError
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import TimeoutError as NoAnswer

from metering.wallet import keys
from metering.wallet.address import Node as Address

log = structlog.get_logger(__name__)

Command = tuple[tuple[Any, ...], Mapping[str, Any]]

PAUSE_S = 0.1
"""Pause between two checks of a cluster in which a master does not answer."""

PROBE_S = 0.5
"""A node that answers in this time counts as present."""

ASK_S = 2.0
"""The longest answer of a node about the others; a healthy one takes a millisecond."""

_SLOTS = [key_slot(keys.mark(partition).encode()) for partition in range(keys.PARTITIONS)]
_SILENT = (NoConnection, NoAnswer, ClusterDownError, OSError)


class Cluster(Redis):
    """A client for a cluster. Every key of a command must be in one partition; only pipelines may mix partitions.

    A command that a server answers with MOVED wrote nothing, and is sent once more, to the place it names. The caller
    sees every other error: ASK and TRYAGAIN (a slot is being moved key by key), CLUSTERDOWN, a dead or silent node.
    After the last two, a background task checks the cluster until every master answers.
    """

    def __init__(self, connect: Callable[[Address], Redis], seeds: Sequence[Address]) -> None:
        self._connect = connect
        self._seeds = frozenset(seeds)
        self._clients = {seed: connect(seed) for seed in seeds}
        self._masters: list[Address] = []
        self._epochs = [0] * keys.PARTITIONS
        self._first_look = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None
        self._refusal: AuthenticationError | None = None
        self._closed = False
        super().__init__(connection_pool=self._clients[seeds[0]].connection_pool)  # never used: this client has no node

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command to the master of its partition."""
        partition = keys.partition_in(args)
        client = await self.master_of(partition)
        try:
            try:
                return await _send(client, args, options)
            except MovedError as moved:
                self._follow(partition, moved)
                return await _send(self.known_master_of(partition), args, options)
        except (*_SILENT, asyncio.CancelledError):  # cancelled: its caller no longer waits
            self._look_for_them()
            raise

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "ClusterPipeline":
        """Make a pipeline to every master, without a transaction, which cannot span several."""
        if transaction:
            raise ValueError("no transaction spans a cluster")
        return ClusterPipeline(self)

    async def execute_all(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands with one round trip to each master, all at once. A reply may be an exception."""
        places: dict[Redis, list[int]] = defaultdict(list)
        for place, (args, _) in enumerate(commands):
            places[await self.master_of(keys.partition_in(args))].append(place)
        answers: list[Any] = [None] * len(commands)

        async def ask(client: Redis, mine: list[int]) -> None:
            found = await self._execute_at(client, [commands[place] for place in mine])
            for place, answer in zip(mine, found, strict=True):
                answers[place] = answer

        await asyncio.gather(*(ask(client, mine) for client, mine in places.items()))
        for place, (args, options) in enumerate(commands):
            if isinstance(answers[place], MovedError):  # it wrote nothing
                try:
                    answers[place] = await self.execute_command(*args, **options)
                except (RedisError, OSError) as error:
                    answers[place] = error
        return answers

    async def master_of(self, partition: int) -> Redis:
        """Find the client of the node that should have a partition. Raises NoConnection."""
        if not self._masters:
            async with self._first_look:
                if not self._masters:
                    await self._look()
        return self.known_master_of(partition)

    def known_master_of(self, partition: int) -> Redis:
        """Find the same without a query; before anything is known, it is the whole cluster."""
        return self._clients[self._masters[partition]] if self._masters else self

    async def servers(self) -> list[tuple[Redis, tuple[int, ...]]]:
        """List all masters that have a partition, each with its partitions."""
        found: dict[Redis, list[int]] = defaultdict(list)
        for partition in range(keys.PARTITIONS):
            found[await self.master_of(partition)].append(partition)
        return [(client, tuple(partitions)) for client, partitions in found.items()]

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections to all nodes."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})  # the library may lose a cancellation: then it ends by itself
        for client in self._clients.values():
            await client.aclose()

    async def _execute_at(self, client: Redis, commands: list[Command]) -> list[Any]:
        pipe = client.pipeline(transaction=False)
        pipe.command_stack = list(commands)
        try:
            answers = await pipe.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            answers = [error] * len(commands)
        except asyncio.CancelledError:
            self._look_for_them()
            raise
        if any(isinstance(answer, (*_SILENT, MovedError)) for answer in answers):
            self._look_for_them()
        return answers

    # --- which node has which partition ---

    def _follow(self, partition: int, moved: MovedError) -> None:
        address = (str(moved.host) or self._masters[partition][0], int(moved.port))
        self._meet(address)
        self._masters[partition] = address
        self._look_for_them()

    def _meet(self, address: Address) -> None:
        if address not in self._clients:
            self._clients[address] = self._connect(address)

    def _look_for_them(self) -> None:
        if not self._closed and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._settle())

    async def _settle(self) -> None:
        """Check until every master answers for its partitions, so that recovery is noticed without a failed request."""
        looks = 0
        while not await self._whole() and not self._closed:
            if not looks:
                log.warning("cluster_not_whole")
            looks += 1
            await asyncio.sleep(PAUSE_S)
        if looks:
            log.warning("cluster_whole_again", looks=looks)

    async def _whole(self) -> bool:
        try:
            await self._look()
            servers = await self.servers()
            probes = (client.exists(keys.mark(partitions[0])) for client, partitions in servers)
            async with asyncio.timeout(PROBE_S):
                await asyncio.gather(*probes)
        except (RedisError, OSError):
            return False
        return True

    async def _look(self) -> None:
        """Learn from the first node that knows a master for every partition. Raises RedisError."""
        tasks = [asyncio.ensure_future(self._ask(address)) for address in self._clients]
        try:
            for answer in asyncio.as_completed(tasks):
                if self._learn(nodes := await answer):
                    break
            else:
                raise self._refusal or NoConnection("no node of the cluster knows all of its masters")
        finally:
            for one in tasks:
                one.cancel()
            await asyncio.wait(tasks)  # otherwise one would go on and open a connection that nobody closes
        for gone in set(self._clients) - set(nodes) - self._seeds - set(self._masters):
            await self._clients.pop(gone).aclose()

    async def _ask(self, address: Address) -> dict[Address, Any]:
        """Ask a node what it knows of all nodes, itself included. Empty if it does not answer."""
        try:
            async with asyncio.timeout(ASK_S):
                nodes = await _send(self._clients[address], ("CLUSTER NODES",), {})
        except AuthenticationError as error:
            self._refusal = error
            return {}
        except (RedisError, OSError):
            return {}
        self._refusal = None
        found = {}
        for name, node in nodes.items():
            host, _, port = name.rpartition(":")
            if int(port):  # port 0: it has no address yet
                found[node["hostname"] or host or address[0], int(port)] = node
        return found

    def _learn(self, nodes: dict[Address, Any]) -> bool:
        """Accept a node's answer, unless it knows too few masters.

        An older configuration never replaces a newer one.
        """
        masters = _masters(nodes)
        if len(masters) < keys.PARTITIONS:
            return False
        for address in nodes:
            self._meet(address)
        known = self._masters or [masters[partition][1] for partition in range(keys.PARTITIONS)]
        for partition, (epoch, address) in masters.items():
            if epoch >= self._epochs[partition]:
                self._epochs[partition], known[partition] = epoch, address
        self._masters = known
        return True


class ClusterPipeline(Pipeline):
    """A pipeline whose commands go to their masters, all at once."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster.connection_pool, {}, transaction=False, shard_hint=None)
        self._cluster = cluster

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Run the commands; replies are in their order.

        With `raise_on_error` False, masters that are away give errors.
        """
        commands, self.command_stack = self.command_stack, []
        answers = await self._cluster.execute_all(commands)
        for answer in answers:
            if raise_on_error and isinstance(answer, Exception):
                raise answer
        return answers


async def _send(client: Redis, args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    return await client.execute_command(*args, **options)  # type: ignore[no-untyped-call]  # the library's own seam


def _masters(nodes: dict[Address, Any]) -> dict[int, tuple[int, Address]]:
    """Find the configuration epoch and the address of each partition's master."""
    found = {}
    for address, node in nodes.items():
        spans = [(int(span[0]), int(span[-1])) for span in node["slots"]]
        for partition, slot in enumerate(_SLOTS):
            if any(first <= slot <= last for first, last in spans):
                found[partition] = int(node["epoch"]), address
    return found
