"""What an image is, by its own bytes. Pure: no I/O."""

from dataclasses import dataclass

HEAD_BYTES = 16
"""Enough to know every format below."""


@dataclass(frozen=True, slots=True)
class Format:
    """An image format: its extension in our paths, and its content type."""

    extension: str
    content_type: str


PNG = Format("png", "image/png")
JPEG = Format("jpg", "image/jpeg")
WEBP = Format("webp", "image/webp")


class NotAnImage(Exception):
    """The bytes are not one whole image that we store."""


def sniff(head: bytes) -> Format:
    """The format by the first bytes, whatever a label says. Raises NotAnImage."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if head.startswith(b"\xff\xd8\xff"):
        return JPEG
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WEBP
    raise NotAnImage("unknown first bytes")
