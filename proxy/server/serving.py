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
from proxy.server.connections import UNREAD_S, Connections

BACKLOG = 2048
"""Connections that wait to be accepted: a burst of a thousand clients."""

RECEIVE_BYTES = 32 * 1024
"""What the kernel takes of requests that we have not read yet, and as much again for itself: a body has 64 KiB."""

UNSENT_BYTES = 128 * 1024
"""Of a reply that the kernel takes before it can send it: else 4 MB for each client that does not read. What is on its
way does not count, so that this slows nobody."""

UNSENT_S = UNREAD_S + 10.0
"""The end of a reply whose connection we have closed, which the kernel alone still has, goes by the same rule as the
rest: a little later, so that what is ours to cut off is cut off by us, and counted."""


class PortTaken(SettingsError):
    """The address cannot be bound."""


def bind(named: str, host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes any free one.

    Raises PortTaken with a sentence that begins with `named`: where the port was set.
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
    """What the kernel may hold for a client; each connection that is accepted has it from its listener."""
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
    full: ASGIApp | None = None,
) -> None:
    """Serve until `stop`, then finish what is in flight for at most `graceful_s` seconds. Takes `listener` over.

    At most `most` connections at a time are the application's; of what comes above that `full` refuses a few.
    """
    config = Config()
    config.shutdown_timeout = graceful_s
    config.keep_alive_max_requests = 1_000_000_000  # else it closes every thousandth request's connection
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.loglevel = "WARNING"
    connections = Connections(app, full, most, config)
    with listener:
        async with _lifespan(app, config):
            server = await asyncio.get_running_loop().create_server(connections.new, sock=listener, backlog=BACKLOG)
            watch = asyncio.create_task(connections.watch())
            try:
                await stop.wait()
            finally:
                server.close()
                await connections.finish(graceful_s)
                watch.cancel()


@asynccontextmanager
async def _lifespan(app: ASGIApp, config: Config) -> AsyncIterator[None]:
    """The application's own start and end, around its requests."""
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
    """An event that SIGTERM and SIGINT set; to be called inside the running loop."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
