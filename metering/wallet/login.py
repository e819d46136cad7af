"""Log-in to Redis. A wrong password is no outage: only a person can repair it, so it is logged."""

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
    """`refused` while Redis does not accept the user name and password, or gives that user no rights."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.refused = False

    async def look(self) -> None:
        """Check once, and log a refusal. Raises RedisError if a server is away."""
        try:
            await asyncio.gather(*(server.ping() for server, _ in await servers(self._redis)))
        except REFUSED as error:
            self.refused = True
            log.error("redis_refuses_login", why=f"GHUB_REDIS_URL: {error}")
        else:
            self.refused = False

    async def run(self, every_s: float) -> None:
        """Check until cancelled. If Redis is away, other parts report it."""
        await every(every_s, self.look, away=(RedisError, OSError, TimeoutError), name="login_waits")
