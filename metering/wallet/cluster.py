"""Redis or Valkey Cluster as one client, to which every command goes by its partition.

redis-py's own client for clusters is not used: one node that is silent makes it look for the others anew, under a lock
that everybody waits for, and then it closes all connections of the healthy ones, too. Here a node that is away is away
for its own partitions only, and nothing is sent twice unless the server itself said that it has done nothing.
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
"""Between two looks at a cluster in which a master does not answer."""

PROBE_S = 0.5
"""What answers in this time is there."""

_SLOTS = [key_slot(keys.mark(partition).encode()) for partition in range(keys.PARTITIONS)]
_SILENT = (NoConnection, NoAnswer, ClusterDownError, OSError)


class Cluster(Redis):
    """Every key of a command must lie in one partition; only pipelines may mix commands of several.

    A command that a server answers with MOVED wrote nothing, and goes once more, to where it says. Everything else is
    the caller's: ASK and TRYAGAIN (a slot is being moved key by key), CLUSTERDOWN, a dead or silent node. The last two
    make it look, beside the callers, until every master answers.
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
        super().__init__(connection_pool=self._clients[seeds[0]].connection_pool)  # never asked: it has no node

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send it to the master of its partition."""
        partition = keys.partition_in(args)
        client = await self.master_of(partition)
        try:
            try:
                return await _send(client, args, options)
            except MovedError as moved:
                self._follow(partition, moved)
                return await _send(self.known_master_of(partition), args, options)
        except (*_SILENT, asyncio.CancelledError):  # cancelled: its caller waits no longer
            self._look_for_them()
            raise

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "ClusterPipeline":
        """Commands that go together to each master; there is no transaction over several."""
        if transaction:
            raise ValueError("no transaction spans a cluster")
        return ClusterPipeline(self)

    async def execute_all(self, commands: Sequence[Command]) -> list[Any]:
        """One round trip to each master that they concern, all at once. An answer may be an exception."""
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
        """The client of the node that has a partition, as far as is known. Raises NoConnection."""
        if not self._masters:
            async with self._first_look:
                if not self._masters:
                    await self._look()
        return self.known_master_of(partition)

    def known_master_of(self, partition: int) -> Redis:
        """The same without asking; before anything is known, the whole cluster."""
        return self._clients[self._masters[partition]] if self._masters else self

    async def servers(self) -> list[tuple[Redis, tuple[int, ...]]]:
        """All masters that have a partition, each with its partitions."""
        found: dict[Redis, list[int]] = defaultdict(list)
        for partition in range(keys.PARTITIONS):
            found[await self.master_of(partition)].append(partition)
        return [(client, tuple(partitions)) for client, partitions in found.items()]

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections to all nodes."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})  # a cancellation may be lost in the library: then it ends by itself
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

    # --- who has what ---

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
        """Look until every master answers for its partitions: nobody has to be refused for that to be noticed."""
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
        asked = [asyncio.ensure_future(self._ask(address)) for address in self._clients]
        try:
            for answer in asyncio.as_completed(asked):
                if self._learn(nodes := await answer):
                    break
            else:
                raise self._refusal or NoConnection("no node of the cluster knows all of its masters")
        finally:
            for one in asked:
                one.cancel()
            await asyncio.wait(asked)  # or one would go on to open a connection that nobody closes
        for gone in set(self._clients) - set(nodes) - self._seeds - set(self._masters):
            await self._clients.pop(gone).aclose()

    async def _ask(self, address: Address) -> dict[Address, Any]:
        """What a node knows of all nodes, itself included; nothing where it does not answer."""
        try:
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
            if int(port):  # or it has no address yet
                found[node["hostname"] or host or address[0], int(port)] = node
        return found

    def _learn(self, nodes: dict[Address, Any]) -> bool:
        """Take what a node says, unless it is new and knows nothing. An older configuration never wins over a newer."""
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
        """The answers in the order of the commands; with `raise_on_error` False, errors for masters that are away."""
        commands, self.command_stack = self.command_stack, []
        answers = await self._cluster.execute_all(commands)
        for answer in answers:
            if raise_on_error and isinstance(answer, Exception):
                raise answer
        return answers


async def _send(client: Redis, args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    return await client.execute_command(*args, **options)  # type: ignore[no-untyped-call]  # the library's own seam


def _masters(nodes: dict[Address, Any]) -> dict[int, tuple[int, Address]]:
    """Partition → configuration epoch and address of its master."""
    found = {}
    for address, node in nodes.items():
        spans = [(int(span[0]), int(span[-1])) for span in node["slots"]]
        for partition, slot in enumerate(_SLOTS):
            if any(first <= slot <= last for first, last in spans):
                found[partition] = int(node["epoch"]), address
    return found
