"""Delivery to one sink: what is due is claimed, sent, and then deleted, sent again later, or set aside."""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import NoReturn

import structlog
from prometheus_client import Counter

from config.settings import SINK_FIRST_PAUSE_S, SINK_LEASE_S, SINK_LONGEST_PAUSE_S, SINK_POLL_S
from metering.background import cancel_all, error_fields, until_one_ends
from metering.clock import utc_now
from metering.pauses import Pauses
from metering.ports import Conclusion, LedgerAway, Outbox, ToSend
from metering.sinks.sink import CannotBeSent, Reply, Sender, Sink, SinkAway, Verdict

log = structlog.get_logger(__name__)

CLAIMED = 50
"""Items that are claimed at a time for a sink that takes one a request: two transactions of the ledger for all."""

CLAIMS = 4
"""Claims of one sink that are under way at a time: a request that hangs holds up its own claim, and no other."""

EXCERPT = 300
"""Characters of a receiver's refusal that are kept for a person."""

DELIVERED = Counter("ghub_sink_delivered_total", "Items that a sink has taken, repeats among them", ["sink"])
REFUSED = Counter("ghub_sink_refused_total", "Items that a sink refused for good: they are set aside", ["sink"])
FAILED = Counter("ghub_sink_failures_total", "Requests to a sink that failed and are repeated", ["sink"])


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient a delivery is, in seconds; the reasons are in `config.settings`."""

    poll_s: float = SINK_POLL_S
    lease_s: float = SINK_LEASE_S
    first_pause_s: float = SINK_FIRST_PAUSE_S
    longest_pause_s: float = SINK_LONGEST_PAUSE_S


class Delivery:
    """One sink's task. `turn` is shared by all sinks of a process: they use one connection of the ledger together, so
    that a fast one delays no booking.
    """

    def __init__(
        self, sink: Sink, sender: Sender, outbox: Outbox, turn: asyncio.Semaphore, pace: Pace | None = None
    ) -> None:
        self._sink = sink
        self._sender = sender
        self._outbox = outbox
        self._turn = turn
        self._pace = pace or Pace()
        self._requests = asyncio.Semaphore(sink.at_once)
        self._failures = 0
        self._not_before_s = 0.0
        for counter in (DELIVERED, REFUSED, FAILED):
            counter.labels(sink.name)

    async def run(self) -> NoReturn:
        """Deliver until cancelled. While the sink fails, one request at a time finds out whether it is back."""
        under_way: set[asyncio.Task[None]] = set()
        try:
            while True:
                found = False
                if len(under_way) < (1 if self._failures else CLAIMS):
                    await self._pause()
                    if items := await self._claim():
                        under_way.add(asyncio.create_task(self._deliver(*items)))
                        found = True
                if not found:
                    under_way = await until_one_ends(under_way, self._pace.poll_s)
        finally:
            await cancel_all(under_way)

    async def _claim(self) -> tuple[Sequence[ToSend], datetime] | None:
        """Claim what is due: of a sink that fails, one request's. None if there is nothing, or the ledger is away."""
        most = self._sink.per_request if self._failures else max(self._sink.per_request, CLAIMED)
        now = utc_now()
        lease = now + timedelta(seconds=self._pace.lease_s)
        try:
            async with self._turn:
                items = await self._outbox.claim_items(self._sink.name, now, lease, most)
        except LedgerAway as error:
            log.warning("sink_waits_for_the_ledger", sink=self._sink.name, **error_fields(error))
            return None
        return (items, lease) if items else None

    async def _deliver(self, items: Sequence[ToSend], lease: datetime) -> None:
        """Send what was claimed, and write down what became of it."""
        until_s = time.monotonic() + self._pace.lease_s / 2
        most_failures = self._failures + self._sink.at_once
        async with asyncio.TaskGroup() as group:
            sent = [
                group.create_task(self._send(part, most_failures, until_s))
                for part in parts_of(items, self._sink.per_request)
            ]
        conclusions = merged([one for task in sent for one in task.result()])
        # If the ledger is away for longer, the claim runs out and all is sent again, with the same ids.
        async for _ in Pauses(self._pace.first_pause_s, until_s=until_s + self._pace.lease_s / 2):
            try:
                async with self._turn:
                    await self._outbox.conclude_items(self._sink.name, conclusions, lease)
                break
            except LedgerAway as error:
                log.warning("sink_waits_for_the_ledger", sink=self._sink.name, **error_fields(error))

    async def _send(self, items: Sequence[ToSend], most_failures: int, until_s: float) -> list[Conclusion]:
        """Send items in one request, or in halves where one of them is refused.

        Nothing is sent any more once the sink has failed so often, or if the claim may run out.
        """
        async with self._requests:
            if self._failures >= most_failures or time.monotonic() >= until_s:
                return [Conclusion("later", items, utc_now())]
            try:
                reply = await self._sender.send(self._sink.message(items))
            except SinkAway as error:
                return [self._later(items, str(error))]
            except CannotBeSent as error:
                return [self._refused(items, str(error))]
        verdict = self._sink.verdict(reply, len(items))
        if verdict is Verdict.LATER:
            self._not_before_s = time.monotonic() + min(reply.retry_after_s, self._pace.longest_pause_s)
            return [self._later(items, told(reply))]
        if self._failures:
            log.info("sink_is_back", sink=self._sink.name, failures=self._failures)
            self._failures = 0
        if verdict is Verdict.SPLIT:
            half = len(items) // 2
            return [
                *await self._send(items[:half], self._sink.at_once, until_s),
                *await self._send(items[half:], self._sink.at_once, until_s),
            ]
        if verdict is Verdict.REFUSED:
            return [self._refused(items, told(reply))]
        DELIVERED.labels(self._sink.name).inc(len(items))
        return [Conclusion("delivered", items, utc_now())]

    def _later(self, items: Sequence[ToSend], error: str) -> Conclusion:
        FAILED.labels(self._sink.name).inc()
        self._failures += 1
        if self._failures & (self._failures - 1) == 0:  # the first, and then ever fewer of them
            log.warning("sink_fails", sink=self._sink.name, failures=self._failures, error=error)
        now = utc_now()
        pause_s = self._jittered(max(item.attempts for item in items))
        return Conclusion("later", items, now, error, now + timedelta(seconds=pause_s))

    def _refused(self, items: Sequence[ToSend], error: str) -> Conclusion:
        REFUSED.labels(self._sink.name).inc(len(items))
        log.error("sink_refused", sink=self._sink.name, items=[item.item_id for item in items], error=error)
        return Conclusion("refused", items, utc_now(), error)

    async def _pause(self) -> None:
        """Wait while the sink fails: the longer, the more often it has failed; and as long as it asked for."""
        asked_s = self._not_before_s - time.monotonic()
        pause_s = max(asked_s, self._jittered(self._failures) if self._failures else 0.0)
        if pause_s > 0:
            await asyncio.sleep(pause_s)

    def _jittered(self, times: int) -> float:
        doubled: float = self._pace.first_pause_s * 2 ** min(times - 1, 20)
        return min(doubled, self._pace.longest_pause_s) * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, no secret


def parts_of(items: Sequence[ToSend], most: int) -> Iterator[Sequence[ToSend]]:
    """Divide items into requests of at most `most`. What has failed before is in smaller ones, the smaller the more
    often: one item that makes a receiver fail does not keep its neighbours for ever.
    """
    by_attempts = sorted(items, key=lambda item: item.attempts)
    for attempts, group in groupby(by_attempts, key=lambda item: item.attempts):
        alike = list(group)
        size = max(1, most >> (attempts - 1))
        for first in range(0, len(alike), size):
            yield alike[first : first + size]


def merged(conclusions: Sequence[Conclusion]) -> list[Conclusion]:
    """Merge those that are alike: a statement of the ledger for each, not for each item. The latest moments count."""
    found: dict[tuple[str, str], Conclusion] = {}
    for one in conclusions:
        before = found.get(key := (one.what, one.error), one)
        items = one.items if before is one else [*before.items, *one.items]
        next_at = max((at for at in (before.next_at, one.next_at) if at is not None), default=None)
        found[key] = Conclusion(one.what, items, max(before.at, one.at), one.error, next_at)
    return list(found.values())


def told(reply: Reply) -> str:
    """Say what a receiver answered, for a person."""
    text = reply.body.decode("utf-8", "replace")
    excerpt = " ".join("".join(one if one.isprintable() else " " for one in text).split())[:EXCERPT]
    return f"it answers {reply.status}: {excerpt}" if excerpt else f"it answers {reply.status}"
