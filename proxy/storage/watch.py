"""Would the store take our images at this moment? An order that cannot be stored is not bought."""

import asyncio
from contextlib import suppress

import structlog

from proxy.messages import STORE_AWAY, STORE_NOT_SET_UP
from proxy.ports import ImageStore, StoreFailed, StoreMisconfigured
from proxy.storage.probe import probe

log = structlog.get_logger(__name__)

MAX_FAILURES = 2
"""Looks and uploads in a row that fail before orders are refused: one may be a hiccup, which uploads outlive by
themselves."""


class StoreWatch:
    """Looks at the store from time to time, and learns from uploads. `reason` is None, or the sentence with which
    admission is refused.

    A look asks the store about itself. That says little of writing: so where something has failed, and at the start,
    it also writes a probe, and nothing but a probe that came back opens admission again.
    """

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._failures = MAX_FAILURES  # nothing is known of it yet
        self._doubted = True
        self._look_now = asyncio.Event()
        self.reason: str | None = None

    def stored(self) -> None:
        """An upload went well: failures are no longer in a row. It does not open what is shut."""
        if self.reason is None:
            self._failures = 0

    def failing(self) -> None:
        """The store failed an upload that will be made again: a look that writes is made now."""
        self._doubt()

    def failed(self) -> None:
        """The store failed an upload for good: that is a look that failed."""
        was_open = self.reason is None
        self._count()
        if was_open and self.reason is not None:
            log.warning("store_away", error="uploads fail in a row")
            self._look_now.set()  # it may have been the one picture: the probe tells

    async def look(self) -> None:
        """One look. Raises StoreMisconfigured."""
        try:
            await self._store.check()
            if self._doubted:
                await probe(self._store)
        except StoreFailed as error:
            log.warning("store_away", error=str(error))
            self._count()
        except StoreMisconfigured:
            self._doubted = True
            self.reason = STORE_NOT_SET_UP
            raise
        else:
            self._failures, self._doubted, self.reason = 0, False, None

    async def run(self, every_s: float) -> None:
        """Look until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._look_now.wait()
            self._look_now.clear()
            try:
                await self.look()
            except StoreMisconfigured as error:
                log.error("store_misconfigured", error=str(error))

    def _doubt(self) -> None:
        if not self._doubted:
            self._doubted = True
            self._look_now.set()

    def _count(self) -> None:
        self._doubt()
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            self.reason = STORE_AWAY
