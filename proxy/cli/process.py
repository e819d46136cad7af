"""What `serve` and `consume` have in common: settings, a log on standard output, and a port for probes."""

import asyncio
import os
import signal
import socket
import sys

import structlog

from config.logs import set_up_logs
from config.settings import EXIT_MARGIN_S, Settings, read_settings, unknown_names
from proxy.api.health import NotReady, Versions, metrics_app
from proxy.server.descriptors import PROBE_CONNECTIONS
from proxy.server.serving import bind, serve_http

log = structlog.get_logger(__name__)


def begin() -> Settings:
    """Read the settings, set up the log with them, and log unknown GHUB_ variables. Raises SettingsError.

    From here on SIGHUP does nothing, unless it is the end of our terminal. It would end the process, and many servers
    read their files again at it; ours are followed. What this process starts ignores it from its first moment.
    """
    if not sys.stdout.isatty():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings = read_settings()
    set_up_logs(settings.log_level, sys.stdout, settings.region)
    for name, nearest in unknown_names(os.environ):
        log.warning("no_such_setting", name=name, did_you_mean=nearest)
    return settings


def bind_metrics(settings: Settings, usual_port: int) -> socket.socket | None:
    """Bind the socket on which `/metrics` will listen; None if it is off. Raises PortTaken."""
    port = usual_port if settings.metrics_port is None else settings.metrics_port
    return bind("GHUB_METRICS_PORT", settings.host, port) if port else None


async def serve_probes(
    not_ready: NotReady, listener: socket.socket, stop: asyncio.Event, versions: Versions = dict
) -> None:
    """Serve probes apart from customers, so that they are answered even if customers use all connections."""
    await serve_http(metrics_app(not_ready, versions), listener, stop, EXIT_MARGIN_S, most=PROBE_CONNECTIONS)
