"""Test keys over HTTP, with the official client: labelled pictures of our own that cost nothing and touch nothing."""

import asyncio
import base64
import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image
from redis import Redis

from config.catalogue import read_catalogue
from metering.accounts import IssuedKey
from metering.clock import utc_now
from metering.wallet.keys import OrgKeys
from proxy.backends import Backends
from proxy.ports import Order
from proxy.providers.sandbox import draw
from tests.conftest import run
from tests.e2e.conftest import Prepared
from tests.kits.system import FLUX, GPT, System, bearer, wait_until

PROMPT = "Un faro, de noche"
ORDER = {"model": FLUX, "prompt": PROMPT}
CATALOGUE = read_catalogue(None)


def drawn(number: int = 0, *, model: str = FLUX, n: int = 1, size: str = "1024x1024") -> bytes:
    """The very picture that the sandbox draws."""
    return draw(Order(model, CATALOGUE.models[model], PROMPT, n, size, None), number)


def sandbox_key(system: System, org_id: str, **more: Any) -> IssuedKey:
    """A test key of this organisation."""

    async def make(back: Backends) -> IssuedKey:
        return await back.accounts.create_key(org_id, "tests", test=True, **more)

    issued = system.back(make)
    system.keys.append(issued.secret)
    return issued


def with_both_keys(system: System, name: str, mxn: str = "0.00", **limits: int) -> tuple[str, str, str]:
    """A new organisation with a live key and a test key; returns (org id, live key, test key)."""
    org_id, live = system.customer(f"sandbox {name}", mxn, **limits)
    return org_id, live, sandbox_key(system, org_id).secret


def post(system: System, key: str, body: dict[str, Any] = ORDER, **headers: str) -> httpx2.Response:
    headers = {name.replace("_", "-"): value for name, value in headers.items()} | bearer(key)
    return httpx2.post(f"{system.url}/images/generations", json=body, headers=headers, timeout=60, trust_env=False)


def get(system: System, key: str, path: str) -> httpx2.Response:
    return httpx2.get(f"{system.url}{path}", headers=bearer(key), trust_env=False)


def fetched(url: str) -> bytes:
    """Fetch what anybody gets at this URL."""
    reply = httpx2.get(url, trust_env=False)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png")
    return reply.content


def error(reply: httpx2.Response) -> tuple[int, str, str]:
    return reply.status_code, reply.json()["error"]["code"], reply.headers["x-should-retry"]


def books(system: System, org_id: str) -> tuple[Any, ...]:
    """All that an organisation has in Redis and in the ledger, but for its keys' own use; and the upstreams' jobs."""

    async def recorded(back: Backends) -> int:
        return len([event async for event in back.ledger.events(org_id=org_id)])

    names = OrgKeys(org_id)
    with Redis.from_url(system.environment["GHUB_REDIS_URL"]) as redis:
        return redis.hgetall(names.wallet), redis.zcard(names.open), system.back(recorded), len(system.jobs())


@pytest.mark.parametrize(("model", "size", "n"), [(FLUX, "1024x1024", 1), (FLUX, "1440x960", 8), (GPT, "1024x1536", 2)])
def test_the_official_client_gets_labelled_pictures_at_our_addresses_for_nothing(
    system: System, model: str, size: str, n: int
) -> None:
    """Each is the one that the sandbox draws; the reply has a live one's headers; the books stay as they are."""
    org_id, _, key = with_both_keys(system, f"pictures {model.replace('/', '.')} {n}", "12.50")
    before = books(system, org_id)
    with openai.OpenAI(base_url=system.url, api_key=key, max_retries=0) as client:
        raw = client.images.with_raw_response.generate(model=model, prompt=PROMPT, n=n, size=size)
    reply, body = raw.parse(), json.loads(raw.content)
    assert (body["model"], body["served_model"], body["object"]) == (model, "sandbox", "list")
    assert body["id"] == raw.headers["x-request-id"] and abs(body["created"] - time.time()) < 60
    assert (raw.headers["x-geekhub-cost-mxn"], raw.headers["x-geekhub-balance-mxn"]) == ("0.00", "0.00")
    assert (raw.headers["x-ratelimit-limit-images"], raw.headers["x-ratelimit-remaining-images"]) == (
        "1200",
        str(1200 - n),
    )
    assert reply.data is not None and len(reply.data) == n
    request = body["id"].removeprefix("req_")
    for number, item in enumerate(reply.data):
        assert item.url is not None
        org, folder, name = item.url.split("/generated-images/")[1].split("/")
        assert (org, folder.replace("-", ""), name) == (org_id, request, f"{number}.png")
        assert fetched(item.url) == drawn(number, model=model, n=n, size=size)
    assert books(system, org_id) == before


def test_the_pictures_come_in_the_reply_where_that_is_asked_for(system: System) -> None:
    """`b64_json`, and no URL."""
    _, _, key = with_both_keys(system, "inline")
    with openai.OpenAI(base_url=system.url, api_key=key, max_retries=0) as client:
        reply = client.images.generate(model=FLUX, prompt=PROMPT, n=8, response_format="b64_json")
    assert reply.data is not None and len(reply.data) == 8
    for number, item in enumerate(reply.data):
        assert item.url is None and item.b64_json is not None
        assert base64.b64decode(item.b64_json) == drawn(number, n=8)


def test_an_organisation_that_may_order_nothing_may_test(system: System) -> None:
    """Without a balance, over its budget, over its day: the live key is refused, the test key is not."""
    poor, live, key = with_both_keys(system, "poor")
    before = books(system, poor)
    assert post(system, live).status_code == 402
    assert post(system, key, {**ORDER, "n": 8}).headers["x-geekhub-balance-mxn"] == "0.00"
    assert books(system, poor) == before
    for name, limits, refused in (
        ("budget", {"micro_mxn_per_month": 1_000_000}, (402, "budget_exceeded", "false")),
        ("quota", {"images_per_day": 1, "images_per_month": 1, "in_flight": 1}, (429, "quota_exceeded", "false")),
    ):
        org_id, live, key = with_both_keys(system, f"over its {name}", "50.00", **limits)
        assert post(system, live).status_code == 200
        system.events(org_id, 1)
        before = books(system, org_id)
        assert error(post(system, live)) == refused
        replies = [post(system, key, {**ORDER, "n": 8}) for _ in range(2)]
        assert [reply.status_code for reply in replies] == [200, 200]
        assert books(system, org_id) == before


def test_a_key_that_may_not_is_refused_from_the_next_request_on(system: System) -> None:
    """401 for a revoked and for an expired one, 403 for a model that is not its own; reads of them are refused, too."""
    org_id, _ = system.customer("sandbox refused")
    revoked = sandbox_key(system, org_id)
    models = sandbox_key(system, org_id, models=(GPT,)).secret
    ending = sandbox_key(system, org_id, expires=utc_now() + timedelta(seconds=1)).secret
    assert post(system, revoked.secret).status_code == 200

    async def revoke(back: Backends) -> None:
        await back.accounts.revoke_key(revoked.key_id)

    system.back(revoke)
    assert error(post(system, revoked.secret)) == (401, "key_revoked", "false")
    assert error(get(system, revoked.secret, "/credits")) == (401, "key_revoked", "false")
    refused = post(system, models)
    assert error(refused) == (403, "model_not_allowed", "false") and refused.json()["error"]["param"] == "model"
    assert post(system, models, {**ORDER, "model": GPT}).status_code == 200
    wait_until(lambda: post(system, ending).status_code == 401, "the key has expired")
    assert error(post(system, ending)) == (401, "key_expired", "false")
    assert error(post(system, "ghub_sk_test_" + "0" * 32)) == (401, "invalid_api_key", "false")
    assert error(post(system, models, {**ORDER, "n": 9})) == (400, "invalid_request_error", "false")


def test_its_rates_are_its_own_and_the_official_client_gets_through_when_they_allow(system: System) -> None:
    """429 with the true time; live orders have all of their rate; the SDK waits as it is told, and is served."""
    org_id, live = system.customer("sandbox rates", "50.00")
    issued = sandbox_key(system, org_id)

    async def limit(back: Backends) -> None:
        await back.accounts.set_key_limits(issued.key_id, {"images_per_minute": 16})

    system.back(limit)
    began_s = time.monotonic()
    assert [post(system, issued.secret, {**ORDER, "n": 8}).status_code for _ in range(2)] == [200, 200]
    refused = post(system, issued.secret, {**ORDER, "n": 8})
    assert error(refused) == (429, "rate_limit_exceeded", "true")
    assert "16 images per minute" in refused.json()["error"]["message"]
    assert (refused.headers["x-ratelimit-limit-images"], int(refused.headers["retry-after-ms"]) <= 30_000) == (
        "16",
        True,
    )
    ahead_s = int(refused.headers["retry-after-ms"]) / 1000 + time.monotonic() - began_s
    assert 30.0 <= ahead_s <= 30.0 + time.monotonic() - began_s
    ordered = post(system, live)
    assert (ordered.status_code, ordered.headers["x-ratelimit-remaining-images"]) == (200, "1199")
    assert ordered.headers["x-ratelimit-remaining-requests"] == "599"
    with openai.OpenAI(base_url=system.url, api_key=issued.secret) as client:
        assert client.images.generate(model=FLUX, prompt=PROMPT).data
    assert time.monotonic() - began_s >= 60 / 16
    too_many = sandbox_key(system, org_id)

    async def lower(back: Backends) -> None:
        await back.accounts.set_key_limits(too_many.key_id, {"images_per_minute": 4})

    system.back(lower)
    never = post(system, too_many.secret, {**ORDER, "n": 5})
    assert error(never) == (429, "rate_limit_exceeded", "false") and "retry-after" not in never.headers


def test_an_idempotency_key_brings_the_same_order_again(system: System) -> None:
    """Its id and its pictures, drawn again if they are gone; another order is 422; live orders do not share the key."""
    org_id, live, key = with_both_keys(system, "again", "50.00")
    body = {**ORDER, "n": 2}
    first = post(system, key, body, idempotency_key="k")
    again = post(system, key, body, idempotency_key="k")
    assert (again.status_code, again.content) == (200, first.content)
    assert (again.headers["idempotent-replayed"], again.headers["x-geekhub-cost-mxn"]) == ("true", "0.00")
    assert "idempotent-replayed" not in first.headers
    assert again.headers["x-request-id"] != first.headers["x-request-id"] == first.json()["id"]
    for number, item in enumerate(first.json()["data"]):
        assert fetched(item["url"]) == drawn(number, n=2)
        (system.folder / "images" / item["url"].split("/generated-images/")[1]).unlink()
    assert post(system, key, body, idempotency_key="k").content == first.content
    assert [fetched(item["url"]) for item in first.json()["data"]] == [drawn(0, n=2), drawn(1, n=2)]
    for other in ({**body, "n": 1}, {**body, "prompt": "otro"}, {**body, "response_format": "b64_json"}):
        assert error(post(system, key, other, idempotency_key="k")) == (422, "idempotency_key_reused", "false")
    charged = post(system, live, body, idempotency_key="k")
    assert (charged.status_code, charged.headers["x-geekhub-cost-mxn"]) == (200, "1.68")
    assert charged.json()["id"] != first.json()["id"]
    assert post(system, key, body, idempotency_key="x" * 256).status_code == 400
    assert len(system.events(org_id, 1)) == 1


def test_race_the_same_order_at_once_is_one_picture(system: System) -> None:
    """Thirty posts under one key are thirty equal answers, and one object in the store."""
    org_id, _, key = with_both_keys(system, "race of tests")

    async def storm() -> list[httpx2.Response]:
        async with system.client(key) as client:
            posts = (
                client.post("/images/generations", json=ORDER, headers={"idempotency-key": "k"}) for _ in range(30)
            )
            return await asyncio.gather(*posts)

    replies = run(storm())
    assert {reply.status_code for reply in replies} == {200} and len({reply.content for reply in replies}) == 1
    assert sum("idempotent-replayed" not in reply.headers for reply in replies) == 1
    assert len([path for path in system.images() if path.startswith(org_id)]) == 1


def test_a_test_key_reads_the_catalogue_and_no_live_order(system: System) -> None:
    """Models as any key's; its history is empty, and no order of the sandbox stands in a live key's."""
    org_id, live, key = with_both_keys(system, "reads", "50.00")
    charged = post(system, live).json()
    tested = post(system, key, idempotency_key="k").json()
    system.events(org_id, 1)
    for path in ("/models", "/models/fal%2Fflux-1.1-pro"):
        assert get(system, key, path).json() == get(system, live, path).json()
    assert [row["id"] for row in get(system, live, "/images/generations").json()["data"]] == [charged["id"]]
    assert get(system, key, "/images/generations").json()["data"] == []
    for reader in (live, key):
        for path in (f"/{tested['id']}", "?idempotency_key=k"):
            assert error(get(system, reader, f"/images/generations{path}")) == (404, "generation_not_found", "false")
    assert error(get(system, key, f"/images/generations/{charged['id']}")) == (404, "generation_not_found", "false")
    assert json.loads(system.ghub("verify", "--json").stdout) == {"ok": True, "differences": []}


@pytest.fixture
def alone(prepared: Prepared) -> System:
    """A system without upstreams and without an exchange rate."""
    system = prepared()
    fx = system.folder / "fx.toml"
    fx.write_text('[[rates]]\nmonth = "2020-01"\nmxn_per_usd = "18.00"\nsource = "old"\n')
    system.environment |= {"GHUB_FX": str(fx), "GHUB_LEDGER_URL": f"sqlite:///{system.folder / 'other.db'}"}
    assert system.ghub("migrate").returncode == 0
    system.valkey.start()
    system.start("consumer", "consume")
    system.start_gateway()
    return system


def test_it_needs_neither_upstreams_nor_a_rate_and_its_pictures_are_swept_after_a_day(alone: System) -> None:
    """A test key is served while a live one gets 503; a picture is an orphan after a day, and not before."""
    _, live, key = with_both_keys(alone, "alone", "50.00")
    assert error(post(alone, live)) == (503, "fx_rate_missing", "false")
    urls = [post(alone, key).json()["data"][0]["url"] for _ in range(2)]
    files = [alone.folder / "images" / url.split("/generated-images/")[1] for url in urls]
    with Image.open(files[0]) as image:
        image.load()
    old_s = time.time() - 25 * 3600
    os.utime(files[0], (old_s, old_s))
    swept = json.loads(alone.ghub("storage", "sweep", "--json", "--delete").stdout)
    assert (swept["orphans"], swept["refused"]) == (1, [])
    assert [file.exists() for file in files] == [False, True]
    assert fetched(urls[1]) == drawn()


def test_a_store_that_fails_is_502_and_the_same_order_may_be_sent_again(alone: System) -> None:
    """EventFacts so to the SDKs; when the store is back, the order under that key is served."""
    org_id, _, key = with_both_keys(alone, "store")
    obstacle = Path(alone.folder / "images" / org_id)
    obstacle.parent.mkdir(exist_ok=True)
    obstacle.write_text("in the way")
    refused = post(alone, key, idempotency_key="k")
    assert error(refused) == (502, "provider_unavailable", "true")
    obstacle.unlink()
    served = post(alone, key, idempotency_key="k")
    assert (served.status_code, fetched(served.json()["data"][0]["url"])) == (200, drawn())
