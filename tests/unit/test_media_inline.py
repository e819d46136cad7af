"""Pictures out of JSON while it streams by, judged by the plain way: `json.loads` and `base64.b64decode`."""

import base64
import json
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.media.inline import BadDocument, JsonPictures, base64_length, base64_of, inline_pictures
from tests.conftest import run
from tests.fuzz import inline as fuzz
from tests.fuzz.inline import Found, disagreement, disagreements, plain, streamed
from tests.fuzz.replies import GOOGLE, OPENAI, Writer
from tests.long import examples

MIB = 1024 * 1024


def reader(max_document_bytes: int = 64 * 1024) -> JsonPictures:
    return JsonPictures("data", "b64_json", max_document_bytes)


def or_none(chunks: Iterable[bytes]) -> Found | None:
    return streamed(chunks, OPENAI)


def bytewise(text: bytes) -> list[bytes]:
    return [text[at : at + 1] for at in range(len(text))]


# --- any document -----------------------------------------------------------------------------------------------------


def test_random_replies_give_the_same_as_the_plain_way() -> None:
    """10,000 of the cases of which `make fuzz` runs a million, or 50 in `make quick`: both agree, or both refuse."""
    assert disagreements(0, examples(10_000)) == []


def test_the_random_replies_are_of_every_kind() -> None:
    """Whole and broken, with several pictures, one and none; otherwise an agreement would say little."""
    kinds = Counter[str]()
    for seed in range(2000):
        shape = random.Random(seed).choice([OPENAI, GOOGLE])
        text = Writer(shape, random.Random(seed)).reply()
        found = plain(text, shape)
        kinds["refused" if found is None else f"{len(found[0])} pictures"] += 1
        kinds["with escaped slashes"] += found is not None and b"\\/" in text
        kinds["with escapes by number"] += found is not None and any(found[0].values()) and b"\\u" in text
    assert min(kinds[kind] for kind in ("refused", "0 pictures", "1 pictures", "with escaped slashes")) > 200
    assert min(kinds[kind] for kind in ("2 pictures", "3 pictures", "with escapes by number")) > 50


def test_a_disagreement_names_the_seed_that_makes_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that finds no picture ever disagrees in many cases, each of which its own seed shows."""
    monkeypatch.setattr(fuzz, "inline_pictures", lambda chunks, document: nothing())
    said = disagreements(100, 50)
    assert len(said) > 10
    for line in said:
        seed = int(line.removeprefix("seed ").partition(":")[0])
        assert disagreement(seed) == line and 100 <= seed < 150


async def nothing() -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
    """No pictures."""
    for none in list[tuple[int, AsyncIterator[bytes]]]():
        yield none


@pytest.mark.parametrize(
    ("text", "pictures"),
    [
        ('{"data":[{"b64_json":"QUJD"}]}', {0: b"ABC"}),
        ('{"data":[{"b64_json":"\\u0051UJD"},{"b64_json":"RE\\u0056G"}]}', {0: b"ABC", 1: b"DEF"}),
        ('{"data":[{"b64_json":"\\/\\/\\u002B\\/"}]}', {0: b"\xff\xff\xbf"}),
        ('{"data":[{"b64_json":"Q\\nU\\r\\n J D"}]}', {0: b"ABC"}),
        ('{"data":[{"b64_json":"data:image/png;base64,QUJD"}]}', {0: b"ABC"}),
        ('{"\\u0064ata":[{"b64\\u005fjson":"QUJD"}]}', {0: b"ABC"}),
        ('{"data":[{"b64_json":"data:;base64,"},{"b64_json":"data"}]}', {0: b"", 1: b"u\xabZ"}),
        ('{"data":[{"b64_json":" da\\nt\\u0061 "}]}', {0: b"u\xabZ"}),
        ('{"data":[{"b64_json":"ab\\/\\/"}]}', {0: b"i\xbf\xff"}),
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
    expected = plain(text.encode(), OPENAI)
    assert expected is not None and expected[0] == pictures
    assert or_none([text.encode()]) == or_none(bytewise(text.encode())) == expected


@pytest.mark.parametrize(
    "text",
    [
        '{"data":[{"b64_json":"QUJD","b64_json":"QUJD"}]}',
        '{"data":[{"b64_json":"QUJD","b64_json":null}]}',
        '{"data":[{"b64_json":null,"b64\\u005fjson":"QUJD"}]}',
        '{"data":[{"b64_json":"QUJD"}],"data":[{"b64_json":"REVG"}]}',
        '{"data":[{"b64_json":"QUJD"}],"data":null}',
        '{"data":[{"b64_json":"QUJD"}],"d\\u0061ta":[]}',
    ],
)
def test_a_key_twice_on_the_way_to_a_picture_is_refused(text: str) -> None:
    """Stricter than `json.loads`, which takes the last: here the first has already gone by. Elsewhere it may be."""
    for chunks in ([text.encode()], bytewise(text.encode())):
        document = reader()

        def feed(chunks: list[bytes] = chunks, document: JsonPictures = document) -> None:
            for chunk in chunks:
                document.feed(chunk)
            document.finish()

        with pytest.raises(BadDocument, match="a key twice"):
            feed()


def test_a_key_twice_elsewhere_is_none_of_our_business() -> None:
    """The last one counts, as in the plain way."""
    text = b'{"x":{"data":1,"data":2},"data":[{"y":1,"y":2,"b64_json":"QUJD"},{"z":{"b64_json":1,"b64_json":""}}]}'
    expected = plain(text, OPENAI)
    assert expected == ({0: b"ABC"}, {"x": {"data": 2}, "data": [{"y": 2, "b64_json": None}, {"z": {"b64_json": ""}}]})
    assert or_none([text]) == or_none(bytewise(text)) == expected


@pytest.mark.parametrize(
    "text", ['{"data":[{"b64_json":"QUJD""REVG"}]}', '{"data":[{"b64_json":"QUJD"}{"b64_json":"REVG"}]}']
)
def test_two_pictures_never_have_one_place(text: str) -> None:
    """A comma that is missing between them is found before the second begins, and not at the document's end."""
    document = reader()
    pieces = document.feed(text.encode())
    assert [(piece.item, piece.data) for piece in pieces] == [(0, b"ABC"), (0, b"")]
    with pytest.raises(BadDocument, match="twice"):
        document.finish()


@pytest.mark.parametrize(
    "text",
    [
        "Q",
        "QQ",
        "QQ=",
        "Q===",
        "=",
        "QQ==QQ==",
        "QUJD=",
        "QU-_",
        "@@@@",
        "QUJ\u00e9",
        "QQ=A",
        "Q\x00==",
        "\fQUJD",
        "QU\bJD",
        "QU\\\\/J",
    ],
)
def test_what_is_no_base64_is_refused_at_any_borders(text: str) -> None:
    """Broken off, going on after its padding, or of another alphabet."""
    document = json.dumps({"data": [{"b64_json": text}]}, ensure_ascii=False).encode()
    for size in range(1, 8):
        assert or_none(document[at : at + size] for at in range(0, len(document), size)) is None


@pytest.mark.parametrize("escape", ["\\x", "\\u12", "\\u12g4", '\\u"', "\\U0041", "\\"])
@pytest.mark.parametrize("place", ['{{"data":[{{"b64_json":"{}"}}]}}', '{{"{}":1}}', '{{"a":"{}"}}'])
def test_a_wrong_escape_is_refused(escape: str, place: str) -> None:
    """In a picture, a key and a text."""
    text = place.format(escape).encode()
    assert or_none([text]) is or_none(bytewise(text)) is None


@pytest.mark.parametrize("place", ['{{"data":[{{"b64_json":"QU{}JD"}}]}}', '{{"a{}":1}}', '{{"a":"{}"}}'])
@pytest.mark.parametrize("letter", ["\n", "\t", "\x00", "\x1f"])
def test_a_bare_control_character_is_refused(place: str, letter: str) -> None:
    """JSON has them as escapes alone."""
    text = place.format(letter).encode()
    assert or_none([text]) is or_none(bytewise(text)) is None


@pytest.mark.parametrize(
    "label",
    ["data:image/png,", "data:base64,", "data:é;base64,", "data:\\ud834\\udd1e;base64,", "data:\\u0000;base64,"],
)
def test_a_label_that_does_not_promise_base64_is_refused(label: str) -> None:
    """Printable ASCII that ends in `;base64`; what else comes in front of a picture is not base64 itself."""
    for good, text in ((True, "data:image/png;base64,QUJD"), (False, f"{label}QUJD")):
        document = f'{{"data":[{{"b64_json":"{text}"}}]}}'.encode()
        for chunks in ([document], bytewise(document)):
            assert (or_none(chunks) is not None) == good


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
    whole = or_none([text])
    assert whole is not None and whole[0] == {0: b"ABC", 1: b"DEF"}
    for end in range(len(text)):
        assert or_none([text[:end]]) is None


@settings(max_examples=examples(1000), deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=20) | st.text(' {}[]",:\\u0dATab64_json=', max_size=30).map(str.encode), max_size=8))
def test_random_bytes_are_a_document_or_refused(chunks: list[bytes]) -> None:
    """Nothing but BadDocument comes out of noise."""
    or_none([b'{"data":[{"b64_json":"', *chunks])
    or_none(chunks)


# --- fast -------------------------------------------------------------------------------------------------------------


def seconds_for(text: bytes) -> float:
    """The least of five times that 64 KiB of a picture take."""
    times = []
    for _ in range(5):
        document = reader()
        document.feed(b'{"data":[{"b64_json":"')
        begun = time.perf_counter()
        document.feed(text)
        times.append(time.perf_counter() - begun)
    return min(times)


def test_simple_escapes_do_not_make_a_picture_slow() -> None:
    """Nothing but escaped slashes or newlines: once 100 times what letters with one escape take, now about 5 times."""
    plainly = seconds_for(b"\\n" + b"QUJD" * 16_384)
    for escapes in (b"\\/" * 32_768, b"\\n" * 32_768, b"\\/QUJD\\n" * 8192):
        assert seconds_for(escapes) < 25 * plainly


# --- pictures while they arrive ---------------------------------------------------------------------------------------

TWO = b'{"data":[{"b64_json":"' + base64.b64encode(b"first" * 99) + b'"},{"b64_json":"'
TWO += base64.b64encode(b"second" * 99) + b'"}],"created":1}'


async def source(text: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(text), size):
        yield text[at : at + size]


@pytest.mark.parametrize("size", [1, 10, 100, 10_000])
@pytest.mark.parametrize("taken", [0, 1, 3, None])
def test_a_reader_that_leaves_a_picture_early_gets_the_next_one_whole(size: int, taken: int | None) -> None:
    """The rest of the first is skipped, in whatever pieces the bytes come."""

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


def test_a_whole_picture_before_a_broken_one_is_given_out() -> None:
    """Bytes before the error in the same chunk are not lost; the error comes with the next call."""
    text = base64.b64encode(b"whole").decode()
    document = JsonPictures("data", "b64_json", 10_000)
    pieces = document.feed(f'{{"data":[{{"b64_json":"{text}"}},{{"b64_json":"!!!!"}}]}}'.encode())
    assert b"".join(piece.data for piece in pieces) == b"whole" and pieces[-1].last
    with pytest.raises(BadDocument):
        document.feed(b" ")
    with pytest.raises(BadDocument):
        document.finish()


# --- base64 out -------------------------------------------------------------------------------------------------------


@settings(max_examples=examples(200), deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=9), max_size=8))
def test_base64_of_chunks_is_that_of_the_whole(chunks: list[bytes]) -> None:
    """At any borders, and as long as was said before."""

    async def given_chunks() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def encoded() -> bytes:
        return b"".join([text async for text in base64_of(given_chunks())])

    text = run(encoded())
    assert text == base64.b64encode(b"".join(chunks))
    assert len(text) == base64_length(sum(map(len, chunks)))


NESTED = (
    b'{"inlineData":{"data":"AAAA"},"candidates":[{"content":{"data":"AAAA","parts":[{"text":"a"},{"inlineData":'
    b'{"mimeType":"image/png","data":"cGljdHVyZQ=="},"thought":true,"sign":"xyz"},{"data":"AAAA","inlineData":{"data":'
    b'"b25l"}}]},"sign":"x\\"y","finishReason":"STOP"},{"content":{"parts":[{"inlineData":{"data":"AAAA"}}]}}]}'
)


@pytest.mark.parametrize("cut", range(len(NESTED)))
def test_a_picture_may_lie_deeper_and_texts_of_one_key_are_dropped(cut: int) -> None:
    """By its whole path and nowhere else, wherever it is cut; each item can be read as soon as it is closed."""
    document = JsonPictures("candidates.0.content.parts", "inlineData.data", 10_000, "sign")
    found: dict[int, bytes] = {}
    for piece in (*document.feed(NESTED[:cut]), *document.feed(NESTED[cut:])):
        found[piece.item] = found.get(piece.item, b"") + piece.data
    assert found == {1: b"picture", 2: b"one"}
    assert document.item(1) == {"inlineData": {"mimeType": "image/png", "data": None}, "thought": True, "sign": None}
    assert document.item(2) == {"data": "AAAA", "inlineData": {"data": None}}
    first, second = document.finish()["candidates"]
    assert (first["sign"], first["finishReason"], len(first["content"]["parts"])) == (None, "STOP", 3)
    assert second["content"]["parts"][0]["inlineData"] == {"data": "AAAA"}
    with pytest.raises(BadDocument):
        document.item(0)
