"""Reading costs what it may: 48 reports at once of a ledger with 33,000 rows of usage, real processes."""

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta
from itertools import product
from pathlib import Path

import httpx2

from config.settings import REPORTS_WAITING, USAGE_PER_MINUTE
from tests.conftest import run
from tests.e2e.conftest import Prepared
from tests.kits.system import FLUX, System

FIRST = date(2025, 1, 1)
ROWS = 366 * 10 * 9
WHOLE = {"from": f"{FIRST}", "to": f"{FIRST + timedelta(365)}", "group_by": "day,model,key"}
MAX_MB = 120
"""Two reports at a time, and what Python keeps of what it has freed. It was 1,007 MB."""


def usage_rows(org_id: str) -> Iterator[tuple[object, ...]]:
    """Make rows for a year, ten keys and nine models."""
    for day, key, model in product(range(366), range(10), range(9)):
        yield org_id, f"{FIRST + timedelta(day)}", f"key_{key:032}", f"provider/model-{model}", 5, 7, 5_880_000, 1


def memory_mb(system: System, what: str) -> float:
    """The gateway's `VmRSS` or `VmHWM`."""
    status = Path(f"/proc/{system.processes['gateway'].pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(what))) / 1024


def test_48_reports_at_once_hold_up_nobody(prepared: Prepared) -> None:
    """One is made at a time and a few wait; the rest is 429 with a wait. Memory stays, and another's orders and reads
    of the ledger go on."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("many")
    _, other_key = system.customer("other", "50.00")
    with sqlite3.connect(system.folder / "ledger.db", timeout=30) as db:
        db.executemany("INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?)", usage_rows(org_id))
    db.close()

    async def work() -> None:
        async with system.client(key) as client, system.client(other_key) as other:
            for _ in range(2):  # warm, as a process is that has served a while
                await client.get("/usage", params=WHOLE)
                await other.post("/images/generations", json={"model": FLUX, "prompt": "un faro"})
            before_mb = memory_mb(system, "VmRSS")
            asked = [asyncio.create_task(client.get("/usage", params=WHOLE)) for _ in range(48)]
            await asyncio.sleep(0)
            waits: list[float] = []
            while not all(task.done() for task in asked):
                began_s = time.monotonic()
                order = await other.post("/images/generations", json={"model": FLUX, "prompt": "un faro"})
                listed = await other.get("/images/generations")
                assert (order.status_code, listed.status_code) == (200, 200), order.text + listed.text
                waits.append(time.monotonic() - began_s)
            replies = [task.result() for task in asked]
            found = Counter(reply.status_code for reply in replies)
            peak_mb = memory_mb(system, "VmHWM")
            print(f"{found}, {before_mb:.0f} MB before, {peak_mb:.0f} at most, others waited {max(waits):.2f} s")
            assert set(found) == {200, 429} and 1 <= found[200] <= 1 + REPORTS_WAITING
            assert peak_mb - before_mb < MAX_MB
            for reply in replies:
                if reply.status_code == 200:
                    assert len(reply.json()["data"]) == ROWS
                    assert reply.json()["total"]["orders"] == 5 * ROWS
                else:
                    assert reply.json()["error"]["code"] == "rate_limit_exceeded"
                    assert reply.headers["x-should-retry"] == "true" and int(reply.headers["retry-after"]) >= 1

    run(work())


def test_reads_have_rates_of_their_own(prepared: Prepared) -> None:
    """Above them it is 429 with OpenAI's headers; another organisation's are its own, and orders are not concerned."""
    system = prepared()
    system.start_all()
    _, key = system.customer("many", "50.00")
    _, other_key = system.customer("other")

    async def work() -> None:
        async with system.client(key) as client, system.client(other_key) as other:
            last: httpx2.Response | None = None
            for _ in range(2 * USAGE_PER_MINUTE):
                last = await client.get("/usage")
                if last.status_code == 429:
                    break
            assert last is not None and last.status_code == 429
            assert last.json()["error"]["code"] == "rate_limit_exceeded"
            assert last.headers["x-ratelimit-limit-requests"] == f"{USAGE_PER_MINUTE}"
            assert last.headers["x-ratelimit-remaining-requests"] == "0" and "retry-after-ms" in last.headers
            assert (await other.get("/usage")).status_code == 200
            for path in ("/credits", "/models", "/images/generations"):
                assert (await client.get(path)).status_code == 200
            order = await client.post("/images/generations", json={"model": FLUX, "prompt": "un faro"})
            assert order.status_code == 200

    run(work())
