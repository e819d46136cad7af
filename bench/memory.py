"""Peak resident memory per image in flight, at 1, 8 and 40 MB, by URL and by base64: `make bench-memory`.

Beside it the naive way, a process of its own that holds what it relays: the image as bytes, or the reply as JSON and
the image decoded from it. Both start warm, and both have all images in flight at once.
"""

import argparse
import asyncio
import base64
import subprocess
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

import httpx2
import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.kits.processes import executed
from tests.kits.system import FLUX, GPT, System, prepare

SIZES_MB = (1, 8, 40)
WAYS = {"URL": FLUX, "base64": GPT}
MAX_KIB = 512
"""Of resident memory per image in flight, whatever its size."""


def resident_bytes(pid: int | str, name: str) -> int:
    """VmRSS (now) or VmHWM (the peak) of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


def forget_peak(pid: int | str) -> None:
    """From now on VmHWM counts anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def order(system: System, key: str, model: str, images: int) -> None:
    """`images` orders at once, all delivered."""

    async def storm() -> None:
        async with system.client(key) as client:
            body = {"model": model, "prompt": "x"}
            replies = await asyncio.gather(*(client.post("/images/generations", json=body) for _ in range(images)))
        assert {reply.status_code for reply in replies} == {200}

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(storm())


def gateway_kib(system: System, key: str, model: str, images: int) -> float:
    """Of the gateway, for each of so many images at once: the peak over what it has when it is warm."""
    order(system, key, model, images)  # connections, threads and caches are there once
    order(system, key, model, images)
    pid = system.processes["gateway"].pid
    before = resident_bytes(pid, "VmRSS")
    forget_peak(pid)
    order(system, key, model, images)
    return (resident_bytes(pid, "VmHWM") - before) / images / 1024


def naive_kib(simulator: str, way: str, images: int, folder: Path) -> float:
    """Of a process that does the same naively."""
    command = [sys.executable, "-m", "bench.memory", "--naive", simulator, way, str(folder), "--images", str(images)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


async def naive(simulator: str, way: str, images: int, folder: Path) -> float:
    """The naive way, in this process."""

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
        await asyncio.gather(*(one(client) for _ in range(images)))
    return (resident_bytes("self", "VmHWM") - before) / images / 1024


def measure(system: System, images: int, folder: Path) -> list[tuple[str, str, float, float]]:
    """(size, way, gateway KiB, naive KiB)."""
    _, key = system.customer("memory", "1000000.00", requests_per_minute=1_000_000, images_per_minute=1_000_000)
    rows = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=len(SIZES_MB) * len(WAYS))
        for size_mb in SIZES_MB:
            for way, model in WAYS.items():
                system.behave(model, "ok", None, bytes=size_mb * 1_000_000, same=True)
                ours = gateway_kib(system, key, model, images)
                theirs = naive_kib(system.simulator, way, images, folder / "naive")
                rows.append((f"{size_mb} MB", way, ours, theirs))
                progress.advance(task)
    return rows


def main() -> int:
    """Exit 1 where the gateway takes more than `MAX_KIB` for an image."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--images", type=int, default=16, help="in flight at once")
    arguments.add_argument("--naive", nargs=3, metavar=("SIMULATOR", "WAY", "FOLDER"), help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.naive:
        simulator, way, folder = given.naive
        Path(folder).mkdir(exist_ok=True)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            print(runner.run(naive(simulator, way, given.images, Path(folder))))
        return 0
    with tempfile.TemporaryDirectory(prefix="ghub-") as name:
        system = prepare(Path(name), GHUB_FAL_MODE="direct")
        system.begin = executed  # with memory that it shares with nobody
        try:
            system.start_all()
            rows = measure(system, given.images, Path(name))
        finally:
            system.stop_all()
    table = Table("image", "by", "gateway, KiB an image", "naive way, KiB an image", "naive / gateway")
    for size, way, ours, theirs in rows:
        table.add_row(size, way, f"{ours:.0f}", f"{theirs:,.0f}", f"{theirs / ours:.0f}×")
    Console(width=110).print(table, f"{given.images} images in flight; at most {MAX_KIB} KiB are allowed")
    return 0 if max(ours for _, _, ours, _ in rows) <= MAX_KIB else 1


if __name__ == "__main__":
    sys.exit(main())
