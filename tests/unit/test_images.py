"""A body, a key and a wait for another's order, each within its bounds."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Message

from metering.wallet.wallet import Admission, Caller, RateState, Stands, Verdict, Wallet, WalletLimits
from proxy.errors import ApiError, Kind
from proxy.images import MOST_KEY_CHARACTERS, ImagesEndpoint, RequestLimits, idempotency_key, read_body
from proxy.middleware import RequestContext
from proxy.wire import key_hash
from tests.conftest import run
from tests.contracts.models_kit import FLUX, order

S = 1_000_000
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
    """What arrives is counted too."""
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
    for text in ("pedido-1", "pedido-año-1", "ñ" * MOST_KEY_CHARACTERS):
        for sent in (text.encode(), text.encode("latin-1")):
            assert idempotency_key(Headers(raw=[(b"idempotency-key", sent)])) == key_hash(text)
    with pytest.raises(ApiError, match="256 characters"):
        idempotency_key(Headers(raw=[(b"idempotency-key", ("ñ" * 256).encode())]))


class Open(Wallet):
    """One order, made by a gateway that lives and never ends it."""

    def __init__(self) -> None:
        super().__init__(Redis(), WalletLimits(0.1, 1, 1, 1))

    async def lives(self, org_id: str, owner: str) -> bool:
        return True

    async def stands(self, org_id: str, request_id: str) -> Stands:
        return Stands(request_id, "open", "", 0, "owner")


def test_an_order_that_is_joined_in_vain_is_answered_within_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the margin in which every other answer is sent; after the deadline nobody listens."""
    monkeypatch.setattr("proxy.images.JOIN_POLL_S", 0.01)
    limits = replace(LIMITS, deadline_s=1.0)
    nothing: Any = None
    endpoint = ImagesEndpoint(
        *(nothing,) * 3, Open(), *(nothing,) * 5, limits, refusal=nothing, price_book="", region="", topup_url=None
    )
    rate = RateState(1, 0, 0)
    earlier = Admission(Verdict.EARLIER, 0, 0, rate, rate, 0, Stands("r", "open", "", 0, "owner"))
    context = RequestContext()
    with pytest.raises(ApiError, match="placed before"):
        run(endpoint._earlier(context, order(FLUX), earlier, Caller("org", "key"), keyed=True))
    assert time.monotonic() - context.started_s < limits.deadline_s


def refused(asked: Request, limits: RequestLimits = LIMITS) -> Kind:
    with pytest.raises(ApiError) as caught:
        run(read_body(asked, limits))
    return caught.value.kind
