"""A request that is answered before its body has arrived: the rest of the body is read, within limits.
Closing a connection while the peer still writes resets it, and the peer loses the answer with it. For example, Node's
clients report EPIPE although we said 404 or 413.
"""

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_REST_BYTES = 8 * 1024 * 1024
"""Maximum bytes to read and drop: a picture to be edited, or a prompt with one inside."""

MAX_REST_S = 2.0
"""Maximum time for the rest. After it the client loses the connection, and perhaps the answer."""

_ANNOUNCING = frozenset({b"content-length", b"transfer-encoding"})


class UnreadBody:
    """Wraps the whole application: the answer is sent at once, and its end waits for the rest of the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _ANNOUNCING.isdisjoint(name for name, _ in scope["headers"]):
            await self._app(scope, receive, send)
            return
        unread, answered = True, False

        async def receive_counting() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def send_but_the_end(message: Message) -> None:
            nonlocal answered
            if unread and message["type"] == "http.response.body" and not message.get("more_body", False):
                answered = True
                message = {**message, "more_body": True}
            await send(message)

        await self._app(scope, receive_counting, send_but_the_end)
        if answered:
            with suppress(TimeoutError):
                async with asyncio.timeout(MAX_REST_S):
                    await _read_off(receive_counting)
            await send({"type": "http.response.body", "body": b""})


async def _read_off(receive: Receive) -> None:
    size_bytes = 0
    while size_bytes <= MAX_REST_BYTES:
        message = await receive()
        if not message.get("more_body", False):  # the end of the body, or of the client
            return
        size_bytes += len(message.get("body", b""))
