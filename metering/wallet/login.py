"""Does Redis let this process in? A wrong password is no outage: nothing but a person mends it, so it is said."""

import asyncio

import structlog
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from metering.background import every
from metering.wallet.connection import servers

log = structlog.get_logger(__name__)

REFUSED = (AuthenticationError, NoPermissionError)
"""WRONGPASS, NOAUTH, NOPERM."""


class Login:
    """`refused` while Redis does not take the user name and password that it is sent, or lets that user do nothing."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.refused = False

    async def look(self) -> None:
        """One look, logged where it is refused. Raises RedisError where a server is away."""
        try:
            await asyncio.gather(*(server.ping() for server, _ in await servers(self._redis)))
        except REFUSED as error:
            self.refused = True
            log.error("redis_refuses_login", why=f"GHUB_REDIS_URL: {error}")
        else:
            self.refused = False

    async def run(self, every_s: float) -> None:
        """Look until cancelled. A Redis that is away says so elsewhere."""
        await every(every_s, self.look, away=(RedisError, OSError, TimeoutError), name="login_waits")
