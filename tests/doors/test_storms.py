"""Hostile connections in crowds: each is ended in its time, honest orders are answered, and nothing stays held."""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.processes import resident_bytes
from proxy.backends import BACKGROUND_CONNECTIONS
from tests.conftest import run
from tests.e2e.test_hostile import descriptors
from tests.kits.crowds import Crowd, connections, honest, openings, place_large
from tests.kits.processes import executed
from tests.kits.system import System, assert_no_key, prepare, wait_until
from tests.long import LONG

LONGEST_S = {"silent": 10, "half a head": 10, "h2c": 0, "pipelined": 75, "replays": 75}
"""How long a hostile connection of each kind may last, in seconds of an idle machine. What is refused in few words has
its answers, and is ended as one that is silent after them."""

BUSY_S = 20.0
"""Time that a busy machine may add to that."""

STORMS = [(kind,) for kind in LONGEST_S] if LONG else [tuple(LONGEST_S)]
"""One kind after the other, or all at once."""

COUNT, WARM_S, STORM_S, CUSTOMERS = (1000, 15.0, 60.0, 20) if LONG else (40, 1.0, 0.0, 5)
"""Connections of each kind; seconds of honest customers alone; seconds that the crowd stays, and until as many were
ended; honest customers."""

LARGE_BYTES = 8_000_000
MB = 1_000_000
MAX_GROWN_BYTES = 20 * MB


@dataclass
class Place:
    """A running system, an honest customer's key, and what hostile clients say."""

    system: System
    key: str
    openings: dict[str, bytes]

    @property
    def pid(self) -> int:
        """The gateway's."""
        return self.system.processes["gateway"].pid

    def files(self) -> tuple[int, int]:
        """Stored images and sockets that it has open."""
        found = descriptors(self.pid)
        return sum(count for path, count in found.items() if "/images/" in path), found["socket:"]

    def wait_until_idle(self, max_sockets: int) -> None:
        """No client is connected, in the kernel or in the gateway, and no more sockets are open than that."""
        wait_until(lambda: not connections(self.system.port), "every connection is gone", within_s=60)
        wait_until(lambda: self.files() <= (0, max_sockets), f"no image and at most {max_sockets} sockets are open")


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A gateway that has served an order and a large reply."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        system = prepare(Path(folder))
        try:
            system.start_all()
            system.stop("gateway")
            system.begin = executed  # with memory that it shares with nobody
            system.start_gateway()
            limits = {"requests_per_minute": 1_000_000, "images_per_minute": 1_000_000}
            _, key = system.customer("honest", "20000.00", **limits)
            _, hostile_key = system.customer("hostile", "100.00", **limits)
            run(place_large(system, hostile_key, LARGE_BYTES))
            yield Place(system, key, openings(hostile_key))
        finally:
            system.stop_all()
        assert_no_key(system.keys, system.folder)


def storm(
    place: Place, kinds: tuple[str, ...], count: int, seconds: float, ended: int
) -> tuple[list[Crowd], Counter[int]]:
    """Open this many connections of each kind at a time, for this long and until this many of each were ended.

    Returns what happened to them, and to the customers at the same time.
    """
    crowds = [Crowd(place.system.port, place.openings[kind], count) for kind in kinds]
    with ExitStack() as open_crowds:
        for crowd in crowds:
            open_crowds.enter_context(crowd)

        async def over() -> None:
            until_s = time.monotonic() + seconds
            while time.monotonic() < until_s or any(len(crowd.lasted_s) < ended for crowd in crowds):
                assert time.monotonic() < until_s + max(LONGEST_S.values()) + BUSY_S, "none of a kind was ended"
                await asyncio.sleep(0.1)

        statuses = run(honest(place.system, place.key, CUSTOMERS, over()))
    return crowds, statuses


@pytest.mark.parametrize("kinds", STORMS, ids="+".join)
def test_a_storm_leaves_nothing_behind_and_harms_nobody(place: Place, kinds: tuple[str, ...]) -> None:
    """Each hostile connection is ended in time; concurrent orders are all answered; memory and files are back."""
    storm(place, (), 0, WARM_S, ended=0)
    before_bytes, max_sockets = resident_bytes(place.pid, "VmRSS"), place.files()[1] + BACKGROUND_CONNECTIONS
    crowds, statuses = storm(place, kinds, COUNT, STORM_S, ended=COUNT)
    peak_bytes = resident_bytes(place.pid, "VmRSS") - before_bytes
    kernel_bytes = sum(map(sum, connections(place.system.port)))
    for kind, crowd in zip(kinds, crowds, strict=True):
        lasted_s = sorted(crowd.lasted_s)
        print(f"{kind}: {len(lasted_s)} ended after {lasted_s[0]:.1f} to {lasted_s[-1]:.1f} s")
        assert lasted_s[-1] < LONGEST_S[kind] + BUSY_S, kind
    print(f"honest: {dict(statuses)}; {peak_bytes / MB:.1f} MB more, {kernel_bytes / MB:.1f} in sockets")
    assert statuses.keys() == {200} and statuses[200] >= CUSTOMERS
    place.wait_until_idle(max_sockets)

    def grown_bytes() -> int:
        return resident_bytes(place.pid, "VmRSS") - before_bytes

    try:
        wait_until(lambda: grown_bytes() < MAX_GROWN_BYTES, "memory is back")
    finally:
        print(f"after it {grown_bytes() / MB:.1f} MB more than {before_bytes / MB:.0f}")
