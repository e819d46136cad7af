"""A month's images, on both sides: objects that nobody was charged for, and charges whose images are not in the store.

The store is listed once, and the month's charges are read once. Each image is counted in one of many baskets by its
path, up for an object and down for a charge; only images of baskets that are not even are looked for one by one. So
memory does not depend on how many there are.
"""

import zlib
from array import array
from collections.abc import AsyncIterator, Callable
from decimal import Decimal

import orjson

from metering.clock import month_start_us, next_month, unix_us_at
from metering.ports import Ledger
from metering.reconciliation.findings import Finding, Kind
from proxy.ports import ImageStore
from proxy.storage.sweep import BATCH, Found, Sweep
from proxy.storage.sweep import Finding as Swept

BASKETS = 1 << 20
"""Baskets, 8 MB: with ten million images, ten are looked for where one is missing."""


class Inventory:
    """Compares a store with the charges of a month. `unproven` counts objects that may be charged yet."""

    def __init__(
        self, store: ImageStore, ledger: Ledger, sweep: Sweep, month: str, tell: Callable[[int], None]
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._sweep = sweep
        self._month = month
        self._tell = tell
        self._span_us = month_start_us(month), month_start_us(next_month(month))
        self._baskets = array("q", bytes(8 * BASKETS))
        self.unproven = 0

    async def run(self) -> AsyncIterator[Finding]:
        """Yield what is off. Raises StoreFailed, StoreMisconfigured and LedgerAway."""
        batch: list[Found] = []
        async for found in self._sweep.run(delete=False):
            self._tell(1)
            if found.finding is Swept.CHARGED:
                batch.append(found)
                if len(batch) == BATCH:
                    await self._count(batch)
                    batch.clear()
            elif self._is_of_month(found):
                if found.finding.orphan and found.finding is not Swept.PROBE:
                    yield Finding(Kind.ORPHAN, "", "", None, 1, Decimal(0), found.finding.value, found.object.path)
                self.unproven += found.finding is Swept.UNPROVEN
        await self._count(batch)
        async for missing in self._missing():
            yield missing

    def _is_of_month(self, found: Found) -> bool:
        first, end = self._span_us
        return first <= unix_us_at(found.object.modified_at) < end

    async def _count(self, batch: list[Found]) -> None:
        of_month = await self._ledger.charged_in(self._month, [_order_of(found.object.path) for found in batch])
        for found in batch:
            if _order_of(found.object.path) in of_month:
                self._baskets[_basket(found.object.path)] += 1

    async def _missing(self) -> AsyncIterator[Finding]:
        async for page in self._ledger.charges(self._month):
            for charge in page:
                for path in _paths(charge.images):
                    self._baskets[_basket(path)] -= 1
        if not any(self._baskets):
            return
        async for page in self._ledger.charges(self._month):
            for charge in page:
                for path in _paths(charge.images):
                    if self._baskets[_basket(path)] and not await self._store.exists(path):
                        usd, told = Decimal(charge.usd_per_image), f"order {charge.event_id}"
                        yield Finding(Kind.NO_OBJECT, charge.provider, charge.upstream, None, 1, usd, told, path)


def _paths(images: str) -> list[str]:
    return [image["path"] for image in orjson.loads(images)]


def _order_of(path: str) -> str:
    return path.split("/")[1]


def _basket(path: str) -> int:
    return zlib.crc32(path.encode()) % BASKETS
