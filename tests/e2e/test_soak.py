"""A short soak: nothing grows, the books are right, the pictures are drawn; `make long`: a planted leak is found."""

import asyncio
import os
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from docs.dashboard import PANELS
from proxy.orders.admitted import AdmittedOrder
from proxy.orders.generations import Generations
from proxy.orders.result import Delivery
from tests.kits.processes import Forked
from tests.long import long
from tests.soak.draw import dashboard_picture, soak_picture
from tests.soak.record import Points, Record
from tests.soak.run import soak
from tests.soak.verdict import growth, judge

SECONDS, ORDERS_PER_S = 12.0, 10.0
LATENCY_SCALE = 0.02
"""Pictures take a tenth of a second, so that as many are under way in the beginning as in the end."""

SLACK = 4.0
LEAKED_BYTES, LEAKED_FILES = 1_000_000, 10
"""Of each order: in this short run as much as two kilobytes are in an hour."""

LEAKS: list[Any] = []


def leak() -> None:
    """Called in the new process: each order leaves memory, a descriptor and a task behind."""
    start = Generations.start

    def leaking(self: Generations, admitted: AdmittedOrder) -> asyncio.Task[Delivery]:
        LEAKS.append(os.urandom(LEAKED_BYTES))
        LEAKS.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(LEAKED_FILES))
        LEAKS.extend(asyncio.create_task(asyncio.sleep(3600)) for _ in range(LEAKED_FILES))
        return start(self, admitted)

    Generations.start = leaking  # type: ignore[method-assign]


RUN = partial(soak, seconds=SECONDS, orders_per_s=ORDERS_PER_S, latency_scale=LATENCY_SCALE)


def told(record: Record) -> None:
    """Print what grew by how much."""
    print({name: round(growth(points)) for name, points in record.series.items()}, record.answers)


@long
def test_a_planted_leak_is_found(tmp_path: Path) -> None:
    """A gateway that loses something with each order."""
    record = RUN(tmp_path, begin=partial(Forked, before=leak))
    told(record)
    found = [finding.partition(":")[0] for finding in judge(record, SLACK)]
    assert found == ["memory of the gateway", "descriptors of the gateway", "tasks of the gateway"]


def test_nothing_grows(tmp_path: Path) -> None:
    """All parts under a load of every kind of order, and the pictures of it."""
    record = RUN(tmp_path / "well")
    told(record)
    assert judge(record, SLACK) == []
    assert set(record.answers) >= {"200", "402", "404", "502"}

    idle = {panel.title for panel in PANELS if panel.idle}
    assert {title for title, lines in record.panels.items() if not any(line.points for line in lines)} <= idle
    record.save(tmp_path)
    assert Record.load(tmp_path).panels == {
        title: [type(line)(line.legend, [list(point) for point in line.points]) for line in lines]  # type: ignore[misc]
        for title, lines in record.panels.items()
    }
    for picture in (soak_picture(record), dashboard_picture(record)):
        assert len(list(ElementTree.fromstring(picture).iter())) > 100


@pytest.mark.parametrize(
    ("points", "grown"),
    [
        ([(float(at), 100.0) for at in range(90)], 0.0),
        ([(float(at), 100.0 + at) for at in range(90)], 59.0),
        ([(float(at), 500.0 * (at < 30)) for at in range(90)], 0.0),
        ([(float(at), 100.0 + 1000 * (at == 70)) for at in range(90)], 0.0),
    ],
    ids=["flat", "a steady leak", "a warm-up", "a spike"],
)
def test_growth_is_what_goes_on_after_the_warm_up(points: Points, grown: float) -> None:
    assert growth(points) == pytest.approx(grown)
