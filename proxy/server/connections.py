"""A client's connection: HTTP/1.1 and nothing else; what it may hold without asking, unread, or ahead of its turn."""

import asyncio
import copy
import fcntl
import socket
import struct
import sys
import termios
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NoReturn, cast

import h11
import prometheus_client
import structlog
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import AppWrapper, ASGIReceiveEvent, ASGISendEvent, ConnectionState, Scope
from hypercorn.utils import parse_socket_addr
from starlette.types import ASGIApp

from proxy.server.memory import give_back

FIRST_HEAD_S = 10.0
"""From a connection's start until its first request's head is whole: proxies connect when they have a request."""

KEEP_ALIVE_S = 75.0
"""Above the idle time of common proxies (60 s), so that we are not the ones who close under a request."""

UNREAD_S = 20.0
"""A reply of which its client takes nothing for so long is cut off, and what it holds (a stored image, a connection to
the store, memory of the kernel) is let go. Whoever takes a little, and that in time, is served to the end."""

LOOK_S = 1.0
"""How often connections are looked at. Time is counted in looks: one that the process itself slept through is none."""

READ_BYTES = 16 * 1024
"""Read at a time: the longest head, too. While a reply is under way one such piece of the next requests is taken apart
and at most twice as much and one read of the kernel's buffer waits before it; the rest is left to the client."""

UNSENT_BYTES = 16 * 1024
"""Of a reply that the kernel has not taken; its maker waits above that, and holds one more piece."""

LINGER_S, LINGER_BYTES = 1.0, 4 * 1024 * 1024
"""After a reply that came before the end of its request, as much of the rest is read for so long and dropped: the
client's kernel would throw the reply away where ours had bytes that nobody read."""

SPARE = 64
"""Connections above the most that are told so; a crowd that is larger is closed without a word."""

SPARE_HEAD_S = 2.0
"""Until the head of a request that is going to be refused."""

CROWD = 100
"""Connections: fewer leave nothing behind that is worth giving back."""

GIVE_BACK_LOOKS = 10
"""Looks between two times that memory is given back: 50 ms of them are half a percent of a load that comes and goes."""

log = structlog.get_logger(__name__)

OPEN = prometheus_client.Gauge("ghub_connections", "Connections of clients that are open")
CUT = prometheus_client.Counter("ghub_connections_cut_total", "Connections that were refused or cut off", ["why"])


class Connections:
    """All connections of one listener: at most `most`, and above that `SPARE` to which `full` gives one reply each.

    Without `full` those are closed without a word.
    """

    def __init__(self, app: ASGIApp, full: ASGIApp | None, most: int, config: Config) -> None:
        self._app = app
        self._full = full
        self._most = most
        self._config = config
        self._context = WorkerContext(None)
        self._open: dict[Connection, asyncio.Task[None]] = {}
        self._cut: Counter[str] = Counter()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection until one side ends it."""
        task = asyncio.current_task()
        assert task is not None, "a server gives each connection a task"
        if len(self._open) < self._most:
            connection = Connection(self._app, self._config, self._context, reader, writer, self._count, FIRST_HEAD_S)
        elif self._full is not None and len(self._open) < self._most + SPARE:
            self._count("full")
            connection = Connection(
                self._full, _once(self._config), self._context, reader, writer, self._count, SPARE_HEAD_S
            )
        else:
            self._count("full")
            writer.transport.abort()
            return
        self._open[connection] = task
        OPEN.inc()
        try:
            await connection.serve()
        finally:
            OPEN.dec()
            del self._open[connection]

    async def watch(self) -> NoReturn:
        """Look at all of them, again and again, say what was cut off, and give back what a crowd that went has used."""
        most = looks = 0
        while True:
            await asyncio.sleep(LOOK_S)
            most, looks = max(most, len(self._open)), looks + 1
            if looks >= GIVE_BACK_LOOKS and most >= CROWD and len(self._open) <= most // 2:
                give_back()
                most, looks = len(self._open), 0
            for connection in tuple(self._open):
                connection.look()
            if self._cut:
                log.warning("connections_cut", open=len(self._open), **self._cut)
                self._cut.clear()

    async def finish(self, within_s: float) -> None:
        """End those that wait for a request, and let the others finish theirs; what then goes on is cancelled."""
        await self._context.terminated.set()
        for connection in tuple(self._open):
            connection.finish()
        if tasks := set(self._open.values()):
            _, late = await asyncio.wait(tasks, timeout=within_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _count(self, why: str) -> None:
        CUT.labels(why).inc()
        self._cut[why] += 1


class Connection:
    """One of them. `count` is told why it was cut off; the first head is whole within `first_head_s`."""

    def __init__(
        self,
        app: ASGIApp,
        config: Config,
        context: WorkerContext,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        count: Callable[[str], None],
        first_head_s: float,
    ) -> None:
        self._app = app
        self._config = config
        self._context = context
        self._reader = reader
        self._writer = writer
        writer.transport.set_write_buffer_limits(high=UNSENT_BYTES)
        self._count = count
        self._head_within_s: float | None = first_head_s  # None while a request is worked on
        self._served = False
        self._silent_s = self._unread_s = 0.0
        self._written_bytes = self._taken_bytes = 0
        self._reading: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Until one side ends it. A request that is worked on then is finished first."""
        loop, peer = asyncio.get_running_loop(), self._writer.get_extra_info("socket")
        try:
            client = parse_socket_addr(peer.family, peer.getpeername())
            server = parse_socket_addr(peer.family, peer.getsockname())
        except OSError:  # it is gone already
            self._writer.transport.abort()
            return
        unfinished = False
        try:
            async with _Requests(loop) as requests:
                protocol = _Http1(
                    cast(AppWrapper, self._app),
                    self._config,
                    self._context,
                    requests,
                    ConnectionState({}),
                    False,  # no TLS
                    client,
                    server,
                    self._send,
                )
                self._reading = loop.create_task(self._read(protocol))
                try:
                    await asyncio.wait({self._reading})
                    if not self._reading.cancelled():
                        self._reading.result()
                finally:
                    self._reading.cancel()
                    unfinished = protocol.unfinished
                    await protocol.handle(Closed())
        finally:
            await self._close(unfinished)

    def look(self) -> None:
        """Once in LOOK_S: end it where its client let us wait too long for a request, or for taking its reply."""
        taken_bytes = self._written_bytes - self._untaken_bytes()
        unread = self._taken_bytes == taken_bytes < self._written_bytes
        self._taken_bytes = taken_bytes
        self._unread_s = self._unread_s + LOOK_S if unread else 0.0
        if self._unread_s >= UNREAD_S:
            self._abort("unread")
        elif self._head_within_s is not None:
            self._silent_s += LOOK_S
            if self._silent_s >= self._head_within_s:
                if not self._served:
                    self._count("no_head")
                self._end()

    def _untaken_bytes(self) -> int:
        """Of what was written: what is here, and what our kernel still has to hand over to the client's."""
        here_bytes = self._writer.transport.get_write_buffer_size()
        if self._writer.transport.is_closing():
            return here_bytes
        number = self._writer.get_extra_info("socket").fileno()
        return here_bytes + int.from_bytes(fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    def finish(self) -> None:
        """No request comes any more: end it, unless one is worked on."""
        if self._head_within_s is not None:
            self._end()

    async def _read(self, protocol: "_Http1") -> None:
        data = None
        with suppress(OSError):
            while data != b"":
                data = await self._reader.read(READ_BYTES)
                try:
                    await protocol.handle(RawData(data))
                except _NotHttp1:
                    self._abort("http2")

    async def _send(self, event: Event) -> None:
        """What the protocol wants of the connection."""
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Closed):
            self._end()
        elif isinstance(event, Updated):
            self._served = True
            self._silent_s = 0.0
            self._head_within_s = KEEP_ALIVE_S if event.idle else None

    async def _write(self, data: bytes) -> None:
        if self._writer.transport.is_closing():  # the application goes on for a moment
            self._end()
            return
        self._written_bytes += len(data)
        self._writer.write(data)
        try:
            await self._writer.drain()  # for ever, if nobody looked
        except OSError:
            self._end()

    def _end(self) -> None:
        """Read no more of it: `serve` does the rest."""
        self._head_within_s = None
        if self._reading is not None:
            self._reading.cancel()

    def _abort(self, why: str) -> None:
        """At once, and without what the kernel still holds for the client."""
        self._count(why)
        with suppress(OSError):
            peer = self._writer.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        self._end()

    async def _close(self, unfinished: bool) -> None:
        with suppress(OSError, RuntimeError):  # it may be gone
            if unfinished and not self._writer.transport.is_closing():
                self._writer.write_eof()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_S):
                        left_bytes = LINGER_BYTES
                        while left_bytes > 0 and (data := await self._reader.read(READ_BYTES)):
                            left_bytes -= len(data)
            self._writer.close()
            await self._writer.wait_closed()


class _Requests(TaskGroup):
    """The application's work on a connection's requests.

    Hypercorn's own waits for ever to tell that a client is gone where the application has left a long body unread.
    """

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """Begin the work on one request; what is returned hands over its body, and at last that the client is gone."""
        messages: asyncio.Queue[ASGIReceiveEvent] = asyncio.Queue(config.max_app_queue_size)

        async def put(message: ASGIReceiveEvent) -> None:
            if message["type"] == "http.disconnect" and messages.full():
                messages.get_nowait()
            await messages.put(message)

        self.spawn(_answer, cast(ASGIApp, app), scope, messages.get, send)
        return put


async def _answer(
    app: ASGIApp,
    scope: Scope,
    receive: Callable[[], Awaitable[ASGIReceiveEvent]],
    send: Callable[[ASGISendEvent | None], Awaitable[None]],
) -> None:
    try:
        await app(scope, receive, send)  # type: ignore[arg-type]  # Hypercorn's own ASGI types
    except Exception:
        log.exception("fault")
    finally:
        await send(None)


class _NotHttp1(Exception):
    """Another protocol, or another version of it."""


class _Http1(H11Protocol):
    """Hypercorn's HTTP/1.1, without its ways to HTTP/2 and to WebSocket."""

    @property
    def unfinished(self) -> bool:
        """Is the client in the midst of a request?"""
        return self.connection.their_state in (h11.SEND_BODY, h11.ERROR)

    async def _check_protocol(self, request: h11.Request) -> None:
        """What decides on HTTP/2 in Hypercorn: prior knowledge begins with `PRI * HTTP/2.0`."""
        if not request.http_version.startswith(b"1."):
            raise _NotHttp1

    async def _create_stream(self, request: h11.Request) -> None:
        """An `Upgrade` is ignored, as a server may (RFC 9110, 7.8)."""
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
        if len(headers) < len(request.headers):
            request = h11.Request(
                method=request.method, target=request.target, headers=headers, http_version=request.http_version
            )
        await super()._create_stream(request)


def _once(config: Config) -> Config:
    """The same, with one request for each connection."""
    once = copy.copy(config)
    once.keep_alive_max_requests = 0
    return once
