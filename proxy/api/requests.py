"""Parts of a request besides its path, within limits: its body, its `Idempotency-Key`, its preferences."""

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from proxy.api.encodings import ACCEPTED, DECODERS, Damaged, TooLarge
from proxy.api.operation import MAX_KEY_CHARACTERS
from proxy.api.pages import MOST
from proxy.errors import ApiError, Kind
from proxy.messages import (
    BODY_BROKE_OFF,
    BODY_DAMAGED,
    BODY_LATE,
    BODY_TOO_LARGE,
    CURSOR,
    ENCODING,
    KEY_LENGTH,
    LANGUAGES,
    TWICE,
    UNKNOWN_PARAMETER,
    UNPACKED_TOO_LARGE,
    WEBHOOK_LONG,
    WEBHOOK_NONE,
    WHOLE_NUMBER,
    Language,
)
from proxy.orders.order import TAGS_HEADER, key_hash
from proxy.ports import Order
from proxy.webhooks.targets import WebhookHosts, why_not

QueryT = TypeVar("QueryT", bound=BaseModel)

_WEIGHT = re.compile(r"q=([01](?:\.[0-9]{0,3})?)")


RESPOND_ASYNC = "respond-async"
"""Preference of a client that does not wait for its order."""


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Limits of one request: bytes of its body, seconds for the body to arrive, seconds until the reply is sent."""

    body_bytes: int
    body_s: float
    deadline_s: float


async def read_body(request: Request, limits: RequestLimits) -> bytes:
    """Read and unpack the whole body, within limits of size and time. Raises ApiError 413, 415 or 400."""
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
    """Find the body's compression. Raises ApiError 415, before any of the body is read."""
    encoding = ", ".join(headers.getlist("content-encoding")).strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding not in DECODERS:
        message = ENCODING.of(encoding=encoding[:64], known=ACCEPTED)
        raise ApiError(Kind.ENCODING, message, headers={"accept-encoding": ACCEPTED})
    return encoding


def _unpacked(body: bytes, encoding: str, max_bytes: int) -> bytes:
    try:
        return DECODERS[encoding](body, max_bytes)
    except TooLarge:
        raise ApiError(Kind.TOO_LARGE, UNPACKED_TOO_LARGE.of(most=max_bytes)) from None
    except Damaged:
        raise ApiError(Kind.INVALID_REQUEST, BODY_DAMAGED.of(encoding=encoding)) from None


def weighed(header: str) -> Iterator[tuple[str, float]]:
    """Yield the values in an `Accept…` header, in lower case, each with its weight from 0 to 1."""
    for part in header.lower().split(","):
        name, *parameters = (word.strip() for word in part.split(";"))
        weights = [float(found[1]) for parameter in parameters if (found := _WEIGHT.fullmatch(parameter))]
        yield name, weights[0] if weights else 1.0


def language_of(headers: Headers, default: Language = LANGUAGES[0]) -> Language:
    """Choose our language with the highest weight in `Accept-Language`; of two with the same weight, the first.

    `default` if it names none of ours, or any.
    """
    best, chosen = 0.0, default
    for tag, weight in weighed(", ".join(headers.getlist("accept-language"))):
        primary = tag.partition("-")[0].replace("*", default)
        language = next((one for one in LANGUAGES if one == primary), None)
        if language is not None and weight > best:
            best, chosen = weight, language
    return chosen


def idempotency_key(headers: Headers, scope: str = "") -> str | None:
    """Hash the request's `Idempotency-Key`, if it has one. Raises ApiError 400 if it is invalid.

    `scope`: where the key must be unique, see `order.key_hash`.
    A key is the same in UTF-8 and in Latin-1.
    """
    sent = headers.get("idempotency-key")
    if sent is None:
        return None
    key = in_utf8(sent)
    if not 0 < len(key) <= MAX_KEY_CHARACTERS:
        raise ApiError(Kind.INVALID_REQUEST, KEY_LENGTH.of(count=len(key), most=MAX_KEY_CHARACTERS))
    return key_hash(key, scope)


def responds_async(headers: Headers) -> bool:
    """True if the client prefers not to wait for the order (RFC 7240). Any other preference is passed over."""
    preferences = ",".join(headers.getlist("prefer")).split(",")
    return any(one.partition(";")[0].strip().lower() == RESPOND_ASYNC for one in preferences)


def check_webhook(order: Order, hosts: WebhookHosts | None, *, long: bool) -> None:
    """Raise ApiError 400 if no webhook may have the order's address, or if the order is none that calls one.

    Without `hosts`, nobody signs webhooks, and an order may name none.
    """
    if order.webhook is None:
        return
    if hosts is None:
        raise ApiError(Kind.INVALID_REQUEST, WEBHOOK_NONE, param="webhook")
    why = why_not(order.webhook, hosts) if long else WEBHOOK_LONG
    if why is not None:
        raise ApiError(Kind.INVALID_REQUEST, why, param="webhook")


def in_utf8(header: str) -> str:
    """Read a header's value as UTF-8, or in Latin-1, which `fetch`, and so OpenAI's client for Node, uses."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeDecodeError:
        return header


def tags_of(headers: Headers) -> Sequence[str]:
    """Read the tags of an order from its headers; they are not checked yet."""
    sent = headers.getlist(TAGS_HEADER)
    return in_utf8(",".join(sent)).split(",") if sent else ()


def page_query(model: type[QueryT], request: Request) -> QueryT:
    """Read the query of a list with `limit` and `after`. Raises ApiError 400 that names the parameter."""
    given = request.query_params.multi_items()
    names = [name for name, _ in given]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ApiError(Kind.INVALID_REQUEST, TWICE.of(name=twice[:64]), param=twice[:64])
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])[:64]
    match name:
        case "limit":
            raise ApiError(Kind.INVALID_REQUEST, WHOLE_NUMBER.of(name=name, least=1, most=MOST), param=name)
        case "after":
            raise bad_cursor()
        case _:
            known = ", ".join(f"`{one}`" for one in model.model_fields)
            raise ApiError(Kind.INVALID_REQUEST, UNKNOWN_PARAMETER.of(name=name, known=known), param=name)


def bad_cursor() -> ApiError:
    """Build the 400 for an `after` that no page has given out."""
    return ApiError(Kind.INVALID_REQUEST, CURSOR.of(name="after"), param="after")
