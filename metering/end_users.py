"""End users of organisations: their pseudonyms, and the record of whom each stands for, written in the background.

No order waits for that record. What it does not have yet when a process dies is lost: the events keep the pseudonym,
and the next order of the same end user brings the clear text again.
"""

import asyncio
import time
from collections import OrderedDict
from itertools import islice

import structlog
from prometheus_client import Counter

from metering.background import error_fields, every
from metering.clock import utc_now
from metering.ports import DatabaseRefused, EndUser, Ledger, LedgerAway
from metering.pseudonyms import Pseudonyms

log = structlog.get_logger(__name__)

MAX_WAITING = 4_096
"""Maximum end users whose record waits: about 3 MB, and 10 MB if each has 512 characters.

That is more than half a minute of new ones at 100 orders a second. Above it, the record is left to their next orders.
"""

MAX_TOLD = 16_384
"""Maximum end users that are remembered as recorded, about 4 MB."""

TOLD_S = 3_600.0
"""How long they are: a ledger that was restored, or an end user who was erased, is told again by orders after that."""

BATCH = 500
"""End users of one transaction."""

STOP_S = 2.0
"""How long a graceful stop waits for the ledger to take the rest."""

UNRECORDED = Counter("ghub_end_users_unrecorded_total", "End users whose clear text was not recorded", ["why"])
for _why in ("full", "refused", "stopped"):
    UNRECORDED.labels(_why)


class EndUsers:
    """Gives pseudonyms, and records whom they stand for. The clear text is in no log and in no metric."""

    def __init__(self, ledger: Ledger, pseudonyms: Pseudonyms) -> None:
        self._ledger = ledger
        self._pseudonyms = pseudonyms
        self._waiting: dict[tuple[str, str], EndUser] = {}
        self._told: OrderedDict[tuple[str, str], float] = OrderedDict()

    def pseudonym(self, org_id: str, value: str) -> str:
        """Compute the pseudonym of an organisation's end user."""
        return self._pseudonyms.of(org_id, value)

    def tell(self, org_id: str, pseudonym: str, value: str) -> None:
        """Record soon whom a pseudonym stands for, unless that was done lately."""
        name = (org_id, pseudonym)
        if name in self._waiting or time.monotonic() < self._told.get(name, 0.0):
            return
        if len(self._waiting) >= MAX_WAITING:
            UNRECORDED.labels("full").inc()
            return
        self._waiting[name] = EndUser(org_id, pseudonym, value, utc_now().isoformat())

    async def run(self, every_s: float) -> None:
        """Record those that wait every `every_s` seconds, until cancelled."""
        await every(every_s, self.flush, away=(LedgerAway,), name="end_users_wait")

    async def flush(self) -> None:
        """Record all that wait. Raises LedgerAway; then they go on waiting."""
        while batch := [*islice(self._waiting.values(), BATCH)]:
            try:
                await self._ledger.tell_end_users(batch)
            except DatabaseRefused:
                UNRECORDED.labels("refused").inc(len(batch))
                log.error("end_users_refused", count=len(batch))
            until_s = time.monotonic() + TOLD_S
            for one in batch:
                name = (one.org_id, one.pseudonym)
                del self._waiting[name]
                self._told[name] = until_s
                self._told.move_to_end(name)
            while len(self._told) > MAX_TOLD:
                self._told.popitem(last=False)

    async def drain(self) -> None:
        """Record those that wait, at a graceful stop: once, within `STOP_S`. The rest is counted and logged."""
        try:
            async with asyncio.timeout(STOP_S):
                await self.flush()
        except (LedgerAway, TimeoutError) as error:
            UNRECORDED.labels("stopped").inc(len(self._waiting))
            log.warning("end_users_unrecorded", count=len(self._waiting), **error_fields(error))
