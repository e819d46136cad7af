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


async def test_a_served_socket_has_one_owner() -> None:
    """The server closes it; whoever bound it does not close that number again, which may be another's file by then."""
    listener, stop = bind(NAMED, LOOPBACK, 0), asyncio.Event()
    stop.set()
    app = Slow()
    app.ended = True
    await serve_http(app, listener, stop, graceful_s=1.0, most=8)
    assert listener.fileno() == -1
    listener.close()


def test_a_webp_is_served_as_an_image_on_a_machine_without_a_list_of_types() -> None:
    """As in the container: there is no /etc/mime.types there."""
    script = "import mimetypes; mimetypes.init(files=[]); import proxy.app; print(mimetypes.guess_type('0.webp')[0])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "image/webp\n"
