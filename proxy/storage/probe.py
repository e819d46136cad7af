"""A probe of the store: one of our own pictures is written, read back and removed."""

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
"""Folder of probes. It is not an organisation's folder, as those are UUIDs."""

SIDE_PX = 1_200
"""Side of the probe. At three random bytes a pixel it has 4.3 MB, like a large image, so a lower limit is detected."""

PIECE_BYTES = 64 * 1024
"""Maximum piece of the picture, like an image from upstream."""


async def probe(store: ImageStore) -> None:
    """Write a picture, read it back, and remove it. Raises StoreFailed, or StoreMisconfigured if it is refused."""
    path = f"{PREFIX}{uuid4()}.png"
    try:
        async with asyncio.timeout(STORE_PROBE_S):
            data = await asyncio.to_thread(picture)
            await store.put(path, _pieces(data), "image/png", size_bytes=len(data))
            if await _digest(store.read(path)) != await asyncio.to_thread(lambda: hashlib.sha256(data).digest()):
                raise StoreFailed(f"the store gave back something else than the probe {path}", again=True)
            await store.delete(path)
    except (StoreFailed, TimeoutError) as error:
        with suppress(StoreFailed):  # the sweep finds what stays
            await store.delete(path)
        if isinstance(error, TimeoutError):
            raise StoreFailed(f"the probe {path} was not done within {STORE_PROBE_S:g} s", again=True) from None
        if not error.again:
            raise StoreMisconfigured(store.unwritable(error)) from error
        raise


def is_probe(path: str) -> bool:
    """True if it is the path of a probe, in exactly the form in which we write it."""
    name = path.removeprefix(PREFIX).removesuffix(".png")
    try:
        return path == f"{PREFIX}{UUID(name)}.png"
    except ValueError:
        return False


def picture() -> bytes:
    """Make a valid PNG of random pixels: nobody on its way can compress it, or have it cached."""
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
