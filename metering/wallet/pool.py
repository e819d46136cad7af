"""Connections to one Redis: dropped when it is no longer the master, and reopened in the background."""

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
    ResponseError,
)
from redis.exceptions import ConnectionError as NoConnection

from metering.background import cancel_all
from metering.wallet.address import Node, RedisAddress

log = structlog.get_logger(__name__)

PAUSE_S = 0.2
"""Pause between two tries to reach a server that is away."""

READY = 4
"""Connections that are reopened at once; the others follow as they are needed."""

FILL_S = 2.0
"""Timeout for reopening them: a server that accepts connections and says nothing is tried again."""

SENTINEL_S = 0.5
"""Timeout for each sentinel; they are asked one after the other. A healthy one answers within milliseconds."""

NO_MASTER = (ReadOnlyError, BusyLoadingError, MasterDownError, ClusterDownError)
"""Errors READONLY, LOADING, MASTERDOWN, CLUSTERDOWN: the server is not, or not yet, the wanted one.

Behind one address (a Service, a name, a virtual IP) a demoted master keeps its connections, and new ones go to its
successor.
"""


class Line(AbstractConnection):
    """A connection whose loss raises redis-py's errors: uvloop has its own error for one that was just closed.

    If it does not lead to a master, it is dropped with all others of its pool, which lead to the same server.
    """

    pool: "Pool"

    async def connect(self) -> None:
        """Connect, unless it is connected. If the caller has no time for it, a background task does it.

        Raises ConnectionError, or the server's own error, which redis-py wraps in one.
        """
        try:
            await super().connect()  # type: ignore[no-untyped-call]
        except BaseException as error:
            said = error.__cause__
            if isinstance(said, AuthenticationError):  # another try does not help
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
            answer = await super().read_response(*args, **options)
        except NO_MASTER as error:
            self.pool.answers += 1
            await self.pool.renew(type(error).__name__)
            await self.disconnect(nowait=True)
            raise
        except ResponseError:
            self.pool.answers += 1
            raise
        self.pool.answers += 1
        return answer


class _TcpLine(Line, Connection):
    pass


class _TlsLine(Line, SSLConnection):
    pass


class _UnixLine(Line, UnixDomainSocketConnection):
    pass


class _WatchedLine(Line):
    """Connects to the master that the sentinels named last."""

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
    """A pool of connections; call `aim` before its first use. `answers` counts the server's replies, errors too."""

    answers = 0
    address: RedisAddress
    master: Node | None = None
    _mending: asyncio.Task[None] | None = None
    _closed = False
    _told_s = 0.0

    def aim(self, address: RedisAddress) -> None:
        """Set the address and the protocol. Raises ValueError if a parameter has an impossible value."""
        self.address = address
        lines = _WATCHED_LINES if address.kind == "sentinel" else _LINES
        self.connection_class = lines[address.scheme]  # an argument would have been overridden by the address
        try:
            self.make_connection()  # it opens nothing
        except RedisError as error:
            raise ValueError(str(error)) from None

    def make_connection(self) -> AbstractConnection:
        """Create a connection that knows its pool."""
        line: Line = super().make_connection()  # type: ignore[no-untyped-call]
        line.pool = self
        return line

    async def find(self) -> Node:
        """Ask the sentinels for the master; the first answer counts. Raises ConnectionError."""
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
        """Drop all connections: idle ones now, used ones when they are given back."""
        if time.monotonic() > self._told_s + 1:
            self._told_s = time.monotonic()
            log.warning("redis_is_no_master", error=why)
        await self.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call]
        await self.disconnect(inuse_connections=False)
        self.mend()

    def mend(self) -> None:
        """Reopen some in the background: callers may wait for less time than that takes."""
        if not self._closed and (self._mending is None or self._mending.done()):
            self._mending = asyncio.create_task(self._mend())

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close idle connections; with `inuse_connections` close all of them, permanently."""
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
                async with asyncio.timeout(FILL_S):
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
