"""The connection to Redis: which calls wait, for how long, and when Redis counts as away."""

import asyncio
from collections.abc import Sequence

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from metering.wallet import keys
from metering.wallet.address import parse_address
from metering.wallet.client import Client
from metering.wallet.cluster import Cluster
from metering.wallet.pool import Pool


class WalletAway(Exception):
    """Redis gave no verdict: it is down, frozen, loading, read-only, full, in a cluster change, or not projected."""

    span_code = "wallet_away"


class NotSent(WalletAway):
    """The server was given up while this call waited for its turn. It wrote nothing."""


class NotProjected(WalletAway):
    """Redis answers, but it lacks what SQL knows. This call wrote nothing."""


def open_redis(url: str, *, connections: int, call_timeout_s: float, watched: bool = False) -> Redis:
    """Create a client that never retries by itself: the caller decides whether a call may be repeated.

    `redis+cluster://host:port,host:port` (or `rediss+cluster`) names some nodes of a cluster; then `connections` is the
    maximum for each node. `redis+sentinel://host:port,host:port/SERVICE` names sentinels that know the master.
    `call_timeout_s` is the timeout for connecting and for each answer. A `watched` client has neither: a timer in this
    process would hold its own lateness against Redis, and each call is watched by a `Pulse`.
    Raises ValueError for an invalid address.
    """
    address = parse_address(url)

    def connect(url: str) -> Redis:
        timeout_s = None if watched else call_timeout_s
        pool = Pool.from_url(
            url,
            max_connections=connections,
            timeout=call_timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=3,
        )
        pool.aim(address)
        return Client.from_pool(pool)

    if address.kind == "cluster":
        return Cluster(lambda node: connect(address.url_of(node)), address.nodes)
    return connect(address.url)


async def servers(redis: Redis) -> list[tuple[Redis, Sequence[int]]]:
    """List every server with its partitions. Raises RedisError."""
    return [*await redis.servers()] if isinstance(redis, Cluster) else [(redis, range(keys.PARTITIONS))]


def server_of(redis: Redis, partition: int) -> Redis:
    """Find the server that should have a partition, without a query."""
    # Not `isinstance`: redis-py's classes are protocols, which takes ten times as long.
    return redis.known_master_of(partition) if type(redis) is Cluster else redis


def lanes(redis: Redis) -> list[Sequence[int]]:
    """Group partitions that one command may name together: all of them, or in a cluster each alone."""
    together = 1 if isinstance(redis, Cluster) else keys.PARTITIONS
    return [range(first, first + together) for first in range(0, keys.PARTITIONS, together)]


async def warm_up(redis: Redis, connections: int) -> None:
    """Open the pools' connections before the first burst needs them all at once. Raises RedisError."""
    await asyncio.gather(*(server.ping() for server, _ in await servers(redis) for _ in range(connections)))
