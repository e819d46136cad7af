"""Rights of a key: its organisation's orders, its own, or, in the sandbox, none; and the models that it may use."""

import json
from typing import Any

import httpx2
import pytest

from metering.accounts import IssuedKey
from metering.wallet.keys import OrgKeys
from proxy.backends import Backends
from tests.conftest import LOOPBACK
from tests.kits.system import FLUX, GPT, System, bearer, wait_until

ORDER = {"model": FLUX, "prompt": "Un faro, de noche"}
ZERO = {"available_mxn": "0.00", "held_mxn": "0.00", "balance_mxn": "0.00"}


def issue(system: System, org_id: str, **more: Any) -> IssuedKey:
    """A key of this organisation."""

    async def make(back: Backends) -> IssuedKey:
        return await back.accounts.create_key(org_id, "scope", **more)

    issued = system.back(make)
    system.keys.append(issued.secret)
    return issued


def post(system: System, key: str, body: dict[str, Any] = ORDER, **headers: str) -> httpx2.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()} | bearer(key)
    return httpx2.post(f"{system.url}/images/generations", json=body, headers=sent, timeout=60, **LOOPBACK)


def get(system: System, key: str, path: str) -> httpx2.Response:
    return httpx2.get(f"{system.url}{path}", headers=bearer(key), **LOOPBACK)


def listed(system: System, key: str) -> list[str]:
    return [row["id"] for row in get(system, key, "/images/generations").json()["data"]]


def charged(system: System, key: str, path: str = "/usage?group_by=key") -> list[tuple[str, int]]:
    usage = get(system, key, path).json()
    assert usage["total"]["orders"] == sum(row["orders"] for row in usage["data"])
    return [(row["key_id"], row["orders"]) for row in usage["data"]]


def missing(reply: httpx2.Response) -> bool:
    """Answered as for an order that never was."""
    return (reply.status_code, reply.json()["error"]["code"]) == (404, "generation_not_found")


def test_a_test_key_sees_no_live_order_no_usage_and_no_balance(system: System) -> None:
    """Neither in the list nor by id or idempotency key, whatever the live one sees; and no header tells the balance."""
    org_id, live = system.customer("scope of a test key", "50.00")
    test = issue(system, org_id, test=True).secret
    ordered = post(system, live, idempotency_key="k").json()["id"]
    system.events(org_id, 1)
    assert listed(system, live) == [ordered] and listed(system, test) == []
    assert get(system, live, f"/images/generations/{ordered}").status_code == 200
    for path in (f"/images/generations/{ordered}", "/images/generations?idempotency_key=k"):
        assert get(system, live, path).status_code == 200
        assert missing(get(system, test, path))
    assert charged(system, test) == [] and len(charged(system, live)) == 1
    assert get(system, test, "/usage").json()["total"] == {"orders": 0, "images": 0, "cost_mxn": "0.00"}
    told = get(system, test, "/credits")
    assert told.json() == {"object": "credits", "currency": "MXN", **ZERO}
    assert told.headers["x-geekhub-balance-mxn"] == "0.00"
    assert get(system, live, "/credits").json()["available_mxn"] == "49.16"
    tested = post(system, test, idempotency_key="k")
    assert (tested.status_code, tested.headers["x-geekhub-balance-mxn"]) == (200, "0.00")


def test_a_key_for_one_model_reads_its_own_orders_and_lists_its_own_model(system: System) -> None:
    """By default; its organisation's other key reads both, and each usage is whose it says."""
    org_id, every = system.customer("scope of a restricted key", "50.00")
    own = issue(system, org_id, models=(GPT,))
    others = post(system, every).json()["id"]
    mine = post(system, own.secret, {**ORDER, "model": GPT, "quality": "low"}).json()["id"]
    for _ in range(2):  # from Redis and journals, and again once all is booked
        assert missing(get(system, own.secret, f"/images/generations/{others}"))
        assert get(system, own.secret, f"/images/generations/{mine}").json()["status"] == "completed"
        system.events(org_id, 2)
    assert listed(system, own.secret) == [mine] and listed(system, every) == [mine, others]
    with_redis_forgetting(system, org_id, mine, others)
    assert missing(get(system, own.secret, f"/images/generations/{others}"))
    assert get(system, own.secret, f"/images/generations/{mine}").json()["status"] == "completed"
    assert charged(system, own.secret) == [(own.key_id, 1)] and len(charged(system, every)) == 2
    assert get(system, own.secret, "/credits").json() == get(system, every, "/credits").json()
    assert [row["id"] for row in get(system, own.secret, "/models").json()["data"]] == [GPT]
    assert get(system, own.secret, f"/models/{GPT}").status_code == 200
    refused = get(system, own.secret, f"/models/{FLUX}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    assert FLUX in {row["id"] for row in get(system, every, "/models").json()["data"]}


def with_redis_forgetting(system: System, org_id: str, *public_ids: str) -> None:
    """Delete what Redis keeps of these orders for a day, so that only the ledger knows them."""
    names = OrgKeys(org_id)

    async def forget(back: Backends) -> None:
        assert back.redis is not None
        for digits in (one.removeprefix("req_") for one in public_ids):
            order_id = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
            assert await back.redis.delete(names.result(order_id), names.closed(order_id)) == 2

    system.back(forget)


def test_an_order_that_failed_is_its_own_keys_alone(system: System) -> None:
    """It and its organisation's key are told how it ended; another own key finds nothing."""
    org_id, every = system.customer("scope of a failed order", "50.00")
    first, second = (issue(system, org_id, read="own").secret for _ in range(2))
    system.behave(FLUX, "content_policy_422")
    failed = post(system, first)
    assert failed.status_code == 400
    path = f"/images/generations/{failed.headers['x-request-id']}"
    assert [get(system, key, path).json()["status"] for key in (first, every)] == ["failed", "failed"]
    assert missing(get(system, second, path))


def test_an_order_that_is_being_made_is_its_own_keys_alone(system: System) -> None:
    """Asked for by its id while it is open: another own key of its organisation finds nothing."""
    org_id, every = system.customer("scope of an open order", "50.00")
    first, second = (issue(system, org_id, read="own").secret for _ in range(2))
    system.behave(FLUX, "slow", seconds=3)
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(
            f"{system.url}/images/generations",
            json=ORDER,
            headers={**bearer(first), "idempotency-key": "open"},
            timeout=0.5,
            **LOOPBACK,
        )
    mine = get(system, first, "/images/generations?idempotency_key=open").json()
    assert mine["status"] == "in_progress"
    path = f"/images/generations/{mine['id']}"
    assert [get(system, key, path).json()["status"] for key in (first, every)] == ["in_progress", "in_progress"]
    assert missing(get(system, second, path))
    assert missing(get(system, second, "/images/generations?idempotency_key=open"))
    system.events(org_id, 1)
    assert get(system, first, path).json()["status"] == "completed"
    assert missing(get(system, second, path))


def test_an_idempotency_key_is_the_reading_keys_own(system: System) -> None:
    """The same order under the same key by a key that may not read it is another order; its own comes again."""
    org_id, every = system.customer("scope of idempotency", "50.00")
    own, other = (issue(system, org_id, read="own").secret for _ in range(2))
    replies = [post(system, key, idempotency_key="k") for key in (every, own, other)]
    assert len({reply.json()["id"] for reply in replies}) == 3
    assert not any("idempotent-replayed" in reply.headers for reply in replies)
    for key, first in zip((every, own, other), replies, strict=True):
        again = post(system, key, idempotency_key="k")
        assert (again.headers["idempotent-replayed"], again.json()) == ("true", first.json())
        found = get(system, key, "/images/generations?idempotency_key=k").json()
        assert found["id"] == first.json()["id"]
    assert post(system, own, {**ORDER, "prompt": "otro"}, idempotency_key="k").status_code == 422
    assert len(system.events(org_id, 3)) == 3


def test_a_rotated_key_reads_what_the_one_before_it_ordered_and_not_the_other_way(system: System) -> None:
    """List, id, usage and idempotency key follow the rotation, twice; the settings of the key stay with it."""
    org_id, _ = system.customer("scope of a rotation", "50.00")
    created = json.loads(
        system.ghub(
            *("key", "create", org_id, "--name", "web", "--read", "own", "--response-format", "b64_json"),
            *("--origins", "https://app.example.mx,http://localhost:3000", "--json"),
        ).stdout
    )
    line, ids, orders = [created["key"]], [created["key_id"]], [post(system, created["key"], idempotency_key="k")]
    for _ in range(2):
        rotated = json.loads(system.ghub("key", "rotate", ids[-1], "--overlap", "1h", "--json").stdout)
        line, ids = [*line, rotated["key"]], [*ids, rotated["key_id"]]
        orders.append(post(system, line[-1]))
    system.keys += line
    system.events(org_id, 3)
    public = [order.json()["id"] for order in orders]
    for age, key in enumerate(line):
        assert listed(system, key) == public[age::-1]
        assert dict(charged(system, key)) == dict.fromkeys(ids[: age + 1], 1)
        again = post(system, key, idempotency_key="k")
        assert (again.headers["idempotent-replayed"], again.json()["id"]) == ("true", public[0])
        assert "b64_json" in again.json()["data"][0]
    assert missing(get(system, line[0], f"/images/generations/{public[1]}"))
    for key_id in ids:
        shown = json.loads(system.ghub("key", "show", key_id, "--json").stdout)
        assert (shown["read"], shown["response_format"]) == ("own", "b64_json")
        assert shown["origins"] == "https://app.example.mx,http://localhost:3000"
    rows = json.loads(system.ghub("key", "list", org_id, "--json").stdout)
    assert {row["key_id"]: row["read"] for row in rows} == {rows[0]["key_id"]: "org", **dict.fromkeys(ids, "own")}


def test_verify_names_a_key_that_redis_has_otherwise(system: System) -> None:
    """A key's rights to read are compared with the ledger, like its models."""
    org_id, _ = system.customer("scope compared")
    issued = issue(system, org_id, read="own", response_format="b64_json", origins=("https://a.mx",))
    names = OrgKeys(org_id)

    async def tamper(back: Backends, reads: str, origins: str) -> None:
        assert back.redis is not None
        await back.redis.hset(names.access(issued.key_id), mapping={"reads": reads, "origins": origins})

    assert json.loads(system.ghub("verify", "--org", org_id, "--json").stdout)["ok"]

    def named() -> bool:
        system.back(
            lambda back: tamper(back, reads="", origins="")
        )  # a gateway may still bring the key's issue to Redis
        found = json.loads(system.ghub("verify", "--org", org_id, "--json").stdout)["differences"]
        return {one["what"].split(":")[1].strip() for one in found} == {"reads", "origins"}

    try:
        wait_until(named, "both fields are named")
    finally:
        system.back(lambda back: tamper(back, reads=issued.key_id, origins="https://a.mx"))
    wait_until(lambda: bool(json.loads(system.ghub("verify", "--org", org_id, "--json").stdout)["ok"]), "as before")
