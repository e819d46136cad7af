"""Peak resident memory for each image in flight, at 1, 8 and 40 MB, by URL and by base64; and 200 of 20 MB at once.

Beside it the naive way, a process of its own that holds what it relays: the image as bytes, or the reply as JSON and
the image decoded from it. Both start warm, and both have all images in flight at once.
"""

import asyncio
import base64
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

import httpx2
import uvloop
from rich.console import Console
from rich.progress import Progress

from bench.figures import Figure
from bench.processes import forget_peak, resident_bytes
from tests.kits.processes import executed
from tests.kits.system import FLUX, GPT, System, prepare

SIZES_MB = (1, 8, 40)
WAYS = {"URL": FLUX, "base64": GPT}
IMAGES = 16
ROUNDS = int(os.environ.get("ROUNDS", "3"))
MOST_KIB = 512.0
"""Maximum resident memory for each image in flight, whatever the image's size."""

CROWD, CROWD_MB, MOST_CROWD_MIB = 200, 20, 512.0
"""So many images of so many MB at once, in a process of at most so many MiB."""


def order(system: System, key: str, model: str, images: int) -> None:
    """Place `images` orders at once, all delivered."""

    async def storm() -> None:
        async with system.client(key) as client:
            body = {"model": model, "prompt": "x"}
            replies = await asyncio.gather(*(client.post("/images/generations", json=body) for _ in range(images)))
        assert {reply.status_code for reply in replies} == {200}

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(storm())


def gateway_kib(system: System, key: str, model: str, size_mb: int) -> float:
    """Measure a gateway that has served only small images: its peak above that, for each of `IMAGES` at once."""
    system.stop("gateway")
    system.start_gateway()
    pid = system.processes["gateway"].pid
    system.behave(model, "ok", None, bytes=16_000, same=True)
    order(system, key, model, IMAGES)  # connections, threads and caches are there once
    system.behave(model, "ok", None, bytes=size_mb * 1_000_000, same=True)
    before = resident_bytes(pid, "VmRSS")
    forget_peak(pid)
    order(system, key, model, IMAGES)
    return (resident_bytes(pid, "VmHWM") - before) / IMAGES / 1024


def naive_kib(simulator: str, way: str, folder: Path) -> float:
    """Measure a process that does the same naively."""
    command = [sys.executable, "-m", "bench.memory", simulator, way, str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


async def naive(simulator: str, way: str, folder: Path) -> float:
    """Relay images the naive way, in this process."""

    async def one(client: httpx2.AsyncClient) -> None:
        if way == "URL":
            body = {"prompt": "x", "image_size": "square_hd"}
            headers = {"authorization": "Key simulated"}
            made = await client.post(f"{simulator}/fal/run/fal-ai/flux-pro/v1.1", json=body, headers=headers)
            image = (await client.get(made.json()["images"][0]["url"])).content
        else:
            body = {"model": "gpt-image-1", "prompt": "x", "size": "1024x1024", "quality": "low"}
            headers = {"authorization": "Bearer simulated"}
            made = await client.post(f"{simulator}/openai/v1/images/generations", json=body, headers=headers)
            image = base64.b64decode(made.json()["data"][0]["b64_json"])
        await asyncio.to_thread((folder / f"{uuid4()}").write_bytes, image)

    async with httpx2.AsyncClient(trust_env=False, timeout=120) as client:
        await one(client)
        before = resident_bytes("self", "VmRSS")
        forget_peak("self")
        await asyncio.gather(*(one(client) for _ in range(IMAGES)))
    return (resident_bytes("self", "VmHWM") - before) / IMAGES / 1024


def measure() -> list[Figure]:
    """Measure a new gateway for each case and round: what the C library keeps of the one before is not this one's."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as name:
        system = prepare(Path(name), GHUB_FAL_MODE="direct")
        system.begin = executed  # with memory that it shares with nobody
        try:
            system.start_all()
            free = dict.fromkeys(("requests_per_minute", "images_per_minute", "in_flight"), 1_000_000)
            _, key = system.customer("memory", "1000000.00", **free)
            return [*_sizes(system, key, Path(name)), _crowd(system, key)]
        finally:
            system.stop_all()


def _sizes(system: System, key: str, folder: Path) -> list[Figure]:
    figures = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("memory", total=len(SIZES_MB) * len(WAYS))
        for size_mb in SIZES_MB:
            for way, model in WAYS.items():
                ours = [gateway_kib(system, key, model, size_mb) for _ in range(ROUNDS)]
                theirs = [naive_kib(system.simulator, way, folder / "naive")]
                case = f"{size_mb} MB by {way}"
                figures.append(Figure(f"{case}: an image in flight", "KiB", ours, most=MOST_KIB))
                figures.append(Figure(f"{case}: the naive way", "KiB", theirs))
                progress.advance(task)
    return figures


def _crowd(system: System, key: str) -> Figure:
    system.behave(FLUX, "ok", None, bytes=CROWD_MB * 1_000_000, same=True)
    pid = system.processes["gateway"].pid
    forget_peak(pid)
    order(system, key, FLUX, CROWD)
    peak_mib = resident_bytes(pid, "VmHWM") / 2**20
    return Figure(f"{CROWD} × {CROWD_MB} MB at once: the whole process", "MiB", [peak_mib], most=MOST_CROWD_MIB)


if __name__ == "__main__":
    Path(sys.argv[3]).mkdir(exist_ok=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(runner.run(naive(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
