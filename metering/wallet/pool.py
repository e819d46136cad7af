"""Connections to one Redis that are dropped when it is no master any more, and made anew beside the callers."""

import asyncio
import time
from typing import Any

import structlog
from redis.asyncio import BlockingConnectionPool, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import ConnectionError as NoConnection

from metering.background import cancel_all
from metering.wallet.address import Node, RedisAddress

log = structlog.get_logger(__name__)

PAUSE_S = 0.2
"""Between two tries to reach a server that is away."""

READY = 4
"""Connections that are made anew at once; the others follow as they are needed."""

SENTINEL_S = 0.5
"""For each sentinel that is asked, one after the other: one that answers does so within milliseconds."""

NO_MASTER = (ReadOnlyError, BusyLoadingError, MasterDownError, ClusterDownError)
"""READONLY, LOADING, MASTERDOWN, CLUSTERDOWN: whoever answers so is not, or not yet, the server that is wanted. Behind
one address (a Service, a name, a virtual IP) a demoted master keeps its connections; new ones go to its successor."""


class Line(AbstractConnection):
    """A connection that is lost in words that are redis-py's: uvloop has its own for one that has just been closed.

    One that leads to no master is dropped, and with it all others of its pool, which lead there, too.
    """

    pool: "Pool"

    async def connect(self) -> None:
        """Unless it is connected. A caller may not have the time for it: then it is done beside the callers.

        Raises ConnectionError, or what the server has answered, which redis-py wraps in one.
        """
        try:
            await super().connect()  # type: ignore[no-untyped-call]
        except BaseException as error:
            said = error.__cause__
            if isinstance(said, AuthenticationError):  # which no other try mends
                raise said from None
            self.pool.mend()
            if isinstance(said, RedisError):
                raise said from None
            raise

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        """Send. Raises ConnectionError, TimeoutError."""
        try:
            await super().send_packed_command(*args, **options)
        except RuntimeError as error:
            raise NoConnection(str(error)) from error

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Read. Raises RedisError."""
        try:
            return await super().read_response(*args, **options)
        except NO_MASTER as error:
            await self.pool.renew(type(error).__name__)
            await self.disconnect(nowait=True)
            raise


class _TcpLine(Line, Connection):
    pass


class _TlsLine(Line, SSLConnection):
    pass


class _UnixLine(Line, UnixDomainSocketConnection):
    pass


class _WatchedLine(Line):
    """Goes to the master that the sentinels have named last."""

    host: str
    port: int

    async def _connect(self) -> None:
        self.host, self.port = self.pool.master or await self.pool.find()
        await super()._connect()  # type: ignore[safe-super,no-untyped-call]  # the line's own, of TCP or TLS


class _WatchedTcpLine(_WatchedLine, _TcpLine):
    pass


class _WatchedTlsLine(_WatchedLine, _TlsLine):
    pass


_LINES = {"redis": _TcpLine, "rediss": _TlsLine, "unix": _UnixLine}
_WATCHED_LINES = {"redis": _WatchedTcpLine, "rediss": _WatchedTlsLine}


class Pool(BlockingConnectionPool):
    """`aim` it before its first use."""

    address: RedisAddress
    master: Node | None = None
    _mending: asyncio.Task[None] | None = None
    _closed = False
    _told_s = 0.0

    def aim(self, address: RedisAddress) -> None:
        """Where its connections go, and over what. Raises ValueError for a parameter whose value makes no sense."""
        self.address = address
        lines = _WATCHED_LINES if address.kind == "sentinel" else _LINES
        self.connection_class = lines[address.scheme]  # an argument would have been overridden by the address
        try:
            self.make_connection()  # which opens nothing
        except RedisError as error:
            raise ValueError(str(error)) from None

    def make_connection(self) -> AbstractConnection:
        """A new one, that knows its pool."""
        line: Line = super().make_connection()  # type: ignore[no-untyped-call]
        line.pool = self
        return line

    async def find(self) -> Node:
        """Ask the sentinels where the master is; the first that knows is right. Raises ConnectionError."""
        sentinels = Sentinel(  # type: ignore[no-untyped-call]
            self.address.nodes, socket_timeout=SENTINEL_S, socket_connect_timeout=SENTINEL_S
        )
        try:
            host, port = await sentinels.discover_master(self.address.service)
        finally:
            await sentinels.aclose()
        self.master = host, int(port)
        return self.master

    async def renew(self, why: str) -> None:
        """Drop all: those that are idle now, those in use when they are given back."""
        if time.monotonic() > self._told_s + 1:
            self._told_s = time.monotonic()
            log.warning("redis_is_no_master", error=why)
        await self.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call]
        await self.disconnect(inuse_connections=False)
        self.mend()

    def mend(self) -> None:
        """Make some anew, beside the callers, who may wait for less time than that takes."""
        if not self._closed and (self._mending is None or self._mending.done()):
            self._mending = asyncio.create_task(self._mend())

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Those that are idle; with `inuse_connections` all of them, for good."""
        if inuse_connections:
            self._closed = True
            if self._mending is not None:
                await cancel_all([self._mending])
        await super().disconnect(inuse_connections)

    async def _mend(self) -> None:
        while True:
            try:
                if self.address.kind == "sentinel":
                    await self.find()
                await self._fill()
                break
            except AuthenticationError:
                break
            except (RedisError, OSError, TimeoutError):
                await asyncio.sleep(PAUSE_S)

    async def _fill(self) -> None:
        lines: list[AbstractConnection] = []
        try:
            while len(lines) < min(READY, self.max_connections):
                lines.append(await self.get_connection())  # type: ignore[no-untyped-call]
        finally:
            for line in lines:
                await self.release(line)
