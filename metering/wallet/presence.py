"""Gateways that live, and how many orders each has answered that Redis has not charged yet: what `verify` must know."""

from uuid import UUID

from redis.asyncio import Redis

from metering.wallet import keys

PRESENT_S = 10
"""A beat is kept for so long; who looks for a living gateway waits for a new one."""


class Presence:
    """`redis` is the background connection; every method may raise RedisError."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._beats = 0

    async def beat(self, incarnation: UUID, uncharged: int) -> None:
        """This gateway lives, and its journal has so many orders that Redis has yet to charge."""
        self._beats += 1
        await self._redis.set(keys.journal(str(incarnation)), f"{self._beats} {uncharged}", ex=PRESENT_S)

    async def last(self, incarnation: UUID) -> tuple[int, int] | None:
        """(beat, uncharged) of a gateway; None where it has not been heard of lately."""
        value = await self._redis.get(keys.journal(str(incarnation)))
        if value is None:
            return None
        beat, uncharged = value.split()
        return int(beat), int(uncharged)
