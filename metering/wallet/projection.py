"""SQL → Redis: organisations, keys, limits and credits, within seconds of every change and after every loss.

Any number of these may run at once, in gateways, consumers and commands: a projection is absolute and versioned.
"""

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, Literal
from uuid import uuid4

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from config.settings import CLOSED_S, LOW_BALANCE_MICRO_MXN
from metering.aside import amount_of, left_out
from metering.background import every
from metering.clock import Period, period_at, unix_us_at, utc_now
from metering.limits import LIMITS, Limits
from metering.money import format_mxn
from metering.pages import pages
from metering.ports import PAGE, Charged, Ledger, LedgerAway, Snapshot, Used
from metering.wallet import keys
from metering.wallet.alarms import below_zero, ledger_restored
from metering.wallet.connection import servers
from metering.wallet.inspection import Inspection, expected
from metering.wallet.kept import feed_again
from metering.wallet.marks import Look, Marks, Seen, keys_like
from metering.wallet.script import Call, Script, load_script

log = structlog.get_logger(__name__)


class Projected(IntEnum):
    """Replies of the project script. LOST: the wallet existed and is gone; FENCED_OFF: another process rebuilds."""

    DONE = 1
    AWAY = 2
    LOST = 3
    FENCED_OFF = 4


class Fenced(IntEnum):
    """Replies of the fence script. UNDRAINED: the stream holds events that the ledger does not have yet."""

    DONE = 1
    NOT_NOW = 2
    UNDRAINED = 3


FENCE_S = 5
"""If a rebuild's process died, or did nothing for this long, another process takes the rebuild over."""

LATE_S = 300.0
"""A settlement without an answer is retried for seconds; an abandonment retries it until its hold has expired."""

BOOKED_NOTHING = Charged(events=0, last_event=0, charged_micro_mxn=0)


class Projector:
    """Keeps Redis in step with the ledger."""

    def __init__(self, redis: Redis, ledger: Ledger) -> None:
        self._redis = redis
        self._ledger = ledger
        self._project = load_script(redis, "project_v5", Projected)
        self._fence = load_script(redis, "fence_v3", Fenced)
        self._marks = Marks(redis, ledger)
        self._end = load_script(redis, "end_v3")

    @property
    def inspection(self) -> Inspection:
        """The reader of what is projected."""
        return Inspection(self._redis)

    async def run(self, every_s: float) -> None:
        """Follow the ledger until cancelled. If the database or Redis is away, wait for it."""
        away = (RedisError, LedgerAway, OSError, TimeoutError)
        await every(every_s, self.round, away=away, name="projection_waits")

    async def round(self) -> None:
        """Look once: project what changed, and rebuild each partition that has no valid mark.

        If a partition's server in a cluster is away, the partition keeps its mark, and is updated when it is back.
        """
        look = await self._look()
        # A mark says up to which change its partition is projected. Redis keeps the order of writes: if it lost some
        # of them, it also lost the mark that was set after them.
        changed = await self._ledger.changed_since(min(look.known.values())) if look.known else []
        for page in _pages([org_id for org_id in changed if keys.partition_of(org_id) in look.known]):
            await self._follow(page, look.seen)
        if look.missing:
            await self._rebuild(look)
        await self._marks.move(look)

    async def org(self, org_id: str) -> None:
        """Project one organisation now. If its partition is not projected, the next rebuild includes it."""
        await self._follow([org_id], range(keys.PARTITIONS))

    async def _follow(self, org_ids: Sequence[str], partitions: Collection[int]) -> None:
        """Bring wallets up to date; key records only to `partitions`."""
        snapshots = await self._ledger.snapshots(org_ids, _today())
        codes = await self._apply(snapshots, "follow", {})
        lost = [one for one, code in zip(snapshots, codes, strict=True) if code == Projected.LOST]
        booked = await self._ledger.charged([one.org.org_id for one in lost])
        new = [one for one in lost if one.org.org_id not in booked]
        codes = await self._apply(new, "new", {})
        holding = [one.org.org_id for one, code in zip(new, codes, strict=True) if code == Projected.LOST]
        for org_id in [*booked, *holding]:
            # The wallet existed before. Without the mark, the whole partition is fenced and rebuilt from the ledger.
            log.error("wallet_lost", org=org_id)
            await self._redis.delete(keys.mark(keys.partition_of(org_id)))
        await self._records(snapshots, partitions)

    async def forget(self, org_id: str | None) -> None:
        """Have an organisation's partition, or every partition, rebuilt: until then nothing is admitted there."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for partition in _partitions(org_id):
                pipe.delete(keys.mark(partition))
            await pipe.execute()

    async def missing(self, org_id: str | None) -> int:
        """Count those of these partitions that are not projected."""
        known = (await self._look()).known
        return sum(partition not in known for partition in _partitions(org_id))

    async def _rebuild(self, look: Look) -> None:
        """Rebuild partitions behind a fence. If wiped, stalled or overtaken, it sets no mark, and the next round
        retries."""
        who = uuid4().hex
        if foreign := sorted(look.missing & look.foreign):
            # This comes before the fence, because raising the fence ends it: a process that dies half-way starts here.
            fed = [await feed_again(self._redis, partition) for partition in foreign]
            ledger_restored(partitions=foreign, change=look.last, fed_again=sum(fed))
            await self._shut_out(set(foreign))
        codes = {partition: await self._raise(partition, look.seen[partition], who) for partition in look.missing}
        fenced = {partition for partition, code in codes.items() if code == Fenced.DONE}
        if waiting := sum(code == Fenced.UNDRAINED for code in codes.values()):
            log.warning("rebuild_waits_for_the_consumer", partitions=waiting)
        if not fenced:
            return
        # If Redis was wiped, there is no other proof that this very ledger had what is read from here on.
        last = await self._ledger.begin_rebuild(utc_now())
        fingerprint = await self._marks.fingerprint(last)
        async for page in pages(self._ledger.orgs):
            await self._keep_up(fenced)
            # Key records are spread over all partitions by their own hash, so every organisation may have some here.
            snapshots = await self._ledger.snapshots([org.org_id for org in page], _today())
            here = [one for one in snapshots if keys.partition_of(one.org.org_id) in fenced]
            fenced -= await self._replace(here, who)
            await self._records(snapshots, fenced)
        dropped = [(p, await self._drop(p, look.seen[p], who, last, fingerprint)) for p in sorted(fenced)]
        if rebuilt := [partition for partition, code in dropped if code == Fenced.DONE]:
            log.warning("projection_rebuilt", partitions=rebuilt, change=last)
            for entry in await left_out(self._ledger, rebuilt):
                log.warning("rebuilt_without", entry=entry.name, org=entry.org_id, amount_mxn=amount_of(entry))

    async def _replace(self, snapshots: Sequence[Snapshot], who: str) -> set[int]:
        """Rebuild wallets; returns the partitions whose fence now belongs to another process."""
        org_ids = [one.org.org_id for one in snapshots]
        async with self._redis.pipeline(transaction=False) as pipe:
            for org_id in org_ids:
                pipe.zrange(keys.OrgKeys(org_id).open, 0, -1)
            held = zip(org_ids, await pipe.execute() if org_ids else [], strict=True)
        holds = {request.decode(): org_id for org_id, requests in held for request in requests}
        for order_id, end in (await self._ledger.ended(list(holds))).items():
            names = keys.OrgKeys(holds[order_id])
            await self._end(
                keys={
                    "mark": names.mark,
                    "fence": names.fence,
                    "open": names.open,
                    "hold": names.hold(order_id),
                    "closed": names.closed(order_id),
                    "jobs": names.jobs,
                    "long": names.long,
                },
                who=who,
                org=names.org_id,
                request=order_id,
                ending=end.end,
                reason=end.reason,
                remember_s=CLOSED_S,
                frees=int(end.frees),
            )
        codes = await self._apply(snapshots, "rebuild", await self._ledger.charged(org_ids), who)
        lost = {
            keys.partition_of(org_id)
            for org_id, code in zip(org_ids, codes, strict=True)
            if code == Projected.FENCED_OFF
        }
        made = [org_id for org_id in org_ids if keys.partition_of(org_id) not in lost]
        await self._tell_gone(made)
        await self._remember(made)
        return lost

    async def _tell_gone(self, org_ids: Sequence[str]) -> None:
        """Log what the rebuilt wallets had and this ledger does not have."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for org_id in org_ids:
                pipe.hmget(keys.OrgKeys(org_id).wallet, "gone_charged", "gone_credits")
            found = zip(org_ids, await pipe.execute() if org_ids else [], strict=True)
        for org_id, (charged, credits_) in found:
            if int(charged or 0) or int(credits_ or 0):
                gone = {"charged_mxn": format_mxn(int(charged or 0)), "credits_mxn": format_mxn(int(credits_ or 0))}
                log.error("not_in_the_ledger", org=org_id, **gone)

    async def _remember(self, org_ids: Sequence[str]) -> None:
        """Restore how recent orders ended, so that a retried settlement has its answer. Those under idempotency keys
        are restored for a day: the same order under the same key is not made again (rule 17)."""
        now_us = unix_us_at(utc_now())
        keyed = await self._ledger.keyed(org_ids, now_us - CLOSED_S * 1_000_000)
        late = await self._ledger.charged_since(org_ids, now_us - int(LATE_S * 1_000_000))
        async with self._redis.pipeline(transaction=False) as pipe:
            for one in keyed:
                names, left_s = keys.OrgKeys(one.org_id), max(1, CLOSED_S - (now_us - one.ended_us) // 1_000_000)
                key_hash, fingerprint = one.once.split()
                pipe.set(names.once(key_hash), f"{one.order_id} {fingerprint}", ex=left_s, nx=True)
                pipe.set(names.closed(one.order_id), _charged(one.org_id, one.amount_micro_mxn), ex=left_s, nx=True)
            for org_id, order_id, amount in late:
                pipe.set(keys.OrgKeys(org_id).closed(order_id), _charged(org_id, amount), ex=CLOSED_S, nx=True)
            await pipe.execute()

    async def _keep_up(self, fenced: set[int]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for partition in fenced:
                pipe.expire(keys.fence(partition), FENCE_S)
            await pipe.execute()

    async def _raise(self, partition: int, seen: Seen, who: str) -> int:
        """Raise the fence, unless the mark is no longer the one that was seen, which is not valid."""
        changes = {"seen_mark": seen.mark, "seen_home": seen.home, "seen_ledger": seen.ledger}
        return await self._at_fence(partition, "raise", who, seen.run, **changes)

    async def _drop(self, partition: int, seen: Seen, who: str, change: int, fingerprint: str) -> int:
        return await self._at_fence(partition, "drop", who, seen.run, change=change, fingerprint=fingerprint)

    async def _at_fence(self, partition: int, step: Literal["raise", "drop"], who: str, run: str, **more: Any) -> int:
        names = {
            "mark": keys.mark(partition),
            "fence": keys.fence(partition),
            "events": keys.events(partition),
            "home": keys.home(partition),
            "ledger": keys.ledger(partition),
        }
        usual: dict[str, Any] = {"change": 0, "fingerprint": "", "seen_mark": "", "seen_home": "", "seen_ledger": ""}
        code: int = await self._fence(names, who=who, step=step, life_s=FENCE_S, run=run, **usual | more)
        return code

    async def _shut_out(self, partitions: set[int]) -> None:
        """Stop keys that this ledger does not know: they were issued after the backup (rule 34).

        Their organisations' wallets stay, so that orders under way can end; `ghub verify` names them.
        """
        async for page in keys_like(self._redis, "access", partitions):
            known = await self._ledger.known_keys([_last_part(name) for name in page])
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in page:
                    if _last_part(name) not in known:
                        pipe.hset(name, "state", "revoked")
                await pipe.execute()
        async for page in keys_like(self._redis, "key", partitions):
            known = await self._ledger.known_hashes([_last_part(name) for name in page])
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in page:
                    if _last_part(name) not in known:
                        pipe.delete(name)
                await pipe.execute()

    async def _apply(
        self,
        snapshots: Sequence[Snapshot],
        mode: Literal["follow", "new", "rebuild"],
        booked: Mapping[str, Charged],
        who: str = "",
    ) -> list[int]:
        """Run the project script for each snapshot; returns one code for each."""
        booked_of = [booked.get(one.org.org_id, BOOKED_NOTHING) for one in snapshots]
        calls = [call_of(self._project, *one, mode, who) for one in zip(snapshots, booked_of, strict=True)]
        codes: list[int] = []
        for snapshot, reply in zip(snapshots, await self._project.each(calls), strict=True):
            below_zero(snapshot.org.org_id, reply["below"], cause="rebuild" if mode == "rebuild" else "adjustment")
            codes.append(reply["code"])
        return codes

    async def _records(self, snapshots: Sequence[Snapshot], partitions: Collection[int]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for key in (key for one in snapshots for key in one.keys):
                partition, name = keys.key_record(key.key_hash)
                if partition in partitions:
                    pipe.set(name, f"{key.org_id} {key.key_id}")
            await pipe.execute()

    async def _look(self) -> Look:
        return await self._marks.look(await self._runs())

    async def _runs(self) -> dict[int, str]:
        """Return partition → the run of its server, which a restart or a failover changes, without servers away."""
        masters = await servers(self._redis)
        answers = await asyncio.gather(*(server.info("server") for server, _ in masters), return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if len(errors) == len(answers):
            raise errors[0]
        found = zip(masters, answers, strict=True)
        return {p: info["run_id"] for (_, here), info in found if not isinstance(info, BaseException) for p in here}


def call_of(
    project: Script, snapshot: Snapshot, booked: Charged, mode: Literal["follow", "new", "rebuild"], who: str
) -> Call:
    """Build the call of the script that sets one wallet."""
    org_id, period = snapshot.org.org_id, snapshot.period
    names, total = keys.OrgKeys(org_id), Used()
    for used in snapshot.used.values():
        total = total.plus(used)
    rest: list[Any] = [*_scope(snapshot.limits, total)]
    for key_id, access in expected(snapshot).accesses.items():
        assert access is not None
        rest += [key_id, access.state, access.models]
        rest += ["" if access.ends_us is None else access.ends_us, access.reads, access.response_format, access.origins]
        rest += _scope(access.limits, snapshot.used.get(key_id, Used()))
    return project.call(
        {"mark": names.mark, "wallet": names.wallet, "open": names.open, "fence": names.fence},
        rest,
        org=org_id,
        revision=snapshot.revision,
        credit_number=snapshot.credit_number,
        credits=snapshot.credits_micro_mxn,
        mode=mode,
        charged=booked.charged_micro_mxn,
        # If a stream was lost, numbers may be used twice: the next one must be above all that are counted.
        number=max(booked.last_event, booked.events),
        who=who,
        lost=max(0, booked.last_event - booked.events),
        now_us=0,
        low=LOW_BALANCE_MICRO_MXN,
        day=period.day,
        month=period.month,
        suspended=int(snapshot.org.suspended),
        limits=" ".join(kind.name for kind in LIMITS.values()),
    )


def _scope(limits: Limits, used: Used) -> list[Any]:
    """Return a number for each kind of limit and what is used, for an organisation or one of its keys."""
    numbers = ["" if limit is None else limit for limit in limits.values().values()]
    return [*numbers, used.day_images, used.month_images, used.month_micro_mxn]


def _today() -> Period:
    return period_at(unix_us_at(utc_now()))


def _charged(org_id: str, amount_micro_mxn: int) -> str:
    return f"charge:{amount_micro_mxn}:delivered:{org_id}"


def _last_part(name: str) -> str:
    return name.rpartition(":")[2]


def _pages(org_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(org_ids), PAGE):
        yield org_ids[start : start + PAGE]


def _partitions(org_id: str | None) -> list[int]:
    return list(range(keys.PARTITIONS)) if org_id is None else [keys.partition_of(org_id)]
