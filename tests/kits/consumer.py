"""Backlogs of a given size, a real consumer in its own process, and a ledger that goes away."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
from redis.asyncio import Redis

from metering.events import Event, encode_images, encode_opened
from metering.ledger.record import SqlLedger
from metering.ports import LedgerAway, SetAside, WebhookCall
from metering.wallet import keys
from metering.wallet.values import Caller
from tests.kits.books import FACTS, NOW_US, ROOT, SECOND_US, UNIT, pictures, pinned, waiting

PIPELINE = 200


def entry_of(caller: Caller, number: int, images: int = 1, prompt: str = "") -> dict[str, Any]:
    """Make a charge in the settlement's stream form, each image with its own revised prompt."""
    order_id = str(uuid4())
    return {
        "number": number,
        "end": "charge",
        "reason": "delivered",
        "quantity": images,
        "amount": images * UNIT,
        "admitted_us": NOW_US,
        "ended_us": NOW_US + SECOND_US,
        "opened": encode_opened(order_id, caller.org_id, caller.key_id, pinned(images), FACTS),
        "images": encode_images(pictures(images, order_id)),
        "usd_measured": "",
        "result": orjson.dumps({"v": 1, "created": 1795370404, "prompts": [prompt or None] * images}),
    }


async def fill(redis: Redis, callers: Sequence[Caller], each: int, images: int = 1, prompt: str = "") -> None:
    """Put this many charges of every caller into the streams."""
    for caller in callers:
        stream = keys.OrgKeys(caller.org_id).events
        for first in range(0, each, PIPELINE):
            async with redis.pipeline(transaction=False) as pipe:
                for number in range(first, min(each, first + PIPELINE)):
                    pipe.xadd(stream, entry_of(caller, number + 1, images, prompt))  # type: ignore[arg-type]
                await pipe.execute()


async def drained_s(redis: Redis, within_s: float) -> float:
    """Measure the time until the streams are empty."""
    began_s = time.monotonic()
    while await waiting(redis):
        assert time.monotonic() < began_s + within_s, f"{await waiting(redis)} entries are left"
        await asyncio.sleep(0.01)
    return time.monotonic() - began_s


class Away:
    """A ledger that accepts nothing while it is `away`; `refused` counts those bookings."""

    def __init__(self, ledger: SqlLedger) -> None:
        self.away, self.refused = False, 0
        self._book = ledger.book
        ledger.book = self._through  # type: ignore[method-assign]

    async def _through(
        self, events: Sequence[Event], set_aside: Sequence[SetAside], at: datetime, calls: Sequence[WebhookCall] = ()
    ) -> set[str]:
        if self.away:
            self.refused += 1
            raise LedgerAway("for a test")
        return await self._book(events, set_aside, at, calls)


@contextmanager
def consuming(redis_url: str, ledger_url: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `ghub consume` in its own process."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "GHUB_REDIS_URL": redis_url,
        "GHUB_LEDGER_URL": ledger_url,
        "GHUB_METRICS_PORT": "0",
    }
    with (folder / "consumer.log").open("ab") as out:
        command = [sys.executable, "-m", "proxy.cli", "consume"]
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=out, stderr=out)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def peak_mib(pid: int) -> float:
    """Find the maximum resident memory of a process so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise AssertionError("VmHWM")
