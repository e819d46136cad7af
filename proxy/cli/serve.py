"""`ghub serve`, `ghub consume`, `ghub simulate`: one process each, until SIGTERM."""

import asyncio
import os
import socket
import sys
from typing import Annotated

import structlog
import typer

from config.logs import set_up_logs
from config.settings import EXIT_MARGIN_S, PROJECTION_POLL_S, graceful_stop_s, read_settings
from proxy.cli.output import fail, run
from proxy.health import metrics_app
from proxy.server import PortTaken, bind, cancel_all, serve_http, stop_on_signals
from proxy.wiring import open_back, open_gateway

log = structlog.get_logger(__name__)

LogsAreJson = Annotated[bool, typer.Option("--json", help="As every command has it; the log is JSON lines anyway.")]


def serve(as_json: LogsAreJson = True) -> None:
    """The gateway. SIGTERM lets every request and every generation finish."""

    async def work() -> None:
        settings = read_settings()
        set_up_logs(settings.log_level, sys.stdout)
        stop = stop_on_signals()
        listener = bind(settings.host, settings.port)
        port = listener.getsockname()[1]
        async with open_gateway(settings, stop, port) as gateway, asyncio.TaskGroup() as servers:
            if settings.metrics_port:
                probe = bind(settings.host, settings.metrics_port)
                app = metrics_app(lambda: not stop.is_set())
                servers.create_task(serve_http(app, probe, stop, EXIT_MARGIN_S))
            servers.create_task(serve_http(gateway.app, listener, stop, graceful_stop_s(gateway.longest_deadline_s)))
            log.info("serving", host=settings.host, port=port)
        log.info("stopped")

    run(work())


def consume(as_json: LogsAreJson = True) -> None:
    """The billing consumer: metering events into the ledger. SIGTERM lets the batch under way finish."""

    async def work() -> None:
        settings = read_settings()
        set_up_logs(settings.log_level, sys.stdout)
        stop = stop_on_signals()
        async with open_back(settings) as back, asyncio.TaskGroup() as tasks:
            await back.ledger.check_schema()
            consumer = back.consumer(f"{socket.gethostname()}-{os.getpid()}")
            assert back.projector is not None, "a consumer has a Redis"
            projecting = tasks.create_task(back.projector.run(PROJECTION_POLL_S))
            if settings.metrics_port:
                probe = bind(settings.host, settings.metrics_port)
                app = metrics_app(lambda: consumer.alive)
                tasks.create_task(serve_http(app, probe, stop, EXIT_MARGIN_S))
            log.info("consuming")
            await consumer.run(stop)
            await cancel_all({projecting})
        log.info("stopped")

    run(work())


def simulate(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen, on 127.0.0.1.")],
    latency_scale: Annotated[float, typer.Option(min=0, help="Times the published latencies; 0 is at once.")] = 1.0,
    as_json: LogsAreJson = True,
) -> None:
    """The upstreams' wire formats, with real pictures, for the demo and tests."""

    try:
        from proxy.simulator.server import serve as serve_simulator  # noqa: PLC0415  # the loader of an optional extra
    except ModuleNotFoundError:
        fail("the simulator needs an extra package: pip install 'geekhub-gateway[simulator]'")

    async def work() -> None:
        shutdown = stop_on_signals()
        try:
            await serve_simulator(host="127.0.0.1", port=port, latency_scale=latency_scale, shutdown=shutdown)
        except OSError as error:
            raise PortTaken(f"127.0.0.1:{port} cannot be used: {error.strerror}. Choose another port.") from None

    run(work())
