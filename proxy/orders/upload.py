"""Step 6 of a request: one picture out of its upstream into the store, proven on the way.

A picture at a URL is streamed directly, and read from its URL again if the store failed. The spool is for an inline
picture, and for one of unknown length if the store needs the length. The upload reads the spooled copy while it grows,
and can start again from it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog
from prometheus_client import Counter, Histogram

from config.settings import STORE_FIRST_PAUSE_S, STORE_LONGEST_PAUSE_S, STORE_STUCK_S
from metering.events import StoredImage
from metering.pauses import Pauses
from metering.shares import Bound
from metering.tracing import step
from metering.turns import Turns
from proxy.media.artefact import Artefact
from proxy.media.formats import Format, NotAnImage
from proxy.ports import Chunks, ImageStore, Picture, PictureLost, Source, StoreFailed, Uploads
from proxy.storage.spool import Copy, Spool

log = structlog.get_logger(__name__)

AGAIN = Counter("ghub_store_tries_again_total", "Uploads and reads made again, as the store failed")

STORE_S = Histogram(
    "ghub_store_seconds",
    "One try to store a picture, without the time that the store waited for its bytes",
    ["outcome"],
    # A store nearby takes 5 to 50 ms, one far away some 100 ms; it has failed after 3 to 10 s without an answer.
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
STORED, FAILED = STORE_S.labels("stored"), STORE_S.labels("failed")
BROKEN, CUT_OFF = STORE_S.labels("broken"), STORE_S.labels("cut_off")
"""Ends of a try: the store has it; the store failed; the picture or its source did; the order's time was over."""

Publish = Callable[[StoredImage], None]


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits of one picture, and how many are read at a time."""

    max_bytes: int
    max_side_px: int
    streams: Bound


class _NoLength(Exception):
    """The store needs the length, and the source does not give it."""


class _Source:
    """A picture's bytes on their way into an upload."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._began_s = time.monotonic()
        self._slow_s = 0.0
        self._asked_s: float | None = None
        self._given_s: float | None = None

    @property
    def stuck_s(self) -> float:
        """How long the store has had the last piece, or all of them, in seconds; 0 while the source is slow."""
        return 0.0 if self._given_s is None else time.monotonic() - self._given_s

    @property
    def store_s(self) -> float:
        """How long the try has taken so far, without the time that the source needed, in seconds."""
        now_s = time.monotonic()
        slow_s = self._slow_s if self._asked_s is None else self._slow_s + now_s - self._asked_s
        return now_s - self._began_s - slow_s

    async def read(self) -> AsyncIterator[bytes]:
        self._asked_s = asked_s = time.monotonic()
        async for chunk in self._chunks:
            self._give(asked_s)
            yield chunk
            self._given_s, self._asked_s = None, (asked_s := time.monotonic())
        self._give(asked_s)

    def _give(self, asked_s: float) -> None:
        self._given_s = time.monotonic()
        self._slow_s += self._given_s - asked_s
        self._asked_s = None


class Uploader:
    """Stores pictures, and reports success to `uploads`. `folder` is an order's image folder: `<org>/<request>`."""

    def __init__(self, store: ImageStore, spool: Spool, limits: ImageLimits, uploads: Uploads) -> None:
        self._store = store
        self._spool = spool
        self._limits = limits
        self._uploads = uploads
        self._streams = Turns(limits.streams)

    async def upload(
        self,
        picture: Picture,
        folder: str,
        until_s: float,
        publish: Publish,
        read: Callable[[], None],
        *,
        again: bool = False,
    ) -> float:
        """Store a picture. It calls `publish` at the moment of success, and `read` when the source is no longer needed.

        It tries until `until_s` of `time.monotonic`, and returns the seconds that the store took in the try that
        succeeded. `again`: the same picture may be there already, and is replaced. A draft that does not count is
        dropped.
        Raises NotAnImage, StoreFailed, and what the picture's source raises.
        """
        with step("upload") as span:
            span.set("ghub.image", picture.index)

            def stored(image: StoredImage) -> None:
                span.set("ghub.size_bytes", image.size_bytes)
                publish(image)

            try:
                return await self._upload(picture, folder, until_s, stored, read, again)
            finally:
                read()

    async def _upload(
        self,
        picture: Picture,
        folder: str,
        until_s: float,
        publish: Publish,
        read: Callable[[], None],
        again: bool,
    ) -> float:
        if not picture.inline:
            with suppress(_NoLength):
                return await self._again_until(
                    until_s, lambda failed: self._straight(picture, folder, publish, again or failed)
                )
        return await self._through_spool(picture, folder, until_s, publish, read)

    async def remove(self, path: str) -> None:
        """Delete an image that nobody is charged for. If that is not possible now, the sweep does it."""
        try:
            await self._store.delete(path)
        except StoreFailed as error:
            log.error("image_left_behind", path=path, error=str(error))

    async def _straight(self, picture: Picture, folder: str, publish: Publish, again: bool) -> float:
        async with self._streams.hold(_org_of(folder)), picture.open() as source:
            if source.size_bytes is None and self._store.needs_length:
                raise _NoLength
            artefact = self._artefact(source)
            kind = await artefact.begin()
            path = _path(folder, picture, kind)
            took_s = await self._put(path, aiter(artefact), kind, source.size_bytes, again)
            publish(_stored(path, kind, artefact))
            return took_s

    async def _through_spool(
        self, picture: Picture, folder: str, until_s: float, publish: Publish, read: Callable[[], None]
    ) -> float:
        copy = Copy(self._spool, _org_of(folder))
        begun: asyncio.Future[tuple[Artefact, Format]] = asyncio.get_running_loop().create_future()
        filling = asyncio.create_task(self._fill(copy, picture, folder, begun))
        filling.add_done_callback(lambda _: read())
        try:
            artefact, kind = await begun
            path = _path(folder, picture, kind)
            if picture.counts is not None:
                await copy.whole()
                if not await picture.counts():
                    return 0.0

            async def upload(again: bool) -> float:
                if self._store.needs_length:
                    await copy.whole()
                try:
                    took_s = await self._put(path, copy.read(), kind, copy.known_bytes, again)
                finally:
                    copy.let_go()
                publish(_stored(path, kind, artefact))
                return took_s

            return await self._again_until(until_s, upload)
        finally:
            filling.cancel()
            await asyncio.wait({filling})
            await copy.close()

    async def _fill(
        self, copy: Copy, picture: Picture, folder: str, begun: asyncio.Future[tuple[Artefact, Format]]
    ) -> None:
        """Read the source into the copy. An error is raised where the beginning is awaited, or the copy read."""
        try:
            async with self._streams.hold(_org_of(folder)), picture.open() as source:
                artefact = self._artefact(source)
                begun.set_result((artefact, await artefact.begin()))
                await copy.fill(aiter(artefact))
        except Exception as error:  # noqa: BLE001  # raised by the reader
            if begun.done():
                copy.fail(error)
            else:
                begun.set_exception(error)

    async def _again_until(self, until_s: float, attempt: Callable[[bool], Awaitable[float]]) -> float:
        """Make `attempt(False)`, and where the store failed `attempt(True)` until it is done or time is over."""
        again = False
        async for pause_s in Pauses(STORE_FIRST_PAUSE_S, STORE_LONGEST_PAUSE_S, least=0.5):
            try:
                return await attempt(again)
            except PictureLost:
                raise
            except StoreFailed as error:
                if not error.again or time.monotonic() + pause_s > until_s:
                    self._uploads.failed()
                    raise
                self._uploads.failing()
                AGAIN.inc()
                log.warning("store_failed_once", error=str(error))
            again = True
        raise AssertionError("the pauses have no end")

    async def _put(self, path: str, chunks: Chunks, kind: Format, size_bytes: int | None, again: bool) -> float:
        """Try once; returns the seconds that the store took.

        If the deadline ends a try while the store was stuck, the store has failed it.
        """
        source = _Source(chunks)
        ended = BROKEN
        try:
            await self._store.put(path, source.read(), kind.content_type, size_bytes=size_bytes, again=again)
            ended = STORED
        except PictureLost:
            raise
        except StoreFailed:
            ended = FAILED
            raise
        except asyncio.CancelledError:
            ended = CUT_OFF
            if source.stuck_s > STORE_STUCK_S:
                log.error("store_stuck", path=path, stuck_s=round(source.stuck_s, 1))
                self._uploads.failed()
                ended = FAILED
            raise
        finally:
            took_s = source.store_s
            ended.observe(took_s)
        self._uploads.stored()
        return took_s

    def _artefact(self, source: Source) -> Artefact:
        if (source.size_bytes or 0) > self._limits.max_bytes:
            raise NotAnImage(f"more than {self._limits.max_bytes} bytes")
        return Artefact(source.chunks, self._limits.max_bytes, self._limits.max_side_px)


async def read_until(store: ImageStore, path: str, until_s: float) -> AsyncIterator[bytes]:
    """A stored image, read again from where the store broke off, until `until_s` of `time.monotonic`."""
    sent_bytes = 0
    async for pause_s in Pauses(STORE_FIRST_PAUSE_S, STORE_LONGEST_PAUSE_S):
        skip_bytes = sent_bytes
        try:
            async for chunk in store.read(path):
                rest = chunk[skip_bytes:]
                skip_bytes -= len(chunk) - len(rest)
                sent_bytes += len(rest)
                if rest:
                    yield rest
            return
        except StoreFailed as error:
            if not error.again or time.monotonic() + pause_s > until_s:
                raise
            AGAIN.inc()


def _org_of(folder: str) -> str:
    return folder.partition("/")[0]


def _path(folder: str, picture: Picture, kind: Format) -> str:
    return f"{folder}/{picture.index}.{kind.extension}"


def _stored(path: str, kind: Format, artefact: Artefact) -> StoredImage:
    return StoredImage(
        path, kind.content_type, artefact.size_bytes, artefact.sha256, artefact.width_px, artefact.height_px
    )
