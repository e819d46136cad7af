"""SQL → Redis: organisations, keys, limits and credits, within seconds of every change and after every loss.

Any number of these may run at once, in gateways, consumers and commands: a projection is absolute and versioned.
"""

import asyncio
from collections.abc import Collection, Mapping
from typing import Literal
from uuid import uuid4

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis
from redis.exceptions import RedisError

from config.catalogue import Plan
from config.settings import CLOSED_S
from metering.clock import unix_us_at, utc_now
from metering.ports import Charged, Ledger, LedgerAway, Snapshot
from metering.wallet import keys
from metering.wallet.connection import load_script, servers

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
        self._fence = load_script(redis, "fence_v2")
        self._end = load_script(redis, "end_v1")

    async def run(self, every_s: float) -> None:
        """Follow the record until cancelled. A database or a Redis that is away is waited for."""
        while True:
            try:
                await self.round()
            except (RedisError, LedgerAway, OSError, TimeoutError) as error:
                log.warning("projection_waits", error=type(error).__name__)
            await asyncio.sleep(every_s)

    async def round(self) -> None:
        """One look: what changed is projected, and a partition without a mark, or on another server, is rebuilt.

        A partition whose server in a cluster is away keeps its mark, and is brought up to date when it is back.
        """
        last = await self._ledger.last_change()
        runs = await self._runs()
        marks = await self._marks(runs)
        missing = {partition: runs[partition] for partition, change in marks.items() if change is None}
        known = {partition: change for partition, change in marks.items() if change is not None}
        # A mark says up to which change its partition is projected. Redis keeps the order of writes, so a Redis that
        # lost some of them lost the mark that was set after them, too.
        changed = await self._ledger.changed_since(min(known.values())) if known else []
        for org_id in changed:
            if keys.partition_of(org_id) in known:
                await self._org(org_id, runs)
        if missing:
            await self._rebuild(missing)
        if changed:
            await self._move_marks(known, last)

    async def org(self, org_id: str) -> None:
        """Project one organisation now. Where its partition is not projected, the next rebuild takes it along."""
        await self._org(org_id, range(keys.PARTITIONS))

    async def _org(self, org_id: str, partitions: Collection[int]) -> None:
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
        await self._records(snapshot, partitions)
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
        marks = await self._marks(await self._runs())
        return sum(marks.get(partition) is None for partition in _partitions(org_id))

    async def _rebuild(self, missing: Mapping[int, str]) -> None:
        """Behind a fence: wiped, stalled or overtaken, it sets no mark, and the next round begins again.

        `missing`: partition → the run of its server.
        """
        who = uuid4().hex
        codes = {partition: await self._at_fence(partition, run, who, "raise", 0) for partition, run in missing.items()}
        fenced = {partition for partition, code in codes.items() if code == _DONE}
        if waiting := sum(code == _STREAM_HOLDS_EVENTS for code in codes.values()):
            log.warning("rebuild_waits_for_the_consumer", partitions=waiting)
        if not fenced:
            return
        last = await self._ledger.last_change()
        for looked_at, org in enumerate(await self._ledger.orgs()):
            if looked_at % 100 == 0:
                await self._keep_up(fenced)
            snapshot = await self._ledger.snapshot(org.org_id)
            if keys.partition_of(org.org_id) in fenced and not await self._replace(snapshot, who):
                fenced.discard(keys.partition_of(org.org_id))
            # Key records spread over all partitions by their own hash, so every organisation may have some here.
            await self._records(snapshot, fenced)
        dropped = [(p, await self._at_fence(p, missing[p], who, "drop", last)) for p in sorted(fenced)]
        if rebuilt := [partition for partition, code in dropped if code == _DONE]:
            log.warning("projection_rebuilt", partitions=rebuilt, change=last)

    async def _replace(self, snapshot: Snapshot, who: str) -> bool:
        """Make one wallet anew; False where the fence is another's by now."""
        org_id = snapshot.org.org_id
        names = keys.OrgKeys(org_id)
        held: list[bytes] = await self._redis.zrange(names.open, 0, -1)  # type: ignore[assignment]  # without scores
        for request_id, end in (await self._ledger.ended([request.decode() for request in held])).items():
            hold, closed = names.hold(request_id), names.closed(request_id)
            await self._end(
                keys=[names.mark, names.fence, names.open, hold, closed, names.jobs],
                args=[who, request_id, end.end, CLOSED_S],
            )
        booked = await self._ledger.charged_up_to(org_id)
        if await self._apply(snapshot, "rebuild", booked, who) == _FENCED_OFF:
            return False
        await self._idempotency(org_id)
        return True

    async def _idempotency(self, org_id: str) -> None:
        """Keys under which orders were charged of late: the same order under one is not made again (rule 17)."""
        names, now_us = keys.OrgKeys(org_id), unix_us_at(utc_now())
        async with self._redis.pipeline(transaction=False) as pipe:
            for one in await self._ledger.keyed(org_id, now_us - CLOSED_S * 1_000_000):
                key_hash, fingerprint = one.once.split()
                left_s = max(1, CLOSED_S - (now_us - one.ended_us) // 1_000_000)
                pipe.set(names.once(key_hash), f"{one.request_id} {fingerprint}", ex=left_s, nx=True)
                closed = f"charge:{one.amount_micro_mxn}:delivered:{org_id}"
                pipe.set(names.closed(one.request_id), closed, ex=left_s, nx=True)
            await pipe.execute()

    async def _keep_up(self, fenced: set[int]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for partition in fenced:
                pipe.expire(keys.fence(partition), FENCE_S)
            await pipe.execute()

    async def _at_fence(self, partition: int, run: str, who: str, step: Literal["raise", "drop"], change: int) -> int:
        code: int = await self._fence(
            keys=[keys.mark(partition), keys.fence(partition), keys.events(partition), keys.home(partition)],
            args=[who, step, change, FENCE_S, run],
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
                max(0, booked.last_event - booked.events),
                *states,
            ],
        )
        return code

    async def _records(self, snapshot: Snapshot, partitions: Collection[int]) -> None:
        records = [(*keys.key_record(key.key_hash), key) for key in snapshot.keys]
        async with self._redis.pipeline(transaction=False) as pipe:
            for partition, name, key in records:
                if partition in partitions:
                    pipe.set(name, f"{key.org_id} {key.key_id}")
            await pipe.execute()

    async def _runs(self) -> dict[int, str]:
        """Partition → the run of the server that has it, which a restart and a failover change; without those away."""
        asked = await servers(self._redis)
        answers = await asyncio.gather(*(server.info("server") for server, _ in asked), return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if len(errors) == len(answers):
            raise errors[0]
        found = zip(asked, answers, strict=True)
        return {p: info["run_id"] for (_, here), info in found if not isinstance(info, BaseException) for p in here}

    async def _marks(self, runs: Mapping[int, str]) -> dict[int, int | None]:
        """Partition → the last change projected to it; None where that was another run of a server."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for partition in runs:
                pipe.mget(keys.mark(partition), keys.home(partition))
            found = zip(runs.items(), await pipe.execute(), strict=True)
        return {
            partition: int(mark) if mark is not None and home == run.encode() else None
            for (partition, run), (mark, home) in found
        }

    async def _move_marks(self, partitions: Collection[int], change: int) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for partition in partitions:
                pipe.set(keys.mark(partition), change, xx=True)
            await pipe.execute()


def _partitions(org_id: str | None) -> list[int]:
    return list(range(keys.PARTITIONS)) if org_id is None else [keys.partition_of(org_id)]
