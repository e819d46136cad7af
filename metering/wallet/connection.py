"""The connection to Redis: what is waited for, for how long, and what "away" means."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

T = TypeVar("T")
_HERE = Path(__file__).parent
_COMMON = (_HERE / "common.lua").read_text(encoding="utf-8")
_SLICE_S = 0.02

BUSY_FACTOR = 8
"""The most that a busy process adds to the wait for a verdict; below the admission's latest moment."""


class WalletAway(Exception):
    """Redis gave no verdict: it is down, frozen, loading, read-only, full, or not projected."""


class NotProjected(WalletAway):
    """Redis answers, but does not know what SQL knows; this call wrote nothing."""


def open_redis(url: str, *, connections: int, call_timeout_s: float) -> Redis:
    """A client that never retries by itself: whether a call may be repeated is decided by who makes it.

    `call_timeout_s` bounds connecting and each answer; a caller that must decide sooner uses `verdict`.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=call_timeout_s,
        socket_timeout=call_timeout_s,
        socket_connect_timeout=call_timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=3,
    )
    return Redis.from_pool(pool)


def load_script(redis: Redis, name: str) -> AsyncScript:
    """The script `NAME.lua` of this folder, with the common part in front."""
    return redis.register_script(_COMMON + (_HERE / f"{name}.lua").read_text(encoding="utf-8"))


class Pulse:
    """Answers that Redis has given to one process: while there are new ones, it is not away but has a queue."""

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
    """Open the pool's connections before the first burst needs them all at once."""
    await asyncio.gather(*(redis.ping() for _ in range(connections)))
