"""One envelope, and headers that never send a client back too early."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import LONGEST_RETRY_S, ApiError, Kind, wallet_away
from proxy.messages import EMPTY, Language
from tests.long import examples


def test_the_envelope_is_openais_with_our_request_id() -> None:
    """A top-level `error` object, which Node's SDK insists on."""
    error = ApiError(Kind.INVALID_REQUEST, "`n` is 9; it must be from 1 to 8.", param="n")
    assert json.loads(error.body("req_1")) == {
        "error": {
            "message": "`n` is 9; it must be from 1 to 8.",
            "type": "invalid_request_error",
            "code": "invalid_request_error",
            "param": "n",
            "request_id": "req_1",
        }
    }
    assert error.reply_headers() == {"x-should-retry": "false", "content-language": "en", "vary": "accept-language"}


def test_a_message_is_told_in_the_language_that_is_wanted_where_it_has_it() -> None:
    """And the header says which it is: the admin API's own sentences are English."""
    cases: list[tuple[str, Language, str, str]] = [
        (EMPTY.of(name="prompt"), "es", "`prompt` está vacío.", "es"),
        (EMPTY.of(name="prompt"), "en", "`prompt` is empty.", "en"),
        ("There is no plan 'gold'.", "es", "There is no plan 'gold'.", "en"),
    ]
    for message, wanted, told, language in cases:
        error = ApiError(Kind.INVALID_REQUEST, message)
        assert json.loads(error.body("req_1", wanted))["error"]["message"] == told
        assert error.reply_headers(wanted)["content-language"] == language


@pytest.mark.parametrize("kind", Kind)
def test_every_row_says_whether_to_retry(kind: Kind) -> None:
    """By the table, unless the raiser knows better."""
    said = {True: "true", False: "false"}
    assert ApiError(kind, "x").reply_headers()["x-should-retry"] == said[kind.value.retry]
    other = not kind.value.retry
    assert ApiError(kind, "x", retry=other).reply_headers()["x-should-retry"] == said[other]
    assert 400 <= kind.value.status <= 599
    assert kind.value.retry <= (kind.value.status in (429, 500, 502, 503))


def test_no_two_rows_are_alike() -> None:
    """A code alone tells the row."""
    assert len({kind.value.code for kind in Kind}) == len(Kind)


@pytest.mark.parametrize(
    ("wait_s", "milliseconds", "seconds"),
    [
        (0.0, "1", "1"),
        (0.0001, "1", "1"),
        (0.001, "1", "1"),
        (0.0011, "2", "1"),
        (0.02, "20", "1"),
        (0.9999, "1000", "1"),
        (1.0, "1000", "1"),
        (1.0001, "1001", "2"),
        (59.9991, "60000", "60"),
        (60.0, "60000", "60"),
    ],
)
def test_waits_are_rounded_up(wait_s: float, milliseconds: str, seconds: str) -> None:
    """To whole milliseconds and whole seconds, and at least to one."""
    headers = ApiError(Kind.RATE_LIMIT, "x", retry_after_s=wait_s).reply_headers()
    assert (headers["retry-after-ms"], headers["retry-after"]) == (milliseconds, seconds)
    assert headers["x-should-retry"] == "true"


@settings(max_examples=examples(500), derandomize=True)
@given(st.floats(0, 10**9))
def test_no_header_is_zero_or_less_than_the_true_wait(wait_s: float) -> None:
    """And no more than one unit above it."""
    headers = ApiError(Kind.RATE_LIMIT, "x", retry_after_s=wait_s).reply_headers()
    milliseconds, seconds = int(headers["retry-after-ms"]), int(headers["retry-after"])
    assert milliseconds >= 1 and seconds >= 1
    assert milliseconds >= math.nextafter(wait_s * 1000, 0) and seconds >= math.nextafter(wait_s, 0)
    assert milliseconds <= wait_s * 1000 + 1.1 and seconds <= wait_s + 1.1


@pytest.mark.parametrize(("wait_s", "retry"), [(LONGEST_RETRY_S, True), (LONGEST_RETRY_S + 0.001, False), (1e9, False)])
def test_a_wait_beyond_what_the_sdks_honour_forbids_the_retry(wait_s: float, retry: bool) -> None:
    """Otherwise they would come back at once, even if the raiser allowed the retry."""
    for error in (
        ApiError(Kind.RATE_LIMIT, "x", retry_after_s=wait_s),
        ApiError(Kind.RATE_LIMIT, "x", retry_after_s=wait_s, retry=True),
    ):
        assert error.retry is retry


def test_a_refused_retry_stays_refused_with_a_short_wait() -> None:
    """A wait alone does not invite."""
    assert ApiError(Kind.RATE_LIMIT, "x", retry=False, retry_after_s=1.0).reply_headers()["x-should-retry"] == "false"


def test_headers_of_the_raiser_are_sent_along() -> None:
    """The rate-limit headers of a 429, the `allow` of a 405."""
    assert ApiError(Kind.METHOD, "x", headers={"allow": "POST"}).reply_headers()["allow"] == "POST"


def test_a_redis_that_is_away_is_a_503_to_be_asked_again() -> None:
    """Nothing was decided, so asking again is safe."""
    error = wallet_away()
    assert (error.kind, error.retry, error.reply_headers()["retry-after"]) == (Kind.UNAVAILABLE, True, "1")
