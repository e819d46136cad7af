"""One order for an operator: everything that the ledger, Redis and the state of the journals say about it."""

import re
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from metering.events import Event, EventError, Opened, decode
from metering.ports import Ledger, NotThere, OrderRecord
from metering.wallet.connection import WalletAway
from metering.wallet.presence import Presence
from metering.wallet.traces import Entry, Trace, entries, partitions_of, trace

_ID = re.compile(r"req_[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class CannotKnow(WalletAway):
    """Neither found nor certainly unknown. The message is a sentence that says what could not be searched."""


@dataclass(frozen=True, slots=True)
class OpenJournal:
    """A gateway's journal that is not closed. `uncharged`: its answered orders that Redis has yet to charge.

    `uncharged` is None if its gateway has been silent for some seconds, or if Redis is away: then nobody knows.
    """

    incarnation: UUID
    uncharged: int | None


@dataclass(frozen=True, slots=True)
class Order:
    """One order. `waiting` is its entry in the event stream; `coming` is the end in it, if the ledger lacks that end.

    `away` says why Redis could not be read. It is empty if Redis was read.
    """

    order_id: str
    record: OrderRecord
    trace: Trace | None
    waiting: Entry | None
    coming: Event | None
    away: str
    journals: tuple[OpenJournal, ...]

    @property
    def ends(self) -> tuple[Event, ...]:
        """Ends in the ledger, then the coming one."""
        booked = tuple(one.event for one in self.record.ends)
        return booked if self.coming is None else (*booked, self.coming)

    @property
    def charge(self) -> Event | None:
        """The end that its customer pays for, booked or coming."""
        return next((one for one in self.ends if one.end == "charge"), None)

    @property
    def opened(self) -> Opened | None:
        """Facts that were known at admission; None if none are known."""
        if (last := self.charge or next(iter(self.ends), None)) is not None:
            return last.opened
        return self.trace.hold.opened if self.trace is not None and self.trace.hold is not None else None

    @property
    def org_id(self) -> str | None:
        if self.opened is not None:
            return self.opened.org_id
        owners = [one.org_id for one in self.record.set_aside] + [self.trace.org_id if self.trace else None]
        return next((org_id for org_id in owners if org_id is not None), None)

    @property
    def refundable_micro_mxn(self) -> int:
        """The part of its booked charge that is not refunded yet."""
        charge = self.record.charge
        return 0 if charge is None else charge.amount_micro_mxn - self.record.refunded_micro_mxn


def order_id_of(text: str) -> str:
    """Normalise `req_` and 32 hex digits, or the same with hyphens, to the record's form.

    Raises NotThere for other text.
    """
    if not _ID.fullmatch(text):
        raise NotThere("an order's id is req_ and 32 hex digits, or the same as a UUID with its hyphens")
    return str(UUID(text.removeprefix("req_")))


class Orders:
    """Looks for an order in the ledger and, if there is one, in Redis; lists the journals that may still bring it."""

    def __init__(self, ledger: Ledger, redis: Redis | None) -> None:
        self._ledger = ledger
        self._redis = redis

    async def look(self, text: str) -> Order:
        """Find an order by its id, in either form.

        Raises NotThere if it certainly does not exist, CannotKnow, LedgerAway.
        """
        order_id = order_id_of(text)
        record = await self._ledger.order(order_id)
        found: Trace | None = None
        waiting: Entry | None = None
        away = ""
        if self._redis is None:
            away = "GHUB_REDIS_URL is not set"
        else:
            try:
                found = await trace(self._redis, order_id, _org_of(record))
                if record.charge is None:
                    waiting = await self._waiting(order_id, _org_of(record) or (found.org_id if found else None))
            except WalletAway:
                away = "Redis is not projected yet"
            except (RedisError, OSError, TimeoutError):
                away = "Redis does not answer"
        if record.charge is None:  # the consumer may have booked it since the stream was read
            record = await self._ledger.order(order_id)
        journals = await self._journals()
        if not (record.ends or record.set_aside or found or waiting):
            raise _unknown(order_id, away, sum(one.uncharged != 0 for one in journals))
        return Order(order_id, record, found, waiting, _coming(record, waiting), away, journals)

    async def _waiting(self, order_id: str, org_id: str | None) -> Entry | None:
        """Find its last entry in the stream. Without an organisation all streams are read."""
        assert self._redis is not None
        last: Entry | None = None
        named = f'"{order_id}"'.encode()
        async for entry in entries(self._redis, partitions_of(org_id)):
            if named in entry.fields.get(b"opened", b""):
                last = entry
        return last

    async def _journals(self) -> tuple[OpenJournal, ...]:
        return tuple([OpenJournal(one, await self._uncharged(one)) for one in await self._ledger.open_incarnations()])

    async def _uncharged(self, incarnation: UUID) -> int | None:
        if self._redis is not None:
            with suppress(RedisError, OSError, TimeoutError):
                beat = await Presence(self._redis).last(incarnation)
                return None if beat is None else beat[1]
        return None


def _org_of(record: OrderRecord) -> str | None:
    ends = [one.event.opened.org_id for one in record.ends]
    return next((org_id for org_id in [*ends, *(one.org_id for one in record.set_aside)] if org_id is not None), None)


def _coming(record: OrderRecord, waiting: Entry | None) -> Event | None:
    """Decode the end in its entry. None if that is booked, or cannot be read (then it is set aside soon)."""
    if waiting is None:
        return None
    try:
        coming = decode(waiting.fields)
    except EventError:
        return None
    return None if any(one.event.end == coming.end for one in record.ends) else coming


def _unknown(order_id: str, away: str, journals: int) -> Exception:
    may = f"; {journals} journals are not closed, and may still bring it" if journals else ""
    if away:
        return CannotKnow(f"the ledger does not know order {order_id}, and nobody can ask Redis for it: {away}{may}")
    return NotThere(f"neither the ledger nor Redis knows order {order_id}{may}")
