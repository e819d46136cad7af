"""The connection to Redis: what is waited for, for how long, and what "away" means."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from metering.wallet import keys
from metering.wallet.address import parse_address
from metering.wallet.cluster import Cluster
from metering.wallet.pool import Pool

T = TypeVar("T")
_SLICE_S = 0.02

BUSY_FACTOR = 8
"""The most that a busy process adds to the wait for a verdict; below the admission's latest moment."""


class WalletAway(Exception):
    """Redis gave no verdict: it is down, frozen, loading, read-only, full, in a cluster change, or not projected."""


class NotProjected(WalletAway):
    """Redis answers, but does not know what SQL knows; this call wrote nothing."""


def open_redis(url: str, *, connections: int, call_timeout_s: float) -> Redis:
    """A client that never retries by itself: who makes a call decides whether it may be repeated.

    `redis+cluster://host:port,host:port` (or `rediss+cluster`) names some nodes of a cluster; then `connections` is the
    most to each node. `redis+sentinel://host:port,host:port/SERVICE` names sentinels that know who is master.
    `call_timeout_s` bounds connecting and each answer; a caller that must decide sooner uses `verdict`. Raises
    ValueError for an address that is none.
    """
    address = parse_address(url)

    def connect(url: str) -> Redis:
        pool = Pool.from_url(
            url,
            max_connections=connections,
            timeout=call_timeout_s,
            socket_timeout=call_timeout_s,
            socket_connect_timeout=call_timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=3,
        )
        pool.aim(address)
        return Redis.from_pool(pool)

    if address.kind == "cluster":
        return Cluster(lambda node: connect(address.url_of(node)), address.nodes)
    return connect(address.url)


async def servers(redis: Redis) -> list[tuple[Redis, Sequence[int]]]:
    """Every server that has partitions, with those that it has. Raises RedisError."""
    return [*await redis.servers()] if isinstance(redis, Cluster) else [(redis, range(keys.PARTITIONS))]


def server_of(redis: Redis, partition: int) -> Redis:
    """The server that has a partition, as far as is known without asking."""
    return redis.known_master_of(partition) if isinstance(redis, Cluster) else redis


def lanes(redis: Redis) -> list[Sequence[int]]:
    """Partitions that one command may name together: all of them, or in a cluster each by itself."""
    together = 1 if isinstance(redis, Cluster) else keys.PARTITIONS
    return [range(first, first + together) for first in range(0, keys.PARTITIONS, together)]


class Pulse:
    """Answers that one server has given to this process: while there are new ones, it is not away but has a queue."""

    def __init__(self) -> None:
        self.answers = 0


async def verdict(call: Coroutine[Any, Any, T], budget_s: float, pulse: Pulse) -> T:
    """Redis' answer to `call`, or WalletAway after `budget_s` without any sign of life.

    The budget is spent in slices. One in which Redis answered another call, or which this process was too busy to end
    in time, is not charged: neither says that Redis is away. A frozen Redis costs an idle process `budget_s` and no
    more, and a busy one at most `BUSY_FACTOR` times that.
    """
    clock_s = asyncio.get_running_loop().time
    give_up_s = clock_s() + BUSY_FACTOR * budget_s
    task = asyncio.ensure_future(call)
    try:
        while not task.done() and budget_s > 0 and (began_s := clock_s()) < give_up_s:
            answers = pulse.answers
            await asyncio.wait({task}, timeout=min(_SLICE_S, budget_s))
            if clock_s() - began_s < 2 * _SLICE_S and pulse.answers == answers:
                budget_s -= _SLICE_S
        if task.done():
            answer = task.result()
            pulse.answers += 1
            return answer
    except (RedisError, OSError, TimeoutError) as error:
        raise WalletAway(type(error).__name__) from error
    finally:
        task.cancel()
    raise WalletAway("no answer in time")


async def warm_up(redis: Redis, connections: int) -> None:
    """Open the pools' connections before the first burst needs them all at once. Raises RedisError."""
    await asyncio.gather(*(server.ping() for server, _ in await servers(redis) for _ in range(connections)))
