"""A server of bare asyncio streams, which can misbehave in ways that an HTTP library would not allow."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BACKLOG = 2048  # connections waiting to be accepted: more than any test opens at once


@dataclass
class Peer:
    """One connection, as the server sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def read_head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def read_request(self) -> bytes:
        """Read the head and the body of one request; the body has a content-length or is chunked."""
        head = await self.read_head()
        if b"transfer-encoding: chunked" in head.lower():
            return head + await self.reader.readuntil(b"0\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                return head + await self.reader.readexactly(int(line.partition(b":")[2]))
        return head

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Wait until the client has closed its side."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


Script = Callable[[Peer], Awaitable[None]]


@dataclass
class RawServer:
    port: int
    connections: int = 0
    scheme: str = "http"
    failures: list[BaseException] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def raw_server(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    """Run `script` for each connection, and close it when the script ends. An error of a script fails the test."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await script(Peer(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client hung up: what it was told is for the test to say
        except asyncio.CancelledError:
            pass  # the test is over, and the streams' own callback would report a cancelled task
        except Exception as error:  # noqa: BLE001 - raised again when the server stops
            server.failures.append(error)
        finally:
            tasks.discard(task)
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls, backlog=BACKLOG)
    server = RawServer(listener.sockets[0].getsockname()[1], scheme="https" if tls else "http")
    try:
        yield server
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        while tasks:
            await asyncio.wait(tasks)
        await asyncio.sleep(0)  # the transports' last callbacks
    if server.failures:
        raise server.failures[0]
