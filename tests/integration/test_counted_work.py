"""Work that is counted, not timed: it is the same on every machine, so a change that adds some is seen at once."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from metering.wallet.values import Close, Verdict
from tests.conftest import ValkeyServer
from tests.kits.books import UNIT, open_books, pictures

ALL_LIMITS = {
    "requests_per_minute": 1_000,
    "images_per_minute": 1_000,
    "in_flight": 1_000,
    "images_per_day": 1_000,
    "images_per_month": 1_000,
    "micro_mxn_per_month": 1_000 * UNIT,
}

ADMISSION = {
    "hmget": 2,
    "exists": 2,
    "zrangebyscore": 1,
    "xlen": 1,
    "hset": 3,
    "zadd": 3,
    "pexpire": 1,
}
"""Without TIME, which the test sets. It reads wallet, access, mark, equal orders, expired holds and the backlog."""

SETTLEMENT = {
    "mget": 1,
    "hmget": 3,
    "zscore": 1,
    "zrangebyscore": 1,
    "zrem": 1,
    "del": 1,
    "hdel": 1,
    "set": 1,
    "hset": 3,
    "expire": 1,
    "xadd": 1,
}
"""It reads end and mark, hold, wallet, access, whether the hold is alive, and expired holds."""


@pytest.fixture
def own_server() -> Iterator[ValkeyServer]:
    """A server on which nobody else counts."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        server = ValkeyServer(Path(folder))
        server.start()
        yield server
        server.stop()


async def _counted(redis: Redis, work: Any) -> tuple[Any, dict[str, int]]:
    await redis.config_resetstat()
    done = await work
    stats: Any = await redis.info("commandstats")
    counts = {name.removeprefix("cmdstat_"): one["calls"] for name, one in stats.items()}
    assert counts.pop("evalsha") == 1
    return done, {name: calls for name, calls in counts.items() if not name.startswith("config")}


@pytest.mark.parametrize("limited", [True, False], ids=["all-limits", "no-limits"])
async def test_the_calls_of_a_warm_order_in_redis_are_these(
    own_server: ValkeyServer, tmp_path: Path, limited: bool
) -> None:
    """One script each for its admission and its settlement, with exactly these commands, whatever is limited."""
    async with open_books(own_server.url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="840.00")
        if limited:
            await books.accounts.set_limits(caller.org_id, ALL_LIMITS)
            await books.accounts.set_key_limits(caller.key_id, ALL_LIMITS)
        await books.charge(caller, "warm")
        for order_id in ("a", "b"):
            admission, counts = await _counted(books.redis, books.admit(caller, order_id))
            assert admission.verdict is Verdict.ADMITTED
            assert counts == ADMISSION
        for order_id in ("a", "b"):
            settlement = books.wallet.settle(
                caller.org_id, order_id, UNIT, pictures(1), latest_us=books.wallet.now_us(), result=b"{}"
            )
            closing, counts = await _counted(books.redis, settlement)
            assert closing.close is Close.CHARGED
            assert counts == SETTLEMENT
