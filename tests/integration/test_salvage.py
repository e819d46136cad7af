"""A damaged journal: readable orders are found, the rest is named (rules 12–15)."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import orjson
import pytest

from metering.answered import AnsweredOrder, encode
from metering.events import StoredImage
from metering.journal.file import Journal
from metering.journal.frames import PAGE_BYTES, Entry, Folder, JournalError, OldJournal, encode_frame, file_name, survey
from metering.journal.salvage import check_versions, read_orders
from tests.conftest import run
from tests.integration.test_journal import SEGMENT, data, journals, only, written

INCARNATION = UUID("11111111-1111-4111-8111-111111111111")


def found(path: Path) -> OldJournal:
    """The one journal of a folder, whatever its state."""
    (past,) = survey(path).incarnations
    return past


def frames(path: Path, name: str, *pages: tuple[int, list[bytes]] | None, blank: int = 2) -> None:
    """A file made by hand: frames, or None for a page of zeros, and some such pages behind them."""
    content = b"".join(bytes(PAGE_BYTES) if page is None else encode_frame(INCARNATION, *page) for page in pages)
    (path / name).write_bytes(content + bytes(blank * PAGE_BYTES))


def old(count: int) -> str:
    """The name of a file as versions without empty frames wrote it."""
    return f"{INCARNATION.hex}-{count:08d}.journal"


def new(count: int) -> str:
    return file_name(INCARNATION, count)


def numbers(past: OldJournal) -> list[int]:
    return [entry.number for entry in past.entries]


@pytest.mark.parametrize("seed", range(8))
def test_good_frames_are_found_and_the_rest_is_named(tmp_path: Path, seed: int) -> None:
    """Bits flipped in some frames, over several files: every other entry is there, and the lost numbers are told."""
    run(written(tmp_path, 60, at_once=False))
    chance = random.Random(seed)
    whole = only(tmp_path).entries
    place = {(entry.file, at): entry.number for entry, at in _places(whole)}
    lost = chance.sample(sorted(place), 5)
    for name, at in lost:
        content = bytearray((tmp_path / name).read_bytes())
        content[at + chance.randrange(60)] ^= 1 << chance.randrange(8)
        (tmp_path / name).write_bytes(content)
    gone = {place[one] for one in lost}
    past = found(tmp_path)
    if 60 in gone:  # the last frame may be torn: it was never acknowledged, as far as one can tell
        gone.discard(60)
        assert numbers(past)[-1] != 60
    told = {number for first, last in past.missing if last is not None for number in range(first, last + 1)}
    assert told == gone
    assert set(numbers(past)) == set(range(1, 61)) - gone - ({60} & {place[one] for one in lost})
    assert all(entry.data == data(entry.number) for entry in past.entries)
    inside = [one for one in lost if place[one] != 60]
    assert all(any(d.file == name and d.start <= at < d.end for d in past.damage) for name, at in inside)
    with pytest.raises(JournalError, match=r"damaged.*`ghub journal salvage"):
        only(tmp_path)


def _places(entries: tuple[Entry, ...]) -> list[tuple[Entry, int]]:
    """Position of each entry, one on each page after the file's first page."""
    seen: dict[str, int] = {}
    places = []
    for entry in entries:
        seen[entry.file] = seen.get(entry.file, 0) + PAGE_BYTES
        places.append((entry, seen[entry.file]))
    return places


def test_a_file_that_is_gone_is_missed(tmp_path: Path) -> None:
    """Its numbers are told, though no byte is damaged."""
    run(written(tmp_path, 60, at_once=False))
    files = journals(tmp_path)
    within = [entry.number for entry in only(tmp_path).entries if entry.file == files[1].name]
    files[1].unlink()
    past = found(tmp_path)
    assert past.damage == () and past.missing == ((within[0], within[-1]),)
    with pytest.raises(JournalError, match=rf"entries after {within[0] - 1} are missing"):
        only(tmp_path)


@pytest.mark.rule(14)
@pytest.mark.parametrize("name", [old, new])
def test_a_file_of_zeros_before_one_that_is_written_is_damage(tmp_path: Path, name: Callable[[int], str]) -> None:
    """Whether it is the first or not, and whatever the numbers say; behind the last one it is a spare one (rule 14)."""
    frames(tmp_path, name(1), (1, []), (1, [b"a", b"b"]))
    frames(tmp_path, name(2), None)
    assert numbers(only(tmp_path)) == [1, 2]
    frames(tmp_path, name(3), (3, []), (3, [b"c"]))
    past = found(tmp_path)
    assert past.damage[0].file == name(2) and numbers(past) == [1, 2, 3] and past.missing == ()
    with pytest.raises(JournalError, match="all zeros, and later files are written"):
        only(tmp_path)
    frames(tmp_path, name(1), None)
    past = found(tmp_path)
    assert past.damage[0].file == name(1) and numbers(past) == [3] and past.missing == ((1, 2),)


def test_a_file_that_was_in_use_and_holds_nothing_is_damage(tmp_path: Path) -> None:
    """Its content is not known, nor its number of entries: so it is never closed as if nothing were missing."""
    frames(tmp_path, new(1), None)
    frames(tmp_path, new(2), None)
    assert found(tmp_path).missing == ((1, None),)
    with pytest.raises(JournalError, match="it was in use, and nothing of it can be read"):
        only(tmp_path)


def test_a_journal_of_the_version_before_is_read_whole(tmp_path: Path) -> None:
    """Without an empty frame in front; with a first commit torn, or a file begun again after a failed sync."""
    frames(tmp_path, old(1), (1, [b"a"]), (2, [b"failed"]))
    frames(tmp_path, old(2), (2, []), (2, [b"b", b"c"]))
    frames(tmp_path, old(3), None)
    past = only(tmp_path)
    assert [entry.data for entry in past.entries] == [b"a", b"b", b"c"]
    for file in journals(tmp_path):
        file.unlink()
    frames(tmp_path, old(1), None)
    frames(tmp_path, old(2), None)
    assert only(tmp_path).entries == ()


def test_a_frame_of_a_later_version_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """It names the file, and what to do; nothing is taken for damage."""
    frames(tmp_path, new(1), (1, [b"a"]))
    content = (tmp_path / new(1)).read_bytes()
    (tmp_path / new(1)).write_bytes(b"GHJ2" + content[4:])
    for reads in (only, survey):
        with pytest.raises(JournalError, match=rf"{new(1)} was written by a later version .*start that version"):
            reads(tmp_path)


@pytest.mark.rule(13)
def test_an_entry_of_another_version_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """A roll-back after an upgrade: which file, which entry, which version, and what to do (rule 13)."""
    frames(tmp_path, new(1), (1, [orjson.dumps({"v": 2, "answered": {}})]), (2, [encode(answered("r1"))]))
    with pytest.raises(JournalError) as refused:
        check_versions([only(tmp_path)])
    assert str(refused.value) == (
        f"entry 1 in {new(1)} was written by another version of ghub (version 2): start that version once more, or have"
        " its `ghub journal replay` bring it"
    )
    orders, unreadable = read_orders(only(tmp_path))
    assert [one.order for one in orders] == [answered("r1")]
    assert [(one.entry.number, one.why) for one in unreadable] == [(1, "version 2")]


OF_THE_FIRST_VERSION = (
    b'{"v":1,"answered":{"org_id":"o","key_id":"k","fingerprint":"f","key_hash":null,"client_gone":false,"request_id":'
    b'"r1","amount_micro_mxn":840000,"images":[{"path":"o/r/0.png","content_type":"image/png","size_bytes":9,"sha256":'
    b'"s","width_px":1,"height_px":2}],"usd_measured":null,"opened":"{}","result":"{}","admitted_us":1,"ended_us":2}}'
)


FRAME_OF_THE_FIRST_VERSION = (
    b"GHJ1"
    + bytes.fromhex("e689791c 53010000 0100000000000000 01000000")
    + INCARNATION.bytes
    + bytes.fromhex("4f010000")
    + OF_THE_FIRST_VERSION
)
"""Magic, checksum, length, first number and count, whose it is; and the entry behind its length."""


def answered(order_id: str) -> AnsweredOrder:
    """An order of one image."""
    image = orjson.loads(OF_THE_FIRST_VERSION)["answered"]["images"][0]
    images = (StoredImage(**image),)
    return AnsweredOrder("o", "k", "f", None, False, order_id, 840_000, images, None, b"{}", b"{}", 1, 2)


@pytest.mark.rule(13)
def test_an_entry_of_the_first_version_is_understood(tmp_path: Path) -> None:
    """To the byte as it was written before journals had files with a version in their names (rule 13)."""
    frames(tmp_path, old(1), (1, [OF_THE_FIRST_VERSION]))
    check_versions([only(tmp_path)])
    (noted,), unreadable = read_orders(only(tmp_path))
    assert encode(noted.order) == OF_THE_FIRST_VERSION
    assert noted.order == answered("r1") and not noted.withdrawn and unreadable == []


def test_a_folder_without_a_journal_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    """No lock and no folder is made in a wrong folder; an empty journal is a journal."""
    (tmp_path / "notes.txt").write_text("x")
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(JournalError, match=rf"^there is no journal in {place}: a gateway's is in its"):
            Folder(place, make=False)
        with pytest.raises(JournalError, match="there is no journal"):
            survey(place)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    Folder(tmp_path / "new").close()
    Folder(tmp_path / "new", make=False).close()
    assert survey(tmp_path / "new").incarnations == ()


async def test_a_journal_in_use_is_read_without_its_claim(tmp_path: Path) -> None:
    """It shows acknowledged entries, and that it is in use; the writer goes on undisturbed, and the claim stays."""
    folder = Folder(tmp_path)
    journal = Journal(folder, SEGMENT)
    for number in range(1, 200):
        await journal.append(data(number))
        if number % 20 == 0:
            seen = await asyncio.to_thread(survey, tmp_path)
            (past,) = seen.incarnations
            assert seen.in_use and past.why_not_whole is None and numbers(past)[-1] == number
    for number in range(1, 200):
        journal.release(number)
    await journal.close()
    folder.close()
    assert not survey(tmp_path).in_use


def test_what_is_no_file_of_a_journal_is_named_and_left(tmp_path: Path) -> None:
    """A look goes on without it; a start does not."""
    frames(tmp_path, new(1), (1, [b"a"]))
    (tmp_path / "notes.journal").write_text("x")
    seen = survey(tmp_path)
    assert seen.strangers == ("notes.journal",) and numbers(seen.incarnations[0]) == [1]
    with pytest.raises(JournalError, match=r"notes.journal in the journal's folder is no file of a journal"):
        only(tmp_path)


def test_each_incarnation_is_judged_by_itself(tmp_path: Path) -> None:
    """One that is damaged makes none of the others so."""
    frames(tmp_path, new(1), (1, []), None, (2, [b"b"]))
    other = uuid4()
    (tmp_path / file_name(other, 1)).write_bytes(encode_frame(other, 1, [b"a"]))
    states = {past.incarnation: past.why_not_whole for past in survey(tmp_path).incarnations}
    assert states[other] is None and states[INCARNATION] is not None


@pytest.mark.rule(13)
def test_a_frame_of_the_first_version_is_understood(tmp_path: Path) -> None:
    """Also the parts around an entry: a later version replays a journal that an earlier version left (rule 13)."""
    file = FRAME_OF_THE_FIRST_VERSION.ljust(2 * PAGE_BYTES, b"\0")
    (tmp_path / old(1)).write_bytes(file)
    assert [(entry.number, entry.data) for entry in only(tmp_path).entries] == [(1, OF_THE_FIRST_VERSION)]
