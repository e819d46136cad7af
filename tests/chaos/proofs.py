"""The harness proves itself: for each protection a fault that it guards against, which the judge reports without it."""

import asyncio
import signal
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import psycopg

from metering.ports import LedgerAway
from metering.wallet import keys
from proxy.backends import Backends
from tests.chaos.clients import Call, Clients, Kind
from tests.chaos.faults import BUSY_STOP_S
from tests.chaos.judge import Report, judge
from tests.chaos.log import uuid_of
from tests.chaos.world import CONSUMERS, GATEWAYS, GROK, LONG_DEADLINE_S, ULTRA, World
from tests.kits.system import GPT

DEADLINE_S = 3.0
SETTLES_S = 12.0
"""Patience with what may not come about: a consumer that died here has its events taken over after 10 s."""

REVOKED_S = 5.0
"""After so long a revocation holds, whatever happened before it (rule 2)."""

FULL_S = 3.0
"""How long a provider that is full asks to wait: time to stop a gateway meanwhile."""

MADE_S = 8.0
"""A generation that goes on when its first gateway is there again."""

LOST_S = 60.0
"""A client that waits for whatever comes."""


async def answered_and_killed(world: World, clients: Clients) -> None:
    """Three orders are answered while Valkey stands still, then the gateways die: only the journals know of them."""
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
    """A consumer commits an event, and all die before they can tell Valkey so: others book it again."""

    async def quiet() -> bool:
        journals = await world.back(lambda back: back.ledger.open_incarnations())
        return len(journals) <= len(GATEWAYS) and await asyncio.to_thread(world.streams) == 0

    await world.until(quiet, "what went before is booked")
    before = await _booked(world)
    world.postgres.freeze()
    assert (await clients.post(_call(world, clients, GROK, "b"), LOST_S)).status == 200

    async def read() -> bool:
        return await asyncio.to_thread(_pending, world) == 1

    await world.until(read, "a consumer has read it")
    await world.tell("hold", "valkey", ["out"])
    world.postgres.thaw()

    async def booked() -> bool:
        return await _booked(world) == before + 1

    await world.until(booked, "it is booked")
    for name in CONSUMERS:
        await world.end(name, signal.SIGKILL)
    await world.tell("cut", "valkey")


async def killed_at_work(world: World, clients: Clients) -> None:
    """The gateways die while an order is made: nobody is left to end its hold."""
    await world.behave(GPT, 2.0)
    asked = asyncio.create_task(clients.post(_call(world, clients, GPT, "c"), LOST_S))
    await _made(world, 1, GPT)
    for name in GATEWAYS:
        await world.end(name, signal.SIGKILL)
    assert (await asked).status is None


async def charged_unheard(world: World, clients: Clients) -> None:
    """Valkey charges, its answer is lost, and the gateway freezes beyond the hold's life; then it ends the order."""
    first, call = _call(world, clients, GROK, "d0"), _call(world, clients, GROK, "d")
    assert (await clients.post(first, LOST_S)).status == 200  # now Valkey knows the scripts by their hashes
    await world.behave(GROK, 1.0)
    asked = asyncio.create_task(clients.post(call, LOST_S))
    await _made(world, 1)
    await world.tell("hold", "valkey", ["back"])
    names = keys.OrgKeys(call.customer.org_id)

    async def charged() -> bool:
        return _charged(world, names) > before

    before = _charged(world, names)
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


async def written_short(world: World, clients: Clients) -> None:
    """Valkey stands still and the disks write half of what they are told: nobody may be answered 200 then."""
    await world.behave(GROK, 1.0)
    asked = asyncio.gather(*(clients.post(_call(world, clients, GROK, f"g{place}"), LOST_S) for place in range(3)))
    await _made(world, 3)
    for name in GATEWAYS:
        world.control(name).write_text("short")
    assert world.valkey.process is not None
    world.valkey.process.send_signal(signal.SIGSTOP)
    await asked
    for name in GATEWAYS:
        await world.end(name, signal.SIGKILL)
    world.valkey.process.send_signal(signal.SIGCONT)


async def restored(world: World, clients: Clients) -> None:
    """Orders are booked after the backup, and the ledger is what it was before them."""
    copy = await asyncio.to_thread(world.back_up)
    before = await _booked(world)
    while await _booked(world) < before + 3:
        await clients.post(_call(world, clients, GROK, f"h{len(clients.calls)}"), LOST_S)
    await asyncio.to_thread(world.restore, copy)


async def revoked_after_a_restore(world: World, clients: Clients) -> None:
    """Limits are changed often after the backup; in the restored ledger a key is revoked, and used again."""
    customer = await world.customer(f"revoked {len(world.customers)}")
    copy = await asyncio.to_thread(world.back_up)

    async def change(back: Backends) -> None:
        for number in range(20):
            await back.accounts.set_limits(customer.org_id, {"images_per_minute": 1_000 + number})

    await world.back(change)
    await asyncio.sleep(2.0)  # all of it is projected: once a second
    await asyncio.to_thread(world.restore, copy)

    async def revoke(back: Backends) -> None:
        for key in await back.ledger.keys(customer.org_id):
            await back.accounts.revoke_key(key.key_id)

    await world.until(partial(_done, world, revoke), "the key is revoked")
    await asyncio.sleep(REVOKED_S)
    world.customers[world.customers.index(customer)] = customer = replace(customer, revoked=True)
    call = replace(_call(world, clients, GROK, f"i{len(clients.calls)}"), customer=customer)
    clients.calls[-1] = call
    await clients.post(call, LOST_S)


async def _done(world: World, work: Callable[[Backends], Awaitable[None]]) -> bool:
    """Unless the ledger is not there yet."""
    try:
        await world.back(work)
    except LedgerAway:
        return False
    return True


async def busy_at_the_stop(world: World, clients: Clients) -> None:
    """The ledger takes no write when the gateways end."""
    async with world.busy_ledger(BUSY_STOP_S):
        await asyncio.gather(*(world.end(name, signal.SIGTERM) for name in GATEWAYS))


async def replaced(world: World, clients: Clients) -> None:
    """A provider is full, and its gateway stands still until another has brought it the order; then it goes on."""
    first = Clients(world, 0, f"http://127.0.0.1:{world.ports[GATEWAYS[0]]}/v1")
    call = _call(world, clients, ULTRA, "j", key="replaced", kind="long")
    await world.play({"model": ULTRA, "scenario": "rate_limited_429", "retry_after": FULL_S, "times": 1})
    await world.play({"model": ULTRA, "scenario": "slow", "seconds": MADE_S, "times": None})
    accepted = (await first.post(call, LOST_S, long=True)).accepted
    await world.until(partial(_refused, world, call, uuid_of(accepted)), "the provider was full")
    world.signal(GATEWAYS[0], signal.SIGSTOP)
    await _made(world, 1, ULTRA)
    world.signal(GATEWAYS[0], signal.SIGCONT)
    await world.until(partial(_none_made, world), "it is made")
    await first.aclose()


async def _refused(world: World, call: Call, order_id: str) -> bool:
    """Whether a provider was asked for it, and its gateway has noted that it has not taken it."""

    def begun() -> bool:
        with world.redis() as redis:
            return bool(redis.hexists(keys.OrgKeys(call.customer.org_id).hold(order_id), "part:0"))

    asked = call.prompt in await world.tell("seen", "upstreams")
    return asked and not await asyncio.to_thread(begun)


async def _none_made(world: World) -> bool:
    return await world.in_flight() == 0


Scenario = Callable[[World, Clients], Awaitable[None]]

GUARDED: dict[str, Scenario] = {
    "journal": answered_and_killed,
    "replay": answered_and_killed,
    "unique": booked_and_not_acknowledged,
    "expiry": killed_at_work,
    "first-close": charged_unheard,
    "retries": asked_twice,
    "segment": written_short,
    "feed": restored,
    "mark": revoked_after_a_restore,
    "end": busy_at_the_stop,
    "fence": replaced,
}


async def prove(without: str | None, folder: Path | None = None) -> Report:
    """List what the judge says about a fault without its protection; or about all faults, with all protections."""
    scenarios = [GUARDED[without]] if without else list(dict.fromkeys(GUARDED.values()))
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        long_deadline_s = LONG_DEADLINE_S if replaced in scenarios else DEADLINE_S
        world = World(folder or Path(temporary), DEADLINE_S, without, long_deadline_s)
        try:
            await world.start(latency_scale=0)
            for name in ("one", "two"):
                await world.customer(name)
            clients = Clients(world, 0)
            for scenario in scenarios:
                await scenario(world, clients)
                await world.heal()
                await _taken_again(world, clients)
            await clients.aclose()
            return await judge(world, clients.calls, SETTLES_S)
        finally:
            world.stop()


def _call(world: World, clients: Clients, model: str, name: str, key: str = "", kind: Kind | None = None) -> Call:
    number = int(name.encode().hex(), 16)
    kind = kind or ("key" if key else "once")
    call = Call(kind, world.customers[0], model, "1024x1024", 1, False, f"chaos-{number:x}-end", key)
    clients.calls.append(call)
    return call


async def _taken_again(world: World, clients: Clients) -> None:
    """A first request may meet a connection that was cut, and be 503: customers ask again, scenarios do not."""
    number = 0

    async def answered() -> bool:
        nonlocal number
        number += 1
        probes = [clients.post(_call(world, clients, GROK, f"p{number}{place}"), LOST_S) for place in range(6)]
        return all([(await probe).status == 200 for probe in probes])

    await world.until(answered, "orders are taken again")


async def _made(world: World, count: int, model: str = GROK) -> None:
    """Wait until so many are being made."""

    async def made() -> bool:
        running = [job for job in await world.jobs() if job["model"] == model and job["state"] == "running"]
        return len(running) >= count

    await world.until(made, f"{count} orders are made")


def _charged(world: World, names: keys.OrgKeys) -> int:
    """By the wallet."""
    with world.redis() as redis:
        return int(redis.hget(names.wallet, "charged") or 0)


def _pending(world: World) -> int:
    """Events that a consumer has read and not acknowledged."""
    with world.redis() as redis:
        streams = [keys.events(partition) for partition in range(keys.PARTITIONS)]
        return sum(redis.xpending(stream, "ledger")["pending"] for stream in streams if redis.exists(stream))


async def _booked(world: World) -> int:
    """Events in the ledger."""

    def count() -> int:
        with psycopg.connect(world.postgres.url(world.database)) as connection:
            row = connection.execute("SELECT count(*) FROM events").fetchone()
            assert row is not None
            return int(row[0])

    return await asyncio.to_thread(count)
