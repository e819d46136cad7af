"""The format of an image by its first bytes, and its structure: made by hand, each broken in one place."""

import gzip
import struct
import zlib

import pytest

from proxy.media.formats import AVIF, GIF, HEAD_BYTES, JPEG, PNG, WEBP, Format, NotAnImage, sniff
from proxy.media.proof import Proof
from proxy.media.reader import MAX_PARTS

MAX_SIDE_PX = 4000

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", PNG),
        (b"\xff\xd8\xff\xe0", JPEG),
        (b"\xff\xd8\xff\xdb", JPEG),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", WEBP),
        (b"GIF87a", GIF),
        (b"GIF89a", GIF),
        (b"\x00\x00\x00\x14ftypavif\x00\x00\x00\x00mif1", AVIF),
        (b"\x00\x00\x00\x14ftypavis\x00\x00\x00\x00msf1", AVIF),
        (b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00miafavif", AVIF),
    ],
)
def test_the_format_is_known_by_the_first_bytes(head: bytes, kind: Format) -> None:
    """And by no label; what follows is not looked at."""
    assert sniff(head) == sniff(head + b"<svg>") == kind


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", "no bytes"),
        (b"\x89PNG", "unknown"),
        (b" \x89PNG\r\n\x1a\n", "unknown"),
        (b"\xff\xd8", "unknown"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "unknown"),
        (b"WEBP", "unknown"),
        (b"GIF88a", "unknown"),
        (b"%PDF-1.7", "unknown"),
        (b"BM\x00\x00", "unknown"),
        (b"II*\x00", "unknown"),
        (b"secret of theirs", "unknown"),
        (b"\x1f\x8b\x08\x00 and no deflate", "unknown"),
        (b"\xff\xfe\x00", "unknown"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIC"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1avif", "HEIC"),
        (b"\x00\x00\x00\x14ftypmif1\x00\x00\x00\x00miafavif", "HEIC"),
        (b"\x00\x00\x00\x14ftypmif1avif\x00\x00\x00\x00miaf", "HEIC"),
        (b"\x00\x00\x00\x14ftypisom\x00\x00\x00\x00mp42", "HEIC"),
        (b"\x00\x00\x00\x08ftyp", "HEIC"),
        (b"\x00\x00\x00\x00ftyp", "HEIC"),
        (b"\xff\xff\xff\xffftyp", "HEIC"),
        (SVG, "SVG"),
        (b"\xef\xbb\xbf \r\n\t" + SVG, "SVG"),
        (SVG.decode().encode("utf-16"), "SVG"),
        (b'<?xml version="1.0"?>\n<!-- <html> a > b -->\n' + SVG, "SVG"),
        (b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "x">' + SVG, "SVG"),
        (b'<!DOCTYPE svg [<!ENTITY a "b">]>' + SVG, "SVG"),
        (b'<s:svg xmlns:s="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<SVG>", "SVG"),
        (gzip.compress(SVG, mtime=0), "SVG"),
        (gzip.compress(b"\xef\xbb\xbf<?xml?>" + SVG, mtime=0)[:-9], "SVG"),
        (gzip.compress(b"no markup", mtime=0), "unknown"),
        (b"<!DOCTYPE html><html><svg>", "HTML"),
        (b"<html>", "HTML"),
        (b"\n<?xml?><html>", "HTML"),
        (b"<Error><Code>AccessDenied</Code></Error>", "markup"),
        (b"<svgs>", "markup"),
        (b"<!-- <svg>", "markup"),
    ],
)
def test_what_is_none_of_them_is_refused_in_words_of_ours(head: bytes, reason: str) -> None:
    """SVG first of all, in each of its wrappings. Nothing of what was sent is in the message."""
    with pytest.raises(NotAnImage, match=reason) as refused:
        sniff(head)
    assert not any(word in str(refused.value) for word in ("secret", "AccessDenied", "xmlns"))


def test_a_hostile_head_takes_no_time_and_no_memory() -> None:
    """Gzip of 100 MB, comments that never end, prefixes that go on: what is looked at is bounded."""
    for head in (
        gzip.compress(bytes(100_000_000)),
        b"<" + b"<!--" * 1023,
        b"<" * 4096,
        b"<a:" * 1365,
        b"<" + b"-" * 4095,
    ):
        with pytest.raises(NotAnImage):
            sniff(head[:HEAD_BYTES])


# --- structures by hand -----------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """Make a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int) -> bytes:
    """Make the header of a PNG."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def segment(marker: int, data: bytes = b"") -> bytes:
    """Make a segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def frame(width: int, height: int, marker: int = 0xC0) -> bytes:
    """Make a frame of a grey JPEG."""
    return segment(marker, struct.pack(">BHHBBBB", 8, height, width, 1, 1, 0x11, 0))


def riff(*chunks: bytes) -> bytes:
    """A WebP."""
    return b"RIFF" + struct.pack("<I", 4 + sum(map(len, chunks))) + b"WEBP" + b"".join(chunks)


def part(kind: bytes, data: bytes) -> bytes:
    """Make a part of a WebP."""
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def canvas(width: int, height: int) -> bytes:
    """Make a canvas of a WebP."""
    return part(b"VP8X", bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"))


def lossy(width: int, height: int, more: bytes = b"") -> bytes:
    """Make a lossy picture of a WebP."""
    return part(b"VP8 ", b"\x10\x00\x00\x9d\x01\x2a" + struct.pack("<HH", width, height) + more)


def lossless(width: int, height: int) -> bytes:
    """Make a lossless picture of a WebP."""
    return part(b"VP8L", b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14))


def screen(width: int, height: int, colours: int = 0) -> bytes:
    """A GIF's beginning."""
    return b"GIF89a" + struct.pack("<HHBBB", width, height, colours, 0, 0)


def picture(width: int, height: int, data: bytes = b"\x02ab\x00", colours: int = 0) -> bytes:
    """Make a picture of a GIF."""
    table = bytes(3 * 2 ** ((colours & 7) + 1)) if colours else b""
    return b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, colours) + table + b"\x08" + data


def box(kind: bytes, data: bytes = b"", *, wide: bool = False) -> bytes:
    """Make a box of an AVIF, its length in 32 or 64 bits."""
    if wide:
        return struct.pack(">I4sQ", 1, kind, len(data) + 16) + data
    return struct.pack(">I4s", len(data) + 8, kind) + data


def meta(*sides: tuple[int, int], wide: bool = False) -> bytes:
    """Make the meta box of an AVIF, with pictures of these sides."""
    extents = b"".join(box(b"ispe", struct.pack(">III", 0, *pair)) for pair in sides)
    properties = box(b"iprp", box(b"ipco", box(b"pixi", b"123456") + extents, wide=wide) + box(b"ipma", b"12"))
    return box(b"meta", bytes(4) + box(b"hdlr", b"pict") + properties, wide=wide)


SIGNATURE = b"\x89PNG\r\n\x1a\n"
IDAT, IEND = chunk(b"IDAT", b"pixels"), chunk(b"IEND")
SOI, EOI, APP0, TABLE = b"\xff\xd8", b"\xff\xd9", segment(0xE0, b"JFIF"), segment(0xDB, bytes(65))
SCAN = segment(0xDA, bytes(6)) + b"pix\xff\x00els\xff\xd0pix\xff\xff\xd1els"
GREY = SOI + APP0 + TABLE + frame(40, 30) + SCAN + EOI
FTYP, MDAT = box(b"ftyp", b"avif\x00\x00\x00\x00mif1"), box(b"mdat", b"pixels")

WHOLE: dict[str, tuple[Format, bytes]] = {
    "PNG": (PNG, SIGNATURE + header(40, 30) + IDAT + IEND),
    "PNG, pixels in parts, with text": (PNG, SIGNATURE + header(40, 30) + chunk(b"tEXt") + IDAT + IDAT + IEND),
    "PNG, an empty part": (PNG, SIGNATURE + header(40, 30) + chunk(b"IDAT") + IDAT + IEND),
    "JPEG": (JPEG, GREY),
    "JPEG, progressive": (JPEG, SOI + frame(40, 30, 0xC2) + SCAN + segment(0xC4, b"xx") + SCAN + SCAN + EOI),
    "JPEG, fill bytes": (JPEG, SOI + b"\xff\xff" + frame(40, 30) + SCAN + b"\xff\xff\xff" + EOI),
    "JPEG, an end inside of a segment": (JPEG, SOI + segment(0xE1, GREY) + frame(40, 30) + SCAN + EOI),
    "JPEG, a gain map": (JPEG, GREY + GREY.replace(frame(40, 30), frame(10, 8))),
    "JPEG, views and padding": (JPEG, GREY + bytes(9) + GREY + GREY + bytes(5)),
    "WebP, lossy": (WEBP, riff(lossy(40, 30, b"odd"))),
    "WebP, scaled": (WEBP, riff(lossy(40 | 0x4000, 30 | 0xC000))),
    "WebP, lossless": (WEBP, riff(lossless(40, 30))),
    "WebP, canvas": (WEBP, riff(canvas(40, 30), part(b"ALPH", b"a"), lossy(40, 30), part(b"XMP ", b"x"))),
    "WebP, animated": (WEBP, riff(canvas(40, 30), part(b"ANIM", bytes(6)), part(b"ANMF", bytes(24 + 10)))),
    "GIF": (GIF, screen(40, 30, 0x81) + bytes(12) + picture(40, 30) + b"\x3b"),
    "GIF, local colours": (GIF, screen(40, 30) + picture(4, 3, colours=0x87) + b"\x3b"),
    "GIF, extensions": (GIF, screen(40, 30) + b"\x21\xf9\x04abcd\x00\x21\xfe\x01\x3b\x00" + picture(40, 30) + b"\x3b"),
    "AVIF": (AVIF, FTYP + meta((40, 30)) + MDAT),
    "AVIF, wide lengths": (AVIF, FTYP + meta((40, 30), wide=True) + box(b"mdat", b"pixels", wide=True)),
    "AVIF, tiles and thumbnail": (AVIF, FTYP + MDAT + meta((20, 15), (40, 30), (8, 8)) + box(b"free")),
}

BROKEN: dict[str, tuple[Format, bytes, str]] = {
    "PNG, no header": (PNG, SIGNATURE + IDAT + IEND, "begin with its header"),
    "PNG, a header of 12 bytes": (PNG, SIGNATURE + chunk(b"IHDR", bytes(12)) + IDAT + IEND, "begin with its header"),
    "PNG, no pixels": (PNG, SIGNATURE + header(40, 30) + IEND, "no pixels"),
    "PNG, empty pixels": (PNG, SIGNATURE + header(40, 30) + chunk(b"IDAT") + IEND, "no pixels"),
    "PNG, no end": (PNG, SIGNATURE + header(40, 30) + IDAT, "breaks off"),
    "PNG, no checksum": (PNG, SIGNATURE + header(40, 30) + IDAT + IEND[:-1], "breaks off"),
    "PNG, a full end": (PNG, SIGNATURE + header(40, 30) + IDAT + chunk(b"IEND", b"x"), "not empty"),
    "PNG, a long chunk": (PNG, SIGNATURE + header(40, 30) + b"\x80\x00\x00\x00IDAT", "broken chunk"),
    "PNG, a chunk of 2 GB": (PNG, SIGNATURE + header(40, 30) + b"\x7f\xff\xff\xffIDAT" + IEND, "breaks off"),
    "PNG, a type of digits": (PNG, SIGNATURE + header(40, 30) + chunk(b"ID4T") + IDAT + IEND, "broken chunk"),
    "PNG, no width": (PNG, SIGNATURE + header(0, 30) + IDAT + IEND, "0 pixels"),
    "PNG, no height": (PNG, SIGNATURE + header(40, 0) + IDAT + IEND, "0 pixels"),
    "PNG, too wide": (PNG, SIGNATURE + header(MAX_SIDE_PX + 1, 30), "4000 pixels"),
    "PNG, too high": (PNG, SIGNATURE + header(40, 2**32 - 1), "4000 pixels"),
    "JPEG, no frame": (JPEG, SOI + APP0 + SCAN + EOI, "out of place"),
    "JPEG, no scan": (JPEG, SOI + APP0 + frame(40, 30) + EOI, "no pixels"),
    "JPEG, nothing": (JPEG, SOI + EOI, "no pixels"),
    "JPEG, no end": (JPEG, GREY[:-2], "breaks off"),
    "JPEG, half an end": (JPEG, GREY[:-1], "breaks off"),
    "JPEG, an end in a segment alone": (JPEG, SOI + segment(0xE1, GREY) + frame(40, 30) + SCAN, "breaks off"),
    "JPEG, a segment that goes on": (JPEG, SOI + frame(40, 30) + b"\xff\xda\xff\xff" + EOI, "breaks off"),
    "JPEG, two frames": (JPEG, SOI + frame(40, 30) + frame(40, 30) + SCAN + EOI, "out of place"),
    "JPEG, begun twice": (JPEG, SOI + SOI + frame(40, 30) + SCAN + EOI, "out of place"),
    "JPEG, a length of 1": (JPEG, SOI + b"\xff\xe0\x00\x01" + frame(40, 30) + SCAN + EOI, "broken length"),
    "JPEG, no marker": (JPEG, SOI + APP0 + b"x" + frame(40, 30) + SCAN + EOI, "no marker"),
    "JPEG, a reserved marker in a scan": (JPEG, SOI + frame(40, 30) + SCAN + b"\xff\x02\x00\x02" + EOI, "out of place"),
    "JPEG, a short frame": (JPEG, SOI + segment(0xC0, b"\x08\x00\x1e\x00\x28\x01") + SCAN + EOI, "frame header"),
    "JPEG, no width": (JPEG, SOI + frame(0, 30) + SCAN + EOI, "0 pixels"),
    "JPEG, no height": (JPEG, SOI + frame(40, 0) + SCAN + EOI, "0 pixels"),
    "JPEG, a height that comes later": (JPEG, GREY[:-2] + segment(0xDC, b"\x00\x1e") + EOI, "comes later"),
    "JPEG, too wide": (JPEG, SOI + frame(MAX_SIDE_PX + 1, 30), "4000 pixels"),
    "JPEG, a second one too high": (JPEG, GREY + SOI + frame(40, MAX_SIDE_PX + 1), "4000 pixels"),
    "JPEG, a second one broken off": (JPEG, GREY + GREY[:-2], "breaks off"),
    "JPEG, half a second one": (JPEG, GREY + b"\xff", "breaks off"),
    "JPEG, junk": (JPEG, GREY + b"junk", "bytes after its end"),
    "JPEG, junk after padding": (JPEG, GREY + bytes(9) + b"junk", "bytes after its end"),
    "WebP, no chunks": (WEBP, riff(), "no pixels"),
    "WebP, a canvas alone": (WEBP, riff(canvas(40, 30)), "no pixels"),
    "WebP, an empty frame": (WEBP, riff(canvas(40, 30), part(b"ANMF", bytes(16))), "no pixels"),
    "WebP, no header": (WEBP, riff(part(b"ALPH", b"ab"), lossy(40, 30)), "begin with its header"),
    "WebP, longer than it says": (WEBP, riff(lossy(40, 30)) + b"x", "after its end"),
    "WebP, shorter than it says": (WEBP, riff(lossy(40, 30))[:-1], "breaks off"),
    "WebP, no pad byte": (WEBP, riff(lossy(40, 30, b"odd")[:-1]), "leaves the file"),
    "WebP, a length of 0": (WEBP, b"RIFF\x00\x00\x00\x00WEBP" + lossy(40, 30), "leaves the file"),
    "WebP, a chunk of 4 GB": (WEBP, riff(b"VP8 \xff\xff\xff\xff"), "leaves the file"),
    "WebP, half a chunk": (WEBP, riff(lossy(40, 30), b"XMP "), "breaks off"),
    "WebP, a picture of another size": (WEBP, riff(canvas(40, 30), lossy(40, 31)), "canvas's size"),
    "WebP, no start code": (WEBP, riff(part(b"VP8 ", bytes(10))), "broken header"),
    "WebP, no key frame": (WEBP, riff(lossy(40, 30).replace(b"\x10\x00\x00", b"\x11\x00\x00")), "broken header"),
    "WebP, a short picture": (WEBP, riff(part(b"VP8 ", b"\x10\x00\x00\x9d\x01\x2a")), "broken header"),
    "WebP, no lossless signature": (WEBP, riff(part(b"VP8L", bytes(5))), "broken header"),
    "WebP, no width": (WEBP, riff(lossy(0, 30)), "0 pixels"),
    "WebP, too wide": (WEBP, riff(canvas(MAX_SIDE_PX + 1, 30)), "4000 pixels"),
    "GIF, no picture": (GIF, screen(40, 30) + b"\x21\xfe\x01x\x00\x3b", "no pixels"),
    "GIF, an empty picture": (GIF, screen(40, 30) + picture(40, 30, b"\x00") + b"\x3b", "no pixels"),
    "GIF, no trailer": (GIF, screen(40, 30) + picture(40, 30), "breaks off"),
    "GIF, a block that goes on": (GIF, screen(40, 30) + picture(40, 30, b"\xffab\x00") + b"\x3b", "breaks off"),
    "GIF, junk": (GIF, screen(40, 30) + picture(40, 30) + b"\x3b\x3b", "after its end"),
    "GIF, an unknown block": (GIF, screen(40, 30) + b"\x00" + picture(40, 30) + b"\x3b", "no known kind"),
    "GIF, no width": (GIF, screen(0, 30) + picture(40, 30) + b"\x3b", "0 pixels"),
    "GIF, too high": (GIF, screen(40, MAX_SIDE_PX + 1), "4000 pixels"),
    "GIF, a picture too wide": (GIF, screen(40, 30) + picture(MAX_SIDE_PX + 1, 30) + b"\x3b", "4000 pixels"),
    "AVIF, no meta": (AVIF, FTYP + MDAT, "no pixels"),
    "AVIF, no sides": (AVIF, FTYP + meta() + MDAT, "no pixels"),
    "AVIF, no mdat": (AVIF, FTYP + meta((40, 30)), "no pixels"),
    "AVIF, an empty mdat": (AVIF, FTYP + meta((40, 30)) + box(b"mdat"), "no pixels"),
    "AVIF, broken off": (AVIF, (FTYP + meta((40, 30)) + MDAT)[:-1], "breaks off"),
    "AVIF, a box without a length": (AVIF, FTYP + meta((40, 30)) + b"\x00\x00\x00\x00mdatpixels", "without a length"),
    "AVIF, a length of 7": (AVIF, FTYP + meta((40, 30)) + b"\x00\x00\x00\x07mdat", "without a length"),
    "AVIF, a wide length of 8": (AVIF, FTYP + struct.pack(">I4sQ", 1, b"mdat", 8), "without a length"),
    "AVIF, a box of 2^63 bytes": (AVIF, FTYP + meta((40, 30)) + struct.pack(">I4sQ", 1, b"mdat", 2**63), "breaks off"),
    "AVIF, a box that leaves meta": (AVIF, FTYP + box(b"meta", bytes(4) + b"\x00\x00\x01\x00iprp") + MDAT, "leaves"),
    "AVIF, a meta of 2 bytes": (AVIF, FTYP + box(b"meta", b"12") + MDAT, "leaves"),
    "AVIF, short sides": (
        AVIF,
        FTYP + meta((40, 30)).replace(b"\x00\x00\x00\x14ispe", b"\x00\x00\x00\x10ispe"),
        "sides",
    ),
    "AVIF, two files": (AVIF, 2 * (FTYP + meta((40, 30)) + MDAT), "two files"),
    "AVIF, no width": (AVIF, FTYP + meta((0, 30)) + MDAT, "0 pixels"),
    "AVIF, too high": (AVIF, FTYP + meta((40, 2**32 - 1)), "4000 pixels"),
    "AVIF, a thumbnail too wide": (AVIF, FTYP + meta((MAX_SIDE_PX, 30), (MAX_SIDE_PX + 1, 1)), "4000 pixels"),
}


def sides_px(kind: Format, data: bytes, size: int) -> tuple[int, int]:
    """Sides that the proof finds in chunks of `size` bytes. Raises NotAnImage."""
    proof = Proof(kind, MAX_SIDE_PX)
    for at in range(0, len(data), size):
        proof.feed(data[at : at + size])
    proof.finish()
    return proof.width_px, proof.height_px


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_structure_is_proven_at_any_chunk_borders(name: str) -> None:
    """And its sides are those of its header."""
    kind, data = WHOLE[name]
    assert sniff(data[:HEAD_BYTES]) == kind
    for size in (1, 2, 3, 7, len(data)):
        assert sides_px(kind, data, size) == (40, 30)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_structure_is_refused_for_its_reason_at_any_chunk_borders(name: str) -> None:
    """A picture that is too large is refused without the rest, which here never comes."""
    kind, data, reason = BROKEN[name]
    for size in (1, 2, 3, 7, len(data)):
        with pytest.raises(NotAnImage, match=reason):
            sides_px(kind, data, size)


@pytest.mark.parametrize(
    ("kind", "beginning", "part_"),
    [
        (PNG, SIGNATURE + header(40, 30), chunk(b"IDAT")),
        (JPEG, SOI, segment(0xE0)),
        (JPEG, b"", GREY),
        (WEBP, b"RIFF\xfe\xff\xff\xffWEBP" + canvas(40, 30), part(b"XMP ", b"")),
        (GIF, screen(40, 30), b"\x21\xfe\x00"),
        (AVIF, FTYP, box(b"free")),
    ],
)
def test_parts_without_end_are_refused(kind: Format, beginning: bytes, part_: bytes) -> None:
    """However small they are: each takes time, and their number has a limit."""
    proof = Proof(kind, MAX_SIDE_PX)
    proof.feed(beginning)

    def feed_on() -> None:
        for _ in range(MAX_PARTS // 1000 + 1):
            proof.feed(part_ * 1000)

    with pytest.raises(NotAnImage, match=f"more than {MAX_PARTS} parts"):
        feed_on()
