"""A gateway dies with jobs under way upstream: another one calls them off and gives the customer the money back."""

import asyncio
import json
import signal

import httpx2
import pytest
from redis import Redis

from metering.wallet import keys
from tests.conftest import LOOPBACK, run
from tests.e2e.conftest import Prepared
from tests.kits.ports import free_port
from tests.kits.system import FLUX, System, wait_until

FOUND_WITHIN_S = 25.0
"""10 s without a beat, and two looks of a living gateway, which come every 5 s; the hold lives 70 s."""


def start_another(system: System, name: str) -> None:
    """One more gateway over the same Redis, ledger and store; returns once it takes work."""
    port = free_port()
    system.start(name, "serve", GHUB_PORT=str(port), GHUB_JOURNAL_DIR=str(system.folder / f"journal-{name}"))

    def ready() -> bool:
        try:
            return httpx2.get(f"http://127.0.0.1:{port}/readyz", **LOOPBACK).status_code == 200
        except httpx2.TransportError:
            return False

    wait_until(ready, f"{name} is ready")


def noted(system: System) -> int:
    """Jobs that are stored in Redis with their holds."""
    with Redis.from_url(system.valkey.url) as redis:
        found = [redis.hvals(keys.jobs(partition)) for partition in range(keys.PARTITIONS)]
    return sum(len(lines.splitlines()) for page in found for lines in page)


@pytest.mark.rule(21)
def test_kill_9_with_jobs_in_the_queue_is_cleared_up_by_exactly_one_of_two_others(prepared: Prepared) -> None:
    """Both jobs of the order are cancelled upstream; one void `owner_died`, long before the hold would run out."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("killed", "50.00")
    system.behave(FLUX, "stuck_in_queue", times=2)

    async def order() -> None:
        async with system.client(key) as client:
            with pytest.raises(httpx2.TransportError):
                await client.post("/images/generations", json={"model": FLUX, "prompt": "x", "n": 8})

    async def kill() -> None:
        posting = asyncio.create_task(order())
        while noted(system) < 2:
            assert not posting.done()
            await asyncio.sleep(0.02)
        system.stop("gateway", signal.SIGKILL)
        await posting

    start_another(system, "rescuer-1")
    start_another(system, "rescuer-2")
    run(kill())
    assert system.cut(org_id).held_micro_mxn == 8 * 840_000
    wait_until(lambda: system.cut(org_id).held_micro_mxn == 0, "the order is ended", within_s=FOUND_WITHIN_S)
    assert [job["state"] for job in system.jobs(FLUX)] == ["cancelled", "cancelled"]
    (event,) = system.events(org_id, 1)
    assert set(json.loads(event.upstream_ids or "[]")) == {job["request_id"] for job in system.jobs(FLUX)}
    assert (event.end, event.reason, event.quantity, event.amount_micro_mxn) == ("void", "owner_died", 0, 0)
    assert event.ended_us - event.admitted_us < FOUND_WITHIN_S * 1_000_000
    assert system.cut(org_id).available_micro_mxn == 50_000_000
    assert noted(system) == 0 and system.images() == set()
    ended = [name for name in ("rescuer-1", "rescuer-2") for _ in range(system.log(name).count('"orphan_ended"'))]
    assert len(ended) == 1
    # The dead one does not come back: without its journal nobody could say that the books are whole.
    assert system.ghub("journal", "replay", str(system.folder / "journal")).returncode == 0
    assert json.loads(system.ghub("verify", "--json").stdout) == {"ok": True, "differences": []}


def test_a_gateway_that_stands_still_for_three_seconds_keeps_its_jobs(prepared: Prepared) -> None:
    """Its order is delivered and charged as if nothing had been, although another gateway looked at it meanwhile."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("busy", "50.00")
    start_another(system, "watcher")
    system.behave(FLUX, "slow", seconds=6)

    async def order() -> httpx2.Response:
        async with system.client(key) as client:
            posting = asyncio.create_task(client.post("/images/generations", json={"model": FLUX, "prompt": "x"}))
            while noted(system) < 1:
                assert not posting.done()
                await asyncio.sleep(0.02)
            gateway = system.processes["gateway"]
            gateway.send_signal(signal.SIGSTOP)
            await asyncio.sleep(3)  # this is what happens to it
            gateway.send_signal(signal.SIGCONT)
            return await posting

    reply = run(order())
    assert reply.status_code == 200, reply.text
    assert [job["state"] for job in system.jobs(FLUX)] == ["done"]
    (event,) = system.events(org_id, 1)
    assert (event.end, event.reason, event.quantity) == ("charge", "delivered", 1)
    assert '"orphan_ended"' not in system.log("watcher") + system.log("gateway")
