"""One run of the chaos: start the world, let clients and faults loose on it, heal it, and ask the judge."""

import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from tests.chaos.clients import Clients
from tests.chaos.faults import BUSY, LONGEST_S, WAITS_S, Fault, Faults, Struck, plan
from tests.chaos.judge import Report, judge
from tests.chaos.world import LONG_DEADLINE_S, World

CUSTOMERS = 30
"""Six for each kind of client: who shares a wallet with few others is the easier told from them."""

PLACES = 60
"""Clients at a time: some wait for gateways that are down, and 20 generations are to be in flight all the same."""

DEADLINE_S = 8.0

LAST_CLIENT_S = 110.0
"""Clients end by themselves: one with a key after 45 s and an answer, an SDK after its tries, one with a long order
after its hold."""


@dataclass(frozen=True)
class Progress:
    """State of the progress bar."""

    faults: int
    in_flight: int
    answered: int


@dataclass(frozen=True)
class Outcome:
    """What was done, and what was found."""

    struck: list[Struck]
    hang_ups: int
    ended_alone: Counter[str]
    report: Report


async def chaos(
    seed: int,
    seconds: float,
    *,
    without: str | None = None,
    pace_s: float = 2.5,
    longest_s: float = LONGEST_S,
    deadline_s: float = DEADLINE_S,
    long_deadline_s: float = LONG_DEADLINE_S,
    waits_s: float = WAITS_S,
    max_faults: int | None = None,
    places: int = PLACES,
    folder: Path | None = None,
    watch: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Do a whole run: `seconds` under fire, and then peace. The content of `folder` stays for inspection."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        world = World(folder or Path(temporary), deadline_s, without, long_deadline_s)
        supervising = asyncio.create_task(world.supervise())
        try:
            await world.start(random.Random(f"{seed} upstreams"))
            planned = islice(plan(seed, pace_s, longest_s), max_faults)
            return await _under_fire(world, supervising, seed, seconds, planned, places, waits_s, watch)
        finally:
            supervising.cancel()
            with suppress(asyncio.CancelledError):
                await supervising
            world.stop()


async def _under_fire(
    world: World,
    supervising: asyncio.Task[None],
    seed: int,
    seconds: float,
    planned: Iterator[Fault],
    places: int,
    waits_s: float,
    watch: Callable[[Progress], None],
) -> Outcome:
    for place in range(CUSTOMERS):
        await world.customer(f"customer {place}")
    clients = Clients(world, seed)
    faults, stop, peace = Faults(world, waits_s), asyncio.Event(), asyncio.Event()
    crowd: asyncio.Future[list[None]] = asyncio.gather(*(clients.work(place, stop) for place in range(places)))
    striking = asyncio.create_task(faults.run(planned, peace))

    async def tell() -> None:
        while True:
            watch(Progress(len(faults.struck), faults.in_flight, clients.answered))
            await asyncio.sleep(0.5)

    telling = asyncio.create_task(tell())
    try:
        under_fire: set[asyncio.Future[Any]] = {striking, crowd, supervising}
        await asyncio.wait(under_fire, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        peace.set()
        await striking
        stop.set()
        await world.heal()
        async with asyncio.timeout(LAST_CLIENT_S):
            await crowd
        await clients.aclose()
        (world.folder / "calls.json").write_bytes(orjson.dumps(clients.calls))
        report = await judge(world, clients.calls)
        return Outcome(faults.struck, clients.hang_ups, world.ended_alone, report)
    finally:
        for task in (telling, striking, crowd):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def table(outcome: Outcome) -> list[tuple[str, str, int, int, int, int]]:
    """Component, fault, how often, how often while BUSY or more were in flight, and the fewest and most of them."""
    by_kind: dict[tuple[str, str], list[int]] = {}
    for one in outcome.struck:
        by_kind.setdefault((one.fault.component, one.fault.kind), []).append(one.in_flight)
    return [
        (*names, len(counts), sum(count >= BUSY for count in counts), min(counts), max(counts))
        for names, counts in sorted(by_kind.items())
    ]
