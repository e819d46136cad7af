"""The harness proves itself: for each protection one fault that it guards against, which the judge reports without it."""

import asyncio
import signal
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import psycopg

from metering.wallet import keys
from tests.chaos.clients import Call, Clients
from tests.chaos.judge import Report, judge
from tests.chaos.world import CONSUMERS, GATEWAYS, GROK, World
from tests.e2e.kit import GPT

DEADLINE_S = 3.0
SETTLES_S = 12.0
"""Patience with what may not come about: a consumer that died here has its events taken over after 10 s."""

LOST_S = 60.0
"""A client that waits for whatever comes."""


async def answered_and_killed(world: World, clients: Clients) -> None:
    """Three orders are answered while Valkey stands still, and then the gateways die: only the journals know of them."""
    await world.behave(GROK, 1.0)
    asked = asyncio.gather(*(clients.post(_call(world, clients, GROK, f"a{place}"), LOST_S) for place in range(3)))
    await _made(world, 3)
    assert world.valkey.process is not None
    world.valkey.process.send_signal(signal.SIGSTOP)
    assert [attempt.status for attempt in await asked] == [200] * 3
    for name in GATEWAYS:
        await world.end(name, signal.SIGKILL)
    world.valkey.process.send_signal(signal.SIGCONT)


async def booked_and_not_acknowledged(world: World, clients: Clients) -> None:
    """The consumers commit three events and die before they can tell Valkey so: others book them again."""
    before = await _booked(world)
    world.postgres.freeze()
    asked = [clients.post(_call(world, clients, GROK, f"b{place}"), LOST_S) for place in range(3)]
    assert [attempt.status for attempt in await asyncio.gather(*asked)] == [200] * 3

    async def read() -> bool:
        return await asyncio.to_thread(_pending, world) == 3

    await world.until(read, "the consumers have read them")
    assert world.valkey.process is not None
    world.valkey.process.send_signal(signal.SIGSTOP)
    world.postgres.thaw()

    async def booked() -> bool:
        return await _booked(world) == before + 3

    await world.until(booked, "they are booked")
    for name in CONSUMERS:
        await world.end(name, signal.SIGKILL)
    world.valkey.process.send_signal(signal.SIGCONT)


async def killed_at_work(world: World, clients: Clients) -> None:
    """The gateways die while an order is made: nobody is left to end its hold."""
    await world.behave(GPT, 2.0)
    asked = asyncio.create_task(clients.post(_call(world, clients, GPT, "c"), LOST_S))
    await _made(world, 1, GPT)
    for name in GATEWAYS:
        await world.end(name, signal.SIGKILL)
    assert (await asked).status is None


async def charged_unheard(world: World, clients: Clients) -> None:
    """Valkey charges and its answer is lost; the gateway stands still beyond the hold's life, and then ends the order."""
    await world.behave(GROK, 1.0)
    call = _call(world, clients, GROK, "d")
    asked = asyncio.create_task(clients.post(call, LOST_S))
    await _made(world, 1)
    await world.tell("hold", "valkey", ["back"])
    names = keys.OrgKeys(call.customer.org_id)

    async def charged() -> bool:
        with world.redis() as redis:
            return int(redis.hget(names.wallet, "charged") or 0) > before  # type: ignore[arg-type]  # not async

    with world.redis() as redis:
        before = int(redis.hget(names.wallet, "charged") or 0)  # type: ignore[arg-type]  # as above
    await world.until(charged, "it is charged")
    for name in GATEWAYS:
        world.signal(name, signal.SIGSTOP)
    await world.tell("cut", "valkey")
    await world.tell("hold", "valkey", [])
    await asyncio.sleep(world.hold_life_s)
    for name in GATEWAYS:
        world.signal(name, signal.SIGCONT)
    await asked


async def asked_twice(world: World, clients: Clients) -> None:
    """The same order with the same key, again after its answer."""
    call = _call(world, clients, GROK, "e", key="the same")
    assert [(await clients.post(call, LOST_S)).status for _ in range(2)] == [200, 200]


Scenario = Callable[[World, Clients], Awaitable[None]]

GUARDED: dict[str, Scenario] = {
    "journal": answered_and_killed,
    "replay": answered_and_killed,
    "unique": booked_and_not_acknowledged,
    "expiry": killed_at_work,
    "first-close": charged_unheard,
    "retries": asked_twice,
}


async def prove(without: str | None, folder: Path | None = None) -> Report:
    """What the judge says of the fault that a protection guards against, without it; or of all of them, with all."""
    scenarios = [GUARDED[without]] if without else list(dict.fromkeys(GUARDED.values()))
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        world = World(folder or Path(temporary), DEADLINE_S, without)
        try:
            await world.start(latency_scale=0)
            for name in ("one", "two"):
                await world.customer(name)
            clients = Clients(world.url, 0, world.customers)
            for scenario in scenarios:
                await scenario(world, clients)
                await world.heal()
            await clients.aclose()
            return await judge(world, clients.calls, SETTLES_S)
        finally:
            world.stop()


def _call(world: World, clients: Clients, model: str, name: str, key: str = "") -> Call:
    number = int(name.encode().hex(), 16)
    kind = "key" if key else "once"
    call = Call(kind, world.customers[0], model, "1024x1024", 1, False, f"chaos-{number:x}-end", key)  # type: ignore[arg-type]
    clients.calls.append(call)
    return call


async def _made(world: World, count: int, model: str = GROK) -> None:
    """Wait until so many are being made."""

    async def made() -> bool:
        return sum(job["model"] == model and job["state"] == "running" for job in await world.jobs()) >= count

    await world.until(made, f"{count} orders are made")


def _pending(world: World) -> int:
    """Events that a consumer has read and not acknowledged."""
    with world.redis() as redis:
        streams = [keys.events(partition) for partition in range(keys.PARTITIONS)]
        return sum(redis.xpending(stream, "ledger")["pending"] for stream in streams if redis.exists(stream))  # type: ignore[index,misc]  # not async


async def _booked(world: World) -> int:
    """Events in the ledger."""

    def count() -> int:
        with psycopg.connect(world.postgres.url(world.database)) as connection:
            row = connection.execute("SELECT count(*) FROM events").fetchone()
            assert row is not None
            return int(row[0])

    return await asyncio.to_thread(count)
