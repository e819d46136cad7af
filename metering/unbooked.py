"""Late events of a month: those that the ledger does not have yet, though they ended a while ago."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.exceptions import RedisError

from metering.aside import facts_of_kept
from metering.events import Event, EventError, decode
from metering.money import format_mxn
from metering.pages import pages
from metering.ports import Ledger
from metering.verify import journals
from metering.wallet import keys
from metering.wallet.presence import Presence
from metering.wallet.traces import entries, now_us, partitions_of

LATE_S = 30.0
"""Age from which an event counts as late. With a running consumer an event is booked within a second of its end."""

BATCH = 500
"""Events in one query to the ledger."""


@dataclass(slots=True)
class _Waiting:
    """Events in the streams that the ledger does not have."""

    events: int = 0
    charges: int = 0
    micro_mxn: int = 0
    unreadable: int = 0


async def doubts(
    ledger: Ledger, redis: Redis | None, month: str, org_id: str | None, *, late_s: float = LATE_S
) -> list[str]:
    """List why the ledger's data of a month, of one organisation or all, may be incomplete: one sentence a reason.

    An event counts `late_s` after its end, if it is not booked then.
    Call it before the month is read. It looks in the order in which orders move: journals, then streams, then the
    ledger. So an order that moves meanwhile is reported twice at worst, and never missed. Raises LedgerAway.
    """
    cannot = f"nobody can say whether events of {month} are still to be booked"
    if redis is None:
        return [f"GHUB_REDIS_URL is not set: {cannot}"]
    try:
        wiped = not await _projected(redis, org_id)
        found = [f"{one.what} is {one.found}" for one in await journals(ledger, Presence(redis))]
        found += _sentences(await _in_streams(ledger, redis, month, org_id, late_s), month, late_s)
    except (RedisError, OSError, TimeoutError):
        return [f"Redis does not answer: {cannot}"]
    if wiped:
        found.append(f"Redis is not projected yet: {cannot}")
    if aside := await _set_aside(ledger, month, org_id):
        found.append(f"{aside} events are set aside that are of {month}, or do not say of which month: ghub event list")
    return found


async def _projected(redis: Redis, org_id: str | None) -> bool:
    """True unless Redis was wiped. After a wipe the streams are lost, and journals must bring back their content."""
    partitions = partitions_of(org_id)
    async with redis.pipeline(transaction=False) as pipe:
        for partition in partitions:
            pipe.exists(keys.mark(partition))
        return all(await pipe.execute())


def _sentences(waiting: _Waiting, month: str, late_s: float) -> list[str]:
    found = []
    if waiting.events:
        sums = f"{waiting.charges} of them charges of {format_mxn(waiting.micro_mxn)} MXN in all"
        late = f"{waiting.events} events of {month} that ended over {late_s:.0f} s ago"
        found.append(f"{late} are not booked yet, {sums}: is a consumer running?")
    if waiting.unreadable:
        found.append(f"{waiting.unreadable} entries of the event streams cannot be read, and may be of {month}")
    return found


async def _in_streams(ledger: Ledger, redis: Redis, month: str, org_id: str | None, late_s: float) -> _Waiting:
    waiting = _Waiting()
    batch: list[Event] = []
    async for event in _late(redis, month, org_id, late_s, waiting):
        batch.append(event)
        if len(batch) == BATCH:
            await _count(ledger, batch, waiting)
            batch.clear()
    await _count(ledger, batch, waiting)
    return waiting


async def _late(redis: Redis, month: str, org_id: str | None, late_s: float, waiting: _Waiting) -> AsyncIterator[Event]:
    """Yield events of the month that ended long enough ago; count entries that cannot be read."""
    for partition in partitions_of(org_id):
        before_us = await now_us(redis, partition) - int(late_s * 1_000_000)
        async for entry in entries(redis, (partition,)):
            if b"notice" in entry.fields:
                continue
            try:
                event = decode(entry.fields)
            except EventError:
                waiting.unreadable += 1
                continue
            if event.opened.month == month and org_id in (None, event.opened.org_id) and event.ended_us < before_us:
                yield event


async def _count(ledger: Ledger, events: Sequence[Event], waiting: _Waiting) -> None:
    """Count those that the ledger lacks. The others are booked, and only not removed from the stream yet."""
    ended = await ledger.ended([event.event_id for event in events])
    for event in events:
        booked = ended.get(event.event_id)
        if booked is None or (event.end == "charge" and not booked.charged):
            waiting.events += 1
            waiting.charges += event.end == "charge"
            waiting.micro_mxn += event.amount_micro_mxn


async def _set_aside(ledger: Ledger, month: str, org_id: str | None) -> int:
    """Count entries that could not be booked, except those surely of another month or organisation."""
    waiting: list[str] = []
    async for page in pages(ledger.set_asides):
        for told in (facts_of_kept(entry.fields) for entry in page):
            if told.month in ("", month) and (org_id is None or told.org_id in ("", org_id)):
                waiting.append(told.order_id)
    booked = await ledger.ended([order_id for order_id in waiting if order_id])
    return sum(order_id not in booked for order_id in waiting)
