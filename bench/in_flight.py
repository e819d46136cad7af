"""Thousands of generations open in one process: memory for each, lag of its loop, and CPU for each beside a hundred.

They are opened within half a minute, and answered after 20 to 45 seconds. The gateway has a core of its own; clients,
upstream simulator, store, Valkey and consumer share the others.
"""

import asyncio
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import Progress

from bench.figures import Figure
from bench.processes import apart, cpu_s, pin, resident_bytes
from tests.conftest import LOOPBACK, run
from tests.kits.load import open_loop, order
from tests.kits.ports import free_port
from tests.kits.processes import Process, executed
from tests.kits.system import FLUX, System, prepare

OPEN, FEW = 5_000, 100
OPENED_WITHIN_S = 30.0
ANSWERED_S = (20.0, 45.0)
ORGANISATIONS = {"one organisation": 1, "200 organisations": 200}
ROUNDS = int(os.environ.get("ROUNDS", "3"))
IMAGE_BYTES = 16_000

MOST_KIB = 64.0
MOST_LAG_MS = 50.0
MOST_CPU = 1.15


@dataclass(frozen=True, slots=True)
class Leg:
    """Some thousand orders: statuses, milliseconds of CPU for each, and how late the loop was in 99 of 100 looks."""

    statuses: Counter[int]
    cpu_ms: float
    late_ms: float
    peak_bytes: int


def begin(arguments: Sequence[str], environment: Mapping[str, str], out: Path, err: Path) -> Process:
    """Run `ghub`; `serve` with more room than is usual."""
    if arguments[0] != "serve":
        return executed(arguments, environment, out, err)
    with out.open("ab") as stdout, err.open("ab") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "bench.raised", *arguments], env=environment, stdout=stdout, stderr=stderr
        )


def looks(system: System) -> dict[float, float]:
    """Read how often the loop was at most so late, by seconds."""
    port = system.environment["GHUB_METRICS_PORT"]
    text = httpx2.get(f"http://127.0.0.1:{port}/metrics", **LOOPBACK).text
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "ghub_loop_late_seconds_bucket"
    }


def late_ms(before: Mapping[float, float], after: Mapping[float, float]) -> float:
    """Find the bucket within which 99 of 100 looks were, in milliseconds, and how far into it, as if it were even."""
    counts = {edge: after[edge] - before[edge] for edge in after}
    wanted, below_s, seen = 0.99 * counts[max(counts)], 0.0, 0.0
    for edge in sorted(counts):
        if counts[edge] >= wanted:
            share = (wanted - seen) / max(counts[edge] - seen, 1)
            return (below_s + (edge - below_s) * share) * 1000 if edge != float("inf") else edge
        below_s, seen = edge, counts[edge]
    raise AssertionError("the last bucket has all of them")


async def leg(system: System, keys: Sequence[str], first: int, orders: int, per_s: float) -> Leg:
    """Place orders by the clock, and watch the gateway meanwhile."""
    pid = system.processes["gateway"].pid
    peak_bytes = 0

    async def watch() -> None:
        nonlocal peak_bytes
        while True:
            peak_bytes = max(peak_bytes, resident_bytes(pid, "VmRSS"))
            await asyncio.sleep(0.25)

    before_s, before = cpu_s(pid), await asyncio.to_thread(looks, system)
    watching = asyncio.create_task(watch())
    requests = [order(keys[place % len(keys)], first + place) for place in range(orders)]
    shots = await open_loop(system.port, requests, per_s)
    watching.cancel()
    used_s, after = cpu_s(pid) - before_s, await asyncio.to_thread(looks, system)
    return Leg(Counter(shot.status for shot in shots), used_s / orders * 1000, late_ms(before, after), peak_bytes)


def answer_after(system: System, seconds: Sequence[float]) -> None:
    """Set how long each of the next generations takes."""
    steps = [{"scenario": "slow", "seconds": one, "bytes": IMAGE_BYTES, "same": True} for one in seconds]
    reply = httpx2.put(f"{system.simulator}/_sim/behaviour", json={"model": FLUX, "sequence": steps}, **LOOPBACK)
    assert reply.status_code == 200, reply.text


def measure() -> list[Figure]:
    """Measure one organisation and many, each in rounds of few and of many in flight."""
    core = apart()
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        system = prepare(Path(folder), GHUB_FAL_MODE="direct")
        system.begin = begin
        try:
            system.start_all()
            system.stop("gateway")
            system.environment["GHUB_METRICS_PORT"] = str(free_port())  # the consumer has none
            system.start_gateway()
            pin(system.processes["gateway"].pid, core)
            return _measured(system)
        finally:
            system.stop_all()


def _measured(system: System) -> list[Figure]:
    figures, numbers, chance = [], count(0, 10_000), random.Random(1)
    per_s = OPEN / OPENED_WITHIN_S
    free = dict.fromkeys(("requests_per_minute", "images_per_minute", "in_flight"), 1_000_000)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("in flight", total=len(ORGANISATIONS) * ROUNDS)
        for name, organisations in ORGANISATIONS.items():
            keys = [system.customer(f"{name}-{place}", "100000.00", **free)[1] for place in range(organisations)]
            legs: dict[int, list[Leg]] = {FEW: [], OPEN: []}
            warm_bytes = 0
            for turn in range(ROUNDS):
                answer_after(system, [FEW / per_s] * OPEN)
                if not turn:
                    run(leg(system, keys, next(numbers), 1_000, per_s))
                    warm_bytes = resident_bytes(system.processes["gateway"].pid, "VmRSS")
                    answer_after(system, [FEW / per_s] * OPEN)
                legs[FEW].append(run(leg(system, keys, next(numbers), OPEN // 2, per_s)))
                system.behave(FLUX, "ok", None, bytes=IMAGE_BYTES, same=True)
                answer_after(system, [chance.uniform(*ANSWERED_S) for _ in range(OPEN)])
                legs[OPEN].append(run(leg(system, keys, next(numbers), OPEN, per_s)))
                system.behave(FLUX, "ok", None, bytes=IMAGE_BYTES, same=True)
                progress.advance(task)
            many = legs[OPEN]
            failed = [float(one.statuses.total() - one.statuses[200]) for one in many]
            each_kib = [(one.peak_bytes - warm_bytes) / OPEN / 1024 for one in many]
            cpu = [one.cpu_ms / few.cpu_ms for one, few in zip(many, legs[FEW], strict=True)]
            figures += [
                Figure(f"{OPEN:,} open, {name}: not 200", "orders", failed, most=0),
                Figure(f"{OPEN:,} open, {name}: memory for each", "KiB", each_kib, most=MOST_KIB),
                Figure(f"{OPEN:,} open, {name}: loop late, p99", "ms", [one.late_ms for one in many], most=MOST_LAG_MS),
                Figure(f"{FEW} open, {name}: loop late, p99", "ms", [one.late_ms for one in legs[FEW]]),
                Figure(f"{OPEN:,} open, {name}: CPU an order / {FEW} open", "×", cpu, most=MOST_CPU),
            ]
    return figures
