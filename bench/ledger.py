"""How fast one billing consumer books: PostgreSQL and SQLite take turns in one run, both synced to disk.

A batch is made and booked as the consumer does it: entries as they come over the stream are decoded, and written with
their consumption and running totals in one transaction. One core of a gateway makes at most 250 orders a second.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import uvloop
from rich.console import Console
from rich.table import Table

from metering.clock import utc_now
from metering.consumer import BATCH
from metering.events import decode, encode_images, encode_opened
from metering.ledger.postgres import open_postgres
from metering.ledger.record import SqlLedger
from metering.ledger.sqlite import open_sqlite
from metering.ports import Act, Org
from tests.kits.books import FACTS, UNIT, pictures, pinned
from tests.kits.postgres import PostgresServer

ORGS = 50
GATEWAY_PER_S = 250
LEAST_PER_S = 10 * GATEWAY_PER_S

Entry = dict[bytes, bytes]


RESULT = b'{"v":1,"created":1795370404,"model":"fal/flux-1.1-pro","served":"fal-ai/flux-pro/v1.1","prompts":[null]}'
"""What an order's owner may fetch again: kept beside its event."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Events per second of each round, and milliseconds of each batch."""

    per_s: list[float] = field(default_factory=list)
    batch_ms: list[float] = field(default_factory=list)


def batches(orgs: list[str], first: int, count: int) -> Iterator[list[Entry]]:
    """Charges of one image, as a stream has them; numbers go on from `first`."""
    for batch in range(count):
        yield [_entry(orgs[i % ORGS], first + batch * BATCH + i) for i in range(BATCH)]


def _entry(org_id: str, number: int) -> Entry:
    request_id = str(uuid4())
    return {
        b"number": str(number).encode(),
        b"end": b"charge",
        b"reason": b"delivered",
        b"quantity": b"1",
        b"amount": str(UNIT).encode(),
        b"admitted_us": b"1795370400000000",
        b"ended_us": b"1795370404000000",
        b"opened": encode_opened(request_id, org_id, "key_1", pinned(), FACTS),
        b"images": encode_images(pictures(1, request_id)),
        b"usd_measured": b"",
        b"result": RESULT,
    }


async def measure(ledgers: dict[str, SqlLedger], rounds: int, per_round: int) -> dict[str, Measured]:
    """The databases take turns with the same entries; the first round warms up and does not count."""
    measured = {name: Measured() for name in ledgers}
    orgs = [str(uuid4()) for _ in range(ORGS)]
    for ledger in ledgers.values():
        await ledger.migrate()
        for org_id in orgs:
            org = Org(org_id, org_id, "default", utc_now().isoformat())
            await ledger.create_org(org, Act("bench", "org.create", org_id))
    for turn in range(rounds + 1):
        entries = list(batches(orgs, turn * per_round * BATCH + 1, per_round))
        for name, ledger in ledgers.items():
            took = [await _book(ledger, batch) for batch in entries]
            if turn:
                measured[name].per_s.append(per_round * BATCH / sum(took))
                measured[name].batch_ms.extend(seconds * 1000 for seconds in took)
    return measured


async def _book(ledger: SqlLedger, batch: list[Entry]) -> float:
    began = time.perf_counter()
    new = await ledger.book([decode(entry) for entry in batch], [], utc_now())
    took = time.perf_counter() - began
    assert len(new) == BATCH
    return took


def report(measured: dict[str, Measured]) -> None:
    """Print medians and spread."""
    table = Table("ledger", "events/s", "spread", f"ms per batch of {BATCH}", "p99 ms", "gateway cores")
    for name, one in measured.items():
        median, cuts = statistics.median(one.per_s), statistics.quantiles(one.batch_ms, n=100)
        spread = f"{min(one.per_s):,.0f}–{max(one.per_s):,.0f}"
        table.add_row(
            name, f"{median:,.0f}", spread, f"{cuts[49]:.1f}", f"{cuts[98]:.1f}", f"{median / GATEWAY_PER_S:.0f}"
        )
    Console(width=110).print(table)


async def run(folder: Path, server: PostgresServer, rounds: int, per_round: int) -> dict[str, Measured]:
    """Open both ledgers and measure them."""
    async with AsyncExitStack() as stack:
        ledgers: dict[str, SqlLedger] = {
            "PostgreSQL": open_postgres(server.url("postgres")),
            "SQLite": open_sqlite(f"sqlite:///{folder}/ledger.db"),
        }
        for ledger in ledgers.values():
            await stack.enter_async_context(aclosing(ledger))
        return await measure(ledgers, rounds, per_round)


def main() -> int:
    """Exit 1 where PostgreSQL takes less than ten times what a gateway's core makes."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--batches", type=int, default=50, help="per round")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        server = PostgresServer(Path(folder))
        server.start()
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                measured = runner.run(run(Path(folder), server, given.rounds, given.batches))
        finally:
            server.kill()
    report(measured)
    return 0 if statistics.median(measured["PostgreSQL"].per_s) >= LEAST_PER_S else 1


if __name__ == "__main__":
    sys.exit(main())
