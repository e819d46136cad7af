"""Connections to servers: names looked up, connected, kept for the next request while both sides are silent."""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, cast

import aiohappyeyeballs
import httpx2

from proxy.outbound.connection import READ_BYTES, Connection

NAME_LIFE_S = 10.0
"""How long the addresses of a name are used: a provider that moves is followed within this time."""

NEXT_ADDRESS_S = 0.25
"""If an address has not answered for this long, the next one is tried beside it (RFC 8305)."""

Address = tuple[int, int, int, str, tuple[Any, ...]]
"""What `getaddrinfo` returns: family, kind, protocol, canonical name, socket address."""

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""Looks up a name and a port. Raises OSError."""


class Origin(NamedTuple):
    """A server, as a URL names it."""

    scheme: str
    host: str
    port: int


async def resolve(host: str, port: int) -> Sequence[Address]:
    """Look up a name as the system does. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return cast(Sequence[Address], found)


class Pool:
    """All connections of one transport. They are not limited. Create it inside the running event loop.

    `keep_alive_s` is the time for which an idle connection is kept.
    """

    def __init__(self, verify: ssl.SSLContext, resolve: Resolve, keep_alive_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._verify = verify
        self._resolve = resolve
        self._keep_alive_s = keep_alive_s
        self._buffer = memoryview(bytearray(READ_BYTES))  # of all reads, for one is over before the next begins
        self._open: set[Connection] = set()
        self._idle: dict[Origin, dict[Connection, asyncio.TimerHandle]] = {}
        self._names: dict[tuple[str, int], tuple[float, asyncio.Task[Sequence[Address]]]] = {}
        self._turn = 0

    async def take(self, origin: Origin, timeout_s: float | None) -> Connection:
        """Take the connection that was used last, or a new one; nothing was sent on it.

        Raises ConnectError, ConnectTimeout, LocalProtocolError, and what `resolve` raises of its own.
        """
        idle = self._idle.get(origin)
        while idle:
            connection, timer = idle.popitem()
            timer.cancel()
            # The loop may not have read yet that the peer has closed it, or has spoken: a late `408` would be taken for
            # the answer to the next request.
            if connection.is_reusable and not connection.has_input:
                return connection
            self._drop(connection)
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._connect(origin)
        except TimeoutError as error:
            raise httpx2.ConnectTimeout("no connection in time") from error
        except OSError as error:
            raise httpx2.ConnectError(str(error)) from error
        except ValueError as error:  # a name that cannot be looked up
            raise httpx2.LocalProtocolError(str(error)) from error
        self._open.add(connection)
        return connection

    def give_back(self, origin: Origin, connection: Connection) -> None:
        """Keep a connection for the next request, or close it if its answer was not read to the end."""
        if connection not in self._open:
            return
        if not connection.is_reusable:
            self._drop(connection)
            return
        idle = self._idle.setdefault(origin, {})
        idle[connection] = self._loop.call_later(self._keep_alive_s, self._expire, origin, connection)

    def close(self) -> None:
        """Close every connection, also those in use."""
        for idle in self._idle.values():
            for timer in idle.values():
                timer.cancel()
        self._idle.clear()
        for connection in tuple(self._open):
            self._drop(connection)
        for _, looking in self._names.values():
            looking.cancel()

    def _expire(self, origin: Origin, connection: Connection) -> None:
        idle = self._idle[origin]
        del idle[connection]
        if not idle:
            del self._idle[origin]
        self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self._open.discard(connection)
        connection.drop()

    async def _connect(self, origin: Origin) -> Connection:
        addresses = await self._addresses(origin.host, origin.port)
        connected = await aiohappyeyeballs.start_connection(
            addresses, happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1, loop=self._loop
        )
        try:
            _, connection = await self._loop.create_connection(
                lambda: Connection(self._loop, self._buffer), sock=connected
            )
        except BaseException:
            connected.close()
            raise
        if origin.scheme == "https":
            await connection.begin_tls(self._verify, origin.host.removesuffix("."))
        return connection

    async def _addresses(self, host: str, port: int) -> Sequence[Address]:
        """Look up a name, once for all who ask at the same time. The next caller begins with the next address."""
        try:
            family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        except ValueError:
            pass
        else:
            return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]
        now_s = self._loop.time()
        until_s, looking = self._names.get((host, port), (0.0, None))
        if looking is None or (looking.done() and (now_s >= until_s or _failed(looking))):
            looking = asyncio.ensure_future(self._look_up(host, port))
            looking.add_done_callback(_failed)  # so that it is no surprise if all who asked have left
            self._names[host, port] = now_s + NAME_LIFE_S, looking
        found = await asyncio.shield(looking)
        self._turn += 1
        first = self._turn % len(found)
        return [*found[first:], *found[:first]]

    async def _look_up(self, host: str, port: int) -> Sequence[Address]:
        found = await self._resolve(host, port)
        if not found:
            raise OSError("the name has no address")
        return found


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.cancelled() or task.exception() is not None
