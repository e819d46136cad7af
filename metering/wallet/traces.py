"""Orders and unbooked events in Redis, for an operator. It only reads."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from metering.events import EventError, Opened, decode_opened
from metering.wallet import keys
from metering.wallet.connection import NotProjected, server_of
from metering.wallet.long_orders import NOBODY

PAGE = 100
"""Stream entries read at a time: some megabytes if all are of the largest size."""

EVERYWHERE = range(keys.PARTITIONS)


@dataclass(frozen=True, slots=True)
class Hold:
    """The hold of an order that has not ended. `expires_us` is None if no organisation's open orders name it."""

    opened: Opened | None
    amount_micro_mxn: int
    images: int
    admitted_us: int
    expires_us: int | None
    owner: str
    owner_lives: bool


@dataclass(frozen=True, slots=True)
class Trace:
    """One order in Redis. `state` is `open`, `ran_out`, or its end, which Redis remembers for a day."""

    partition: int
    org_id: str | None
    state: str
    reason: str
    amount_micro_mxn: int
    hold: Hold | None
    result_kept: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a partition's event stream."""

    partition: int
    entry_id: str
    fields: Mapping[bytes, bytes]


def partitions_of(org_id: str | None) -> Sequence[int]:
    """List the partitions of an organisation's orders; without one all partitions."""
    return EVERYWHERE if org_id is None else (keys.partition_of(org_id),)


async def trace(redis: Redis, order_id: str, org_id: str | None) -> Trace | None:
    """Find the status of an order. None is certain: Redis does not know it. Raises RedisError, NotProjected."""
    partitions = partitions_of(org_id)
    async with redis.pipeline(transaction=False) as pipe:
        for partition in partitions:
            pipe.exists(keys.mark(partition))
            pipe.get(keys.closed(partition, order_id))
            pipe.hgetall(keys.hold(partition, order_id))
            pipe.exists(keys.result(partition, order_id))
        replies = await pipe.execute()
    for place, partition in enumerate(partitions):
        _, closed, hold, kept = replies[4 * place : 4 * place + 4]
        if closed is not None:
            end, amount, reason, owner = (closed.decode().split(":") + ["0", "", ""])[:4]
            return Trace(partition, owner or org_id, end, reason, int(amount), None, bool(kept))
        if hold:
            return await _open(redis, partition, order_id, hold)
    if not all(replies[0::4]):
        raise NotProjected
    return None


async def open_months(redis: Redis) -> AsyncIterator[str]:
    """Yield the month of each order that has a hold, running or run out; empty if another version wrote the hold.

    Raises RedisError, NotProjected.
    """
    for partition in EVERYWHERE:
        if not await redis.exists(keys.mark(partition)):
            raise NotProjected
        orgs: Any = await redis.zrange(keys.busy(partition), 0, -1)
        for org_id in orgs:
            orders: Any = await redis.zrange(keys.OrgKeys(org_id.decode()).open, 0, -1)
            for order_id in orders:
                opened: Any = await redis.hget(keys.hold(partition, order_id.decode()), "opened")
                if opened is not None:
                    yield _month_of(opened)


def _month_of(opened: bytes) -> str:
    with suppress(EventError):
        return decode_opened(opened).month
    return ""


async def entries(redis: Redis, partitions: Sequence[int]) -> AsyncIterator[Entry]:
    """Yield everything in the event streams of these partitions, a page at a time. Raises RedisError."""
    for partition in partitions:
        after = "-"
        while page := await _page(redis, partition, after):
            for entry_id, fields in page:
                yield Entry(partition, entry_id.decode(), fields)
            after = f"({page[-1][0].decode()}"


async def _page(redis: Redis, partition: int, after: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    found: Any = await redis.xrange(keys.events(partition), min=after, count=PAGE)
    return [(entry_id, fields) for entry_id, fields in found]


async def now_us(redis: Redis, partition: int) -> int:
    """Read the Unix µs of the clock of the server that has a partition. Raises RedisError."""
    seconds, microseconds = await server_of(redis, partition).time()
    return int(seconds) * 1_000_000 + int(microseconds)


async def _open(redis: Redis, partition: int, order_id: str, hold: Mapping[bytes, bytes]) -> Trace:
    opened: Opened | None = None
    with suppress(EventError, KeyError):  # written by another version: the other fields are still reported
        opened = decode_opened(hold[b"opened"])
    org_id = None if opened is None else opened.org_id
    expires = None if org_id is None else await redis.zscore(keys.OrgKeys(org_id).open, order_id)
    owner = hold.get(b"owner", b"").decode()
    is_alive = owner not in ("", NOBODY) and bool(await redis.exists(keys.alive(owner)))
    ran_out = expires is None or expires <= await now_us(redis, partition)
    return Trace(
        partition=partition,
        org_id=org_id,
        state="ran_out" if ran_out else "open",
        reason="",
        amount_micro_mxn=0,
        hold=Hold(
            opened=opened,
            amount_micro_mxn=_number(hold, b"amount"),
            images=_number(hold, b"images"),
            admitted_us=_number(hold, b"admitted_us"),
            expires_us=None if expires is None else int(expires),
            owner=owner,
            owner_lives=is_alive,
        ),
        result_kept=False,
    )


def _number(fields: Mapping[bytes, Any], name: bytes) -> int:
    return int(fields.get(name, 0))
