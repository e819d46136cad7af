"""Which names may be chosen: those that nobody mistakes for another."""

import random
import unicodedata

import pytest

from metering.names import check_name
from metering.ports import WrongField

GOOD = [
    "demo", "taller", "Diseño Niño 2", "prod-web", "ana@example.com", "Ñandú_S.A. de C.V", "façade Müller Ångström",
    "Łódź Straße Æsir Œuvre", "Đặng Nguyễn", "пример", "ООО Ромашка", "Παράδειγμα", "東京タワーのカメラ", "한국어",
    "漢字", "عربي", "עברית", "42", "a", "x" * 64, "key 1f2e3d4c5b6a", "acme 2036-11-22",
]  # fmt: skip
BAD = {
    "demо": "mixes letters",  # its last letter is Cyrillic
    "аcme": "mixes letters",
    "Αcme": "mixes letters",  # a Greek capital
    "асе": "looks like Latin",  # all of it is Cyrillic
    "ΟΝΕ 1": "looks like Latin",
    "東京a": "mixes letters",
    "\u3164": "written with unusual",
    "a\u1160b": "invisible",
    "\u115f": "invisible",
    "ｄｅｍｏ": "written with unusual",
    "ﬁn": "written with unusual",
    "demo²": "written with unusual",
    "disen\u0303o": "is no name",  # an n and an accent, which is another name than with ñ
    "de\u200bmo": "is no name",
    "de\u00admo": "is no name",
    "\u202edemo": "is no name",
    "demo\ufe0f": "is no name",
    "acme  corp": "two spaces",
    "dɑta": "looks like another letter",
    "dıgital": "looks like another letter",
    "ᴅemo": "looks like another letter",
    "demoǃ": "looks like another letter",
    "acmeʼ": "mixes letters",
    "٤٢": "no usual digit",
    "11111111-1111-4111-8111-111111111111": "looks like an organisation's id",
    "AAAAAAAA-1111-4111-8111-11111111111F": "looks like an organisation's id",
    "aaaaaaaa111141118111111111111111": "looks like an organisation's id",
    "AAAAAAAA 1111.4111_8111-11111111 1111": "looks like an organisation's id",
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_usual_name_is_taken(name: str) -> None:
    """Latin with accents and ñ, or one other alphabet."""
    check_name(name)


@pytest.mark.parametrize("name", BAD)
def test_one_that_could_be_taken_for_another_is_refused_with_a_sentence(name: str) -> None:
    """It says what is wrong with it."""
    with pytest.raises(WrongField, match=BAD[name]) as caught:
        check_name(name)
    assert caught.value.field == "name"


def test_every_character_that_is_taken_is_seen_and_stays_as_it_is() -> None:
    """All of Unicode, one by one between two letters of its own kind: none is a format, a mark, or changed by NFKC."""
    for one in map(chr, random.Random(11).sample(range(0x11_0000), 60_000)):
        for name in (f"{one}{one}", f"a{one}a"):
            try:
                check_name(name)
            except WrongField:
                continue
            assert unicodedata.category(one)[0] in "LN" or one in " ._@-", ascii(one)
            assert unicodedata.normalize("NFKC", name) == name
            assert not name.startswith("a") or one.isascii() or unicodedata.name(one).startswith("LATIN")
