"""Events that wait to be booked, in all streams, as metrics of the consumer."""

from typing import NoReturn

from prometheus_client import Gauge
from redis.asyncio import Redis
from redis.exceptions import RedisError

from metering.background import every
from metering.wallet import keys
from metering.wallet.connection import servers

EVERY_S = 2.0
"""Interval between two readings: 65 short commands in one round trip, well within the interval of a scraper."""

WAITING = Gauge("ghub_events_waiting", "Entries of all streams that are not booked yet, by this consumer or another")
OLDEST = Gauge("ghub_events_oldest_seconds", "Time since the oldest of them was written, by the clock of Redis")


class EventsWaiting:
    """Reads how many entries the streams have: an entry leaves its stream when it is booked.

    Every consumer reads all streams, so each reports the same, and a dashboard takes the maximum.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def run(self) -> NoReturn:
        """Read it again and again, until cancelled. While Redis is away the last numbers stay."""
        await every(EVERY_S, self.look, away=(RedisError, OSError, TimeoutError), name="events_lag_waits")

    async def look(self) -> None:
        """Read it once. Raises RedisError, OSError."""
        waiting, oldest_s = 0, 0.0
        for server, partitions in await servers(self._redis):
            async with server.pipeline(transaction=False) as pipe:
                pipe.time()
                for partition in partitions:
                    pipe.xlen(keys.events(partition))
                    pipe.xrange(keys.events(partition), count=1)
                (seconds, microseconds), *replies = await pipe.execute()
            waiting += sum(replies[::2])
            now_ms = seconds * 1000 + microseconds / 1000
            written_ms = [int(first[0][0].partition(b"-")[0]) for first in replies[1::2] if first]
            oldest_s = max([oldest_s, *((now_ms - at_ms) / 1000 for at_ms in written_ms)])
        WAITING.set(waiting)
        OLDEST.set(oldest_s)
