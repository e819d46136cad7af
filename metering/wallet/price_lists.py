"""The number of the ledger's last list of prices, in Redis: for a gateway that is cut off from the ledger."""

from redis.asyncio import Redis

from metering.wallet import keys


class PriceLists:
    """What gateways tell each other. `redis` is the background connection; every method may raise RedisError."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def tell(self, number: int) -> None:
        """Say what the ledger's last list is; a ledger that was restored may have fewer than before."""
        await self._redis.set(keys.PRICE_LIST, number)

    async def told(self) -> int:
        """Read what any gateway said last; 0 if none has."""
        return int(await self._redis.get(keys.PRICE_LIST) or 0)
