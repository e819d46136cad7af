"""Redis' own time for an admission, with ten keys and with a million: `python -m bench.keys`.

Two servers, filled through our own projection script, are asked in turn by random keys. What counts is what each server
says of itself (`INFO commandstats`), so neither the network nor this process is in it. What to read is the ratio.

The servers run with jemalloc (Debian: `libjemalloc2`), as Valkey and Redis are built for Linux by default; the embedded
one of the tests has the C library's allocator, which takes half as long again where a million keys lie about.
"""

import argparse
import asyncio
import ctypes.util
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import uvloop
from redis.asyncio import Redis
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from metering.clock import period_at, unix_us_at, utc_now
from metering.limits import Limits
from metering.ports import ApiKey, Org, Snapshot
from metering.wallet import keys
from metering.wallet.connection import open_redis
from metering.wallet.projection import BOOKED_NOTHING, Projected, call_of
from metering.wallet.script import load_script
from metering.wallet.values import Caller, Verdict, WalletLimits
from metering.wallet.wallet import Wallet
from tests.conftest import ValkeyServer
from tests.kits.books import admit, pinned

MAX_RATIO = 1.10
PAGE = 500
CREDITS = 10**12
LIMITS = Limits(1_000_000, 1_000_000, 100_000, 10_000_000, 100_000_000, 10**12)

USED: Mapping[Any, Any] = {"tat_requests": 1, "tat_images": 1, "used_us": 1}
"""What is there after an order: else each first order of the many would make room for it, and none of the few."""

LIMITS_OF_WALLETS = WalletLimits(decision_s=10.0, max_open_holds=100_000, stream_backlog=1_000_000, remember_s=60)
IN_ONE_GO = 100


@dataclass
class Side:
    """One server, how much lies in it, and Redis' own microseconds for an admission, by round."""

    name: str
    orgs: int
    keys_each: int
    server: ValkeyServer
    redis: Redis
    admission_us: list[float] = field(default_factory=list)
    memory_mb: float = 0.0

    def org_id(self, number: int) -> str:
        """The same for every run; its partition follows from the number."""
        return str(UUID(int=(1 << 100) + number * 2_654_435_761))

    def caller(self, number: int, key: int) -> Caller:
        """One of an organisation's keys."""
        return Caller(self.org_id(number), f"key_{number:x}_{key}")


def snapshots(side: Side) -> Iterator[Snapshot]:
    """Every organisation as the record would have it, with limits of every kind on it and on its keys."""
    now = utc_now()
    at, period = now.isoformat(), period_at(unix_us_at(now))
    for number in range(side.orgs):
        org_id = side.org_id(number)
        own = tuple(
            ApiKey(caller.key_id, org_id, "bench", f"{hash((number, key)) & (2**64 - 1):064x}", at, limits=LIMITS)
            for key in range(side.keys_each)
            for caller in [side.caller(number, key)]
        )
        yield Snapshot(Org(org_id, org_id, "default", at), 1, 1, CREDITS, own, LIMITS, {}, period)


async def fill(side: Side, progress: Progress, task: TaskID) -> None:
    """Wallets, keys' access and key records, as a projection writes them."""
    project = load_script(side.redis, "project_v4", Projected)
    async with side.redis.pipeline(transaction=False) as pipe:
        for partition in range(keys.PARTITIONS):
            pipe.set(keys.mark(partition), 1)
        await pipe.execute()
    page: list[Snapshot] = []

    async def write() -> None:
        await project.each([call_of(project, one, BOOKED_NOTHING, "new", "") for one in page])
        async with side.redis.pipeline(transaction=False) as pipe:
            for one in page:
                names = keys.OrgKeys(one.org.org_id)
                pipe.hset(names.wallet, mapping=USED)
                for key in one.keys:
                    pipe.set(keys.key_record(key.key_hash)[1], f"{key.org_id} {key.key_id}")
                    pipe.hset(names.access(key.key_id), mapping=USED)
            await pipe.execute()
        progress.advance(task, len(page))
        page.clear()

    for snapshot in snapshots(side):
        page.append(snapshot)
        if len(page) == PAGE:
            await write()
    if page:
        await write()


class Recorder:
    """Stands in for Redis while admissions are made ready, so that a server is then given many in one go.

    Asked one by one it would sleep in between, and what was measured would be its awakening.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    async def evalsha(self, *call: Any) -> list[Any]:
        """Remember it; the answer is an admission's."""
        self.calls.append(call)
        return [1, time.time_ns() // 1000, 0, 0, 0, 0, 0, 0, 0, 0, b"", b"", b"", b"", 0, 0]


async def round_of(side: Side, number: int, admissions: int, chance: random.Random) -> None:
    """Admit for random keys; each order is voided, so that no round is different from the one before."""
    identity: list[tuple[Caller, str]] = []
    await side.redis.config_resetstat()
    for start in range(0, admissions, IN_ONE_GO):
        recorder: Any = Recorder()
        wallet = Wallet(recorder, LIMITS_OF_WALLETS)
        for place in range(start, start + IN_ONE_GO):
            caller = side.caller(chance.randrange(side.orgs), chance.randrange(side.keys_each))
            request = str(UUID(int=(number << 64) + place))
            await admit(wallet, caller, request, pinned(now_us=wallet.now_us()))
            identity.append((caller, request))
        async with side.redis.pipeline(transaction=False) as pipe:
            for call in recorder.calls:
                pipe.evalsha(*call)
            for reply in await pipe.execute():
                assert reply[0] == Verdict.ADMITTED, reply
    stats: Any = await side.redis.info("commandstats")
    side.admission_us.append(stats["cmdstat_evalsha"]["usec"] / stats["cmdstat_evalsha"]["calls"])
    wallet = Wallet(side.redis, LIMITS_OF_WALLETS)
    for caller, request in identity:
        await wallet.void(caller.org_id, request, "bench")
    async with side.redis.pipeline(transaction=False) as pipe:
        for partition in range(keys.PARTITIONS):
            pipe.delete(keys.events(partition))
        await pipe.execute()


async def measure(
    folder: Path, jemalloc: str, orgs: int, keys_each: int, rounds: int, admissions: int, console: Console
) -> list[Side]:
    """Both servers filled, and then asked in turn; the first round of each warms up and does not count."""
    sides = []
    for name, count, each in (("ten keys", 10, 1), ("a million keys", orgs, keys_each)):
        place = folder / name.replace(" ", "-")
        place.mkdir()
        server = ValkeyServer(place, preload=jemalloc)
        server.start()
        redis = open_redis(server.url, connections=4, call_timeout_s=60.0)
        sides.append(Side(name, count, each, server, redis))
    try:
        with Progress(console=console, transient=True) as progress:
            for side in sides:
                await fill(side, progress, progress.add_task(f"filling: {side.name}", total=side.orgs))
                wallet = Wallet(side.redis, LIMITS_OF_WALLETS)
                # From its first call on a server knows the script.
                await admit(wallet, side.caller(0, 0), "first", pinned(now_us=wallet.now_us()))
                await wallet.void(side.org_id(0), "first", "bench")
            task = progress.add_task("measuring", total=(rounds + 1) * len(sides))
            for number in range(rounds + 1):
                for side in sides:
                    await round_of(side, number, admissions, random.Random(number))
                    progress.advance(task)
        for side in sides:
            side.memory_mb = (await side.redis.info("memory"))["used_memory"] / 1e6
            side.admission_us.pop(0)
    finally:
        for side in sides:
            await side.redis.aclose()
            side.server.stop()
    return sides


def main() -> None:
    """Run it, print the table, and fail where a million keys cost more than a tenth above ten."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orgs", type=int, default=100_000)
    parser.add_argument("--keys-each", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--admissions", type=int, default=500)
    given = parser.parse_args()
    jemalloc = ctypes.util.find_library("jemalloc")
    if jemalloc is None:
        raise SystemExit("jemalloc is missing: install libjemalloc2. On Linux Valkey and Redis are built with it")
    errors = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="ghub-bench-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        many = given.orgs, given.keys_each, given.rounds, given.admissions
        sides = runner.run(measure(Path(folder), jemalloc, *many, errors))
    table = Table("server", "organisations", "keys", "MB in Redis", "µs per admission, median", "lowest", "highest")
    for side in sides:
        middle = statistics.median(side.admission_us)
        figures = (middle, min(side.admission_us), max(side.admission_us))
        count = f"{side.orgs * side.keys_each:,}"
        table.add_row(side.name, f"{side.orgs:,}", count, f"{side.memory_mb:.0f}", *(f"{one:.1f}" for one in figures))
    console = Console()
    console.print(table)
    small, large = sides
    ratios = [b / a for a, b in zip(small.admission_us, large.admission_us, strict=True)]
    ratio = statistics.median(ratios)
    console.print(
        f"a million keys against ten: {ratio:.3f} (median of {len(ratios)} interleaved rounds), at most {MAX_RATIO}"
    )
    raise SystemExit(ratio > MAX_RATIO)


if __name__ == "__main__":
    main()
