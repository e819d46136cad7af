"""An event that was set aside goes back to where it came from, and its wallet has it afterwards."""

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

from redis.asyncio import Redis

from metering.aside import Fields, unpack
from metering.clock import utc_now
from metering.ports import Act, Ledger, LedgerError, NotThere, SetAside
from metering.wallet import keys
from metering.wallet.connection import WalletAway
from metering.wallet.projection import Projector
from metering.wallet.wallet import Wallet

PATIENCE_S = 30.0
"""For the consumer, and then for a rebuild; each takes well under a second where a consumer runs."""

_POLL_S = 0.1

Outcome = Literal["booked", "set aside again", "waits for the consumer"]


@dataclass(frozen=True, slots=True)
class Fed:
    """What became of an entry that was put back: `entry` is the new one, `error` why it was refused once more."""

    entry: SetAside
    outcome: Outcome
    error: str = ""
    rebuilt: bool = False


class Feeding:
    """Puts entries back into their streams."""

    def __init__(self, redis: Redis, ledger: Ledger, wallet: Wallet, projector: Projector) -> None:
        self._redis = redis
        self._ledger = ledger
        self._wallet = wallet
        self._projector = projector

    async def retry(self, entry: SetAside, actor: str) -> Fed:
        """Feed it again, and wait for what becomes of it. Raises LedgerError where it was fed before, RedisError.

        First the stream, then the ledger: what dies in between may be fed twice, and is booked once, by its id.
        """
        if entry.fed_at is not None:
            raise LedgerError(f"event {entry.name} was put back at {entry.fed_at}; what was refused since has a new id")
        fields = fields_of(entry)
        again = replace(entry, entry_id=await self._put_back(entry.partition, fields), error="")
        details = {"fed_as": again.name, "request_id": entry.request_id}
        act = Act(actor, "event.retry", entry.name, entry.org_id or None, details)
        await self._ledger.end_set_aside(entry, utc_now(), act)
        if not await self._consumed(again):
            return Fed(again, "waits for the consumer")
        try:
            refused = await self._ledger.set_aside(again.partition, again.entry_id)
        except NotThere:
            return Fed(again, "booked", rebuilt=await self._made_right(entry))
        return Fed(refused, "set aside again", refused.error)

    async def _put_back(self, partition: int, fields: Fields) -> str:
        new_id: Any = await self._redis.xadd(keys.events(partition), fields)  # type: ignore[arg-type]  # bytes
        return str(new_id.decode())

    async def _consumed(self, entry: SetAside) -> bool:
        until_s = time.monotonic() + PATIENCE_S
        stream = keys.events(entry.partition)
        while await self._redis.xrange(stream, entry.entry_id, entry.entry_id):
            if time.monotonic() > until_s:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    async def _made_right(self, entry: SetAside) -> bool:
        """A wallet that was rebuilt without the event is rebuilt with it; returns whether it had to be."""
        if not entry.org_id or not await self._lacks_an_event(entry.org_id):
            return False
        await self._projector.forget(entry.org_id)
        until_s = time.monotonic() + PATIENCE_S
        while await self._projector.missing(entry.org_id) and time.monotonic() < until_s:
            await self._projector.round()
            await asyncio.sleep(_POLL_S)
        return True

    async def _lacks_an_event(self, org_id: str) -> bool:
        """Has the ledger more of an organisation's events than its wallet knows of? Yes, where it cannot be told.

        Both can be compared while the stream is empty, and nothing ended meanwhile.
        """
        until_s = time.monotonic() + PATIENCE_S
        stream = keys.OrgKeys(org_id).events
        while time.monotonic() < until_s:
            try:
                before = await self._wallet.read(org_id)
                waiting = await self._redis.xlen(stream)
                booked = await self._ledger.charged_up_to(org_id)
                after = await self._wallet.read(org_id)
            except WalletAway:
                return True
            if not waiting and before.number == after.number:
                return booked.events > before.events
            await asyncio.sleep(_POLL_S)
        return True


def fields_of(entry: SetAside) -> Fields:
    """Its fields, to be fed again. Raises LedgerError where there are none."""
    try:
        fields = unpack(entry.fields)
    except ValueError:
        raise LedgerError(f"event {entry.name} is kept in a form that nobody can feed again") from None
    if not fields:
        raise LedgerError(f"event {entry.name} has no field: there is nothing to feed again")
    return fields
