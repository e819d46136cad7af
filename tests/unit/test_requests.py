"""A body and an idempotency key, each within its bounds."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Message

from proxy.api.operation import MAX_KEY_CHARACTERS
from proxy.api.requests import RequestLimits, idempotency_key, read_body
from proxy.errors import ApiError, Kind
from proxy.orders.order import key_hash
from tests.conftest import run

LIMITS = RequestLimits(body_bytes=100, body_s=5.0, deadline_s=60.0)


def request(messages: AsyncIterator[Message], *headers: tuple[bytes, bytes]) -> Request:
    async def receive() -> Message:
        return await anext(messages)

    return Request({"type": "http", "headers": list(headers)}, receive)


async def first(messages: AsyncIterator[Message]) -> Message:
    return await anext(messages)


async def body(chunks: Iterable[bytes], *, whole: bool = True) -> AsyncIterator[Message]:
    for chunk in chunks:
        yield {"type": "http.request", "body": chunk, "more_body": True}
    yield {"type": "http.request", "body": b"", "more_body": False} if whole else {"type": "http.disconnect"}


def test_a_body_of_exactly_the_cap_is_taken() -> None:
    """In any pieces."""
    assert run(read_body(request(body([b"x"] * 100), (b"content-length", b"100")), LIMITS)) == b"x" * 100


@pytest.mark.parametrize("announced", [b"101", b"9" * 30])
def test_an_announced_body_above_the_cap_is_refused_unread(announced: bytes) -> None:
    """413 before a byte of it."""

    messages = body([b"x"])
    assert refused(request(messages, (b"content-length", announced))) is Kind.TOO_LARGE
    assert run(first(messages))["body"] == b"x"


@pytest.mark.parametrize("announced", [b"1", b"-5", b"nonsense", b"\xb2"])
def test_a_wrong_length_does_not_get_a_larger_body_in(announced: bytes) -> None:
    """The bytes that arrive are counted, too."""
    assert refused(request(body([b"x" * 60] * 2), (b"content-length", announced))) is Kind.TOO_LARGE


def test_a_body_that_breaks_off_is_refused() -> None:
    """Nothing is made of its beginning."""
    assert refused(request(body([b"{}"], whole=False))) is Kind.INVALID_REQUEST


def test_a_body_that_is_sent_too_slowly_is_refused() -> None:
    """However often a byte comes, the whole of it has its time."""

    async def dripping() -> AsyncIterator[Message]:
        while True:
            await asyncio.sleep(0.01)
            yield {"type": "http.request", "body": b"", "more_body": True}

    limits = RequestLimits(body_bytes=100, body_s=0.1, deadline_s=60.0)
    assert refused(request(dripping()), limits) is Kind.INVALID_REQUEST


def test_an_idempotency_key_is_the_same_text_however_a_client_sends_it() -> None:
    """In UTF-8, or in Latin-1 as `fetch` does, and as long as it is read; the history is asked for it by that text."""
    for text in ("pedido-1", "pedido-año-1", "ñ" * MAX_KEY_CHARACTERS):
        for sent in (text.encode(), text.encode("latin-1")):
            assert idempotency_key(Headers(raw=[(b"idempotency-key", sent)])) == key_hash(text)
    with pytest.raises(ApiError, match="256 characters"):
        idempotency_key(Headers(raw=[(b"idempotency-key", ("ñ" * 256).encode())]))


def refused(asked: Request, limits: RequestLimits = LIMITS) -> Kind:
    with pytest.raises(ApiError) as caught:
        run(read_body(asked, limits))
    return caught.value.kind
