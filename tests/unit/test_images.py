"""The hot path's small parts: OpenAI's rate headers, and a body that is read within its bounds."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from metering.wallet.wallet import Admission, RateState, Verdict
from proxy.errors import ApiError, Kind
from proxy.images import Limits, _duration, _rate_limited, rate_headers, read_body
from tests.conftest import run

S = 1_000_000
LIMITS = Limits(body_bytes=100, body_s=5.0, deadline_s=60.0)


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        (0, "0ms"),
        (1, "1ms"),
        (20_000, "20ms"),
        (20_001, "21ms"),
        (998_001, "999ms"),
        (999_000, "999ms"),
        (999_001, "1s"),
        (S, "1s"),
        (S + 1, "2s"),
        (59 * S, "59s"),
        (59 * S + 1, "1m0s"),
        (60 * S, "1m0s"),
        (61 * S, "1m1s"),
        (360 * S, "6m0s"),
        (3600 * S, "60m0s"),
    ],
)
def test_a_duration_is_written_as_openai_writes_it(microseconds: int, text: str) -> None:
    """`20ms`, `1s`, `6m0s`."""
    assert _duration(microseconds) == text


@settings(max_examples=500, derandomize=True)
@given(st.integers(0, 10**11))
def test_a_duration_is_never_less_than_the_truth(microseconds: int) -> None:
    """And less than a second more; below a second, less than a millisecond."""
    text = _duration(microseconds)
    found = re.fullmatch(r"(?:(\d+)m)?(\d+)s|(\d+)ms", text)
    assert found is not None
    minutes, seconds, milliseconds = (int(part or 0) for part in found.groups())
    told = (minutes * 60 + seconds) * S + milliseconds * 1000
    assert microseconds <= told < microseconds + (1000 if milliseconds else S)


def test_rate_headers_tell_limit_rest_and_reset_of_both_rates() -> None:
    """A rest below zero is told as none."""
    admission = Admission(Verdict.ADMITTED, 0, 0, RateState(600, 599, 100_000), RateState(1200, -3, 61 * S), 0)
    assert rate_headers(admission) == {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "599",
        "x-ratelimit-reset-requests": "100ms",
        "x-ratelimit-limit-images": "1200",
        "x-ratelimit-remaining-images": "0",
        "x-ratelimit-reset-images": "1m1s",
    }


def test_an_order_above_the_whole_limit_is_not_asked_again() -> None:
    """No wait would help it; one that fits is told the true wait."""
    state = RateState(4, 0, 30 * S)
    never = _rate_limited("images", state, 0, 5, {})
    assert (never.kind, never.retry, never.retry_after_s) == (Kind.RATE_LIMIT, False, None)
    later = _rate_limited("images", state, 1_500_000, 4, {})
    assert (later.retry, later.retry_after_s) == (True, 1.5)
    assert "1.5 seconds" in later.message


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

    limits = Limits(body_bytes=100, body_s=0.1, deadline_s=60.0)
    assert refused(request(dripping()), limits) is Kind.INVALID_REQUEST


def refused(asked: Request, limits: Limits = LIMITS) -> Kind:
    with pytest.raises(ApiError) as caught:
        run(read_body(asked, limits))
    return caught.value.kind
