"""JPEG: segments (marker, length, data), and entropy-coded data after each SOS. ITU T.81, annex B."""

import re

from proxy.media.formats import NotAnImage
from proxy.media.reader import Reader, Reading

SOI, EOI, SOS, DNL = 0xD8, 0xD9, 0xDA, 0xDC
SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
"""Tables, APPn and comments: they have a length and need no further check."""

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""End of entropy-coded data: not a stuffed zero, a restart or a fill byte."""
_NO_FILL = re.compile(rb"[^\xff]")
_NO_PADDING = re.compile(rb"[^\x00]")


def walk(image: Reader) -> Reading[None]:
    """Check all bytes. Whole JPEGs may follow the first (gain maps, other views), and zeros may follow each."""
    image.sides(*(yield from _stream(image)))
    while (yield from image.seek(_NO_PADDING, 1)):
        image.check_sides(*(yield from _stream(image)))


def _stream(image: Reader) -> Reading[tuple[int, int]]:
    """Check one JPEG from SOI to EOI; returns its width and height.

    A thumbnail's markers are inside a segment, which is skipped as a whole.
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
    """Read the next marker's code, after any number of fill bytes."""
    if (yield from image.take(1)) != b"\xff":
        raise NotAnImage("JPEG: no marker where one must be")
    yield from image.seek(_NO_FILL, 1)
    return (yield from image.take(1))[0]


def _segment(image: Reader, marker: int) -> Reading[int]:
    """Read a segment's length, without the two bytes of the length itself."""
    image.part()
    if marker == DNL:
        raise NotAnImage("JPEG: a height that comes later")
    length = int.from_bytes((yield from image.take(2)), "big") - 2
    if length < 0:
        raise NotAnImage("JPEG: a broken length")
    return length


def _frame(image: Reader, length: int) -> Reading[tuple[int, int]]:
    """Read width and height; refuse them now if they are not allowed."""
    frame = yield from image.take(6)
    if length != 6 + 3 * frame[5]:
        raise NotAnImage("JPEG: a broken frame header")
    image.skip(length - 6)
    sides = int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[1:3], "big")
    image.check_sides(*sides)
    return sides
