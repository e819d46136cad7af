"""A simulator for its tests: started in a thread, used over HTTP, with one way to each model."""

import asyncio
import base64
import io
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import trustme
import uvloop
from PIL import Image

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
GPT_2, BANANA, IMAGINE_2 = "openai/gpt-image-2", "google/gemini-nano-banana-2.1", "xai/grok-imagine-image-2.0"
FLUX_2 = "fal/flux-2-pro"
CONTENT = {
    "contents": [{"role": "user", "parts": [{"text": "un faro"}]}],
    "generationConfig": {"responseModalities": ["IMAGE"]},
}
SUCCESSOR_WAYS: list[Way] = [
    *(
        (f"openai/{name}", OPENAI_PATH, OPENAI_AUTH, {"model": name, "prompt": "un faro", "quality": "low"})
        for name in (
            "gpt-image-2",
            *(f"gpt-image-{version}-{kind}" for version in ("2.5", "2.6") for kind in ("flare", "sunburst")),
        )
    ),
    *(
        (f"google/{name}", f"/google/v1beta/models/{name}:generateContent", GOOGLE_AUTH, CONTENT)
        for name in ("gemini-nano-banana-2.1", "gemini-3-pro-image")
    ),
    (IMAGINE_2, XAI_PATH, XAI_AUTH, {"model": "grok-imagine-image-2.0", "prompt": "un faro"}),
    (FLUX_2, "/fal/run/fal-ai/flux-2-pro", FAL_AUTH, {"prompt": "un faro"}),
]
EVERY_WAY = [
    *SUCCESSOR_WAYS,
    *(OPENAI_WAY, DALL_E_WAY, GOOGLE_WAY, XAI_WAY, IMAGINE_WAY),
    *(FAL_WAY, ULTRA_WAY, RECRAFT_WAY, IDEOGRAM_WAY, SD_WAY),
    *(RECRAFT_4_WAY, RECRAFT_PRO_WAY, IDEOGRAM_4_WAY),
]


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
        """Count images on the providers' bills."""
        assert all(job["billed"] == (job["images_billed"] > 0) for job in self.jobs())
        return sum(job["images_billed"] for job in self.jobs())

    def delivered(self) -> int:
        """Count good pictures, whether or not their client was still there."""
        return sum(job["images_delivered"] for job in self.jobs())

    def post(self, way: Way, **order: Any) -> httpx2.Response:
        _, path, auth, body = way
        return self.http.post(self.url + path, headers=auth, json=body | order)

    def forget(self) -> None:
        """Forget everything that happened or was planned."""
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
        """Wait for the job's end; returns its final status."""
        reply = eventually(lambda: (r := self.get(ticket["status_url"])).status_code == 200 and r)
        status: dict[str, Any] = reply.json()
        assert status["status"] == "COMPLETED"
        return status


def eventually(condition: Callable[[], Any], within_s: float = 10) -> Any:
    """Wait until `condition()` is true, and return it; fail after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
    return value


class Running:
    """`serve` in its own thread, until stopped."""

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
    """Run a simulator that answers at once, over HTTP and over TLS."""
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


def opened(data: bytes) -> Image.Image:
    """Decode the picture to its last pixel."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


def images(reply: httpx2.Response) -> list[bytes]:
    return [base64.b64decode(item["b64_json"], validate=True) for item in reply.json()["data"]]


def ask(simulator: Simulator, way: Way) -> socket.socket:
    """Open a raw connection and send the request."""
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


def fal_environment(simulator: Simulator) -> dict[str, str]:
    """Environment in which fal's official client takes the simulator for fal, over TLS."""
    return {
        **os.environ,
        "FAL_KEY": "id-0123:secret-456789",
        "FAL_RUN_HOST": f"localhost:{simulator.tls_port}/fal/run",
        "FAL_QUEUE_RUN_HOST": f"localhost:{simulator.tls_port}/fal/queue",
        "SSL_CERT_FILE": str(simulator.ca),
    }
