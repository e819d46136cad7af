"""Does anything grow? Pure: points in, findings out."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from tests.soak.record import Points, Record

WARM_UP = 1 / 3
"""Share of the run that does not count: caches, connections and the allocator's arenas are filled then."""

MAX_POINTS = 120
"""For the fit, which compares each point with each."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The most by which a series may grow in a run, however long it lasts, and why so much."""

    most: float
    unit: str
    why: str


MIB = 1024 * 1024
BOUNDS = {
    "memory of the gateway": Bound(
        8 * MIB, "bytes", "an allocator's arenas come and go; in an hour of 10 orders a second it is 230 bytes an order"
    ),
    "memory of the consumer": Bound(8 * MIB, "bytes", "the same"),
    "descriptors of the gateway": Bound(12, "files", "connections to upstreams and clients come and go with the load"),
    "descriptors of the consumer": Bound(3, "files", "it has its connections from the beginning"),
    "tasks of the gateway": Bound(24, "tasks", "four for each order under way: more or fewer at each look"),
    "tasks of the consumer": Bound(3, "tasks", "its parts are there from the beginning"),
    "keys of Redis without an end": Bound(
        8, "keys", "those of open orders come and go with the load; what an order leaves expires"
    ),
}
"""What must not grow. A part that is not measured is a finding, too."""

EXPIRING_KEYS_PER_ORDER = 4.0
"""Keys with an expiry that an order may leave; it leaves three: its result, its end, and what its retries find.

They are gone after a day at most, so a day's orders bound them. Events stay for GHUB_KEEP_H, in a bounded space.
"""


def growth(points: Points, warm_up: float = WARM_UP) -> float:
    """By how much a series grows after the warm-up: the median slope of all pairs (Theil and Sen), times the time.

    One spike, or a third of all points, does not move it.
    """
    last_s = points[-1][0]
    steady = [point for point in points if point[0] >= last_s * warm_up]
    steady = steady[:: len(steady) // MAX_POINTS + 1]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(steady, 2) if b[0] > a[0]]
    return statistics.median(slopes) * (steady[-1][0] - steady[0][0])


def judge(record: Record, slack: float = 1.0) -> list[str]:
    """List what is wrong with a run, in sentences. `slack` times the bounds are for a run of seconds."""
    findings = []
    for name, bound in BOUNDS.items():
        points = record.series.get(name, [])
        if len(points) < 2:
            findings.append(f"{name}: not measured")
        elif (grown := growth(points)) > (most := bound.most * slack):
            findings.append(f"{name}: grew by {grown:,.0f} {bound.unit}; at most {most:,.0f}: {bound.why}")
    findings += _keys(record.series.get("keys of Redis that expire", []), record)
    if record.verify != "ok":
        findings.append(f"ghub verify: {record.verify}")
    return findings


def _keys(points: Sequence[tuple[float, float]], record: Record) -> list[str]:
    if not points or not record.orders:
        return ["keys of Redis that expire: not measured"]
    each = (points[-1][1] - points[0][1]) / record.orders
    if each <= EXPIRING_KEYS_PER_ORDER:
        return []
    return [f"keys of Redis that expire: {each:.1f} for each order; at most {EXPIRING_KEYS_PER_ORDER:g}"]
