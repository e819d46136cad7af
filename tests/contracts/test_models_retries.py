"""A call is repeated only if the upstream certainly did not accept it; everything else is bought once at most."""

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import orjson
import pytest

from proxy.errors import ApiError
from proxy.orders import calls as making
from proxy.outcomes import Failure, Outcome, worst
from proxy.providers import fal
from tests.conftest import run
from tests.kits.orders import ScriptedWallet, generations, job, png
from tests.kits.providers import (
    DALL_E,
    FLUX,
    GPT,
    GROK,
    IMAGEN,
    end_of,
    order,
    simulated,
    upstream,
)
from tests.kits.raw_server import Peer, raw_server

FOUR = (GPT, IMAGEN, GROK, FLUX)
"""A model of each provider."""


def reply(status: int, body: Any = None, *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    return "\r\n".join([f"HTTP/1.1 {status} X", f"content-length: {len(content)}", *headers, "", ""]).encode() + content


@pytest.mark.parametrize("model", FOUR)
@pytest.mark.parametrize("scenario", ["rate_limited_429", "busy_503"])
async def test_a_refusal_before_acceptance_is_tried_again_and_then_delivered(
    tmp_path: Path, model: str, scenario: str
) -> None:
    """Twice refused, then taken: three requests, one job, one picture, and no failure is left over."""
    async with simulated(tmp_path) as bench:
        await bench.in_turn(model, scenario, scenario, "ok", retry_after=0)
        progress = await bench.make(order(model))
        assert (end_of(progress), len(progress.stored)) == ("delivered", 1)
        assert (len(bench.orders()), len(await bench.jobs(model))) == (3, 1)


@pytest.mark.parametrize("model", FOUR)
async def test_three_tries_are_the_most(tmp_path: Path, model: str) -> None:
    """Although a fourth would succeed."""
    async with simulated(tmp_path) as bench:
        await bench.in_turn(model, *["busy_503"] * 3, "ok", retry_after=0)
        progress = await bench.make(order(model))
        assert (end_of(progress), progress.stored, len(bench.orders())) == ("busy", {}, 3)
        assert await bench.jobs(model) == []


async def test_of_eight_calls_only_the_refused_one_is_made_again(tmp_path: Path) -> None:
    """dall-e-3, n=8: one of eight answers 429; nine requests, eight jobs, eight pictures."""
    async with simulated(tmp_path) as bench:
        await bench.behave(DALL_E, "one_of_eight_429", retry_after=0, same=True)
        progress = await bench.make(order(DALL_E, 8))
        assert (end_of(progress), sorted(progress.stored)) == ("delivered", list(range(8)))
        assert (len(bench.orders()), len(await bench.jobs(DALL_E))) == (9, 8)


async def test_a_refused_connection_is_tried_again(tmp_path: Path) -> None:
    """Nobody listens: three tries for each provider, and nothing was bought; the customer may ask again."""

    async def nothing(peer: Peer) -> None:
        raise AssertionError("nobody listens")

    async with raw_server(nothing) as server:
        url = server.url
    async with upstream(url, tmp_path) as bench:
        for model in FOUR:
            bench.sent.clear()
            progress = await bench.make(order(model))
            failure = worst(progress.failures)
            assert failure.outcome is Outcome.REFUSED_CONNECTION and failure.as_error().retry
            assert len(bench.orders()) == 3


@pytest.mark.parametrize("model", FOUR)
async def test_the_upstreams_own_wish_is_waited_for(tmp_path: Path, model: str) -> None:
    """`retry-after: 1`: the second request comes no earlier than a second later."""
    async with simulated(tmp_path) as bench:
        await bench.in_turn(model, "rate_limited_429", "ok", retry_after=1)
        began_s = time.monotonic()
        progress = await bench.make(order(model))
        assert (end_of(progress), len(bench.orders())) == ("delivered", 2)
        assert time.monotonic() - began_s >= 1


@pytest.mark.parametrize("model", FOUR)
@pytest.mark.parametrize("wish_s", [61, 121])
async def test_a_wish_beyond_the_deadline_is_not_waited_for_and_forbids_the_sdks_to_retry(
    tmp_path: Path, model: str, wish_s: int
) -> None:
    """One request; the customer is told at once, with the upstream's figure and `x-should-retry: false`."""
    async with simulated(tmp_path) as bench:
        await bench.behave(model, "rate_limited_429", retry_after=wish_s)
        wallet = ScriptedWallet()
        async with generations(wallet, bench.store, bench.providers) as making:
            began_s = time.monotonic()
            with pytest.raises(ApiError) as told:
                await making.start(job(order(model), generate_s=100, reply_s=105))
            await making.drain()
            assert time.monotonic() - began_s < 5
            assert told.value.kind.value.status == 502
            waits = {"retry-after": str(wish_s), "retry-after-ms": str(wish_s * 1000)}
            assert {"x-should-retry": "false", **waits}.items() <= told.value.reply_headers().items()
            assert (wallet.voids, len(bench.orders())) == (["rate_limited"], 1)


async def test_a_pause_takes_half_of_what_remains_at_most(tmp_path: Path) -> None:
    """A wish of one second with less than two left is one request; with more than two left it is waited for."""
    async with simulated(tmp_path) as bench:
        for within_s, requests in ((1.9, 1), (4.0, 2)):
            await bench.forget()
            await bench.in_turn(GPT, "busy_503", "ok", retry_after=1)
            progress = await bench.make(order(GPT), within_s)
            assert (len(bench.orders()), len(progress.stored)) == (requests, requests - 1)


def test_pauses_grow_differ_and_are_never_shorter_than_the_upstreams_wish() -> None:
    """Half a second and a second, each times 0.75 to 1.25; and on up to 20 s, for orders that nobody waits for."""
    for tries, base_s in ((1, 0.5), (2, 1.0)):
        pauses = [making._pause_s(Failure(Outcome.BUSY), tries) for _ in range(200)]
        assert all(pause is not None and 0.75 * base_s <= pause <= 1.25 * base_s for pause in pauses)
        assert len(set(pauses)) > 100
        for wish_s in (3.0, 61.0, 121.0):
            wished = [making._pause_s(Failure(Outcome.RATE_LIMITED, retry_after_s=wish_s), tries) for _ in range(50)]
            assert all(pause is not None and wish_s <= pause <= wish_s + 1.25 * base_s for pause in wished)
    last_s = making._pause_s(Failure(Outcome.BUSY), making.PATIENT_TRIES)
    assert last_s is not None and 15.0 <= last_s <= 25.0


def test_only_these_outcomes_are_tried_again() -> None:
    """The three in which no upstream took the job."""
    again = {outcome for outcome in Outcome if making._pause_s(Failure(outcome, retry_after_s=0), 1) is not None}
    assert again == {Outcome.REFUSED_CONNECTION, Outcome.RATE_LIMITED, Outcome.BUSY}
    assert not any(outcome.value.accepted for outcome in again)


# --- fal's queue: once a job is taken, no answer may buy it again -----------------------------------------------------


Steps = dict[str, list[bytes | None]]
"""Answers of submit, status and result, one after the other, the last for ever; None hangs up without an answer."""


def queue_script(steps: Steps, asked: list[str]) -> Callable[[Peer], Awaitable[None]]:
    async def script(peer: Peer) -> None:
        while True:
            head, _, _ = (await peer.read_request()).partition(b"\r\n\r\n")
            method, path, *_ = head.decode().split(" ")
            host = next(line[6:] for line in head.decode().split("\r\n") if line.lower().startswith("host: "))
            what = "submit" if method == "POST" else path.rpartition("/")[2]
            what = what if what in ("submit", "status", "cancel", "0.png") else "result"
            asked.append(what)
            given = steps.get(what, [])
            answer = given.pop(0) if len(given) > 1 else (given[0] if given else b"default")
            if answer is None:
                return
            base = f"http://{host}/fal/queue/x/y/requests/1"
            default = {
                "submit": {"status_url": f"{base}/status", "response_url": base, "cancel_url": f"{base}/cancel"},
                "status": {"status": "COMPLETED"},
                "result": {"images": [{"url": f"http://{host}/0.png"}]},
                "cancel": {"status": "CANCELLATION_REQUESTED"},
                "0.png": png(),
            }
            await peer.send(reply(200, default[what]) if answer == b"default" else answer)

    return script


async def through_queue(root: Path, steps: Steps) -> tuple[str, int, list[str]]:
    """How an order of one image ends, its pictures, and what the queue was asked."""
    asked: list[str] = []
    async with raw_server(queue_script(steps, asked)) as server, upstream(server.url, root) as bench:
        progress = await bench.make(order(FLUX), 20.0)
    return end_of(progress), len(progress.stored), asked


AFTER_ACCEPTANCE: list[tuple[bytes | None, str]] = [
    (reply(429, {"detail": "slow down"}, "retry-after: 0"), "no_answer"),
    (reply(401, {"detail": "who are you"}), "no_answer"),
    (reply(403, {"detail": "locked"}), "no_answer"),
    (reply(500, {"detail": "x"}), "overloaded"),
    (reply(502, b"<html>"), "overloaded"),
    (reply(503, b"<html>"), "overloaded"),
    (reply(503, {"detail": "x", "error_type": "runner_disconnected"}), "overloaded"),
    (reply(404, {"detail": "Request not found"}), "no_answer"),
    (None, "no_answer"),
]


@pytest.mark.parametrize(("answer", "end"), AFTER_ACCEPTANCE)
def test_a_result_that_cannot_be_read_is_asked_for_again_and_its_job_never(
    tmp_path: Path, answer: bytes | None, end: str
) -> None:
    """The job is done and paid for: one submit, whatever its result's address answers, and no retry by the customer."""
    found, images, asked = run(through_queue(tmp_path, {"result": [answer]}))
    assert (found, images, asked.count("submit")) == (end, 0, 1)
    assert 1 <= asked.count("result") <= fal.MAX_RESULT_TRIES
    assert not Outcome[end.upper()].value.error.value.retry or Outcome[end.upper()].value.accepted


@pytest.mark.parametrize(("answer", "end"), AFTER_ACCEPTANCE[:-2])
def test_a_result_that_comes_at_the_second_time_of_asking_is_delivered(
    tmp_path: Path, answer: bytes | None, end: str
) -> None:
    """Reading is free."""
    found, images, asked = run(through_queue(tmp_path, {"result": [answer, b"default"]}))
    assert (found, images) == ("delivered", 1)
    assert (asked.count("submit"), asked.count("result")) == (1, 2)


@pytest.mark.parametrize(("answer", "end"), AFTER_ACCEPTANCE)
def test_a_status_that_cannot_be_read_buys_nothing_again(tmp_path: Path, answer: bytes | None, end: str) -> None:
    """A few failures are passed over; for ever, and the job is called off."""
    found, images, asked = run(through_queue(tmp_path, {"status": [answer, answer, b"default"]}))
    assert (found, images, asked.count("submit")) == ("delivered", 1, 1)
    found, images, asked = run(through_queue(tmp_path, {"status": [answer]}))
    assert (found, images, asked.count("submit"), asked[-1]) == ("no_answer", 0, 1, "cancel")


async def test_a_queue_that_is_gone_after_it_took_the_job_is_not_asked_to_take_it_again(tmp_path: Path) -> None:
    """The connection for the result is refused: the job is paid for, so that this is no refusal of the job."""

    async def nobody(peer: Peer) -> None:
        raise AssertionError("nobody listens")

    asked: list[str] = []
    async with raw_server(nobody) as server:
        gone = server.url
    async with raw_server(queue_script({}, asked)) as server, upstream(server.url, tmp_path) as bench:
        provider = bench.providers["fal"]
        assert isinstance(provider, fal.Fal)
        read = provider._result
        with patch.object(provider, "_result", lambda _: read(f"{gone}/result")):
            progress = await bench.make(order(FLUX))
    assert (end_of(progress), asked) == ("no_answer", ["submit", "status"])


@pytest.mark.parametrize(
    "result",
    [
        reply(503, {"detail": "x", "error_type": "runner_scheduling_failure"}),
        reply(504, {"detail": "x", "error_type": "request_timeout"}, "x-fal-request-timeout-type: user"),
    ],
)
def test_a_job_that_fal_says_it_never_started_is_submitted_again(tmp_path: Path, result: bytes) -> None:
    """No runner had it: at the second time it is made."""
    found, images, asked = run(through_queue(tmp_path, {"result": [result, b"default"]}))
    assert (found, images, asked.count("submit")) == ("delivered", 1, 2)
