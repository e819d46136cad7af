"""`ghub serve`, `ghub consume`, `ghub simulate`: one process each, until SIGTERM."""

import asyncio
import os
import socket
import sys
from typing import Annotated

import structlog
import typer

from config.logs import set_up_logs
from config.settings import EXIT_MARGIN_S, PROJECTION_POLL_S, Settings, graceful_stop_s, read_settings
from metering.background import Background, Part
from proxy.cli.output import fail, run
from proxy.descriptors import PROBE_CONNECTIONS, raise_limit
from proxy.health import Condition, Conditions, NotReady, metrics_app, running, when
from proxy.server import PortTaken, bind, serve_http, stop_on_signals
from proxy.wiring import open_back, open_gateway

log = structlog.get_logger(__name__)

LogsAreJson = Annotated[bool, typer.Option("--json", help="As every command has it; the log is JSON lines anyway.")]


def serve(as_json: LogsAreJson = True) -> None:
    """The gateway. SIGTERM lets every request and every generation finish."""

    async def work() -> None:
        settings = read_settings()
        set_up_logs(settings.log_level, sys.stdout)
        stop = stop_on_signals()
        files = raise_limit()
        listener = bind("GHUB_PORT", settings.host, settings.port)
        probe = _bind_metrics(settings)  # before anything is opened that a start which fails would leave open
        port = listener.getsockname()[1]
        log.info("files", before=files.before, now=files.now, connections=files.connections)
        async with open_gateway(settings, stop, port) as gateway, asyncio.TaskGroup() as servers:
            if probe is not None:
                servers.create_task(_serve_probes(gateway.not_ready, probe, stop))
            graceful_s = graceful_stop_s(gateway.longest_deadline_s)
            servers.create_task(
                serve_http(gateway.app, listener, stop, graceful_s, most=files.connections, full=gateway.full)
            )
            log.info("serving", host=settings.host, port=port)
        log.info("stopped")
        gateway.background.check()

    run(work())


def _bind_metrics(settings: Settings) -> socket.socket | None:
    """Where `/metrics` is to listen; None where it is off. Raises PortTaken."""
    return bind("GHUB_METRICS_PORT", settings.host, settings.metrics_port) if settings.metrics_port else None


async def _serve_probes(not_ready: NotReady, listener: socket.socket, stop: asyncio.Event) -> None:
    """Apart from the customers', so that it answers where they have all the connections that there are."""
    await serve_http(metrics_app(not_ready), listener, stop, EXIT_MARGIN_S, most=PROBE_CONNECTIONS)


def consume(as_json: LogsAreJson = True) -> None:
    """The billing consumer: metering events into the ledger. SIGTERM lets the batch under way finish."""

    async def work() -> None:
        settings = read_settings()
        set_up_logs(settings.log_level, sys.stdout)
        stop = stop_on_signals()
        probe = _bind_metrics(settings)
        async with open_back(settings) as back, asyncio.TaskGroup() as tasks:
            await back.ledger.check_schema()
            consumer, projector = back.consumer(f"{socket.gethostname()}-{os.getpid()}"), back.projector
            assert projector is not None, "a consumer has a Redis"
            background = Background(
                [
                    Part("consumer", lambda: consumer.run(stop), ends=True),
                    Part("projection", lambda: projector.run(PROJECTION_POLL_S)),
                ],
                give_up=stop.set,
            )
            conditions = Conditions(
                [
                    Condition("stopping", when(stop.is_set, "stopping")),
                    *running(background),
                    Condition("Redis or the ledger is away", when(lambda: not consumer.alive, "away")),
                ]
            )
            if probe is not None:
                tasks.create_task(_serve_probes(conditions.not_ready, probe, stop))
            log.info("consuming")
            background.begin()
            await background.until_done("consumer")
            await background.end()
        log.info("stopped")
        background.check()

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
