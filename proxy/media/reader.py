"""Bytes for a walker, across chunk borders: it reads what it needs, and skips the rest. Pure."""

import re
from collections.abc import Generator
from typing import TypeVar

from proxy.media.formats import NotAnImage

T = TypeVar("T")
Reading = Generator[None, None, T]
"""A result that needs more input: it yields when it needs the next chunk. Used with `yield from`."""

MAX_PARTS = 65_536
"""Maximum chunks, segments, blocks or boxes of one image: many times what encoders write, and 0.2 s of work."""

MAX_TAKE_BYTES = 32


class Reader:
    """One image's bytes, and its sides in pixels, 0 until they are known.

    It keeps the current chunk and at most MAX_TAKE_BYTES of the one before, whatever an image claims.
    """

    def __init__(self, max_side_px: int) -> None:
        self._max_side_px = max_side_px
        self._data = b""
        self._at = 0  # beyond the data if more is to be skipped
        self._over = False
        self._parts = 0
        self.width_px = 0
        self.height_px = 0

    def give(self, chunk: bytes) -> None:
        """Add the next bytes."""
        rest = self._data[self._at :]
        self._at = max(0, self._at - len(self._data))
        self._data = rest + chunk

    def end(self) -> None:
        """Declare that there are no more bytes."""
        self._over = True

    def take(self, count: int) -> Reading[bytes]:
        """Read exactly this many bytes, at most MAX_TAKE_BYTES."""
        assert count <= MAX_TAKE_BYTES
        while self._at + count > len(self._data):
            yield from self._more()
        self._at += count
        return self._data[self._at - count : self._at]

    def skip(self, count: int) -> None:
        """Skip this many bytes. The next read checks that they exist."""
        self._at += count

    def seek(self, pattern: re.Pattern[bytes], length: int) -> Reading[bool]:
        """Go to the first match of `pattern`, which is `length` bytes long; False if there is none up to the end."""
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
        """Skip blocks that begin with a one-byte length, and the empty block after them; False if there are none."""
        some = False
        while True:
            data, at = self._data, self._at
            while at < len(data) and data[at]:  # once in 255 bytes, so without a function call
                at += data[at] + 1
                some = True
            self._at = at
            if at < len(data):
                self._at += 1
                return some
            yield from self._more()

    def ended(self) -> Reading[bool]:
        """True if nothing is left."""
        while self._at >= len(self._data):
            if self._over and self._at == len(self._data):
                return True
            yield from self._more()
        return False

    def part(self) -> None:
        """Count one more part. Raises NotAnImage if there are too many."""
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise NotAnImage(f"more than {MAX_PARTS} parts")

    def sides(self, width_px: int, height_px: int) -> None:
        """Set the image's sides."""
        self.check_sides(width_px, height_px)
        self.width_px, self.height_px = width_px, height_px

    def check_sides(self, width_px: int, height_px: int) -> None:
        """Check the size of anything in the image. Raises NotAnImage."""
        if not width_px or not height_px:
            raise NotAnImage("a side of 0 pixels")
        if max(width_px, height_px) > self._max_side_px:
            raise NotAnImage(f"a side of more than {self._max_side_px} pixels")

    def _more(self) -> Reading[None]:
        if self._over:
            raise NotAnImage("it breaks off")
        yield
