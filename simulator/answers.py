"""Answers, good and broken, as ASGI applications that an endpoint returns."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import orjson
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from simulator.client import Client

CHUNK_BYTES = 64 * 1024
INTERNAL_URL = "http://10.0.7.31:8500/internal/render?trace=1"
GARBAGE = b"\x16\x03\x01 this is not HTTP \x00\xff\xfe\r\n\r\n"


def json_answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, "application/json")


class Streamed:
    """A body in several writes of at most 64 KiB, so that it reaches the client in pieces."""

    def __init__(self, parts: Sequence[bytes], headers: Mapping[str, str]) -> None:
        self._parts = parts
        self._head = Response(None, headers=headers)
        del self._head.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self._head.raw_headers})
        for chunk in chunks(self._parts):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def chunks(parts: Iterable[bytes]) -> Iterator[bytes]:
    held = b""
    for part in parts:
        for start in range(0, len(part), CHUNK_BYTES):
            held += part[start : start + CHUNK_BYTES]
            if len(held) >= CHUNK_BYTES:
                yield held[:CHUNK_BYTES]
                held = held[CHUNK_BYTES:]
    if held:
        yield held


def truncated(answer: ASGIApp) -> ASGIApp:
    """Send the head of `answer` and half of its first piece of body, then close the connection."""

    async def cut_short(scope: Scope, receive: Receive, send: Send) -> None:
        cut = False

        async def half(message: Message) -> None:
            nonlocal cut
            if cut:
                return
            if message["type"] == "http.response.body":
                cut = True
                message = {**message, "body": message["body"][: len(message["body"]) // 2], "more_body": True}
            await send(message)

        await answer(scope, receive, half)
        await Client.of(scope).hang_up()

    return cut_short


async def reset(scope: Scope, receive: Receive, send: Send) -> None:
    await Client.of(scope).reset()


async def closed(scope: Scope, receive: Receive, send: Send) -> None:
    await Client.of(scope).hang_up()


async def garbage(scope: Scope, receive: Receive, send: Send) -> None:
    await Client.of(scope).write_raw(GARBAGE)


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    await Client.of(scope).gone.wait()


def with_headers(answer: ASGIApp, headers: Mapping[str, str]) -> ASGIApp:
    """Add headers to `answer`."""
    more = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]

    async def adorned(scope: Scope, receive: Receive, send: Send) -> None:
        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await answer(scope, receive, add)

    return adorned


def secrets(key: str) -> dict[str, str]:
    """Build headers in which a provider repeats secrets."""
    return {"x-upstream-authorization": key, "x-served-by": INTERNAL_URL}


def redirect(key: str) -> Response:
    """Redirect to an internal address, with the key in its query."""
    return RedirectResponse(f"{INTERNAL_URL}&key={quote(key, safe='')}", 307)


def spoil(scenario: str, answer: ASGIApp, key: str) -> ASGIApp:
    """Change a good `answer` to the owner of `key` as `scenario` says; most scenarios leave it unchanged."""
    match scenario:
        case "reset":
            return reset
        case "close_without_answer":
            return closed
        case "garbage":
            return garbage
        case "silent":
            return silent
        case "truncated_body":
            return truncated(answer)
        case "secret_in_headers":
            return with_headers(answer, secrets(key))
        case "wrong_json":
            return json_answer({"result": ["of", "another", "shape"], "ok": True})
    return answer
