"""SQL → Redis: organisations, keys, limits and credits, within seconds of every change and after every loss.

Any number of these may run at once, in gateways, consumers and commands: a projection is absolute and versioned.
"""

import asyncio
from collections.abc import Mapping
from typing import Literal
from uuid import uuid4

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis
from redis.exceptions import RedisError

from config.catalogue import Plan
from metering.ports import Charged, Ledger, LedgerAway, Snapshot
from metering.wallet import keys
from metering.wallet.connection import load_script

log = structlog.get_logger(__name__)

_LOST, _FENCED_OFF = 3, 4
_DONE, _STREAM_HOLDS_EVENTS = 1, 3

BELOW_ZERO = Counter("ghub_balance_below_zero_total", "Projections that left a balance below zero")

FENCE_S = 5
"""A rebuild whose process died, or stood still for so long, is taken over by another."""

_NOTHING = Charged(events=0, last_event=0, charged_micro_mxn=0)


class Projector:
    """Keeps Redis in step with the record."""

    def __init__(self, redis: Redis, ledger: Ledger, plans: Mapping[str, Plan]) -> None:
        self._redis = redis
        self._ledger = ledger
        self._plans = plans
        self._project = load_script(redis, "project_v1")
        self._fence = load_script(redis, "fence_v1")

    async def run(self, every_s: float) -> None:
        """Follow the record until cancelled. A database or a Redis that is away is waited for."""
        while True:
            try:
                await self.round()
            except (RedisError, LedgerAway, OSError, TimeoutError) as error:
                log.warning("projection_waits", error=type(error).__name__)
            await asyncio.sleep(every_s)

    async def round(self) -> None:
        """One look: what changed is projected, and a partition without its mark is rebuilt."""
        last = await self._ledger.last_change()
        marks = await self._marks()
        changed: list[str] = []
        if known := [int(mark) for mark in marks if mark is not None]:
            # A mark says up to which change its partition is projected. Redis keeps the order of writes, so a Redis
            # that lost some of them lost the mark that was set after them, too.
            changed = await self._ledger.changed_since(min(known))
        for org_id in changed:
            await self.org(org_id)
        missing = {partition for partition, mark in enumerate(marks) if mark is None}
        if missing:
            await self._rebuild(missing)
        if changed:
            await self._move_marks({p for p, mark in enumerate(marks) if mark is not None}, last)

    async def org(self, org_id: str) -> None:
        """Project one organisation now. Where its partition is not projected, the next rebuild takes it along."""
        snapshot = await self._ledger.snapshot(org_id)
        code = await self._apply(snapshot, "follow", _NOTHING)
        if code == _LOST:
            booked = await self._ledger.charged_up_to(org_id)
            if booked.events == 0:
                await self._apply(snapshot, "new", _NOTHING)
            else:
                # Its wallet was there once. Without the mark the whole partition is fenced and rebuilt from the ledger.
                log.error("wallet_lost", org=org_id)
                await self._redis.delete(keys.mark(keys.partition_of(org_id)))
        await self._records(snapshot)
        available = await self._redis.hget(keys.OrgKeys(org_id).wallet, "available")
        if available is not None and int(available) < 0:
            BELOW_ZERO.inc()
            log.error("balance_below_zero", org=org_id)

    async def forget(self, org_id: str | None) -> None:
        """Have an organisation's partition, or every one, made anew: until then nothing is admitted there."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for partition in _partitions(org_id):
                pipe.delete(keys.mark(partition))
            await pipe.execute()

    async def missing(self, org_id: str | None) -> int:
        """How many of those partitions are not projected."""
        marks = await self._marks()
        return sum(marks[partition] is None for partition in _partitions(org_id))

    async def _rebuild(self, missing: set[int]) -> None:
        """Behind a fence: wiped, stalled or overtaken, it sets no mark, and the next round begins again."""
        who = uuid4().hex
        codes = {partition: await self._at_fence(partition, who, "raise", 0) for partition in sorted(missing)}
        fenced = {partition for partition, code in codes.items() if code == _DONE}
        if waiting := sum(code == _STREAM_HOLDS_EVENTS for code in codes.values()):
            log.warning("rebuild_waits_for_the_consumer", partitions=waiting)
        if not fenced:
            return
        last = await self._ledger.last_change()
        for looked_at, org in enumerate(await self._ledger.orgs()):
            if looked_at % 100 == 0:
                await self._keep_up(fenced)
            # Key records spread over all partitions by their own hash, so every organisation's are written again.
            snapshot = await self._ledger.snapshot(org.org_id)
            partition = keys.partition_of(org.org_id)
            if partition in fenced:
                booked = await self._ledger.charged_up_to(org.org_id)
                if await self._apply(snapshot, "rebuild", booked, who) == _FENCED_OFF:
                    fenced.discard(partition)
            await self._records(snapshot)
        rebuilt = [partition for partition in fenced if await self._at_fence(partition, who, "drop", last) == _DONE]
        if rebuilt:
            log.warning("projection_rebuilt", partitions=len(rebuilt), change=last)

    async def _keep_up(self, fenced: set[int]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for partition in fenced:
                pipe.expire(keys.fence(partition), FENCE_S)
            await pipe.execute()

    async def _at_fence(self, partition: int, who: str, step: Literal["raise", "drop"], change: int) -> int:
        code: int = await self._fence(
            keys=[keys.mark(partition), keys.fence(partition), keys.events(partition)],
            args=[who, step, change, FENCE_S],
        )
        return code

    async def _apply(
        self, snapshot: Snapshot, mode: Literal["follow", "new", "rebuild"], booked: Charged, who: str = ""
    ) -> int:
        org = snapshot.org
        plan = self._plans.get(org.plan) or self._plans["default"]
        names = keys.OrgKeys(org.org_id)
        states = [part for key in snapshot.keys for part in (key.key_id, key.state)]
        code: int = await self._project(
            keys=[names.mark, names.wallet, names.key_states, names.open, names.fence],
            args=[
                org.org_id,
                snapshot.revision,
                snapshot.credit_number,
                snapshot.credits_micro_mxn,
                org.requests_per_minute or plan.requests_per_minute,
                org.images_per_minute or plan.images_per_minute,
                mode,
                booked.charged_micro_mxn,
                # Numbers may be doubled where a stream was lost: what follows must stand above all that are counted.
                max(booked.last_event, booked.events),
                who,
                *states,
            ],
        )
        return code

    async def _records(self, snapshot: Snapshot) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for key in snapshot.keys:
                pipe.set(keys.key_record(key.key_hash)[1], f"{key.org_id} {key.key_id}")
            await pipe.execute()

    async def _marks(self) -> list[bytes | None]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for partition in range(keys.PARTITIONS):
                pipe.get(keys.mark(partition))
            return list(await pipe.execute())

    async def _move_marks(self, partitions: set[int], change: int) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for partition in sorted(partitions):
                pipe.set(keys.mark(partition), change, xx=True)
            await pipe.execute()


def _partitions(org_id: str | None) -> list[int]:
    return list(range(keys.PARTITIONS)) if org_id is None else [keys.partition_of(org_id)]
