"""The recipe "a provider" of docs/development.md, followed in a copy of the tree with one that does not exist."""

import sys
from pathlib import Path

from tests.kits.tree import Tree
from tests.long import long

ADAPTER = '''\
"""Luz: OpenAI's shape, one picture a call."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import httpx2

from config.settings import RESULT_DOCUMENT_BYTES, Settings
from proxy.media.inline import JsonPictures
from proxy.outbound.clients import Outbound
from proxy.outcomes import Failure, Outcome
from proxy.ports import Call, Picture, Provider
from proxy.upstream import by_status, post_for_pictures, rest_of

NAME = "luz"


class Luz:
    """The adapter."""

    def __init__(self, client: httpx2.AsyncClient, url: str, key: str) -> None:
        self._client = client
        self._url = url
        self._headers = {"authorization": f"Bearer {key}"}

    async def generate(self, call: Call) -> AsyncGenerator[Picture]:
        """Make the call's picture. Raises Failure."""
        body = {"model": call.order.model.upstream, "prompt": call.order.prompt, **call.order.fields}
        document = JsonPictures("data", "b64_json", RESULT_DOCUMENT_BYTES)
        url, headers = f"{self._url}/images", self._headers
        pictures = post_for_pictures(self._client, url, headers, body, call, document, _refusal)
        async with aclosing(pictures):
            async for picture in pictures:
                yield picture
        rest_of(document)


def _refusal(response: httpx2.Response, body: bytes) -> Failure:
    return Failure(Outcome.CONTENT_POLICY) if response.status_code == 422 else by_status(response)


def from_settings(settings: Settings, outbound: Outbound) -> Provider | None:
    """The adapter; None if its key is not set."""
    if settings.luz_key is None:
        return None
    return Luz(outbound.client, settings.luz_url, settings.luz_key.get_secret_value())
'''

SIMULATOR = '''\
"""Luz: POST /luz/v1/images, one picture a call."""

import asyncio
from uuid import uuid4

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from simulator import inline
from simulator.answers import Streamed, json_answer, spoil
from simulator.client import Client
from simulator.jobs import Job
from simulator.world import World

NAME = "luz"
ADDRESSES = {"url": "/luz/v1"}
MODEL = "luz/faro-1"
SCENARIOS = {MODEL: {"refused_422": "The prompt is refused. Not billed.", **inline.SCENARIOS}}
LATENCY_S = {MODEL: (4.0, 9.0)}  # P50 and P95


def routes(world: World) -> list[Route]:
    async def generate(request: Request) -> ASGIApp:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        fields = orjson.loads(await request.body())
        if not key or fields.get("model") != "faro-1":
            return Response(status_code=401 if not key else 404)
        play = world.behaviour.next(MODEL)
        job = world.jobs.accept(Job(NAME, MODEL, request.url.path, str(uuid4()), 1))
        Client.of(request.scope).on_leave(job.lose_client)
        await asyncio.sleep(world.work_s(MODEL, play))
        if play.scenario == "refused_422":
            job.fail()
            return json_answer({"error": "refused"}, 422)
        picture = world.picture(
            play,
            model=MODEL,
            prompt=fields["prompt"],
            width=1024,
            height=1024,
            format="png",
            index=0,
            seed=world.seed,
        )
        encoded = await inline.encoded(world, play, play.strikes(0, 1), picture)
        job.finish(1)
        body = [b'{"data":[{"b64_json":"', encoded, b'"}]}']
        return spoil(play.scenario, Streamed(body, {"content-type": "application/json"}), key)

    return [Route("/luz/v1/images", generate, methods=["POST"])]
'''

MODELS = """\

# --- Luz -------------------------------------------------------------------------------------------------------------

[models."luz/faro-1"]
name = "Faro 1"
provider = "luz"
upstream = "faro-1"
images_per_call = 1
usd_per_image = "0.02"
created = 2026-11-01
sizes = { "1024x1024" = "1024x1024" }
"""

TEST = '''\
"""The fifth provider, by a customer's order."""

import io

import httpx2
from PIL import Image

from tests.conftest import LOOPBACK
from tests.kits.system import System, bearer

LUZ = "luz/faro-1"


def test_an_order_is_made_stored_and_charged_and_a_refused_one_costs_nothing(system: System) -> None:
    """0.02 USD x 1.05 x 20 = 0.42 MXN an image."""
    org_id, key = system.customer("luz", "2.00")
    with httpx2.Client(headers=bearer(key), timeout=60, **LOOPBACK) as client:
        url = f"{system.url}/images/generations"
        reply = client.post(url, json={"model": LUZ, "prompt": "un faro", "n": 2})
        assert (reply.status_code, reply.headers["x-geekhub-cost-mxn"]) == (200, "0.84")
        for item in reply.json()["data"]:
            with Image.open(io.BytesIO(httpx2.get(item["url"], **LOOPBACK).content)) as image:
                assert (image.format, image.size) == ("PNG", (1024, 1024))
        system.behave(LUZ, "refused_422")
        refused = client.post(url, json={"model": LUZ, "prompt": "un faro", "n": 1})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "content_policy_violation")
    charged, void = system.events(org_id, 2)
    assert (charged.amount_micro_mxn, void.amount_micro_mxn) == (840_000, 0)
'''

SECRET = """\
            - name: GHUB_LUZ_KEY
              valueFrom:
                secretKeyRef:
                  name: gateway-secrets
                  key: GHUB_LUZ_KEY
                  optional: true
            - name: GHUB_JWT_SECRET
"""


@long
def test_a_provider_is_two_new_files_and_a_line_in_each_list(tmp_path: Path) -> None:
    """Adapter and simulator; its place in both programs, its settings, its models; what the operator reads and sets."""
    tree = Tree(tmp_path / "tree")
    tree.add("proxy/providers/luz.py", ADAPTER)
    tree.edit(
        "proxy/wiring.py",
        (
            "from proxy.providers import fal, google, openai, xai",
            "from proxy.providers import fal, google, luz, openai, xai",
        ),
        ("PROVIDERS = (openai, google, xai, fal)", "PROVIDERS = (openai, google, xai, fal, luz)"),
    )
    tree.edit(
        "config/settings.py",
        (
            "    image_hosts: str =",
            '    luz_url: HttpAddress = "https://api.luz.example/v1"\n'
            "    luz_key: SecretStr | None = None\n"
            "    image_hosts: str =",
        ),
        ("self.google_service_account)\n", "self.google_service_account, self.luz_key)\n"),
    )
    models = (tree.root / "config/models.toml").read_text(encoding="utf-8")
    tree.edit("config/models.toml", (models[-200:], models[-200:] + MODELS))
    tree.add("simulator/luz.py", SIMULATOR)
    tree.edit(
        "simulator/app.py",
        (
            "import behaviour, control, fal, google, openai, xai",
            "import behaviour, control, fal, google, luz, openai, xai",
        ),
        ("PROVIDERS = (openai, google, xai, fal)", "PROVIDERS = (openai, google, xai, fal, luz)"),
    )
    tree.edit("k8s/base/gateway.yaml", ("            - name: GHUB_JWT_SECRET\n", SECRET))
    tree.edit(
        "k8s/chart/templates/gateway.yaml",
        ('                "GHUB_JWT_SECRET"\n', '                "GHUB_LUZ_KEY"\n                "GHUB_JWT_SECRET"\n'),
    )
    tree.edit(
        "k8s/chart/values.schema.json",
        ('"GHUB_JWT_SECRET",\n', '"GHUB_LUZ_KEY",\n                    "GHUB_JWT_SECRET",\n'),
    )
    tree.edit(
        "k8s/README.md",
        ("| `GHUB_GOOGLE_KEY` |", "| `GHUB_LUZ_KEY` | gateway | optional |\n| `GHUB_GOOGLE_KEY` |"),
        ("| `GHUB_OPENAI_URL`, ", "| `GHUB_OPENAI_URL`, `GHUB_LUZ_URL`, "),
    )
    tree.edit(
        "docs/operations.md",
        (
            "| `GHUB_IMAGE_HOSTS` |",
            "| `GHUB_LUZ_URL`, `GHUB_LUZ_KEY` | `https://api.luz.example/v1` | |\n| `GHUB_IMAGE_HOSTS` |",
        ),
    )
    tree.add("tests/e2e/test_luz.py", TEST)
    tree.run(sys.executable, "-m", "docs.map")
    assert tree.changed() == [
        "config/models.toml",
        "config/settings.py",
        "docs/map.md",
        "docs/operations.md",
        "k8s/README.md",
        "k8s/base/gateway.yaml",
        "k8s/chart/templates/gateway.yaml",
        "k8s/chart/values.schema.json",
        "proxy/providers/luz.py",
        "proxy/wiring.py",
        "simulator/app.py",
        "simulator/luz.py",
        "tests/e2e/test_luz.py",
    ]
    tree.lint()
    tree.tests(
        "tests/e2e/test_luz.py",
        "tests/unit/test_docs.py",
        "tests/unit/test_settings.py",
        "tests/integration/test_k8s.py",
        "tests/integration/test_k8s_chart.py",
    )
