"""Whether the store would take our images now. No order is accepted if its images cannot be stored."""

import asyncio
from contextlib import suppress

import structlog

from proxy.messages import STORE_AWAY, STORE_NOT_SET_UP
from proxy.ports import ImageStore, StoreFailed, StoreMisconfigured
from proxy.storage.probe import probe

log = structlog.get_logger(__name__)

MAX_FAILURES = 2
"""Failed checks and uploads in a row before orders are refused.

A single one may be a short problem, and uploads survive it by themselves.
"""


class StoreWatch:
    """Checks the store at intervals, and learns from uploads.

    `reason` is None, or the sentence with which admission is refused. A check asks the store about itself, which proves
    little about writing. So after a failure, and at the start, it also writes a probe. Only a probe that came back
    opens admission again.
    """

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._failures = MAX_FAILURES  # nothing is known yet
        self._doubted = True
        self._look_now = asyncio.Event()
        self.reason: str | None = None

    def stored(self) -> None:
        """Record a successful upload: failures are no longer in a row. It does not reopen admission."""
        if self.reason is None:
            self._failures = 0

    def failing(self) -> None:
        """Record an upload that failed and will be repeated: a check with a probe follows at once."""
        self._doubt()

    def failed(self) -> None:
        """Record an upload that failed for good: it counts as a failed check."""
        was_open = self.reason is None
        self._count()
        if was_open and self.reason is not None:
            log.warning("store_away", error="uploads fail in a row")
            self._look_now.set()  # perhaps only this picture failed: the probe will show

    async def look(self) -> None:
        """Check once. Raises StoreMisconfigured."""
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
        """Check until cancelled."""
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
