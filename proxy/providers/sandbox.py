"""The sandbox's upstream: a labelled picture, drawn in this process out of the order and nothing else.

It is a PNG with a palette, made with zlib alone: the gateway needs no imaging library for it.
"""

import asyncio
import re
import unicodedata
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from proxy.media.png import SIGNATURE, chunk
from proxy.ports import Chunks, Order, Picture, Source

SERVED = "sandbox"
"""The name that a reply of the sandbox gives as the maker of its images."""

EXCERPT_CHARACTERS = 32
"""Characters of the prompt in the picture: enough to distinguish one order from another."""

_FONT = """
A     B     C     D     E     F     G     H     I     J     K     L     M
.###. ####. .###. ####. ##### ##### .###. #...# .###. ..### #...# #.... #...#
#...# #...# #...# #...# #.... #.... #...# #...# ..#.. ...#. #..#. #.... ##.##
#...# #...# #.... #...# #.... #.... #.... #...# ..#.. ...#. #.#.. #.... #.#.#
##### ####. #.... #...# ####. ####. #.### ##### ..#.. ...#. ##... #.... #.#.#
#...# #...# #.... #...# #.... #.... #...# #...# ..#.. ...#. #.#.. #.... #...#
#...# #...# #...# #...# #.... #.... #...# #...# ..#.. #..#. #..#. #.... #...#
#...# ####. .###. ####. ##### #.... .#### #...# .###. .##.. #...# ##### #...#

N     O     P     Q     R     S     T     U     V     W     X     Y     Z
#...# .###. ####. .###. ####. .#### ##### #...# #...# #...# #...# #...# #####
#...# #...# #...# #...# #...# #.... ..#.. #...# #...# #...# #...# #...# ....#
##..# #...# #...# #...# #...# #.... ..#.. #...# #...# #...# .#.#. .#.#. ...#.
#.#.# #...# ####. #...# ####. .###. ..#.. #...# #...# #.#.# ..#.. ..#.. ..#..
#..## #...# #.... #.#.# #.#.. ....# ..#.. #...# #...# #.#.# .#.#. ..#.. .#...
#...# #...# #.... #..#. #..#. ....# ..#.. #...# .#.#. ##.## #...# ..#.. #....
#...# .###. #.... .##.# #...# ####. ..#.. .###. ..#.. #...# #...# ..#.. #####

0     1     2     3     4     5     6     7     8     9
.###. ..#.. .###. ##### ...#. ##### ..##. ##### .###. .###.
#...# .##.. #...# ...#. ..##. #.... .#... ....# #...# #...#
#..## ..#.. ....# ..#.. .#.#. ####. #.... ...#. #...# #...#
#.#.# ..#.. ...#. ...#. #..#. ....# ####. ..#.. .###. .####
##..# ..#.. ..#.. ....# ##### ....# #...# .#... #...# ....#
#...# ..#.. .#... #...# ...#. #...# #...# .#... #...# ...#.
.###. .###. ##### .###. ...#. .###. .###. .#... .###. .##..

-     .     /     ,     :     '     !     ?     (     )     +     &     _
..... ..... ..... ..... ..... ..#.. ..#.. .###. ...#. .#... ..... .##.. .....
..... ..... ....# ..... ..#.. ..#.. ..#.. #...# ..#.. ..#.. ..#.. #..#. .....
..... ..... ...#. ..... ..#.. ..... ..#.. ....# .#... ...#. ..#.. #.#.. .....
.###. ..... ..#.. ..... ..... ..... ..#.. ...#. .#... ...#. ##### .#... .....
..... ..... .#... ..##. ..#.. ..... ..#.. ..#.. .#... ...#. ..#.. #.#.# .....
..... .##.. #.... ..#.. ..#.. ..... ..... ..... ..#.. ..#.. ..#.. #..#. .....
..... .##.. ..... .#... ..... ..... ..#.. ..#.. ...#. .#... ..... .##.# #####
"""
_CELL, _ROWS = 6, 7
"""A glyph is 5 dots wide, with one dot of space after it, and 7 dots high."""


def _glyphs() -> dict[str, list[str]]:
    """Return character → the seven rows of its glyph, in `#` and `.`."""
    glyphs = {" ": ["....."] * _ROWS}
    for block in _FONT.strip().split("\n\n"):
        names, *rows = (line.split() for line in block.splitlines())
        glyphs |= {name: [row[i] for row in rows] for i, name in enumerate(names)}
    return glyphs


_GLYPHS = _glyphs()
_PIXELS = re.compile(r"([1-9][0-9]*)x([1-9][0-9]*)")

_PAPER, _DIM, _INK, _ACCENT = "0123"
"""Places in the palette, as hexadecimal digits: a row of pixels is written with them."""

_COLOURS = ("10151f", "8d98ab", "f5f7fa")
_ACCENTS = ("f5a524", "36c2a8", "6c8cff", "f0609e", "9bd14b", "c58bff", "4cc3f0", "ff7f50")
"""Accent colours. Each image of an order takes the next one, so that eight in a row are easy to distinguish."""


PIECE_BYTES = 64 * 1024
"""The longest piece of a picture that is passed on at a time."""


def pictures(order: Order) -> list[Picture]:
    """Return all images of an order. Each is drawn in a thread when it is opened: 2 ms of work for the largest size."""

    def drawn(number: int) -> Picture:
        @asynccontextmanager
        async def opened() -> AsyncIterator[Source]:
            png = await asyncio.to_thread(draw, order, number)
            yield Source(_pieces(png), len(png))

        return Picture(number, opened, inline=False)

    return [drawn(number) for number in range(order.n)]


def draw(order: Order, number: int) -> bytes:
    """Draw an order's image `number`, from 0, as a whole PNG: it shows the order's data, and that it is the sandbox."""
    width, height = _sides(order.size)
    palette = bytes.fromhex("".join((*_COLOURS, _ACCENTS[number % len(_ACCENTS)])))
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((4, 3, 0, 0, 0))  # 4 bits, by the palette
    pixels = zlib.compress(b"".join(_scanlines(_rows(order, number, width, height))), 1)
    parts = ((b"IHDR", header), (b"PLTE", palette), (b"IDAT", pixels), (b"IEND", b""))
    return SIGNATURE + b"".join(chunk(kind, data) for kind, data in parts)


def excerpt(prompt: str) -> str:
    """Return the beginning of a prompt, without accents and without characters that the font does not have."""
    plain = unicodedata.normalize("NFKD", " ".join(prompt.split()).upper())
    known = "".join(character for character in plain if character in _GLYPHS).strip()
    return known if len(known) <= EXCERPT_CHARACTERS else known[: EXCERPT_CHARACTERS - 3].rstrip() + "..."


async def _pieces(png: bytes) -> Chunks:
    for at in range(0, len(png), PIECE_BYTES):
        yield png[at : at + PIECE_BYTES]


def _sides(size: str) -> tuple[int, int]:
    """Return the sides in pixels; a catalogue may have sizes that are not pixels, which are drawn as a square."""
    sides = _PIXELS.fullmatch(size)
    return (int(sides[1]), int(sides[2])) if sides else (1024, 1024)


def _rows(order: Order, number: int, width: int, height: int) -> list[str]:
    """Draw the picture from top to bottom, one digit for each pixel."""
    step = min(width, height) // 128
    band = max(2, height // 16)
    lines = (
        ("SANDBOX", _INK, width),
        (order.model_id.upper(), _ACCENT, step),
        (f"{order.size.upper()}   {number + 1} OF {order.n}", _INK, step * 5 // 8),
        (excerpt(order.prompt), _DIM, step * 5 // 8),
    )
    body = [row for line in lines if line[0] for row in (*_text(*line, width), *_blank(width, 5 * step))]
    foot = _text("TEST KEY - NOTHING WAS CHARGED", _DIM, step // 2, width) + _blank(width, 5 * step)
    free = height - 2 * band - len(body) - len(foot)
    rows = _stripes(width, band) + _blank(width, free // 2) + body + _blank(width, free - free // 2) + foot
    return (rows + _stripes(width, band))[:height]


def _blank(width: int, rows: int) -> list[str]:
    return [_PAPER * width] * rows


def _stripes(width: int, rows: int) -> list[str]:
    pattern = (_ACCENT * rows + _PAPER * rows) * (width // (2 * rows) + 2)
    return [pattern[y : y + width] for y in range(rows)]


def _text(text: str, colour: str, largest: int, width: int) -> list[str]:
    """Draw a line of text in the middle: its dots are squares of at most `largest` pixels, so that a margin is left."""
    scale = max(1, min(largest, width * 7 // 8 // (_CELL * len(text))))
    rows = []
    for y in range(_ROWS):
        dots = ".".join(_GLYPHS[character][y] for character in text)
        row = "".join((colour if dot == "#" else _PAPER) * scale for dot in dots)
        rows += [row[:width].center(width, _PAPER)] * scale
    return rows


def _scanlines(rows: list[str]) -> Iterator[bytes]:
    """Pack each row, two pixels a byte; a row equal to the one above it is written as such (filter "Up", all zeros)."""
    packed_bytes, above = (len(rows[0]) + 1) // 2, ""
    same = b"\2" + bytes(packed_bytes)
    for row in rows:
        yield same if row == above else b"\0" + bytes.fromhex(row.ljust(2 * packed_bytes, _PAPER))
        above = row
