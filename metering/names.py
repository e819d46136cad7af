"""Names of organisations and keys: which may be chosen today. An existing name goes on working.

Money is added to an organisation by its name, so no two names may look the same to the person who types them.
"""

import re
import unicodedata

from metering.ports import WrongField

_FORM = re.compile(r"\w([\w .@-]{0,62}[\w.@-])?")
_BETWEEN = re.compile(r"[ ._@-]")
_UUID = re.compile(r"[0-9a-f]{32}")

_INVISIBLE = frozenset("\u115f\u1160\u3164\uffa0")
"""Hangul fillers: Unicode calls them letters, but they are invisible. No other invisible character is a letter."""

_OF_LATIN = frozenset("ÆæØøŒœÐðÞþŁłĐđß")
"""European letters that nobody confuses with others. A to Z, with or without accents, need no entry here."""

_LIKE_LATIN = frozenset("АВЕЅІЈКМНОРСТУХЬаеорсухѕіјһԁԛԝьΑΒΕΖΗΙΚΜΝΟΡΤΥΧανοικυχρϳ")
"""Cyrillic and Greek letters that look Latin. A name made only of them could be mistaken for a Latin one."""

_WRITTEN_TOGETHER = ({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}, {"CJK", "HANGUL"}, {"CJK", "BOPOMOFO"})
"""Sets of scripts that one language mixes."""


def check_name(name: str) -> None:
    """Raise WrongField, which says what a name must be like, if this one may not be chosen."""
    if not _FORM.fullmatch(name):
        raise WrongField("name", f"{name!r} is no name: up to 64 letters, digits, spaces, or . _ @ -")
    usual = unicodedata.normalize("NFKC", name)
    if usual != name:
        raise WrongField("name", f"{name!a} is written with unusual characters; write it as {usual!r}")
    if "  " in name:
        raise WrongField("name", f"{name!r} has two spaces together, which nobody sees; write one")
    if hidden := _INVISIBLE.intersection(name):
        raise WrongField("name", f"{name!a} has an invisible character, {min(hidden)!a}; leave it out")
    if _UUID.fullmatch(_BETWEEN.sub("", name.lower())):
        raise WrongField("name", f"{name!r} looks like an organisation's id; choose a name that is no UUID")
    _check_letters(name)


def _check_letters(name: str) -> None:
    letters = [one for one in name if one.isalnum() and not one.isascii()]
    if strange := [one for one in letters if not one.isalpha()]:
        raise WrongField("name", f"{name!r} has {strange[0]!a}, which is no usual digit; write 0 to 9")
    scripts = {_script(one) for one in name if one.isalpha()}
    if len(scripts) > 1 and not any(scripts <= together for together in _WRITTEN_TOGETHER):
        named = ", ".join(sorted(script.capitalize() for script in scripts))
        raise WrongField("name", f"{name!r} mixes letters that look alike ({named}); write it in one alphabet")
    if scripts == {"LATIN"}:
        if strange := [one for one in letters if not _usual_latin(one)]:
            raise WrongField("name", f"{name!r} has {strange[0]!a}, which looks like another letter; write that")
    elif scripts and _LIKE_LATIN.issuperset(letters):
        raise WrongField("name", f"{name!r} looks like Latin letters and is {min(scripts).capitalize()}; write Latin")


def _script(letter: str) -> str:
    """Find a letter's script: the first word of its Unicode name."""
    return unicodedata.name(letter, "UNKNOWN").split()[0]


def _usual_latin(letter: str) -> bool:
    return letter in _OF_LATIN or unicodedata.normalize("NFD", letter)[0].isascii()
