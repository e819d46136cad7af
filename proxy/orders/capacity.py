"""Whether an order may be accepted now: all conditions as one table, and each organisation's share. Pure."""

from collections.abc import Callable
from enum import Enum

from metering.shares import Bound, Shares
from proxy.errors import ApiError, Kind
from proxy.messages import BUSY, DISK_FULL, SHARE

BUSY_RETRY_S = 5.0
"""Wait before a retry: booking a backlog of events takes seconds, not milliseconds."""

NOT_READY = "not_ready"
"""Reason of a refusal while a condition for accepting work does not hold; `/readyz` names it."""

WANTED_S = 2 * BUSY_RETRY_S
"""How long a refused organisation is expected back: it was told to retry after half of this time."""


class Refusal(Enum):
    """Reason why there is no room for an order, as its customer is told."""

    FULL = BUSY
    SHARE = SHARE
    DISK = DISK_FULL

    def as_error(self) -> ApiError:
        """Build the 503, which may be retried."""
        kind = Kind.UNAVAILABLE if self is Refusal.DISK else Kind.BUSY
        return ApiError(kind, self.value, retry_after_s=BUSY_RETRY_S, reason=self.reason)

    @property
    def reason(self) -> str:
        """Name in metrics and in the log."""
        return self.name.lower()


class Capacity:
    """What this process can do at once: pictures under way, and bytes in the spool (rules 14, 28).

    One organisation alone may have all of it. Its share limits it only if another organisation was refused within
    WANTED_S. `broken` is checked first: it gives None, or the sentence with which every order is refused. With more
    than `spool_mark` bytes in the spool, orders of organisations that fill the spool are refused; with more than
    `spool_end`, all orders.
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
        """Find why an organisation cannot place an order of this many images, or None. `now_s`: `time.monotonic`."""
        if (reason := self._broken()) is not None:
            return ApiError(Kind.UNAVAILABLE, reason, retry_after_s=BUSY_RETRY_S, reason=NOT_READY)
        refusal = self._no_pictures(org_id, images, now_s) or self._no_spool(org_id)
        return refusal.as_error() if refusal else None

    def want(self, org_id: str, now_s: float) -> None:
        """Record that an organisation was refused because there was no room."""
        self._wanted = {one: until_s for one, until_s in self._wanted.items() if until_s > now_s}
        self._wanted[org_id] = now_s + WANTED_S

    def wanting(self, now_s: float) -> list[str]:
        """List organisations that were refused and are expected back."""
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
