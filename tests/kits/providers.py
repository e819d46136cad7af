"""All models over real HTTP: the simulator in this loop, the adapters with their keys, a store, sent requests."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx2
import orjson
from PIL import Image

from config.catalogue import Catalogue, demo_models, models_file
from proxy.orders import calls as making
from proxy.orders.calls import Progress, UpstreamCalls
from proxy.orders.circuits import Circuits
from proxy.orders.order import parse_order
from proxy.orders.routes import Routes
from proxy.outbound.clients import Outbound, Request
from proxy.outbound.hosts import ImageHosts
from proxy.outcomes import worst
from proxy.ports import Order, Provider
from proxy.providers import fal
from proxy.providers.fal import Fal
from proxy.providers.google import ApiKey, Google
from proxy.providers.openai import OpenAI
from proxy.providers.xai import XAI
from proxy.storage.local import LocalStore
from simulator.server import serve
from tests.conftest import TRUST
from tests.kits.orders import uploader

CATALOGUE = models_file(None).parse(Catalogue, demo_models())
KEY = "provider-secret"
DOCUMENT_BYTES = 256 * 1024

GPT, DALL_E, IMAGEN, GROK = "openai/gpt-image-1", "openai/dall-e-3", "google/imagen-4", "xai/grok-2-image"
FLUX, ULTRA, RECRAFT = "fal/flux-1.1-pro", "fal/flux-1.1-pro-ultra", "fal/recraft-v3"
IDEOGRAM, SD = "fal/ideogram-v2", "fal/sd-3.5-large"
NINE = (GPT, DALL_E, IMAGEN, GROK, FLUX, ULTRA, RECRAFT, IDEOGRAM, SD)
FAL = (FLUX, ULTRA, RECRAFT, IDEOGRAM, SD)
GPT_2, FLARE = "openai/gpt-image-2", "openai/gpt-image-2.6-flare"
BANANA, PRO = "google/gemini-nano-banana-2.1", "google/gemini-3-pro-image"
IMAGINE, IMAGINE_2, FLUX_2 = "xai/grok-imagine-image", "xai/grok-imagine-image-2.0", "fal/flux-2-pro"


def order(model: str, n: int = 1, **fields: Any) -> Order:
    """Make an order like a customer's request."""
    return parse_order(orjson.dumps({"model": model, "prompt": "un faro", "n": n, **fields}), CATALOGUE)


@dataclass
class Sent:
    """One request to a provider."""

    method: str
    url: str
    headers: httpx2.Headers
    body: Any


@dataclass
class Bench:
    """The simulator, the four adapters and a store. `sent` has every request to a provider, in order."""

    url: str
    outbound: Outbound
    root: Path
    providers: dict[str, Provider]
    control: httpx2.AsyncClient
    sent: list[Sent] = field(default_factory=list)
    orders_made: int = 0

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.root)

    async def behave(self, model: str, scenario: str, **more: Any) -> None:
        """Set the behaviour from now on; anything pending is forgotten."""
        await self.tell("DELETE", "behaviour")
        await self.tell("PUT", "behaviour", {"model": model, "scenario": scenario, "times": None, **more})

    async def in_turn(self, model: str, *scenarios: str, **more: Any) -> None:
        """Set the next requests' behaviour, one scenario each; `ok` after them."""
        await self.tell("DELETE", "behaviour")
        await self.tell("PUT", "behaviour", {"model": model, "sequence": list(scenarios), **more})

    async def jobs(self, model: str) -> list[dict[str, Any]]:
        """List the jobs that the provider accepted."""
        found: list[dict[str, Any]] = await self.tell("GET", f"jobs?model={model}")
        return found

    async def forget(self) -> None:
        """Forget everything sent and accepted."""
        await self.tell("DELETE", "jobs")
        self.sent.clear()

    async def tell(self, method: str, path: str, body: Any = None) -> Any:
        """Call the simulator's own API."""
        reply = await self.control.request(method, f"{self.url}/_sim/{path}", json=body)
        assert reply.status_code in (200, 204), reply.text
        return reply.json() if reply.content else None

    async def make(self, asked: Order, within_s: float = 30.0) -> Progress:
        """Make the order's pictures in the store, as far as they come."""
        progress = Progress()
        upstream_calls = UpstreamCalls(uploader(self.store), self.providers, Routes(Circuits(), self.providers))
        self.orders_made += 1  # each order has a folder of its own: a path is written once
        until_s = asyncio.get_running_loop().time() + within_s
        await upstream_calls.make(asked, f"org/{self.orders_made}", until_s, progress)
        await upstream_calls.remove(progress.take_refused())
        return progress

    def orders(self) -> list[Sent]:
        """List the requests for pictures."""
        return [one for one in self.sent if one.method == "POST" and "/token" not in one.url]

    def picture(self, progress: Progress, number: int) -> Image.Image:
        """Decode a stored picture to its last pixel."""
        image = Image.open(io.BytesIO((self.root / progress.stored[number].path).read_bytes()))
        image.load()
        return image


def end_of(progress: Progress) -> str:
    """The reason of what went wrong, if anything did."""
    return worst(progress.failures).outcome.reason if progress.failures else "delivered"


def adapters(outbound: Outbound, url: str, *, queue: bool = True) -> dict[str, Provider]:
    """All four against one base URL."""
    client = outbound.client
    queue_url = f"{url}/fal/queue" if queue else None
    return {
        "openai": OpenAI(client, f"{url}/openai/v1", KEY, DOCUMENT_BYTES),
        "google": Google(client, f"{url}/google/v1beta/models", ApiKey(KEY), DOCUMENT_BYTES),
        "xai": XAI(client, f"{url}/xai/v1", KEY, DOCUMENT_BYTES),
        "fal": Fal(outbound, url=f"{url}/fal/run", queue_url=queue_url, key=KEY, document_bytes=DOCUMENT_BYTES),
    }


@asynccontextmanager
async def upstream(url: str, root: Path, *, queue: bool = True) -> AsyncIterator[Bench]:
    """The adapters against whatever answers at `url`. They poll and pause in milliseconds."""
    outbound = Outbound(ImageHosts(url.partition("://")[2]), verify=TRUST)
    control = Outbound(ImageHosts(""), verify=TRUST)
    bench = Bench(url, outbound, root, adapters(outbound, url, queue=queue), control.client)

    async def recorded(request: Request, **options: Any) -> httpx2.Response:
        assert isinstance(request.body, bytes)
        is_json = request.headers.get("content-type") == "application/json"
        body = orjson.loads(request.body) if is_json and request.body else request.body
        url = f"{request.origin.scheme}://{request.headers['host']}{request.target.decode()}"
        bench.sent.append(Sent(request.method, url, httpx2.Headers(request.headers), body))
        return await send(request, **options)

    send = outbound.client.send
    with ExitStack() as patches:
        patches.enter_context(patch.object(outbound.client, "send", recorded))
        patches.enter_context(patch.object(fal, "FIRST_POLL_S", 0.004))
        patches.enter_context(patch.object(making, "FIRST_PAUSE_S", 0.01))
        try:
            yield bench
        finally:
            await outbound.aclose()
            await control.aclose()


@asynccontextmanager
async def simulated(root: Path, *, queue: bool = True) -> AsyncIterator[Bench]:
    """The adapters against the simulator, whose generations take no time."""
    shutdown, ports = asyncio.Event(), asyncio.Queue[int]()
    serving = asyncio.create_task(
        serve(
            host="127.0.0.1",
            port=0,
            latency_scale=0,
            shutdown=shutdown,
            started=lambda port, _: ports.put_nowait(port),
        )
    )
    try:
        async with upstream(f"http://127.0.0.1:{await ports.get()}", root, queue=queue) as bench:
            yield bench
    finally:
        shutdown.set()
        await serving
