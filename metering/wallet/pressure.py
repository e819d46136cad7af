"""Memory of Redis. Admission stops before it is full, so that open orders can still be settled (rule 28)."""

import asyncio

import structlog
from prometheus_client import Gauge
from redis.asyncio import Redis
from redis.exceptions import RedisError

from metering.background import every
from metering.wallet.connection import servers

log = structlog.get_logger(__name__)

AWAY = (RedisError, OSError, TimeoutError)

ANSWERS = Gauge("ghub_redis_up", "1 while Redis answered the last look at its memory, 0 while no server did")
USED = Gauge(
    "ghub_redis_memory_ratio", "Share of maxmemory that the fullest server of Redis uses; 0 without a maxmemory"
)


class WrongPolicy(Exception):
    """Redis would evict money: set `maxmemory-policy noeviction`."""


class Pressure:
    """Watches the memory of every server. `reason` is None, or the sentence with which admission is refused."""

    def __init__(self, redis: Redis, memory_mark: float) -> None:
        self._redis = redis
        self._memory_mark = memory_mark
        self.reason: str | None = None

    async def look(self) -> None:
        """Check once. Raises WrongPolicy, and RedisError if no server answers.

        A server that is away is left out: it admits nothing anyway.
        """
        calls = (server.info("memory") for server, _ in await servers(self._redis))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        infos = [answer for answer in answers if not isinstance(answer, BaseException)]
        if not infos:
            raise next(answer for answer in answers if isinstance(answer, BaseException))
        ANSWERS.set(1)
        if any(info.get("maxmemory_policy", "noeviction") != "noeviction" for info in infos):
            self.reason = "The gateway's memory is not set up for money; nothing was charged."
            raise WrongPolicy(WrongPolicy.__doc__)
        USED.set(max(info["used_memory"] / info["maxmemory"] if info["maxmemory"] else 0.0 for info in infos))
        full = any(0 < info["maxmemory"] * self._memory_mark < info["used_memory"] for info in infos)
        self.reason = "The gateway is running out of memory; nothing was charged." if full else None

    async def run(self, every_s: float) -> None:
        """Check until cancelled. While Redis is away admission fails by itself."""
        await every(every_s, self._watch, away=AWAY, name="pressure_waits")

    async def _watch(self) -> None:
        try:
            await self.look()
        except WrongPolicy as error:
            log.error("redis_would_evict", error=str(error))
        except AWAY:
            ANSWERS.set(0)
            raise
        if self.reason is not None:
            log.error("admission_stopped", reason=self.reason)
