"""One server of Redis, as this process uses it: calls in turns, each watched, and the server's clock."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import Histogram
from redis.asyncio import Redis
from redis.exceptions import RedisError

from metering.shares import Bound
from metering.turns import Turns
from metering.wallet.connection import NotSent, WalletAway
from metering.wallet.pool import Pool
from metering.wallet.pulse import Pulse

Call = Callable[[], Awaitable[Any]]
"""Makes a call at the moment in which it is sent, so that it knows the time."""

TURN_S = Histogram(
    "ghub_redis_turn_seconds",
    "Time that a call to Redis waited in this process for a connection",
    buckets=(0.001, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
)
ANSWER_S = Histogram(
    "ghub_redis_answer_seconds",
    "Time from sending a call to Redis until its answer was read here; this process's own lag is in it",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0),
)


class Server:
    """What this process knows of one server: that it is alive, and by how much its clock is ahead of the process' own.

    Its connections are shared in turns, so that a burst of one organisation's calls does not delay another's.
    """

    def __init__(self, redis: Redis, decision_s: float) -> None:
        pool = redis.connection_pool
        assert isinstance(pool, Pool), "`open_redis` made it"
        self._pulse = Pulse(pool, decision_s)
        self._turns = Turns(Bound(pool.max_connections))
        self.offset_us = 0

    async def ask(self, org_id: str, call: Call) -> Any:
        """Make a call when its turn comes, and return the answer.

        Raises WalletAway if the server is away, and then NotSent if the turn has not come.
        """
        asked_s = time.monotonic()
        sent_s = 0.0
        try:
            with self._pulse.watch() as watched:
                async with self._turns.hold(org_id):
                    watched.send()
                    sent_s = time.monotonic()
                    answer = await call()
        except (RedisError, OSError) as error:  # TimeoutError is one
            away = WalletAway if sent_s else NotSent
            raise away(type(error).__name__) from error
        TURN_S.observe(sent_s - asked_s)
        ANSWER_S.observe(time.monotonic() - sent_s)
        return answer
