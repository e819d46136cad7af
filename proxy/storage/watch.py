"""Would the store take our images at this moment? An order that cannot be stored is not bought."""

import asyncio

import structlog

from proxy.ports import ImageStore, StoreFailed, StoreMisconfigured

log = structlog.get_logger(__name__)

MOST_FAILURES = 2
"""Looks in a row that fail before orders are refused: one may be a hiccup, which uploads outlive by themselves."""


class StoreWatch:
    """Looks at the store from time to time. `reason` is None, or the sentence with which admission is refused."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._failures = MOST_FAILURES  # nothing is known of it yet
        self.reason: str | None = None

    async def look(self) -> None:
        """One look. Raises StoreMisconfigured."""
        try:
            await self._store.check()
        except StoreFailed as error:
            self._failures += 1
            log.warning("store_away", error=str(error))
            if self._failures >= MOST_FAILURES:
                self.reason = "The store for images is away; nothing was charged."
        except StoreMisconfigured:
            self.reason = "The store for images is not set up; nothing was charged."
            raise
        else:
            self._failures = 0
            self.reason = None

    async def run(self, every_s: float) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.look()
            except StoreMisconfigured as error:
                log.error("store_misconfigured", error=str(error))
