"""The other process of a race: `python -m tests.integration.money_worker COMMAND …` prints its result as JSON."""

import asyncio
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import orjson
import structlog

from metering.consumer import Consumer
from metering.events import Event
from metering.ledger.sqlite import SqliteLedger
from metering.ports import SetAside
from metering.wallet.wallet import Caller, Verdict
from tests.conftest import run
from tests.integration.money_kit import LIMITS, NOON, admit, event, open_books, open_wallets


class Stalling(SqliteLedger):
    """A ledger whose process never gets beyond the commit."""

    async def book(self, events: Sequence[Event], set_aside: Sequence[SetAside], at: datetime) -> set[str]:
        """Commit, say so, and hang."""
        await super().book(events, set_aside, at)
        print("committed", flush=True)
        await asyncio.Event().wait()
        raise AssertionError


async def add_credits(path: str, org_id: str, first: str, count: str) -> int:
    """Add numbered credits of 1 micro-MXN; returns how many were new."""
    ledger = SqliteLedger(Path(path))
    added = [
        await ledger.add_credit(org_id, f"credit-{i}", "recharge", 1, NOON)
        for i in range(int(first), int(first) + int(count))
    ]
    await ledger.aclose()
    return sum(added)


async def book(path: str, org_id: str, count: str, times: str) -> int:
    """Book the same events many times over; returns how many were new."""
    ledger = SqliteLedger(Path(path))
    events = [event(org_id, number + 1) for number in range(int(count))]
    new = [len(await ledger.book(events, [], NOON)) for _ in range(int(times))]
    await ledger.aclose()
    return sum(new)


async def migrate(path: str) -> int:
    """Bring a ledger up to date."""
    ledger = SqliteLedger(Path(path))
    version = await ledger.migrate()
    await ledger.aclose()
    return version


async def admissions(url: str, org_id: str, key_id: str, name: str, count: str) -> int:
    """Admit concurrently over separate connections; returns how many were admitted."""
    async with open_wallets(url, 10) as wallets:
        answers = await asyncio.gather(
            *(admit(wallets[i % 10], Caller(org_id, key_id), f"{name}-{i}") for i in range(int(count)))
        )
    return sum(answer.verdict is Verdict.ADMITTED for answer in answers)


async def consume_and_hang(url: str, path: str) -> None:
    """Consume into a ledger that commits and hangs."""
    async with open_books(url, Path(path)) as books:
        ledger = Stalling(Path(path))
        await Consumer(books.redis, ledger, "doomed", LIMITS.remember_s).run(asyncio.Event())


async def project(url: str, path: str, rounds: str) -> int:
    """Look at the record again and again."""
    async with open_books(url, Path(path), projected=False) as books:
        for _ in range(int(rounds)):
            await books.projector.round()
    return int(rounds)


COMMANDS = {
    "credits": add_credits,
    "book": book,
    "migrate": migrate,
    "admissions": admissions,
    "consume_and_hang": consume_and_hang,
    "project": project,
}

if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    result = run(COMMANDS[sys.argv[1]](*sys.argv[2:]))  # type: ignore[operator]  # each takes text
    sys.stdout.buffer.write(orjson.dumps(result))
