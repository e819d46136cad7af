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


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked for: a month, of one organisation or all; to close it, of earlier months, too."""

    month: str
    org_id: str | None
    to_close: bool

    @property
    def late_s(self) -> float:
        """Age from which an event counts."""
        return 0.0 if self.to_close else LATE_S

    def has(self, month: str, org_id: str | None) -> bool:
        """True for what is of it, or may be: an empty text may be anything."""
        of_it = month <= self.month if self.to_close else month in ("", self.month)
        return of_it and (self.org_id is None or org_id in ("", self.org_id))


@dataclass(slots=True)
class _Waiting:
    """Events in the streams that the ledger does not have."""

    events: int = 0
    charges: int = 0
    micro_mxn: int = 0
    unreadable: int = 0


async def doubts(
    ledger: Ledger, redis: Redis | None, month: str, org_id: str | None, *, to_close: bool = False
) -> list[str]:
    """List why the ledger's data of a month, of one organisation or all, may be incomplete: one sentence a reason.

    An event that is not booked counts 30 s after its end. `to_close` a month it counts at once, and those of earlier
    months count, too, because they are posted to this one.

    Call it before the month is read. It looks in the order in which orders move: journals, then streams, then the
    ledger. So an order that moves meanwhile is reported twice at worst, and never missed. Raises LedgerAway.
    """
    asked = _Asked(month, org_id, to_close)
    cannot = f"nobody can say whether events of {month} are still to be booked"
    if redis is None:
        return [f"GHUB_REDIS_URL is not set: {cannot}"]
    try:
        wiped = not await _projected(redis, org_id)
        found = [f"{one.what} is {one.found}" for one in await journals(ledger, Presence(redis))]
        found += _sentences(await _in_streams(ledger, redis, asked), asked)
    except (RedisError, OSError, TimeoutError):
        return [f"Redis does not answer: {cannot}"]
    if wiped:
        found.append(f"Redis is not projected yet: {cannot}")
    if aside := await _set_aside(ledger, asked):
        of = f"of {month} or before it" if to_close else f"of {month}"
        found.append(f"{aside} events are set aside that are {of}, or do not say of which month: ghub event list")
    return found


async def _projected(redis: Redis, org_id: str | None) -> bool:
    """True unless Redis was wiped. After a wipe the streams are lost, and journals must bring back their content."""
    partitions = partitions_of(org_id)
    async with redis.pipeline(transaction=False) as pipe:
        for partition in partitions:
            pipe.exists(keys.mark(partition))
        return all(await pipe.execute())


def _sentences(waiting: _Waiting, asked: _Asked) -> list[str]:
    month, found = asked.month, []
    if waiting.events:
        sums = f"{waiting.charges} of them charges of {format_mxn(waiting.micro_mxn)} MXN in all"
        of = f"{month} or before it" if asked.to_close else f"{month} that ended over {LATE_S:.0f} s ago"
        late = f"{waiting.events} events of {of}"
        found.append(f"{late} are not booked yet, {sums}: is a consumer running?")
    if waiting.unreadable:
        found.append(f"{waiting.unreadable} entries of the event streams cannot be read, and may be of {month}")
    return found


async def _in_streams(ledger: Ledger, redis: Redis, asked: _Asked) -> _Waiting:
    waiting = _Waiting()
    batch: list[Event] = []
    async for event in _late(redis, asked, waiting):
        batch.append(event)
        if len(batch) == BATCH:
            await _count(ledger, batch, waiting)
            batch.clear()
    await _count(ledger, batch, waiting)
    return waiting


async def _late(redis: Redis, asked: _Asked, waiting: _Waiting) -> AsyncIterator[Event]:
    """Yield events of the month that ended long enough ago; count entries that cannot be read."""
    for partition in partitions_of(asked.org_id):
        before_us = await now_us(redis, partition) - int(asked.late_s * 1_000_000)
        async for entry in entries(redis, (partition,)):
            if b"notice" in entry.fields:
                continue
            try:
                event = decode(entry.fields)
            except EventError:
                waiting.unreadable += 1
                continue
            if asked.has(event.opened.month, event.opened.org_id) and event.ended_us < before_us:
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


async def _set_aside(ledger: Ledger, asked: _Asked) -> int:
    """Count entries that could not be booked, except those surely of another month or organisation."""
    waiting: list[str] = []
    async for page in pages(ledger.set_asides):
        for told in (facts_of_kept(entry.fields) for entry in page):
            if asked.has(told.month, told.org_id):
                waiting.append(told.order_id)
    booked = await ledger.ended([order_id for order_id in waiting if order_id])
    return sum(order_id not in booked for order_id in waiting)
