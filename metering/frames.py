"""The journal's files: what a frame is, and how the files that a gateway has left are read.

    frame    magic, CRC-32 of the rest, length, number of its first entry, entries, incarnation; then the entries, each
             behind its length; then zeros up to the next page

Frames begin on page boundaries, so that writing one never touches another. Where two files tell a number, the later
one is right.
"""

import fcntl
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

PAGE_BYTES = 4096
MOST_ENTRY_BYTES = 256 * 1024
"""An order of eight images whose prompts were all rewritten at the greatest length (`answered.most_bytes`)."""

MOST_FRAME_BYTES = 512 * 1024
"""What one commit writes at most; who waits beyond it waits for the next."""

SUFFIX = ".journal"
WRITTEN = ".v2"
"""In the name of a file whose first page is a frame as soon as it is in use: one of zeros alone is a spare one."""

_MAGIC = b"GHJ1"
HEAD = struct.Struct("<4sIIQI16s")
LENGTH = struct.Struct("<I")


class JournalError(Exception):
    """The folder cannot be used as a journal; the message is a sentence that says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What was written, under its number."""

    number: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Past:
    """What an incarnation that is over has left: its entries in order, and its files."""

    incarnation: UUID
    entries: tuple[Entry, ...]
    files: tuple[Path, ...]

    @property
    def last_number(self) -> int:
        """Of its last entry, 0 where it has none."""
        return self.entries[-1].number if self.entries else 0


class Folder:
    """An exclusive claim on a journal's folder, as long as it is open. Raises JournalError where another has it."""

    def __init__(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / "lock").open("ab")
        except OSError as error:
            raise JournalError(f"the journal's folder {path} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise JournalError(f"another process uses the journal in {path}; each gateway needs its own") from None
        self.path = path

    def past(self) -> list[Past]:
        """Everything that earlier incarnations have left here. Raises JournalError where it is damaged."""
        by_incarnation: dict[UUID, list[Path]] = {}
        for file in sorted(self.path.glob(f"*{SUFFIX}")):
            by_incarnation.setdefault(_incarnation_of(file), []).append(file)
        return [_read(incarnation, files) for incarnation, files in by_incarnation.items()]

    def close(self) -> None:
        """Let others have it."""
        self._lock.close()


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
    first: int
    entries: list[bytes]
    pages: int


def _incarnation_of(file: Path) -> UUID:
    try:
        return UUID(file.name.partition("-")[0])
    except ValueError:
        raise JournalError(f"{file.name} in the journal's folder is no file of a journal") from None


def _read(incarnation: UUID, files: list[Path]) -> Past:
    return Past(incarnation, tuple(entries_of(incarnation, files)), tuple(files))


def entries_of(incarnation: UUID, files: list[Path]) -> list[Entry]:
    """All entries of one incarnation. Only what was written last may be torn: it was never acknowledged.

    Raises JournalError, OSError.
    """
    entries: list[Entry] = []
    for place, file in enumerate(files):
        frames, torn = _frames(file, incarnation)
        if not frames and place == 0 < len(files) - 1 and WRITTEN in file.name:
            raise JournalError(f"{file.name} is damaged: it was in use, and nothing of it can be read")
        for frame in frames:
            if entries and frame.first > entries[-1].number + 1:
                raise JournalError(f"{file.name} is damaged: entries after {entries[-1].number} are missing")
            while entries and entries[-1].number >= frame.first:
                entries.pop()  # of a commit that failed, and was begun again in this file
            entries += [Entry(frame.first + at, data) for at, data in enumerate(frame.entries)]
        if torn and place < len(files) - 1 and not _begins_anew(files[place + 1], incarnation, entries):
            raise JournalError(f"{file.name} is damaged at its end, and is not the last of its files")
    return entries


def _begins_anew(file: Path, incarnation: UUID, entries: list[Entry]) -> bool:
    """Does this file take up where the one before it failed, or is it the spare one that nothing was written to?"""
    frames, _ = _frames(file, incarnation)
    return not frames or not entries or frames[0].first <= entries[-1].number + 1


def _frames(file: Path, incarnation: UUID) -> tuple[list[_Frame], bool]:
    """The whole frames of a file, and whether something follows them that is none."""
    data = file.read_bytes()
    frames: list[_Frame] = []
    at = 0
    while at < len(data) and (frame := _frame_at(data, at, incarnation)) is not None:
        frames.append(frame)
        at += frame.pages * PAGE_BYTES
    for later in range(at + PAGE_BYTES, len(data), PAGE_BYTES):
        if _frame_at(data, later, incarnation) is not None:
            raise JournalError(f"{file.name} is damaged at byte {at}, before frames that are whole")
    return frames, any(data[at : at + MOST_FRAME_BYTES])


def _frame_at(data: bytes, at: int, incarnation: UUID) -> _Frame | None:
    if data[at : at + 4] != _MAGIC or at + HEAD.size > len(data):
        return None
    _, crc, length, first, count, owner = HEAD.unpack_from(data, at)
    end = at + HEAD.size + length
    if (
        length > MOST_FRAME_BYTES
        or end > len(data)
        or zlib.crc32(data[at + 8 : end]) != crc
        or owner != incarnation.bytes
    ):
        return None
    entries = list(_split(data[at + HEAD.size : end]))
    assert len(entries) == count, "the checksum holds"
    return _Frame(first, entries, -(-(end - at) // PAGE_BYTES))


def _split(payload: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(payload):
        (length,) = LENGTH.unpack_from(payload, at)
        yield payload[at + LENGTH.size : at + LENGTH.size + length]
        at += LENGTH.size + length
