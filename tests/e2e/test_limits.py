"""Replies about keys, limits and quotas, by the real gateway over HTTP."""

import asyncio
import csv
import io
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from metering.accounts import IssuedKey
from metering.clock import month_start_us, next_month, period_at, unix_us_at, utc_at, utc_now
from metering.limits import NONE
from metering.money import parse_mxn
from proxy.backends import Backends
from tests.conftest import run
from tests.kits.system import FLUX, FLUX_MXN, GPT, System, bearer, wait_until

ORDER = {"model": FLUX, "prompt": "x"}
SLACK_S = 5
"""Between the gateway's look at the clock and the test's."""


def customer(system: System, name: str, mxn: str, limits: dict[str, int] | None = None) -> tuple[str, IssuedKey]:
    """An organisation with credit, limits, and a key of which the id is known, too."""

    async def make(back: Backends) -> tuple[str, IssuedKey]:
        org = await back.accounts.create_org(name, "default")
        await back.accounts.add_credit(org.org_id, f"pay-{org.org_id}", "recharge", parse_mxn(mxn))
        await back.accounts.set_limits(org.org_id, limits or {})
        return org.org_id, await back.accounts.create_key(org.org_id, "first")

    org_id, issued = system.back(make)
    system.keys.append(issued.secret)
    return org_id, issued


def another_key(system: System, org_id: str, **more: Any) -> IssuedKey:
    issued = system.back(lambda back: back.accounts.create_key(org_id, "another", **more))
    system.keys.append(issued.secret)
    return issued


def limit(system: System, org_id: str, **limits: int | None) -> None:
    system.back(lambda back: back.accounts.set_limits(org_id, limits))


def limit_key(system: System, key: IssuedKey, **limits: int | None) -> None:
    system.back(lambda back: back.accounts.set_key_limits(key.key_id, limits))


def post(system: System, key: IssuedKey, **changes: Any) -> httpx2.Response:
    url = f"{system.url}/images/generations"
    return httpx2.post(url, headers=bearer(key.secret), json={**ORDER, **changes}, trust_env=False, timeout=30)


def refused(reply: httpx2.Response, status: int, code: str, *words: str, retry: bool = False) -> None:
    """In the envelope, with these words, and with what an SDK is to do about it."""
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (status, code), error
    assert reply.headers["x-should-retry"] == str(retry).lower()
    assert error["request_id"] == reply.headers["x-request-id"]
    for word in words:
        assert word in error["message"]


def paths(order_id: str) -> Sequence[tuple[str, str]]:
    """Every path that needs a key."""
    return [
        ("POST", "/images/generations"),
        ("GET", "/images/generations"),
        ("GET", f"/images/generations/{order_id}"),
        ("GET", "/images/generations?idempotency_key=k"),
        ("GET", "/models"),
        ("GET", f"/models/{FLUX}"),
        ("GET", "/credits"),
        ("GET", "/usage"),
    ]


def ask(system: System, key: IssuedKey, method: str, path: str) -> httpx2.Response:
    with httpx2.Client(trust_env=False, timeout=30) as client:
        body = ORDER if method == "POST" else None
        return client.request(method, system.url + path, headers=bearer(key.secret), json=body)


def test_a_key_ends_on_every_path_from_the_next_request_on(system: System) -> None:
    """Revoked or expired: 401 with its own code, wherever the key is sent; the organisation's other key still works."""
    org_id, first = customer(system, "ends", "50.00")
    done = post(system, first).json()["id"]
    short = another_key(system, org_id, expires=utc_now() + timedelta(seconds=4))
    for method, path in paths(done):
        assert ask(system, short, method, path).status_code in (200, 404)  # nothing was placed under that `k`
    wait_until(lambda: ask(system, short, "GET", "/credits").status_code == 401, "the key expires")
    for method, path in paths(done):
        refused(ask(system, short, method, path), 401, "key_expired", "expired")
        assert ask(system, first, method, path).status_code in (200, 404)
    system.back(lambda back: back.accounts.revoke_key(first.key_id))
    for method, path in paths(done):
        refused(ask(system, first, method, path), 401, "key_revoked", "revoked")


def test_a_key_orders_its_own_models_only(system: System) -> None:
    """403 names the model, and it is not among those that are listed for this key."""
    org_id, _ = customer(system, "models", "50.00")
    key = another_key(system, org_id, models=[GPT])
    reply = post(system, key)
    refused(reply, 403, "model_not_allowed", FLUX)
    assert reply.json()["error"]["param"] == "model"
    assert post(system, key, model=GPT).status_code == 200
    assert ask(system, key, "GET", f"/models/{FLUX}").status_code == 404
    assert ask(system, key, "GET", f"/models/{GPT}").status_code == 200


def ends(what: str) -> tuple[float, str]:
    """Seconds until the day or the month of Mexico City is over, and how a message says when that is."""
    now_us = unix_us_at(utc_now())
    period = period_at(now_us)
    end_us = period.end_us if what == "day" else month_start_us(next_month(period.month))
    return (end_us - now_us) / 1e6, f"{utc_at(end_us):%Y-%m-%dT06:00:00Z}"


@pytest.mark.parametrize("whose", ["org", "key"])
@pytest.mark.parametrize(
    ("name", "value", "status", "code", "number", "per"),
    [
        ("images_per_day", 2, 429, "quota_exceeded", "2 images per day", "day"),
        ("images_per_month", 2, 429, "quota_exceeded", "2 images per month", "month"),
        ("micro_mxn_per_month", 1_700_000, 402, "budget_exceeded", "1.70 MXN per month", "month"),
    ],
)
def test_what_is_used_up_is_told_with_number_and_time(
    system: System, whose: str, name: str, value: int, status: int, code: str, number: str, per: str
) -> None:
    """Nobody retries; the wait is the rest of the period to the second, and an order that never fits has none."""
    org_id, key = customer(system, f"used up {whose} {name}", "50.00")
    if whose == "org":
        limit(system, org_id, **{name: value})
    else:
        limit_key(system, key, **{name: value})
    assert post(system, key, n=2).status_code == 200
    owner = "Your organisation's" if whose == "org" else "This API key's"
    wait_s, moment = ends(per)
    reply = post(system, key)
    refused(reply, status, code, owner, number, moment, "Mexico City")
    assert wait_s - SLACK_S <= int(reply.headers["retry-after"]) <= wait_s + 1
    assert 0 <= int(reply.headers["retry-after"]) * 1000 - int(reply.headers["retry-after-ms"]) < 1000
    reply = post(system, key, n=3)
    refused(reply, status, code, owner, number)
    assert "retry-after" not in reply.headers
    assert system.cut(org_id).charged_micro_mxn == 2 * parse_mxn(FLUX_MXN)
    if whose == "key":
        assert post(system, another_key(system, org_id)).status_code == 200


def test_images_in_flight_are_429_with_a_hint(system: System) -> None:
    """Worth a retry in two seconds, unless the order alone is above the limit; then there is room again."""
    org_id, key = customer(system, "in flight", "50.00", {"in_flight": 2})
    system.behave(FLUX, "slow", seconds=1.5)

    async def while_one_is_made() -> tuple[httpx2.Response, httpx2.Response, int]:
        async with system.client(key.secret) as client:
            before = len(system.jobs(FLUX))
            slow = asyncio.create_task(client.post("/images/generations", json={**ORDER, "n": 2}))
            while len(system.jobs(FLUX)) == before:
                await asyncio.sleep(0.01)
            soon = await client.post("/images/generations", json={**ORDER, "prompt": "y"})
            never = await client.post("/images/generations", json={**ORDER, "n": 3})
            return soon, never, (await slow).status_code

    soon, never, first = run(while_one_is_made())
    refused(soon, 429, "rate_limit_exceeded", "2 images being made at once", "2 are", retry=True)
    assert (soon.headers["retry-after"], soon.headers["retry-after-ms"]) == ("2", "2000")
    refused(never, 429, "rate_limit_exceeded", "asks for 3")
    assert "retry-after" not in never.headers
    assert first == 200
    assert post(system, key, prompt="y").status_code == 200
    assert system.cut(org_id).held_micro_mxn == 0


def test_of_several_refusals_the_first_of_the_table_is_told(system: System) -> None:
    """All apply; as one after the other is lifted, the next one is told: 401, 403, 402, 402, 429, 429, 429, and 200."""
    org_id, key = customer(system, "precedence", "1.00", {"requests_per_minute": 1})
    other = another_key(system, org_id, models=[GPT])
    gone = another_key(system, org_id, models=[GPT])
    system.back(lambda back: back.accounts.revoke_key(gone.key_id))
    assert post(system, key).status_code == 200
    limit(system, org_id, micro_mxn_per_month=1_000_000, images_per_month=1, images_per_day=1)
    refused(post(system, gone), 401, "key_revoked")
    refused(post(system, other), 403, "model_not_allowed")
    refused(post(system, key), 402, "insufficient_balance", "0.84", "0.16")
    system.back(lambda back: back.accounts.add_credit(org_id, "more-precedence", "recharge", parse_mxn("50.00")))
    refused(post(system, key), 402, "budget_exceeded", "1.00 MXN per month", "0.84 MXN are spent")
    limit(system, org_id, micro_mxn_per_month=NONE)
    refused(post(system, key), 429, "quota_exceeded", "per month")
    limit(system, org_id, images_per_month=NONE)
    refused(post(system, key), 429, "quota_exceeded", "per day")
    limit(system, org_id, images_per_day=NONE)
    refused(post(system, key), 429, "rate_limit_exceeded", "1 requests per minute", retry=True)
    limit(system, org_id, requests_per_minute=None)
    assert post(system, key).status_code == 200
    assert system.cut(org_id).charged_micro_mxn == 2 * parse_mxn(FLUX_MXN)


def test_the_tighter_of_two_rates_is_in_the_headers(system: System) -> None:
    """A key's own rate and its organisation's: the key's does not delay the organisation's other key.

    These rates recover slowly: one of five a minute takes 12 s, and the test is faster.
    """
    org_id, key = customer(system, "two rates", "50.00", {"requests_per_minute": 5, "images_per_minute": 4})
    limit_key(system, key, requests_per_minute=2, images_per_minute=100)
    told = post(system, key).headers
    assert (told["x-ratelimit-limit-requests"], told["x-ratelimit-remaining-requests"]) == ("2", "1")
    assert (told["x-ratelimit-limit-images"], told["x-ratelimit-remaining-images"]) == ("4", "3")
    assert post(system, key).status_code == 200
    refused(post(system, key), 429, "rate_limit_exceeded", "This API key's", "2 requests per minute", retry=True)
    told = post(system, another_key(system, org_id)).headers
    assert (told["x-ratelimit-limit-requests"], told["x-ratelimit-remaining-requests"]) == ("5", "2")


def test_usage_is_what_was_charged(system: System) -> None:
    """By day, model and key, as JSON and CSV, once the consumer has booked it; nobody else's."""
    org_id, key = customer(system, "uses", "50.00")
    other = another_key(system, org_id)
    for one, changes in ((key, {"n": 2}), (key, {"n": 1}), (other, {"model": GPT})):
        assert post(system, one, **changes).status_code == 200
    events = system.events(org_id, 3)
    today = period_at(unix_us_at(utc_now())).day
    url = f"{system.url}/usage?from={today}&to={today}&group_by=key,model"
    found = httpx2.get(url, headers=bearer(key.secret), trust_env=False).json()
    assert {(row["key_id"], row["key_name"], row["model"], row["orders"], row["images"]) for row in found["data"]} == {
        (key.key_id, "first", FLUX, 2, 3),
        (other.key_id, "another", GPT, 1, 1),
    }
    assert parse_mxn(found["total"]["cost_mxn"]) == sum(event.amount_micro_mxn for event in events)
    table = httpx2.get(url, headers=bearer(key.secret) | {"accept": "text/csv"}, trust_env=False)
    rows = list(csv.DictReader(io.StringIO(table.text, newline="")))
    assert [row | {"orders": int(row["orders"]), "images": int(row["images"])} for row in rows] == found["data"]
    assert "attachment" in table.headers["content-disposition"]
    _, stranger = customer(system, "uses nothing", "1.00")
    empty = httpx2.get(f"{system.url}/usage", headers=bearer(stranger.secret), trust_env=False).json()
    assert (empty["data"], empty["total"]) == ([], {"orders": 0, "images": 0, "cost_mxn": "0.00"})
    bad = httpx2.get(f"{system.url}/usage?group_by=week", headers=bearer(key.secret), trust_env=False)
    refused(bad, 400, "invalid_request_error", "group_by", "week")
