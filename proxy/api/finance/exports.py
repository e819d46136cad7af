"""A month's export over HTTP: sent while it is read, and whole or an error.

Nothing is written to a disk, and little is in memory: the ledger is read on only once the client has taken what was
written. If something fails on the way, the connection ends without the reply's end, so no client takes it for whole.
"""

import asyncio
import io
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, BinaryIO, cast

import structlog
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from metering.background import error_fields
from metering.exports import reading
from metering.exports.formats import FORMATS, ExtraMissing
from metering.exports.writing import Format, Source, untold
from metering.ports import Ledger, LedgerAway, NotThere
from metering.unbooked import doubts
from proxy.api.admin.call import Call, checked_ref
from proxy.api.finance.reads import FinanceReads, month_in
from proxy.errors import ApiError, Kind

log = structlog.get_logger(__name__)

EXPORTS_AT_ONCE = 1
"""Exports that a process sends at a time: each keeps its loop busy while it formats, beside customers' orders."""

EXPORT_RETRY_S = 10.0
"""A hint: an export of a hundred thousand rows takes about as long."""

AHEAD_BYTES = 1024 * 1024
"""How much may be written that the client has not taken yet, before the ledger is read on."""

FILES = {
    "csv": ("text/csv", "csv"),
    "jsonl": ("application/x-ndjson", "jsonl"),
    "parquet": ("application/vnd.apache.parquet", "parquet"),
    "xlsx": ("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", "xlsx"),
    "focus": ("text/csv", "focus.csv"),
}
"""What formats are called in `content-type`, and the ends of their files' names."""


class Exports:
    """Sends exports, a few at a time."""

    def __init__(self, redis: Redis | None) -> None:
        self._redis = redis
        self._sent = 0

    async def send(self, reads: FinanceReads, call: Call, request: Request) -> Response:
        """Answer GET /finance/v1/months/{month}/exports/{format}. Raises ApiError 400, 429, NotThere, LedgerAway."""
        month, query = month_in(call), call.query
        write = _format(call)
        org_id = None if query.org is None else (await reads.ledger.org(checked_ref(query.org))).org_id
        closed = await reads.closed(month)
        complete = closed is not None or not await doubts(reads.ledger, self._redis, month, org_id)
        media, end = FILES[call.at["format"]]
        headers = {
            "content-disposition": f'attachment; filename="usage-{month}.{end}"',
            "x-geekhub-complete": "true" if complete else "false",
        }
        if request.method == "HEAD":
            return Response(None, 200, headers, media)
        if self._sent >= EXPORTS_AT_ONCE:
            message = "Another export is being sent; this gateway sends one at a time."
            raise ApiError(Kind.RATE_LIMIT, message, retry_after_s=EXPORT_RETRY_S)
        self._sent += 1
        scope = reading.Scope((month,), org_id, all_ends=query.all_ends == "true")
        written = _Written(reads.ledger, scope, write)
        try:
            first = await written.next()
        except BaseException:
            self._over(written)
            raise
        return _Sending(first, written, lambda: self._over(written), headers, media)

    def _over(self, written: "_Written") -> None:
        written.stop()
        self._sent -= 1


def _format(call: Call) -> Format:
    """Find the format in the path. Raises NotThere, ApiError 400."""
    offered = FORMATS.get(call.at["format"])
    if offered is None:
        raise NotThere(f"there is no such format; there is: {', '.join(FORMATS)}")
    query = call.query
    if query.variant is not None and query.variant not in offered.variants:
        known = ", ".join(offered.variants) or "none"
        raise ApiError(Kind.INVALID_REQUEST, f"`variant` must be one of this format's: {known}.", param="variant")
    if query.all_ends == "true" and not offered.all_ends:
        message = "`all_ends`: this format has no place for orders that were not charged."
        raise ApiError(Kind.INVALID_REQUEST, message, param="all_ends")
    try:
        return offered.load(query.variant)
    except ExtraMissing as error:
        raise ApiError(Kind.UNAVAILABLE, f"This gateway cannot write it: {error}.", retry=False) from None


class _Written(io.RawIOBase):
    """The file that a format writes to, and the task that writes it; a client takes it piece by piece."""

    def __init__(self, ledger: Ledger, scope: reading.Scope, write: Format) -> None:
        super().__init__()
        self._pieces: deque[bytes] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        source = Source(cast(Ledger, _Paced(ledger, self)), scope)
        self._task = asyncio.create_task(self._run(write, source))

    async def _run(self, write: Format, source: Source) -> None:
        try:
            await write(source, cast(BinaryIO, self), untold)
        finally:
            self._changed.set()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Take what the format writes. It never waits: `drained` does, between two reads of the ledger."""
        piece = bytes(data)
        if piece:
            self._pieces.append(piece)
            self._bytes += len(piece)
            self._changed.set()
        return len(piece)

    async def drained(self) -> None:
        """Wait until the client has taken most of what was written."""
        while self._bytes > AHEAD_BYTES:
            self._changed.clear()
            await self._changed.wait()

    async def next(self) -> bytes:
        """Return the next piece; empty at the end. Raises what the format raised."""
        while not self._pieces:
            if self._task.done():
                await self._task
                return b""
            self._changed.clear()
            await self._changed.wait()
        piece = self._pieces.popleft()
        self._bytes -= len(piece)
        self._changed.set()
        return piece

    def stop(self) -> None:
        """Write no more."""
        self._task.cancel()
        self._pieces.clear()


class _Paced:
    """A ledger of which the long lists are read on only as fast as the client takes what is made of them."""

    def __init__(self, ledger: Ledger, written: _Written) -> None:
        self._ledger = ledger
        self._written = written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def charges(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async for page in self._ledger.charges(*args, **kwargs):
            await self._written.drained()
            yield page

    async def refunds(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async for one in self._ledger.refunds(*args, **kwargs):
            await self._written.drained()
            yield one


class _Sending(StreamingResponse):
    """A reply that calls `over` when it ends, however it ends."""

    def __init__(
        self, first: bytes, written: _Written, over: Callable[[], None], headers: dict[str, str], media: str
    ) -> None:
        super().__init__(_pieces(first, written), 200, headers, media)
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except LedgerAway as error:
            log.warning("export_broken_off", **error_fields(error))  # the server closes a reply without its end
        finally:
            self._over()


async def _pieces(first: bytes, written: _Written) -> AsyncIterator[bytes]:
    piece = first
    while piece:
        yield piece
        piece = await written.next()
