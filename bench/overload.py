"""More orders than a gateway can serve: at one moment, and for longer, whether it answers or not.

The gateway has a core of its own; load, upstream simulator, Valkey and consumer share the others.
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from bench.figures import Figure
from bench.processes import apart, cpu_s, pin
from tests.conftest import run
from tests.kits.load import Shot, burst, closed_loop, open_loop, order, shoot
from tests.kits.processes import executed
from tests.kits.system import FLUX, System, prepare

IN_FLIGHT = 64
ROUNDS = int(os.environ.get("ROUNDS", "3"))
LEG_S = float(os.environ.get("LEG_S", "10"))

BURSTS, CROWDS = (300, 1_000, 2_000), (1, 200)
"""Orders at one moment, and of how many organisations."""

FACTORS = (0.5, 1.0, 2.0, 5.0)
"""Offered load, as a multiple of what the gateway does with 64 clients that wait for their answers."""

IMAGE_BYTES = 16_000
WARM_UP, AT_BEST, PROBES = 400, 4_000, 20

FILLED_S = 3.0
"""From a load's beginning until as many orders are in work as there will be: deliveries count from then on."""

LEAST_GOODPUT = 0.9
"""Of the best, at every load from 2 on."""

MOST_P99_S, MOST_RECOVERY_S = 60.0, 5.0
NORMAL = 3.0
"""An order is served as usual again if it takes no longer than this multiple of the median without load."""


@dataclass(frozen=True, slots=True)
class Leg:
    """One load: orders a second that were offered, and delivered while it lasted, and how the gateway was after it.

    `core` is the share of its core that the gateway used meanwhile: below 1, others had no time for it.
    """

    factor: float
    offered: float
    delivered: float
    statuses: Counter[int]
    p99_s: float
    slowest_refusal_s: float
    recovery_s: float
    core: float


async def usual_s(system: System, key: str, numbers: Iterator[int]) -> float:
    """Measure the median of an order without any load."""
    return statistics.median([(await shoot(system.port, order(key, next(numbers)))).took_s for _ in range(PROBES)])


async def recovered_s(system: System, key: str, numbers: Iterator[int], usual: float) -> float:
    """Measure how long it takes until an order is served as usual again."""
    began_s = time.monotonic()
    while True:
        shot = await shoot(system.port, order(key, next(numbers)))
        if shot.status == 200 and shot.took_s < NORMAL * usual:
            return shot.at_s - began_s
        await asyncio.sleep(0.1)


async def leg(
    system: System, key: str, numbers: Iterator[int], best: float, usual: float, factor: float, seconds: float
) -> Leg:
    """Offer a load for some seconds, and wait until it is over."""
    per_s = best * factor
    requests = [order(key, next(numbers)) for _ in range(round(per_s * seconds))]
    began_s = time.monotonic()
    pid = system.processes["gateway"].pid
    before_s = cpu_s(pid)
    load = asyncio.create_task(open_loop(system.port, requests, per_s))
    await asyncio.sleep(seconds)
    used = (cpu_s(pid) - before_s) / (time.monotonic() - began_s)
    recovery = await recovered_s(system, key, numbers, usual)
    shots: list[Shot] = await load
    served = sorted(shot.took_s for shot in shots if shot.status == 200)
    over_s = [shot.at_s + shot.took_s - began_s for shot in shots if shot.status == 200]
    delivered = sum(FILLED_S <= one <= seconds for one in over_s)
    return Leg(
        factor,
        len(shots) / (shots[-1].at_s - began_s),
        delivered / (seconds - FILLED_S),
        Counter(shot.status for shot in shots),
        served[int(len(served) * 0.99)],
        max((shot.took_s for shot in shots if shot.status == 503), default=0.0),
        recovery,
        used,
    )


def bursts(core: set[int]) -> list[Figure]:
    """Send orders at one moment to a cold gateway, of one organisation and of many: how many were not answered 200."""
    figures = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("bursts", total=len(BURSTS) * len(CROWDS))
        for organisations in CROWDS:
            for orders in BURSTS:
                with running(core) as system:
                    keys = [customer(system, f"burst-{place}") for place in range(organisations)]
                    requests = [order(keys[place % organisations], place) for place in range(orders)]
                    shots = run(burst(system.port, requests))
                lost = orders - sum(shot.status == 200 for shot in shots)
                of = "1 organisation" if organisations == 1 else f"{organisations} organisations"
                figures.append(Figure(f"{orders:,} orders at one moment, {of}: not 200", "orders", [lost], most=0))
                figures.append(
                    Figure(f"{orders:,} at one moment, {of}: slowest", "s", [max(shot.took_s for shot in shots)])
                )
                progress.advance(task)
    return figures


def loads(core: set[int]) -> list[Figure]:
    """Offer parts and multiples of what a gateway can do, whether it answers or not, in rounds."""
    rounds: list[list[Leg]] = []
    bests: list[float] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("loads", total=ROUNDS * len(FACTORS))
        for _ in range(ROUNDS):
            with running(core) as system:
                key = customer(system, "overload")
                numbers, legs = count(), list[Leg]()
                run(closed_loop(system.port, [order(key, next(numbers)) for _ in range(WARM_UP)], IN_FLIGHT))
                usual = run(usual_s(system, key, numbers))
                best = run(closed_loop(system.port, [order(key, next(numbers)) for _ in range(AT_BEST)], IN_FLIGHT))
                for factor in FACTORS:
                    legs.append(run(leg(system, key, numbers, best, usual, factor=factor, seconds=LEG_S)))
                    progress.advance(task)
                rounds.append(legs)
                bests.append(max(best, *(one.delivered for one in legs)))
    figures = [Figure("the best", "orders/s", bests)]
    for place, factor in enumerate(FACTORS):
        of = [legs[place] for legs in rounds]
        shares = [one.delivered / best for one, best in zip(of, bests, strict=True)]
        others = [float(one.statuses.total() - one.statuses[200] - one.statuses[503]) for one in of]
        figures += [
            Figure(f"{factor:g} ×: offered", "orders/s", [one.offered for one in of]),
            Figure(f"{factor:g} ×: of the best", "", shares, least=LEAST_GOODPUT if factor >= 2 else None),
            Figure(f"{factor:g} ×: the gateway's core in use", "", [one.core for one in of]),
            Figure(f"{factor:g} ×: p99 of the accepted", "s", [one.p99_s for one in of], most=MOST_P99_S),
            Figure(f"{factor:g} ×: slowest refusal", "s", [one.slowest_refusal_s for one in of]),
            Figure(f"{factor:g} ×: neither 200 nor 503", "orders", others, most=0),
            Figure(f"{factor:g} ×: as usual again", "s", [one.recovery_s for one in of], most=MOST_RECOVERY_S),
        ]
    return figures


def customer(system: System, name: str) -> str:
    """Create a customer without limits; returns the key."""
    free = dict.fromkeys(("requests_per_minute", "images_per_minute", "in_flight"), 1_000_000)
    return system.customer(name, "100000.00", **free)[1]


@contextmanager
def running(core: set[int]) -> Iterator[System]:
    """Run a new system, its gateway on a core of its own."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        system = prepare(Path(folder), GHUB_FAL_MODE="direct")
        system.begin = executed
        try:
            system.start_all()
            pin(system.processes["gateway"].pid, core)
            system.behave(FLUX, "ok", None, bytes=IMAGE_BYTES, same=True)
            yield system
        finally:
            system.stop_all()


def measure() -> list[Figure]:
    """Measure bursts, then loads."""
    core = apart()
    return [*bursts(core), *loads(core)]
