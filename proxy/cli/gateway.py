"""`ghub serve`: the gateway, until SIGTERM: one process, or several that share its port."""

import asyncio
import sys
from collections.abc import Sequence
from typing import Annotated

import structlog
import typer

from config.settings import EXIT_MARGIN_S, GATEWAY_METRICS_PORT
from proxy.api.health import BUILD, READY, union_app
from proxy.cli.loading import loading
from proxy.cli.output import LogsAreJson
from proxy.cli.process import begin, bind_metrics
from proxy.cli.running import run
from proxy.server.descriptors import PROBE_CONNECTIONS
from proxy.server.serving import bind, serve_http, stop_on_signals
from proxy.server.supervisor import OWN, Supervisor
from proxy.server.worker import Inheritance, Worker

log = structlog.get_logger(__name__)

MAX_PROCESSES = 64
"""The most processes of one gateway: a larger machine is better shared by several gateways."""


def serve(
    processes: Annotated[
        int, typer.Option(min=1, max=MAX_PROCESSES, metavar="N", help="Processes that share the port: one per core.")
    ] = 1,
    inherited: Annotated[str | None, typer.Option(hidden=True, help="What a supervisor gives its process.")] = None,
    as_json: LogsAreJson = True,
) -> None:
    """The gateway. SIGTERM lets every request and every generation finish."""
    if processes > 1 and inherited is None:
        if not run(_supervise(processes)):
            raise typer.Exit(1)
        return
    with loading():
        from proxy.cli.serve import serve_one  # noqa: PLC0415  # all of a gateway, which a supervisor does without

    serve_one(inherited, processes)


async def _supervise(count: int) -> bool:
    """Run a gateway of several processes. False if it could not start; a process has said why."""
    settings = begin()
    stop = stop_on_signals()
    listener = bind("GHUB_PORT", settings.host, settings.port)
    probe = bind_metrics(settings, GATEWAY_METRICS_PORT)

    def command(number: int, *descriptors: int) -> Sequence[str]:
        inheritance = Inheritance(Worker(number, count), *descriptors)
        options = ["--processes", str(count), "--inherited", str(inheritance)]
        return [sys.executable, "-m", "proxy.cli", "serve", *options]

    supervisor = Supervisor(command, listener, count, stop)
    for one in (READY, BUILD):  # those of the whole
        OWN.register(one)
    app = union_app(supervisor.not_ready, supervisor.dead, supervisor.metrics, supervisor.versions)
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as servers:
        if probe is not None:
            servers.create_task(serve_http(app, probe, ended, EXIT_MARGIN_S, most=PROBE_CONNECTIONS))
        try:
            started = await supervisor.run()
        finally:
            ended.set()
    log.info("all_stopped", processes=count)
    return started
