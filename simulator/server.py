"""Serves the upstreams over HTTP/1.1 and TLS, in the caller's event loop."""

import asyncio
import ssl
from collections.abc import Callable
from typing import cast

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.typing import ASGIFramework

from simulator.app import make_app, make_world
from simulator.client import Connection

GRACE_S = 1.0  # time for answers under way at shutdown
BACKLOG = 2048
KEEP_ALIVE_S = 75.0


async def serve(
    *,
    host: str,
    port: int,
    latency_scale: float = 1.0,
    seed: int = 0,
    tls: tuple[int, str, str] | None = None,
    shutdown: asyncio.Event,
    started: Callable[[int, int | None], None] | None = None,
) -> None:
    """Serve until `shutdown` is set; what is unanswered one second later is cut off.

    `tls` is (port, certificate file, key file) of a second listener. A port of 0 is any free one; `started` receives
    the ports of both. OSError if a port is busy or a file cannot be read, ValueError if `latency_scale` is negative.
    """
    world = make_world(latency_scale, seed)
    app = make_app(world)
    config = Config()
    config.include_server_header = False
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.keep_alive_max_requests = 2**31
    loop, context = asyncio.get_running_loop(), WorkerContext(None)
    connections: set[asyncio.Task[None]] = set()

    # One application per connection, so Hypercorn's connection class is used directly: a reset, or bytes that are not
    # HTTP, need the transport, which ASGI does not give.
    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        task.add_done_callback(connections.discard)
        connection = ASGIWrapper(cast(ASGIFramework, Connection(app, writer.transport)))
        await TCPServer(connection, loop, config, context, {}, reader, writer)

    servers: list[asyncio.Server] = []
    try:
        servers.append(await asyncio.start_server(connect, host, port, backlog=BACKLOG))
        if tls is not None:
            tls_port, certfile, keyfile = tls
            secure = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            secure.load_cert_chain(certfile, keyfile)
            secure.set_alpn_protocols(["http/1.1"])
            servers.append(await asyncio.start_server(connect, host, tls_port, ssl=secure, backlog=BACKLOG))
        if started is not None:
            ports = [server.sockets[0].getsockname()[1] for server in servers]
            started(ports[0], ports[1] if tls is not None else None)
        await shutdown.wait()
    finally:
        for server in servers:
            server.close()
        await context.terminated.set()
        if connections:
            _, late = await asyncio.wait(connections, timeout=GRACE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await world.end()
