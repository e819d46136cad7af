"""A picture into the store: straight or by the spool, tried again, published once or not at all."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import REGISTRY

from metering.events import StoredImage
from metering.shares import Bound
from proxy.media import png
from proxy.media.formats import NotAnImage
from proxy.orders import upload as keeping
from proxy.orders.upload import ImageLimits, Uploader, read_until
from proxy.outcomes import Failure, Outcome
from proxy.ports import Chunks, Picture, PictureLost, Source, StoreFailed
from proxy.storage.local import LocalStore
from proxy.storage.spool import Spool
from tests.kits.orders import files, noise_png

FOLDER = "11111111-1111-4111-8111-111111111111/22222222-2222-4222-8222-222222222222"
PICTURE = noise_png(700)
"""1.4 MB: larger than the spool's memory and its window."""


class Hiccups(LocalStore):
    """A local store that fails as it is told, once per word: `early` before it reads, `late` half-way, `lost` after."""

    def __init__(self, root: Path, *script: str, needs_length: bool = False, again: bool = True) -> None:
        super().__init__(root)
        self.script = list(script)
        self.tries: list[tuple[int | None, bool]] = []
        self.needs_length = needs_length
        self._again = again

    async def put(
        self, path: str, chunks: Chunks, content_type: str, *, size_bytes: int | None = None, again: bool = False
    ) -> None:
        self.tries.append((size_bytes, again))
        step = self.script.pop(0) if self.script else "yes"
        if step == "early":
            raise StoreFailed("early", again=self._again)
        if step == "late":
            await anext(chunks)
            await anext(chunks)
            raise StoreFailed("late", again=self._again)
        await super().put(path, chunks, content_type, size_bytes=size_bytes, again=again)
        if step == "lost":
            raise StoreFailed("lost", again=self._again)

    async def read(self, path: str) -> AsyncGenerator[bytes]:
        step = self.script.pop(0) if self.script else "yes"
        async for chunk in super().read(path):
            yield chunk
            if step == "late":
                raise StoreFailed("late", again=self._again)


class EventFacts:
    """What the watch learns of uploads, in order."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def stored(self) -> None:
        self.words.append("stored")

    def failing(self) -> None:
        self.words.append("failing")

    def failed(self) -> None:
        self.words.append("failed")


class Upstream:
    """A picture of these bytes that counts how often it is opened."""

    def __init__(self, data: bytes, *, inline: bool, told: bool = False) -> None:
        self.opened = 0
        self.read_bytes = 0
        self._data = data
        self._told = told
        self.picture = Picture(3, self._open, inline)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Source]:
        self.opened += 1

        async def chunks() -> AsyncIterator[bytes]:
            for start in range(0, len(self._data), 65536):
                await asyncio.sleep(0)
                self.read_bytes += len(self._data[start : start + 65536])
                yield self._data[start : start + 65536]

        yield Source(chunks(), len(self._data) if self._told else None)


def uploader(store: LocalStore, spool: Spool, told: EventFacts | None = None) -> Uploader:
    return Uploader(store, spool, ImageLimits(10**7, 16_384, Bound(2)), told or EventFacts())


async def keep(
    store: LocalStore, picture: Picture, spool: Spool, within_s: float = 10, told: EventFacts | None = None
) -> list[StoredImage]:
    published: list[StoredImage] = []
    await uploader(store, spool, told).upload(
        picture, FOLDER, time.monotonic() + within_s, published.append, lambda: None
    )
    return published


@pytest.mark.parametrize("script", [[], ["early"], ["late"], ["lost"], ["late", "early", "lost"]])
@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("needs_length", [True, False])
@pytest.mark.parametrize("told", [True, False])
async def test_a_hiccup_of_the_store_loses_nothing(
    tmp_path: Path, script: list[str], inline: bool, needs_length: bool, told: bool
) -> None:
    """Bit-identical and published once, the upstream's inline reply read once; a store that needs a length has it."""
    upstream = Upstream(PICTURE, inline=inline, told=told)
    spool = Spool(tmp_path / "spool", 10**8)
    store = Hiccups(tmp_path / "images", *script, needs_length=needs_length)
    spool.clean()
    (image,) = await keep(store, upstream.picture, spool)
    assert image.path == f"{FOLDER}/3.png" and files(tmp_path / "images") == {image.path}
    assert (tmp_path / "images" / image.path).read_bytes() == PICTURE
    facts = (image.size_bytes, image.sha256, image.content_type, image.width_px, image.height_px)
    assert facts == (len(PICTURE), hashlib.sha256(PICTURE).hexdigest(), "image/png", 700, 700)
    assert [again for _, again in store.tries] == [False] + [True] * len(script)
    if inline:
        assert (upstream.opened, upstream.read_bytes) == (1, len(PICTURE))
    if needs_length:
        assert {size for size, _ in store.tries} == {len(PICTURE)}
    assert spool.shares.taken == 0 and list((tmp_path / "spool").iterdir()) == []


async def test_a_store_that_says_no_is_not_asked_again(tmp_path: Path) -> None:
    """A wrong bucket is not cured by waiting."""
    for inline in (True, False):
        store = Hiccups(tmp_path / "images", "late", again=False)
        spool = Spool(tmp_path, 10**8)
        with pytest.raises(StoreFailed):
            await keep(store, Upstream(PICTURE, inline=inline).picture, spool)
        assert len(store.tries) == 1 and files(tmp_path / "images") == set() and spool.shares.taken == 0


async def test_trying_ends_with_the_time_for_it(tmp_path: Path) -> None:
    """The order gets its end in time; nothing is left in the spool."""
    for inline in (True, False):
        store, spool = Hiccups(tmp_path / "images", *["late"] * 100), Spool(tmp_path, 10**8)
        began_s = time.monotonic()
        with pytest.raises(StoreFailed):
            await keep(store, Upstream(PICTURE, inline=inline).picture, spool, within_s=1.0)
        assert time.monotonic() - began_s < 20 and len(store.tries) >= 2
        assert files(tmp_path / "images") == set() and spool.shares.taken == 0


@pytest.mark.rule(11)
@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize(
    ("script", "again", "words"),
    [
        ([], True, ["stored"]),
        (["early", "late"], True, ["failing", "failing", "stored"]),
        (["late"], False, ["failed"]),
    ],
)
async def test_the_watch_learns_how_the_store_did(
    tmp_path: Path, inline: bool, script: list[str], again: bool, words: list[str]
) -> None:
    """Each try that it failed, and the end (rule 11)."""
    told = EventFacts()
    store = Hiccups(tmp_path / "images", *script, again=again)
    with contextlib.suppress(StoreFailed):
        await keep(store, Upstream(PICTURE, inline=inline).picture, Spool(tmp_path, 10**8), told=told)
    assert told.words == words


class Stuck(LocalStore):
    """A store that takes the first piece of a picture, and then nothing more."""

    async def put(
        self, path: str, chunks: Chunks, content_type: str, *, size_bytes: int | None = None, again: bool = False
    ) -> None:
        await anext(chunks)
        await asyncio.Event().wait()


@pytest.mark.parametrize("inline", [True, False])
async def test_an_upload_that_the_deadline_cuts_off_counts_where_the_store_stood_still(
    tmp_path: Path, inline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that never says no would be sold to without end otherwise; a source that is slow, or has no end, is not
    its fault: a customer's pictures must not shut out the others."""

    @asynccontextmanager
    async def stalling() -> AsyncIterator[Source]:
        async def chunks() -> AsyncIterator[bytes]:
            yield PICTURE[:500_000]
            await asyncio.Event().wait()

        yield Source(chunks())

    @asynccontextmanager
    async def endless() -> AsyncIterator[Source]:
        async def chunks() -> AsyncIterator[bytes]:
            yield png.SIGNATURE + png.chunk(b"IHDR", PICTURE[16:29]) + (2**31 - 1).to_bytes(4, "big") + b"IDAT"
            while True:
                yield bytes(10_000)
                await asyncio.sleep(0.001)

        yield Source(chunks())

    async def words(store: LocalStore, picture: Picture) -> list[str]:
        told = EventFacts()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await keep(store, picture, Spool(tmp_path, 10**8), told=told)
        return told.words

    monkeypatch.setattr(keeping, "STORE_STUCK_S", 0.3)
    assert await words(Stuck(tmp_path), Upstream(PICTURE, inline=inline).picture) == ["failed"]
    for source in (stalling, endless):
        assert await words(LocalStore(tmp_path / "images"), Picture(0, source, inline)) == []


@pytest.mark.parametrize("inline", [True, False])
async def test_what_is_not_the_stores_fault_is_not_told(tmp_path: Path, inline: bool) -> None:
    """A picture that is none, a source that breaks off, a length that was a lie, a spool that is full."""

    class Longer(Upstream):
        @asynccontextmanager
        async def _open(self) -> AsyncIterator[Source]:
            async with super()._open() as source:
                yield Source(source.chunks, len(PICTURE) - 1)

    told, spool, full = EventFacts(), Spool(tmp_path, 10**8), Spool(tmp_path, 1_000, wait_s=0.1)
    store = LocalStore(tmp_path / "images")
    for data in (PICTURE[:-1], b"<html>"):
        with pytest.raises(NotAnImage):
            await keep(store, Upstream(data, inline=inline).picture, spool, told=told)
    if inline:
        with pytest.raises(PictureLost, match="full"):
            await keep(store, Upstream(PICTURE, inline=True).picture, full, told=told)
    else:
        with pytest.raises(PictureLost, match="announced"):
            await keep(store, Longer(PICTURE, inline=False).picture, spool, told=told)
    assert told.words == []


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("needs_length", [True, False])
async def test_what_is_cut_short_is_never_published(tmp_path: Path, inline: bool, needs_length: bool) -> None:
    """By the proof, although its bytes had streamed into the upload already."""
    store, spool = Hiccups(tmp_path / "images", needs_length=needs_length), Spool(tmp_path, 10**8)
    for data in (PICTURE[:-1], PICTURE[: len(PICTURE) // 2], PICTURE + b"x", b"", b"<html>"):
        with pytest.raises(NotAnImage):
            await keep(store, Upstream(data, inline=inline, told=True).picture, spool)
        assert files(tmp_path / "images") == set() and spool.shares.taken == 0


async def test_an_inline_picture_lets_the_next_be_read_while_its_upload_goes_on(tmp_path: Path) -> None:
    """The upstream's reply is not held up by a store that is away: each picture waits in the spool."""
    store, spool = Hiccups(tmp_path / "images", *["early"] * 12), Spool(tmp_path, 10**8)
    one = uploader(store, spool)
    published: list[StoredImage] = []
    async with asyncio.TaskGroup() as uploads:
        for number in range(4):
            upstream, read = Upstream(PICTURE, inline=True), asyncio.Event()
            picture = Picture(number, upstream.picture.open, inline=True)
            until_s = time.monotonic() + 10
            uploads.create_task(one.upload(picture, FOLDER, until_s, published.append, read.set))
            async with asyncio.timeout(3):
                await read.wait()
            assert upstream.read_bytes == len(PICTURE)
        assert published == []
    assert len(published) == 4 and len(files(tmp_path / "images")) == 4


async def test_a_source_that_breaks_off_breaks_the_upload_off(tmp_path: Path) -> None:
    """With its own failure, for a picture at a URL and an inline one."""

    @asynccontextmanager
    async def open_() -> AsyncIterator[Source]:
        async def chunks() -> AsyncIterator[bytes]:
            yield PICTURE[:500_000]
            raise ConnectionResetError

        try:
            yield Source(chunks())
        except ConnectionResetError as error:
            raise Failure(Outcome.FETCH_FAILED) from error

    for inline in (True, False):
        store, spool = Hiccups(tmp_path / "images"), Spool(tmp_path, 10**8)
        with pytest.raises(Failure, match="fetch_failed"):
            await keep(store, Picture(0, open_, inline), spool)
        assert files(tmp_path / "images") == set() and spool.shares.taken == 0


@pytest.mark.parametrize("inline", [True, False])
async def test_a_deadline_in_the_middle_leaves_nothing(tmp_path: Path, inline: bool) -> None:
    """Neither in the store nor in the spool."""

    @asynccontextmanager
    async def open_() -> AsyncIterator[Source]:
        async def chunks() -> AsyncIterator[bytes]:
            yield PICTURE[:500_000]
            await asyncio.Event().wait()

        yield Source(chunks())

    store, spool = Hiccups(tmp_path / "images"), Spool(tmp_path, 10**8)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await keep(store, Picture(0, open_, inline), spool)
    assert files(tmp_path / "images") == set() and spool.shares.taken == 0


async def test_no_more_pictures_are_read_at_a_time_than_is_allowed(tmp_path: Path) -> None:
    """Two of ten here; the others wait unread, and all are stored in the end."""
    reading, most = 0, 0

    @asynccontextmanager
    async def open_() -> AsyncIterator[Source]:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)

        async def chunks() -> AsyncIterator[bytes]:
            await asyncio.sleep(0.01)
            yield PICTURE

        yield Source(chunks())
        reading -= 1

    one = uploader(LocalStore(tmp_path / "images"), Spool(tmp_path, 10**8))
    published: list[StoredImage] = []
    async with asyncio.TaskGroup() as all_:
        for number in range(10):
            picture = Picture(number, open_, inline=number % 2 == 0)
            until_s = time.monotonic() + 10
            all_.create_task(one.upload(picture, FOLDER, until_s, published.append, lambda: None))
    assert (most, len(published)) == (2, 10)


@pytest.mark.parametrize("script", [[], ["late"], ["late", "late", "late"]])
async def test_a_stored_image_is_read_to_its_end(tmp_path: Path, script: list[str]) -> None:
    """From where the store broke off: no byte twice, none missing."""
    store = Hiccups(tmp_path / "images", "yes", *script)
    (image,) = await keep(store, Upstream(PICTURE, inline=False).picture, Spool(tmp_path, 10**8))
    until_s = time.monotonic() + 10
    assert b"".join([chunk async for chunk in read_until(store, image.path, until_s)]) == PICTURE


class Slow(LocalStore):
    """A store that takes its time before it reads and after it has read."""

    async def put(self, path: str, chunks: Chunks, content_type: str, **more: Any) -> None:
        await asyncio.sleep(STORE_S / 2)
        await super().put(path, chunks, content_type, **more)
        await asyncio.sleep(STORE_S / 2)


STORE_S, SOURCE_S = 0.4, 1.5


def stored_s() -> float:
    """The time that stores have taken for the pictures that they have."""
    return REGISTRY.get_sample_value("ghub_store_seconds_sum", {"outcome": "stored"}) or 0.0


@pytest.mark.parametrize("inline", [True, False])
async def test_the_time_of_the_store_is_not_that_of_the_source(tmp_path: Path, inline: bool) -> None:
    """The source takes longer than the store; neither its beginning nor its middle counts for the store."""

    @asynccontextmanager
    async def slow() -> AsyncIterator[Source]:
        async def chunks() -> AsyncIterator[bytes]:
            for half in (PICTURE[: len(PICTURE) // 2], PICTURE[len(PICTURE) // 2 :]):
                await asyncio.sleep(SOURCE_S / 2)
                yield half

        yield Source(chunks(), None)

    before_s = stored_s()
    one = uploader(Slow(tmp_path / "images"), Spool(tmp_path, 10**8))
    until_s = time.monotonic() + 30
    took_s = await one.upload(Picture(0, slow, inline), FOLDER, until_s, lambda _: None, lambda: None)
    assert STORE_S <= took_s < SOURCE_S
    assert stored_s() - before_s == pytest.approx(took_s)


async def test_pictures_of_one_organisation_do_not_queue_behind_another_s(tmp_path: Path) -> None:
    """Both streams are one organisation's, and twenty of its pictures wait: the next that is read is the other's."""
    one = uploader(LocalStore(tmp_path / "images"), Spool(tmp_path, 10**8))
    go_on, opened = asyncio.Event(), list[str]()

    def keeping(org_id: str, number: int) -> asyncio.Task[float]:
        @asynccontextmanager
        async def slow() -> AsyncIterator[Source]:
            opened.append(org_id)
            await go_on.wait()
            async with Upstream(PICTURE, inline=False)._open() as source:
                yield source

        picture, until_s = Picture(number, slow, False), time.monotonic() + 30
        folder = f"{org_id}/{UUID(int=number)}"
        return asyncio.create_task(one.upload(picture, folder, until_s, lambda _: None, lambda: None))

    tasks = [keeping("a", number) for number in range(20)]
    await asyncio.sleep(0)
    tasks.append(keeping("b", 20))
    await asyncio.sleep(0)
    assert opened == ["a", "a"]
    go_on.set()
    await asyncio.gather(*tasks)
    assert opened[2] == "b" and len(opened) == len(tasks)
