"""Does the store take an image at this moment, and give it back? It is seen by doing it, with a picture of our own."""

import asyncio
import hashlib
import os
import zlib
from contextlib import suppress
from uuid import UUID, uuid4

from config.settings import STORE_PROBE_S
from proxy.media import png
from proxy.ports import Chunks, ImageStore, StoreFailed, StoreMisconfigured

PREFIX = "_probe/"
"""Where probes lie: no organisation's folder, as those are UUIDs."""

SIDE_PX = 1_200
"""Three random bytes a pixel: 4.3 MB, the size of a large image. A limit that is below it is seen."""

PIECE_BYTES = 64 * 1024
"""The longest piece in which the picture is given, as an image from upstream comes."""


async def probe(store: ImageStore) -> None:
    """Write a picture, read it back, and remove it. Raises StoreFailed, or StoreMisconfigured where it is refused."""
    path = f"{PREFIX}{uuid4()}.png"
    try:
        async with asyncio.timeout(STORE_PROBE_S):
            data = await asyncio.to_thread(picture)
            await store.put(path, _pieces(data), "image/png", size_bytes=len(data))
            if await _digest(store.read(path)) != await asyncio.to_thread(lambda: hashlib.sha256(data).digest()):
                raise StoreFailed(f"the store gave back something else than the probe {path}", again=True)
            await store.delete(path)
    except (StoreFailed, TimeoutError) as error:
        with suppress(StoreFailed):  # what stays is found by the sweep
            await store.delete(path)
        if isinstance(error, TimeoutError):
            raise StoreFailed(f"the probe {path} was not done within {STORE_PROBE_S:g} s", again=True) from None
        if not error.again:
            raise StoreMisconfigured(store.unwritable(error)) from error
        raise


def is_probe(path: str) -> bool:
    """Is it the path of a probe, in the very form in which we write it?"""
    name = path.removeprefix(PREFIX).removesuffix(".png")
    try:
        return path == f"{PREFIX}{UUID(name)}.png"
    except ValueError:
        return False


def picture() -> bytes:
    """A valid PNG of random pixels: nothing on its way can make it smaller, or have it from before."""
    header = SIDE_PX.to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0))  # 8 bits of red, green and blue
    rows = b"".join(b"\0" + os.urandom(3 * SIDE_PX) for _ in range(SIDE_PX))
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    return png.SIGNATURE + b"".join(png.chunk(kind, data) for kind, data in parts)


async def _digest(chunks: Chunks) -> bytes:
    found = hashlib.sha256()
    async for chunk in chunks:
        found.update(chunk)
    return found.digest()


async def _pieces(data: bytes) -> Chunks:
    for at in range(0, len(data), PIECE_BYTES):
        yield data[at : at + PIECE_BYTES]
