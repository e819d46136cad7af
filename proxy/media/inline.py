"""Base64 pictures inside JSON, read and written while the bytes are streamed. No I/O."""

import binascii
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import orjson
import pybase64


class BadDocument(Exception):
    """An upstream's JSON is broken, too large, or not in its promised form."""


def base64_length(size_bytes: int) -> int:
    """Count the base64 characters for this many bytes, padding included."""
    return -(-size_bytes // 3) * 4


async def base64_of(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Encode chunks as one base64 text, in pieces."""
    rest = b""
    async for chunk in chunks:
        data = rest + chunk
        whole = len(data) - len(data) % 3
        rest, text = data[whole:], pybase64.b64encode(data[:whole])
        del chunk, data  # a slow client may keep the text for long
        yield text
    if rest:
        yield pybase64.b64encode(rest)


@dataclass(frozen=True, slots=True)
class Piece:
    """Decoded bytes of the picture at index `item` of the reply's list; `last` ends it."""

    item: int
    data: bytes
    last: bool = False


MAX_LABEL_BYTES = 128
_LABEL = re.compile(rb"data:[!-~]*;base64")
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="


class _Base64:
    """Decodes base64 that is cut anywhere. White space and a `data:…;base64,` prefix are skipped."""

    def __init__(self) -> None:
        self._rest = b""
        self._started = False
        self._padded = False

    def feed_pure(self, text: bytes) -> bytes | None:
        """Decode text that is base64 and nothing else, as nearly all of a picture is. None: `feed` must decode it."""
        if self._padded or not (self._started or self._starts_plain(text)):
            return None
        text = self._rest + text
        whole = len(text) - len(text) % 4
        rest = text[whole:]
        if rest.translate(None, _ALPHABET):
            return None
        try:
            data = pybase64.b64decode(text[:whole], validate=True)
        except binascii.Error:
            return None
        self._rest, self._padded, self._started = rest, text[whole - 1 : whole] == b"=", True
        return data

    def _starts_plain(self, text: bytes) -> bool:
        """True if this is the whole beginning, and there is no label before it."""
        return not self._rest and len(text) >= len(b"data:") and not text.startswith(b"data:")

    def feed(self, text: bytes) -> bytes:
        """Decode text that may have white space in it, or the label of a data URI before it. Raises BadDocument."""
        text = self._rest + text.translate(None, b" \t\r\n")
        if not self._started:
            if len(text) < 5 and b"data:".startswith(text):
                self._rest = text
                return b""
            if text.startswith(b"data:"):
                label, comma, after = text.partition(b",")
                if len(label) > MAX_LABEL_BYTES or (comma and not _LABEL.fullmatch(label)):
                    raise BadDocument("a data URI without base64")
                if not comma:
                    self._rest = text
                    return b""
                text = after
            self._started = True
        return self._decode(text)

    def finish(self) -> bytes:
        """Decode the rest. The four letters `data` may turn out to be three bytes of a picture."""
        data = b"" if self._started else self._decode(self._rest)
        if self._rest:
            raise BadDocument("base64 breaks off")
        return data

    def _decode(self, text: bytes) -> bytes:
        whole = len(text) - len(text) % 4
        self._rest = text[whole:]
        if not whole:
            return b""
        if self._padded:
            raise BadDocument("base64 goes on after its padding")
        self._padded = text[whole - 1 : whole] == b"="
        try:
            return pybase64.b64decode(text[:whole], validate=True)
        except binascii.Error:
            raise BadDocument("not base64") from None


@dataclass(slots=True)
class _Frame:
    """An open object or array, with the current key or index.

    `found`: the one key that leads to pictures was there. A second one would replace what has been passed on.
    """

    is_object: bool
    key: str = ""
    place: int = 0
    at_key: bool = False
    found: bool = False

    def follows(self, step: str | int | None) -> bool:
        """True if it is at this key, or at this index; None is any index."""
        if self.is_object:
            return self.key == step
        return step is None or self.place == step


_STRUCTURE = re.compile(rb'["{}\[\],:]')
_ESCAPE = re.compile(rb'\\(?:u[0-9a-fA-F]{4}|["\\/bfnrt])')
_PLAIN = rb'[^"\\\x00-\x1f]*'
_RUN = re.compile(_PLAIN + rb"(?:" + _ESCAPE.pattern + _PLAIN + rb")*")
"""The longest available part of a string: without its end, a cut or wrong escape, and characters that JSON forbids.

It has no possessive repeats: Python before 3.11.5 includes a part of a cut escape with them.
"""
_SIMPLE = {b"\\/": b"/", b"\\n": b"\n", b"\\r": b"\r", b"\\t": b"\t", b"\\b": b"\b", b"\\f": b"\f"}
_SIMPLE |= {b"\\\\": b"\\", b'\\"': b'"'}
MAX_NESTING = 32
MAX_KEY_BYTES = 256
MAX_MARKS = 10_000
"""Maximum brackets, commas, colons and strings of a document.

A real one has a few hundred; each costs a microsecond.
"""

MAX_PICTURE_BYTES = 80 * 1024 * 1024
"""Maximum size of a picture, above every limit for an image.

A refused picture is skipped up to here, not until the deadline.
"""


@dataclass
class JsonPictures:
    """Finds the base64 strings at `.LIST[i].FIELD` of a JSON document while it arrives, and decodes them.

    Both may be paths, as `candidates.0.content.parts` and `inlineData.data`. Everything else is kept, with `null`
    instead of the pictures and of the texts at `dropped_key`, and parsed at the end: `finish` returns it. So memory is
    one chunk and at most `max_document_bytes`. Raises BadDocument.
    """

    list_key: str
    field_key: str
    max_document_bytes: int
    dropped_key: str | None = None
    _path: tuple[str | int | None, ...] = field(default=(), init=False)
    _list_depth: int = field(default=0, init=False)
    _item_from: int = field(default=0, init=False)
    _items: dict[int, slice] = field(default_factory=dict, init=False)
    _document: bytearray = field(default_factory=bytearray, init=False)
    _frames: list[_Frame] = field(default_factory=list, init=False)
    _in: str = field(default="structure", init=False)
    _escape: bytes = field(default=b"", init=False)
    _key: bytearray = field(default_factory=bytearray, init=False)
    _base64: _Base64 = field(default_factory=_Base64, init=False)
    _last: int = field(default=-1, init=False)
    _marks: int = field(default=0, init=False)
    _picture_bytes: int = field(default=0, init=False)
    _failed: BadDocument | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        keys, fields = (
            [int(key) if key.isdigit() else key for key in path.split(".")] for path in (self.list_key, self.field_key)
        )
        self._path, self._list_depth = (*keys, None, *fields), len(keys)

    def feed(self, chunk: bytes) -> list[Piece]:
        """Read the next bytes; returns the pieces of pictures in them, in order."""
        if self._failed is not None:
            raise self._failed
        pieces: list[Piece] = []
        try:
            self._read(chunk, pieces)
        except BadDocument as error:
            if not pieces:
                raise
            self._failed = error  # the pieces before the error are valid, so they are returned first
        return pieces

    def _read(self, chunk: bytes, pieces: list[Piece]) -> None:
        at = 0
        while at < len(chunk):
            at = self._structure(chunk, at) if self._in == "structure" else self._string(chunk, at, pieces)
            if len(self._document) > self.max_document_bytes:
                raise BadDocument("the document is too large")

    def item(self, place: int) -> Any:
        """Parse the item at this index, which held a picture, without it, once it is closed."""
        try:
            return orjson.loads(self._document[self._items[place]])
        except (orjson.JSONDecodeError, KeyError):
            raise BadDocument("an item is not JSON") from None

    def finish(self) -> Any:
        """Parse the document without its pictures."""
        if self._failed is not None:
            raise self._failed
        try:
            return orjson.loads(self._document)
        except orjson.JSONDecodeError:
            raise BadDocument("not JSON, or it breaks off") from None

    def _structure(self, chunk: bytes, at: int) -> int:
        found = _STRUCTURE.search(chunk, at)
        if found is None:
            self._document += chunk[at:]
            return len(chunk)
        self._marks += 1
        if self._marks > MAX_MARKS:
            raise BadDocument("too many parts")
        mark, end = found.group(), found.end()
        if mark == b'"':
            self._document += chunk[at : end - 1]
            self._open_string()
            return end
        self._document += chunk[at:end]
        frame = self._frames[-1] if self._frames else None
        if mark in b"{[":
            if len(self._frames) == MAX_NESTING:
                raise BadDocument("nested too deeply")
            if len(self._frames) == self._list_depth + 1:
                self._item_from = len(self._document) - 1
            self._frames.append(_Frame(is_object=mark == b"{", at_key=mark == b"{"))
        elif frame is None:
            raise BadDocument("not JSON")
        elif mark in b"}]":
            self._frames.pop()
            in_list = len(self._frames) == self._list_depth + 1 and self._follow(self._list_depth)
            if in_list and self._place == self._last:
                self._items[self._last] = slice(self._item_from, len(self._document))
        elif mark == b":":
            frame.at_key = False
        elif frame.is_object:
            frame.at_key = True
        else:
            frame.place += 1
        return end

    def _open_string(self) -> None:
        if self._frames and self._frames[-1].at_key:
            self._in = "key"
            self._key.clear()
            self._document += b'"'
        elif self._at_picture():
            if self._place <= self._last:
                raise BadDocument("a picture twice in one item")
            self._last = self._place
            self._in = "picture"
            self._base64, self._picture_bytes = _Base64(), 0
            self._document += b"null"
        elif self._frames and self._frames[-1].is_object and self._frames[-1].key == self.dropped_key:
            self._in = "dropped"
            self._document += b"null"
        else:
            self._in = "text"
            self._document += b'"'

    @property
    def _place(self) -> int:
        """Index of the item in the list."""
        return self._frames[self._list_depth].place

    def _at_picture(self) -> bool:
        """True if this is the value of the field, in an object of the list."""
        return len(self._frames) == len(self._path) and self._follow(len(self._path))

    def _follow(self, steps: int) -> bool:
        """True if the first open objects and arrays, this many, follow the path to pictures."""
        return all(frame.follows(step) for frame, step in zip(self._frames[:steps], self._path, strict=False))

    def _string(self, chunk: bytes, at: int, pieces: list[Piece]) -> int:
        if self._escape:
            return self._cut_escape(chunk, at, pieces)
        if self._in == "picture" and (end := self._pure(chunk, at, pieces)) > at:
            return end
        run = _RUN.match(chunk, at)
        assert run is not None  # it may be empty
        end = run.end()
        self._take(run.group(), pieces)
        match chunk[end : end + 1]:
            case b'"':
                self._close_string(pieces)
            case b"\\":
                self._escape = b"\\"
            case beyond if beyond:
                raise BadDocument("not JSON")
        return end + 1

    def _pure(self, chunk: bytes, at: int, pieces: list[Piece]) -> int:
        """Take a picture's text up to its end, or the chunk's, as long as there is nothing but base64 in it.

        Returns where that is; `at` where it is not so. Ten times as fast as looking at each character by a pattern.
        """
        end = chunk.find(b'"', at)
        end = len(chunk) if end < 0 else end
        if chunk.find(b"\\", at, end) >= 0 or (data := self._base64.feed_pure(chunk[at:end])) is None:
            return at
        self._give(data, pieces)
        return end

    def _cut_escape(self, chunk: bytes, at: int, pieces: list[Piece]) -> int:
        """Collect an escape across chunks, or a wrong one, until its full length."""
        self._escape += chunk[at : at + 1]
        if len(self._escape) == (6 if self._escape[1:2] == b"u" else 2):
            raw, self._escape = self._escape, b""
            if not _ESCAPE.fullmatch(raw):
                raise BadDocument("not JSON")
            self._take(raw, pieces)
        return at + 1

    def _take(self, raw: bytes, pieces: list[Piece]) -> None:
        if self._in == "picture":
            self._give(self._base64.feed(_unescape(raw)), pieces)
            return
        if self._in == "dropped":
            return
        self._document += raw
        if self._in == "key":
            self._key += _unescape(raw)
            if len(self._key) > MAX_KEY_BYTES:
                raise BadDocument("a key is too long")

    def _give(self, data: bytes, pieces: list[Piece]) -> None:
        self._picture_bytes += len(data)
        if self._picture_bytes > MAX_PICTURE_BYTES:
            raise BadDocument("a picture is too large")
        if data:
            pieces.append(Piece(self._place, data))

    def _close_string(self, pieces: list[Piece]) -> None:
        if self._in == "picture":
            self._give(self._base64.finish(), pieces)
            pieces.append(Piece(self._place, b"", last=True))
        elif self._in != "dropped":
            self._document += b'"'
            if self._in == "key":
                self._close_key()
        self._in = "structure"

    def _close_key(self) -> None:
        frame = self._frames[-1]
        frame.key = self._key.decode("utf-8", "replace")
        if frame.key == self._wanted_key():
            if frame.found:
                raise BadDocument("a key twice")
            frame.found = True

    def _wanted_key(self) -> str | None:
        """Find the key that leads to pictures from here."""
        depth = len(self._frames)
        wanted = self._path[depth - 1] if depth <= len(self._path) and self._follow(depth - 1) else None
        return wanted if isinstance(wanted, str) else None


def _unescape(raw: bytes) -> bytes:
    """Resolve a run's escapes. The two escapes that base64 uses are replaced first, all at once: 6 times as fast."""
    if b"\\" not in raw:
        return raw
    if b"\\\\" not in raw:  # so every backslash begins an escape
        raw = raw.replace(b"\\/", b"/").replace(b"\\n", b"\n")
    return _ESCAPE.sub(_character, raw)


def _character(escape: re.Match[bytes]) -> bytes:
    raw = escape.group()
    return chr(int(raw[2:], 16)).encode("utf-8", "surrogatepass") if raw.startswith(b"\\u") else _SIMPLE[raw]


async def inline_pictures(
    chunks: AsyncIterator[bytes], document: JsonPictures
) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
    """Yield (index, bytes) of each picture in a reply while it arrives, one after the other.

    Bytes that the reader leaves of one picture are skipped before the next begins. Raises BadDocument.
    """

    async def pieces() -> AsyncIterator[Piece]:
        async for chunk in chunks:
            for piece in document.feed(chunk):
                yield piece

    source = pieces()
    over = False

    async def one(piece: Piece | None) -> AsyncIterator[bytes]:
        nonlocal over
        while piece is not None:
            if piece.data:
                yield piece.data
            if piece.last:
                over = True
                return
            piece = await anext(source, None)
        raise BadDocument("it breaks off inside a picture")

    async for first in source:
        over = first.last
        yield first.item, one(first)
        while not over:
            piece = await anext(source, None)
            over = piece is None or piece.last
