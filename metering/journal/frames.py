"""The journal's files: what a frame is, and how the files that a gateway has left are read.

Two ways to read them: `Folder.past` takes only a journal that is whole; `survey` takes what is good of any, and names
the rest. It writes nothing and claims nothing.

    frame    magic, CRC-32 of the rest, length, number of its first entry, entries, incarnation; then the entries, each
             behind its length; then zeros up to the next page

Frames begin on page boundaries, so that writing one never touches another. Where two files tell a number, the later
one is right.
"""

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

PAGE_BYTES = 4096
MAX_ENTRY_BYTES = 256 * 1024
"""An order of eight images whose prompts were all rewritten at the greatest length (`answered.max_bytes`)."""

MAX_FRAME_BYTES = 512 * 1024
"""What one commit writes at most; who waits beyond it waits for the next."""

SUFFIX = ".journal"
LOCK = "lock"
WRITTEN = ".v2"
"""In the name of a file whose first page is a frame as soon as it is in use: one of zeros alone is a spare one."""

_MAGIC = b"GHJ1"
HEAD = struct.Struct("<4sIIQI16s")
LENGTH = struct.Struct("<I")


class JournalError(Exception):
    """The folder cannot be used as a journal; the message is a sentence that says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What was written, under its number: where it lies. A journal may be larger than memory."""

    number: int
    path: Path
    at: int
    length: int

    @property
    def data(self) -> bytes:
        """Its bytes, from the disk. Raises OSError."""
        with self.path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), self.length, self.at)

    @property
    def file(self) -> str:
        """The name of its file."""
        return self.path.name


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a file, from `start` up to `end`, where something was written that cannot be read any more."""

    file: str
    start: int
    end: int
    why: str

    def __str__(self) -> str:
        return f"{self.file} is damaged{self.why}"


@dataclass(frozen=True, slots=True)
class FileRead:
    """How much of a file is good."""

    path: Path
    size_bytes: int
    frames: int
    entries: int


Numbers = tuple[int, int | None]
"""From and to; None where nobody knows how far."""


@dataclass(frozen=True, slots=True)
class OldJournal:
    """What an incarnation has left: its entries in order, and its files.

    `missing` are numbers, from and to, of entries that must have been there. Where the first file is damaged, some of
    them may have been in files that nobody needed any more.
    """

    incarnation: UUID
    entries: tuple[Entry, ...]
    files: tuple[Path, ...]
    damage: tuple[Damage, ...] = ()
    missing: tuple[Numbers, ...] = ()
    read: tuple[FileRead, ...] = ()

    @property
    def last_number(self) -> int:
        """Of its last entry, 0 where it has none."""
        return self.entries[-1].number if self.entries else 0

    @property
    def why_not_whole(self) -> str | None:
        """A sentence about the first thing that is wrong with it; None where nothing is."""
        if self.damage:
            return str(self.damage[0])
        if self.missing:
            first, _ = self.missing[0]
            return f"the journal of {self.incarnation} is damaged: entries after {first - 1} are missing"
        return None


@dataclass(frozen=True, slots=True)
class Survey:
    """A folder as it was found, whatever its state. `strangers` end like files of a journal, and are none."""

    incarnations: tuple[OldJournal, ...]
    strangers: tuple[str, ...]
    in_use: bool


class Folder:
    """An exclusive claim on a journal's folder, as long as it is open. Raises JournalError where another has it.

    With `make` a folder that is not there is made; without, one in which no journal ever was is refused.
    """

    def __init__(self, path: Path, *, make: bool = True) -> None:
        if not make:
            _check_is_one(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / LOCK).open("ab")
        except OSError as error:
            raise JournalError(f"the journal's folder {path} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise JournalError(f"another process uses the journal in {path}; each gateway needs its own") from None
        self.path = path

    def past(self) -> list[OldJournal]:
        """Everything that earlier incarnations have left here. Raises JournalError where it is damaged."""
        found = self.survey()
        for one in found:
            if (why := one.why_not_whole) is not None:
                raise JournalError(f"{why}: `ghub journal salvage {self.path}` saves what is good of it")
        return found

    def survey(self) -> list[OldJournal]:
        """The same, with what is good of what is damaged. Raises JournalError for a file that is none of ours."""
        found = survey(self.path)
        for name in found.strangers:
            raise JournalError(f"{name} in the journal's folder is no file of a journal")
        return [*found.incarnations]

    def close(self) -> None:
        """Let others have it."""
        self._lock.close()


def survey(path: Path) -> Survey:
    """What lies in a journal's folder. Raises JournalError where there is no journal, or one of another version."""
    _check_is_one(path)
    by_incarnation: dict[UUID, list[Path]] = {}
    strangers: list[str] = []
    for file in sorted(path.glob(f"*{SUFFIX}")):
        if (incarnation := _incarnation_of(file)) is not None:
            by_incarnation.setdefault(incarnation, []).append(file)
        else:
            strangers.append(file.name)
    past = tuple(_read(incarnation, files) for incarnation, files in by_incarnation.items())
    return Survey(past, tuple(strangers), _in_use(path))


def entries_of(incarnation: UUID, files: Sequence[Path]) -> list[Entry]:
    """All entries of one incarnation. Only what was written last may be torn: it was never acknowledged.

    Raises JournalError, OSError.
    """
    past = _read(incarnation, files)
    if (why := past.why_not_whole) is not None:
        raise JournalError(why)
    return [*past.entries]


def _check_is_one(path: Path) -> None:
    if not (path / LOCK).is_file() and not any(path.glob(f"*{SUFFIX}")):
        raise JournalError(f"there is no journal in {path}: a gateway's is in its GHUB_JOURNAL_DIR")


def _in_use(path: Path) -> bool:
    """Does a process have the claim at this moment? Nobody loses or gets it by the question."""
    try:
        with (path / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no claim was ever made
    return False


def file_name(incarnation: UUID, count: int) -> str:
    """Of the file that is the `count`th of its incarnation."""
    return f"{incarnation.hex}-{count:08d}{WRITTEN}{SUFFIX}"


def encode_frame(incarnation: UUID, first: int, entries: list[bytes]) -> bytes:
    """Entries from number `first` on, padded to whole pages; without any it only says which number is next."""
    payload = b"".join(LENGTH.pack(len(entry)) + entry for entry in entries)
    rest = HEAD.pack(_MAGIC, 0, len(payload), first, len(entries), incarnation.bytes)[8:] + payload
    frame = _MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest
    return frame + bytes(-len(frame) % PAGE_BYTES)


@dataclass(frozen=True, slots=True)
class _Frame:
    """`entries` are offset and length of each in the file."""

    first: int
    entries: list[tuple[int, int]]
    pages: int


@dataclass(frozen=True, slots=True)
class _Scan:
    """A file: its whole frames, the gaps before some of them, where the last one ends, and what is not zero."""

    path: Path
    size: int
    frames: list[_Frame]
    gaps: list[tuple[int, int]]
    end: int
    written: int

    def damaged(self, start: int, end: int, why: str) -> Damage:
        return Damage(self.path.name, start, end, why)


def _incarnation_of(file: Path) -> UUID | None:
    try:
        return UUID(file.name.partition("-")[0])
    except ValueError:
        return None


def _read(incarnation: UUID, files: Sequence[Path]) -> OldJournal:
    scans = [scan for file in files if (scan := _scan(file, incarnation)) is not None]
    entries: list[Entry] = []
    damage = _unreadable(scans)
    begins_whole = bool(scans) and bool(scans[0].frames) and not any(at == 0 for at, _ in scans[0].gaps)
    first = scans[0].frames[0].first if begins_whole else 1
    number = first
    for turn, scan in enumerate(scans):
        damage += [scan.damaged(*gap, f" at byte {gap[0]}, before frames that are whole") for gap in scan.gaps]
        before = scans[turn - 1]
        if turn and scan.frames and scan.frames[0].first > number and before.written > before.end:
            damage.append(before.damaged(before.end, before.written, " at its end, and is not the last of its files"))
        for frame in scan.frames:
            while entries and entries[-1].number >= frame.first:
                entries.pop()  # of a commit that failed, and was begun again in this file
            entries += [Entry(frame.first + place, scan.path, *lies) for place, lies in enumerate(frame.entries)]
            number = frame.first + len(frame.entries)
    read = (FileRead(one.path, one.size, len(one.frames), sum(len(f.entries) for f in one.frames)) for one in scans)
    missing = tuple(_missing(first, entries, number))
    if damage and not any(scan.frames for scan in scans):
        missing = ((1, None),)  # what was in use and cannot be read at all tells no number
    return OldJournal(incarnation, tuple(entries), tuple(files), tuple(damage), missing, tuple(read))


def _missing(first: int, entries: Sequence[Entry], end: int) -> Iterator[Numbers]:
    """Numbers from `first` on and below `end` of which there is no entry, as ranges."""
    for entry in entries:
        if entry.number > first:
            yield first, entry.number - 1
        first = entry.number + 1
    if first < end:
        yield first, end - 1


def _unreadable(scans: Sequence[_Scan]) -> list[Damage]:
    """Files without a frame that are no spare ones: what they held is not known, and no number may tell."""
    used = [place for place, scan in enumerate(scans) if scan.frames]
    found: list[Damage] = []
    for place, scan in enumerate(scans):
        if scan.frames:
            continue
        if not scan.written and used and place < used[-1]:
            found.append(scan.damaged(0, scan.size, ": it is all zeros, and later files are written"))
        elif place == 0 < len(scans) - 1 and WRITTEN in scan.path.name:
            found.append(scan.damaged(0, scan.size, ": it was in use, and nothing of it can be read"))
    return found


def _scan(file: Path, incarnation: UUID) -> _Scan | None:
    """Read a file; None where it is gone: the gateway that uses it needs it no more. Raises JournalError, OSError."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    frames: list[_Frame] = []
    gaps: list[tuple[int, int]] = []
    at = end = 0
    while at < len(data):
        if (frame := _frame_at(data, at, incarnation)) is None:
            _check_version(data, at, file)
            at += PAGE_BYTES
            continue
        if at > end:
            gaps.append((end, at))
        frames.append(frame)
        at = end = at + frame.pages * PAGE_BYTES
    return _Scan(file, len(data), frames, gaps, min(end, len(data)), len(data.rstrip(b"\0")))


def _check_version(data: bytes, at: int, file: Path) -> None:
    magic = data[at : at + len(_MAGIC)]
    if at == 0 and magic[:3] == _MAGIC[:3] and magic[3:].isdigit() and magic > _MAGIC:
        raise JournalError(
            f"{file.name} was written by a later version of ghub (format {magic.decode()}, this one reads"
            f" {_MAGIC.decode()}): start that version again, or have its `ghub journal replay` bring it"
        )


def _frame_at(data: bytes, at: int, incarnation: UUID) -> _Frame | None:
    if data[at : at + 4] != _MAGIC or at + HEAD.size > len(data):
        return None
    _, crc, length, first, count, owner = HEAD.unpack_from(data, at)
    end = at + HEAD.size + length
    if (
        length > MAX_FRAME_BYTES
        or end > len(data)
        or zlib.crc32(data[at + 8 : end]) != crc
        or owner != incarnation.bytes
    ):
        return None
    entries = list(_split(data, at + HEAD.size, end))
    return _Frame(first, entries, -(-(end - at) // PAGE_BYTES)) if len(entries) == count else None


def _split(data: bytes, at: int, end: int) -> Iterator[tuple[int, int]]:
    while at < end:
        (length,) = LENGTH.unpack_from(data, at)
        yield at + LENGTH.size, length
        at += LENGTH.size + length
