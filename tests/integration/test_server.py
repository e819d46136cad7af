"""The server's edges: an address that is taken, a stop that lets work finish, files of images with their type."""

import asyncio
import subprocess
import sys

import pytest
from starlette.types import Receive, Scope, Send

from proxy.server.serving import PortTaken, bind, serve_http
from tests.conftest import run

NAMED, LOOPBACK = "GHUB_METRICS_PORT", "127.0.0.1"


def test_a_bound_address_is_taken_from_then_on() -> None:
    """A second gateway on it is told in one sentence, even while the first has not yet begun to serve."""
    with bind(NAMED, LOOPBACK, 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortTaken) as caught:
            bind(NAMED, LOOPBACK, port)
        assert str(caught.value) == f"{NAMED}: {LOOPBACK}:{port} is in use. Choose another port."
    with bind(NAMED, LOOPBACK, port) as again:
        assert again.getsockname()[1] == port


def test_a_name_that_is_no_address_of_ours_is_told_in_one_sentence() -> None:
    """Nor does an address of another machine end in a traceback."""
    for host in ("192.0.2.1", "no such host"):
        with pytest.raises(PortTaken, match=f"^{NAMED}: {host}:0 cannot be used: .+ Choose another port.$"):
            bind(NAMED, host, 0)


class Slow:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            assert self.ended, "the lifespan ends after the last request"
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.asked.set()
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
        self.ended = True


class Reading(Slow):
    """Reads a request's body before it answers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while scope["type"] == "http" and (await receive()).get("more_body"):
            pass
        await super().__call__(scope, receive, send)


async def refused(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(LOOPBACK, port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


def test_a_request_in_flight_is_finished_after_the_stop() -> None:
    """New connections are refused, the one in flight gets its reply, then the lifespan ends."""

    async def work() -> bytes:
        app, stop, listener = Slow(), asyncio.Event(), bind(NAMED, LOOPBACK, 0)
        port = listener.getsockname()[1]
        serving = asyncio.create_task(serve_http(app, listener, stop, graceful_s=20.0, most=8))
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await app.asked.wait()
        stop.set()
        async with asyncio.timeout(10):
            while not await refused(port):
                await asyncio.sleep(0.01)
        app.go_on.set()
        reply = await reader.read()
        writer.close()
        await serving
        return reply

    reply = run(work())
    assert reply.startswith(b"HTTP/1.1 200") and reply.endswith(b"ok")


async def test_a_request_that_is_refused_by_its_first_bytes_leaves_its_connection_as_it_was() -> None:
    """Before, between and after requests that are served; not in the middle of one, whatever its bytes look like."""
    no, whole = b"HTTP/1.1 503 \r\ncontent-length: 2\r\n\r\nno", b"POST /no HTTP/1.1\r\nhost: x\r\n\r\n"
    asked: list[bool] = []

    def early(data: bytes, here_since_s: float | None) -> bytes | None:
        if data != whole:
            return None
        asked.append(here_since_s is not None)
        return no

    app, stop, listener = Reading(), asyncio.Event(), bind(NAMED, LOOPBACK, 0)
    app.go_on.set()
    port = listener.getsockname()[1]
    serving = asyncio.create_task(serve_http(app, listener, stop, graceful_s=5.0, most=8, early=early))
    reader, writer = await asyncio.open_connection(LOOPBACK, port)

    async def reply_to(*pieces: bytes) -> bytes:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.05)
        head = await reader.readuntil(b"\r\n\r\n")
        return head[9:12] + await reader.readexactly(2)

    half, rest = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n" % len(whole), b"\r\n"
    answers = [
        await reply_to(whole),
        await reply_to(whole),
        await reply_to(half + rest, whole),  # it is the body
        await reply_to(whole),
        await reply_to(b"POST /no HTTP/1.1\r\n", b"host: x\r\n\r\n"),
    ]
    assert answers == [b"503no", b"503no", b"200ok", b"503no", b"200ok"]
    assert asked == [True, False, False]
    writer.close()
    stop.set()
    await serving


async def test_a_served_socket_has_one_owner() -> None:
    """The server closes it.

    The caller that bound it does not close that number again, which may be another file by then.
    """
    listener, stop = bind(NAMED, LOOPBACK, 0), asyncio.Event()
    stop.set()
    app = Slow()
    app.ended = True
    await serve_http(app, listener, stop, graceful_s=1.0, most=8)
    assert listener.fileno() == -1
    listener.close()


def test_a_webp_is_served_as_an_image_on_a_machine_without_a_list_of_types() -> None:
    """In the container there is no /etc/mime.types."""
    script = "import mimetypes; mimetypes.init(files=[]); import proxy.app; print(mimetypes.guess_type('0.webp')[0])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "image/webp\n"
