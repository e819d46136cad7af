"""`ghub serve`: the gateway, one process, until SIGTERM."""

import asyncio
import os

import structlog

from config.settings import GATEWAY_METRICS_PORT, graceful_stop_s
from proxy.cli.output import LogsAreJson
from proxy.cli.process import begin, bind_metrics, serve_probes
from proxy.cli.running import run
from proxy.cli.tracing import open_tracer
from proxy.server.descriptors import raise_limit
from proxy.server.memory import search_seldom
from proxy.server.serving import bind, serve_http, stop_on_signals
from proxy.wiring import open_gateway

log = structlog.get_logger(__name__)


def serve(as_json: LogsAreJson = True) -> None:
    """The gateway. SIGTERM lets every request and every generation finish."""

    async def work() -> None:
        settings = begin()
        search_seldom()
        stop = stop_on_signals()
        files = raise_limit()
        listener = bind("GHUB_PORT", settings.host, settings.port)
        # This comes before anything that a failed start would leave open.
        probe = bind_metrics(settings, GATEWAY_METRICS_PORT)
        port = listener.getsockname()[1]
        async with (
            open_tracer(settings, os.environ, "ghub-gateway") as tracer,
            open_gateway(settings, stop, port, tracer) as gateway,
            asyncio.TaskGroup() as servers,
        ):
            if probe is not None:
                servers.create_task(serve_probes(gateway.not_ready, probe, stop))
            graceful_s = graceful_stop_s(gateway.longest_deadline_s)
            servers.create_task(
                serve_http(
                    gateway.app,
                    listener,
                    stop,
                    graceful_s,
                    most=files.connections,
                    full=gateway.full,
                    early=gateway.early,
                )
            )
            log.info("files", before=files.before, now=files.now, connections=files.connections)
            log.info("serving", host=settings.host, port=port)
        log.info("stopped")
        gateway.background.check()

    run(work())
