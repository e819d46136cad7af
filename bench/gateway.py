"""The whole gateway against the bare script, interleaved in one run: `make bench`.

Each server has a core of its own; load, upstream simulator, Valkey and consumer share the others. What to read is the
ratio: the machine's noise is in both of its terms.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from proxy.outbound.clients import Outbound
from proxy.outbound.hosts import ImageHosts
from tests.kits.ports import free_port
from tests.kits.processes import executed
from tests.kits.system import FLUX, System, bearer, prepare, wait_until

IN_FLIGHT = 64
SIZES = {"16 KB": 16_000, "1.5 MB": 1_500_000}
LISTENS = "0A"
"""A socket's state in /proc/net/tcp."""

LEAST_RATIO = 0.5
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Leg:
    """One server under load for some seconds."""

    per_s: float
    cpu_ms: float
    p50_ms: float
    p99_ms: float


def cpu_s(pid: int) -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


async def load(url: str, key: str, pid: int, seconds: float) -> Leg:
    """`IN_FLIGHT` clients, each asking again as soon as it is answered."""
    outbound = Outbound(ImageHosts(""))
    took: list[float] = []
    until = time.monotonic() + seconds

    async def client() -> None:
        while (began := time.monotonic()) < until:
            reply = await outbound.client.post(url, headers=bearer(key), json={"model": FLUX, "prompt": "banco"})
            assert reply.status_code == 200, reply.text
            took.append(time.monotonic() - began)

    began, before = time.monotonic(), cpu_s(pid)
    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
    elapsed, used = time.monotonic() - began, cpu_s(pid) - before
    await outbound.aclose()
    cuts = statistics.quantiles(took, n=100)
    return Leg(len(took) / elapsed, used / len(took) * 1000, cuts[49] * 1000, cuts[98] * 1000)


def measure(
    system: System, bare_port: int, bare_pid: int, rounds: int, seconds: float
) -> dict[str, dict[str, list[Leg]]]:
    """Legs by image size and server, bare and gateway taking turns."""
    _, key = system.customer("bench", "1000000.00", requests_per_minute=1_000_000, images_per_minute=1_000_000)
    servers = {
        "bare script": (f"http://127.0.0.1:{bare_port}/v1/images/generations", bare_pid),
        "gateway": (f"{system.url}/images/generations", system.processes["gateway"].pid),
    }
    results: dict[str, dict[str, list[Leg]]] = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=len(SIZES) * rounds * len(servers))
        for size, size_bytes in SIZES.items():
            system.behave(FLUX, "ok", None, bytes=size_bytes, same=True)
            legs: dict[str, list[Leg]] = {name: [] for name in servers}
            for _ in range(rounds):
                for name, (url, pid) in servers.items():
                    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                        legs[name].append(runner.run(load(url, key, pid, seconds)))
                    progress.advance(task)
            results[size] = legs
    return results


def report(results: dict[str, dict[str, list[Leg]]]) -> list[float]:
    """Print medians and spread; returns the ratio of each size."""
    table = Table("image", "server", "images/s", "spread", "CPU ms/image", "p50 ms", "p99 ms", "ratio")
    ratios = []
    for size, legs in results.items():
        medians = {name: statistics.median(leg.per_s for leg in of) for name, of in legs.items()}
        ratio = medians["gateway"] / medians["bare script"]
        ratios.append(ratio)
        for name, of in legs.items():
            rates = [leg.per_s for leg in of]
            cells = [f"{medians[name]:.0f}", f"{min(rates):.0f}–{max(rates):.0f}"]
            for column in ("cpu_ms", "p50_ms", "p99_ms"):
                cells.append(f"{statistics.median(getattr(leg, column) for leg in of):.2f}")
            table.add_row(size, name, *cells, f"{ratio:.2f}" if name == "gateway" else "")
    Console(width=110).print(table)
    return ratios


def main() -> int:
    """Exit 1 where the gateway reaches less than `LEAST_RATIO` of the bare script."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=4.0)
    given = arguments.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    server_core, others = {cores[0]}, set(cores[1:]) or {cores[0]}
    os.sched_setaffinity(0, others)
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        system = prepare(Path(folder), GHUB_FAL_MODE="direct", GHUB_LOG_LEVEL="info")
        system.begin = executed  # with memory that it shares with nobody
        bare_port = free_port()
        bare = None
        try:
            system.start_all()
            command = [sys.executable, "-m", "bench.bare", str(bare_port), system.valkey.url]
            bare = subprocess.Popen([*command, f"127.0.0.1:{system.simulator_port}", f"{folder}/bare"])
            for pid in (bare.pid, system.processes["gateway"].pid):
                _pin(pid, server_core)
            wait_until(lambda: _listens(bare_port), "the bare script is ready")
            ratios = report(measure(system, bare_port, bare.pid, given.rounds, given.seconds))
        finally:
            if bare is not None:
                bare.kill()
                bare.wait()
            system.stop_all()
    return 0 if min(ratios) >= LEAST_RATIO else 1


def _pin(pid: int, cores: set[int]) -> None:
    """A process with all its threads."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def _listens(port: int) -> bool:
    """A connection of an earlier run, whose name is still there, is no listener."""
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines())
    return any(line[1].endswith(f":{port:04X}") and line[3] == LISTENS for line in lines)


if __name__ == "__main__":
    sys.exit(main())
