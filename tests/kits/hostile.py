"""A malicious upstream: fal's direct call, OpenAI's images and an image host, as an order's prompt wants it.
An attack is either on the host of the image (`by_url`) or in the provider's own reply (`inline`). Its text contains
`WORDS`, and so does every picture that must not be published. `{here}` in it is the upstream's own `host:port`, which
is a listed image host; `{inside}` is another listener's, which nobody may ever call.
"""

import asyncio
import base64
import gzip
import io
import json
import struct
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

from tests.fuzz.images import encoded, noise
from tests.kits.raw_server import Peer, raw_server
from tests.kits.system import FLUX, GPT

WORDS = "WORDS-OF-AN-ATTACKER"
FAL_KEY = "fal-key-that-no-image-host-may-see"
OPENAI_KEY = "openai-key-that-no-image-host-may-see"
HONEST = "honest"
"""Prompt of a good order."""

DRIP_S = 0.05
ENDLESS = bytes(256 * 1024)
BOMB = gzip.compress(bytes(20_000_000))

PACE_S = 0.01
"""Pause between two pieces of endless work: some MB a second, so that tests do not compete for the processor."""

Json = dict[str, Any]


# --- What is sent -----------------------------------------------------------------------------------------------------


@dataclass
class Visit(Peer):
    """One connection. It knows the addresses in an answer, and counts the bytes sent to the gateway."""

    addresses: dict[bytes, bytes]
    path: bytes = b""
    sent_bytes: int = 0

    def filled(self, data: bytes) -> bytes:
        """Insert the addresses."""
        for name, address in self.addresses.items():
            data = data.replace(name, address)
        return data

    async def send(self, data: bytes) -> None:
        await super().send(data)
        self.sent_bytes += len(data)


Answer = Callable[[Visit], Awaitable[bool]]
"""Answers one request; True if the next one may come on the same connection."""


def raw(*pieces: bytes, reset: bool = False, every_s: float = 0) -> Answer:
    """Send these bytes, then end the connection."""
    return endless(pieces, reset=reset, every_s=every_s)


def endless(pieces: Any, *, reset: bool = False, every_s: float = 0) -> Answer:
    """Send these pieces as long as the gateway reads, then end the connection. `pieces` can be iterated again."""

    async def answer(visit: Visit) -> bool:
        for piece in pieces:
            await visit.send(piece)
            await asyncio.sleep(every_s)
        if reset:
            visit.reset()
        return False

    return answer


def forever(head: bytes, piece: bytes, *, every_s: float = 0) -> Answer:
    """Send a beginning, and then the same piece until nobody listens."""

    async def answer(visit: Visit) -> bool:
        return await endless(chain([head], repeat(piece)), every_s=every_s)(visit)

    return answer


async def silence(visit: Visit) -> bool:
    """Send no answer, until the gateway hangs up."""
    await visit.gone()
    return False


def head(*headers: str, status: str = "200 OK") -> bytes:
    """Make the head of an answer; each contains the attacker's words, and sets a cookie."""
    lines = [f"HTTP/1.1 {status}", f"x-note: {WORDS}", f"set-cookie: session={WORDS}; path=/", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def framed(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """Make a whole answer with the right length."""
    return head(f"content-length: {len(body)}", *headers, status=status) + body


def whole(body: bytes, *headers: str, status: str = "200 OK") -> Answer:
    """Send a correct answer, on a connection that stays open."""

    async def answer(visit: Visit) -> bool:
        await visit.send(visit.filled(framed(visit.filled(body), *headers, status=status)))
        return True

    return answer


def chunk(data: bytes) -> bytes:
    """Make one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def redirect(location: str, status: str = "302 Found") -> Answer:
    """Redirect to another place."""
    return whole(WORDS.encode(), f"location: {location}", status=status)


def redirects(count: int, last: Answer) -> Answer:
    """Send this many redirects, one after the other, and then the last answer."""

    async def answer(visit: Visit) -> bool:
        gone = int(visit.path.partition(b"?")[2] or 0)
        return await (last if gone == count else redirect(f"?{gone + 1}"))(visit)

    return answer


# --- Pictures ---------------------------------------------------------------------------------------------------------


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Make length, type, data, checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def marked(png: bytes) -> bytes:
    """Add the attacker's words to a picture: it is valid, but nobody ordered it."""
    after_header = 8 + 25
    return png[:after_header] + png_chunk(b"tEXt", b"Comment\0" + WORDS.encode()) + png[after_header:]


def png_of(width: int, height: int) -> bytes:
    """Make a PNG that claims these sides."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    rest = png_chunk(b"IDAT", zlib.compress(WORDS.encode())) + png_chunk(b"IEND", b"")
    return marked(b"\x89PNG\r\n\x1a\n" + header + rest)


def archive() -> bytes:
    """Make a ZIP. It is read from its end, so it may be the second half of a picture."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("index.html", HTML)
    return file.getvalue()


HTML = f"<!DOCTYPE html><html><title>{WORDS}</title><script>alert(document.cookie)</script></html>".encode()
SVG = f'<svg xmlns="http://www.w3.org/2000/svg"><script>{WORDS}</script></svg>'.encode()

PNG = encoded(noise("RGB", (64, 48)), "PNG")
DECOY = marked(PNG)
"""A valid picture that nobody ordered."""

LARGE = noise("RGB", (400, 400))
"""Half a megabyte as PNG: its upload has begun when its end is wrong."""
LARGE_FILES = {kind: encoded(LARGE, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "AVIF")}
LARGE_PNG = marked(LARGE_FILES["PNG"])
ENDLESS_PNG = marked(PNG)[:-12] + struct.pack(">I", 2**31 - 1) + b"IDAT"
"""A PNG up to the data of a chunk of maximum length."""


# --- Attacks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """An attack. `reply` answers the provider's call; None is the honest answer with `url`, where `file` answers.

    `failures` are possible outcomes of the order: for each, the beginning of the log's text. `delivered` are the
    pictures that are published and charged, all of them valid and none with the attacker's words.
    """

    name: str
    model: str
    failures: tuple[str, ...]
    reply: Answer | None = None
    url: str | None = None
    file: Answer = silence
    delivered: tuple[bytes, ...] = ()
    n: int = 1


def by_url(name: str, file: Answer, *failures: str, delivered: tuple[bytes, ...] = ()) -> Attack:
    """Make an attack by an image host."""
    return Attack(name, FLUX, failures, file=file, delivered=delivered)


def led_to(url: str, *failures: str) -> Attack:
    """Make an attack by a result URL."""
    return Attack(f"led to {url[:60] or 'nowhere'}", FLUX, failures, url=url)


def of_fal(name: str, reply: Answer, *failures: str, delivered: tuple[bytes, ...] = ()) -> Attack:
    """Make an attack by a reply of fal that is not a result."""
    return Attack(name, FLUX, failures, reply=reply, file=whole(PNG), delivered=delivered)


def inline(name: str, reply: Answer, *failures: str, delivered: tuple[bytes, ...] = (), n: int = 1) -> Attack:
    """Make an attack by a reply of OpenAI."""
    return Attack(name, GPT, failures, reply=reply, delivered=delivered, n=n)


BAD, LATE = "bad_image", "deadline"
NOT_ALLOWED = "fetch_failed host not allowed"
CUT, RESET = "fetch_failed RemoteProtocolError", "fetch_failed ReadError"
BAD_REPLY, CAP_OR_LATE = "bad_reply", (BAD, LATE)

WRONG_BYTES = [
    by_url("a page as PNG", whole(HTML, "content-type: image/png"), BAD),
    by_url("an SVG with a script", whole(SVG, "content-type: image/svg+xml"), BAD),
    by_url("an SVG with a script as PNG", whole(SVG, "content-type: image/png"), BAD),
    by_url("an SVG with a script, packed, as PNG", whole(gzip.compress(SVG), "content-type: image/png"), BAD),
    by_url("nothing", whole(b"", "content-type: image/png"), BAD),
    by_url("nothing, in chunks", raw(head("transfer-encoding: chunked"), b"0\r\n\r\n"), BAD),
    by_url("nothing, until the connection's end", raw(head()), BAD),
    *(
        by_url(f"{what} {kind}, rightly framed", whole(data[:end], f"content-type: image/{kind.lower()}"), BAD)
        for kind, data in LARGE_FILES.items()
        for what, end in (("half a", len(data) // 2), ("all but the last byte of a", -1))
    ),
    by_url("half a PNG, until the connection's end", raw(head(), LARGE_PNG[:300_000]), BAD),
    by_url("a PNG and a page", whole(LARGE_PNG + HTML), BAD),
    by_url("a PNG and a ZIP", whole(LARGE_PNG + archive()), BAD),
    by_url("a PNG and a second one", whole(LARGE_PNG + DECOY), BAD),
    by_url("a JPEG and a page", whole(LARGE_FILES["JPEG"] + HTML), BAD),
    by_url("a GIF and a ZIP", whole(LARGE_FILES["GIF"] + archive()), BAD),
    by_url("a WebP and a page", whole(LARGE_FILES["WEBP"] + HTML), BAD),
    by_url("a PNG of 2^31 by 2^31", whole(png_of(2**31, 2**31)), BAD),
    by_url("a PNG of 0 by 0", whole(png_of(0, 0)), BAD),
    by_url(
        "a PNG of a million parts",
        raw(head(), DECOY[:33], *repeat(png_chunk(b"tEXt", b"") * 1_000, 1_000), DECOY[33:]),
        BAD,
    ),
    by_url("a bomb", whole(BOMB, "content-encoding: gzip"), "fetch_failed status 200"),
    by_url("a bomb as PNG", whole(BOMB, "content-type: image/png"), BAD),
    by_url("a packed PNG", whole(gzip.compress(DECOY), "content-encoding: x-gzip, identity"), "fetch_failed"),
    by_url("endless", forever(head() + ENDLESS_PNG, ENDLESS), *CAP_OR_LATE),
    by_url(
        "endless chunks", forever(head("transfer-encoding: chunked") + chunk(ENDLESS_PNG), chunk(ENDLESS)), *CAP_OR_LATE
    ),
    by_url("a length beyond all bounds", forever(head("content-length: 1099511627776") + DECOY, ENDLESS), BAD),
]

WRONG_FRAMES = [
    by_url("longer than the body", raw(head(f"content-length: {len(LARGE_PNG) + 9}"), LARGE_PNG), CUT),
    by_url("shorter than the body", raw(head("content-length: 300000"), LARGE_PNG), BAD),
    by_url("another answer behind the picture", raw(framed(PNG) + framed(DECOY) * 9), delivered=(PNG,)),
    by_url("a page behind the picture", raw(framed(PNG) + HTML), delivered=(PNG,)),
    by_url("two lengths", raw(head(f"content-length: {len(DECOY)}", "content-length: 9"), DECOY), CUT),
    by_url(
        "a length and chunks",
        raw(head("content-length: 9", "transfer-encoding: chunked"), chunk(DECOY) + b"0\r\n\r\n"),
        CUT,
    ),
    *(
        by_url(f"a length of {length}", raw(head(f"content-length: {length}"), DECOY), CUT)
        for length in ("-1", "+9", "1e4", "0x2000", "9" * 40, "9, 9", "nine")
    ),
    by_url("a chunk that breaks off", raw(head("transfer-encoding: chunked"), chunk(LARGE_PNG)[:-9]), CUT),
    by_url("a chunk of no length", raw(head("transfer-encoding: chunked"), chunk(LARGE_PNG), b"zz\r\n"), CUT),
    by_url(
        "a chunk of no length, later",
        raw(head("transfer-encoding: chunked"), chunk(LARGE_PNG), b"zz\r\n", every_s=DRIP_S),
        CUT,
    ),
    by_url("a last chunk that is missing", raw(head("transfer-encoding: chunked"), chunk(DECOY)), CUT),
    by_url(
        "an endless chunk extension",
        forever(head("transfer-encoding: chunked") + b"9;", b"x" * 64 * 1024, every_s=PACE_S),
        CUT,
        LATE,
    ),
    by_url(
        "endless trailers",
        forever(head("transfer-encoding: chunked") + chunk(DECOY) + b"0\r\n", b"x: y\r\n" * 9_999),
        CUT,
        LATE,
    ),
    by_url("reset in the head", raw(b"HTTP/1.1 200 OK\r\ncontent-le", reset=True), RESET, CUT),
    by_url(
        "reset in the body",
        raw(head(f"content-length: {len(LARGE_PNG)}"), LARGE_PNG[:300_000], reset=True, every_s=DRIP_S),
        RESET,
    ),
    by_url("reset at once", raw(reset=True), RESET, CUT),
    by_url("HTTP/0.9", raw(DECOY), CUT),
    by_url("HTTP/3.1", raw(framed(DECOY).replace(b"HTTP/1.1", b"HTTP/3.1")), CUT),
    by_url("no HTTP at all", raw(HTML), CUT),
    by_url(
        "one header of 1 MB",
        raw(head(f"x-long: {'x' * 1_000_000}", f"content-length: {len(DECOY)}") + DECOY),
        CUT,
        RESET,
    ),
    by_url(
        "100,000 headers",
        raw(head(*(f"x-{place}: {WORDS}" for place in range(100_000)), f"content-length: {len(DECOY)}") + DECOY),
        CUT,
        RESET,
    ),
    by_url("an endless head", forever(b"HTTP/1.1 200 OK\r\n", b"x-note: y\r\n" * 9_999), CUT, RESET, LATE),
    by_url("a NUL in the head", raw(framed(DECOY, "x-nul: \0")), CUT),
    by_url("endlessly 100 Continue", forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 99, every_s=DRIP_S), CUT, LATE),
    by_url(
        "a byte now and then",
        raw(head(f"content-length: {len(DECOY)}"), *(DECOY[at : at + 1] for at in range(len(DECOY))), every_s=DRIP_S),
        LATE,
    ),
    by_url(
        "a byte of the head now and then", raw(*(framed(DECOY)[at : at + 1] for at in range(999)), every_s=DRIP_S), LATE
    ),
    by_url("silence", silence, LATE),
]

WRONG_STATUS = [
    by_url(f"a PNG with status {status[:3]}", whole(DECOY, status=status), f"fetch_failed status {status[:3]}")
    for status in ("201 Created", "203 Transformed", "206 Partial Content", "404 Not Found", "500 Out", "999 Beyond")
] + [
    *(
        by_url(f"status {status[:3]}", raw(head(status=status)), f"fetch_failed status {status[:3]}")
        for status in ("204 No Content", "304 Not Modified")
    ),
    by_url("status 204 and a PNG", raw(head(status="204 No Content"), DECOY), "fetch_failed status 204", CUT),
    by_url("status 304 and a PNG", raw(head(status="304 Not Modified"), DECOY), "fetch_failed status 304", CUT),
    by_url(
        "status 101",
        raw(head("connection: upgrade", "upgrade: websocket", status="101 Switching Protocols"), DECOY),
        CUT,
    ),
]

WRONG_PLACES = [
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "https://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://10.0.0.1/",
    "http://{inside}/",
    "http://2130706433:1/",
    "http://user:password@{here}/files/0",
    "https://{here}.evil.example/",
    "https://cdn.evil.example/x.png",
    "https://localhost/x.png",
    "file:///etc/passwd",
    "gopher://{inside}/_FLUSHALL",
    "ftp://{here}/x.png",
]
REDIRECTS = [
    *(by_url(f"redirected to {place}", redirect(place), NOT_ALLOWED) for place in WRONG_PLACES),
    by_url("redirected to //{inside}", redirect("//{inside}/"), NOT_ALLOWED),
    by_url("redirected in a circle", redirect("?"), "fetch_failed status 302"),
    by_url("redirected four times", redirects(4, whole(DECOY)), "fetch_failed status 302"),
    by_url("redirected three times", redirects(3, whole(PNG)), delivered=(PNG,)),
    by_url("redirected to nowhere", whole(DECOY, status="302 Found"), "fetch_failed status 302"),
    by_url(
        "redirected to two places",
        whole(DECOY, "location: http://{inside}/", "location: /", status="302 Found"),
        NOT_ALLOWED,
    ),
    by_url(
        "refreshed", whole(DECOY, "refresh: 0; url=http://{inside}/", status="300 Choices"), "fetch_failed status 300"
    ),
    *(led_to(place, NOT_ALLOWED) for place in WRONG_PLACES),
    led_to(f"data:image/png;base64,{base64.b64encode(DECOY).decode()}", NOT_ALLOWED),
    led_to("", NOT_ALLOWED),
]


def json_of(document: Any) -> Answer:
    """Make a correct answer with this document, which may contain lone surrogates."""
    return whole(json.dumps(document).encode(), "content-type: application/json")


def result(*urls: Any, **more: Any) -> Json:
    """Make fal's result."""
    return {"images": [{"url": url, "content_type": "image/png"} for url in urls], "prompt": WORDS, **more}


HERE = "http://{here}/files/%d"
FAL_REPLIES = [
    of_fal("fal: a page", whole(HTML), BAD_REPLY),
    of_fal("fal: no list", json_of({"images": {"url": WORDS}}), BAD_REPLY),
    of_fal("fal: a number for a URL", json_of(result(5)), BAD_REPLY),
    of_fal("fal: no images", json_of(result()), "no_image"),
    of_fal("fal: a list for a URL", json_of(result([WORDS])), BAD_REPLY),
    of_fal("fal: nested far too deep", whole(b"[" * 200_000), BAD_REPLY),
    of_fal("fal: too large", whole(b'{"images":[],"note":"' + WORDS.encode() * 99_999 + b'"}'), BAD_REPLY),
    of_fal("fal: endless", forever(head(), b'{"images":[' + b"[]," * 99_999), BAD_REPLY),
    of_fal("fal: a bomb", whole(BOMB, "content-encoding: gzip"), BAD_REPLY),
    of_fal("fal: a byte now and then", forever(head(), b" ", every_s=DRIP_S), LATE),
    of_fal("fal: an endless refusal", forever(head(status="422 No"), WORDS.encode() * 9_999), BAD_REPLY),
    of_fal("fal: half a surrogate pair", json_of(result("http://{here}/\ud800")), BAD_REPLY, NOT_ALLOWED),
    of_fal("fal: redirected with our key", redirect("http://{inside}/", "307 Temporary Redirect"), "rejected"),
    of_fal("fal: breaks off", raw(head("content-length: 999"), b'{"images":['), "no_answer"),
    of_fal(
        "fal: a chunk of no length",
        raw(head("transfer-encoding: chunked"), chunk(b'{"images":['), b"zz\r\n", every_s=DRIP_S),
        "no_answer",
    ),
    of_fal("fal: our own key", whole(f'{{"detail":"{FAL_KEY} {WORDS}"}}'.encode(), status="401 No"), "not_authorised"),
]


def b64(data: bytes) -> str:
    """Encode in base64."""
    return base64.b64encode(data).decode()


def item(data: bytes, **more: Any) -> Json:
    """Make one picture of OpenAI's list."""
    return {"b64_json": b64(data), **more}


def images(*items: Any, **more: Any) -> Answer:
    """Make OpenAI's reply with these items."""
    return json_of({"created": 1, "data": items, **more})


def text(*parts: bytes) -> Answer:
    """Make a reply of any bytes."""
    return whole(b"".join(parts), "content-type: application/json")


GENUINE, EVIL = b64(PNG).encode(), b64(DECOY).encode()
OPEN, CLOSE = b'{"data":[{"b64_json":"', b'"}]}'
INLINE = [
    inline("inline: a page", images(item(HTML)), BAD),
    inline("inline: an SVG with a script", images(item(SVG)), BAD),
    inline("inline: half a PNG", images(item(LARGE_PNG[:300_000])), BAD),
    inline("inline: all but the last byte of a JPEG", images(item(LARGE_FILES["JPEG"][:-1])), BAD),
    inline("inline: a PNG and a page", images(item(LARGE_PNG + HTML)), BAD),
    inline("inline: a PNG of 2^31 by 2^31", images(item(png_of(2**31, 2**31))), BAD),
    inline("inline: nothing", images({"b64_json": ""}), BAD),
    inline(
        "inline: a decoy in a text", images({"note": f'"}},{{"b64_json":"{b64(DECOY)}"', **item(PNG)}), delivered=(PNG,)
    ),
    inline("inline: only a decoy in a text", images({"note": f'"}},{{"b64_json":"{b64(DECOY)}"'}), "no_image"),
    inline("inline: a decoy deeper down", images({"note": item(DECOY), **item(PNG)}), delivered=(PNG,)),
    inline(
        "inline: only decoys deeper down", images({"note": item(DECOY)}, [item(DECOY)], [[item(DECOY)]]), "no_image"
    ),
    inline("inline: decoys in another list", images(item(PNG), more=[item(DECOY)]), delivered=(PNG,)),
    inline(
        "inline: only decoys in another list",
        json_of({"more": [item(DECOY)], "note": {"data": [item(DECOY)]}}),
        "no_image",
    ),
    inline("inline: a decoy in no list", json_of({"data": item(DECOY)}), "no_image"),
    inline("inline: a list of pictures for a picture", images({"b64_json": [b64(DECOY)]}), "no_image"),
    inline("inline: a URL for a picture", images({"url": "http://{inside}/"}), "no_image"),
    inline(
        "inline: a page and a picture under one key",
        text(b'{"data":[{"b64_json":"', b64(HTML).encode(), b'","b64_json":"', EVIL, CLOSE),
        BAD,
        BAD_REPLY,
    ),
    inline(
        "inline: two pictures under one key",
        text(OPEN, GENUINE, b'","b64_json":"', EVIL, CLOSE),
        BAD_REPLY,
        delivered=(PNG,),
    ),
    inline(
        "inline: two lists under one key",
        text(OPEN, GENUINE, b'"}],"data":[{"b64_json":"', EVIL, CLOSE),
        BAD_REPLY,
        delivered=(PNG,),
    ),
    inline("inline: not base64", text(OPEN, EVIL[:4_000], b"*" * 99, EVIL[4_000:], CLOSE), BAD_REPLY),
    inline("inline: base64 behind its padding", text(OPEN, b64(HTML + b"!").encode() * 2, EVIL, CLOSE), BAD_REPLY, BAD),
    inline("inline: base64 that breaks off", text(OPEN, EVIL[:-3], CLOSE), BAD_REPLY),
    inline("inline: NUL in a picture", text(OPEN, EVIL[:4_000], b"\0", EVIL[4_000:], CLOSE), BAD_REPLY),
    inline("inline: no UTF-8 in a picture", text(OPEN, EVIL[:4_000], b"\xff\xfe", EVIL[4_000:], CLOSE), BAD_REPLY),
    inline(
        "inline: half a surrogate pair in a picture",
        text(OPEN, EVIL[:4_000], b"\\ud800", EVIL[4_000:], CLOSE),
        BAD_REPLY,
    ),
    inline(
        "inline: half a surrogate pair beside a picture",
        images(item(PNG, revised_prompt="\ud800" + WORDS)),
        BAD_REPLY,
        delivered=(PNG,),
    ),
    inline(
        "inline: no UTF-8 beside a picture",
        text(b'{"note":"\xff","data":[{"b64_json":"', GENUINE, CLOSE),
        BAD_REPLY,
        delivered=(PNG,),
    ),
    inline(
        "inline: NUL behind a picture", text(OPEN, GENUINE, CLOSE, b"\0" + WORDS.encode()), BAD_REPLY, delivered=(PNG,)
    ),
    inline("inline: JSON that ends in a picture", text(OPEN, EVIL[:9_000]), BAD_REPLY),
    inline("inline: JSON that ends behind a picture", text(OPEN, GENUINE, b'"'), BAD_REPLY, delivered=(PNG,)),
    inline(
        "inline: breaks off in a picture",
        raw(head("content-length: 99999"), OPEN + EVIL[:9_000]),
        "no_answer",
        BAD_REPLY,
    ),
    inline(
        "inline: reset in a picture",
        raw(head("content-length: 999999"), OPEN + b64(LARGE_PNG).encode()[:400_000], reset=True, every_s=DRIP_S),
        "no_answer",
        BAD_REPLY,
    ),
    inline("inline: 40 MB of white space", raw(head(), *repeat(b" " * 100_000, 400), OPEN + EVIL + CLOSE), BAD_REPLY),
    inline("inline: endless white space in a picture", forever(head() + OPEN, b" " * 64 * 1024, every_s=PACE_S), LATE),
    inline("inline: endless escapes in a picture", forever(head() + OPEN, b"\\n" * 32 * 1024, every_s=PACE_S), LATE),
    inline("inline: an endless label of a picture", forever(head() + OPEN + b"data:", b"x" * 9_999), BAD_REPLY),
    inline("inline: an endless key", forever(head() + b'{"data":[{"', b"x" * 9_999), BAD_REPLY),
    inline(
        "inline: endless",
        forever(
            head() + OPEN + b64(ENDLESS_PNG + bytes(-len(ENDLESS_PNG) % 3)).encode(), b"A" * 512 * 1024, every_s=PACE_S
        ),
        *CAP_OR_LATE,
        BAD_REPLY,
    ),
    inline(
        "inline: a picture now and then",
        raw(head(), OPEN, *(EVIL[at : at + 1] for at in range(999)), every_s=DRIP_S),
        LATE,
    ),
    inline("inline: nested far too deep", text(b'{"data":' * 20_000), BAD_REPLY),
    inline(
        "inline: a million empty items",
        raw(head(), b'{"data":[', *repeat(b"{}," * 5_000, 200), OPEN[9:], EVIL, CLOSE),
        BAD_REPLY,
    ),
    inline("inline: a bomb", whole(gzip.compress(OPEN + EVIL + bytes(9_000_000)), "content-encoding: gzip"), BAD_REPLY),
    inline(
        "inline: five more than were ordered",
        images(item(PNG), item(PNG), *(item(DECOY) for _ in range(5))),
        delivered=(PNG, PNG),
        n=2,
    ),
    inline("inline: one of two", images(item(PNG), item(LARGE_PNG[:300_000])), BAD, delivered=(PNG,), n=2),
    inline(
        "inline: a usage beyond all bounds",
        images(item(PNG), usage={"input_tokens": 10**30, "output_tokens": -1}),
        delivered=(PNG,),
    ),
    inline(
        "inline: our own key",
        whole(f'{{"error":{{"message":"{OPENAI_KEY} {WORDS}"}}}}'.encode(), status="401 No"),
        "not_authorised",
    ),
    inline("inline: an endless refusal", forever(head(status="400 No"), WORDS.encode() * 9_999), BAD_REPLY),
    inline("inline: redirected with our key", redirect("http://{inside}/", "308 Permanent Redirect"), "rejected"),
    inline("inline: one header of 1 MB", raw(head(f"x-long: {'x' * 1_000_000}") + OPEN + EVIL + CLOSE), "no_answer"),
    inline("inline: HTTP/0.9", raw(OPEN + EVIL + CLOSE), "no_answer"),
    inline("inline: silence", silence, LATE),
]

ATTACKS = WRONG_BYTES + WRONG_FRAMES + WRONG_STATUS + REDIRECTS + FAL_REPLIES + INLINE


# --- The upstream -----------------------------------------------------------------------------------------------------


@dataclass
class Upstream:
    """The upstream, in a thread.

    `fetches` are the requests to the image host, `max_sent_bytes` is the longest answer of each attack, `connections`
    is their current number.
    """

    port: int = 0
    inside_port: int = 0
    calls: list[bytes] = field(default_factory=list)
    fetches: list[bytes] = field(default_factory=list)
    inside: list[bytes] = field(default_factory=list)
    max_sent_bytes: Counter[str] = field(default_factory=Counter)
    connections: int = 0

    @property
    def address(self) -> str:
        """`host:port`, both as an upstream and as an image host."""
        return f"127.0.0.1:{self.port}"

    async def serve(self, peer: Peer) -> None:
        """Serve one connection, as long as both sides keep it."""
        addresses = {b"{here}": self.address.encode(), b"{inside}": f"127.0.0.1:{self.inside_port}".encode()}
        visit = Visit(peer.reader, peer.writer, addresses)
        name, goes_on = HONEST, True
        self.connections += 1
        try:
            while goes_on:
                request = await visit.read_request()
                name, answer = self._answer(request)
                visit.path, visit.sent_bytes = request.split(b" ", 2)[1], 0
                goes_on = await answer(visit)
                self._count(name, visit)
        finally:
            self.connections -= 1
            self._count(name, visit)

    async def serve_inside(self, peer: Peer) -> None:
        """Serve the listener that nobody may call."""
        self.inside.append(await peer.read_head())

    def _count(self, name: str, visit: Visit) -> None:
        self.max_sent_bytes[name] = max(self.max_sent_bytes[name], visit.sent_bytes)

    def _answer(self, request: bytes) -> tuple[str, Answer]:
        method, path, _ = request.split(b" ", 2)
        if method == b"GET":
            self.fetches.append(request)
            place = int(path.partition(b"?")[0].rpartition(b"/")[2])
            return (ATTACKS[place].name, ATTACKS[place].file) if place < len(ATTACKS) else (HONEST, whole(PNG))
        self.calls.append(request)
        prompt = json.loads(request.partition(b"\r\n\r\n")[2])["prompt"]
        place = next((place for place, attack in enumerate(ATTACKS) if attack.name == prompt), len(ATTACKS))
        attack = ATTACKS[place] if place < len(ATTACKS) else None
        if attack is not None and attack.reply is not None:
            return attack.name, attack.reply
        if b"/openai/" in path:
            return HONEST, images(item(PNG))
        url = attack.url if attack is not None and attack.url is not None else HERE % place
        return HONEST, json_of(result(url))


@contextmanager
def upstream() -> Iterator[Upstream]:
    """Run an upstream."""
    one = Upstream()
    listening, over = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        async with raw_server(one.serve) as server, raw_server(one.serve_inside) as inside:
            one.port, one.inside_port = server.port, inside.port
            loops.append(asyncio.get_running_loop())
            listening.set()
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert listening.wait(timeout=10)
    try:
        yield one
    finally:
        loops[0].call_soon_threadsafe(over.set)
        thread.join()
