"""The client at the other end of a connection: how to notice that it has left, and how to cut it off."""

import asyncio
import socket
import struct
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER_0 = struct.pack("ii", 1, 0)  # closing then sends RST instead of FIN


class Client:
    """A client that waits for one answer. `gone` is set once the connection is closed, by either side."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self.gone = asyncio.Event()
        self._transport = transport
        self._cut = False
        self._on_leave: list[Callable[[], None]] = []

    @staticmethod
    def of(scope: Scope) -> "Client":
        client = scope["state"]["client"]
        assert isinstance(client, Client)
        return client

    def on_leave(self, tell: Callable[[], None]) -> None:
        """Call `tell` if the client hangs up before it has its answer."""
        if self.gone.is_set() and not self._cut:
            tell()
        self._on_leave.append(tell)

    def leave(self) -> None:
        self.gone.set()
        if not self._cut:
            for tell in self._on_leave:
                tell()

    async def hang_up(self) -> None:
        """Close after everything written has been sent."""
        self._cut = True
        self._transport.close()
        await self.gone.wait()

    async def write_raw(self, data: bytes) -> None:
        """Write `data` unchanged, without HTTP, then close."""
        self._transport.write(data)
        await self.hang_up()

    async def reset(self) -> None:
        """Send a TCP RST, with nothing before it."""
        self._cut = True
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        self._transport.abort()
        await self.gone.wait()


class Connection:
    """ASGI for one TCP connection: reads each request's body whole, then watches the client while `app` works.

    Hypercorn does not cancel a handler whose client has left. That is right here: a provider goes on, and bills.
    """

    def __init__(self, app: ASGIApp, transport: asyncio.WriteTransport) -> None:
        self._app = app
        self._transport = transport

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = Client(self._transport)
        scope["state"]["client"] = client
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            client.leave()

        watcher = asyncio.create_task(watch())
        request: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            if request:
                return request.pop()
            await client.gone.wait()
            return {"type": "http.disconnect"}

        async def deliver(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                if message.get("body"):
                    await send({**message, "more_body": True})
                # After the end a disconnect always follows; one from before the end is handled first.
                await asyncio.sleep(0)
                watcher.cancel()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        try:
            await self._app(scope, replay, deliver)
        finally:
            watcher.cancel()
