"""Faults, and what is then true of the money: kill −9, SIGTERM, a wiped Redis, clients that hang up."""

import asyncio
import json
import signal
from collections import Counter

import httpx2
import pytest
from redis import Redis

from config.settings import HOLD_MARGIN_S
from tests.conftest import LOOPBACK, run
from tests.e2e.conftest import Prepared
from tests.kits.system import FLUX, GPT, WAIT_S, System, bearer, wait_until

ORDER = {"model": FLUX, "prompt": "x"}


def test_kill_9_in_the_middle_of_an_upstream_call_loses_no_money(prepared: Prepared) -> None:
    """The hold counts until its deadline and not longer, with no gateway alive; the order ends as an expiry."""
    system = prepared(GHUB_DEADLINE_S="1")
    system.start_all()
    org_id, key = system.customer("killed", "50.00")
    system.behave(FLUX, "stuck_in_queue")

    async def order() -> None:
        async with system.client(key) as client:
            with pytest.raises(httpx2.TransportError):
                await client.post("/images/generations", json=ORDER)

    async def kill() -> None:
        posting = asyncio.create_task(order())
        while not system.jobs(FLUX):
            await asyncio.sleep(0.01)
        system.stop("gateway", signal.SIGKILL)
        await posting

    run(kill())
    cut = system.cut(org_id)
    assert (cut.held_micro_mxn, cut.available_micro_mxn) == (840_000, 49_160_000)
    wait_until(lambda: system.cut(org_id).held_micro_mxn == 0, "the hold ran out", within_s=1 + HOLD_MARGIN_S + 1)
    assert system.cut(org_id).available_micro_mxn == 50_000_000
    (event,) = system.events(org_id, 1)
    assert (event.end, event.reason, event.amount_micro_mxn) == ("expiry", "hold_expired", 0)
    system.start_gateway()
    assert post(system, key).status_code == 200
    assert json.loads(system.ghub("verify", "--json").stdout) == {"ok": True, "differences": []}


def test_sigterm_lets_twenty_requests_finish_although_five_clients_have_hung_up(prepared: Prepared) -> None:
    """15 clients get their 200, all 20 generations are stored and charged, and the process ends by itself with 0."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("drained", "50.00")
    system.behave(FLUX, "slow", times=20, seconds=4)

    async def order(client: httpx2.AsyncClient) -> int:
        reply = await client.post("/images/generations", json=ORDER, timeout=60)
        return reply.status_code

    async def storm() -> tuple[list[int], int]:
        loop = asyncio.get_running_loop()
        async with system.client(key) as client:
            orders = [asyncio.create_task(order(client)) for _ in range(20)]
            async with asyncio.timeout(WAIT_S):
                while len(system.jobs(FLUX)) < 20:
                    await asyncio.sleep(0.01)
            for left in orders[:5]:
                left.cancel()
            code = await loop.run_in_executor(None, system.stop, "gateway")
            return await asyncio.gather(*orders[5:]), code

    statuses, code = run(storm())
    assert Counter(statuses) == {200: 15}
    assert code == 0
    assert {(event.end, event.quantity) for event in system.events(org_id, 20)} == {("charge", 1)}
    assert len(system.images()) == 20
    assert system.cut(org_id).available_micro_mxn == 50_000_000 - 20 * 840_000


def test_a_client_that_hangs_up_does_not_stop_its_generation(system: System) -> None:
    """It is made, stored and charged once."""
    org_id, key = system.customer("gone", "50.00")
    system.behave(GPT, "slow", seconds=1)
    with httpx2.Client(**LOOPBACK) as client, pytest.raises(httpx2.ReadTimeout):
        client.post(f"{system.url}/images/generations", headers=bearer(key), json={**ORDER, "model": GPT}, timeout=0.4)
    (event,) = system.events(org_id, 1)
    assert (event.end, event.quantity) == ("charge", 1)
    assert {image.path for image in event.images} == {path for path in system.images() if path.startswith(org_id)}


def test_a_wiped_redis_is_rebuilt_with_the_same_keys_limits_and_balances(prepared: Prepared) -> None:
    """FLUSHALL under a running gateway: 503 until the projection is back, never 401 or another balance."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("wiped", "50.00", requests_per_minute=37)
    _, revoked = system.customer("wiped and revoked", "50.00")
    (row,) = json.loads(system.ghub("key", "list", "wiped and revoked", "--json").stdout)
    system.ghub("key", "revoke", row["key_id"])
    assert post(system, key).status_code == 200
    system.events(org_id, 1)
    with Redis.from_url(system.valkey.url) as redis:
        redis.flushall()
    seen = Counter[int]()

    def back() -> bool:
        reply = post(system, key)
        seen[reply.status_code] += 1
        return reply.status_code == 200

    wait_until(back, "the projection is rebuilt", within_s=10)
    assert set(seen) <= {200, 503}
    reply = post(system, key)
    assert (reply.headers["x-ratelimit-limit-requests"], reply.headers["x-geekhub-balance-mxn"]) == ("37", "47.48")
    assert post(system, revoked).json()["error"]["code"] == "key_revoked"
    system.events(org_id, 3)
    assert json.loads(system.ghub("verify", "--json").stdout) == {"ok": True, "differences": []}


def test_a_gateway_starts_on_a_wiped_redis(prepared: Prepared) -> None:
    """FLUSHALL while no gateway and no consumer runs: `ghub serve` alone rebuilds the projection."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("restarted", "50.00")
    assert post(system, key).status_code == 200
    system.events(org_id, 1)
    system.stop("gateway")
    system.stop("consumer")
    with Redis.from_url(system.valkey.url) as redis:
        redis.flushall()
    system.start_gateway()
    assert post(system, key).headers["x-geekhub-balance-mxn"] == "48.32"


def test_a_killed_consumer_loses_and_doubles_nothing(prepared: Prepared) -> None:
    """kill −9 while events flow, then another consumer: each event is in the ledger once."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("consumed", "50.00")

    async def storm() -> list[int]:
        async with system.client(key) as client:

            async def order() -> int:
                return (await client.post("/images/generations", json=ORDER)).status_code

            orders = [asyncio.create_task(order()) for _ in range(40)]
            await asyncio.wait(orders, return_when=asyncio.FIRST_COMPLETED)
            system.stop("consumer", signal.SIGKILL)
            system.start("consumer", "consume")
            return await asyncio.gather(*orders)

    assert run(storm()) == [200] * 40
    assert {event.amount_micro_mxn for event in system.events(org_id, 40)} == {840_000}
    assert json.loads(system.ghub("verify", "--json").stdout) == {"ok": True, "differences": []}


def post(system: System, key: str) -> httpx2.Response:
    """One order for one picture."""
    url = f"{system.url}/images/generations"
    return httpx2.post(url, headers=bearer(key), json=ORDER, **LOOPBACK, timeout=30)
