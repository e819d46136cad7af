"""The events that wait, as the consumer's metrics say: all 32 streams, on one server and on a cluster."""

import time
from pathlib import Path

from prometheus_client import REGISTRY

from metering.wallet import keys
from metering.wallet.waiting import EventsWaiting
from tests.kits.books import drain, make_groups, open_books, waiting
from tests.kits.cluster import Cluster
from tests.kits.cluster_orgs import everywhere
from tests.kits.consumer import entry_of, fill

OLD_MS = 90_000


def seen() -> tuple[float, float]:
    """How many wait, and the age of the oldest in seconds."""
    found = [REGISTRY.get_sample_value(f"ghub_events_{name}") for name in ("waiting", "oldest_seconds")]
    assert found[0] is not None and found[1] is not None
    return found[0], found[1]


def booked() -> float:
    """How many events this process has booked."""
    found = REGISTRY.get_sample_value("ghub_events_booked_total")
    assert found is not None
    return found


async def rises_and_falls(url: str, place: Path) -> None:
    """Events in every partition, one of them old; then they are booked."""
    async with open_books(url, place) as books:
        await make_groups(books.redis)
        lag = EventsWaiting(books.redis)
        await lag.look()
        assert seen() == (0, 0)
        callers = await everywhere(books)
        old, entry = keys.OrgKeys(callers[7].org_id).events, entry_of(callers[7], 9)
        await books.redis.xadd(old, entry, id=f"{int(time.time()) * 1000 - OLD_MS}-0")  # type: ignore[arg-type]
        await fill(books.redis, callers, 2)
        await lag.look()
        assert seen()[0] == 2 * len(callers) + 1 == await waiting(books.redis)
        assert OLD_MS / 1000 - 2 < seen()[1] < OLD_MS / 1000 + 60
        before = booked()
        await drain(books)
        await lag.look()
        assert seen() == (0, 0)
        assert booked() - before == 2 * len(callers) + 1


async def test_on_one_server(redis_url: str, tmp_path: Path) -> None:
    """Written by Redis' clock, counted over all partitions."""
    await rises_and_falls(redis_url, tmp_path / "l.db")


async def test_on_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    """One round trip to each master."""
    await rises_and_falls(cluster.url, tmp_path / "l.db")


async def test_an_event_that_comes_twice_is_booked_once(redis_url: str, tmp_path: Path) -> None:
    """As after a consumer's death, or when a restored ledger is fed again."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        await make_groups(books.redis)
        caller = await books.org()
        entry = entry_of(caller, 1)
        before = booked()
        for _ in range(2):
            for _ in range(2):
                await books.redis.xadd(keys.OrgKeys(caller.org_id).events, entry)  # type: ignore[arg-type]
            await drain(books)
        assert booked() - before == 1
