"""WebP: RIFF chunks (type, length, data, a pad byte after odd lengths) in a file with its length. RFC 9649."""

from proxy.media.formats import NotAnImage
from proxy.media.reader import Reader, Reading

CANVAS, LOSSY, LOSSLESS, FRAME = b"VP8X", b"VP8 ", b"VP8L", b"ANMF"
HEAD_BYTES = {CANVAS: 10, LOSSY: 10, LOSSLESS: 5}
"""Bytes that contain the sides, for each kind of chunk that has them."""
LEAST_FRAME_BYTES = 24
"""Minimum size of a frame: its own header, and that of the picture in it."""


def walk(image: Reader) -> Reading[None]:
    """Check as many bytes as the file's length says."""
    left = int.from_bytes((yield from image.take(12))[4:8], "little") - 4
    pictured = False
    while left:
        kind, length = yield from _chunk(image)
        padded = length + length % 2
        left -= 8 + padded
        if left < 0:
            raise NotAnImage("WebP: a chunk that leaves the file")
        if kind in HEAD_BYTES:
            padded -= yield from _sides(image, kind, length)
        elif not image.width_px:
            raise NotAnImage("WebP: it does not begin with its header")
        image.skip(padded)
        pictured |= kind in (LOSSY, LOSSLESS) or (kind == FRAME and length >= LEAST_FRAME_BYTES)
    if not pictured:
        raise NotAnImage("WebP: no pixels")


def _chunk(image: Reader) -> Reading[tuple[bytes, int]]:
    """Read (type, length) of the next chunk; stops before its data."""
    image.part()
    head = yield from image.take(8)
    return head[:4], int.from_bytes(head[4:], "little")


def _sides(image: Reader, kind: bytes, length: int) -> Reading[int]:
    """Read the sides, which a canvas and its picture share; returns how many bytes of the chunk were read."""
    if length < HEAD_BYTES[kind]:
        raise NotAnImage("WebP: a broken header")
    head = yield from image.take(HEAD_BYTES[kind])
    sides = _SIDES[kind](head)
    if image.width_px and sides != (image.width_px, image.height_px):
        raise NotAnImage("WebP: a picture that is not of its canvas's size")
    image.sides(*sides)
    return len(head)


def _canvas(head: bytes) -> tuple[int, int]:
    return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1


def _lossy(head: bytes) -> tuple[int, int]:
    """Read a key frame's sides; the upper two bits of each only say how to scale it."""
    if head[0] & 1 or head[3:6] != b"\x9d\x01\x2a":
        raise NotAnImage("WebP: a broken header")
    return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF


def _lossless(head: bytes) -> tuple[int, int]:
    if head[0] != 0x2F:
        raise NotAnImage("WebP: a broken header")
    bits = int.from_bytes(head[1:5], "little")
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1


_SIDES = {CANVAS: _canvas, LOSSY: _lossy, LOSSLESS: _lossless}
