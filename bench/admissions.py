"""A Valkey full of organisations with keys and limits, and orders made ready for it: parts of `wallet` and `growth`.

What counts is what the server says of itself (`INFO commandstats`), so neither the network nor this process is in it.

The server runs with jemalloc (Debian: `libjemalloc2`) if it is there, as Valkey and Redis are built for Linux by
default. The embedded one of the tests has the C library's allocator, which takes longer among very many keys.
"""

import ctypes.util
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from redis.asyncio import Redis

from metering.accounts import hash_key
from metering.clock import period_at, unix_us_at, utc_now
from metering.limits import Limits
from metering.ports import ApiKey, Org, Snapshot
from metering.wallet import keys
from metering.wallet.connection import open_redis
from metering.wallet.projection import BOOKED_NOTHING, Projected, call_of
from metering.wallet.script import load_script
from metering.wallet.values import Caller, OrderIdentity, WalletLimits
from metering.wallet.wallet import Wallet
from tests.conftest import ValkeyServer
from tests.kits.books import SECOND_US, UNIT, admit, pictures, pinned

JEMALLOC = ctypes.util.find_library("jemalloc") or ""
ALLOCATOR = "jemalloc" if JEMALLOC else "the C library's allocator"

CORES = sorted(os.sched_getaffinity(0))
PAGE = 500
CREDITS = 10**12
LIMITS = Limits(1_000_000, 1_000_000, 100_000, 10_000_000, 100_000_000, 10**12)

USED: Mapping[Any, Any] = {"tat_requests": 1, "tat_images": 1, "used_us": 1}
"""Fields that exist after an order: otherwise first orders would create them, and more often among many keys."""

LIMITS_OF_WALLETS = WalletLimits(
    decision_s=10.0,
    max_open_holds=100_000,
    stream_backlog=10_000_000,
    remember_s=60,
    max_unpaid_micro_mxn=10**12,
)
IN_ONE_GO = 100
READY_US = 3600 * SECOND_US
"""For how long an order that was made ready may still be admitted."""

RESULT = b'{"v":1,"created":1795370404,"model":"fal/flux-1.1-pro","served":"fal-ai/flux-pro/v1.1","prompts":[null]}'

Command = tuple[Any, ...]
"""A call of a script, as it is sent: its hash, the number of its keys, its keys, its arguments."""


class _Recorder:
    """Stands in for Redis while calls are made ready, so that a server is then given many in one go.

    Asked one by one it would sleep in between, and what was measured would be its awakening.
    """

    def __init__(self, redis: Redis) -> None:
        self.connection_pool = redis.connection_pool
        self.commands: list[Command] = []

    async def evalsha(self, *command: Any) -> list[Any]:
        """Remember a command; the answer fits an admission or a settlement."""
        self.commands.append(command)
        at_us = time.time_ns() // 1000 + READY_US
        if command[1] > 6:
            return [1, at_us, 0, 0, 0, 0, 0, 0, 0, 0, b"", b"", b"", b"", 0, 0]
        return [1, at_us, 0, 0, 0]


@dataclass
class Filled:
    """One server with this many organisations, each with its limits and keys."""

    server: ValkeyServer
    redis: Redis
    orgs: int
    keys_each: int

    def caller(self, chance: random.Random) -> Caller:
        """Choose a key."""
        number, key = chance.randrange(self.orgs), chance.randrange(self.keys_each)
        return Caller(_org_id(number), _key_id(number, key))

    async def fill(self, advance: Callable[[int], object]) -> None:
        """Write wallets, keys' access and key records, as a projection does."""
        project = load_script(self.redis, "project_v5", Projected)
        async with self.redis.pipeline(transaction=False) as pipe:
            for partition in range(keys.PARTITIONS):
                pipe.set(keys.mark(partition), 1)
            await pipe.execute()
        for first in range(0, self.orgs, PAGE):
            page = list(_snapshots(range(first, min(self.orgs, first + PAGE)), self.keys_each))
            await project.each([call_of(project, one, BOOKED_NOTHING, "new", "") for one in page])
            async with self.redis.pipeline(transaction=False) as pipe:
                for one in page:
                    names = keys.OrgKeys(one.org.org_id)
                    pipe.hset(names.wallet, mapping=USED)
                    for key in one.keys:
                        pipe.set(keys.key_record(key.key_hash)[1], f"{key.org_id} {key.key_id}")
                        pipe.hset(names.access(key.key_id), mapping=USED)
                await pipe.execute()
            advance(len(page))
        # From its first call on a server knows the script.
        caller, wallet = self.caller(random.Random(0)), Wallet(self.redis, LIMITS_OF_WALLETS)
        await admit(wallet, caller, "first", pinned(now_us=wallet.now_us()))
        await wallet.settle(caller.org_id, "first", UNIT, pictures(1), latest_us=wallet.now_us() + READY_US)

    async def orders(self, count: int, chance: random.Random) -> tuple[list[Command], list[Command]]:
        """Make the admissions and the settlements of orders of random keys ready; no two orders are alike."""
        recorder: Any = _Recorder(self.redis)
        wallet = Wallet(recorder, LIMITS_OF_WALLETS)
        price = pinned(now_us=wallet.now_us())
        placed = [(self.caller(chance), str(uuid4())) for _ in range(count)]
        await admit(wallet, placed[0][0], "unsent", price)  # from here on the wallet's clock is ahead
        recorder.commands.clear()
        for caller, order_id in placed:
            await admit(wallet, caller, order_id, price, OrderIdentity(uuid4().hex + uuid4().hex))
        admissions, recorder.commands = recorder.commands, []
        latest_us = wallet.now_us()
        for caller, order_id in placed:
            images = pictures(1, order_id)
            await wallet.settle(caller.org_id, order_id, UNIT, images, latest_us=latest_us, result=RESULT)
        return admissions, recorder.commands

    async def server_us(self, commands: list[Command]) -> list[float]:
        """Send them; returns the server's own microseconds for one, of each hundred."""
        found = []
        for first in range(0, len(commands), IN_ONE_GO):
            await self.redis.config_resetstat()
            async with self.redis.pipeline(transaction=False) as pipe:
                for command in commands[first : first + IN_ONE_GO]:
                    pipe.evalsha(*command)
                for reply in await pipe.execute():
                    assert reply[0] == 1, reply  # admitted, or charged
            stats: Any = (await self.redis.info("commandstats"))["cmdstat_evalsha"]
            found.append(stats["usec"] / stats["calls"])
        return found

    async def forget_orders(self) -> None:
        """Forget holds, ends, results and events, so that all rounds are equal; what wallets count stays."""
        kinds = ("hold", "open", "recent", "closed", "result")
        doomed = [name for kind in kinds async for name in self.redis.scan_iter(f"{{p*}}:{kind}:*", count=10_000)]
        for first in range(0, len(doomed), PAGE):
            await self.redis.unlink(*doomed[first : first + PAGE])
        await self.empty_streams()

    async def empty_streams(self) -> None:
        """Forget the events: no consumer takes them."""
        await self.redis.delete(*(keys.events(partition) for partition in range(keys.PARTITIONS)))


@contextmanager
def filled(folder: Path, orgs: int, keys_each: int = 1) -> Iterator[Filled]:
    """Start a server on the last core, for `fill`; this process keeps to the others."""
    place = folder / f"valkey-{orgs}"
    place.mkdir()
    server = ValkeyServer(place, preload=JEMALLOC)
    server.start()
    assert server.process is not None
    for thread in Path(f"/proc/{server.process.pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), CORES[-1:])
    os.sched_setaffinity(0, CORES[:-1] or CORES)
    try:
        yield Filled(server, open_redis(server.url, connections=4, call_timeout_s=60.0), orgs, keys_each)
    finally:
        os.sched_setaffinity(0, CORES)
        server.stop()


def _org_id(number: int) -> str:
    """Compute an organisation's id, the same in every run; its partition follows from the number."""
    return str(UUID(int=(1 << 100) + number * 2_654_435_761))


def _key_id(number: int, key: int) -> str:
    return f"key_{number:x}_{key}"


def _snapshots(numbers: range, keys_each: int) -> Iterator[Snapshot]:
    """Make snapshots of organisations as in the record, with limits of every kind on each and on its keys."""
    now = utc_now()
    at, period = now.isoformat(), period_at(unix_us_at(now))
    for number in numbers:
        org_id = _org_id(number)
        own = tuple(
            ApiKey(key_id, org_id, "bench", hash_key(key_id), at, limits=LIMITS)
            for key_id in (_key_id(number, key) for key in range(keys_each))
        )
        yield Snapshot(Org(org_id, org_id, "default", at), 1, 1, CREDITS, own, LIMITS, {}, period)
