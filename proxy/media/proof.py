"""The proof that bytes are one whole image of their format, while they go by. Pure."""

from proxy.media import avif, gif, jpeg, png, webp
from proxy.media.formats import AVIF, GIF, JPEG, PNG, WEBP, Format, NotAnImage
from proxy.media.reader import Reader, Reading

WALKERS = {PNG: png.walk, JPEG: jpeg.walk, WEBP: webp.walk, GIF: gif.walk, AVIF: avif.walk}


class Proof:
    """Walks along the structure of one image, from its head to its end; pixels are not decoded.

    `feed` all chunks, then `finish`. Either raises NotAnImage, and then neither may be called again. Less than 1 KiB is
    kept between chunks, and a chunk of 64 KiB takes 50 ms where its bytes are made to take long.
    """

    def __init__(self, kind: Format, max_side_px: int) -> None:
        self._reader = Reader(max_side_px)
        self._walk = _whole(kind, self._reader)

    @property
    def width_px(self) -> int:
        """0 until the header has gone by."""
        return self._reader.width_px

    @property
    def height_px(self) -> int:
        """0 until the header has gone by."""
        return self._reader.height_px

    def feed(self, chunk: bytes) -> None:
        """The next bytes, in chunks of any length."""
        self._reader.give(chunk)
        next(self._walk)

    def finish(self) -> None:
        """There are no more bytes: was it a whole image?"""
        self._reader.end()
        for _ in self._walk:
            raise AssertionError("it wants to read on after the end")


def _whole(kind: Format, image: Reader) -> Reading[None]:
    yield from WALKERS[kind](image)
    if not (yield from image.ended()):
        raise NotAnImage("bytes after its end")
