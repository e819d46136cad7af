"""A crowd at one moment is served, and is no outage of Redis. One that goes on coming is refused in part, and early."""

import time
from collections import Counter

import pytest

from tests.conftest import run
from tests.e2e.conftest import Prepared
from tests.kits.load import burst, closed_loop, open_loop, order, shoot
from tests.long import long

NO_LIMITS = {"in_flight": 1_000_000, "requests_per_minute": 1_000_000, "images_per_minute": 1_000_000}


@pytest.mark.parametrize("orders", [300, *(pytest.param(count, marks=long) for count in (1_000, 2_000))])
@pytest.mark.parametrize("organisations", [1, pytest.param(100, marks=long)])
def test_a_burst_on_a_cold_gateway_is_answered(prepared: Prepared, orders: int, organisations: int) -> None:
    """All are 200, however many organisations they are of, and each is charged once."""
    system = prepared()
    system.start_all()
    customers = [system.customer(f"burst-{place}", "5000.00", **NO_LIMITS) for place in range(organisations)]
    requests = [order(customers[place % organisations][1], place) for place in range(orders)]
    shots = run(burst(system.port, requests))
    statuses, slowest_s = Counter(shot.status for shot in shots), max(shot.took_s for shot in shots)
    print(f"{orders} orders of {organisations}: {statuses}, the slowest {slowest_s:.1f} s")
    assert statuses == {200: orders}
    for org_id, _ in customers[:3]:
        each = orders // organisations
        assert Counter((event.end, event.quantity) for event in system.events(org_id, each)) == {("charge", 1): each}


@long  # while other tests share the cores, nobody can offer four times of what the process can do
def test_more_orders_than_can_be_served_are_refused_early_and_the_others_are_served(prepared: Prepared) -> None:
    """Four times of what the process can do, for six seconds: who is let in is answered, who is not is told when to
    return, each at another time; what is delivered is charged, and soon after it all is as before."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("crowd", "5000.00", **NO_LIMITS)
    before = [order(key, place) for place in range(200)]
    best = run(closed_loop(system.port, before, 32))
    shots = run(open_loop(system.port, [order(key, 1_000 + place) for place in range(round(best * 24))], best * 4))
    served, refused = ([shot for shot in shots if shot.status == status] for status in (200, 503))
    print(f"{best:.0f}/s at best; {len(served)} served, the slowest in {max(s.took_s for s in served):.1f} s; "
          f"{len(refused)} refused, the slowest in {max((s.took_s for s in refused), default=0.0):.2f} s")  # fmt: skip
    assert len(served) + len(refused) == len(shots)
    assert len(refused) > len(shots) / 20
    waits_ms = Counter(shot.header("retry-after-ms") for shot in refused)
    assert all(wait is not None and 1_000 <= int(wait) <= 10_000 for wait in waits_ms)
    assert max(waits_ms.values()) < len(refused) / 10 + 5
    began_s = time.monotonic()
    while (shot := run(shoot(system.port, order(key, round(1e6 + time.monotonic() * 1e3))))).took_s > 1.0:
        assert time.monotonic() - began_s < 20, shot
    assert shot.status == 200
    events = system.events(org_id, len(system.jobs()))
    assert Counter(event.end for event in events)["charge"] >= len(before) + len(served) + 1
    assert "orders_turned_away" in system.log()
