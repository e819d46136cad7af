"""All nine models over the whole system: price, reply, store and event; what an operator's own catalogue changes."""

import asyncio
import base64
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import openai
import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

import config
from bench.processes import resident_bytes
from config.catalogue import read_catalogue
from tests.conftest import LOOPBACK, run
from tests.e2e.conftest import Prepared
from tests.e2e.test_memory import IMAGE_BYTES, IN_FLIGHT, MAX_PER_IMAGE_BYTES
from tests.kits.ports import free_port
from tests.kits.processes import executed
from tests.kits.system import FLUX, GPT, NINE, SUCCESSORS, System, assert_no_key, bearer, prepare, wait_until
from tests.long import LONG

GROK, IMAGINE = "xai/grok-2-image", "xai/grok-imagine-image"
IMAGEN, DALL_E, IDEOGRAM, ULTRA = "google/imagen-4", "openai/dall-e-3", "fal/ideogram-v2", "fal/flux-1.1-pro-ultra"
MXN = {
    GPT: "3.99",
    DALL_E: "0.84",
    IMAGEN: "0.84",
    GROK: "1.47",
    FLUX: "0.84",
    ULTRA: "1.26",
    "fal/recraft-v3": "0.84",
    IDEOGRAM: "1.68",
    "fal/sd-3.5-large": "1.365",
}
"""The published USD per image × 1.05 × 20."""

CATALOGUE = read_catalogue(None).models
ENDING = {
    GPT: ("2026-10-23", "openai/gpt-image-2", "Fri, 23 Oct 2026 00:00:00 GMT", "@1792713600"),
    DALL_E: ("2026-05-12", "openai/gpt-image-2", "Tue, 12 May 2026 00:00:00 GMT", "@1778544000"),
    IMAGEN: ("2026-08-17", "google/gemini-nano-banana-2.1", "Mon, 17 Aug 2026 00:00:00 GMT", "@1786924800"),
    GROK: ("2026-02-28", IMAGINE, "Sat, 28 Feb 2026 00:00:00 GMT", "@1772236800"),
}
PROMPT = "Un axolotl en Xochimilco"


@contextmanager
def running() -> Iterator[System]:
    """A system of this module's own, not yet started."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        system = prepare(Path(folder))
        yield system
        system.stop_all()
        assert_no_key(system.keys, system.folder)


# --- the nine, as they ship ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("model", sorted(NINE))
def test_every_model_by_the_official_client(system: System, model: str, n: int) -> None:
    """n stored pictures for n published prices, one event that names the upstream's model, and what the reply tells."""
    org_id, key = system.customer(f"sdk {model.replace('/', '.')} {n}", "50.00")
    with openai.OpenAI(base_url=system.url, api_key=key, max_retries=0) as client:
        raw = client.images.with_raw_response.generate(model=model, prompt=PROMPT, n=n)
    reply, body = raw.parse(), orjson.loads(raw.content)
    cost = Decimal(MXN[model]) * n
    assert Decimal(raw.headers["x-geekhub-cost-mxn"]) == cost
    assert Decimal(raw.headers["x-geekhub-balance-mxn"]) == 50 - cost
    assert reply.data is not None and len(reply.data) == n
    paths = [str(item.url).split("/generated-images/")[1] for item in reply.data]

    (event,) = system.events(org_id, 1)
    assert (event.end, event.quantity, Decimal(event.amount_micro_mxn)) == ("charge", n, cost * 1_000_000)
    assert (event.opened.model, event.opened.upstream) == (model, CATALOGUE[model].upstream)
    assert event.opened.provider == model.partition("/")[0]
    assert [image.path for image in event.images] == paths and len(set(paths)) == n
    assert {path for path in system.images() if path.startswith(org_id)} == set(paths)
    for image, item in zip(event.images, reply.data, strict=True):
        picture = httpx2.get(str(item.url), **LOOPBACK)
        assert (picture.status_code, len(picture.content)) == (200, image.size_bytes)
        assert picture.headers["content-type"] == image.content_type

    assert body["model"] == model
    assert body["served_model"] == ("grok-2-image-1212" if model == GROK else CATALOGUE[model].upstream)
    revised = {
        DALL_E: f"A vivid picture, told in more detail: {PROMPT}",
        GROK: f"A picture, told in more detail: {PROMPT}",
    }
    assert {item.revised_prompt for item in reply.data} == {revised.get(model)}
    if model in ENDING:
        day, successor, sunset, deprecation = ENDING[model]
        assert (raw.headers["sunset"], raw.headers["deprecation"]) == (sunset, deprecation)
        assert raw.headers["link"] == f'</v1/models/{successor}>; rel="successor-version"'
        assert any('"model_at_its_end"' in line and model in line and day in line for line in system.log().splitlines())
    else:
        assert not {"sunset", "deprecation", "link"} & set(raw.headers)


def test_what_the_upstream_says_of_its_reply_passes_through(system: System) -> None:
    """gpt-image-1's usage, size, quality, background and format, if one call made all; xAI's cost is no usage."""
    _, key = system.customer("echo", "50.00")
    options: dict[str, Any] = {"size": "1536x1024", "quality": "low", "output_format": "webp", "background": "opaque"}
    body = order(system, key, GPT, n=2, **options).json()
    assert {name: body[name] for name in options} == options
    assert (body["usage"]["output_tokens"], body["usage"]["input_tokens"]) == (2 * 408, 1)
    assert all(item["url"].endswith(".webp") for item in body["data"])
    for model in (DALL_E, FLUX):
        assert "usage" not in order(system, key, model).json()


@pytest.mark.parametrize("model", sorted(NINE))
def test_base64_is_the_stored_file_to_the_bit(system: System, model: str) -> None:
    """The exact length is announced, and the facts are the same as by URL."""
    org_id, key = system.customer(f"b64 {model.replace('/', '.')}", "50.00")
    reply = order(system, key, model, n=3, response_format="b64_json")
    body = reply.json()
    assert reply.headers["content-length"] == str(len(reply.content))
    assert reply.headers["content-type"] == "application/json"
    assert Decimal(reply.headers["x-geekhub-cost-mxn"]) == 3 * Decimal(MXN[model])
    (event,) = system.events(org_id, 1)
    files = [(system.folder / "images" / image.path).read_bytes() for image in event.images]
    assert [base64.b64decode(item["b64_json"], validate=True) for item in body["data"]] == files
    assert len(files) == 3 and not any("url" in item for item in body["data"])
    assert body["id"].removeprefix("req_") == event.event_id.replace("-", "")


@pytest.mark.parametrize("model", [FLUX, GPT] if LONG else [FLUX])  # a reply reads the store, whatever filled it
def test_base64_of_8_mb_costs_less_than_1_mib_of_memory(prepared: Prepared, model: str) -> None:
    """The peak of resident memory over 16 replies at once, against the same gateway warm: they come from the store."""
    system = prepared()
    system.begin = executed  # with memory that it shares with nobody
    system.start_all()
    _, key = system.customer("memory", "500.00")
    system.behave(model, "ok", None, bytes=IMAGE_BYTES, same=True)

    async def one(client: httpx2.AsyncClient) -> None:
        body = {"model": model, "prompt": "x", "response_format": "b64_json"}
        async with client.stream("POST", "/images/generations", json=body) as reply:
            assert reply.status_code == 200
            length = 0
            async for chunk in reply.aiter_raw():
                length += len(chunk)
        assert str(length) == reply.headers["content-length"] and length > IMAGE_BYTES * 4 // 3

    async def storm() -> None:
        async with system.client(key) as client:
            await asyncio.gather(*(one(client) for _ in range(IN_FLIGHT)))

    run(storm())  # connections, threads and caches are there once
    pid = system.processes["gateway"].pid
    before = resident_bytes(pid, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    run(storm())
    grown = resident_bytes(pid, "VmHWM") - before
    print(f"{model}: {grown / IN_FLIGHT / 1024:.0f} KiB for each image in flight")
    assert grown / IN_FLIGHT < MAX_PER_IMAGE_BYTES


def test_the_list_of_models_says_which_end_and_what_follows(system: System) -> None:
    """Four of the nine have a day to end; the prices are the published ones."""
    _, key = system.customer("lister", "1.00")
    with httpx2.Client(base_url=system.url, headers=bearer(key), **LOOPBACK) as client:
        models = {model["id"]: model for model in client.get("/models").json()["data"]}
    assert set(models) == NINE | SUCCESSORS
    fixed = {name: model["price"] for name, model in models.items() if not model["price"]["at_most"]}
    successors = {"fal/recraft-v4.1": "0.84", "fal/recraft-v4.1-pro": "5.25", "fal/ideogram-v4": "0.63"}
    assert {name: price["mxn_per_image"] for name, price in fixed.items()} == MXN | successors
    assert {name: (model["shutdown_date"], model["successor"]) for name, model in models.items()} == {
        name: ENDING[name][:2] if name in ENDING else (None, None) for name in NINE | SUCCESSORS
    }
    assert {name for name, model in models.items() if model["status"] == "retired"} == set(ENDING)
    assert {model["status"] for model in models.values()} == {"retired", "live"}


def test_a_model_that_its_upstream_has_shut_down_is_404_and_not_asked_for_again(prepared: Prepared) -> None:
    """Each provider in its own words; the next order opens no hold, writes no event and reaches no upstream."""
    system = prepared()
    system.start_all()
    for model in sorted(NINE):
        org_id, key = system.customer(f"retired {model.replace('/', '.')}", "50.00")
        system.behave(model, "retired", times=5)
        reply = order(system, key, model, status=404)
        error = reply.json()["error"]
        assert (error["code"], error["param"], reply.headers["x-should-retry"]) == ("model_not_found", "model", "false")
        assert (ENDING[model][1] if model in ENDING else "GET /v1/models") in error["message"]
        (event,) = system.events(org_id, 1)
        assert (event.end, event.reason, event.amount_micro_mxn) == ("void", "retired", 0)
        left = pending(system, model)
        again = order(system, key, model, n=8, status=404)
        assert again.json()["error"]["message"] == error["message"]
        assert pending(system, model) == left == 4 and system.jobs(model) == []
        assert system.cut(org_id).number == 1
        system.events(org_id, 1)
    assert system.log().count('"model_retired_upstream"') == len(NINE)


def test_xai_says_in_two_ways_that_a_model_is_gone(prepared: Prepared) -> None:
    """400 `Model not found` as well as the 500 with prose: neither is a fault to try again."""
    system = prepared()
    system.start_all()
    _, key = system.customer("grok", "50.00")
    system.behave(GROK, "retired_400")
    assert IMAGINE in order(system, key, GROK, status=404).json()["error"]["message"]
    assert pending(system, GROK) == 0 and system.jobs(GROK) == []


# --- an operator's own catalogue -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operated:
    """A system with a catalogue file of its own, and the URL of a second simulator that a model is mapped on to."""

    system: System
    elsewhere: str


CAPPED_TABLE = """
[models."xai/capped"]
name = "Grok Imagine"
provider = "xai"
upstream = "grok-imagine-image"
images_per_call = 8
most_usd_per_image = "0.01"
created = 2026-01-28
sizes = { "1024x1024" = "1:1", "1792x1024" = "16:9" }
"""
TOKENS = (
    'usd_per_million_tokens = {{ text_input = "5", image_output = "40", most_input_tokens = 1000,'
    ' most_output_tokens = {{ "low/1024x1024" = {low}, "*/*" = 6240 }} }}'
)


def changed(text: str, model: str, **lines: str) -> str:
    """A catalogue's text with some lines of a model's table replaced, added, or (empty) taken out."""
    head, start, rest = text.partition(f'[models."{model}"]\n')
    assert start
    own, following, tail = rest.partition("\n\n")
    for name, line in lines.items():
        own, count = re.subn(rf"(?m)^{name} = .*$", line, own)
        own = own if count else f"{line}\n{own}"
    return head + start + own + following + tail


@pytest.fixture(scope="module")
def operated() -> Iterator[Operated]:
    """The shipped catalogue with some lines of it changed, and some tables added."""
    with running() as system:
        port = free_port()
        elsewhere = f"http://127.0.0.1:{port}"
        text = (Path(config.__file__).parent / "models.toml").read_text()
        # One line each maps an id on to another address, and another one on to another model there.
        text = changed(text, GROK, upstream='upstream = "grok-imagine-image"', url=f'url = "{elsewhere}/xai/v1"')
        text = changed(text, FLUX, upstream='upstream = "fal-ai/flux-pro/v1.1-ultra"')
        text = changed(text, DALL_E, url=f'url = "{elsewhere}/openai/v1"')
        text = changed(text, IMAGEN, url=f'url = "{elsewhere}/google/v1beta/models"')
        text = changed(text, IDEOGRAM, usd_per_image="")
        text = changed(text, GPT, usd_per_image=TOKENS.format(low=272))
        capped = text[text.index(f'[models."{GPT}"]') : text.index(f'[models."{DALL_E}"]')]
        text += "\n" + capped.replace(GPT, "openai/capped").replace('"low/1024x1024" = 272', '"low/1024x1024" = 100')
        text = changed(text, IMAGINE, most_usd_per_image='most_usd_per_image = "0.05"')
        text += CAPPED_TABLE
        path = system.folder / "models.toml"
        path.write_text(text)
        system.environment["GHUB_MODELS"] = str(path)
        system.start_all()
        system.start("elsewhere", "simulate", "--port", str(port), "--latency-scale", "0")

        def answers() -> bool:
            try:
                return httpx2.get(f"{elsewhere}/_sim/jobs", **LOOPBACK).status_code == 200
            except httpx2.TransportError:
                return False

        wait_until(answers, "the second simulator is ready")
        yield Operated(system, elsewhere)
        checked = system.ghub("verify", "--json")
        assert json.loads(checked.stdout) == {"ok": True, "differences": []}, checked.stdout


@pytest.mark.parametrize(
    ("model", "served_as", "served"),
    [
        (GROK, IMAGINE, "grok-imagine-image"),
        (DALL_E, DALL_E, "dall-e-3"),
        (IMAGEN, IMAGEN, "imagen-4.0-generate-001"),
    ],
)
def test_a_line_maps_a_model_on_to_another_address(operated: Operated, model: str, served_as: str, served: str) -> None:
    """Served there and not at the provider's own address, at the price that the catalogue says; the reply names it."""
    system = operated.system
    org_id, key = system.customer(f"mapped {model.replace('/', '.')}", "50.00")
    reply = order(system, key, model)
    assert (reply.json()["model"], reply.json()["served_model"]) == (model, served)
    assert reply.headers["x-geekhub-cost-mxn"] == MXN[model]
    (event,) = system.events(org_id, 1)
    assert (event.opened.model, event.opened.upstream) == (model, served)
    there = httpx2.get(f"{operated.elsewhere}/_sim/jobs", params={"model": served_as}, **LOOPBACK).json()
    assert len(there) == 1 and system.jobs(model) == []


def test_a_line_maps_a_model_on_to_another_upstream_model(operated: Operated) -> None:
    """Flux 1.1 Pro made by Ultra: reply and event name it, the price stays."""
    system = operated.system
    org_id, key = system.customer("mapped flux", "50.00")
    before = len(system.jobs(ULTRA))
    reply = order(system, key, FLUX)
    assert reply.json()["served_model"] == "fal-ai/flux-pro/v1.1-ultra"
    assert reply.headers["x-geekhub-cost-mxn"] == "0.84"
    (event,) = system.events(org_id, 1)
    assert event.opened.upstream == "fal-ai/flux-pro/v1.1-ultra"
    assert len(system.jobs(ULTRA)) == before + 1 and system.jobs(FLUX) == []


def test_a_model_without_a_price_is_refused(operated: Operated) -> None:
    """404 before any hold, and not on the list."""
    system = operated.system
    org_id, key = system.customer("unpriced", "50.00")
    error = order(system, key, IDEOGRAM, status=404).json()["error"]
    assert error["code"] == "model_not_found" and "no price" in error["message"]
    with httpx2.Client(base_url=system.url, headers=bearer(key), **LOOPBACK) as client:
        assert IDEOGRAM not in {model["id"] for model in client.get("/models").json()["data"]}
        assert client.get(f"/models/{IDEOGRAM}").status_code == 404
    assert system.cut(org_id).number == 0 and system.jobs(IDEOGRAM) == []


@pytest.mark.parametrize(
    ("model", "scenario", "n", "mxn", "usd"),
    [
        (IMAGINE, "ok", 1, "0.42", "0.02"),
        (IMAGINE, "ok", 8, "3.36", "0.16"),
        (IMAGINE, "served_by_another", 2, "1.68", "0.08"),
        (IMAGINE, "moderated_items", 3, "0.84", "0.04"),
        ("xai/capped", "ok", 2, "0.42", "0.04"),
    ],
)
def test_the_providers_own_cost_is_charged_up_to_the_quote(
    operated: Operated, model: str, scenario: str, n: int, mxn: str, usd: str
) -> None:
    """xAI reports ticks of a dollar: times markup and FX, never above the list price; our loss is in the log."""
    system = operated.system
    org_id, key = system.customer(f"ticks {model.replace('/', '.')} {scenario} {n}", "50.00")
    system.behave(IMAGINE, scenario)
    reply = order(system, key, model, n=n, size="1792x1024")
    (event,) = system.events(org_id, 1)
    assert (reply.headers["x-geekhub-cost-mxn"], event.usd_measured and Decimal(event.usd_measured)) == (
        mxn,
        Decimal(usd),
    )
    assert event.amount_micro_mxn == int(Decimal(mxn) * 1_000_000)
    assert event.quantity == len(reply.json()["data"]) == n - (scenario == "moderated_items")
    assert reply.json()["served_model"] == (
        "grok-imagine-image-2.0" if scenario == "served_by_another" else "grok-imagine-image"
    )
    assert system.cut(org_id).available_micro_mxn == 50_000_000 - event.amount_micro_mxn
    request_id = event.opened.request_id
    above = [line for line in system.log().splitlines() if '"cost_above_quote"' in line and request_id in line]
    assert bool(above) == (model == "xai/capped")


def test_tokens_are_charged_as_used_up_to_the_quote(operated: Operated) -> None:
    """40 characters are 10 tokens at 5 USD a million, an image of low quality 272 at 40; the cap is 100 of them."""
    system = operated.system
    for model, usd in ((GPT, "0.01093"), ("openai/capped", "0.009")):
        org_id, key = system.customer(f"tokens {model.replace('/', '.')}", "50.00")
        reply = order(system, key, model, prompt="x" * 40, quality="low")
        (event,) = system.events(org_id, 1)
        mxn = Decimal(usd) * Decimal("1.05") * 20
        assert (Decimal(reply.headers["x-geekhub-cost-mxn"]), event.usd_measured) == (mxn, "0.01093")
        assert event.opened.proof.variant == "low/1024x1024"
        assert system.cut(org_id).available_micro_mxn == 50_000_000 - event.amount_micro_mxn
    with httpx2.Client(base_url=system.url, headers=bearer(key), **LOOPBACK) as client:
        price = client.get("/models/openai/capped").json()["prices"]["low/1024x1024"]
    assert (price["usd_per_image"], price["mxn_per_image"]) == ("0.009", "0.189")


# --- Google by service account ---------------------------------------------------------------------------------------


def test_imagen_over_vertex_with_a_service_account(prepared: Prepared) -> None:
    """One token for many orders at once, another one before it ends, and neither token nor private key in any log."""
    system = prepared()
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    email = "images@geekhub.iam.gserviceaccount.com"
    file = system.folder / "account.json"
    token_uri = f"{system.simulator}/vertex/token"
    account = {"client_email": email, "token_uri": token_uri, "private_key": pem, "project_id": "geekhub"}
    file.write_text(json.dumps({"type": "service_account", **account}))
    system.environment |= {
        "GHUB_GOOGLE_SERVICE_ACCOUNT": str(file),
        "GHUB_GOOGLE_URL": f"{system.simulator}/vertex/v1",
        "GHUB_GOOGLE_LOCATION": "europe-west4",
    }
    system.start_all()
    org_id, key = system.customer("vertex", "50.00")

    def register(lifetime_s: float) -> None:
        known = {"client_email": email, "public_key": public.decode(), "lifetime_s": lifetime_s}
        assert httpx2.put(f"{system.simulator}/_sim/vertex", json=known, **LOOPBACK).status_code == 200

    def granted() -> int:
        state = httpx2.get(f"{system.simulator}/_sim/vertex", **LOOPBACK).json()
        assert state["token_requests"] == state["tokens_granted"]
        return int(state["tokens_granted"])

    async def many(count: int) -> None:
        async with system.client(key) as client:
            body = {"model": IMAGEN, "prompt": "x", "n": 5}
            replies = await asyncio.gather(*(client.post("/images/generations", json=body) for _ in range(count)))
        assert [(reply.status_code, len(reply.json()["data"])) for reply in replies] == [(200, 5)] * count

    register(1.0)
    run(many(3))
    first = granted()
    assert first >= 1
    wait_until(lambda: order(system, key, IMAGEN).status_code == 200 and granted() > first, "the token is renewed")
    assert {job["upstream_path"] for job in system.jobs(IMAGEN)} == {
        "/vertex/v1/projects/geekhub/locations/europe-west4/publishers/google/models/imagen-4.0-generate-001:predict"
    }
    system.stop("gateway")
    register(3600.0)
    system.start_gateway()
    run(many(4))
    assert granted() == 1
    log = system.log() + system.log("consumer")
    assert "ya29." not in log and "PRIVATE KEY" not in log and email not in log
    events = system.events(org_id, system.cut(org_id).number)
    assert {(event.end, event.reason) for event in events} == {("charge", "delivered")}


def pending(system: System, model: str) -> int:
    """For how many requests to a model the simulator still has something planned."""
    behaviour = httpx2.get(f"{system.simulator}/_sim/behaviour", **LOOPBACK).json()
    return sum(play["times"] for play in behaviour["models"][model]["pending"])


def order(system: System, key: str, model: str, *, status: int = 200, **fields: Any) -> httpx2.Response:
    """One order, no retry, with the status that it must have."""
    body = {"model": model, "prompt": "x", **fields}
    url = f"{system.url}/images/generations"
    reply = httpx2.post(url, headers=bearer(key), json=body, **LOOPBACK, timeout=90)
    assert reply.status_code == status, reply.text
    system.bodies.append(reply.content[:4096])
    return reply
