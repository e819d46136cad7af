"""AVIF: a sequence of boxes (length, type, data), some with boxes inside. ISO 14496-12 and 23008-12."""

from proxy.media.formats import NotAnImage
from proxy.media.reader import Reader, Reading

VERSION_BYTES = 4
"""Version and flags, which some boxes have before their data."""
ONCE = frozenset({b"ftyp", b"meta"})
"""Boxes that may occur once. A second one would begin another file."""


def walk(image: Reader) -> Reading[None]:
    """Check all bytes; the last one must end a box. The image's sides are those of its largest picture."""
    seen: set[bytes] = set()
    pictured = False
    while not (yield from image.ended()):
        kind, _, length = yield from _box(image)
        if kind in seen:
            raise NotAnImage("AVIF: two files in one")
        seen |= ONCE & {kind}
        if kind == b"meta":
            image.skip(VERSION_BYTES)
            yield from _inside(image, length - VERSION_BYTES, (b"iprp", b"ipco", b"ispe"))
        else:
            pictured |= kind == b"mdat" and length > 0
            image.skip(length)
    if not pictured or not image.width_px:
        raise NotAnImage("AVIF: no pixels")


def _inside(image: Reader, left: int, path: tuple[bytes, ...]) -> Reading[None]:
    """Check the boxes in `left` bytes. Boxes of the path's first kind are opened; the path's last kind gives sides."""
    while left > 0:
        kind, head_length, length = yield from _box(image)
        left -= head_length + length
        if left < 0:
            break
        if kind != path[0]:
            image.skip(length)
        elif len(path) > 1:
            yield from _inside(image, length, path[1:])
        else:
            yield from _extent(image, length)
    if left < 0:
        raise NotAnImage("AVIF: a box that leaves the one around it")


def _box(image: Reader) -> Reading[tuple[bytes, int, int]]:
    """Read (type, length of its head, length of its data) of the next box; stops before its data."""
    image.part()
    head = yield from image.take(8)
    length, head_length = int.from_bytes(head[:4], "big"), 8
    if length == 1:
        length, head_length = int.from_bytes((yield from image.take(8)), "big"), 16
    if length < head_length:
        raise NotAnImage("AVIF: a box without a length, or a broken one")
    return head[4:], head_length, length - head_length


def _extent(image: Reader, length: int) -> Reading[None]:
    """Read the sides of one picture: the image itself, a tile of it, its alpha or a thumbnail."""
    if length != VERSION_BYTES + 8:
        raise NotAnImage("AVIF: broken sides")
    sides = yield from image.take(length)
    width_px, height_px = int.from_bytes(sides[4:8], "big"), int.from_bytes(sides[8:], "big")
    if width_px * height_px > image.width_px * image.height_px:
        image.sides(width_px, height_px)
    else:
        image.check_sides(width_px, height_px)
