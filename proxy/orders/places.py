"""Places that open orders occupy, from before their admission until their end."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from metering.answered import max_bytes
from metering.journal.file import Journal, JournalFull
from metering.journal.frames import PAGE_BYTES
from proxy.orders.capacity import Capacity, Refusal

_ROUNDING_BYTES = 2 * PAGE_BYTES
"""Extra room for an entry: it may end in the middle of a page, and its withdrawal takes another page."""


class Place:
    """What one open order occupies. It is given back once: at the end of the block, or by its new holder."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back = give_back
        self._held = True
        self._handed_over = False

    def hand_over(self) -> Self:
        """Keep the place after the block; its new holder gives it back."""
        self._handed_over = True
        return self

    def give_back(self) -> None:
        """Give the place back: the order has ended, or was not admitted."""
        if self._held:
            self._held = False
            self._give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._handed_over:
            self.give_back()


class Places:
    """Gives places. Each has pictures of the process' capacity, and room in the journal for its one entry."""

    def __init__(self, journal: Journal, capacity: Capacity) -> None:
        self._journal = journal
        self._capacity = capacity

    async def take(self, org_id: str, images: int, labels_bytes: int = 0) -> Place:
        """Take a place for an order of this many images. Raises ApiError 503.

        `labels_bytes` is what its tags and metadata add to its entry.
        """
        pictures, now_s = self._capacity.pictures, time.monotonic()
        if (refusal := self._capacity.refusal(org_id, images, now_s)) is not None:
            self._capacity.want(org_id, now_s)
            raise refusal
        size_bytes = max_bytes(images, labels_bytes) + _ROUNDING_BYTES
        pictures.take(org_id, images)
        try:
            await self._journal.reserve(size_bytes)
        except BaseException as error:
            pictures.give_back(org_id, images)
            if isinstance(error, JournalFull):
                self._capacity.want(org_id, now_s)
                raise Refusal.DISK.as_error() from None
            raise

        def give_back() -> None:
            pictures.give_back(org_id, images)
            self._journal.give_back(size_bytes)

        return Place(give_back)
