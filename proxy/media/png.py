"""PNG: a signature, then chunks (length, type, data, checksum) from IHDR to IEND. W3C PNG, third edition."""

import zlib

from proxy.media.formats import NotAnImage
from proxy.media.reader import Reader, Reading

MAX_CHUNK_BYTES = 2**31 - 1
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    """Encode one part of a PNG that we make ourselves, for after the signature."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def walk(image: Reader) -> Reading[None]:
    """Check up to the end of IEND."""
    image.skip(8)  # the signature, by which this walker was chosen
    yield from _header(image)
    kind, data_bytes = b"", 0
    while kind != b"IEND":
        length, kind = yield from _chunk(image)
        image.skip(length + 4)
        if kind == b"IDAT":
            data_bytes += length
    if length:
        raise NotAnImage("PNG: an end that is not empty")
    if not data_bytes:
        raise NotAnImage("PNG: no pixels")


def _header(image: Reader) -> Reading[None]:
    if (yield from _chunk(image)) != (13, b"IHDR"):
        raise NotAnImage("PNG: it does not begin with its header")
    header = yield from image.take(13)
    image.sides(int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big"))
    image.skip(4)


def _chunk(image: Reader) -> Reading[tuple[int, bytes]]:
    """Read (length, type) of the next chunk; stops before its data."""
    image.part()
    head = yield from image.take(8)
    length, kind = int.from_bytes(head[:4], "big"), head[4:]
    if length > MAX_CHUNK_BYTES or not kind.isalpha():
        raise NotAnImage("PNG: a broken chunk")
    return length, kind
