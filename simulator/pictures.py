"""Real pictures: each shows its model, its prompt, its size and its number in the reply."""

import asyncio
import base64
import colorsys
import hashlib
import io
import random
import struct
import textwrap
import unicodedata
import zlib
from dataclasses import dataclass
from functools import cached_property
from html import escape

from PIL import Image, ImageDraw, ImageFont

CONTENT_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "svg": "image/svg+xml"}
PROMPT_CHARS_MAX = 400  # more would not be legible
KEPT_MAX = 32  # drawings kept for reuse
JPEG_SEGMENT_MAX = 65_533

# Combining accent: the character that replaces it, and by how many em it is raised over a small letter.
ACCENTS = {
    "\u0300": ("`", 0.0),
    "\u0301": ("´", 0.0),
    "\u0302": ("^", 0.1),
    "\u0303": ("~", 0.36),
    "\u0308": ("··", 0.37),
}
CAPITAL_EM = 0.17  # and a capital is this much taller

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class Picture:
    """What to draw. Equal pictures have equal bytes."""

    model: str  # public id
    prompt: str
    width: int
    height: int
    format: str  # a key of CONTENT_TYPES
    index: int = 0
    seed: int = 0
    bytes: int | None = None  # padded to about this size; never cut
    black: bool = False  # like a picture that a safety checker blackened
    compression: int = 100  # 0 to 100, of a JPEG or WebP
    transparent: bool = False  # outside an oval; no JPEG
    script: bool = False  # an SVG with a script in it

    @property
    def content_type(self) -> str:
        return CONTENT_TYPES[self.format]


@dataclass(frozen=True)
class Drawing:
    """An encoded picture."""

    data: bytes

    @cached_property
    def base64(self) -> bytes:
        return base64.b64encode(self.data)


class Studio:
    """Draws in worker threads, so that the event loop can go on."""

    def __init__(self) -> None:
        self._kept: dict[Picture, Drawing] = {}

    async def draw(self, picture: Picture, keep: bool = False) -> Drawing:
        """Draw a picture. With `keep` the drawing is kept and reused for every equal picture."""
        if picture in self._kept:
            return self._kept[picture]
        drawing = Drawing(await asyncio.to_thread(draw, picture))
        if keep:
            if len(self._kept) >= KEPT_MAX:
                del self._kept[next(iter(self._kept))]
            self._kept[picture] = drawing
        return drawing


def draw(picture: Picture) -> bytes:
    """Draw and encode an image of exactly the picture's size. About 30 ms for a PNG of 1024 × 1024, half for a JPEG."""
    if picture.format == "svg":
        return svg(picture)
    image = Image.new("RGB", (picture.width, picture.height)) if picture.black else paint(picture)
    if picture.transparent:
        image.putalpha(oval(picture))
    data = encode(image, picture.format, picture.compression)
    if picture.bytes is None or picture.bytes <= len(data):
        return data
    noise = random.Random(picture.seed).randbytes(picture.bytes - len(data))
    match picture.format:
        case "png":
            return pad_png(data, noise)
        case "jpeg":
            return pad_jpeg(data, noise)
    return encode(image, picture.format, picture.compression, xmp=noise)


def encode(image: Image.Image, image_format: str, compression: int, xmp: bytes = b"") -> bytes:
    file = io.BytesIO()
    match image_format:
        case "png":
            image.save(file, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
        case "jpeg":
            image.save(file, "JPEG", quality=min(compression, 95))
        case "webp":
            image.save(file, "WEBP", quality=min(compression, 80), method=0, xmp=xmp)
        case _:
            raise ValueError(f"no such image format: {image_format}")
    return file.getvalue()


def paint(picture: Picture) -> Image.Image:
    digest = hashlib.sha256(f"{picture.model}\0{picture.prompt}\0{picture.seed}\0{picture.index}".encode()).digest()
    image = background(digest).resize((picture.width, picture.height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image, "RGBA")
    short = min(picture.width, picture.height)
    for x, y, radius in zip(digest[0:4], digest[4:8], digest[8:12], strict=True):
        centre = (x / 255 * picture.width, y / 255 * picture.height)
        pen.circle(centre, short * (0.1 + radius / 1000), fill=(255, 255, 255, 14))

    margin = short * 0.07
    size = min((picture.width * picture.height) ** 0.5 / 19, picture.width / 17)
    title, small = ImageFont.load_default(size), ImageFont.load_default(size * 0.62)
    columns = int((picture.width - 2 * margin) / (size * 0.52))
    rows = int((picture.height - 2 * margin - size * 1.5) / (size * 1.5))
    prompt = unicodedata.normalize("NFC", picture.prompt[:PROMPT_CHARS_MAX])
    lines = textwrap.wrap(prompt, columns, max_lines=max(1, min(rows, 9)), placeholder=" …")
    for row, line in enumerate(lines, 1):
        write(pen, margin, margin + size * (row * 1.5 - 0.5), line, title, size)

    foot = picture.height - margin
    pen.line((margin, foot - size * 1.2, picture.width - margin, foot - size * 1.2), (255, 255, 255, 110), 2)
    pen.text((margin, foot), picture.model, "white", small, anchor="ls")
    label = f"{picture.width}x{picture.height}   #{picture.index}"
    pen.text((picture.width - margin, foot), label, "white", small, anchor="rs")
    return image


def oval(picture: Picture) -> Image.Image:
    """Make a mask: opaque inside an oval, transparent towards the corners."""
    mask = Image.new("L", (picture.width, picture.height))
    ImageDraw.Draw(mask).ellipse((0, 0, picture.width - 1, picture.height - 1), fill=255)
    return mask


def svg(picture: Picture) -> bytes:
    """Make a vector picture, padded with a comment."""
    digest = hashlib.sha256(f"{picture.model}\0{picture.prompt}\0{picture.seed}\0{picture.index}".encode()).digest()
    ground = "#000" if picture.black else f"hsl({digest[12] * 360 // 255} 55% 28%)"
    prompt = "".join(char for char in picture.prompt[:PROMPT_CHARS_MAX] if char.isprintable())
    label = f"{picture.model}   {picture.width}x{picture.height}   #{picture.index}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{picture.width}" height="{picture.height}"'
        f' viewBox="0 0 {picture.width} {picture.height}">',
        f'<rect width="100%" height="100%" fill="{ground}"/>',
        f'<text x="5%" y="15%" fill="#fff" font-size="40">{escape(prompt)}</text>',
        f'<text x="5%" y="95%" fill="#fff" font-size="24">{escape(label)}</text>',
        "<script>window.name = document.cookie</script>" if picture.script else "",
        "</svg>",
    ]
    data = "\n".join(parts).encode("utf-8", "replace")
    missing = (picture.bytes or 0) - len(data)
    return data + b"\n<!-- " + b"." * (missing - 10) + b" -->" if missing > 10 else data


def write(pen: ImageDraw.ImageDraw, x: float, baseline: float, text: str, font: Font, em: float) -> None:
    """Write one line. Pillow's own font has no accented letters, so an accent is drawn above its letter."""
    letters = ""
    for char in unicodedata.normalize("NFD", text):
        if char in ACCENTS and letters:
            accent, raised = ACCENTS[char]
            centre = x + font.getlength(letters) - font.getlength(letters[-1]) / 2
            lift = (raised + (CAPITAL_EM if letters[-1].isupper() else 0)) * em
            pen.text((centre, baseline - lift), accent, "white", font, anchor="ms")
        elif not unicodedata.combining(char):
            letters += char
    pen.text((x, baseline), letters, "white", font, anchor="ls")


def background(digest: bytes) -> Image.Image:
    """Make nine similar dark colours, which are stretched into a soft gradient."""
    hue = digest[12] / 255
    cells = Image.new("RGB", (3, 3))
    for cell in range(9):
        shift, light = digest[13 + cell] / 255, digest[22 + cell] / 255
        red, green, blue = colorsys.hls_to_rgb((hue + shift * 0.22) % 1, 0.16 + light * 0.24, 0.55)
        cells.putpixel((cell % 3, cell // 3), (int(red * 255), int(green * 255), int(blue * 255)))
    return cells


def pad_png(data: bytes, noise: bytes) -> bytes:
    """Add an ancillary private chunk right after IHDR, where OpenAI's pictures have their provenance."""
    head = 8 + 25
    chunk = b"ghPd" + noise
    padding = struct.pack(">I", len(noise)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data[:head] + padding + data[head:]


def pad_jpeg(data: bytes, noise: bytes) -> bytes:
    """Add comment segments right after the JFIF header."""
    head = 4 + struct.unpack(">H", data[4:6])[0]
    parts = [noise[start : start + JPEG_SEGMENT_MAX] for start in range(0, len(noise), JPEG_SEGMENT_MAX)]
    comments = [b"\xff\xfe" + struct.pack(">H", len(part) + 2) + part for part in parts]
    return data[:head] + b"".join(comments) + data[head:]
