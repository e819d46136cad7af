"""Places that open orders take up: as many as this process can see through (rules 14, 28)."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from metering.answered import most_bytes
from metering.frames import PAGE_BYTES
from metering.journal import Journal, JournalFull
from proxy.errors import ApiError, Kind
from proxy.messages import BUSY, DISK_FULL

BUSY_RETRY_S = 5.0
"""A backlog of events takes seconds to book, not milliseconds."""

_ROUNDING_BYTES = 2 * PAGE_BYTES
"""An entry ends in the middle of a page, and its withdrawal takes another."""


class Place:
    """What one open order takes up, given back once: at the end of the block, or by whoever it is handed over to."""

    def __init__(self, capacity: "Capacity", images: int, size_bytes: int) -> None:
        self._capacity = capacity
        self._images = images
        self._size_bytes = size_bytes
        self._held = True
        self._handed_over = False

    def hand_over(self) -> Self:
        """The block's end does not give it back any more."""
        self._handed_over = True
        return self

    def give_back(self) -> None:
        """The order has ended, or was not admitted."""
        if self._held:
            self._held = False
            self._capacity.free(self._images, self._size_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._handed_over:
            self.give_back()


class Capacity:
    """`most_pictures` may be under way at once; of each the journal has room for what it may have to write down.

    `refusal` is asked before every order: None, or the sentence with which it is refused.
    """

    def __init__(self, journal: Journal, most_pictures: int, refusal: Callable[[], str | None]) -> None:
        self._journal = journal
        self._most_pictures = most_pictures
        self._refusal = refusal
        self.pictures = 0

    async def take(self, images: int) -> Place:
        """A place for an order of so many images. Raises ApiError 503."""
        reason = self._refusal()
        if reason is None and self.pictures + images > self._most_pictures:
            reason = BUSY
        if reason is not None:
            raise _unavailable(reason)
        size_bytes = most_bytes(images) + _ROUNDING_BYTES
        self.pictures += images
        try:
            await self._journal.reserve(size_bytes)
        except (JournalFull, asyncio.CancelledError) as error:
            self.pictures -= images
            if isinstance(error, JournalFull):
                raise _unavailable(DISK_FULL) from None
            raise
        return Place(self, images, size_bytes)

    def free(self, images: int, size_bytes: int) -> None:
        """By the place itself."""
        self.pictures -= images
        self._journal.give_back(size_bytes)


def _unavailable(reason: str) -> ApiError:
    return ApiError(Kind.UNAVAILABLE, reason, retry_after_s=BUSY_RETRY_S)
