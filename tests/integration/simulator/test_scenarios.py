"""Every scenario that the simulator can play, for any provider and for one."""

import asyncio
import base64
import ssl
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import httpx2
import pytest

from simulator.answers import GARBAGE
from simulator.files import METADATA_URL, OTHER_HOST_URL
from tests.kits.simulator import (
    DALL_E_WAY,
    DIRECT_PATH,
    EVERY_WAY,
    FAL_AUTH,
    FAL_WAY,
    FLUX,
    GOOGLE_WAY,
    GPT,
    GROK,
    IMAGEN,
    OPENAI_AUTH,
    OPENAI_PATH,
    OPENAI_WAY,
    QUEUE_PATH,
    XAI_WAY,
    Simulator,
    Way,
    ask,
    eventually,
    images,
    opened,
    read_to_end,
)

# One for each wire format.
WAYS = [
    pytest.param(OPENAI_WAY, id="openai"),
    pytest.param(GOOGLE_WAY, id="google"),
    pytest.param(XAI_WAY, id="xai"),
    pytest.param(FAL_WAY, id="fal-direct"),
]
ALL_MODELS = [pytest.param(way, id=way[0]) for way in EVERY_WAY]


# --- scenarios that any provider can play


@pytest.mark.parametrize("way", WAYS)
def test_slow_takes_its_seconds(simulator: Simulator, way: Way) -> None:
    model, path, auth, body = way
    simulator.behave(model, "slow", seconds=0.3)
    started = time.monotonic()
    assert simulator.http.post(simulator.url + path, headers=auth, json=body).status_code == 200
    assert time.monotonic() - started >= 0.3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("scenario", "status", "jobs"),
    [
        ("http_500", 500, ["failed"]),
        ("http_503", 503, []),
        ("busy_503", 503, []),
        ("rate_limited_429", 429, []),
        ("unauthorized_401", 401, []),
        ("secret_in_error", 400, ["failed"]),
    ],
)
def test_errors_on_demand_come_in_the_provider_s_own_form_and_cost_nothing(
    simulator: Simulator, way: Way, scenario: str, status: int, jobs: list[str]
) -> None:
    model, path, auth, body = way
    simulator.behave(model, scenario, **{"seconds": 0.25} if status in (429, 503) else {})
    reply = simulator.http.post(simulator.url + path, headers=auth, json=body)
    assert reply.status_code == status
    error = reply.json()["detail" if model == FLUX else "error"]
    match model:
        case "openai/gpt-image-1":
            assert set(error) == {"message", "type", "param", "code"}
        case "google/imagen-4":
            assert set(error) == {"code", "message", "status"}
            assert error["code"] == status
        case "fal/flux-1.1-pro":
            assert isinstance(error, str)
    waits = {"rate_limited_429": None if model == IMAGEN else "0.25", "busy_503": "0.25"}
    assert reply.headers.get("retry-after") == waits.get(scenario)
    secret = next(iter(auth.values())).split()[-1]
    leaks = [
        secret in reply.text,
        "http://" in reply.text,
        secret in str(reply.headers),
        "http://" in str(reply.headers),
    ]
    assert leaks == [scenario == "secret_in_error"] * 4
    assert [job["state"] for job in simulator.jobs()] == jobs
    assert simulator.billed() == 0


@pytest.mark.parametrize("way", ALL_MODELS)
def test_every_model_answers_and_counts_one_image(simulator: Simulator, way: Way) -> None:
    assert simulator.post(way).status_code == 200
    job = simulator.job()
    assert (job["model"], job["provider"], job["upstream_path"]) == (way[0], way[0].partition("/")[0], way[1])
    assert (job["n"], job["images_delivered"], job["images_billed"], job["billed"]) == (1, 1, 1, True)


@pytest.mark.parametrize("way", WAYS)
def test_one_of_eight_429(simulator: Simulator, way: Way) -> None:
    simulator.behave(way[0], "one_of_eight_429", times=None, retry_after=3, same=True)
    replies = [simulator.post(way) for _ in range(16)]
    assert [reply.status_code for reply in replies] == [*[200] * 7, 429] * 2
    assert [reply.headers.get("retry-after") for reply in replies[7::8]] == ["3", "3"]
    assert simulator.billed() == 14


def test_one_of_eight_at_once_is_one_whichever_it_is(simulator: Simulator) -> None:
    simulator.behave("openai/dall-e-3", "one_of_eight_429", times=8, same=True)

    async def order_eight() -> list[int]:
        async with httpx2.AsyncClient() as client:
            _, path, auth, body = DALL_E_WAY
            asked = [client.post(simulator.url + path, headers=auth, json=body) for _ in range(8)]
            return [reply.status_code for reply in await asyncio.gather(*asked)]

    assert sorted(asyncio.run(order_eight())) == [*[200] * 7, 429]
    assert simulator.billed() == 7
    assert simulator.post(DALL_E_WAY).status_code == 200


@pytest.mark.parametrize("way", WAYS)
def test_busy_503_then_ok(simulator: Simulator, way: Way) -> None:
    simulator.behave(way[0], "busy_503_then_ok", times=None, retry_after=2)
    replies = [simulator.post(way) for _ in range(4)]
    assert [(reply.status_code, reply.headers.get("retry-after")) for reply in replies] == [(503, "2"), (200, None)] * 2
    assert simulator.billed() == 2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scenario", ["rate_limited_429", "busy_503"])
@pytest.mark.parametrize("wait", [0, 61, 121])
def test_retry_after_is_as_long_as_one_likes(simulator: Simulator, way: Way, scenario: str, wait: int) -> None:
    simulator.behave(way[0], scenario, retry_after=wait)
    assert simulator.post(way).headers["retry-after"] == str(wait)


@pytest.mark.parametrize("way", ALL_MODELS)
def test_retired(simulator: Simulator, way: Way) -> None:
    simulator.behave(way[0], "retired")
    reply = simulator.post(way)
    body = reply.json()
    match way[0].partition("/")[0]:
        case "openai":
            error = body["error"]
            assert (reply.status_code, error["type"]) == (404, "invalid_request_error")
            assert (error["code"], "deprecated" in error["message"]) == ("model_not_found", True)
            assert way[3]["model"] in error["message"]
        case "google":
            assert (reply.status_code, body["error"]["status"], body["error"]["code"]) == (404, "NOT_FOUND", 404)
            assert way[1].rpartition("/")[2].partition(":")[0] in body["error"]["message"]
        case "xai":
            assert reply.status_code == 500
            assert "fully deprecated" in body["error"] and "grok-imagine-image" in body["error"]
        case "fal":
            path = way[1].removeprefix("/fal/run")
            assert (reply.status_code, body) == (404, {"detail": f"Path {path} not found"})
            assert reply.headers["x-fal-billable-units"] == "0"
    assert simulator.jobs() == []


@pytest.mark.parametrize("way", WAYS)
def test_secret_in_headers(simulator: Simulator, way: Way) -> None:
    simulator.behave(way[0], "secret_in_headers")
    reply = simulator.post(way)
    secret = next(iter(way[2].values())).split()[-1]
    assert reply.status_code == 200
    assert secret in reply.headers.values() and "http://10.0.7.31" in str(reply.headers)
    assert secret not in reply.text
    assert simulator.billed() == 1


@pytest.mark.parametrize("way", WAYS)
def test_secret_in_redirect(simulator: Simulator, way: Way) -> None:
    simulator.behave(way[0], "secret_in_redirect")
    reply = simulator.post(way)
    target = httpx2.URL(reply.headers["location"])
    assert (reply.status_code, target.host) == (307, "10.0.7.31")
    assert target.params["key"] == next(iter(way[2].values())).split()[-1]
    assert simulator.jobs() == []


def test_what_strikes_a_submit_to_the_queue(simulator: Simulator) -> None:
    wanted = {
        "busy_503": 503,
        "retired": 404,
        "locked_403": 403,
        "secret_in_redirect": 307,
        "unauthorized_401": 401,
    }
    for scenario, status in wanted.items():
        simulator.behave(FLUX, scenario)
        assert simulator.submit().status_code == status
    assert simulator.jobs() == []
    simulator.behave(FLUX, "secret_in_headers")
    assert "id-0123:secret-456789" in simulator.submit().headers.values()


@pytest.mark.parametrize("way", WAYS)
def test_reset_is_a_real_rst_after_a_billed_generation(simulator: Simulator, way: Way) -> None:
    simulator.behave(way[0], "reset")
    with closing(ask(simulator, way)) as raw, pytest.raises(ConnectionResetError):
        raw.recv(1)
    assert (simulator.billed(), simulator.job()["client_gone"]) == (1, False)


def test_reset_is_an_rst_under_tls_too(simulator: Simulator) -> None:
    simulator.behave(FLUX, "reset")
    secure = ssl.create_default_context(cafile=simulator.ca)

    async def post() -> bytes:
        reader, writer = await asyncio.open_connection("localhost", simulator.tls_port, ssl=secure)
        with closing(writer):
            head = f"POST {DIRECT_PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Key x\r\ncontent-length: 14\r\n\r\n"
            writer.write(head.encode() + b'{"prompt":"x"}')
            return await reader.read()

    # A blocking TLS socket would show this as a plain end: OpenSSL drops the reason.
    with pytest.raises(ConnectionResetError):
        asyncio.run(post())
    assert simulator.billed() == 1


@pytest.mark.parametrize("way", WAYS)
def test_close_without_answer_ends_the_stream_with_no_byte(simulator: Simulator, way: Way) -> None:
    simulator.behave(way[0], "close_without_answer")
    with closing(ask(simulator, way)) as raw:
        assert read_to_end(raw) == b""
    assert simulator.billed() == 1


@pytest.mark.parametrize("way", WAYS)
def test_garbage_is_not_http(simulator: Simulator, way: Way) -> None:
    simulator.behave(way[0], "garbage")
    with closing(ask(simulator, way)) as raw:
        assert read_to_end(raw) == GARBAGE
    assert simulator.billed() == 1


@pytest.mark.parametrize("way", WAYS)
def test_truncated_body_has_a_good_head_and_no_end(simulator: Simulator, way: Way) -> None:
    model, path, auth, body = way
    simulator.behave(model, "truncated_body", times=2)
    with closing(ask(simulator, way)) as raw:
        head, _, start = read_to_end(raw).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    starts = {
        GPT: b'"data":[{"b64_json":"iVBOR',
        IMAGEN: b'{"predictions":[{"mimeType":"image/png","bytesBase64Encoded":"iVBOR',
        GROK: b'{"data":[{"mime_type":"image/jpeg",',
        FLUX: b'{"images":[{"url"',
    }
    assert starts[model] in start
    with pytest.raises(httpx2.RemoteProtocolError):
        simulator.http.post(simulator.url + path, headers=auth, json=body)
    assert simulator.billed() == 2


@pytest.mark.parametrize("way", WAYS)
def test_silent_never_answers_and_the_job_is_billed_all_the_same(simulator: Simulator, way: Way) -> None:
    simulator.behave(way[0], "silent")
    with closing(ask(simulator, way)) as raw:
        eventually(lambda: simulator.billed() == 1)
        raw.settimeout(0.2)
        with pytest.raises(TimeoutError):
            raw.recv(1)
        assert not simulator.job()["client_gone"]
    eventually(lambda: simulator.job()["client_gone"])


@pytest.mark.parametrize("way", WAYS)
def test_wrong_json_is_a_200_of_another_shape(simulator: Simulator, way: Way) -> None:
    model, path, auth, body = way
    simulator.behave(model, "wrong_json")
    reply = simulator.http.post(simulator.url + path, headers=auth, json=body)
    assert reply.status_code == 200
    assert not {"data", "images", "predictions"} & set(reply.json())
    assert simulator.billed() == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_hangs_up_is_billed_for_all_it_asked_for(simulator: Simulator, way: Way) -> None:
    model, path, auth, body = way
    counts: dict[str, dict[str, Any]] = {FLUX: {"num_images": 4}, IMAGEN: {"parameters": {"sampleCount": 4}}}
    simulator.behave(model, "slow", seconds=0.3)
    ask(simulator, (model, path, auth, body | counts.get(model, {"n": 4}))).close()
    eventually(lambda: simulator.jobs() and simulator.job()["client_gone"])
    eventually(lambda: simulator.job()["state"] == "done")
    assert simulator.billed() == 4


def test_a_client_that_hangs_up_in_the_middle_of_the_body_is_seen(simulator: Simulator) -> None:
    simulator.behave(GPT, bytes=8_000_000, same=True, times=None)
    raw = ask(simulator, (GPT, OPENAI_PATH, OPENAI_AUTH, {"model": "gpt-image-1", "prompt": "x", "n": 3}))
    raw.recv(1000)
    raw.close()
    eventually(lambda: simulator.job()["client_gone"])
    assert simulator.billed() == 3


@pytest.mark.parametrize("scenario", ["reset", "close_without_answer", "garbage", "truncated_body", "silent"])
def test_a_spoilt_submit_leaves_a_job_that_runs_and_is_billed(simulator: Simulator, scenario: str) -> None:
    simulator.behave(FLUX, scenario)
    url = simulator.url + QUEUE_PATH
    with pytest.raises(httpx2.TransportError):
        simulator.http.post(url, headers=FAL_AUTH, json={"prompt": "x"}, timeout=0.3)
    eventually(lambda: simulator.billed() == 1)


# --- scenarios of OpenAI


def test_moderation_blocked(simulator: Simulator) -> None:
    simulator.behave(GPT, "moderation_blocked")
    reply = simulator.openai()
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "moderation_blocked")
    assert error["type"] == "image_generation_user_error"
    assert reply.headers["x-request-id"] in error["message"]
    assert (simulator.job()["state"], simulator.billed()) == ("failed", 0)


def test_fewer_images(simulator: Simulator) -> None:
    simulator.behave(GPT, "fewer_images", times=2)
    assert [len(images(simulator.openai(n=n))) for n in (3, 1)] == [2, 0]
    assert simulator.billed() == 2


@pytest.mark.parametrize("strikes_all", [False, True])
@pytest.mark.parametrize(
    ("scenario", "is_struck"),
    [
        ("bad_base64", lambda text: text.startswith("@")),
        ("empty_image", lambda text: text == ""),
        ("html_as_image", lambda text: base64.b64decode(text, validate=True).startswith(b"<!DOCTYPE")),
    ],
)
def test_spoilt_images_in_base64(
    simulator: Simulator, scenario: str, is_struck: Callable[[str], bool], strikes_all: bool
) -> None:
    simulator.behave(GPT, scenario, all=strikes_all)
    data = simulator.openai(n=2).json()["data"]
    assert [is_struck(item["b64_json"]) for item in data] == [strikes_all, True]
    assert simulator.billed() == 2


# --- scenarios of fal, by both of its ways


@pytest.fixture(params=["direct", "queue"])
def fal(request: pytest.FixtureRequest, simulator: Simulator) -> Callable[..., httpx2.Response]:
    """Ask for images and wait for the model's own answer."""

    def direct(**order: Any) -> httpx2.Response:
        return simulator.run(**order)

    def queued(**order: Any) -> httpx2.Response:
        ticket = simulator.submit(**order).json()
        simulator.completed(ticket)
        return simulator.get(ticket["response_url"])

    return direct if request.param == "direct" else queued


Ask = Callable[..., httpx2.Response]


@pytest.mark.parametrize("strikes_all", [False, True])
def test_nsfw(simulator: Simulator, fal: Ask, strikes_all: bool) -> None:
    simulator.behave(FLUX, "nsfw", all=strikes_all)
    body = fal(num_images=2).json()
    assert body["has_nsfw_concepts"] == [strikes_all, True]
    pictures = [opened(simulator.http.get(item["url"]).content) for item in body["images"]]
    assert [picture.size for picture in pictures] == [(1024, 768)] * 2
    assert [picture.getbbox() is None for picture in pictures] == [strikes_all, True]
    assert (simulator.delivered(), simulator.billed()) == (0 if strikes_all else 1, 2)


def test_content_policy_422(simulator: Simulator, fal: Ask) -> None:
    simulator.behave(FLUX, "content_policy_422")
    reply = fal()
    (detail,) = reply.json()["detail"]
    assert (reply.status_code, detail["type"]) == (422, "content_policy_violation")
    assert "x-fal-billable-units" not in reply.headers
    assert simulator.billed() == 0


@pytest.mark.parametrize("scenario", ["completed_with_error", "result_500", "http_500"])
def test_a_failed_model_answers_500(simulator: Simulator, fal: Ask, scenario: str) -> None:
    simulator.behave(FLUX, scenario)
    reply = fal()
    assert reply.status_code == 500
    assert isinstance(reply.json()["detail"], str)
    assert ("x-fal-error-type" in reply.headers) == (scenario != "result_500")
    assert (simulator.job()["state"], simulator.billed()) == ("failed", 0)


def test_completed_with_error_says_so_in_the_status(simulator: Simulator) -> None:
    simulator.behave(FLUX, "completed_with_error")
    status = simulator.completed(simulator.submit().json())
    assert status["error"]
    assert status["error_type"] == "runner_server_error"


def test_time_to_start(simulator: Simulator, fal: Ask) -> None:
    simulator.behave(FLUX, "time_to_start")
    reply = fal()
    assert (reply.status_code, reply.headers["x-fal-request-timeout-type"]) == (504, "user")
    assert reply.json()["error_type"] == "request_timeout"
    assert simulator.billed() == 0


def test_fail_submit_500(simulator: Simulator) -> None:
    simulator.behave(FLUX, "fail_submit_500")
    assert simulator.submit().status_code == 500
    assert simulator.jobs() == []


def test_status_500_once(simulator: Simulator) -> None:
    simulator.behave(FLUX, "status_500_once")
    ticket = simulator.submit().json()
    assert simulator.get(ticket["status_url"]).status_code == 500
    simulator.completed(ticket)
    assert simulator.billed() == 1


def test_stuck_in_queue_holds_a_direct_call_until_the_client_goes(simulator: Simulator) -> None:
    simulator.behave(FLUX, "stuck_in_queue")
    with closing(ask(simulator, (FLUX, DIRECT_PATH, FAL_AUTH, {"prompt": "x"}))):
        eventually(lambda: simulator.jobs() and simulator.job()["state"] == "queued")
    eventually(lambda: simulator.job()["state"] == "cancelled")
    assert simulator.billed() == 0


@pytest.mark.parametrize("strikes_all", [False, True])
@pytest.mark.parametrize(
    "scenario",
    [
        "image_404",
        "image_expired_403",
        "image_redirect_metadata",
        "image_redirect_secret",
        "image_truncated",
        "image_html",
        "image_other_host",
    ],
)
def test_spoilt_result_urls(simulator: Simulator, fal: Ask, scenario: str, strikes_all: bool) -> None:
    simulator.behave(FLUX, scenario, all=strikes_all)
    urls = [item["url"] for item in fal(num_images=2).json()["images"]]
    for url in urls if strikes_all else urls[1:]:
        match scenario:
            case "image_expired_403":
                assert simulator.http.get(url).status_code == 403
            case "image_redirect_secret":
                reply = simulator.http.get(url, follow_redirects=False)
                assert reply.status_code == 307
                target = httpx2.URL(reply.headers["location"])
                assert (target.host, target.params["key"]) == ("10.0.7.31", "id-0123:secret-456789")
            case "image_404":
                assert simulator.http.get(url).status_code == 404
            case "image_redirect_metadata":
                reply = simulator.http.get(url, follow_redirects=False)
                assert (reply.status_code, reply.headers["location"]) == (302, METADATA_URL)
                assert METADATA_URL.startswith("http://169.254.169.254/")
            case "image_truncated":
                with pytest.raises(httpx2.RemoteProtocolError):
                    simulator.http.get(url)
            case "image_html":
                assert simulator.http.get(url).text.startswith("<!DOCTYPE html>")
            case "image_other_host":
                assert url.startswith(OTHER_HOST_URL)
    if not strikes_all:
        opened(simulator.http.get(urls[0]).content)
    assert simulator.billed() == 2
