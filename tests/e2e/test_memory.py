"""An image in flight costs the gateway a bounded piece of memory, however large it is."""

import asyncio
from pathlib import Path

import pytest

from tests.conftest import run
from tests.e2e.conftest import Prepared
from tests.e2e.kit import FLUX, GPT, System

IMAGE_BYTES = 8_000_000
IN_FLIGHT = 24
MOST_PER_IMAGE_BYTES = 1024 * 1024


@pytest.mark.parametrize("model", [FLUX, GPT])
def test_an_image_of_8_mb_in_flight_costs_less_than_1_mib(prepared: Prepared, model: str) -> None:
    """By URL and by base64: the peak of resident memory over 24 images at once, against the same gateway warm."""
    system = prepared()
    system.start_all()
    _, key = system.customer("memory", "500.00")
    system.behave(model, "ok", None, bytes=IMAGE_BYTES, same=True)
    order(system, key, model, IN_FLIGHT)  # connections, threads and caches are there once
    order(system, key, model, IN_FLIGHT)
    pid = system.processes["gateway"].pid
    before = resident_bytes(pid, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    order(system, key, model, IN_FLIGHT)
    grown = resident_bytes(pid, "VmHWM") - before
    sizes = {path.stat().st_size for path in (system.folder / "images").rglob("*.*") if path.is_file()}
    assert len(system.images()) == 3 * IN_FLIGHT and min(sizes) >= IMAGE_BYTES
    print(f"{model}: {grown / IN_FLIGHT / 1024:.0f} KiB for each image in flight")
    assert grown / IN_FLIGHT < MOST_PER_IMAGE_BYTES


def order(system: System, key: str, model: str, count: int) -> None:
    """`count` orders of one image at once, all delivered."""

    async def storm() -> None:
        async with system.client(key) as client:
            body = {"model": model, "prompt": "x"}
            replies = await asyncio.gather(*(client.post("/images/generations", json=body) for _ in range(count)))
        assert {reply.status_code for reply in replies} == {200}

    run(storm())


def resident_bytes(pid: int, name: str) -> int:
    """VmRSS (now) or VmHWM (the peak) of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)
