"""The journal's files: what a frame is, and how a gateway's old files are read.
There are two ways to read them. `Folder.past` accepts only an undamaged journal. `survey` reads the good part of any
journal, and names the rest; it writes nothing and claims nothing.
    frame    magic, CRC-32 of the rest, length, number of its first entry, entries, incarnation; then the entries, each
             after its length; then zeros up to the next page
Frames begin on page boundaries, so that writing one never touches another. If two files contain the same number, the
later file is right.
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
MAX_ENTRY_BYTES = 320 * 1024
"""Size for an order of eight images with rewritten prompts and labels of maximum length (`answered.max_bytes`)."""

MAX_FRAME_BYTES = 512 * 1024
"""Maximum size of one commit. Further entries wait for the next one."""

SUFFIX = ".journal"
LOCK = "lock"
WRITTEN = ".v2"
"""Part of a file's name: its first page is a frame once it is in use. A file of only zeros is a spare one."""

_MAGIC = b"GHJ1"
HEAD = struct.Struct("<4sIIQI16s")
LENGTH = struct.Struct("<I")


class JournalError(Exception):
    """The folder cannot be used as a journal; the message is a sentence that says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: its number and where it lies, not its bytes. A journal may be larger than memory."""

    number: int
    path: Path
    at: int
    length: int

    @property
    def data(self) -> bytes:
        """Bytes of the entry, read from the disk. Raises OSError."""
        with self.path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), self.length, self.at)

    @property
    def file(self) -> str:
        return self.path.name


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a file, from `start` up to `end`, that were written and can no longer be read."""

    file: str
    start: int
    end: int
    why: str

    def __str__(self) -> str:
        return f"{self.file} is damaged{self.why}"


@dataclass(frozen=True, slots=True)
class FileRead:
    """How much of a file is readable."""

    path: Path
    size_bytes: int
    frames: int
    entries: int


Numbers = tuple[int, int | None]
"""Range of numbers; the end is None if nobody knows it."""


@dataclass(frozen=True, slots=True)
class OldJournal:
    """Entries and files of an earlier incarnation, in order.

    `missing` are ranges of numbers of entries that must have existed. If the first file is damaged, some of them may
    have been in files that nobody needed any more.
    """

    incarnation: UUID
    entries: tuple[Entry, ...]
    files: tuple[Path, ...]
    damage: tuple[Damage, ...] = ()
    missing: tuple[Numbers, ...] = ()
    read: tuple[FileRead, ...] = ()

    @property
    def last_number(self) -> int:
        """Number of its last entry, 0 if there is none."""
        return self.entries[-1].number if self.entries else 0

    @property
    def why_not_whole(self) -> str | None:
        """A sentence about the first problem in it; None if there is none."""
        if self.damage:
            return str(self.damage[0])
        if self.missing:
            first, _ = self.missing[0]
            return f"the journal of {self.incarnation} is damaged: entries after {first - 1} are missing"
        return None


@dataclass(frozen=True, slots=True)
class Survey:
    """A folder as it was found, in any state. `strangers` have the ending of journal files, but are none."""

    incarnations: tuple[OldJournal, ...]
    strangers: tuple[str, ...]
    in_use: bool


class Folder:
    """An exclusive claim on a journal's folder, while it is open. Raises JournalError if another process has it.

    With `make` a missing folder is created. Without it, a folder that never had a journal is refused.
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
        """Read everything that earlier incarnations have left here. Raises JournalError if any of it is damaged."""
        found = self.survey()
        for one in found:
            if (why := one.why_not_whole) is not None:
                raise JournalError(f"{why}: `ghub journal salvage {self.path}` saves what is good of it")
        return found

    def survey(self) -> list[OldJournal]:
        """Read as `past` does, with the readable part of what is damaged.

        Raises JournalError for a file that is not a journal's.
        """
        found = survey(self.path)
        for name in found.strangers:
            raise JournalError(f"{name} in the journal's folder is no file of a journal")
        return [*found.incarnations]

    def close(self) -> None:
        """Release the claim."""
        self._lock.close()


def survey(path: Path) -> Survey:
    """Read a journal's folder. Raises JournalError if there is no journal, or one of another version."""
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
    """Read all entries of one incarnation. Only the last write may be torn, because it was never acknowledged.

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
    """True if a process has the claim now. Asking does not take or break the claim."""
    try:
        with (path / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no claim was ever made
    return False


def file_name(incarnation: UUID, count: int) -> str:
    """Name of the `count`th file of an incarnation."""
    return f"{incarnation.hex}-{count:08d}{WRITTEN}{SUFFIX}"


def encode_frame(incarnation: UUID, first: int, entries: list[bytes]) -> bytes:
    """Encode entries from number `first` on, padded to whole pages.

    Without entries it only says which number is next.
    """
    payload = b"".join(LENGTH.pack(len(entry)) + entry for entry in entries)
    rest = HEAD.pack(_MAGIC, 0, len(payload), first, len(entries), incarnation.bytes)[8:] + payload
    frame = _MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest
    return frame + bytes(-len(frame) % PAGE_BYTES)


@dataclass(frozen=True, slots=True)
class _Frame:
    """One frame. `entries` are offset and length of each entry in the file."""

    first: int
    entries: list[tuple[int, int]]
    pages: int


@dataclass(frozen=True, slots=True)
class _Scan:
    """Content of a file: its whole frames, gaps before some, the last one's end, and the end of all written bytes."""

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
                entries.pop()  # from a commit that failed and was begun again in this file
            entries += [Entry(frame.first + place, scan.path, *lies) for place, lies in enumerate(frame.entries)]
            number = frame.first + len(frame.entries)
    read = (FileRead(one.path, one.size, len(one.frames), sum(len(f.entries) for f in one.frames)) for one in scans)
    missing = tuple(_missing(first, entries, number))
    if damage and not any(scan.frames for scan in scans):
        missing = ((1, None),)  # a file that was in use and cannot be read at all gives no number
    return OldJournal(incarnation, tuple(entries), tuple(files), tuple(damage), missing, tuple(read))


def _missing(first: int, entries: Sequence[Entry], end: int) -> Iterator[Numbers]:
    """Yield ranges of numbers from `first` on and below `end` that have no entry."""
    for entry in entries:
        if entry.number > first:
            yield first, entry.number - 1
        first = entry.number + 1
    if first < end:
        yield first, end - 1


def _unreadable(scans: Sequence[_Scan]) -> list[Damage]:
    """Find damaged files: without a frame, and not spare ones. Their content is unknown, and so are their numbers."""
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
    """Read a file. None if its gateway has deleted it, because it is not needed. Raises JournalError, OSError."""
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
