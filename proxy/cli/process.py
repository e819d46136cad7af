"""What `serve` and `consume` begin with: settings, a log on standard output, and a port for probes."""

import os
import socket
import sys
from typing import Annotated

import structlog
import typer

from config.logs import set_up_logs
from config.settings import Settings, read_settings, unknown_names
from proxy.server import bind

log = structlog.get_logger(__name__)

LogsAreJson = Annotated[bool, typer.Option("--json", help="As every command has it; the log is JSON lines anyway.")]


def begin() -> Settings:
    """Read, the log set up by them, and what is no setting named there. Raises SettingsError."""
    settings = read_settings()
    set_up_logs(settings.log_level, sys.stdout)
    for name, nearest in unknown_names(os.environ):
        log.warning("no_such_setting", name=name, did_you_mean=nearest)
    return settings


def bind_metrics(settings: Settings, usual_port: int) -> socket.socket | None:
    """Where `/metrics` is to listen; None where it is off. Raises PortTaken."""
    port = usual_port if settings.metrics_port is None else settings.metrics_port
    return bind("GHUB_METRICS_PORT", settings.host, port) if port else None
