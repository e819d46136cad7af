"""The check that streamed bytes are one whole image of their format. Pure."""

from proxy.media import avif, gif, jpeg, png, webp
from proxy.media.formats import AVIF, GIF, JPEG, PNG, WEBP, Format, NotAnImage
from proxy.media.reader import Reader, Reading

WALKERS = {PNG: png.walk, JPEG: jpeg.walk, WEBP: webp.walk, GIF: gif.walk, AVIF: avif.walk}


class Proof:
    """Checks the structure of one image from its head to its end, without decoding pixels.

    `feed` all chunks, then `finish`. If either raises NotAnImage, neither may be called again. Less than 1 KiB is kept
    between chunks. A chunk of 64 KiB takes 50 ms at worst, if its bytes are made to be slow.
    """

    def __init__(self, kind: Format, max_side_px: int) -> None:
        self._reader = Reader(max_side_px)
        self._walk = _whole(kind, self._reader)

    @property
    def width_px(self) -> int:
        """Width in pixels; 0 until the header has been read."""
        return self._reader.width_px

    @property
    def height_px(self) -> int:
        """Height in pixels; 0 until the header has been read."""
        return self._reader.height_px

    def feed(self, chunk: bytes) -> None:
        """Check the next bytes, in chunks of any length."""
        self._reader.give(chunk)
        next(self._walk)

    def finish(self) -> None:
        """Declare the end of the bytes, and check that they were a whole image."""
        self._reader.end()
        for _ in self._walk:
            raise AssertionError("it wants to read on after the end")


def _whole(kind: Format, image: Reader) -> Reading[None]:
    yield from WALKERS[kind](image)
    if not (yield from image.ended()):
        raise NotAnImage("bytes after its end")
