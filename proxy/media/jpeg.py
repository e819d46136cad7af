"""JPEG: segments (marker, length, data), and entropy-coded data after each SOS. ITU T.81, annex B."""

import re

from proxy.media.formats import NotAnImage
from proxy.media.reader import Reader, Reading

SOI, EOI, SOS, DNL = 0xD8, 0xD9, 0xDA, 0xDC
SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
"""Tables, APPn and comments: what has a length and need not be looked into."""

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""What ends entropy-coded data: no stuffed zero, no restart, no fill byte."""
_NO_FILL = re.compile(rb"[^\xff]")
_NO_PADDING = re.compile(rb"[^\x00]")


def walk(image: Reader) -> Reading[None]:
    """To the end of all bytes: whole JPEGs may follow the first (gain maps, other views), and zeros any of them."""
    image.sides(*(yield from _stream(image)))
    while (yield from image.seek(_NO_PADDING, 1)):
        image.check_sides(*(yield from _stream(image)))


def _stream(image: Reader) -> Reading[tuple[int, int]]:
    """One JPEG from SOI to EOI; returns its width and height.

    A thumbnail's markers lie inside of a segment, which is passed over as a whole.
    """
    if (yield from image.take(2)) != bytes((0xFF, SOI)):
        raise NotAnImage("JPEG: bytes after its end")
    sides, scanned = None, False
    while (marker := (yield from _marker(image))) != EOI:
        length = yield from _segment(image, marker)
        if marker in SOF and sides is None:
            sides = yield from _frame(image, length)
        elif marker == SOS and sides is not None:
            image.skip(length)
            yield from image.seek(_MARKER, 2)
            scanned = True
        elif marker in TABLES:
            image.skip(length)
        else:
            raise NotAnImage("JPEG: a segment out of place")
    if sides is None or not scanned:
        raise NotAnImage("JPEG: no pixels")
    return sides


def _marker(image: Reader) -> Reading[int]:
    """The next one's code; any number of fill bytes may stand before it."""
    if (yield from image.take(1)) != b"\xff":
        raise NotAnImage("JPEG: no marker where one must be")
    yield from image.seek(_NO_FILL, 1)
    return (yield from image.take(1))[0]


def _segment(image: Reader, marker: int) -> Reading[int]:
    """Its length without the two bytes that say it."""
    image.part()
    if marker == DNL:
        raise NotAnImage("JPEG: a height that comes later")
    length = int.from_bytes((yield from image.take(2)), "big") - 2
    if length < 0:
        raise NotAnImage("JPEG: a broken length")
    return length


def _frame(image: Reader, length: int) -> Reading[tuple[int, int]]:
    """Width and height, refused at once where they are not to be stored."""
    frame = yield from image.take(6)
    if length != 6 + 3 * frame[5]:
        raise NotAnImage("JPEG: a broken frame header")
    image.skip(length - 6)
    sides = int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[1:3], "big")
    image.check_sides(*sides)
    return sides
