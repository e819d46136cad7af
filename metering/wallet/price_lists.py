"""The ledger's last list of prices by name, in Redis: for a gateway that is cut off from the ledger."""

from redis.asyncio import Redis

from metering.wallet import keys
from metering.wallet.connection import servers
from metering.wallet.script import load_script

FRESH_S = 10.0
"""How old a reading of the ledger may be that is told to others. With `LEASE_S` it stays below `NOTICE_S`."""


class PriceLists:
    """What gateways tell each other. `redis` is the background connection; every method may raise RedisError."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._tell = load_script(redis, "tell_prices_v1")

    async def now_us(self) -> int:
        """Read Redis `TIME`, of the first master if there are several."""
        for server, _ in await servers(self._redis):
            seconds, microseconds = await server.time()
            return int(seconds) * 1_000_000 + int(microseconds)
        raise AssertionError("there is always a server, or an error")

    async def forget(self) -> None:
        """Say that a list may be written now. Until somebody who has read the ledger after it tells, nobody knows."""
        await self._redis.delete(keys.PRICE_LIST)

    async def tell(self, name: str, read_us: int) -> None:
        """Say what the ledger's last list was when it was read, at `read_us` by Redis `TIME`."""
        await self._tell(keys={"list": keys.PRICE_LIST}, name=name, read_us=read_us, fresh_us=int(FRESH_S * 1_000_000))

    async def told(self) -> str | None:
        """Read what was said last; None if nobody knows."""
        name = await self._redis.get(keys.PRICE_LIST)
        return name.decode() if isinstance(name, bytes) else name
