"""Limits for customers: OpenAI's rate headers, and the number and the time of a refusal."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.wallet.values import Admission, RateState, Verdict
from proxy.errors import Kind
from proxy.messages import IMAGES
from proxy.orders.refusals import _duration, rate_headers, rate_limited
from tests.long import examples

S = 1_000_000


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


@settings(max_examples=examples(500), derandomize=True)
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
    refused = Admission(Verdict.IMAGES, 0, 0, state, state, 1_500_000, whose="org", limit=4)
    never = rate_limited(IMAGES, refused, state, 5, {})
    assert (never.kind, never.retry, never.retry_after_s) == (Kind.RATE_LIMIT, False, None)
    later = rate_limited(IMAGES, refused, state, 4, {})
    assert (later.retry, later.retry_after_s) == (True, 1.5)
    assert "1.5 seconds" in later.message
    for wait_us, told in ((12_345_001, "12.346"), (59_999_001, "60"), (1, "0.001")):  # as `retry-after-ms`, rounded up
        message = rate_limited(IMAGES, replace(refused, retry_us=wait_us), state, 4, {}).message
        assert message.endswith(f"Try again in {told} seconds.")
    elsewhere = rate_limited(IMAGES, replace(refused, retry_us=0), state, 4, {})  # above another limit
    assert (elsewhere.retry, elsewhere.retry_after_s) == (False, None)
    assert "Try again" not in elsewhere.message
