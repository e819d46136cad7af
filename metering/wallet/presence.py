"""Gateways that live, and how many answered orders of each Redis has not charged yet; `verify` needs both."""

from uuid import UUID

from redis.asyncio import Redis

from metering.wallet import keys

PRESENT_S = 10
"""How long a beat is kept. A check for a living gateway waits for a new one."""


class Presence:
    """Beats of gateways. `redis` is the background connection; every method may raise RedisError."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._beats = 0

    async def beat(self, incarnation: UUID, uncharged: int) -> None:
        """Say that this gateway lives, and how many orders in its journal Redis has yet to charge."""
        self._beats += 1
        await self._redis.set(keys.journal(str(incarnation)), f"{self._beats} {uncharged}", ex=PRESENT_S)

    async def last(self, incarnation: UUID) -> tuple[int, int] | None:
        """Read (beat, uncharged) of a gateway; None if it has been silent for `PRESENT_S`."""
        value = await self._redis.get(keys.journal(str(incarnation)))
        if value is None:
            return None
        beat, uncharged = value.split()
        return int(beat), int(uncharged)
