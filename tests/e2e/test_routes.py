"""A second route, a circuit and a dry run over the whole system: who made it, at what cost, and what stayed."""

import csv
import io
import json
import tempfile
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest

import config
from config.settings import CIRCUIT_FAILURES, LONGEST_STAY_S
from metering.clock import period_at, unix_us_at, utc_now
from metering.events import Route
from tests.conftest import LOOPBACK
from tests.kits.system import FLUX, GPT, System, assert_no_key, bearer, prepare
from tests.long import LONG

TWO, DEARER, FLAKY = "shop/two-routes", "shop/dearer-second", "fal/sd-3.5-large"
TABLES = """
[models."shop/two-routes"]
name = "Two Routes"
provider = "openai"
upstream = "gpt-image-1"
images_per_call = 8
usd_per_image = "0.19"
created = 2025-04-23
sizes = { "1024x1024" = "1024x1024" }
[models."shop/two-routes".second]
provider = "fal"
upstream = "fal-ai/flux-pro/v1.1"
images_per_call = 4
usd_per_image = "0.04"
sizes = { "1024x1024" = "square_hd" }

[models."shop/dearer-second"]
name = "Dearer Second"
provider = "fal"
upstream = "fal-ai/flux-pro/v1.1"
images_per_call = 4
usd_per_image = "0.04"
created = 2025-04-23
sizes = { "1024x1024" = "square_hd" }
[models."shop/dearer-second".second]
provider = "openai"
upstream = "gpt-image-1"
images_per_call = 8
usd_per_image = "0.19"
sizes = { "1024x1024" = "1024x1024" }
"""


@pytest.fixture(scope="module")
def shop() -> Iterator[System]:
    """A system whose catalogue has two models with a second route beside those that ship."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as name:
        system = prepare(Path(name))
        models = system.folder / "models.toml"
        models.write_text((Path(config.__file__).parent / "models.toml").read_text() + TABLES)
        system.environment["GHUB_MODELS"] = str(models)
        system.start_all()
        yield system
        system.stop_all()
        assert_no_key(system.keys, system.folder)


def place(system: System, key: str, model: str, query: str = "", **more: Any) -> httpx2.Response:
    """One order, no retry."""
    headers = bearer(key) | more.pop("headers", {})
    body = {"model": model, "prompt": "x", **more}
    url = f"{system.url}/images/generations{query}"
    return httpx2.post(url, headers=headers, json=body, **LOOPBACK, timeout=90)


@pytest.mark.parametrize("scenario", ["rate_limited_429", "busy_503", "unauthorized_401"])
def test_what_the_first_did_not_take_is_made_by_the_second_once(shop: System, scenario: str) -> None:
    """At the price of the route that served; event, operator's page and export say which, and the books are right."""
    org_id, key = shop.customer(f"second {scenario}", "50.00")
    before, asked = len(shop.jobs(FLUX)), len(shop.jobs(GPT))
    shop.behave(GPT, scenario)
    reply = place(shop, key, TWO, n=2)
    assert reply.status_code == 200, reply.text
    assert (reply.headers["x-geekhub-cost-mxn"], reply.headers["x-geekhub-balance-mxn"]) == ("1.68", "48.32")
    assert (reply.json()["served_model"], len(reply.json()["data"])) == ("fal-ai/flux-pro/v1.1", 2)
    assert (len(shop.jobs(FLUX)) - before, len(shop.jobs(GPT)) - asked) == (1, 0)
    (event,) = shop.events(org_id, 1)
    assert event.route == Route("fal", "fal-ai/flux-pro/v1.1", "0.04")
    assert (event.opened.provider, event.opened.proof.usd_per_image) == ("openai", "0.19")
    assert event.usd_measured is not None and Decimal(event.usd_measured) == Decimal("0.08")
    if scenario != "rate_limited_429":
        return
    shown = json.loads(shop.ghub("order", "show", event.event_id, "--json").stdout)
    (end,) = shown["ends"]
    assert end["route"] == {"provider": "fal", "upstream": "fal-ai/flux-pro/v1.1", "usd_per_image": "0.04"}
    month = period_at(unix_us_at(utc_now())).month
    exported = shop.ghub("usage", "export", "--month", month, "--format", "csv", "--out", "-", "--org", org_id)
    (row,) = csv.DictReader(io.StringIO(exported.stdout))
    assert (row["provider"], row["upstream"]) == ("fal", "fal-ai/flux-pro/v1.1")
    verified = shop.ghub("verify", "--org", org_id, "--no-images")
    assert verified.returncode == 0, verified.stdout


@pytest.mark.parametrize("scenario", ["reset", "http_500", "garbage", "wrong_json"])
def test_what_the_first_may_have_taken_is_never_made_again(shop: System, scenario: str) -> None:
    """Bytes of unknown fate end the order: no second provider is asked, and nothing is charged."""
    org_id, key = shop.customer(f"fate {scenario}", "50.00")
    before = len(shop.jobs(FLUX))
    shop.behave(GPT, scenario)
    reply = place(shop, key, TWO)
    assert (reply.status_code, reply.headers["x-should-retry"]) == (502, "false")
    (event,) = shop.events(org_id, 1)
    assert (event.end, event.route, event.amount_micro_mxn) == ("void", None, 0)
    assert len(shop.jobs(FLUX)) == before


def test_the_quote_is_the_dearer_and_the_charge_that_of_the_route_that_served(shop: System) -> None:
    """The first one serves at its own price; the hold, and the 402, are those of the dearer one."""
    org_id, key = shop.customer("dearer", "4.00")
    reply = place(shop, key, DEARER)
    assert (reply.status_code, reply.headers["x-geekhub-cost-mxn"]) == (200, "0.84")
    (event,) = shop.events(org_id, 1)
    assert (event.route, event.opened.proof.usd_per_image) == (None, "0.19")
    assert event.usd_measured is not None and Decimal(event.usd_measured) == Decimal("0.04")
    refused = place(shop, key, DEARER)
    assert refused.status_code == 402 and "3.99" in refused.json()["error"]["message"]


# --- a circuit -------------------------------------------------------------------------------------------------------


def test_an_order_for_which_no_route_is_open_takes_nothing_but_a_duplicate_is_given(shop: System) -> None:
    """502 with a wait before the hold: no event, no call; what was delivered before is delivered again."""
    org_id, key = shop.customer("circuit", "50.00")
    once: dict[str, Any] = {"headers": {"idempotency-key": "before"}}
    first = place(shop, key, FLAKY, **once)
    shop.behave(FLAKY, "http_503", times=None)
    voids = 0
    while (reply := place(shop, key, FLAKY)).json()["error"]["message"].find("again and again") < 0:
        assert reply.status_code == 502
        voids += 1
    shop.behave(FLAKY, "ok", times=None)
    assert voids == -(-CIRCUIT_FAILURES // 3)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], reply.headers["x-should-retry"]) == (502, "provider_unavailable", "true")
    assert 0 < float(reply.headers["retry-after"]) <= 60 and "x-ratelimit-remaining-requests" in reply.headers
    again = place(shop, key, FLAKY, **once)
    assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
    assert again.json()["id"] == first.json()["id"]
    dry = place(shop, key, FLAKY, "?dry_run=true").json()
    assert (dry["admitted"], dry["refusal"]["code"]) == (False, "provider_unavailable")
    assert shop.cut(org_id).number == 1 + voids
    shop.events(org_id, 1 + voids)
    if not LONG:
        return
    time.sleep(float(reply.headers["retry-after"]))  # the wait that the reply asked for, by this process's own clock
    assert place(shop, key, FLAKY).status_code == 200
    assert place(shop, key, FLAKY).status_code == 200


# --- a dry run -------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_the_most_it_can_cost_and_takes_nothing(shop: System) -> None:
    """Balance, rates, usage, events, idempotency and the providers' jobs are as before; the order costs no more."""
    org_id, key = shop.customer("dry", "5.00", requests_per_minute=2)
    jobs, cut = len(shop.jobs()), shop.cut(org_id)
    with httpx2.Client(base_url=shop.url, headers=bearer(key), **LOOPBACK) as client:
        used = client.get("/usage").json()
        once: dict[str, Any] = {"headers": {"idempotency-key": "dry"}}
        replies = [place(shop, key, TWO, "?dry_run=true", n=1, **once) for _ in range(5)]
        assert client.get("/usage").json() == used
    assert {(reply.status_code, reply.headers["x-ratelimit-remaining-requests"]) for reply in replies} == {(200, "2")}
    document = replies[-1].json()
    assert document | {"limits": None} == {
        **{"object": "dry_run", "model": TWO, "n": 1, "size": "1024x1024", "quality": None, "tokens": None},
        **{"cost_mxn": "3.99", "cost_mxn_per_image": "3.99", "at_most": True, "deadline_s": 60.0},
        **{"admitted": True, "refusal": None, "limits": None, "available_mxn": "5.00"},
    }
    assert document["limits"]["requests"] == {"limit": 2, "remaining": 2}
    unhurried = place(shop, key, TWO, "?dry_run=true", n=1, headers={"prefer": "respond-async"}).json()
    assert unhurried == document | {"deadline_s": LONGEST_STAY_S}, "a long order's own deadline"
    after = shop.cut(org_id)
    assert (after.available_micro_mxn, after.held_micro_mxn, after.number, len(shop.jobs())) == (
        cut.available_micro_mxn,
        0,
        0,
        jobs,
    )
    placed = place(shop, key, TWO, n=1, **once)
    assert placed.status_code == 200 and "idempotent-replayed" not in placed.headers
    assert Decimal(placed.headers["x-geekhub-cost-mxn"]) <= Decimal(document["cost_mxn"])
    poor = place(shop, key, TWO, "?dry_run=true", n=2, headers={"accept-language": "es"}).json()
    assert (poor["admitted"], poor["cost_mxn"], poor["refusal"]["code"]) == (False, "7.98", "insufficient_balance")
    assert "Este pedido puede costar 7.98 MXN" in poor["refusal"]["message"]
    shop.events(org_id, 1)


def test_a_dry_run_is_refused_as_the_order_would_be(shop: System) -> None:
    """A wrong body, an unknown parameter, a key that is revoked; and a test key is told the price of a live one."""
    org_id, key = shop.customer("dry refused", "5.00")
    for query, fields, param in (
        ("?dry_run=true", {"size": "1x1"}, "size"),
        ("?dry_run=true", {"webhook": "https://example.mx/"}, "webhook"),
        ("?dry_run=yes", {}, "dry_run"),
        ("?dryrun=true", {}, "dryrun"),
        ("?dry_run=true&dry_run=true", {}, "dry_run"),
    ):
        reply = place(shop, key, TWO, query, **fields)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
    unpriced = place(shop, key, "shop/none", "?dry_run=true")
    assert unpriced.json()["error"]["code"] == "model_not_found"
    issued = json.loads(shop.ghub("key", "create", org_id, "--name", "t", "--test", "--json").stdout)
    shop.keys.append(issued["key"])
    tested = place(shop, issued["key"], TWO, "?dry_run=true").json()
    assert (tested["cost_mxn"], tested["limits"], tested["available_mxn"]) == ("3.99", None, None)
    listed = json.loads(shop.ghub("key", "list", org_id, "--json").stdout)
    for row in listed:
        assert shop.ghub("key", "revoke", row["key_id"]).returncode == 0
    refused = place(shop, key, TWO, "?dry_run=true")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "key_revoked")
    assert shop.cut(org_id).number == 0
