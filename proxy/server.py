"""Hypercorn in this process: sockets that we bind ourselves, and a stop that lets everything finish."""

import asyncio
import errno
import logging
import signal
import socket

from hypercorn.asyncio import serve
from hypercorn.config import Config
from starlette.types import ASGIApp

from config.settings import SettingsError

BACKLOG = 2048
"""Connections that wait to be accepted: a burst of a thousand clients."""

KEEP_ALIVE_S = 75.0
"""Above the idle time of common proxies (60 s), so that we are not the ones who close under a request."""

STREAMS = 1000
"""Parallel requests on one HTTP/2 connection of a multiplexing proxy."""


class PortTaken(SettingsError):
    """The address cannot be bound."""


def bind(named: str, host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes any free one.

    Raises PortTaken with a sentence that begins with `named`: where the port was set.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)  # only now is the address taken
    except OSError as error:
        listener.close()
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        raise PortTaken(f"{named}: {host}:{port} {why}. Choose another port.") from None
    return listener


async def serve_http(app: ASGIApp, listener: socket.socket, stop: asyncio.Event, graceful_s: float) -> None:
    """Serve until `stop`, then finish what is in flight for at most `graceful_s` seconds. Takes `listener` over."""
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]  # Hypercorn closes it; a second owner would close another's file later
    config.graceful_timeout = graceful_s
    config.shutdown_timeout = graceful_s
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.keep_alive_max_requests = 1_000_000_000  # else it closes every thousandth request's connection
    config.backlog = BACKLOG
    config.h2_max_concurrent_streams = STREAMS
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.loglevel = "WARNING"
    await serve(app, config, shutdown_trigger=stop.wait)  # type: ignore[arg-type]  # Hypercorn's own ASGI types


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set; to be called inside the running loop."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
