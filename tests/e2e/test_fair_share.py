"""One organisation at its limits takes nothing from another: real processes, slow upstreams, and a gateway that is so
small that a test fills it."""

import asyncio
from functools import partial
from typing import Any

import httpx2

from proxy import wiring
from tests.conftest import run
from tests.e2e.conftest import Prepared
from tests.kits.processes import Forked
from tests.kits.system import FLUX, GPT, System

PICTURES, SPARE = 80, 16
OTHER = "fal/recraft-v3"


def small() -> None:
    """Make a process small before it starts: this many pictures at once, plus a spare for others who want some."""
    vars(wiring).update(MAX_PICTURES=PICTURES, SPARE_PICTURES=SPARE)


def started(prepared: Prepared, slow_s: float) -> System:
    """A system with a small gateway, whose upstream of flux takes its time."""
    system = prepared()
    system.begin = partial(Forked, before=small)
    system.start_all()
    system.behave(FLUX, "slow", None, seconds=slow_s)
    return system


async def order(client: httpx2.AsyncClient, model: str, n: int) -> httpx2.Response:
    """One order, no retry."""
    body = {"model": model, "prompt": "un faro", "n": n}
    return await client.post("/images/generations", json=body)


def codes(replies: list[httpx2.Response]) -> list[Any]:
    """200, or an error's code."""
    return [200 if reply.status_code == 200 else reply.json()["error"]["code"] for reply in replies]


async def under_way(system: System, images: int) -> None:
    """Wait until the upstream works on so many."""
    async with asyncio.timeout(20):
        while sum(job["n"] for job in system.jobs(FLUX)) < images:
            await asyncio.sleep(0.05)


def test_two_organisations_fill_a_gateway_and_a_third_is_served(prepared: Prepared) -> None:
    """While every picture is theirs, the third's orders are made at once; what the two are told is so: busy, come back
    in five seconds. Its orders are then bound by its share, and not by what the two have."""
    system = started(prepared, slow_s=50)
    names = ("one", "two", "three")
    keys = [system.customer(name, "500.00")[1] for name in names]

    async def work() -> None:
        async with system.client(keys[0]) as one, system.client(keys[1]) as two, system.client(keys[2]) as three:
            await fill(one, two, three)

    async def fill(one: httpx2.AsyncClient, two: httpx2.AsyncClient, three: httpx2.AsyncClient) -> None:
        filling = [asyncio.create_task(order(who, FLUX, 8)) for _ in range(PICTURES // 16) for who in (one, two)]
        await under_way(system, PICTURES)
        refused = await asyncio.gather(*(order(who, FLUX, 8) for who in (one, two)))
        assert codes(refused) == ["gateway_busy"] * 2
        for reply in refused:
            assert reply.status_code == 503 and "busy" in reply.json()["error"]["message"]
            assert "disk" not in reply.text
            assert (reply.headers["retry-after"], reply.headers["x-should-retry"]) == ("5", "true")
        served = [await order(three, OTHER, 4) for _ in range(5)]
        served += await asyncio.gather(*(order(three, GPT, 1) for _ in range(4)))
        assert codes(served) == [200] * 9
        assert not any(task.done() for task in filling), "the gateway was full all the while"
        for task in filling:
            task.cancel()
        await asyncio.gather(*filling, return_exceptions=True)

    run(work())


def test_one_organisation_alone_has_all_of_a_gateway(prepared: Prepared) -> None:
    """Each picture that can be made at once; the next order is refused until one ends, and then it is taken."""
    system = started(prepared, slow_s=8)
    _, key = system.customer("alone", "500.00")

    async def work() -> None:
        async with system.client(key) as client:
            filling = [asyncio.create_task(order(client, FLUX, 8)) for _ in range(PICTURES // 8)]
            await under_way(system, PICTURES)
            assert codes([await order(client, FLUX, 1)]) == ["gateway_busy"]
            assert codes(list(await asyncio.gather(*filling))) == [200] * len(filling)
            assert codes([await order(client, OTHER, 8)]) == [200]

    run(work())
