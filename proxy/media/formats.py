"""The format of an image, from its first bytes. Pure: no I/O."""

import re
import zlib
from dataclasses import dataclass

HEAD_BYTES = 4096
"""Bytes that show the format, or what else it is, and most images' sides."""


@dataclass(frozen=True, slots=True)
class Format:
    """An image format: its extension in our paths, and its content type."""

    extension: str
    content_type: str


PNG = Format("png", "image/png")
JPEG = Format("jpg", "image/jpeg")
WEBP = Format("webp", "image/webp")
GIF = Format("gif", "image/gif")
AVIF = Format("avif", "image/avif")
FORMATS = (PNG, JPEG, WEBP, GIF, AVIF)


class NotAnImage(Exception):
    """The bytes are not one whole image that we store. The message is ours and contains nothing of theirs."""

    span_code = "bad_image"


def sniff(head: bytes) -> Format:
    """Find the format from the first HEAD_BYTES, or from all bytes if there are fewer, not from a label.

    Raises NotAnImage.
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if head.startswith(b"\xff\xd8\xff"):
        return JPEG
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WEBP
    if head.startswith((b"GIF87a", b"GIF89a")):
        return GIF
    if head[4:8] == b"ftyp":
        return _by_brands(head)
    raise NotAnImage(_what_else(head))


_AVIF = frozenset({b"avif", b"avis"})
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})


def _by_brands(head: bytes) -> Format:
    """Tell AVIF from similar formats: a major brand, a version, then the compatible brands."""
    length = int.from_bytes(head[:4], "big")
    major, _, *others = [head[at : at + 4] for at in range(8, max(16, min(length, len(head))), 4)]
    if major in _HEIC or not _AVIF & {major, *others}:
        raise NotAnImage("HEIC or a film, and no AVIF")
    return AVIF


_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_ROOT = re.compile(r"<(?:!doctype\s+)?(?:[\w-]+:)?(svg|html)\b", re.IGNORECASE)


def _what_else(head: bytes) -> str:
    """Give a reason for the log. SVG can contain scripts, so it is not stored, although senders call it an image."""
    if not head:
        return "no bytes"
    if head.startswith(b"\x1f\x8b"):
        head = _unpacked(head)
    text = head.decode("utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig", "replace").lstrip()
    if not text.startswith("<"):
        return "unknown first bytes"
    root = _ROOT.search(_COMMENT.sub("", text))
    return f"{root[1].upper()}, which is not stored" if root else "markup, and no image"


def _unpacked(head: bytes) -> bytes:
    """Unpack the beginning of gzip data, as far as possible."""
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, HEAD_BYTES)
    except zlib.error:
        return b""
