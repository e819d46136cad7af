"""A client's connection: HTTP/1.1 only, with limits for silence, unread replies and requests sent ahead."""

import asyncio
import copy
import fcntl
import socket
import struct
import sys
import termios
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple, NoReturn, cast

import h11
import prometheus_client
import structlog
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import AppWrapper, ASGIReceiveEvent, ASGISendEvent, ConnectionState, Scope, TaskGroup
from hypercorn.typing import Event as Waited
from hypercorn.utils import parse_socket_addr
from starlette.types import ASGIApp

from proxy.server.memory import give_back

FIRST_HEAD_S = 10.0
"""Maximum time from a connection's start to the end of its first request's head. Proxies connect when they have one."""

KEEP_ALIVE_S = 75.0
"""Idle time before we close: above that of common proxies (60 s), so that we never close while a request arrives."""

UNREAD_S = 20.0
"""Maximum time in which a client takes nothing of its reply.

Then the reply is cut off, and what it holds (a stored image, a connection to the store, kernel memory) is freed. A
client that takes a little within this time is served to the end.
"""

LOOK_S = 1.0
"""Interval between two checks of connections.

Time is counted in checks, so time in which the process itself slept does not count.
"""

READ_BYTES = 16 * 1024
"""Bytes of one read, and maximum size of a head.

During a reply, one such piece of the next requests is parsed. At most twice as much and one read of the kernel's buffer
wait before it; the rest stays with the client.
"""

UNSENT_BYTES = 16 * 1024
"""Maximum bytes of a reply that the kernel has not taken. Above it the reply's maker waits, holding one more piece."""

HERE_SINCE_S = "here_since_s"
"""In a request's `state`: when its client connected, by `time.monotonic`, if this is its first request."""

LINGER_S, LINGER_BYTES = 1.0, 4 * 1024 * 1024
"""If a reply came before its request's end, the rest is read and dropped for this time, up to this size.

Otherwise the client's kernel would discard the reply, because ours had unread bytes.
"""

SPARE = 64
"""Connections above the maximum that get an error reply. Further ones are closed without a reply."""

SPARE_HEAD_S = 2.0
"""Maximum time until the head of a request that will be refused."""

CROWD = 100
"""Minimum number of connections for which giving back memory is worth it."""

GIVE_BACK_LOOKS = 10
"""Checks between two times that memory is given back: 50 ms of them are half a percent of a changing load."""

log = structlog.get_logger(__name__)

Early = Callable[[bytes, float | None], bytes | None]
"""Given the first bytes of a request, and when its client connected if this is its first one: the whole reply, if the
request is complete and refused without parsing; otherwise None."""

OPEN = prometheus_client.Gauge("ghub_connections", "Connections of clients that are open")
CUT = prometheus_client.Counter("ghub_connections_cut_total", "Connections that were refused or cut off", ["why"])
for _why in ("full", "no_head", "unread", "http2"):
    CUT.labels(_why)


class Connections:
    """All connections of one listener: at most `most`, and above that `SPARE`, to which `full` gives one reply each.

    Without `full` those are closed without a reply.
    """

    def __init__(
        self, app: ASGIApp, full: ASGIApp | None, most: int, config: Config, early: Early | None = None
    ) -> None:
        self.early = early
        self._usual = _Terms(app, config, FIRST_HEAD_S)
        self._spare = None if full is None else _Terms(full, _once(config), SPARE_HEAD_S)
        self._most = most
        self._open: set[Connection] = set()
        self._none = asyncio.Event()
        self._cut: Counter[str] = Counter()
        self.context = _Context(None)

    def new(self) -> "Connection":
        """Create a connection that is being accepted."""
        return Connection(self)

    def admit(self, connection: "Connection") -> "_Terms | None":
        """Choose how it is served until it is `remove`d; None means that it must be closed at once."""
        terms: _Terms | None = self._usual
        if len(self._open) >= self._most:
            self.count("full")
            terms = self._spare if len(self._open) < self._most + SPARE else None
        if terms is not None:
            self._open.add(connection)
            OPEN.inc()
        return terms

    def remove(self, connection: "Connection") -> None:
        """Remove an ended connection; no effect if it was never admitted."""
        if connection in self._open:
            self._open.remove(connection)
            OPEN.dec()
            if not self._open:
                self._none.set()

    def count(self, why: str) -> None:
        """Count one more that was refused or cut off."""
        CUT.labels(why).inc()
        self._cut[why] += 1

    async def watch(self) -> NoReturn:
        """Check all connections at intervals, log what was cut off, and give back the memory of a crowd that has left.

        Memory is given back once more later: work that the crowd had requested may go on for some seconds.
        """
        most, looks, again = 0, 0, False
        while True:
            await asyncio.sleep(LOOK_S)
            most, looks = max(most, len(self._open)), looks + 1
            gone = most >= CROWD and len(self._open) <= most // 2
            if looks >= GIVE_BACK_LOOKS and (gone or again):
                give_back()
                most, looks, again = len(self._open), 0, gone
            for connection in tuple(self._open):
                connection.look()
            if self._cut:
                log.warning("connections_cut", open=len(self._open), **self._cut)
                self._cut.clear()

    async def finish(self, within_s: float) -> None:
        """Close idle connections, and let the others finish their requests; what runs after `within_s` is cancelled."""
        await self.context.terminated.set()
        for connection in tuple(self._open):
            connection.finish()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._all_gone(), within_s)
        for connection in tuple(self._open):
            connection.cancel()
        await self._all_gone()

    async def _all_gone(self) -> None:
        while self._open:
            self._none.clear()
            await self._none.wait()


class _Terms(NamedTuple):
    """The application for a connection's requests, and the maximum time for its first head."""

    app: ASGIApp
    config: Config
    first_head_s: float


class Connection(asyncio.Protocol):
    """One connection. While its client is silent it is only this object, without a task: a crowd costs little."""

    __slots__ = (
        "_can_write",
        "_closing",
        "_connections",
        "_ended",
        "_head_within_s",
        "_here_since_s",
        "_left_bytes",
        "_lost",
        "_protocol",
        "_read",
        "_read_all",
        "_requests",
        "_served",
        "_silent_s",
        "_state",
        "_stirred",
        "_taken_bytes",
        "_terms",
        "_transport",
        "_unread_s",
        "_working",
        "_written_bytes",
    )

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._terms: _Terms
        self._transport: asyncio.Transport
        self._state: ConnectionState  # from its first byte on
        self._protocol: _Http1 | None = None  # from its first byte on
        self._requests = _Requests()
        self._read = b""  # and not parsed yet
        self._read_all = self._lost = self._ended = self._served = False
        self._working: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._can_write: asyncio.Event | None = None  # while the client reads more slowly than we write
        self._stirred: asyncio.Event | None = None  # while it is closing: its client did something
        self._left_bytes = LINGER_BYTES
        self._head_within_s: float | None = None  # None while a request is worked on
        self._here_since_s: float | None = time.monotonic()  # None after its first request
        self._silent_s = self._unread_s = 0.0
        self._written_bytes = self._taken_bytes = 0

    # --- events ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Handle an accepted connection, or one too many."""
        self._transport = cast(asyncio.Transport, transport)
        terms = self._connections.admit(self)
        if terms is None:
            self._ended = True
            self._transport.abort()
            return
        self._terms = terms
        self._transport.set_write_buffer_limits(high=UNSENT_BYTES)
        self._head_within_s = terms.first_head_s

    def data_received(self, data: bytes) -> None:
        """Handle a piece of a request, or of data that nobody will read."""
        if self._ended:
            self._left_bytes -= len(data)
            if self._left_bytes <= 0:
                self._transport.pause_reading()
                self._stir()
            return
        early = self._connections.early
        if early is not None and self._is_fresh and (reply := early(data, self._here_since_s)) is not None:
            self._refuse(reply)
            return
        self._read += data
        if len(self._read) > READ_BYTES:
            self._transport.pause_reading()
        self._work()

    def _refuse(self, reply: bytes) -> None:
        """Send a whole reply to a whole request, and wait for the next one."""
        self._written_bytes += len(reply)
        self._transport.write(reply)
        self._await_next(KEEP_ALIVE_S)
        self._here_since_s = None

    def _await_next(self, head_within_s: float | None) -> None:
        self._served = True
        self._silent_s = 0.0
        self._head_within_s = head_within_s

    def eof_received(self) -> bool:
        """Handle the end of the client's data; its running requests learn of it."""
        self._read_all = True
        self._stir()
        if self._is_idle:
            self._end()
        else:
            self._work()
        return True  # a reply under way may still be sent

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the end of both directions."""
        self._lost = True
        self.resume_writing()
        self._stir()
        self._end()
        if self._closing is None:
            self._let_go()

    def pause_writing(self) -> None:
        """Handle more than UNSENT_BYTES of unsent data."""
        self._can_write = asyncio.Event()

    def resume_writing(self) -> None:
        """Handle enough sent data, or a connection that will send no more."""
        if self._can_write is not None:
            self._can_write.set()
            self._can_write = None

    # --- calls from outside ---

    def look(self) -> None:
        """Check every LOOK_S: end it if its client was too slow with a request, or with reading its reply."""
        unread = False
        if self._taken_bytes < self._written_bytes:  # most wait for a request, and have taken everything
            before_bytes, self._taken_bytes = self._taken_bytes, self._written_bytes - self._untaken_bytes()
            unread = self._taken_bytes == before_bytes
        self._unread_s = self._unread_s + LOOK_S if unread else 0.0
        if self._unread_s >= UNREAD_S:
            self._abort("unread")
        elif self._head_within_s is not None:
            self._silent_s += LOOK_S
            if self._silent_s >= self._head_within_s:
                if not self._served:
                    self._connections.count("no_head")
                self._end()

    def finish(self) -> None:
        """End it unless a request is worked on: no further request is accepted."""
        if self._head_within_s is not None:
            self._end()

    def cancel(self) -> None:
        """End it together with its running work."""
        for task in self._requests.tasks:
            task.cancel()
        self._transport.abort()
        self._end()

    # --- its work ---

    def _work(self) -> None:
        """Parse what was read, unless a task does so already; also tell that no more comes."""
        if self._working is None and not self._ended:
            self._working = asyncio.create_task(self._take_apart())

    async def _take_apart(self) -> None:
        protocol = self._protocol
        try:
            if protocol is None:
                protocol = self._protocol = self._begin()
            while self._read:
                paused = len(self._read) > READ_BYTES
                piece, self._read = self._read[:READ_BYTES], self._read[READ_BYTES:]
                if paused and len(self._read) <= READ_BYTES and not self._transport.is_closing():
                    self._transport.resume_reading()
                await protocol.handle(RawData(piece))
            if self._read_all:
                await protocol.handle(RawData(b""))
                self._end()
        except _NotHttp1:
            self._abort("http2")
        except OSError:  # the client is gone
            self._end()
        except Exception:
            log.exception("fault")
            self._end()
        finally:
            self._working = None

    def _begin(self) -> "_Http1":
        """Create the protocol. Raises OSError if the client is gone."""
        peer = self._transport.get_extra_info("socket")
        self._state = ConnectionState({HERE_SINCE_S: self._here_since_s})
        return _Http1(
            cast(AppWrapper, self._terms.app),
            self._terms.config,
            self._connections.context,
            cast(TaskGroup, self._requests),
            self._state,
            False,  # no TLS
            parse_socket_addr(peer.family, peer.getpeername()),
            parse_socket_addr(peer.family, peer.getsockname()),
            self._send,
        )

    async def _send(self, event: Event) -> None:
        """Handle what the protocol wants of the connection."""
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Closed):
            self._end()
        elif isinstance(event, Updated):
            self._await_next(KEEP_ALIVE_S if event.idle else None)
            if event.idle:
                self._here_since_s = self._state[HERE_SINCE_S] = None

    async def _write(self, data: bytes) -> None:
        if self._transport.is_closing():  # the application goes on for a moment
            self._end()
            return
        self._written_bytes += len(data)
        self._transport.write(data)
        if self._can_write is not None:
            await self._can_write.wait()  # for ever, if nobody looked

    def _untaken_bytes(self) -> int:
        """Count the bytes written and not taken: those here, and those that our kernel still has to send."""
        here_bytes = self._transport.get_write_buffer_size()
        if self._transport.is_closing():
            return here_bytes
        number = self._transport.get_extra_info("socket").fileno()
        return here_bytes + int.from_bytes(fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    # --- its end ---

    @property
    def _is_idle(self) -> bool:
        """True if nothing is worked on or waiting."""
        return self._head_within_s is not None and not (self._read or self._working or self._requests.tasks)

    @property
    def _is_fresh(self) -> bool:
        """True if the next byte begins a request, and its reply can be written at once."""
        return self._is_idle and self._can_write is None and (self._protocol is None or self._protocol.fresh)

    def _end(self) -> None:
        """Parse no more, and close: now, or when the running work has ended."""
        if self._ended:
            return
        idle, self._ended, self._head_within_s = self._is_idle, True, None
        if idle:
            self._transport.close()
        else:
            self._closing = asyncio.create_task(self._close())

    def _abort(self, why: str) -> None:
        """Close at once, and drop what the kernel still holds for the client."""
        self._connections.count(why)
        with suppress(OSError):
            peer = self._transport.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
        self._end()

    async def _close(self) -> None:
        try:
            unfinished = False
            if self._working is not None:
                self._working.cancel()
                await asyncio.wait({self._working})
            if self._protocol is not None:
                unfinished = self._protocol.unfinished
                await self._protocol.handle(Closed())
            if self._requests.tasks:
                await asyncio.wait(self._requests.tasks)
            self._stirred = asyncio.Event()
            if unfinished and not self._read_all and not self._transport.is_closing():
                await self._linger(self._stirred)
            self._transport.close()
            while not self._lost:
                self._stirred.clear()
                await self._stirred.wait()
        finally:
            self._transport.abort()  # if something went wrong
            self._let_go()

    def _let_go(self) -> None:
        self._connections.remove(self)
        self._protocol = self._closing = None  # they refer to this object: it is freed now, not by a later collection

    async def _linger(self, stirred: asyncio.Event) -> None:
        """Read and drop what the client still sends."""
        self._transport.write_eof()
        self._transport.resume_reading()
        with suppress(TimeoutError):
            await asyncio.wait_for(stirred.wait(), LINGER_S)

    def _stir(self) -> None:
        if self._stirred is not None:
            self._stirred.set()


class _Requests:
    """The application's work on a connection's requests; Hypercorn needs it as a task group.

    Hypercorn's own would wait for ever to report that a client is gone, if the application has left a long body unread.
    """

    __slots__ = ("tasks",)

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """Start the work on one request. The returned function gives its body, and finally that the client is gone."""
        messages: asyncio.Queue[ASGIReceiveEvent] = asyncio.Queue(config.max_app_queue_size)

        async def put(message: ASGIReceiveEvent) -> None:
            if message["type"] == "http.disconnect" and messages.full():
                messages.get_nowait()
            await messages.put(message)

        task = asyncio.create_task(_answer(cast(ASGIApp, app), scope, messages.get, send))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return put


async def _answer(
    app: ASGIApp,
    scope: Scope,
    receive: Callable[[], Awaitable[ASGIReceiveEvent]],
    send: Callable[[ASGISendEvent | None], Awaitable[None]],
) -> None:
    try:
        try:
            await app(scope, receive, send)  # type: ignore[arg-type]  # Hypercorn's own ASGI types
        finally:
            await send(None)
    except Exception:
        log.exception("fault")


class _Gate:
    """Hypercorn's event, created only when somebody waits: each connection has one, and few need it."""

    __slots__ = ("_event", "_open")

    def __init__(self) -> None:
        self._open = False
        self._event: asyncio.Event | None = None

    async def clear(self) -> None:
        self._open = False

    async def set(self) -> None:
        self._open = True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        while not self._open:
            self._event = asyncio.Event()
            await self._event.wait()

    def is_set(self) -> bool:
        return self._open


class _Context(WorkerContext):
    event_class: type[Waited] = _Gate


class _NotHttp1(Exception):
    """Another protocol, or another version of it."""


class _Http1(H11Protocol):
    """Hypercorn's HTTP/1.1, without its switches to HTTP/2 and to WebSocket."""

    @property
    def unfinished(self) -> bool:
        """True if the client is in the middle of a request."""
        return self.connection.their_state in (h11.SEND_BODY, h11.ERROR)

    @property
    def fresh(self) -> bool:
        """True if the client has sent nothing of its next request."""
        return self.connection.their_state is h11.IDLE and not self.connection.trailing_data[0]

    async def _check_protocol(self, request: h11.Request) -> None:
        """Refuse HTTP/2, which Hypercorn decides here: prior knowledge begins with `PRI * HTTP/2.0`."""
        if not request.http_version.startswith(b"1."):
            raise _NotHttp1

    async def _create_stream(self, request: h11.Request) -> None:
        """Ignore an `Upgrade`, as a server may (RFC 9110, 7.8)."""
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
        if len(headers) < len(request.headers):
            request = h11.Request(
                method=request.method, target=request.target, headers=headers, http_version=request.http_version
            )
        await super()._create_stream(request)


def _once(config: Config) -> Config:
    """Copy the configuration, with one request for each connection."""
    once = copy.copy(config)
    once.keep_alive_max_requests = 0
    return once
