"""Hypercorn's parts in this process: sockets that we bind ourselves, and a stop that lets everything finish."""

import asyncio
import errno
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.lifespan import Lifespan
from hypercorn.config import Config
from starlette.types import ASGIApp

from config.settings import SettingsError
from proxy.server.connections import UNREAD_S, Connections, Early

BACKLOG = 4096
"""Connections that wait to be accepted: a burst of as many clients. The kernel's own limit is the same, by default."""

ACCEPTS = 16
"""Connections that are accepted in one turn of the event loop, each by a descriptor of its own for the same socket.

libuv accepts one for each, so a crowd would wait in the kernel, where nobody counts it, while the loop serves others.
"""

RECEIVE_BYTES = 32 * 1024
"""Request bytes in the kernel that we have not read yet; it uses as much again for itself. A body has 64 KiB."""

UNSENT_BYTES = 128 * 1024
"""Reply bytes that the kernel accepts before it can send them; by default 4 MB for each client that does not read.

Bytes on their way do not count, so nobody becomes slower.
"""

UNSENT_S = UNREAD_S + 10.0
"""Timeout for the end of a reply that only the kernel still has, because we have closed its connection.

It is a little longer than ours, so that we are the ones who cut off and count what we can.
"""


class PortTaken(SettingsError):
    """The address cannot be bound."""


def bind(named: str, host: str, port: int) -> socket.socket:
    """Bind a listening TCP socket; port 0 takes any free one.

    Raises PortTaken with a sentence that begins with `named`: the setting of the port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _bound_buffers(listener)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)  # only now is the address taken
    except OSError as error:
        listener.close()
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        raise PortTaken(f"{named}: {host}:{port} {why}. Choose another port.") from None
    return listener


def _bound_buffers(listener: socket.socket) -> None:
    """Limit what the kernel holds for a client. Each accepted connection inherits it from its listener."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    if sys.platform == "linux":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNSENT_S * 1000))


async def serve_http(
    app: ASGIApp,
    listener: socket.socket,
    stop: asyncio.Event,
    graceful_s: float,
    *,
    most: int,
    ends_s: float | None = None,
    full: ASGIApp | None = None,
    early: Early | None = None,
) -> None:
    """Serve until `stop`, then finish what is in flight for at most `graceful_s` seconds. Closes `listener`.

    The application itself ends within `ends_s` after that, if it needs longer: its work may outlast its requests.
    The application gets at most `most` connections at a time. `full` refuses some of those above that. `early` may
    refuse a request by its first bytes.
    """
    config = Config()
    config.shutdown_timeout = ends_s or graceful_s
    config.keep_alive_max_requests = 1_000_000_000  # otherwise it closes every thousandth request's connection
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.loglevel = "WARNING"
    connections = Connections(app, full, most, config, early)
    loop = asyncio.get_running_loop()
    with listener:
        async with _lifespan(app, config):
            same = [listener.dup() for _ in range(ACCEPTS - 1)]
            servers = [
                await loop.create_server(connections.new, sock=one, backlog=BACKLOG) for one in (listener, *same)
            ]
            watch = asyncio.create_task(connections.watch())
            try:
                await stop.wait()
            finally:
                for server in servers:
                    server.close()
                await connections.finish(graceful_s)
                watch.cancel()


@asynccontextmanager
async def _lifespan(app: ASGIApp, config: Config) -> AsyncIterator[None]:
    """Run the application's own start and end around its requests."""
    loop = asyncio.get_running_loop()
    lifespan = Lifespan(ASGIWrapper(app), config, loop, {})  # type: ignore[arg-type]  # Hypercorn's own ASGI types
    task = loop.create_task(lifespan.handle_lifespan())
    try:
        await lifespan.wait_for_startup()
        if task.done():
            task.result()  # it failed
        try:
            yield
        finally:
            await lifespan.wait_for_shutdown()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def stop_on_signals() -> asyncio.Event:
    """Create an event that SIGTERM and SIGINT set. Call it inside the running loop."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
