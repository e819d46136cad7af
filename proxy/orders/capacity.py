"""May an order be taken now? All that must hold as one table, each organisation's share in it. Pure."""

from collections.abc import Callable
from enum import Enum

from metering.shares import Bound, Shares
from proxy.errors import ApiError, Kind
from proxy.messages import BUSY, DISK_FULL, SHARE

BUSY_RETRY_S = 5.0
"""A backlog of events takes seconds to book, not milliseconds."""

WANTED_S = 2 * BUSY_RETRY_S
"""An organisation that was refused for want of room is waited for so long: it was told to come back in half of it."""


class Refusal(Enum):
    """Why there is no room for an order, as its customer is told."""

    FULL = BUSY
    SHARE = SHARE
    DISK = DISK_FULL

    def as_error(self) -> ApiError:
        """503, to be asked again."""
        return ApiError(Kind.UNAVAILABLE if self is Refusal.DISK else Kind.BUSY, self.value, retry_after_s=BUSY_RETRY_S)


class Capacity:
    """What this process can see through at once: pictures under way, and bytes in the spool (rules 14, 28).

    One organisation alone may have all of it; its share binds it only while another was refused lately. `broken` comes
    first: None, or the sentence with which every order is refused. Above `spool_mark` bytes those are refused whose
    pictures fill the spool, above `spool_end` all are.
    """

    def __init__(
        self, broken: Callable[[], str | None], pictures: Bound, spool: Shares, *, spool_mark: int, spool_end: int
    ) -> None:
        self.pictures = Shares(pictures)
        self._broken = broken
        self._spool = spool
        self._spool_mark = spool_mark
        self._spool_end = spool_end
        self._wanted: dict[str, float] = {}

    def refusal(self, org_id: str, images: int, now_s: float) -> ApiError | None:
        """Why an organisation can place no order of so many images; None where it can. `now_s`: `time.monotonic`."""
        if (reason := self._broken()) is not None:
            return ApiError(Kind.UNAVAILABLE, reason, retry_after_s=BUSY_RETRY_S)
        refusal = self._no_pictures(org_id, images, now_s) or self._no_spool(org_id)
        return refusal.as_error() if refusal else None

    def want(self, org_id: str, now_s: float) -> None:
        """It was refused for want of room."""
        self._wanted = {one: until_s for one, until_s in self._wanted.items() if until_s > now_s}
        self._wanted[org_id] = now_s + WANTED_S

    def wanting(self, now_s: float) -> list[str]:
        """Who was refused, and is expected back."""
        return [org_id for org_id, until_s in self._wanted.items() if until_s > now_s]

    def _no_pictures(self, org_id: str, images: int, now_s: float) -> Refusal | None:
        if self.pictures.allow(org_id, images, self.wanting(now_s)):
            return None
        return Refusal.SHARE if self.pictures.fits(images) else Refusal.FULL

    def _no_spool(self, org_id: str) -> Refusal | None:
        spool = self._spool
        if spool.taken > self._spool_end:
            return Refusal.FULL
        if spool.taken > self._spool_mark and spool.has(org_id) * spool.holders >= spool.taken:
            return Refusal.FULL if spool.holders == 1 else Refusal.SHARE
        return None
