"""Bytes for a walker: it asks for what it wants to see, over any chunk borders, and passes over the rest. Pure."""

import re
from collections.abc import Generator
from typing import TypeVar

from proxy.media.formats import NotAnImage

T = TypeVar("T")
Reading = Generator[None, None, T]
"""A result that takes reading: it yields where it needs the next chunk. Used with `yield from`."""

MAX_PARTS = 65_536
"""Chunks, segments, blocks or boxes of one image: many times what encoders write, and 0.2 s of work."""

MAX_TAKE_BYTES = 32


class Reader:
    """One image's bytes and what is known of its sides, in pixels, 0 until then.

    It holds the chunk that is being read, and of the one before at most MAX_TAKE_BYTES, whatever an image claims.
    """

    def __init__(self, max_side_px: int) -> None:
        self._max_side_px = max_side_px
        self._data = b""
        self._at = 0  # beyond the data where more is to be passed over
        self._over = False
        self._parts = 0
        self.width_px = 0
        self.height_px = 0

    def give(self, chunk: bytes) -> None:
        """The next bytes."""
        rest = self._data[self._at :]
        self._at = max(0, self._at - len(self._data))
        self._data = rest + chunk

    def end(self) -> None:
        """There are no more."""
        self._over = True

    def take(self, count: int) -> Reading[bytes]:
        """Exactly so many bytes, at most MAX_TAKE_BYTES."""
        assert count <= MAX_TAKE_BYTES
        while self._at + count > len(self._data):
            yield from self._more()
        self._at += count
        return self._data[self._at - count : self._at]

    def skip(self, count: int) -> None:
        """Pass over so many bytes, whenever they come; that they do is seen at the next reading."""
        self._at += count

    def seek(self, pattern: re.Pattern[bytes], length: int) -> Reading[bool]:
        """Go to the first match of `pattern`, which is `length` bytes long; False where there is none until the end."""
        while True:
            found = pattern.search(self._data, self._at)
            if found is not None:
                self._at = found.start()
                return True
            if self._over:
                self._at = max(self._at, len(self._data))
                return False
            self._at = max(self._at, len(self._data) - length + 1)
            yield

    def skip_blocks(self) -> Reading[bool]:
        """Pass over blocks that begin with their length in one byte, and the empty one after them; False for none."""
        some = False
        while True:
            data, at = self._data, self._at
            while at < len(data) and data[at]:  # once in 255 bytes: without a call
                at += data[at] + 1
                some = True
            self._at = at
            if at < len(data):
                self._at += 1
                return some
            yield from self._more()

    def ended(self) -> Reading[bool]:
        """Is nothing left?"""
        while self._at >= len(self._data):
            if self._over and self._at == len(self._data):
                return True
            yield from self._more()
        return False

    def part(self) -> None:
        """Count one more part. Raises NotAnImage where there are too many."""
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise NotAnImage(f"more than {MAX_PARTS} parts")

    def sides(self, width_px: int, height_px: int) -> None:
        """The image's sides are known."""
        self.check_sides(width_px, height_px)
        self.width_px, self.height_px = width_px, height_px

    def check_sides(self, width_px: int, height_px: int) -> None:
        """May anything in the image be of that size? Raises NotAnImage."""
        if not width_px or not height_px:
            raise NotAnImage("a side of 0 pixels")
        if max(width_px, height_px) > self._max_side_px:
            raise NotAnImage(f"a side of more than {self._max_side_px} pixels")

    def _more(self) -> Reading[None]:
        if self._over:
            raise NotAnImage("it breaks off")
        yield
