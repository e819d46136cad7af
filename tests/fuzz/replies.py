"""Replies of the three providers that put pictures into JSON: as they write them, as nobody writes them, and broken."""

import base64
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """Place of a provider's pictures: `.list_key[i].field_key`."""

    list_key: str
    field_key: str


OPENAI = Shape("data", "b64_json")
XAI = OPENAI
GOOGLE = Shape("predictions", "bytesBase64Encoded")

SPACES = ("", "", "", "", "", " ", "\n", "\t", "\r\n  ")
SCALARS = ("null", "true", "false", "0", "-1", "17", "1722470400", "0.5", "-1e-7", "6.02e23")
DECOY_KEYS = (
    "data",
    "b64_json",
    "predictions",
    "bytesBase64Encoded",
    "url",
    "mimeType",
    "",
    "DATA",
    "data ",
    "clé",
    "𝄞",
)
DECOY_TEXTS = (
    "",
    "data",
    "QUJD",
    "a/b",
    "é𝄞\n",
    "\\",
    '\\"',
    "]}],",
    '{"data":[{"b64_json":"QUJD"}]}',
    '"b64_json":"QUJD"',
    '"predictions":[{"bytesBase64Encoded":"QUJD',
)
LABELS = ("data:image/png;base64,", "data:image/jpeg;base64,", "data:;base64,")
BROKEN_LABELS = ("data:image/png,", "data:", "data", "data:;base64", "DATA:;base64,", "url:,", ",")
BROKEN_BASE64 = (
    "data",
    "dat",
    "=",
    "==",
    "====",
    "Q===",
    "QQ=A",
    "QQ==QQ==",
    "QUJD=",
    "QU-_",
    "QUJé",
    "Q\x00==",
    "\x0c",
)
DAMAGE = (
    *(
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"=",
        b"/",
        b"\\u00",
        b"\\ud834",
        b"\n",
        b"\x00",
        b"\xff",
        b"\xc3",
    ),
    *(b"null", b'""', b"NaN", b"Infinity", b"\xef\xbb\xbf", b"1", b"-", b"e9", b'"data":[],', b'"b64_json":null,'),
)


class Writer:
    """Writes one random reply. The same `chance` writes the same reply."""

    def __init__(self, shape: Shape, chance: random.Random) -> None:
        self._shape = shape
        self._chance = chance

    def reply(self) -> bytes:
        """A reply, in one case of three damaged somewhere."""
        text = self._reply().encode()
        return self._damaged(text) if text and self._chance.random() < 0.35 else text

    def _reply(self) -> str:
        if self._chance.random() < 0.03:
            return self._decoy(0)
        pairs = self._decoys(0)
        if self._chance.random() < 0.97:
            pairs.append((self._shape.list_key, self._list()))
        return self._object(pairs)

    def _list(self) -> str:
        if self._chance.random() < 0.03:
            return self._decoy(1)
        return self._array([self._item() for _ in range(self._chance.choice((0, 1, 1, 1, 2, 3)))])

    def _item(self) -> str:
        if self._chance.random() < 0.05:
            return self._decoy(2)
        pairs = self._decoys(2)
        if self._chance.random() < 0.95:
            pairs.append((self._shape.field_key, self._picture()))
        return self._object(pairs)

    def _picture(self) -> str:
        chance = self._chance
        kind = chance.random()
        if kind < 0.05:
            return chance.choice(("null", "1", "true"))
        if kind < 0.08:
            return self._decoy(3)
        if kind < 0.14:
            return self._string(chance.choice(BROKEN_BASE64))
        text = base64.b64encode(chance.randbytes(chance.randrange(40))).decode()
        if kind < 0.2:
            place = chance.randrange(len(text) + 1)
            text = text[:place] + chance.choice(("", "=", "!", "A", "-", "\u00e9", "\\")) + text[place + 1 :]
        if kind < 0.4:
            text = chance.choice(BROKEN_LABELS if kind < 0.22 else LABELS) + text
        if kind > 0.8:
            size = chance.randint(1, 20)
            gap = chance.choice(("\n", "\r\n", " ", "\t", "\n\n" if kind < 0.98 else "\b"))
            text = gap.join(text[at : at + size] for at in range(0, len(text), size))
        return self._string(text)

    def _decoys(self, depth: int) -> list[tuple[str, str]]:
        number = self._chance.choice((0, 0, 1, 1, 2, 3))
        keys = (self._key() for _ in range(number))
        return [(key, self._decoy(depth + 1)) for key in keys]

    def _key(self) -> str:
        """Seldom one that leads to pictures: twice at one place it makes the reply a bad one."""
        key = self._chance.choice(DECOY_KEYS)
        return key if key not in (self._shape.list_key, self._shape.field_key) or self._chance.random() < 0.3 else "x"

    def _decoy(self, depth: int) -> str:
        """Any value; one that looks like a picture's surroundings is among them."""
        chance = self._chance
        kind = chance.random()
        if kind < 0.35 or depth > 4:
            return chance.choice(SCALARS)
        if kind < 0.7:
            return self._string(chance.choice(DECOY_TEXTS))
        if kind < 0.8:
            return self._array([self._decoy(depth + 1) for _ in range(chance.randrange(3))])
        return self._object([(chance.choice(DECOY_KEYS), self._decoy(depth + 1)) for _ in range(chance.randrange(3))])

    def _array(self, values: list[str]) -> str:
        return f"[{self._space()}{f'{self._space()},{self._space()}'.join(values)}{self._space()}]"

    def _object(self, pairs: list[tuple[str, str]]) -> str:
        self._chance.shuffle(pairs)
        fields = [f"{self._string(key)}{self._space()}:{self._space()}{value}" for key, value in pairs]
        return f"{{{self._space()}{f'{self._space()},{self._space()}'.join(fields)}{self._space()}}}"

    def _space(self) -> str:
        return self._chance.choice(SPACES)

    def _string(self, text: str) -> str:
        """In one of its many spellings: plain, every slash escaped, ASCII only, any character by its number."""
        chance = self._chance
        way = chance.random()
        spelt = json.dumps(text, ensure_ascii=way < 0.4)
        if way < 0.3:
            return spelt.replace("/", "\\/")
        if way < 0.8:
            return spelt
        often = chance.choice((0.05, 0.5, 1.0))
        return f'"{"".join(_by_number(c, chance) if chance.random() < often else _short(c) for c in text)}"'

    def _damaged(self, text: bytes) -> bytes:
        chance = self._chance
        at = chance.randrange(len(text))
        to = min(len(text), at + chance.choice((0, 1, 1, 2, 8)))
        match chance.randrange(5):
            case 0:
                return text[:at]
            case 1:
                return text[:at] + text[to:]
            case 2:
                return text[:at] + text[at:to] + text[at:]
            case 3:
                return text[:at] + bytes([chance.randrange(256)]) + text[at + 1 :]
            case _:
                return text[:at] + chance.choice(DAMAGE) + text[to:]


def _by_number(letter: str, chance: random.Random) -> str:
    units = letter.encode("utf-16-be").hex()
    units = units.upper() if chance.random() < 0.5 else units
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _short(letter: str) -> str:
    return "\\/" if letter == "/" else json.dumps(letter, ensure_ascii=False)[1:-1]


def cut(text: bytes, chance: random.Random) -> Iterator[bytes]:
    """The text in chunks: byte by byte, whole, or anything between."""
    most = chance.choice((1, 2, 7, 64, len(text) + 1))
    at = 0
    while at < len(text):
        size = chance.randint(1, most)
        yield text[at : at + size]
        at += size
