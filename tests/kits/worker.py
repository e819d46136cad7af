"""The other process of a race: `python -m tests.kits.worker COMMAND …` prints its result as JSON."""

import asyncio
import itertools
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import orjson
import structlog

from metering import consumer
from metering.accounts import Accounts
from metering.consumer import Consumer
from metering.corrections import corrections
from metering.events import Event
from metering.ledger import postgres
from metering.ledger.record import SqlLedger
from metering.ledger.transactions import Mode, Steps
from metering.ports import LedgerError, NewCredit, SetAside, WebhookCall
from metering.wallet.values import Caller, Verdict
from tests.conftest import run
from tests.kits.books import ACT, IVA, LIMITS, NOON, admit, event, open_books, open_ledger, open_wallets
from tests.kits.sinks import Outgoing, sink

T = TypeVar("T")


def hang_after_commit(ledger: SqlLedger) -> None:
    """From now on a booking is committed, reports it, and hangs."""
    book = ledger.book

    async def and_hang(
        events: Sequence[Event], set_aside: Sequence[SetAside], at: datetime, calls: Sequence[WebhookCall] = ()
    ) -> set[str]:
        await book(events, set_aside, at, calls)
        print("committed", flush=True)
        await asyncio.Event().wait()
        raise AssertionError

    ledger.book = and_hang  # type: ignore[method-assign]


def hang_before_commit(ledger: SqlLedger) -> None:
    """From now on a transaction does all its work, reports it, and hangs with its whole process."""
    run_it = ledger._run

    async def and_hang(mode: Mode, steps: Callable[[], Steps[T]]) -> T:
        def hanging() -> Steps[T]:
            yield from steps()
            print("written", flush=True)
            threading.Event().wait()
            raise AssertionError

        return await run_it(mode, hanging)

    ledger._run = and_hang  # type: ignore[method-assign]


def wait_for_the_others() -> None:
    """Wait, so that all processes of a race begin at the same moment."""
    print("ready", flush=True)
    sys.stdin.readline()


async def add_credits(ledger_at: str, org_id: str, first: str, count: str) -> int:
    """Add numbered credits of 1 micro-MXN; returns how many were new."""
    ledger = open_ledger(ledger_at)
    wait_for_the_others()
    added = [
        await ledger.add_credit(NewCredit(f"credit-{i}", org_id, "recharge", 1), NOON, ACT)
        for i in range(int(first), int(first) + int(count))
    ]
    await ledger.aclose()
    return sum(added)


async def refund(ledger_at: str, micro_mxn: str, *orders: str) -> int:
    """Refund orders, completely if the amount is 0; returns how many refunds were given."""
    ledger = open_ledger(ledger_at)
    accounts = Accounts(ledger, None, {}, (), IVA, "test")
    wait_for_the_others()
    given = 0
    for order in orders:
        with suppress(LedgerError):
            await accounts.refund(order, "race", int(micro_mxn) or None)
            given += 1
    await ledger.aclose()
    return given


async def correct_rate(ledger_at: str, month: str, rate: str, hang_at: str) -> int:
    """Correct a month's rate; returns how many adjustments were given. It hangs in the transaction of one of them."""
    ledger = open_ledger(ledger_at)
    accounts = Accounts(ledger, None, {}, (), IVA, "test")
    give, times = ledger.correct_rate, itertools.count(1)

    async def or_hang(*arguments: Any) -> bool:
        if next(times) == int(hang_at):
            hang_before_commit(ledger)
        return await give(*arguments)

    ledger.correct_rate = or_hang  # type: ignore[assignment, method-assign]
    wait_for_the_others()
    given = 0
    async for _, found in corrections(ledger, accounts, month, Decimal(rate), "race"):
        given += found.adjustment_micro_mxn != 0
    await ledger.aclose()
    return given


async def book(ledger_at: str, org_id: str, count: str, times: str) -> int:
    """Book the same events many times over; returns how many were new."""
    ledger = open_ledger(ledger_at)
    events = [event(org_id, number + 1) for number in range(int(count))]
    wait_for_the_others()
    new = [len(await ledger.book(events, [], NOON)) for _ in range(int(times))]
    await ledger.aclose()
    return sum(new)


async def write_and_hang(ledger_at: str, org_id: str, what: str, idle_s: str) -> None:
    """Book three events or add a credit, and never commit. A PostgreSQL may disconnect it after `idle_s`."""
    postgres.CALL_S = float(idle_s)
    ledger = open_ledger(ledger_at)
    hang_before_commit(ledger)
    if what == "events":
        await ledger.book([event(org_id, number) for number in (1, 2, 3)], [], NOON)
    else:
        await ledger.add_credit(NewCredit("credit-1", org_id, "recharge", 1), NOON, ACT)


async def migrate(ledger_at: str) -> int:
    """Bring a ledger's schema up to date."""
    ledger = open_ledger(ledger_at)
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


async def consume_and_hang(url: str, ledger_at: str) -> None:
    """Consume into a ledger that commits and hangs."""
    async with open_books(url, ledger_at) as books:
        hang_after_commit(books.ledger)
        await Consumer(books.redis, books.ledger, "doomed", LIMITS.remember_s).run(asyncio.Event())


async def consume(url: str, ledger_at: str, name: str) -> str:
    """Consume until SIGTERM. Entries of a dead consumer are taken over within three seconds."""
    consumer.IDLE_MS, consumer.SWEEP_S = 2_000, 1.0
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with open_books(url, ledger_at, projected=False) as books:
        print("consuming", flush=True)
        await books.consumer(name).run(stop)
    return name


async def project(url: str, ledger_at: str, rounds: str) -> int:
    """Project the record again and again."""
    async with open_books(url, ledger_at, projected=False) as books:
        for _ in range(int(rounds)):
            await books.projector.round()
    return int(rounds)


async def deliver(ledger_at: str, folder: str, profile: str, address: str) -> None:
    """Deliver to one sink as a consumer does, until it is killed."""
    ledger = open_ledger(ledger_at)
    out = Outgoing(ledger, ledger_at, Path(folder), send_s=30.0)
    async with out.delivering(sink(Path(folder), profile, address)):
        await asyncio.Event().wait()


COMMANDS = {
    "credits": add_credits,
    "refund": refund,
    "correct_rate": correct_rate,
    "book": book,
    "write_and_hang": write_and_hang,
    "migrate": migrate,
    "admissions": admissions,
    "consume_and_hang": consume_and_hang,
    "consume": consume,
    "project": project,
    "deliver": deliver,
}

if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    result = run(COMMANDS[sys.argv[1]](*sys.argv[2:]))  # type: ignore[operator]  # each takes text
    sys.stdout.buffer.write(orjson.dumps(result))
