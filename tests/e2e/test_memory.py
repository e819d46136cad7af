"""An image in flight costs the gateway a bounded piece of memory, however large it is."""

import pytest

from bench.memory import order
from bench.processes import forget_peak, resident_bytes
from tests.e2e.conftest import Prepared
from tests.kits.processes import executed
from tests.kits.system import FLUX, GPT

IMAGE_BYTES = 8_000_000
IN_FLIGHT = 16
MAX_PER_IMAGE_BYTES = 1024 * 1024


@pytest.mark.parametrize("model", [FLUX, GPT])
def test_an_image_of_8_mb_in_flight_costs_less_than_1_mib(prepared: Prepared, model: str) -> None:
    """By URL and by base64: the peak of resident memory over 16 images at once, against the same gateway warm."""
    system = prepared()
    system.begin = executed  # with memory that it shares with nobody
    system.start_all()
    _, key = system.customer("memory", "500.00")
    system.behave(model, "ok", None, bytes=IMAGE_BYTES, same=True)
    order(system, key, model, IN_FLIGHT)  # connections, threads and caches are there once
    order(system, key, model, IN_FLIGHT)
    pid = system.processes["gateway"].pid
    before = resident_bytes(pid, "VmRSS")
    forget_peak(pid)
    order(system, key, model, IN_FLIGHT)
    grown = resident_bytes(pid, "VmHWM") - before
    sizes = {path.stat().st_size for path in (system.folder / "images").rglob("*.*") if path.is_file()}
    assert len(system.images()) == 3 * IN_FLIGHT and min(sizes) >= IMAGE_BYTES
    print(f"{model}: {grown / IN_FLIGHT / 1024:.0f} KiB for each image in flight")
    assert grown / IN_FLIGHT < MAX_PER_IMAGE_BYTES
