"""The simulator as its clients see it: over real HTTP, with the official clients as judges."""

import asyncio
import base64
import io
import json
import os
import queue
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import trustme
import uvloop
from PIL import Image

from simulator import fal as fal_module
from simulator import files as files_module
from simulator.answers import GARBAGE
from simulator.files import METADATA_URL, OTHER_HOST_URL
from simulator.latency import Latency
from simulator.server import serve

GPT, FLUX = "openai/gpt-image-1", "fal/flux-1.1-pro"
OPENAI_PATH = "/openai/v1/images/generations"
DIRECT_PATH = "/fal/run/fal-ai/flux-pro/v1.1"
QUEUE_PATH = "/fal/queue/fal-ai/flux-pro/v1.1"
OPENAI_AUTH = {"authorization": "Bearer sk-simulated-0123456789"}
FAL_AUTH = {"authorization": "Key id-0123:secret-456789"}
GOOGLE_AUTH = {"x-goog-api-key": "AIza-simulated-0123456789"}
XAI_AUTH = {"authorization": "Bearer xai-simulated-0123456789"}
IMAGEN, GROK = "google/imagen-4", "xai/grok-2-image"
GOOGLE_PATH = "/google/v1beta/models/imagen-4.0-generate-001:predict"
XAI_PATH = "/xai/v1/images/generations"
Way = tuple[str, str, dict[str, str], dict[str, Any]]
OPENAI_WAY: Way = (GPT, OPENAI_PATH, OPENAI_AUTH, {"model": "gpt-image-1", "prompt": "un faro"})
DALL_E_WAY: Way = ("openai/dall-e-3", OPENAI_PATH, OPENAI_AUTH, {"model": "dall-e-3", "prompt": "un faro"})
GOOGLE_WAY: Way = (
    IMAGEN,
    GOOGLE_PATH,
    GOOGLE_AUTH,
    {"instances": [{"prompt": "un faro"}], "parameters": {"sampleCount": 1}},
)
XAI_WAY: Way = (GROK, XAI_PATH, XAI_AUTH, {"model": "grok-2-image", "prompt": "un faro"})
IMAGINE_WAY: Way = (
    "xai/grok-imagine-image",
    XAI_PATH,
    XAI_AUTH,
    {"model": "grok-imagine-image", "prompt": "un faro"},
)
FAL_WAY: Way = (FLUX, DIRECT_PATH, FAL_AUTH, {"prompt": "un faro"})
ULTRA_WAY: Way = ("fal/flux-1.1-pro-ultra", "/fal/run/fal-ai/flux-pro/v1.1-ultra", FAL_AUTH, {"prompt": "un faro"})
RECRAFT_WAY: Way = ("fal/recraft-v3", "/fal/run/fal-ai/recraft/v3/text-to-image", FAL_AUTH, {"prompt": "un faro"})
IDEOGRAM_WAY: Way = ("fal/ideogram-v2", "/fal/run/fal-ai/ideogram/v2", FAL_AUTH, {"prompt": "un faro"})
RECRAFT_4_WAY: Way = (
    "fal/recraft-v4.1",
    "/fal/run/fal-ai/recraft/v4.1/text-to-image",
    FAL_AUTH,
    {"prompt": "un faro"},
)
RECRAFT_PRO_WAY: Way = (
    "fal/recraft-v4.1-pro",
    "/fal/run/fal-ai/recraft/v4.1/pro/text-to-image",
    FAL_AUTH,
    {"prompt": "un faro"},
)
IDEOGRAM_4_WAY: Way = ("fal/ideogram-v4", "/fal/run/ideogram/v4", FAL_AUTH, {"prompt": "un faro"})
SD_WAY: Way = ("fal/sd-3.5-large", "/fal/run/fal-ai/stable-diffusion-v35-large", FAL_AUTH, {"prompt": "un faro"})
EVERY_WAY = [
    *(OPENAI_WAY, DALL_E_WAY, GOOGLE_WAY, XAI_WAY, IMAGINE_WAY),
    *(FAL_WAY, ULTRA_WAY, RECRAFT_WAY, IDEOGRAM_WAY, SD_WAY),
    *(RECRAFT_4_WAY, RECRAFT_PRO_WAY, IDEOGRAM_4_WAY),
]
# One for each wire format.
WAYS = [
    pytest.param(OPENAI_WAY, id="openai"),
    pytest.param(GOOGLE_WAY, id="google"),
    pytest.param(XAI_WAY, id="xai"),
    pytest.param(FAL_WAY, id="fal-direct"),
]
ALL_MODELS = [pytest.param(way, id=way[0]) for way in EVERY_WAY]


@dataclass
class Simulator:
    port: int
    tls_port: int
    ca: Path
    http: httpx2.Client = field(default_factory=httpx2.Client)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def behave(self, model: str, scenario: str = "ok", **wish: Any) -> None:
        reply = self.http.put(
            f"{self.url}/_sim/behaviour", json={"model": model, "scenario": scenario, "times": 1, **wish}
        )
        assert reply.status_code == 200, reply.text

    def jobs(self, model: str | None = None) -> list[dict[str, Any]]:
        reply = self.http.get(f"{self.url}/_sim/jobs", params={"model": model} if model else {})
        jobs: list[dict[str, Any]] = reply.json()
        return jobs

    def job(self) -> dict[str, Any]:
        jobs = self.jobs()
        assert len(jobs) == 1, jobs
        return jobs[0]

    def billed(self) -> int:
        """Images on the providers' bills."""
        assert all(job["billed"] == (job["images_billed"] > 0) for job in self.jobs())
        return sum(job["images_billed"] for job in self.jobs())

    def delivered(self) -> int:
        """Good pictures, whether or not their client was still there."""
        return sum(job["images_delivered"] for job in self.jobs())

    def post(self, way: Way, **order: Any) -> httpx2.Response:
        _, path, auth, body = way
        return self.http.post(self.url + path, headers=auth, json=body | order)

    def forget(self) -> None:
        """As if nothing had happened and nothing were to happen."""
        assert self.http.delete(f"{self.url}/_sim/behaviour").status_code == 204
        self.http.delete(f"{self.url}/_sim/jobs")

    def openai(self, **order: Any) -> httpx2.Response:
        order = {"model": "gpt-image-1", "prompt": "un faro"} | order
        return self.http.post(self.url + OPENAI_PATH, headers=OPENAI_AUTH, json=order)

    def run(self, **order: Any) -> httpx2.Response:
        return self.http.post(self.url + DIRECT_PATH, headers=FAL_AUTH, json={"prompt": "un faro"} | order)

    def submit(self, **order: Any) -> httpx2.Response:
        return self.http.post(self.url + QUEUE_PATH, headers=FAL_AUTH, json={"prompt": "un faro"} | order)

    def get(self, url: str) -> httpx2.Response:
        return self.http.get(url, headers=FAL_AUTH)

    def completed(self, ticket: dict[str, Any]) -> dict[str, Any]:
        """The status with which the job ended."""
        reply = eventually(lambda: (r := self.get(ticket["status_url"])).status_code == 200 and r)
        status: dict[str, Any] = reply.json()
        assert status["status"] == "COMPLETED"
        return status


def eventually(condition: Callable[[], Any], within_s: float = 10) -> Any:
    """What `condition` returns as soon as that is true; fails after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
    return value


class Running:
    """`serve` in a thread of its own, until stopped."""

    def __init__(self, **settings: Any) -> None:
        ports: queue.SimpleQueue[tuple[int, int | None]] = queue.SimpleQueue()

        async def main() -> None:
            self._loop, self._shutdown = asyncio.get_running_loop(), asyncio.Event()
            await serve(
                host="127.0.0.1",
                port=0,
                shutdown=self._shutdown,
                started=lambda port, tls_port: ports.put((port, tls_port)),
                **settings,
            )

        def run() -> None:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(main())

        self.thread = threading.Thread(target=run)
        self.thread.start()
        self.port, self.tls_port = ports.get(timeout=10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._shutdown.set)
        self.thread.join(10)
        assert not self.thread.is_alive()


@contextmanager
def simulating(folder: Path) -> Iterator[Simulator]:
    """A simulator that answers at once, over HTTP and over TLS."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    pem = str(folder / "server.pem")
    server = Running(latency_scale=0, seed=1, tls=(0, pem, pem))
    assert server.tls_port is not None
    simulator = Simulator(server.port, server.tls_port, folder / "ca.pem")
    try:
        with simulator.http:
            yield simulator
    finally:
        server.stop()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with simulating(tmp_path_factory.mktemp("tls")) as simulator:
        yield simulator


@pytest.fixture
def simulator(running: Simulator) -> Simulator:
    running.forget()
    return running


def opened(data: bytes) -> Image.Image:
    """The picture, decoded to its last pixel."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


def images(reply: httpx2.Response) -> list[bytes]:
    return [base64.b64decode(item["b64_json"], validate=True) for item in reply.json()["data"]]


def ask(simulator: Simulator, way: Way) -> socket.socket:
    """A raw connection on which the request has been sent."""
    _, path, auth, body = way
    data = json.dumps(body).encode()
    (name, key) = next(iter(auth.items()))
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\n{name}: {key}\r\n"
    connection = socket.create_connection(("127.0.0.1", simulator.port), timeout=10)
    connection.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


# --- pictures


@pytest.mark.parametrize("size", ["1024x1024", "1536x1024", "1024x1536"])
@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_gpt_image_pictures_are_of_the_size_and_format_asked_for(
    simulator: Simulator, size: str, output_format: str
) -> None:
    reply = simulator.openai(size=size, output_format=output_format)
    image = opened(images(reply)[0])
    assert (f"{image.width}x{image.height}", image.format) == (size, output_format.upper())


@pytest.mark.parametrize(
    ("image_size", "expected"),
    [
        ("square_hd", (1024, 1024)),
        ("square", (512, 512)),
        ("portrait_4_3", (768, 1024)),
        ("portrait_16_9", (576, 1024)),
        ("landscape_4_3", (1024, 768)),
        ("landscape_16_9", (1024, 576)),
        ({"width": 1440, "height": 256}, (1440, 256)),
        ({"width": 256, "height": 1440}, (256, 1440)),
    ],
)
@pytest.mark.parametrize("output_format", ["jpeg", "png"])
def test_flux_pictures_are_of_the_size_and_format_asked_for(
    simulator: Simulator, image_size: Any, expected: tuple[int, int], output_format: str
) -> None:
    (item,) = simulator.run(image_size=image_size, output_format=output_format).json()["images"]
    reply = simulator.http.get(item["url"])
    image = opened(reply.content)
    assert (image.size, image.format) == (expected, output_format.upper())
    assert (item["width"], item["height"]) == expected
    assert item["content_type"] == reply.headers["content-type"] == f"image/{output_format}"


def test_the_pictures_of_one_reply_differ_and_the_same_order_gives_the_same_pictures(
    simulator: Simulator,
) -> None:
    first, again, other = simulator.openai(n=3), simulator.openai(n=3), simulator.openai(prompt="otro", n=1)
    assert len(set(images(first))) == 3
    assert images(first) == images(again)
    assert images(other)[0] not in images(first)


def test_a_prompt_in_any_script_or_of_any_length_can_be_drawn(simulator: Simulator) -> None:
    for prompt in ("", "ñandú pingüino Ángel", "猫 🐈 \u0301", "palabra " * 3_000, "x" * 32_000):
        opened(images(simulator.openai(prompt=prompt))[0])


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("size_bytes", [500_000, 8_000_000])
def test_pictures_can_be_padded_to_a_number_of_bytes_and_stay_valid(
    simulator: Simulator, output_format: str, size_bytes: int
) -> None:
    simulator.behave(GPT, times=None, bytes=size_bytes, same=True)
    first, again = (
        simulator.openai(output_format=output_format, n=2),
        simulator.openai(output_format=output_format, prompt="otro"),
    )
    data = images(first)[0]
    assert abs(len(data) - size_bytes) < 1_000
    assert opened(data).size == (1024, 1024)
    assert {*images(first), *images(again)} == {data}


# --- OpenAI


def test_an_openai_reply_has_all_its_keys(simulator: Simulator) -> None:
    reply = simulator.openai(n=2, quality="low", size="1536x1024", prompt="doce letras!")
    body = reply.json()
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"].startswith("req_")
    assert "server" not in reply.headers
    assert abs(body["created"] - time.time()) < 60
    assert [list(item) for item in body["data"]] == [["b64_json"]] * 2
    del body["created"], body["data"]
    assert body == {
        "background": "opaque",
        "output_format": "png",
        "quality": "low",
        "size": "1536x1024",
        "usage": {
            "input_tokens": 3,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": 3},
            "output_tokens": 816,
            "output_tokens_details": {"image_tokens": 816, "text_tokens": 0},
            "total_tokens": 819,
        },
    }
    job = simulator.job()
    accepted_at, finished_at = job.pop("accepted_at"), job.pop("finished_at")
    assert time.time() - 60 < accepted_at <= finished_at <= time.time()
    assert job == {
        "provider": "openai",
        "model": GPT,
        "upstream_path": OPENAI_PATH,
        "request_id": reply.headers["x-request-id"],
        "n": 2,
        "images_delivered": 2,
        "images_billed": 2,
        "state": "done",
        "client_gone": False,
        "billed": True,
    }


def test_an_openai_body_comes_in_several_pieces(simulator: Simulator) -> None:
    with closing(ask(simulator, (GPT, OPENAI_PATH, OPENAI_AUTH, {"model": "gpt-image-1", "prompt": "x"}))) as raw:
        head = b""
        while b"\r\n\r\n" not in head:
            head += raw.recv(1)
        assert b"transfer-encoding: chunked" in head.lower()


def test_null_is_unset(simulator: Simulator) -> None:
    nulls = dict.fromkeys(["n", "size", "quality", "output_format", "background", "user", "response_format"])
    assert simulator.openai(**nulls).json()["quality"] == "high"


@pytest.mark.parametrize(
    ("order", "status", "code", "param"),
    [
        ({"response_format": "url"}, 400, "unknown_parameter", "response_format"),
        ({"style": "vivid"}, 400, "unknown_parameter", "style"),
        ({"n": 0}, 400, "integer_below_min_value", "n"),
        ({"n": 11}, 400, "integer_above_max_value", "n"),
        ({"n": "2"}, 400, "invalid_type", "n"),
        ({"size": "1792x1024"}, 400, "invalid_value", "size"),
        ({"quality": "hd"}, 400, "invalid_value", "quality"),
        ({"output_format": "gif"}, 400, "invalid_value", "output_format"),
        ({"output_compression": 50}, 400, "invalid_png_output_compression", "output_compression"),
        ({"background": "transparent", "output_format": "jpeg"}, 400, "invalid_value", "background"),
        ({"moderation": "none"}, 400, "invalid_value", "moderation"),
        ({"stream": True}, 400, "unsupported_value", "stream"),
        ({"prompt": None}, 400, "missing_required_parameter", "prompt"),
        ({"prompt": 7}, 400, "invalid_type", "prompt"),
        ({"prompt": "x" * 32_001}, 400, "string_above_max_length", "prompt"),
        ({"model": "gpt-image-9"}, 404, "model_not_found", "model"),
        ({"model": None}, 404, "model_not_found", "model"),
    ],
)
def test_openai_refuses_what_the_real_one_refuses(
    simulator: Simulator, order: dict[str, Any], status: int, code: str, param: str
) -> None:
    reply = simulator.openai(**order)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"]) == (status, "invalid_request_error")
    assert (error["code"], error["param"]) == (code, param)
    assert set(error) == {"message", "type", "param", "code"}
    assert simulator.jobs() == []


def test_openai_wants_a_bearer_key_json_and_a_known_path(simulator: Simulator) -> None:
    url = simulator.url + OPENAI_PATH
    for headers in ({}, {"authorization": "Bearer"}, FAL_AUTH):
        assert simulator.http.post(url, headers=headers, json={}).status_code == 401
    for content in (b"", b"{", b"[]"):
        assert simulator.http.post(url, headers=OPENAI_AUTH, content=content).status_code == 400
    reply = simulator.http.post(simulator.url + "/openai/v1/images/edits", headers=OPENAI_AUTH)
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "invalid_request_error")


def test_the_official_openai_client_accepts_it(simulator: Simulator) -> None:
    api_key = "sk-simulated-0123456789"
    with openai.OpenAI(base_url=f"{simulator.url}/openai/v1", api_key=api_key, max_retries=0) as client:

        def generate(**order: Any) -> Any:
            return client.images.generate(**{"model": "gpt-image-1", "prompt": "un faro"} | order)

        reply = generate(n=2, size="1024x1536")
        assert reply._request_id.startswith("req_")
        assert reply.usage.total_tokens > 0
        assert [opened(base64.b64decode(item.b64_json)).size for item in reply.data] == [(1024, 1536)] * 2

        with pytest.raises(openai.BadRequestError) as unknown:
            generate(response_format="url")
        assert (unknown.value.code, unknown.value.param) == ("unknown_parameter", "response_format")
        with pytest.raises(openai.NotFoundError) as missing:
            generate(model="dall-e-2")
        assert missing.value.code == "model_not_found"
        for scenario, error in [
            ("unauthorized_401", openai.AuthenticationError),
            ("rate_limited_429", openai.RateLimitError),
            ("moderation_blocked", openai.BadRequestError),
            ("http_500", openai.InternalServerError),
            ("http_503", openai.InternalServerError),
            ("reset", openai.APIConnectionError),
            ("garbage", openai.APIConnectionError),
        ]:
            simulator.behave(GPT, scenario)
            with pytest.raises(error):
                generate()


def test_the_official_client_s_own_retries_are_on_the_bill(simulator: Simulator) -> None:
    simulator.behave(GPT, "reset", times=2)
    with openai.OpenAI(base_url=f"{simulator.url}/openai/v1", api_key="sk-x") as client:
        client.images.generate(model="gpt-image-1", prompt="un faro")
    assert simulator.billed() == 3


# --- fal


def test_a_fal_reply_has_all_its_keys(simulator: Simulator) -> None:
    reply = simulator.run(num_images=2, seed=7)
    body = reply.json()
    assert set(body) == {"images", "timings", "seed", "has_nsfw_concepts", "prompt"}
    assert (body["seed"], body["has_nsfw_concepts"], body["prompt"]) == (7, [False, False], "un faro")
    assert [set(item) for item in body["images"]] == [{"url", "width", "height", "content_type"}] * 2
    assert all(item["url"].startswith(f"{simulator.url}/files/") for item in body["images"])
    assert reply.headers["x-fal-billable-units"] == "2"
    job = simulator.job()
    assert reply.headers["x-fal-request-id"] == job["request_id"]
    assert (job["provider"], job["n"], job["images_delivered"], job["billed"]) == ("fal", 2, 2, True)


def test_sync_mode_gives_the_picture_in_the_reply(simulator: Simulator) -> None:
    (item,) = simulator.run(sync_mode=True).json()["images"]
    kind, _, data = item["url"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert opened(base64.b64decode(data)).size == (1024, 768)


def test_the_queue_gives_a_ticket_whose_urls_leave_out_the_sub_path(simulator: Simulator) -> None:
    reply = simulator.submit()
    ticket = reply.json()
    url = f"{simulator.url}/fal/queue/fal-ai/flux-pro/requests/{ticket['request_id']}"
    assert reply.status_code == 200
    assert ticket == {
        "status": "IN_QUEUE",
        "queue_position": 0,
        "request_id": ticket["request_id"],
        "gateway_request_id": ticket["request_id"],
        "response_url": url,
        "status_url": f"{url}/status",
        "cancel_url": f"{url}/cancel",
    }
    status = simulator.completed(ticket)
    assert set(status) == set(ticket) - {"queue_position", "gateway_request_id"} | {"metrics", "logs"}
    result = simulator.get(url)
    assert result.headers["x-fal-billable-units"] == "1"
    assert opened(simulator.http.get(result.json()["images"][0]["url"]).content).format == "JPEG"
    wrong = simulator.get(f"{simulator.url}{QUEUE_PATH}/requests/{ticket['request_id']}/status")
    assert wrong.status_code == 405
    other = simulator.get(url.replace("flux-pro", "recraft"))
    assert other.status_code == 404


def test_a_job_goes_from_the_queue_into_progress_and_then_is_complete(simulator: Simulator) -> None:
    simulator.behave(FLUX, "slow", seconds=2)
    ticket = simulator.submit().json()
    seen = []

    def step() -> bool:
        reply = simulator.get(ticket["status_url"] + "?logs=1")
        state = (reply.json()["status"], reply.status_code)
        if state not in seen:
            seen.append(state)
            if state[0] != "COMPLETED":
                assert simulator.get(ticket["response_url"]).status_code == 400
        return state == ("COMPLETED", 200)

    eventually(step)
    assert seen == [("IN_QUEUE", 202), ("IN_PROGRESS", 202), ("COMPLETED", 200)]
    assert simulator.billed() == 1


def test_a_cancelled_job_in_the_queue_never_runs_and_is_not_billed(simulator: Simulator) -> None:
    simulator.behave(FLUX, "stuck_in_queue")
    ticket = simulator.submit().json()
    assert simulator.get(ticket["status_url"]).json()["queue_position"] == 0
    assert simulator.job()["state"] == "queued"
    reply = simulator.http.put(ticket["cancel_url"], headers=FAL_AUTH)
    assert (reply.status_code, reply.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    reply = simulator.http.put(ticket["cancel_url"], headers=FAL_AUTH)
    assert (reply.status_code, reply.json()) == (400, {"status": "ALREADY_COMPLETED"})
    assert simulator.completed(ticket)["error_type"] == "client_cancelled"
    assert simulator.get(ticket["response_url"]).status_code == 499
    assert (simulator.job()["state"], simulator.billed()) == ("cancelled", 0)


def test_a_job_in_progress_is_not_stopped_by_a_cancel(simulator: Simulator) -> None:
    simulator.behave(FLUX, "slow", seconds=1.5)
    ticket = simulator.submit().json()
    eventually(lambda: simulator.job()["state"] == "running")
    assert simulator.http.put(ticket["cancel_url"], headers=FAL_AUTH).status_code == 202
    simulator.completed(ticket)
    assert (simulator.job()["state"], simulator.billed()) == ("done", 1)


def test_fal_knows_no_other_request_and_no_other_path(simulator: Simulator) -> None:
    unknown = f"{simulator.url}/fal/queue/fal-ai/flux-pro/requests/none"
    assert simulator.get(unknown).status_code == simulator.get(f"{unknown}/status").status_code == 404
    assert simulator.http.put(f"{unknown}/cancel", headers=FAL_AUTH).json() == {"status": "NOT_FOUND"}
    for way in ("run", "queue"):
        reply = simulator.http.post(f"{simulator.url}/fal/{way}/fal-ai/no-model", headers=FAL_AUTH, json={})
        assert (reply.status_code, reply.json()) == (404, {"detail": "Path /fal-ai/no-model not found"})
        assert reply.headers["x-fal-billable-units"] == "0"
    ticket = simulator.http.post(f"{simulator.url}/fal/queue/fal-ai/flux-pro/v9", headers=FAL_AUTH, json={}).json()
    simulator.completed(ticket)
    assert simulator.get(ticket["response_url"]).json() == {"detail": "Path /fal-ai/flux-pro/v9 not found"}
    assert simulator.billed() == 0


def test_fal_wants_its_own_kind_of_key(simulator: Simulator) -> None:
    ticket = simulator.submit().json()
    urls = [simulator.url + DIRECT_PATH, simulator.url + QUEUE_PATH]
    for headers in ({}, OPENAI_AUTH):
        replies = [simulator.http.post(url, headers=headers, json={"prompt": "x"}) for url in urls]
        replies += [simulator.http.get(ticket[url], headers=headers) for url in ("status_url", "response_url")]
        replies += [simulator.http.put(ticket["cancel_url"], headers=headers)]
        assert [reply.status_code for reply in replies] == [401] * 5
        assert all(set(reply.json()) == {"detail"} for reply in replies)


@pytest.mark.parametrize(
    ("order", "loc", "kind"),
    [
        ({"prompt": 7}, ["prompt"], "string_type"),
        ({"num_images": 5}, ["num_images"], "less_than_equal"),
        ({"num_images": 0}, ["num_images"], "greater_than_equal"),
        ({"num_images": "1"}, ["num_images"], "int_type"),
        ({"image_size": "1024x1024"}, ["image_size"], "literal_error"),
        ({"image_size": {"width": 1536, "height": 1024}}, ["image_size", "width"], "less_than_equal"),
        ({"image_size": {"width": 1024, "height": 224}}, ["image_size", "height"], "greater_than_equal"),
        ({"image_size": {"width": 1000, "height": 1024}}, ["image_size", "width"], "multiple_of"),
        ({"output_format": "webp"}, ["output_format"], "literal_error"),
        ({"safety_tolerance": 2}, ["safety_tolerance"], "literal_error"),
        ({"enable_safety_checker": "no"}, ["enable_safety_checker"], "bool_type"),
    ],
)
def test_flux_refuses_wrong_input_at_once_or_in_the_queue_s_result(
    simulator: Simulator, order: dict[str, Any], loc: list[str], kind: str
) -> None:
    direct = simulator.run(**order)
    assert simulator.jobs() == []
    ticket = simulator.submit(**order).json()
    simulator.completed(ticket)
    queued = simulator.get(ticket["response_url"])
    for reply in (direct, queued):
        (detail,) = reply.json()["detail"]
        assert (reply.status_code, detail["loc"], detail["type"]) == (422, ["body", *loc], kind)
        assert reply.headers["x-fal-billable-units"] == "0"
    assert (simulator.job()["state"], simulator.billed()) == ("failed", 0)


def test_fal_wants_a_json_object_with_a_prompt(simulator: Simulator) -> None:
    url = simulator.url + DIRECT_PATH
    for content in (b"{", b"[]", b"{}"):
        assert simulator.http.post(url, headers=FAL_AUTH, content=content).status_code == 422


def test_old_results_and_old_files_are_forgotten(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fal_module, "TICKETS_MAX", 2)
    tickets = [simulator.submit().json() for _ in range(3)]
    assert [simulator.get(ticket["status_url"]).status_code == 404 for ticket in tickets] == [True, False, False]
    monkeypatch.setattr(files_module, "FILES_MAX", 2)
    simulator.run()
    urls = [item["url"] for item in simulator.run(num_images=3).json()["images"]]
    assert [simulator.http.get(url).status_code for url in urls] == [404, 200, 200]


FAL_CLIENT = """
import asyncio, json, fal_client
done = {}
order = {"prompt": "un faro", "num_images": 2}
done["run"] = fal_client.run("fal-ai/flux-pro/v1.1", order)
updates = []
done["subscribe"] = fal_client.subscribe(
    "fal-ai/flux-pro/v1.1", order, with_logs=True, on_queue_update=lambda u: updates.append(type(u).__name__)
)
done["updates"] = updates

async def queue():
    client = fal_client.AsyncClient()
    handle = await client.submit("fal-ai/flux-pro/v1.1", order)
    done["get"] = await handle.get(interval=0.01)
    done["result"] = await client.result("fal-ai/flux-pro/v1.1", handle.request_id)
    try:
        await client.subscribe("fal-ai/flux-pro/v1.1", {"prompt": "un faro", "num_images": 9})
    except fal_client.client.FalClientHTTPError as error:
        done["refused"] = [error.status_code, error.message[0]["type"]]
    try:
        await client.cancel("fal-ai/flux-pro/v1.1", handle.request_id)
    except fal_client.client.FalClientHTTPError as error:
        done["cancel"] = error.status_code

asyncio.run(queue())
print(json.dumps(done))
"""


def test_the_official_fal_client_accepts_it_over_tls(simulator: Simulator) -> None:
    environment = {
        **os.environ,
        "FAL_KEY": "id-0123:secret-456789",
        "FAL_RUN_HOST": f"localhost:{simulator.tls_port}/fal/run",
        "FAL_QUEUE_RUN_HOST": f"localhost:{simulator.tls_port}/fal/queue",
        "SSL_CERT_FILE": str(simulator.ca),
    }
    output = subprocess.run(
        [sys.executable, "-c", FAL_CLIENT], env=environment, stdout=subprocess.PIPE, timeout=40, check=True
    )
    done = json.loads(output.stdout)
    assert done["updates"][-1] == "Completed"
    assert done["result"] == done["get"]
    assert (done["refused"], done["cancel"]) == ([422, "less_than_equal"], 400)
    secure = ssl.create_default_context(cafile=simulator.ca)
    for way in ("run", "subscribe", "get"):
        for item in done[way]["images"]:
            assert item["url"].startswith(f"https://localhost:{simulator.tls_port}/files/")
            assert opened(httpx2.get(item["url"], verify=secure).content).size == (1024, 768)
    assert simulator.billed() == 6


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
            assert "imagen-4.0-generate-001" in body["error"]["message"]
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


# --- control


def test_every_scenario_is_listed_with_a_sentence_and_tested_here(simulator: Simulator) -> None:
    listing = simulator.http.get(f"{simulator.url}/_sim/behaviour").json()["models"]
    assert set(listing) == {way[0] for way in EVERY_WAY}
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_simulator*.py"))
    for model in listing.values():
        assert model["pending"] == []
        for scenario, sentence in model["scenarios"].items():
            assert sentence.endswith(".")
            assert f'"{scenario}"' in source, f"{scenario} has no test"


def test_what_is_pending_happens_in_order_and_ok_clears_it(simulator: Simulator) -> None:
    simulator.behave(GPT, "http_503", times=2)
    simulator.behave(GPT, "ok", times=1)
    simulator.behave(GPT, "http_500", times=None)
    listing = simulator.http.get(f"{simulator.url}/_sim/behaviour").json()["models"]
    assert [(play["scenario"], play["times"]) for play in listing[GPT]["pending"]] == [
        ("http_503", 2),
        ("ok", 1),
        ("http_500", None),
    ]
    assert [simulator.openai().status_code for _ in range(5)] == [503, 503, 200, 500, 500]
    assert simulator.run().status_code == 200
    simulator.behave(GPT, "http_503", times=None)
    assert [simulator.openai().status_code for _ in range(2)] == [503, 503]
    simulator.behave(GPT, "ok", times=None)
    assert simulator.openai().status_code == 200


def test_all_models_can_be_cleared_at_once(simulator: Simulator) -> None:
    for model in (GPT, FLUX):
        simulator.behave(model, "http_503", times=None)
        simulator.behave(model, "ok", times=None, bytes=500_000)
        simulator.behave(model, "http_500", times=2)
    simulator.forget()
    listing = simulator.http.get(f"{simulator.url}/_sim/behaviour").json()["models"]
    assert all(model["pending"] == [] and model["then"]["bytes"] is None for model in listing.values())
    assert (simulator.openai().status_code, simulator.run().status_code) == (200, 200)


def test_a_sequence_is_one_request_each_and_then_all_is_well_again(simulator: Simulator) -> None:
    row = ["http_503", "ok", {"scenario": "rate_limited_429", "retry_after": 61}, "http_500"]
    body = {"model": GPT, "sequence": row, "retry_after": 7, "same": True}
    reply = simulator.http.put(f"{simulator.url}/_sim/behaviour", json=body)
    pending = reply.json()["models"][GPT]["pending"]
    assert [(play["scenario"], play["times"], play["retry_after"], play["same"]) for play in pending] == [
        ("http_503", 1, 7, True),
        ("ok", 1, 7, True),
        ("rate_limited_429", 1, 61, True),
        ("http_500", 1, 7, True),
    ]
    assert [simulator.openai().status_code for _ in range(6)] == [503, 200, 429, 500, 200, 200]
    refused = simulator.http.put(f"{simulator.url}/_sim/behaviour", json={**body, "sequence": ["http_503", "nsfw"]})
    assert refused.status_code == 400
    assert simulator.openai().status_code == 200


def test_a_random_mixture_counts_what_was_delivered(simulator: Simulator) -> None:
    chance = random.Random(11)
    outcomes = {"ok": (2, 2), "nsfw": (1, 2), "content_policy_422": (0, 0), "http_503": (0, 0), "http_500": (0, 0)}
    mixture = chance.choices(list(outcomes), k=60)
    simulator.http.put(f"{simulator.url}/_sim/behaviour", json={"model": FLUX, "sequence": mixture, "same": True})
    delivered = 0
    for _ in mixture:
        flags = simulator.run(num_images=2).json().get("has_nsfw_concepts", [])
        delivered += flags.count(False)
    assert delivered == simulator.delivered() == sum(outcomes[name][0] for name in mixture)
    assert simulator.billed() == sum(outcomes[name][1] for name in mixture)


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"model": GPT, "scenario": "explode"}, "known are ok, slow, http_500"),
        ({"model": GPT, "scenario": "nsfw"}, "Unknown scenario 'nsfw' for openai/gpt-image-1"),
        ({"model": "gpt-image-1"}, "known are openai/gpt-image-1, openai/dall-e-3, google/imagen-4"),
        ({"model": GPT, "scenario": "slow"}, "slow needs seconds"),
        ({"model": GPT, "scenario": "slow", "seconds": -1}, "seconds must be"),
        ({"model": GPT, "times": 0}, "times must be"),
        ({"model": GPT, "times": True}, "times must be"),
        ({"model": GPT, "bytes": 2**40}, "bytes must be"),
        ({"model": GPT, "same": 1}, "same must be"),
        ({"model": GPT, "retry_after": "soon"}, "retry_after must be"),
        ({"model": GPT, "last": 11}, "last must be"),
        ({"model": GPT, "form": "curly"}, "form must be"),
        ({"model": GPT, "sequence": []}, "a list of 1 to"),
        ({"model": GPT, "sequence": ["ok", 7]}, "A sequence holds names"),
        ({"model": GPT, "sequence": ["ok", "nsfw"]}, "Unknown scenario 'nsfw'"),
        ({"model": GPT, "sequence": ["ok"], "times": 2}, "no scenario and no times"),
        ({"model": GPT, "sequence": [{"scenario": "ok", "when": 1}]}, "Unknown field 'when'"),
        ({"model": GPT, "sequence": [{"scenario": "ok", "times": 3}]}, "for one request: no times"),
        ({"model": GPT, "when": 1}, "Unknown field 'when'"),
        ([], "not a JSON object"),
    ],
)
def test_a_behaviour_that_makes_no_sense_is_refused_with_a_sentence(
    simulator: Simulator, wish: Any, sentence: str
) -> None:
    reply = simulator.http.put(f"{simulator.url}/_sim/behaviour", json=wish)
    assert reply.status_code == 400
    assert sentence in reply.json()["error"]


def test_jobs_can_be_filtered_by_model_and_forgotten(simulator: Simulator) -> None:
    simulator.openai()
    simulator.run()
    assert [job["model"] for job in simulator.jobs()] == [GPT, FLUX]
    assert [job["model"] for job in simulator.jobs(FLUX)] == [FLUX]
    assert simulator.http.delete(f"{simulator.url}/_sim/jobs").status_code == 204
    assert simulator.jobs() == []


# --- latency and serving


@pytest.mark.parametrize(
    ("model", "p50", "p95"),
    [
        (GPT, 15, 45),
        ("openai/dall-e-3", 8, 20),
        (IMAGEN, 6, 18),
        (GROK, 10, 30),
        ("xai/grok-imagine-image", 10, 30),
        (FLUX, 7, 25),
        ("fal/flux-1.1-pro-ultra", 12, 40),
        ("fal/recraft-v3", 8, 28),
        ("fal/ideogram-v2", 12, 35),
        ("fal/sd-3.5-large", 10, 30),
    ],
)
def test_latencies_are_the_published_ones_scaled_and_repeatable(model: str, p50: float, p95: float) -> None:
    def draws(scale: float, seed: int) -> list[float]:
        latency = Latency(scale, seed)
        return [latency.draw_s(model) for _ in range(4_000)]

    times = sorted(draws(0.1, 3))
    assert times[2_000] == pytest.approx(p50 / 10, rel=0.05)
    assert times[3_800] == pytest.approx(p95 / 10, rel=0.1)
    assert draws(1, 3) == draws(1, 3) != draws(1, 4)
    assert set(draws(0, 3)) == {0}


def test_a_busy_port_is_an_os_error(simulator: Simulator) -> None:
    with pytest.raises(OSError, match="in use"):
        asyncio.run(serve(host="127.0.0.1", port=simulator.port, shutdown=asyncio.Event()))


def test_a_stop_cuts_off_what_is_unanswered_and_leaves_nothing_behind() -> None:
    server = Running(latency_scale=100)
    simulator = Simulator(server.port, 0, Path())
    with simulator.http:
        raw = ask(simulator, (GPT, OPENAI_PATH, OPENAI_AUTH, {"model": "gpt-image-1", "prompt": "x"}))
        simulator.submit()
        eventually(lambda: len(simulator.jobs()) == 2)
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 5
    with closing(raw):
        assert b" 200 " not in read_to_end(raw)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)
