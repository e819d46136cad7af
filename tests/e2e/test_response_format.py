"""Default form of images: the key's own default, with OpenAI's sample as it is published."""

import base64
import json

import httpx2
import openai
from PIL import Image

from metering.accounts import IssuedKey
from proxy.backends import Backends
from tests.conftest import LOOPBACK
from tests.kits.system import FLUX, GPT, System, bearer


def issued(system: System, org_id: str, *options: str) -> str:
    """A key by the command."""
    done = system.ghub("key", "create", org_id, "--name", "format", *options, "--json")
    assert done.returncode == 0, done.stderr
    key: str = json.loads(done.stdout)["key"]
    system.keys.append(key)
    return key


def test_openais_own_sample_finds_its_picture(system: System) -> None:
    """`data[0].b64_json` of a request without `response_format`, decoded and written to a file: live and test keys."""
    org_id, usual = system.customer("format of the sample", "50.00")
    for more in ((), ("--test",)):
        key = issued(system, org_id, "--response-format", "b64_json", *more)
        with openai.OpenAI(base_url=system.url, api_key=key, max_retries=0) as client:
            result = client.images.generate(model=GPT, prompt="A cute baby sea otter")
            assert result.data is not None and result.data[0].b64_json is not None
            file = system.folder / "otter.png"
            file.write_bytes(base64.b64decode(result.data[0].b64_json))
            with Image.open(file) as image:
                image.load()
            explicit = client.images.generate(model=GPT, prompt="A cute baby sea otter", response_format="url")
            assert explicit.data is not None and (explicit.data[0].url or "").startswith("http")
            assert explicit.data[0].b64_json is None
    with openai.OpenAI(base_url=system.url, api_key=usual, max_retries=0) as client:
        default = client.images.generate(model=GPT, prompt="A cute baby sea otter")
        asked = client.images.generate(model=GPT, prompt="A cute baby sea otter", response_format="b64_json")
    assert default.data is not None and default.data[0].url and default.data[0].b64_json is None
    assert asked.data is not None and asked.data[0].b64_json and asked.data[0].url is None


def test_what_counts_for_a_repeated_order_is_how_its_images_come(system: System) -> None:
    """A given and an implied format are the same order if they mean the same: replayed. Otherwise it is 422."""
    org_id, usual = system.customer("format of a repeated order", "50.00")
    inline = issued(system, org_id, "--response-format", "b64_json")
    body = {"model": FLUX, "prompt": "Un faro"}

    def post(key: str, idempotency_key: str, **more: str) -> httpx2.Response:
        headers = {**bearer(key), "idempotency-key": idempotency_key}
        return httpx2.post(
            f"{system.url}/images/generations", json={**body, **more}, headers=headers, timeout=60, **LOOPBACK
        )

    first = post(inline, "a")
    assert "b64_json" in first.json()["data"][0]
    for key, more in ((inline, {"response_format": "b64_json"}), (usual, {"response_format": "b64_json"})):
        again = post(key, "a", **more)
        assert (again.headers["idempotent-replayed"], again.content) == ("true", first.content)
    for key, more in ((inline, {"response_format": "url"}), (usual, {})):
        assert post(key, "a", **more).status_code == 422
    assert len(system.events(org_id, 1)) == 1


def test_a_format_that_is_none_is_refused_by_command_and_over_http(system: System) -> None:
    """One clear sentence each, that names what there is."""
    org_id, _ = system.customer("format refused")
    done = system.ghub("key", "create", org_id, "--name", "x", "--response-format", "png")
    assert done.returncode == 2 and "b64_json" in done.stderr

    async def made(back: Backends) -> IssuedKey:
        return await back.accounts.create_key(org_id, "rotates", response_format="b64_json")

    key = system.back(made)
    system.keys.append(key.secret)
    assert json.loads(system.ghub("key", "show", key.key_id, "--json").stdout)["response_format"] == "b64_json"
