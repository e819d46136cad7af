"""One connection after the other: which protocol is spoken, what is held for a client, and for how long."""

import asyncio
import gc
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from weakref import WeakSet

import pytest
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from proxy.app import build_full_app
from proxy.server import connections as limits
from proxy.server.serving import UNSENT_BYTES, bind, serve_http
from tests.conftest import run
from tests.kits.crowds import connections, h2c

HOST = "127.0.0.1"
WITHIN_S = 20.0
LONG_BYTES = 2_000_000
GET = b"GET /%s HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET /%s HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@dataclass
class Served:
    """A listener with a small application, and what that was asked and holds."""

    port: int
    asked: list[str] = field(default_factory=list)
    held: int = 0

    async def open(self, receive_bytes: int = 0, send_bytes: int = 0) -> socket.socket:
        """A connection to it, whose kernel takes as little as is said."""
        one = socket.socket()
        one.setblocking(False)
        if receive_bytes:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        if send_bytes:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
        await asyncio.get_running_loop().sock_connect(one, (HOST, self.port))
        return one

    def app(self) -> Starlette:
        """`/`: two letters. `/long`: two megabytes, piece by piece, and something held meanwhile."""

        async def short(request: Request) -> Response:
            self.asked.append(request.url.path)
            return PlainTextResponse("ok")

        async def pieces() -> AsyncIterator[bytes]:
            self.held += 1
            try:
                for _ in range(LONG_BYTES // 20_000):
                    yield b"x" * 20_000
            finally:
                self.held -= 1

        async def long(request: Request) -> Response:
            self.asked.append(request.url.path)
            return StreamingResponse(pieces(), headers={"content-length": str(LONG_BYTES)})

        return Starlette(routes=[Route("/", short, methods=["GET", "POST"]), Route("/long", long)])


@asynccontextmanager
async def served(most: int = 8) -> AsyncIterator[Served]:
    """A server in this process, until the end of the block."""
    listener, stop = bind("a test", HOST, 0), asyncio.Event()
    one = Served(listener.getsockname()[1])
    full = build_full_app(lambda: None)
    serving = asyncio.create_task(serve_http(one.app(), listener, stop, 5.0, most=most, full=full))
    try:
        yield one
    finally:
        stop.set()
        await serving


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time runs ten times as fast for connections: 2 s unread, 1 s for the first head, and 3 s of later silence."""
    for name in ("LOOK_S", "UNREAD_S", "FIRST_HEAD_S"):
        monkeypatch.setattr(limits, name, getattr(limits, name) / 10)
    monkeypatch.setattr(limits, "KEEP_ALIVE_S", 3.0)


async def until(true: Callable[[], bool], what: str) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(WITHIN_S):
        while not true():
            await asyncio.sleep(0.02)
    assert true(), what


async def rest_of(one: socket.socket) -> bytes:
    """All that comes until the other side ends it, in whatever way."""
    loop, found = asyncio.get_running_loop(), b""
    with suppress(ConnectionError):
        async with asyncio.timeout(WITHIN_S):
            while data := await loop.sock_recv(one, 65536):
                found += data
    one.close()
    return found


def against(work: Callable[[Served], Coroutine[None, None, None]], most: int = 8) -> None:
    """Run it against a server of its own."""

    async def whole() -> None:
        async with served(most) as server:
            await work(server)

    run(whole())


def test_prior_knowledge_of_http_2_is_closed_at_once() -> None:
    """Not a byte of HTTP/2 comes back, nothing reaches the application, and another connection is served."""

    async def work(server: Served) -> None:
        loop, one = asyncio.get_running_loop(), await server.open()
        await loop.sock_sendall(one, h2c(1))
        assert await rest_of(one) == b""
        other = await server.open()
        await loop.sock_sendall(other, LAST % b"")
        assert (await rest_of(other)).startswith(b"HTTP/1.1 200")
        assert server.asked == ["/"]

    against(work)


@pytest.mark.parametrize(
    "upgrade",
    [
        b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA",
        b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: "
        + b"A" * 22
        + b"==",
    ],
    ids=["h2c", "websocket"],
)
def test_an_upgrade_is_ignored(upgrade: bytes) -> None:
    """The request is served as HTTP/1.1, and so is the next one on that connection."""

    async def work(server: Served) -> None:
        one = await server.open()
        head = b"GET / HTTP/1.1\r\nhost: x\r\n"
        request = head + upgrade + b"\r\n\r\n" + head + b"connection: close\r\n\r\n"
        await asyncio.get_running_loop().sock_sendall(one, request)
        reply = await rest_of(one)
        assert reply.count(b"HTTP/1.1 200") == 2 and b"101" not in reply
        assert server.asked == ["/", "/"]

    against(work)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("behind_it", [b"", GET % b"" * 100], ids=["alone", "with more behind it"])
def test_a_reply_that_is_not_read_is_cut_off(behind_it: bytes) -> None:
    """What it held is freed, and the requests after it are not worked on."""

    async def work(server: Served) -> None:
        one = await server.open(receive_bytes=4096)
        await asyncio.get_running_loop().sock_sendall(one, GET % b"long" + behind_it)
        await until(lambda: server.held == 1, "it is begun")
        await until(lambda: server.held == 0, "it is let go")
        await until(lambda: not connections(server.port), "the kernel has nothing of it")
        assert server.asked == ["/long"]
        assert len(await rest_of(one)) < LONG_BYTES / 2

    against(work)


@pytest.mark.usefixtures("hasty")
def test_replies_that_only_the_kernel_holds_are_cut_off_too() -> None:
    """They have left our buffers, and are held as long as the connection is."""

    def unread() -> float:
        return REGISTRY.get_sample_value("ghub_connections_cut_total", {"why": "unread"}) or 0.0

    async def work(server: Served) -> None:
        loop, one, before = asyncio.get_running_loop(), await server.open(receive_bytes=4096), unread()
        await loop.sock_sendall(one, GET % b"" * 100)
        await until(lambda: len(server.asked) == 100, "all are answered")
        await until(lambda: not connections(server.port), "the kernel has nothing of it")
        assert unread() == before + 1
        one.close()

    against(work)


@pytest.mark.usefixtures("hasty")
def test_who_reads_slowly_is_served_to_the_end() -> None:
    """For several times as long as an unread reply is kept."""

    async def work(server: Served) -> None:
        loop, one = asyncio.get_running_loop(), await server.open(receive_bytes=64 * 1024)
        began_s, read_bytes = loop.time(), 0
        await loop.sock_sendall(one, LAST % b"long")
        while data := await loop.sock_recv(one, 128 * 1024):
            read_bytes += len(data)
            await asyncio.sleep(limits.UNREAD_S / 8)
        one.close()
        assert loop.time() - began_s > 2 * limits.UNREAD_S
        assert read_bytes > LONG_BYTES and server.held == 0

    against(work)


@pytest.mark.parametrize(
    "said", [b"", GET % b"", GET % b"long", b"GET / HT"], ids=["nothing", "served", "unread", "half"]
)
@pytest.mark.parametrize("resets", [False, True])
def test_a_connection_that_is_over_is_freed_at_once(said: bytes, resets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a collection, which comes when a crowd has come again."""
    alive = WeakSet[limits.Connection]()

    class Watched(limits.Connection):
        __slots__ = ("__weakref__",)

        def __init__(self, connections: limits.Connections) -> None:
            super().__init__(connections)
            alive.add(self)

    async def work(server: Served) -> None:
        crowd = [await server.open(receive_bytes=4096) for _ in range(6)]
        for one in crowd:
            await asyncio.get_running_loop().sock_sendall(one, said)
        await until(lambda: len(alive) == len(crowd), "they are there")
        await asyncio.sleep(0.2)
        gc.disable()
        try:
            for one in crowd:
                if resets:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.close()
            await until(lambda: not alive, "they are freed")
        finally:
            gc.enable()

    monkeypatch.setattr(limits, "Connection", Watched)
    against(work)


def test_the_kernel_holds_little_of_a_reply_that_is_not_read() -> None:
    """And little of it is made: not the megabytes that a socket grows to."""

    async def work(server: Served) -> None:
        one = await server.open(receive_bytes=4096)
        await asyncio.get_running_loop().sock_sendall(one, GET % b"long")
        await until(lambda: server.held == 1 and connections(server.port)[0][0] > UNSENT_BYTES / 2, "it is under way")
        await asyncio.sleep(0.5)  # whatever more may come
        ((sending, _),) = connections(server.port)
        assert sending <= 2 * UNSENT_BYTES
        one.close()

    against(work)


def test_little_of_the_next_requests_is_read_while_a_reply_is_under_way() -> None:
    """The rest waits with the client; and one of them is worked on at a time."""

    async def work(server: Served) -> None:
        one, sent_bytes, still = await server.open(receive_bytes=4096, send_bytes=4096), 0, 0
        await asyncio.get_running_loop().sock_sendall(one, GET % b"long")
        while still < 20:
            try:
                sent_bytes += one.send(GET % b"" * 1000)
                still = 0
            except BlockingIOError:
                still += 1
                await asyncio.sleep(0.02)
        assert sent_bytes < 256 * 1024 and server.asked == ["/long"]
        one.close()

    against(work)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nhost: x\r\nx-more: "], ids=["silent", "half a head"])
def test_a_first_head_has_ten_seconds(said: bytes) -> None:
    """One tenth of them here. A client that was served once may be silent for longer, until that time is over, too."""

    async def work(server: Served) -> None:
        loop, other = asyncio.get_running_loop(), await server.open()
        await loop.sock_sendall(other, GET % b"")
        one, began_s = await server.open(), loop.time()
        await loop.sock_sendall(one, said)
        assert await rest_of(one) == b""
        lasted_s = loop.time() - began_s
        assert lasted_s >= limits.FIRST_HEAD_S - limits.LOOK_S
        assert len(connections(server.port)) == 1
        assert (await rest_of(other)).startswith(b"HTTP/1.1 200")
        assert loop.time() - began_s >= limits.KEEP_ALIVE_S - 2 * limits.LOOK_S

    against(work)


@pytest.mark.parametrize("announced", [True, False], ids=["length", "chunks"])
def test_a_reply_before_the_end_of_a_long_body_arrives_and_ends_it(announced: bool) -> None:
    """Although the application leaves the body unread: the client sees the reply, and the connection is let go."""

    async def work(server: Served) -> None:
        loop, one = asyncio.get_running_loop(), await server.open()
        how = b"content-length: 8000000" if announced else b"transfer-encoding: chunked"
        await loop.sock_sendall(one, b"POST / HTTP/1.1\r\nhost: x\r\n" + how + b"\r\n\r\n")

        async def send_on() -> None:
            piece = b"x" * 16_384 if announced else b"4000\r\n" + b"x" * 16_384 + b"\r\n"
            with suppress(ConnectionError):
                for _ in range(400):
                    await loop.sock_sendall(one, piece)

        sending = asyncio.create_task(send_on())
        assert (await loop.sock_recv(one, 65536)).startswith(b"HTTP/1.1 200")
        await until(lambda: not connections(server.port), "it is let go")
        sending.cancel()
        one.close()

    against(work)


def test_above_the_most_connections_a_503_says_so_and_probes_are_answered() -> None:
    """In our envelope, and then it is closed; a place that becomes free is taken again."""

    async def work(server: Served) -> None:
        loop = asyncio.get_running_loop()
        crowd = [await server.open() for _ in range(2)]
        await until(lambda: len(connections(server.port)) == 2, "both are there")
        one = await server.open()
        await loop.sock_sendall(one, b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
        reply = await rest_of(one)
        assert reply.startswith(b"HTTP/1.1 503") and b"temporarily_unavailable" in reply
        assert {b"connection: close", b"retry-after: 5", b"x-should-retry: true"} <= set(reply.split(b"\r\n"))
        probe = await server.open()
        await loop.sock_sendall(probe, GET % b"healthz")
        assert (await rest_of(probe)).endswith(b"ok\n")
        assert server.asked == []
        crowd.pop().close()
        await until(lambda: len(connections(server.port)) == 1, "a place is free")
        other = await server.open()
        await loop.sock_sendall(other, LAST % b"")
        assert (await rest_of(other)).startswith(b"HTTP/1.1 200")
        crowd.pop().close()

    against(work, most=2)


def test_a_crowd_above_that_is_closed_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that refusing costs a bounded number of files, too."""
    monkeypatch.setattr(limits, "SPARE", 2)

    async def work(server: Served) -> None:
        crowd = [await server.open() for _ in range(3)]
        await until(lambda: len(connections(server.port)) == 3, "one is served and two are refused")
        assert await rest_of(await server.open()) == b""
        for one in crowd:
            one.close()

    against(work, most=1)
