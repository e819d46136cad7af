"""One process of `ghub serve`: a whole gateway, alone or under a supervisor, until SIGTERM."""

import asyncio
import os
from contextlib import AsyncExitStack

import structlog

from config.settings import GATEWAY_METRICS_PORT, graceful_stop_s
from proxy.api.health import measure
from proxy.cli.process import begin, bind_metrics, serve_probes
from proxy.cli.running import run
from proxy.cli.tracing import open_tracer
from proxy.server.control import answering
from proxy.server.descriptors import raise_limit
from proxy.server.memory import search_seldom
from proxy.server.serving import bind, serve_http, stop_on_signals
from proxy.server.worker import ALONE, Inheritance
from proxy.wiring import open_gateway

log = structlog.get_logger(__name__)


def serve_one(inherited: str | None, processes: int) -> None:
    """Run one process of so many; `inherited` is what it has from its supervisor, None if it is alone."""

    async def work() -> None:
        inheritance = None if inherited is None else Inheritance.parse(inherited, processes)
        worker = ALONE if inheritance is None else inheritance.worker
        supervised, probe = None, None
        if inheritance is not None:
            structlog.contextvars.bind_contextvars(process=worker.number)
        settings = begin()
        search_seldom()
        stop, ended = stop_on_signals(), asyncio.Event()
        files = raise_limit()
        async with AsyncExitStack() as stack:
            if inheritance is None:
                listener = bind("GHUB_PORT", settings.host, settings.port)
                # This comes before anything that a failed start would leave open.
                probe = bind_metrics(settings, GATEWAY_METRICS_PORT)
            else:
                listener, control = inheritance.sockets()
                supervised = await stack.enter_async_context(answering(control, stop))
            port = listener.getsockname()[1]
            tracer = await stack.enter_async_context(open_tracer(settings, os.environ, "ghub-gateway"))
            gateway = await stack.enter_async_context(open_gateway(settings, stop, port, worker, tracer))
            servers = await stack.enter_async_context(asyncio.TaskGroup())
            if probe is not None:
                servers.create_task(serve_probes(gateway.not_ready, probe, ended, gateway.versions))
            if supervised is not None:
                measure(gateway.not_ready)
                supervised.begin(gateway.not_ready, gateway.versions)
            log.info("files", before=files.before, now=files.now, connections=files.connections)
            log.info("serving", host=settings.host, port=port)
            await serve_http(
                gateway.app,
                listener,
                stop,
                graceful_stop_s(gateway.longest_stay_s),
                most=files.connections,
                full=gateway.full,
                early=gateway.early,
            )
            ended.set()
        log.info("stopped")
        gateway.background.check()

    run(work())
