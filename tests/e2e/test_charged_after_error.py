"""An error says "nothing was charged" only if that is true; a charged order with an error has its images (rule 8)."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx2
import pytest

from metering.money import parse_mxn
from tests.conftest import LOOPBACK, run
from tests.e2e.conftest import Prepared
from tests.e2e.test_answered import CLEAN, books
from tests.kits.disks import FAULTS, failing
from tests.kits.processes import Forked
from tests.kits.system import FLUX, System, wait_until

DALL_E, GROK = "openai/dall-e-3", "xai/grok-2-image"
LONG = "🌵" * 4_000
ORDERS = 5


@pytest.mark.parametrize(("model", "mxn"), [(DALL_E, "6.72"), (GROK, "11.76")])
def test_eight_prompts_of_4000_characters_arrive_whole_and_are_charged_once(
    prepared: Prepared, model: str, mxn: str
) -> None:
    """In the reply, by the id and in the replay: four bytes a character, and nothing behind the settlement breaks."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("long", "50.00")
    system.behave(model, "longer_prompt", times=None)
    body = {"model": model, "prompt": "un cactus", "n": 8}

    async def ask() -> list[httpx2.Response]:
        async with system.client(key) as client:
            keyed = {"idempotency-key": "k"}
            first, again = [await client.post("/images/generations", json=body, headers=keyed) for _ in range(2)]
            assert first.status_code == 200, first.text
            return [first, again, await client.get(f"/images/generations/{first.json()['id']}")]

    replies = run(ask())
    for reply in replies:
        assert [image["revised_prompt"] for image in reply.json()["data"]] == [LONG] * 8
    assert replies[1].headers["idempotent-replayed"] == "true"
    (event,) = system.events(org_id, 1)
    assert event.amount_micro_mxn == parse_mxn(mxn)
    assert books(system) == CLEAN


def test_a_longer_prompt_is_cut_and_logged(prepared: Prepared) -> None:
    """Nobody can make us keep more than any model has."""
    system = prepared()
    system.start_all()
    _, key = system.customer("longer", "50.00")
    system.behave(DALL_E, "longer_prompt", bytes=4 * 4_001)

    async def ask() -> httpx2.Response:
        async with system.client(key) as client:
            return await client.post("/images/generations", json={"model": DALL_E, "prompt": "un cactus"})

    assert run(ask()).json()["data"][0]["revised_prompt"] == LONG
    assert "revised_prompt_cut" in system.log()


def ready(system: System) -> bool:
    reply = httpx2.get(f"{system.url.removesuffix('/v1')}/readyz", **LOOPBACK)
    return reply.status_code == 200


def storm(system: System, key: str, meanwhile: Callable[[], object]) -> list[httpx2.Response]:
    """Orders with a key of their own each; `meanwhile` runs when all of them are being made."""

    async def one(client: httpx2.AsyncClient, place: int) -> httpx2.Response:
        headers = {"idempotency-key": f"k{place}"} if place else {}
        return await client.post("/images/generations", json={"model": FLUX, "prompt": f"x{place}"}, headers=headers)

    async def all_of_them() -> list[httpx2.Response]:
        async with system.client(key) as client:
            asked = [asyncio.create_task(one(client, place)) for place in range(ORDERS)]
            while len(system.jobs(FLUX)) < ORDERS:
                await asyncio.sleep(0.01)
            meanwhile()
            return await asyncio.gather(*asked)

    return run(all_of_them())


@pytest.mark.rule(8, 14)
@pytest.mark.parametrize("fault", FAULTS[:2])
def test_a_disk_that_fails_buys_nothing_more_and_says_what_is_charged(prepared: Prepared, fault: str) -> None:
    """Each order that was under way is 503 `charged_fetch_by_id`, counted; retries and its id bring the images; until a
    fresh file is on the disk no order is taken (rules 8, 14)."""
    system = prepared()
    control = Path(system.folder) / "disk"
    system.begin = partial(Forked, before=failing(control))
    system.start_all()
    org_id, key = system.customer("disk", "50.00")
    system.behave(FLUX, "slow", times=ORDERS, seconds=1)
    replies = storm(system, key, partial(control.write_text, fault))
    for reply in replies:
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "charged_fetch_by_id"), reply.text
        assert reply.headers["x-should-retry"] == "true"
        assert reply.headers["x-request-id"] in reply.json()["error"]["message"]
    assert system.log().count('"charged_after_error"') == ORDERS
    assert not ready(system)

    async def afterwards() -> None:
        async with system.client(key) as client:
            refused = await client.post("/images/generations", json={"model": FLUX, "prompt": "another"})
            assert refused.status_code == 503 and "nothing was charged" in refused.json()["error"]["message"]
            for reply in replies:
                found = await client.get(f"/images/generations/{reply.headers['x-request-id']}")
                assert httpx2.get(found.json()["data"][0]["url"], **LOOPBACK).status_code == 200
            control.unlink()
            await asyncio.to_thread(wait_until, partial(ready, system), "the gateway is ready", 5)
            body = {"model": FLUX, "prompt": "x0"}
            retried = await client.post("/images/generations", json=body, headers={"x-stainless-retry-count": "1"})
            keyed = [
                await client.post(
                    "/images/generations",
                    json={"model": FLUX, "prompt": f"x{place}"},
                    headers={"idempotency-key": f"k{place}"},
                )
                for place in range(1, ORDERS)
            ]
            for again, reply in zip([retried, *keyed], replies, strict=True):
                assert again.headers["idempotent-replayed"] == "true", again.text
                assert again.json()["id"] == reply.headers["x-request-id"]
            assert (await client.post("/images/generations", json={"model": FLUX, "prompt": "new"})).status_code == 200

    run(afterwards())
    assert len(system.jobs(FLUX)) == ORDERS + 1
    assert {event.end for event in system.events(org_id, ORDERS + 1)} == {"charge"}
    assert books(system) == CLEAN


@pytest.mark.rule(18, 38)
@pytest.mark.parametrize("retry", [{"x-stainless-retry-count": "1"}, {}])
def test_a_retry_is_given_the_order_that_it_was_told_of_and_no_twin(prepared: Prepared, retry: dict[str, str]) -> None:
    """The same order twice: one is answered, the other is 503 `charged_fetch_by_id`; its SDK's retry gets that very
    order, whether or not it counts, so that two charges are two results (rules 18, 38)."""
    system = prepared()
    control = Path(system.folder) / "disk"
    system.begin = partial(Forked, before=failing(control))
    system.start_all()
    org_id, key = system.customer("twins", "50.00")
    body = {"model": FLUX, "prompt": "the same"}

    async def ask() -> list[str]:
        async with system.client(key) as client:
            first = await client.post("/images/generations", json=body)
            system.behave(FLUX, "slow", seconds=1)
            asked = asyncio.create_task(client.post("/images/generations", json=body))
            while len(system.jobs(FLUX)) < 2:
                await asyncio.sleep(0.01)
            control.write_text("sync")
            told = await asked
            assert told.json()["error"]["code"] == "charged_fetch_by_id"
            control.unlink()
            await asyncio.to_thread(wait_until, partial(ready, system), "the gateway is ready", 5)
            again = await client.post("/images/generations", json=body, headers=retry)
            assert again.headers["idempotent-replayed"] == "true"
            assert again.json()["id"] == told.headers["x-request-id"]
            return [first.json()["id"], again.json()["id"]]

    assert len(set(run(ask()))) == 2
    assert len(system.events(org_id, 2)) == 2
