"""A gateway of another region: one Redis, and the distance to it, as k8s/README.md tells an operator."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

from tests.conftest import LOOPBACK
from tests.e2e.conftest import Prepared
from tests.kits.distance import far_away
from tests.kits.ports import free_port
from tests.kits.system import FLUX, GPT, System, bearer, wait_until

NEAR_S, FAR_S, TOO_FAR_S = 0.0, 0.04, 0.25
"""Round trips to Redis: at home, in a region that is served well, and beyond the 100 ms of a decision."""

ORDERS = 12


@contextmanager
def region(system: System, name: str, round_trip_s: float) -> Iterator[str]:
    """A further gateway, as far from Redis as this; yields its address."""
    port = free_port()
    with far_away(system.valkey.socket, free_port(), round_trip_s) as redis:
        own = {
            "GHUB_PORT": str(port),
            "GHUB_REDIS_URL": redis,
            "GHUB_JOURNAL_DIR": str(system.folder / name),
            "GHUB_REGION": name,
        }
        system.start(name, "serve", **own)
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/readyz"), f"{name} is ready")
        yield f"{url}/v1"
        system.stop(name)


def answers(url: str) -> bool:
    """Whether it is a 200."""
    try:
        return httpx2.get(url, **LOOPBACK).status_code == 200
    except httpx2.TransportError:
        return False


def order(client: httpx2.Client, model: str, prompt: str) -> tuple[int, float]:
    """Place one order: its status, and how long it took."""
    began_s = time.monotonic()
    reply = client.post("images/generations", json={"model": model, "prompt": prompt})
    return reply.status_code, time.monotonic() - began_s


def customer(url: str, key: str) -> httpx2.Client:
    """A customer of one region."""
    return httpx2.Client(base_url=url, headers=bearer(key), timeout=60, **LOOPBACK)


@contextmanager
def two_regions(system: System, key: str) -> Iterator[dict[str, httpx2.Client]]:
    """The same customer in each of two."""
    with (
        region(system, "near", NEAR_S) as near,
        region(system, "far", FAR_S) as far,
        customer(near, key) as here,
        customer(far, key) as there,
    ):
        yield {"near": here, "far": there}


def test_two_regions_sell_from_one_balance(prepared: Prepared) -> None:
    """In turn, until it is used up for both; each order is charged once, with its region in its event."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("taller", "5.04")  # six orders of 0.84
    with two_regions(system, key) as both:
        found = [order(client, FLUX, f"a lighthouse, {n}")[0] for n in range(4) for client in both.values()]
    assert found == [200] * 6 + [402] * 2
    events = system.events(org_id, 6)
    assert [event.opened.region for event in events] == ["near", "far"] * 3
    assert json.loads(system.ghub("balance", "taller", "--json").stdout)["available_mxn"] == "0.00"


def test_the_distance_costs_two_round_trips(prepared: Prepared) -> None:
    """Admission and settlement: the fastest order of each region, in turn, because the machine is busy."""
    system = prepared()
    system.start_all()
    _, key = system.customer("taller", "500.00")
    took: dict[str, list[float]] = {"near": [], "far": []}
    with two_regions(system, key) as both:
        for number in range(ORDERS):
            for name, client in both.items():
                status, seconds = order(client, GPT, f"a lighthouse, {number} {name}")
                assert status == 200
                took[name].append(seconds)
    cost_s = min(took["far"]) - min(took["near"])
    assert 1.5 * FAR_S < cost_s < 4 * FAR_S, took


def test_a_region_that_is_too_far_sells_nothing_rather_than_wrongly(prepared: Prepared) -> None:
    """503, nothing is bought or charged; home goes on."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("taller", "50.00")
    with region(system, "beyond", TOO_FAR_S) as url, customer(url, key) as client:
        assert {order(client, FLUX, f"a lighthouse, {number}")[0] for number in range(5)} == {503}
        with customer(system.url, key) as home:
            assert order(home, FLUX, "a lighthouse")[0] == 200
    (event,) = system.events(org_id, 1)
    assert event.opened.region != "beyond"
    assert len(system.jobs()) == 1
