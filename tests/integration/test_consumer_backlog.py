"""Backlogs: after an outage they drain as fast as without one, and the largest events take little memory."""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest

from metering import consumer as module
from metering.consumer import BATCH, BOOKED_BYTES, FIRST, GROUP, LARGEST_BYTES, MAX_BYTES
from metering.events import Event
from metering.ports import SetAside, WebhookCall
from metering.wallet import keys
from tests.kits.books import make_groups, open_books, waiting
from tests.kits.cluster_orgs import everywhere
from tests.kits.consumer import Away, consuming, drained_s, fill, peak_mib
from tests.long import LONG

EVENTS = 20_000 if LONG else 3_000
LEAST_PER_S = 400
MAX_MIB = 200
PROMPTS = {"ASCII": "x" * 4_000, "four bytes": "🖼" * 4_000, "escaped": '"' * 4_000, "mixed": "x" * 3_999 + "🖼"}


async def test_what_was_read_is_kept_while_the_ledger_is_away(redis_url: str, ledger_url: str) -> None:
    """One batch is in hand, tried again, and nothing else is read; then all is booked, without waiting for a claim."""

    async def booked() -> None:
        async with open_books(redis_url, ledger_url) as books:
            caller = await books.org()
            ledger, stop = Away(books.ledger), asyncio.Event()
            ledger.away = True
            await make_groups(books.redis)
            await fill(books.redis, [caller], 5 * BATCH)
            task = asyncio.create_task(books.consumer().run(stop))
            stream, in_hand = keys.OrgKeys(caller.org_id).events, list[int]()
            for refusals in (2, 4):
                while ledger.refused < refusals:
                    await asyncio.sleep(0.01)
                in_hand.append((await books.redis.xpending(stream, GROUP))["pending"])
            # On a cluster 32 lanes share the room, and a batch is as much of it as there is at the moment.
            assert in_hand[0] == in_hand[1] and 0 < in_hand[0] <= BATCH
            ledger.away = False
            await drained_s(books.redis, 60.0)
            stop.set()
            await task
            assert (await books.ledger.charged_up_to(caller.org_id)).events == 5 * BATCH

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "IDLE_MS", 3_600_000)  # no claim can help, however slow the machine is
        await booked()


async def test_a_backlog_drains_after_an_outage_as_without_one(redis_url: str, ledger_url: str) -> None:
    """At 90 % of the rate, and at least 400 events a second of one partition."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        ledger, rates = Away(books.ledger), []
        await make_groups(books.redis)
        for outage in (False, True):
            ledger.away, ledger.refused = outage, 0
            await fill(books.redis, [caller], EVENTS)
            stop = asyncio.Event()
            task = asyncio.create_task(books.consumer(f"outage {outage}").run(stop))
            while outage and ledger.refused < 5:
                await asyncio.sleep(0.01)
            ledger.away = False
            while await waiting(books.redis) == EVENTS:
                await asyncio.sleep(0.001)
            rates.append(EVENTS / await drained_s(books.redis, 60.0))
            stop.set()
            await task
        print(f"{rates[0]:.0f} events/s, and after an outage {rates[1]:.0f}")
        assert rates[1] >= LEAST_PER_S
        if LONG:  # shorter runs say little of the ratio on a machine that others use, too
            assert rates[1] >= 0.9 * rates[0]


async def test_what_a_dead_consumer_left_is_taken_over_whole(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches that it had read are claimed until there is no more, and not a page a sweep."""
    monkeypatch.setattr(module, "IDLE_MS", 0)
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        await make_groups(books.redis)
        await fill(books.redis, [caller], 2 * BATCH)
        stream = keys.OrgKeys(caller.org_id).events
        await books.redis.xreadgroup(GROUP, "dead", {stream: ">"}, count=2 * BATCH)
        stop = asyncio.Event()
        task = asyncio.create_task(books.consumer().run(stop))
        assert await drained_s(books.redis, 10.0) < module.SWEEP_S
        stop.set()
        await task
        assert (await books.ledger.charged_up_to(caller.org_id)).events == 2 * BATCH


@pytest.mark.parametrize("prompt", PROMPTS if LONG else ["mixed"])
async def test_the_largest_events_take_little_memory(
    redis_url: str, ledger_url: str, tmp_path: Path, prompt: str
) -> None:
    """Eight images with 4,000 characters each, in all partitions: the consumer stays below 200 MiB."""
    async with open_books(redis_url, ledger_url) as books:
        callers = await everywhere(books)
        each = 60 if LONG else 20
        await fill(books.redis, callers, each, 8, PROMPTS[prompt])
        with consuming(redis_url, ledger_url, tmp_path) as process:
            began_s = time.monotonic()
            await drained_s(books.redis, 120.0)
            took_s, peak = time.monotonic() - began_s, peak_mib(process.pid)
        print(f"{prompt}: {peak:.0f} MiB at most, {each * len(callers) / took_s:.0f} events/s with the start")
        assert peak < MAX_MIB
        assert await books.ledger.count_set_aside() == 0
        assert (await books.ledger.charged_up_to(callers[0].org_id)).events == each


async def test_a_batch_is_bound_in_bytes(redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries in memory and in one transaction are limited, even if they are few.

    In a cluster every partition has its own batch, and all share one memory limit.
    """
    async with open_books(redis_url, ledger_url) as books:
        caller, ledger, stop = await books.org(), Away(books.ledger), asyncio.Event()
        through, booked = books.ledger.book, list[int]()

        async def noted(
            events: Sequence[Event], set_aside: Sequence[SetAside], at: datetime, calls: Sequence[WebhookCall] = ()
        ) -> set[str]:
            booked.append(sum(len(event.result.encode()) for event in events))
            return await through(events, set_aside, at, calls)

        monkeypatch.setattr(books.ledger, "book", noted)
        await make_groups(books.redis)
        await fill(books.redis, [caller], 100, 8, PROMPTS["four bytes"])
        ledger.away = True
        task = asyncio.create_task(books.consumer().run(stop))
        while ledger.refused < 2:
            await asyncio.sleep(0.01)
        in_hand = (await books.redis.xpending(keys.OrgKeys(caller.org_id).events, GROUP))["pending"]
        assert 0 < in_hand * 8 * 16_000 <= MAX_BYTES + FIRST * LARGEST_BYTES
        ledger.away = False
        await drained_s(books.redis, 60.0)
        stop.set()
        await task
        assert max(booked) <= BOOKED_BYTES
        assert (await books.ledger.charged_up_to(caller.org_id)).events == 100
