"""Small real images of every kind that Pillow writes, for what must take each of them, and none that is not whole."""

import io
import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image, PngImagePlugin

from proxy.media.formats import AVIF, FORMATS, GIF, JPEG, PNG, WEBP, Format

SIDES_PX = (19, 14)
C2PA_BOX = b"\x00\x00\x00\x1ejumb" + bytes(22)


def noise(mode: str, sides_px: tuple[int, int] = SIDES_PX) -> Image.Image:
    """Random pixels, the same for the same mode and size."""
    if mode == "P":
        return noise("RGB", sides_px).quantize(64)
    chance = random.Random(f"{mode} {sides_px}")
    width, height = sides_px
    bits = {"1": 1, "I;16": 16}.get(mode, 8 * len(Image.new(mode, (1, 1)).getbands()))
    return Image.frombytes(mode, sides_px, chance.randbytes(-(-width * bits // 8) * height))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Encode as a file in Pillow's format of that name."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def small_images() -> dict[str, tuple[Format, bytes]]:
    """Name → format and bytes, all of SIDES_PX."""
    return {f"{kind.extension} {name}": (kind, data) for kind in FORMATS for name, data in _WAYS[kind]()}


def with_c2pa(png: bytes) -> bytes:
    """The same picture with a manifest's chunk after its header, where C2PA puts it."""
    after_header = 8 + 25
    chunk = b"caBX" + C2PA_BOX
    chunk = struct.pack(">I", len(C2PA_BOX)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png[:after_header] + chunk + png[after_header:]


def _pngs() -> Iterator[tuple[str, bytes]]:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield mode, encoded(noise(mode), "PNG")
    text = PngImagePlugin.PngInfo()
    text.add_itxt("prompt", "a fox, clé", zip=True)
    yield "with text", encoded(noise("RGB"), "PNG", pnginfo=text, dpi=(72, 72), icc_profile=b"profile")
    yield "animated", encoded(noise("RGB"), "PNG", save_all=True, append_images=[noise("RGB").rotate(180)])
    yield "with C2PA", with_c2pa(encoded(noise("RGB"), "PNG"))


def _jpegs() -> Iterator[tuple[str, bytes]]:
    for mode in ("L", "RGB", "CMYK"):
        yield f"baseline {mode}", encoded(noise(mode), "JPEG")
    yield "progressive", encoded(noise("RGB"), "JPEG", progressive=True, quality=95)
    yield "with restarts", encoded(noise("RGB"), "JPEG", restart_marker_blocks=1, quality=95)
    yield (
        "optimised, with comment and profile",
        encoded(noise("RGB"), "JPEG", optimize=True, comment=b"\xff\xd9", icc_profile=b"profile"),
    )
    yield "with a thumbnail", encoded(noise("RGB"), "JPEG", exif=_exif_with(encoded(noise("RGB", (8, 8)), "JPEG")))
    yield "with two views", encoded(noise("RGB"), "MPO", save_all=True, append_images=[noise("RGB", (9, 7))])


def _exif_with(thumbnail: bytes) -> bytes:
    """An empty first directory, and a second one that tells where the thumbnail is: a JPEG with an end of its own."""
    directory = struct.pack("<HHHLLHHLLL", 2, 0x201, 4, 1, 44, 0x202, 4, 1, len(thumbnail), 0)
    return b"Exif\x00\x00II*\x00" + struct.pack("<LHL", 8, 0, 14) + directory + thumbnail


def _webps() -> Iterator[tuple[str, bytes]]:
    yield "lossy", encoded(noise("RGB"), "WEBP", quality=40)
    yield "lossless", encoded(noise("RGB"), "WEBP", lossless=True)
    yield "lossy with alpha", encoded(noise("RGBA"), "WEBP")
    yield "lossless with alpha", encoded(noise("RGBA"), "WEBP", lossless=True)
    yield "animated", encoded(noise("RGB"), "WEBP", save_all=True, append_images=[noise("RGBA")])
    yield "with metadata", encoded(noise("RGB"), "WEBP", exif=_exif_with(b""), icc_profile=b"profile", xmp=b"<x/>")


def _gifs() -> Iterator[tuple[str, bytes]]:
    yield "static", encoded(noise("P"), "GIF")
    yield "grey", encoded(noise("L"), "GIF", comment=b"\x3b comment")
    yield "transparent", encoded(noise("P"), "GIF", transparency=3, interlace=0)
    yield "animated", encoded(noise("P"), "GIF", save_all=True, append_images=[noise("P").rotate(180)], loop=0)


def _avifs() -> Iterator[tuple[str, bytes]]:
    yield "lossy", encoded(noise("RGB"), "AVIF", quality=30)
    yield "with alpha", encoded(noise("RGBA"), "AVIF", quality=30)
    yield "animated", encoded(noise("RGB"), "AVIF", quality=30, save_all=True, append_images=[noise("RGB").rotate(180)])
    yield "with metadata", encoded(noise("RGB"), "AVIF", quality=30, exif=_exif_with(b""), icc_profile=_icc())


def _icc() -> bytes:
    return bytes(36) + b"acsp" + bytes(88)


_WAYS = {PNG: _pngs, JPEG: _jpegs, WEBP: _webps, GIF: _gifs, AVIF: _avifs}
