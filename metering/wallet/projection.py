"""SQL → Redis: organisations, keys, limits and credits, within seconds of every change and after every loss.

Any number of these may run at once, in gateways, consumers and commands: a projection is absolute and versioned.
"""

import asyncio
from collections.abc import Mapping
from typing import Literal

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from config.catalogue import Plan
from metering.ports import Charged, Ledger, LedgerAway, Snapshot
from metering.wallet import keys
from metering.wallet.connection import load_script

log = structlog.get_logger(__name__)

_LOST, _UNDRAINED = 3, 4
_NOTHING = Charged(events=0, last_event=0, charged_micro_mxn=0)


class Projector:
    """Keeps Redis in step with the record."""

    def __init__(self, redis: Redis, ledger: Ledger, plans: Mapping[str, Plan]) -> None:
        self._redis = redis
        self._ledger = ledger
        self._plans = plans
        self._project = load_script(redis, "project_v1")

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
            await self._set_marks({p for p, mark in enumerate(marks) if mark is not None}, last, existing=True)

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

    async def _rebuild(self, missing: set[int]) -> None:
        last = await self._ledger.last_change()
        streams = [keys.events(partition) for partition in sorted(missing)]
        async with self._redis.pipeline(transaction=False) as pipe:
            for stream in streams:
                pipe.xlen(stream)
            lengths = await pipe.execute()
        ready = {partition for partition, length in zip(sorted(missing), lengths, strict=True) if length == 0}
        for org in await self._ledger.orgs():
            # Key records spread over all partitions by their own hash, so every organisation's are written again.
            snapshot = await self._ledger.snapshot(org.org_id)
            partition = keys.partition_of(org.org_id)
            if partition in ready:
                booked = await self._ledger.charged_up_to(org.org_id)
                if await self._apply(snapshot, "rebuild", booked) == _UNDRAINED:
                    ready.discard(partition)
            await self._records(snapshot)
        await self._set_marks(ready, last, existing=False)
        if ready:
            log.warning("projection_rebuilt", partitions=len(ready), change=last)
        if waiting := missing - ready:
            log.warning("rebuild_waits_for_the_consumer", partitions=len(waiting))

    async def _apply(self, snapshot: Snapshot, mode: Literal["follow", "new", "rebuild"], booked: Charged) -> int:
        org = snapshot.org
        plan = self._plans.get(org.plan) or self._plans["default"]
        names = keys.OrgKeys(org.org_id)
        states = [part for key in snapshot.keys for part in (key.key_id, key.state)]
        code: int = await self._project(
            keys=[names.mark, names.wallet, names.key_states, names.open, names.events],
            args=[
                org.org_id,
                snapshot.revision,
                snapshot.credit_number,
                snapshot.credits_micro_mxn,
                org.requests_per_minute or plan.requests_per_minute,
                org.images_per_minute or plan.images_per_minute,
                mode,
                booked.charged_micro_mxn,
                booked.last_event,
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

    async def _set_marks(self, partitions: set[int], change: int, *, existing: bool) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for partition in sorted(partitions):
                pipe.set(keys.mark(partition), change, xx=existing, nx=not existing)
            await pipe.execute()
