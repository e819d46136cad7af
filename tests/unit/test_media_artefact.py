"""Real images on their way: what goes in whole comes out whole, and of what is not whole the end never comes out."""

import asyncio
import hashlib
import io
import random
import tracemalloc
from collections.abc import AsyncIterator, Iterable

import pytest
from PIL import Image

from config.catalogue import read_catalogue
from proxy.media.artefact import PIECE_BYTES, Artefact
from proxy.media.formats import HEAD_BYTES, JPEG, PNG, Format, NotAnImage
from tests.conftest import run
from tests.fuzz.images import SIDES_PX, encoded, noise, small_images
from tests.fuzz.inline import at_once
from tests.fuzz.replies import cut

MIB = 1024 * 1024
MAX_SIDE_PX = 8192
SMALL = small_images()
CATALOGUE_SIZES = sorted({size for model in read_catalogue(None).models.values() for size in model.sizes})
VIEWS = "jpg with two views"


class Taken:
    """What a store has received of an image, and its known facts. `refused` is the reason why it got no more."""

    def __init__(self, chunks: Iterable[bytes], max_bytes: int = 64 * MIB, max_side_px: int = MAX_SIDE_PX) -> None:
        self.format: Format | None = None
        self.pieces: list[bytes] = []
        self.refused = ""
        self.artefact = Artefact(source(chunks), max_bytes, max_side_px)
        at_once(self._take())

    async def _take(self) -> None:
        try:
            self.format = await self.artefact.begin()
            async for piece in self.artefact:
                self.pieces.append(piece)
        except NotAnImage as error:
            self.refused = str(error)
            assert self.refused

    @property
    def data(self) -> bytes:
        """All of it."""
        return b"".join(self.pieces)

    @property
    def sides_px(self) -> tuple[int, int]:
        """Width and height."""
        return self.artefact.width_px, self.artefact.height_px


async def source(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def test_the_images_here_are_what_their_names_say() -> None:
    """Pillow reads each of them back; so the other tests judge real images."""
    for name, (_, data) in SMALL.items():
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert image.size == SIDES_PX
            assert ("animated" in name or "two views" in name) == (getattr(image, "n_frames", 1) == 2)


@pytest.mark.parametrize("name", SMALL)
def test_a_whole_image_passes_bit_identical_at_any_chunk_borders(name: str) -> None:
    """Byte by byte, whole, and cut at random; every fact about it is right."""
    kind, data = SMALL[name]
    chance = random.Random(name)
    ways = [[data], [data[at : at + 1] for at in range(len(data))], [b"", *data.partition(data[-9:]), b""]]
    for chunks in ways + [list(cut(data, chance)) for _ in range(10)]:
        taken = Taken(chunks)
        assert (taken.format, taken.refused, taken.data) == (kind, "", data)
        assert taken.sides_px == SIDES_PX
        assert (taken.artefact.size_bytes, taken.artefact.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert all(taken.pieces)


@pytest.mark.parametrize("name", SMALL)
def test_no_beginning_of_an_image_is_one(name: str) -> None:
    """Cut off anywhere, in one chunk or in several, it is refused, and its taker has not got all that came.

    One beginning is an image: the first of two JPEGs in one file.
    """
    data = SMALL[name][1]
    chance = random.Random(name)
    whole = []
    for end in range(len(data)):
        chunks = [data[:end]] if end % 2 else list(cut(data[:end], chance))
        taken = Taken(chunks)
        if not taken.refused:
            whole.append(end)
            continue
        assert data.startswith(taken.data) and (len(taken.data) < end or not end)
    assert len(whole) == (name == VIEWS)
    assert all(data[end - 2 : end] == b"\xff\xd9" for end in whole)


@pytest.mark.parametrize("name", SMALL)
def test_bytes_after_an_image_are_refused(name: str) -> None:
    """One of junk, a zero, the image once more. JPEG alone may have zeros and further JPEGs after it."""
    kind, data = SMALL[name]
    chance = random.Random(name)
    for junk, fine in ((b"\x00", kind == JPEG), (bytes(5000), kind == JPEG), (b"x", False), (data, kind == JPEG)):
        for chunks in ([data + junk], [data, junk], list(cut(data + junk, chance))):
            taken = Taken(chunks)
            assert (not taken.refused) == fine
            assert (taken.data == data + junk) == fine


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "AVIF"])
def test_every_size_of_the_catalogue_passes(kind: str) -> None:
    """In the providers' forms, in pieces that no store has to cut."""
    chance = random.Random(kind)
    options = {"PNG": {"compress_level": 1}, "WEBP": {"method": 0}, "AVIF": {"speed": 10}}.get(kind, {})
    tile = noise("P" if kind == "GIF" else "RGB", (48, 48))
    for size in CATALOGUE_SIZES:
        width, height = map(int, size.split("x"))
        data = encoded(tile.resize((width, height)), kind, **options)
        most = chance.choice([999, PIECE_BYTES, len(data)])
        taken = Taken(data[at : at + most] for at in range(0, len(data), most))
        assert (taken.refused, taken.sides_px) == ("", (width, height))
        assert taken.data == data
        assert max(map(len, taken.pieces)) < PIECE_BYTES + HEAD_BYTES
        assert Taken([data[:-1]]).refused and Taken([data, b"x"]).refused


def test_the_catalogue_has_sizes() -> None:
    """So that the test above has something to go through."""
    assert "1024x1024" in CATALOGUE_SIZES and len(CATALOGUE_SIZES) > 5


@pytest.mark.parametrize("name", SMALL)
def test_a_flipped_byte_is_passed_through_or_refused(name: str) -> None:
    """Damage raises NotAnImage or nothing, at any chunk borders the same, and ends."""
    data = SMALL[name][1]
    chance = random.Random(name)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 1, 2, 8])):
            damaged[chance.randrange(chance.choice([32, len(data)]))] = chance.randrange(256)
        whole, pieces = Taken([bytes(damaged)]), Taken(cut(bytes(damaged), chance))
        assert whole.refused == pieces.refused
        assert (whole.data == damaged) == (not whole.refused)
        refused += bool(whole.refused)
    assert 15 < refused < 150


@pytest.mark.parametrize("name", SMALL)
def test_a_hostile_image_needs_no_memory(name: str) -> None:
    """16 MB of zeros, ones or noise after any beginning of an image are not collected in memory."""
    data = SMALL[name][1]
    chance = random.Random(name)
    for chunk in (bytes(PIECE_BYTES), b"\xff" * PIECE_BYTES, chance.randbytes(PIECE_BYTES)):
        beginning = data[: chance.randrange(16, len(data))]

        async def endless(beginning: bytes = beginning, chunk: bytes = chunk) -> AsyncIterator[bytes]:
            yield beginning
            for _ in range(256):
                yield chunk

        async def read(chunks: AsyncIterator[bytes]) -> None:
            artefact = Artefact(chunks, 64 * MIB, MAX_SIDE_PX)
            await artefact.begin()
            async for _ in artefact:
                pass

        tracemalloc.start()
        with pytest.raises(NotAnImage):
            at_once(read(endless()))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MIB / 2


def test_the_piece_before_a_bad_one_is_held_back() -> None:
    """A whole image whose junk comes in a later chunk: its taker has not even got the whole image."""
    data = SMALL["png RGB"][1]
    taken = Taken([data[:500], data[500:], b"junk"])
    assert taken.refused == "bytes after its end"
    assert taken.data == b""  # all of it is in the head
    long = encoded(noise("RGB", (100, 100)), "PNG")
    taken = Taken([long[:10_000], long[10_000:], b"junk"])
    assert taken.data == long[:10_000]


def test_the_cap_is_the_most_that_is_passed_on() -> None:
    """Exactly so many bytes pass; with one less allowed, the last piece does not."""
    data = encoded(noise("RGB", (200, 200)), "PNG")
    chunks = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    assert Taken(chunks, max_bytes=len(data)).data == data
    taken = Taken(chunks, max_bytes=len(data) - 1)
    assert taken.refused == f"more than {len(data) - 1} bytes"
    assert len(taken.data) < len(data) - 1
    assert Taken([data], max_bytes=HEAD_BYTES).pieces == []


@pytest.mark.parametrize("name", SMALL)
def test_a_side_too_long_is_refused_before_a_byte_is_passed_on(name: str) -> None:
    """The header is in the head; the longest side that is allowed passes."""
    data = SMALL[name][1]
    assert not Taken([data], max_side_px=max(SIDES_PX)).refused
    taken = Taken([data], max_side_px=max(SIDES_PX) - 1)
    assert taken.refused == f"a side of more than {max(SIDES_PX) - 1} pixels"
    assert (taken.format, taken.pieces) == (None, [])


def test_a_long_head_in_small_chunks_is_read_once() -> None:
    """The format is known after HEAD_BYTES, and not one chunk later."""
    data = encoded(noise("RGB", (200, 200)), "PNG")
    read = 0

    async def bytewise() -> AsyncIterator[bytes]:
        nonlocal read
        for read in range(1, len(data) + 1):
            yield data[read - 1 : read]

    async def begin() -> Format:
        return await Artefact(bytewise(), MIB, MAX_SIDE_PX).begin()

    assert run(begin()) == PNG
    assert read == HEAD_BYTES


@pytest.mark.parametrize("chunks", [[], [b""], [b"", b"", b""]])
def test_a_source_without_bytes_is_refused(chunks: list[bytes]) -> None:
    """Whether nothing comes, or nothing in many chunks."""
    assert Taken(chunks).refused == "no bytes"


def test_what_the_source_raises_goes_through() -> None:
    """A connection that breaks is no bad image, and the piece that was held is not passed on."""
    data = encoded(noise("RGB", (100, 100)), "PNG")

    async def breaking() -> AsyncIterator[bytes]:
        yield data[:10_000]
        yield data[10_000:]
        raise ConnectionResetError

    taken = []

    async def read() -> None:
        artefact = Artefact(breaking(), MIB, MAX_SIDE_PX)
        await artefact.begin()
        async for piece in artefact:
            taken.append(piece)

    with pytest.raises(ConnectionResetError):
        run(read())
    assert b"".join(taken) == data[:10_000]


def test_pieces_are_short_however_long_the_chunks_are() -> None:
    """A chunk of a megabyte is given out in pieces of 64 KiB, the first of them with the head."""
    data = encoded(noise("RGB", (600, 600)), "PNG", compress_level=0)
    assert len(data) > MIB
    for chunks in ([data], [data[:100], data[100:]], [data[:HEAD_BYTES], data[HEAD_BYTES:]]):
        taken = Taken(chunks)
        assert taken.data == data
        assert max(map(len, taken.pieces)) < PIECE_BYTES + HEAD_BYTES


def test_images_are_read_beside_each_other() -> None:
    """Two at once on one loop do not get into each other's way."""

    async def read(data: bytes) -> bytes:
        async def slowly() -> AsyncIterator[bytes]:
            for at in range(0, len(data), 100):
                await asyncio.sleep(0)
                yield data[at : at + 100]

        artefact = Artefact(slowly(), MIB, MAX_SIDE_PX)
        await artefact.begin()
        return b"".join([piece async for piece in artefact])

    async def both() -> list[bytes]:
        return await asyncio.gather(*(read(data) for _, data in SMALL.values()))

    assert run(both()) == [data for _, data in SMALL.values()]
