"""Feeding a set-aside event again: it goes back into its stream, and its wallet contains it afterwards."""

import time
from dataclasses import dataclass, replace
from typing import Any, Literal

from redis.asyncio import Redis

from metering.aside import Fields, fields_of
from metering.clock import utc_now
from metering.pauses import Pauses
from metering.ports import Act, Ledger, LedgerError, NotThere, SetAside
from metering.wallet import keys
from metering.wallet.connection import WalletAway
from metering.wallet.projection import Projector
from metering.wallet.wallet import Wallet

PATIENCE_S = 30.0
"""Maximum wait for the consumer, and then for a rebuild. Each takes well under a second if a consumer runs."""

_POLL_S = 0.1

Outcome = Literal["booked", "set aside again", "waits for the consumer"]


@dataclass(frozen=True, slots=True)
class Fed:
    """Outcome of an entry that was put back. `entry` is the new one, `error` says why it was refused again."""

    entry: SetAside
    outcome: Outcome
    error: str = ""
    rebuilt: bool = False


class Feeding:
    def __init__(self, redis: Redis, ledger: Ledger, wallet: Wallet, projector: Projector) -> None:
        self._redis = redis
        self._ledger = ledger
        self._wallet = wallet
        self._projector = projector

    async def retry(self, entry: SetAside, actor: str) -> Fed:
        """Feed an entry again, and wait for the outcome. Raises RedisError, and LedgerError if it was fed before.

        The stream is written first, then the ledger. After a crash in between, the entry may be fed twice; its id makes
        sure that it is booked once.
        """
        if entry.fed_at is not None:
            raise LedgerError(f"event {entry.name} was put back at {entry.fed_at}; what was refused since has a new id")
        fields = fields_of(entry)
        again = replace(entry, entry_id=await self._put_back(entry.partition, fields), error="")
        details = {"fed_as": again.name, "request_id": entry.order_id}
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
        stream = keys.events(entry.partition)
        async for _ in _patiently():
            if not await self._redis.xrange(stream, entry.entry_id, entry.entry_id):
                return True
        return False

    async def _made_right(self, entry: SetAside) -> bool:
        """Rebuild a wallet that was rebuilt without the event; returns whether that was necessary."""
        if not entry.org_id or not await self._lacks_an_event(entry.org_id):
            return False
        await self._projector.forget(entry.org_id)
        async for _ in _patiently():
            if not await self._projector.missing(entry.org_id):
                break
            await self._projector.round()
        return True

    async def _lacks_an_event(self, org_id: str) -> bool:
        """True if the ledger has more of an organisation's events than its wallet, or if that cannot be determined.

        The two can be compared only while the stream is empty and nothing ends.
        """
        stream = keys.OrgKeys(org_id).events
        async for _ in _patiently():
            try:
                before = await self._wallet.read(org_id)
                waiting = await self._redis.xlen(stream)
                booked = await self._ledger.charged_up_to(org_id)
                after = await self._wallet.read(org_id)
            except WalletAway:
                return True
            if not waiting and before.number == after.number:
                return booked.events > before.events
        return True


def _patiently() -> Pauses:
    return Pauses(_POLL_S, until_s=time.monotonic() + PATIENCE_S)
