"""What a request carries beside its path, within bounds: its body, its `Idempotency-Key`, what it would rather have."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from proxy.api.encodings import DECODERS, TOLD, Damaged, TooLarge
from proxy.api.operation import MAX_KEY_CHARACTERS
from proxy.errors import ApiError, Kind
from proxy.messages import (
    BODY_BROKE_OFF,
    BODY_DAMAGED,
    BODY_LATE,
    BODY_TOO_LARGE,
    ENCODING,
    KEY_LENGTH,
    LANGUAGES,
    UNPACKED_TOO_LARGE,
    Language,
)
from proxy.orders.order import key_hash

_WEIGHT = re.compile(r"q=([01](?:\.[0-9]{0,3})?)")


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Of one request: bytes of body and seconds that it may take to arrive, seconds until the reply is sent."""

    body_bytes: int
    body_s: float
    deadline_s: float


async def read_body(request: Request, limits: RequestLimits) -> bytes:
    """The whole body, unpacked, within bounds of size and time. Raises ApiError 413, 415 or 400."""
    encoding = _encoding(request.headers)
    too_large = ApiError(Kind.TOO_LARGE, BODY_TOO_LARGE.of(most=limits.body_bytes))
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
        raise ApiError(Kind.INVALID_REQUEST, BODY_LATE.of(seconds=limits.body_s)) from None
    except ClientDisconnect:
        raise ApiError(Kind.INVALID_REQUEST, BODY_BROKE_OFF) from None
    return bytes(body) if encoding is None else _unpacked(bytes(body), encoding, limits.body_bytes)


def _encoding(headers: Headers) -> str | None:
    """How the body is compressed. Raises ApiError 415, before any of it is read."""
    encoding = ", ".join(headers.getlist("content-encoding")).strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding not in DECODERS:
        message = ENCODING.of(encoding=encoding[:64], known=TOLD)
        raise ApiError(Kind.ENCODING, message, headers={"accept-encoding": TOLD})
    return encoding


def _unpacked(body: bytes, encoding: str, max_bytes: int) -> bytes:
    try:
        return DECODERS[encoding](body, max_bytes)
    except TooLarge:
        raise ApiError(Kind.TOO_LARGE, UNPACKED_TOO_LARGE.of(most=max_bytes)) from None
    except Damaged:
        raise ApiError(Kind.INVALID_REQUEST, BODY_DAMAGED.of(encoding=encoding)) from None


def weighed(header: str) -> Iterator[tuple[str, float]]:
    """What a client names in an `Accept…` header, in lower case, each with its weight from 0 to 1."""
    for part in header.lower().split(","):
        name, *parameters = (word.strip() for word in part.split(";"))
        weights = [float(found[1]) for parameter in parameters if (found := _WEIGHT.fullmatch(parameter))]
        yield name, weights[0] if weights else 1.0


def language_of(headers: Headers) -> Language:
    """The one of ours that `Accept-Language` gives the highest weight, and of two with the same the first."""
    best, chosen = 0.0, LANGUAGES[0]
    for tag, weight in weighed(", ".join(headers.getlist("accept-language"))):
        primary = tag.partition("-")[0].replace("*", LANGUAGES[0])
        language = next((one for one in LANGUAGES if one == primary), None)
        if language is not None and weight > best:
            best, chosen = weight, language
    return chosen


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
    if not 0 < len(key) <= MAX_KEY_CHARACTERS:
        raise ApiError(Kind.INVALID_REQUEST, KEY_LENGTH.of(count=len(key), most=MAX_KEY_CHARACTERS))
    return key_hash(key, scope)
