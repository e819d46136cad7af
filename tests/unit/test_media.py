"""Pictures out of JSON while it streams by, judged by the plain way: `json.loads` and `base64.b64decode`."""

import base64
import hashlib
import itertools
import json
import random
import tracemalloc
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.media import (
    HEAD_BYTES,
    JPEG,
    PNG,
    WEBP,
    BadDocument,
    Format,
    JsonPictures,
    Measured,
    NotAnImage,
    inline_pictures,
    peek,
    sniff,
)
from tests.conftest import run

MIB = 1024 * 1024
Found = tuple[dict[int, bytes], Any]


def reader(most_document_bytes: int = 64 * 1024) -> JsonPictures:
    return JsonPictures("data", "b64_json", most_document_bytes)


def ours(chunks: Iterable[bytes]) -> Found:
    """Pictures by place, and the remaining document."""
    document = reader()
    pictures: dict[int, bytes] = {}
    ended: list[int] = []
    for chunk in chunks:
        for piece in document.feed(chunk):
            assert piece.item not in ended
            pictures[piece.item] = pictures.get(piece.item, b"") + piece.data
            ended += [piece.item] if piece.last else []
    rest = document.finish()
    assert set(ended) == set(pictures)
    return pictures, rest


def naive(text: bytes) -> Found:
    """The same, with everything in memory. Raises ValueError."""
    document = json.loads(text)
    pictures = {}
    items = document.get("data") if isinstance(document, dict) else None
    for place, item in enumerate(items if isinstance(items, list) else []):
        if isinstance(item, dict) and isinstance(item.get("b64_json"), str):
            data = "".join(item["b64_json"].split())
            label, _, after = data.partition(",")
            pictures[place] = base64.b64decode(after if label.startswith("data:") else data, validate=True)
            item["b64_json"] = None
    return pictures, document


def cut(text: bytes, chance: random.Random) -> Iterator[bytes]:
    """The text in chunks: byte by byte, whole, or anything between."""
    most = chance.choice([1, 2, 7, 64, len(text) + 1])
    at = 0
    while at < len(text):
        size = chance.randint(1, most)
        yield text[at : at + size]
        at += size


# --- any document -----------------------------------------------------------------------------------------------------

KEYS = st.sampled_from(["data", "b64_json", "x", "", "clé", "data ", "B64_json", "𝄞"])
TEXTS = st.sampled_from(["", "AAAA", '{"data":[{"b64_json":"AAAA"}]}', '"b64_json":"', "\\", '\\"', "a/\n", "é𝄞", "]}"])
SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.sampled_from([0.5, -1e-7, 1e300]) | TEXTS
DECOYS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
SOUND = st.binary(max_size=40).map(lambda data: base64.b64encode(data).decode())
LABELLED = SOUND.map(lambda text: f"data:image/png;base64,{text}")
SPACED = SOUND.map(lambda text: " ".join(itertools.chain(*zip(text[::3], text[1::3], text[2::3], strict=False))))
PICTURES = st.one_of(SOUND, SOUND, SOUND, LABELLED, st.none(), st.integers(0, 9), SPACED, TEXTS)
ITEMS = st.builds(lambda other, picture: {**other, "b64_json": picture}, st.dictionaries(KEYS, DECOYS), PICTURES)
LISTS = st.lists(ITEMS | DECOYS, max_size=4)
REPLIES = st.builds(lambda other, items: {**other, "data": items}, st.dictionaries(KEYS, DECOYS, max_size=3), LISTS)


def write(value: Any, chance: random.Random) -> str:
    """JSON of this value in one of its many spellings: order of fields, white space, escapes."""

    def space() -> str:
        return chance.choice(["", "", "", " ", "\n\t", "\r\n  "])

    if isinstance(value, str):
        return '"' + "".join(spelt(letter, chance) for letter in value) + '"'
    if isinstance(value, list):
        return f"[{space()}" + f"{space()},{space()}".join(write(item, chance) for item in value) + f"{space()}]"
    if isinstance(value, dict):
        fields = list(value.items())
        chance.shuffle(fields)
        pairs = (f"{write(key, chance)}{space()}:{space()}{write(item, chance)}" for key, item in fields)
        return f"{{{space()}" + f"{space()},{space()}".join(pairs) + f"{space()}}}"
    return json.dumps(value)


def spelt(letter: str, chance: random.Random) -> str:
    """One character inside a string, plain or escaped."""
    way = chance.random()
    if way < 0.05:
        units = letter.encode("utf-16-be")
        return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
    if letter == "/" and way < 0.5:
        return "\\/"
    return json.dumps(letter, ensure_ascii=way < 0.5)[1:-1]


@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(document=REPLIES | DECOYS, seed=st.integers(0, 2**32))
def test_every_document_gives_the_same_as_the_plain_way_at_any_chunk_borders(document: Any, seed: int) -> None:
    """Same pictures and same remaining document, or both refuse.

    Two differences are meant: a lone surrogate is no text for us, and the four letters `data` are the beginning of a
    label and not a picture of three bytes; neither is generated here.
    """
    chance = random.Random(seed)
    text = write(document, chance).encode()
    try:
        expected: Found | None = naive(text)
    except ValueError:
        expected = None
    chunks = list(cut(text, chance))
    if expected is None:
        with pytest.raises(BadDocument):
            ours(chunks)
    else:
        assert ours(chunks) == expected
        assert ours(bytes([byte]) for byte in text) == expected


@settings(max_examples=800, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(document=REPLIES, seed=st.integers(0, 2**32))
def test_a_damaged_document_is_refused_or_read_as_the_plain_way_reads_it(document: Any, seed: int) -> None:
    """One byte changed, dropped or doubled: BadDocument, or the same result; never another exception.

    Where only the plain way accepts, ours is the stricter: a field twice in one item, deep nesting, a surrogate. Where
    only ours accepts, it has passed over bare white space inside a picture, as it does over the escaped kind.
    """
    chance = random.Random(seed)
    text = bytearray(write(document, chance).encode())
    place = chance.randrange(len(text))
    match chance.randrange(3):
        case 0:
            text[place] = chance.choice(b'{}[]",:\\u0aA/= \n\xff')
        case 1:
            del text[place]
        case _:
            text.insert(place, text[place])
    whole = bytes(text)
    if (found := or_none(cut(whole, chance))) is None:
        return
    try:
        expected = naive(whole)
    except ValueError:
        expected = naive(whole.translate(None, b"\n\t\r"))
    assert found == expected


def or_none(chunks: Iterable[bytes]) -> Found | None:
    try:
        return ours(chunks)
    except BadDocument:
        return None


@pytest.mark.parametrize(
    ("text", "pictures"),
    [
        ('{"data":[{"b64_json":"QUJD"}]}', {0: b"ABC"}),
        ('{"data":[{"b64_json":"\\u0051UJD"},{"b64_json":"RE\\u0056G"}]}', {0: b"ABC", 1: b"DEF"}),
        ('{"data":[{"b64_json":"\\/\\/\\u002B\\/"}]}', {0: b"\xff\xff\xbf"}),
        ('{"data":[{"b64_json":"Q\\nU\\r\\n J D"}]}', {0: b"ABC"}),
        ('{"data":[{"b64_json":"data:image/png;base64,QUJD"}]}', {0: b"ABC"}),
        ('{"\\u0064ata":[{"b64\\u005fjson":"QUJD"}]}', {0: b"ABC"}),
        ('{"data":[{"b64_json":""},{"b64_json":null},{"b64_json":1},{"b64_json":"QQ=="}]}', {0: b"", 3: b"A"}),
        ('{"data":[7,"b64_json",["b64_json","QUJD"],{"b64_json":"QUJD"}]}', {3: b"ABC"}),
        ('{"data":{"b64_json":"QUJD"}}', {}),
        ('{"data":"b64_json"}', {}),
        ('{"data":[[{"b64_json":"QUJD"}]]}', {}),
        ('{"data":[{"x":{"b64_json":"QUJD"}}]}', {}),
        ('{"x":{"data":[{"b64_json":"QUJD"}]}}', {}),
        ('{"x":[{"b64_json":"QUJD"}],"b64_json":"QUJD"}', {}),
        ('{"data":[{"x":"b64_json","y":"QUJD"}]}', {}),
        ('[{"data":[{"b64_json":"QUJD"}]}]', {}),
        ('[[{"b64_json":"QUJD"}]]', {}),
        ('"data"', {}),
    ],
)
def test_only_the_strings_at_the_one_path_are_pictures(text: str, pictures: dict[int, bytes]) -> None:
    """Decoys stay in the document; every spelling of the path counts."""
    expected = naive(text.encode())
    assert expected[0] == pictures
    assert ours([text.encode()]) == ours(bytes([byte]) for byte in text.encode()) == expected


@pytest.mark.parametrize(
    "text",
    [
        '{"data":[{"b64_json":"QUJD","b64_json":"QUJD"}]}',
        '{"data":[{"b64_json":"QUJD"}],"data":[{"b64_json":"REVG"}]}',
    ],
)
def test_a_picture_twice_at_one_place_is_refused(text: str) -> None:
    """Stricter than `json.loads`, which takes the last: here the first has already gone by."""
    with pytest.raises(BadDocument, match="twice"):
        ours([text.encode()])


@pytest.mark.parametrize(
    "text", ["Q", "QQ", "QQ=", "Q===", "=", "QQ==QQ==", "QUJD=", "QU-_", "@@@@", "QUJ\u00e9", "QQ=A"]
)
def test_what_is_no_base64_is_refused_at_any_borders(text: str) -> None:
    """Broken off, going on after its padding, or of another alphabet."""
    document = json.dumps({"data": [{"b64_json": text}]}, ensure_ascii=False).encode()
    for size in range(1, 8):
        with pytest.raises(BadDocument):
            ours(document[at : at + size] for at in range(0, len(document), size))


@pytest.mark.parametrize("escape", ["\\x", "\\u12", "\\u12g4", '\\u"', "\\U0041", "\\"])
@pytest.mark.parametrize("place", ['{{"data":[{{"b64_json":"{}"}}]}}', '{{"{}":1}}', '{{"a":"{}"}}'])
def test_a_wrong_escape_is_refused(escape: str, place: str) -> None:
    """In a picture, a key and a text."""
    assert or_none([place.format(escape).encode()]) is None


# --- bounded ----------------------------------------------------------------------------------------------------------


def test_a_picture_of_40_mb_needs_less_than_1_mib() -> None:
    """Read in chunks of 64 KiB, and in the same memory when every slash is escaped."""
    for unit in (base64.b64encode(bytes(range(256)) * 192), (b"QUJDREVG" * 16 + b"\\/\\/\\/\\/") * 496):
        document = reader()
        decoded = 0
        tracemalloc.start()
        document.feed(b'{"data":[{"b64_json":"')
        for _ in range(40 * MIB // len(unit) if b"\\" not in unit else 40):
            decoded += sum(len(piece.data) for piece in document.feed(unit))
        document.feed(b'"}]}')
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert document.finish() == {"data": [{"b64_json": None}]}
        assert decoded >= (29 * MIB if b"\\" not in unit else MIB)
        assert peak < MIB


ENDLESS = {
    "text": (b'{"a":"', b"x" * 65536),
    "text of escapes": (b'{"a":"', b"\\u0041" * 8000),
    "numbers": (b"[", b"1," * 30000),
    "white space": (b"", b" " * 65536),
    "digits": (b"", b"1" * 65536),
    "empty pictures": (b'{"data":[', b'{"b64_json":""},' * 4000),
    "arrays": (b"", b"[" * 100),
    "objects": (b"", b'{"a":' * 100),
    "pairs": (b"", b"[{" * 100),
    "a key": (b'{"', b"k" * 100),
    "a key of escapes": (b'{"', b"\\u006b" * 50),
    "a label": (b'{"data":[{"b64_json":"data:', b"image/png;" * 10),
    "a label, byte by byte": (b'{"data":[{"b64_json":"data:', b"i"),
    "white space in a label": (b'{"data":[{"b64_json":"data:', b"\\n \\ta" * 10),
}


@pytest.mark.parametrize("hostile", ENDLESS.values(), ids=ENDLESS)
def test_what_never_ends_is_refused_early(hostile: tuple[bytes, bytes]) -> None:
    """A document without an end, nesting, a key and a label are cut off after a bounded number of bytes."""
    document = reader()
    document.feed(hostile[0])

    def feed_on() -> None:
        for _ in range(300):
            document.feed(hostile[1])

    with pytest.raises(BadDocument):
        feed_on()


def test_a_long_label_is_refused_at_any_borders() -> None:
    """Whether it arrives at once or in pieces makes no difference."""
    text = b'{"data":[{"b64_json":"data:' + b"x" * 200 + b",QUJD" + b'"}]}'
    for size in (1, 10, len(text)):
        assert or_none(text[at : at + size] for at in range(0, len(text), size)) is None


def test_a_document_cut_off_anywhere_is_refused() -> None:
    """Every proper beginning of a reply is a BadDocument at the latest at its end."""
    text = b'{"created":1,"data":[{"b64_json":"QUJD","x":"a\\u00e9"},{"b64_json":"data:a;base64,REVG"}],"n":{"n":[1]}}'
    assert ours([text])[0] == {0: b"ABC", 1: b"DEF"}
    for end in range(len(text)):
        assert or_none([text[:end]]) is None


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=20) | st.text(' {}[]",:\\u0dATab64_json=', max_size=30).map(str.encode), max_size=8))
def test_random_bytes_are_a_document_or_refused(chunks: list[bytes]) -> None:
    """Nothing but BadDocument comes out of noise."""
    or_none([b'{"data":[{"b64_json":"', *chunks])
    or_none(chunks)


# --- pictures while they arrive ---------------------------------------------------------------------------------------

TWO = b'{"data":[{"b64_json":"' + base64.b64encode(b"first" * 99) + b'"},{"b64_json":"'
TWO += base64.b64encode(b"second" * 99) + b'"}],"created":1}'


async def source(text: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(text), size):
        yield text[at : at + size]


@pytest.mark.parametrize("size", [1, 10, 100, 10_000])
@pytest.mark.parametrize("taken", [0, 1, 3, None])
def test_a_reader_that_leaves_a_picture_early_gets_the_next_one_whole(size: int, taken: int | None) -> None:
    """What is left of the first is passed over, however the bytes come."""

    async def read() -> list[tuple[int, bytes]]:
        found = []
        document = reader()
        async for place, chunks in inline_pictures(source(TWO, size), document):
            data, count = b"", 0
            while (place or taken is None or count < taken) and (chunk := await anext(chunks, None)) is not None:
                data, count = data + chunk, count + 1
            found.append((place, data))
        assert document.finish()["created"] == 1
        return found

    (_, first), (place, second) = run(read())
    assert (b"first" * 99).startswith(first) and (taken is not None or first == b"first" * 99)
    assert (place, second) == (1, b"second" * 99)


@pytest.mark.parametrize("end", [30, 200, 600])
def test_a_reply_that_ends_inside_a_picture_is_refused_to_its_reader(end: int) -> None:
    """The one who reads that picture is told, and there is no next one."""

    async def read() -> int:
        broken = 0
        async for _, chunks in inline_pictures(source(TWO[:end], 50), reader()):
            with pytest.raises(BadDocument, match="breaks off"):
                async for _ in chunks:
                    pass
            broken += 1
        return broken

    assert run(read()) == 1


def test_an_error_of_the_source_reaches_who_reads_the_picture() -> None:
    """It is neither swallowed nor turned into an end."""

    async def failing() -> AsyncIterator[bytes]:
        yield TWO[:200]
        raise ConnectionResetError

    async def read() -> None:
        async for _, chunks in inline_pictures(failing(), reader()):
            async for _ in chunks:
                pass

    with pytest.raises(ConnectionResetError):
        run(read())


# --- an image's bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", PNG),
        (b"\xff\xd8\xff\xe0", JPEG),
        (b"\xff\xd8\xff\xdb", JPEG),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", WEBP),
        (b"", None),
        (b"\x89PNG", None),
        (b"\xff\xd8", None),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", None),
        (b"WEBP", None),
        (b"GIF89a", None),
        (b"<svg xmlns=", None),
        (b"<!DOCTYPE html>", None),
        (b"%PDF-1.7", None),
        (b" \x89PNG\r\n\x1a\n", None),
    ],
)
def test_the_format_is_known_by_the_first_bytes(head: bytes, kind: Format | None) -> None:
    """PNG, JPEG and WebP; all else, SVG and HTML first of all, is no image."""
    if kind is not None:
        assert sniff(head) == kind
    else:
        with pytest.raises(NotAnImage):
            sniff(head)


def test_what_is_measured_is_what_went_by() -> None:
    """Size and SHA-256 of exactly the bytes passed on."""
    data = random.Random(1).randbytes(10_000)

    async def read() -> None:
        measured = Measured(source(data, 37), len(data))
        assert b"".join([chunk async for chunk in measured]) == data
        assert (measured.size_bytes, measured.sha256) == (len(data), hashlib.sha256(data).hexdigest())

    run(read())


def test_one_byte_too_many_is_refused_before_it_is_passed_on() -> None:
    """The cap is the most that a store is given."""

    async def read() -> None:
        measured = aiter(Measured(source(b"x" * 100, 10), 99))
        assert b"".join([await anext(measured) for _ in range(9)]) == b"x" * 90
        with pytest.raises(NotAnImage, match="more than 99 bytes"):
            await anext(measured)

    run(read())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=20), max_size=8))
def test_a_peek_loses_nothing(chunks: list[bytes]) -> None:
    """The head is the beginning, as long as there is one; the stream is whole, from its first byte."""
    data = b"".join(chunks)

    async def given_chunks() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def read() -> None:
        head, whole = await peek(given_chunks())
        assert data.startswith(head) and len(head) >= min(HEAD_BYTES, len(data))
        assert b"".join([chunk async for chunk in whole]) == data

    run(read())


def test_a_whole_picture_before_a_broken_one_is_given_out() -> None:
    """What came before the fault in the same chunk is not lost; the fault comes at the next word."""
    text = base64.b64encode(b"whole").decode()
    document = JsonPictures("data", "b64_json", 10_000)
    pieces = document.feed(f'{{"data":[{{"b64_json":"{text}"}},{{"b64_json":"!!!!"}}]}}'.encode())
    assert b"".join(piece.data for piece in pieces) == b"whole" and pieces[-1].last
    with pytest.raises(BadDocument):
        document.feed(b" ")
    with pytest.raises(BadDocument):
        document.finish()
