"""What a request carries beside its path, within bounds: its body and its `Idempotency-Key`."""

import asyncio
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from proxy.errors import ApiError, Kind
from proxy.operations import MOST_KEY_CHARACTERS
from proxy.wire import key_hash


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Of one request: bytes of body and seconds that it may take to arrive, seconds until the reply is sent."""

    body_bytes: int
    body_s: float
    deadline_s: float


async def read_body(request: Request, limits: RequestLimits) -> bytes:
    """The whole body, within bounds of size and time. Raises ApiError 413 or 400."""
    too_large = ApiError(Kind.TOO_LARGE, f"The body is larger than {limits.body_bytes} bytes.")
    announced = request.headers.get("content-length", "0")
    if announced.isascii() and announced.isdigit() and int(announced) > limits.body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise too_large
    except TimeoutError:
        message = f"The body did not arrive within {limits.body_s:g} seconds."
        raise ApiError(Kind.INVALID_REQUEST, message) from None
    except ClientDisconnect:
        raise ApiError(Kind.INVALID_REQUEST, "The body broke off.") from None
    return bytes(body)


def idempotency_key(headers: Headers, scope: str = "") -> str | None:
    """The hash of the request's `Idempotency-Key`, where it has one. Raises ApiError 400 for one that is none.

    `scope`: within which it stands for one thing, see `wire.key_hash`.

    It is the same key in UTF-8 and in Latin-1, which is how `fetch`, and so OpenAI's client for Node, sends it.
    """
    sent = headers.get("idempotency-key")
    if sent is None:
        return None
    try:
        key = sent.encode("latin-1").decode()
    except UnicodeDecodeError:
        key = sent
    if not 0 < len(key) <= MOST_KEY_CHARACTERS:
        message = f"`Idempotency-Key` has {len(key)} characters; it must have from 1 to {MOST_KEY_CHARACTERS}."
        raise ApiError(Kind.INVALID_REQUEST, message)
    return key_hash(key, scope)
