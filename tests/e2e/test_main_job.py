"""The main job: the official SDK, a permanent URL of an image in our store, the exact charge, event and export."""

import asyncio
import csv
import io
from collections import Counter
from decimal import Decimal
from pathlib import Path

import httpx2
import openai
import orjson
import pytest
from PIL import Image

from config.catalogue import read_catalogue
from tests.conftest import LOOPBACK, run
from tests.kits.system import FLUX, FLUX_MXN, GPT, NINE, System, bearer


def sdk(system: System, key: str) -> openai.OpenAI:
    """The official client as a customer makes it."""
    return openai.OpenAI(base_url=system.url, api_key=key, max_retries=0)


@pytest.mark.parametrize(("model", "unit_mxn", "kind"), [(FLUX, "0.84", "JPEG"), (GPT, "3.99", "PNG")])
@pytest.mark.parametrize("n", [1, 8])
def test_the_sdk_gets_permanent_urls_and_the_organisation_pays_the_price(
    system: System, tmp_path: Path, model: str, unit_mxn: str, kind: str, n: int
) -> None:
    """n images are n valid pictures under our own paths, n unit prices, one event; finance exports that very sum."""
    org_id, key = system.customer(f"job {model.replace('/', '.')} {n}", "50.00")
    with sdk(system, key) as client:
        raw = client.images.with_raw_response.generate(
            model=model, prompt="Un axolotl en Xochimilco", n=n, size="1024x1024"
        )
    reply, body = raw.parse(), orjson.loads(raw.content)

    cost = Decimal(unit_mxn) * n
    assert raw.headers["x-geekhub-cost-mxn"] == str(cost)
    assert raw.headers["x-geekhub-balance-mxn"] == str(Decimal("50.00") - cost)
    assert raw.headers["x-request-id"] == body["id"] and body["model"] == model and body["object"] == "list"
    assert reply.data is not None and len(reply.data) == n
    order_id = body["id"].removeprefix("req_")
    for place, item in enumerate(reply.data):
        assert item.url is not None
        org, request, name = item.url.split("/generated-images/")[1].split("/")
        assert (org, request.replace("-", "")) == (org_id, order_id) and len(request) == 36
        assert name == f"{place}.{'jpg' if kind == 'JPEG' else 'png'}"
        picture = httpx2.get(item.url, **LOOPBACK)
        with Image.open(io.BytesIO(picture.content)) as image:
            image.load()
            assert (image.format, image.size) == (kind, (1024, 1024))
        assert picture.headers["content-type"] == f"image/{kind.lower()}"
        assert "immutable" in picture.headers["cache-control"]

    (event,) = system.events(org_id, 1)
    assert (event.end, event.quantity, Decimal(event.amount_micro_mxn)) == ("charge", n, cost * 1_000_000)
    out = tmp_path / "month.csv"
    exported = system.ghub("usage", "export", "--month", event.opened.month, "--org", org_id, "--out", str(out))
    assert exported.returncode == 0, exported.stderr
    (row,) = csv.DictReader(io.StringIO(out.read_text()))
    assert (row["amount_mxn"], row["quantity"], row["usd_per_image"]) == (
        str(cost),
        str(n),
        "0.04" if model == FLUX else "0.19",
    )
    assert (row["markup"], row["mxn_per_usd"], row["unit_mxn"]) == ("1.05", "20.00", unit_mxn)


def test_a_hundred_parallel_requests_on_a_balance_for_ten_deliver_exactly_ten(system: System) -> None:
    """Race: 10 × 200, 90 × 402, balance 0.00, 10 events, and `ghub verify` finds the books right."""
    org_id, key = system.customer("race", str(Decimal(FLUX_MXN) * 10))

    async def storm() -> list[httpx2.Response]:
        async with system.client(key) as client:
            body = {"model": FLUX, "prompt": "carrera"}
            return await asyncio.gather(*(client.post("/images/generations", json=body) for _ in range(100)))

    replies = run(storm())
    assert Counter(reply.status_code for reply in replies) == {200: 10, 402: 90}
    refused = next(reply for reply in replies if reply.status_code == 402)
    assert refused.json()["error"]["code"] == "insufficient_balance"
    assert "https://geekhub.mx/topup" in refused.json()["error"]["message"]
    balance = system.ghub("balance", "race", "--json")
    nothing = dict.fromkeys(("available_mxn", "held_mxn", "balance_mxn", "unpaid_mxn"), "0.00")
    assert orjson.loads(balance.stdout) == nothing
    assert len(system.events(org_id, 10)) == 10
    checked = system.ghub("verify", "--json")
    assert (checked.returncode, orjson.loads(checked.stdout)) == (0, {"ok": True, "differences": []})


def test_models_and_credits_are_readable_by_key(system: System) -> None:
    """The catalogue with prices in MXN, an id with %2F, and the balance."""
    _, key = system.customer("reader", "12.5")
    with httpx2.Client(base_url=system.url, headers=bearer(key), **LOOPBACK) as client:
        models = {model["id"]: model for model in client.get("/models").json()["data"]}
        assert models[FLUX]["price"]["mxn_per_image"] == "0.84" and models[GPT]["price"]["mxn_per_image"] == "3.99"
        assert client.get("/models/fal%2Fflux-1.1-pro").json() == models[FLUX]
        assert client.get(f"/models/{FLUX}").json() == models[FLUX]
        credits_ = client.get("/credits")
    assert credits_.json() == {
        "object": "credits",
        "currency": "MXN",
        "available_mxn": "12.50",
        "held_mxn": "0.00",
        "balance_mxn": "12.50",
    }
    with sdk(system, key) as client:
        listed = {model.id for model in client.models.list()}
        assert listed == {name for name, model in read_catalogue(None).models.items() if model.priced} > NINE


def test_fewer_images_than_asked_are_delivered_and_only_those_charged(system: System) -> None:
    """The upstream makes 2 of 3: 200 with two, charged two."""
    org_id, key = system.customer("fewer", "50.00")
    system.behave(GPT, "fewer_images")
    reply = httpx2.post(
        f"{system.url}/images/generations",
        headers=bearer(key),
        json={"model": GPT, "prompt": "x", "n": 3},
        **LOOPBACK,
        timeout=30,
    )
    assert (reply.status_code, len(reply.json()["data"]), reply.headers["x-geekhub-cost-mxn"]) == (200, 2, "7.98")
    (event,) = system.events(org_id, 1)
    assert (event.quantity, event.amount_micro_mxn, event.opened.images) == (2, 7_980_000, 3)
