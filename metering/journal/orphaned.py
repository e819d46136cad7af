"""Journals that are open in the ledger although their gateway is gone: nobody charges their orders (rule 15)."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from prometheus_client import Gauge
from redis.exceptions import RedisError

from config.settings import ORPHANS_S
from metering.background import every
from metering.ports import Ledger, LedgerAway
from metering.wallet.presence import Presence

ORPHANED = Gauge(
    "ghub_journals_orphaned",
    "Open journals whose gateway is gone, by its pod",
    ["pod"],
)

BEAT_S = 1.5
"""Every living gateway sends a beat within it, also to a Redis that has just lost its data."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """A journal without a gateway. `host` is where it ran, and empty if an earlier version opened it."""

    incarnation: UUID
    host: str
    opened_at: str


async def orphans(ledger: Ledger, presence: Presence) -> list[Orphan]:
    """List them, the oldest first. Raises LedgerAway, RedisError.

    A gateway that has just opened its journal, or whose Redis was just wiped, has `BEAT_S` to show itself.
    """
    suspects = await _silent(await ledger.open_incarnations(), presence)
    if suspects:
        await asyncio.sleep(BEAT_S)
    found: list[Orphan] = []
    for one in await _silent(suspects, presence):
        known = await ledger.incarnation(one)
        if known.closed_at is None:
            found.append(Orphan(one, known.host or "", known.opened_at or ""))
    return found


async def _silent(incarnations: Sequence[UUID], presence: Presence) -> list[UUID]:
    beats = await asyncio.gather(*(presence.last(one) for one in incarnations))
    return [one for one, beat in zip(incarnations, beats, strict=True) if beat is None]


class OrphanWatch:
    """Counts them for an alert. A gateway that starts again replays its own, so those of minutes are meant."""

    def __init__(self, ledger: Ledger, presence: Presence) -> None:
        self._ledger = ledger
        self._presence = presence
        self._pods: set[str] = set()

    async def run(self) -> None:
        """Look every `ORPHANS_S`, until cancelled."""
        away = (LedgerAway, RedisError, OSError, TimeoutError)
        await every(ORPHANS_S, self.look, away=away, name="orphaned_journals_wait")

    async def look(self) -> None:
        """Set the metric. Raises LedgerAway, RedisError."""
        pods = Counter(one.host for one in await orphans(self._ledger, self._presence))
        for pod in self._pods - set(pods):
            ORPHANED.remove(pod)
        self._pods = set(pods)
        for pod, count in pods.items():
            ORPHANED.labels(pod).set(count)
