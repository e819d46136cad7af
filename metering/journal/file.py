"""The gateway's own append-only files: "this order is answered 200", synced before the 200 goes out (rules 8, 12–15).

A journal is a folder. Every start of a gateway is an *incarnation* with its own files and its own numbers: entries are
numbered from 1, without a gap. Callers that wait for an entry at the same time share one write and one sync (group
commit). What they share is one *frame* (`frames.py`).
Files are allocated ahead: as many as the open orders may need (`reserve`), and always one more. The first frame of each
file is empty and says which number is next. After a failed write or sync nobody knows how much of the frame is on the
disk. So that file is never written again: the next file begins with the number that was not acknowledged. If two files
contain the same number, the later file is right. Until a frame on a fresh file is synced the journal has `failed`.
Released entries stay on the disk for a while (`Keep`), so that a restored ledger can be fed from them.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TypeVar
from uuid import uuid4

import structlog
from prometheus_client import Counter, Gauge, Histogram

from metering.journal.frames import (
    HEAD,
    LENGTH,
    MAX_ENTRY_BYTES,
    MAX_FRAME_BYTES,
    PAGE_BYTES,
    Folder,
    encode_frame,
    entries_of,
    file_name,
)

log = structlog.get_logger(__name__)
T = TypeVar("T")

SEGMENT_BYTES = 16 * 1024 * 1024
"""Size of a file, allocated ahead: some 4,000 commits."""

COMPACT_FILES = 8
"""Number of files, 128 MB, below which an old entry that is still needed is not worth a second write."""

COMPACT_ENTRIES = 64
"""Maximum needed entries in a file for it to be compacted. With more, it is not just a few that keep it."""

SYNC_S = Histogram(
    "ghub_journal_commit_seconds",
    "A group commit: one write and one sync",
    # A local disk takes 0.1 to 5 ms, a network volume 5 to 30 ms; a second is a disk that fails.
    buckets=(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0),
)
ENTRIES = Counter("ghub_journal_entries_total", "Entries that are on the disk")
FAILED = Counter("ghub_journal_failures_total", "Commits that failed; their entries were not acknowledged")
ROOM = Gauge("ghub_journal_room_bytes", "Allocated and not yet written")
WRITABLE = Gauge("ghub_journal_writable", "1 while the journal's last write reached the disk, 0 after one that failed")
WRITABLE.set(1)  # a process without a journal has none that failed


class JournalFailed(Exception):
    """An entry is not acknowledged: it may or may not be on the disk."""


class JournalFull(Exception):
    """The disk has no room for the files that more open orders may need."""


@dataclass(frozen=True, slots=True)
class Keep:
    """How long files that nobody needs are kept, and the maximum bytes of them."""

    age_s: float = 0.0
    max_bytes: int = 0


@dataclass(slots=True)
class _Waiting:
    data: bytes
    done: asyncio.Future[int]


@dataclass(slots=True)
class _Segment:
    """A file of this incarnation, from entry `first` on.

    `at` is where the next frame goes; only a successful sync moves it. `entries` were acknowledged from the file, and
    `live` of them are still needed. `written_s` is the Unix time of its last write.
    """

    path: Path
    file: IO[bytes]
    first: int = 0
    at: int = 0
    entries: int = 0
    live: int = 0
    written_s: float = 0.0


_Place = tuple[_Segment, int, int]
"""Position of an entry: segment, offset and length in bytes."""


class Journal:
    """The journal of one running gateway, in a folder that it has claimed.

    Two files of `segment_bytes` are allocated at once. `registered`: the ledger has this incarnation as open, so its
    files must outlive the process. Raises OSError if there is no room for them.
    """

    def __init__(self, folder: Folder, segment_bytes: int = SEGMENT_BYTES, keep: Keep | None = None) -> None:
        self.incarnation = uuid4()
        self.registered = False
        self.failed = False
        self._folder = folder.path
        self._segment_bytes = segment_bytes
        self._frame_bytes = min(MAX_FRAME_BYTES, segment_bytes // 4)
        self._keep = keep or Keep()
        self._count = 0
        self._next_number = 1
        self._reserved_bytes = 0
        self._pending: list[_Waiting] = []
        self._committing: asyncio.Task[None] | None = None
        self._allocating: asyncio.Task[bool] | None = None
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="journal")  # a stuck disk blocks nobody else's threads
        self._where: dict[int, _Place] = {}
        self._segments: deque[_Segment] = deque()
        self._spares: deque[_Segment] = deque()
        self._current: _Segment | None = None
        self._begin(b"")
        self._spares.append(self._new_segment())
        self._tell_room()
        WRITABLE.set(1)

    @property
    def last_number(self) -> int:
        """Number of the last acknowledged entry."""
        return self._next_number - 1

    @property
    def room_bytes(self) -> int:
        """Bytes that can certainly be written to the allocated files.

        The end of a file may be too short for another frame.
        """
        rest = [self._segment_bytes - segment.at for segment in (self._current, *self._spares) if segment is not None]
        return sum(max(0, size - PAGE_BYTES - self._frame_bytes) for size in rest)

    async def reserve(self, size_bytes: int) -> None:
        """Reserve room for what an open order may write. Files are allocated as needed.

        Give it back with `give_back`. Raises JournalFull.
        """
        self._reserved_bytes += size_bytes
        try:
            while self.room_bytes < self._reserved_bytes:
                await self._allocate()
        except BaseException:
            self._reserved_bytes -= size_bytes
            raise

    def give_back(self, size_bytes: int) -> None:
        """Give back the room of an order that has ended. Spare files that will not be needed are deleted."""
        self._reserved_bytes -= size_bytes
        while len(self._spares) > 1 and self.room_bytes - self._segment_bytes > 2 * self._reserved_bytes:
            self._delete(self._spares.pop())
        self._tell_room()

    async def append(self, data: bytes) -> int:
        """Append an entry. It is on the disk when this returns its number. Raises JournalFailed.

        A caller that is cancelled does not know whether the entry is on the disk. Raises ValueError above
        `MAX_ENTRY_BYTES`, before anything is written.
        """
        if not 0 < len(data) <= min(MAX_ENTRY_BYTES, self._segment_bytes // 2):
            raise ValueError(f"an entry of {len(data)} bytes")
        waiting = _Waiting(data, asyncio.get_running_loop().create_future())
        self._pending.append(waiting)
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_all())
        return await waiting.done

    async def read(self, number: int) -> bytes:
        """Read an entry that was not released. Raises OSError."""
        segment, at, length = self._where[number]
        return await self._on_disk(lambda: os.pread(segment.file.fileno(), length, at))

    def release(self, number: int) -> None:
        """Declare an entry as no longer needed."""
        self._where.pop(number)[0].live -= 1
        self.tidy()

    def tidy(self) -> None:
        """Delete files that nobody needs, beyond what is kept, starting with the oldest, so that there are no gaps."""
        kept_bytes = sum(segment.at for segment in list(self._segments) if segment is not self._current)
        while (first := self._unneeded()) is not None:
            if kept_bytes <= self._keep.max_bytes and time.time() - first.written_s < self._keep.age_s:
                return
            kept_bytes -= first.at
            self._delete(self._segments.popleft())

    def _unneeded(self) -> _Segment | None:
        """Find the oldest file, if no entry in it is needed.

        The last file always stays: only it tells the next start about this journal, which the ledger has as open.
        """
        if len(self._segments) < 2 or self._segments[0] is self._current or self._segments[0].live:
            return None
        return self._segments[0]

    @property
    def stuck(self) -> list[int]:
        """Entries that alone keep the oldest file, if there are many files. Writing them again frees all of it."""
        if len(self._segments) < COMPACT_FILES:
            return []
        first = self._segments[0]
        if first is self._current or first.live > COMPACT_ENTRIES:
            return []
        return [number for number, (segment, _, _) in self._where.items() if segment is first]

    async def kept(self) -> AsyncIterator[list[bytes]]:
        """Read every acknowledged entry on the disk, one file at a time, the latest first. Nothing if nothing is kept.

        Raises OSError, JournalError.
        """
        for segment in reversed([*self._segments]) if self._keep.age_s else ():
            with suppress(FileNotFoundError):  # tidied away meanwhile
                yield await self._on_disk(partial(self._entries, segment))

    async def probe(self) -> None:
        """Write and sync a fresh file after a failure. If that succeeds, the journal has no longer `failed`."""
        if self.failed and self._committing is None:
            await self._probe()

    async def close(self) -> None:
        """Wait for callers of `append` and `reserve`. Files that are needed or kept stay."""
        for task in (self._committing, self._allocating):
            if task is not None:
                await asyncio.wait({task})
        self._disk.shutdown()
        for segment in self._spares:
            self._delete(segment)
        for segment in self._segments:
            # Also one without an entry: a restored ledger may have this incarnation as open again.
            if self.registered or self._keep.age_s:
                with suppress(OSError):
                    os.ftruncate(segment.file.fileno(), segment.at)
                segment.file.close()
            else:
                self._delete(segment)

    # --- in the loop ---

    async def _commit_all(self) -> None:
        while self._pending:
            batch = self._batch()
            try:
                segment, at = await self._on_disk(partial(self._commit, batch))
            except Exception as error:  # noqa: BLE001  # callers must learn of any error
                self._fail(error)
                await self._probe()
                for waiting in batch:
                    if not waiting.done.done():
                        waiting.done.set_exception(JournalFailed("the journal's disk failed"))
            else:
                self._acknowledge(batch, segment, at)
                self._healed()
            self.tidy()
            if not self._spares and self._allocating is None:
                self._allocating = asyncio.create_task(self._add_spare())
            self._tell_room()
        self._committing = None

    async def _probe(self) -> None:
        with suppress(OSError):
            await self._on_disk(lambda: self._begin(b""))
            self._healed()
            self.tidy()

    def _acknowledge(self, batch: list[_Waiting], segment: _Segment, at: int) -> None:
        ENTRIES.inc(len(batch))
        segment.live += len(batch)
        segment.entries += len(batch)
        at += HEAD.size
        for waiting in batch:
            self._where[self._next_number] = (segment, at + LENGTH.size, len(waiting.data))
            at += LENGTH.size + len(waiting.data)
            if not waiting.done.done():
                waiting.done.set_result(self._next_number)
            self._next_number += 1

    def _batch(self) -> list[_Waiting]:
        """Take as many entries as one frame may hold, and at least one."""
        size_bytes, count = HEAD.size, 0
        for waiting in self._pending:
            size_bytes += LENGTH.size + len(waiting.data)
            if count and size_bytes > self._frame_bytes:
                break
            count += 1
        batch, self._pending = self._pending[:count], self._pending[count:]
        return batch

    def _fail(self, error: Exception) -> None:
        FAILED.inc()
        WRITABLE.set(0)
        self.failed = True
        foreseen = isinstance(error, OSError)
        log.error("journal_failed", error=str(error), exc_info=None if foreseen else error)

    def _healed(self) -> None:
        if self.failed:
            log.warning("journal_healed")
        self.failed = False
        WRITABLE.set(1)

    async def _allocate(self) -> None:
        """Allocate one more spare file. Callers at the same time share one. Raises JournalFull."""
        if self._allocating is None:
            self._allocating = asyncio.create_task(self._add_spare())
        if not await asyncio.shield(self._allocating) and self.room_bytes < self._reserved_bytes:
            raise JournalFull("the journal's disk has no room for another file")

    async def _add_spare(self) -> bool:
        """Add a spare file, or delete the oldest kept one if the disk is full. False if neither makes room."""
        try:
            # In the disk's thread, which also takes spare files: so files are written in the order of their numbers.
            await self._on_disk(lambda: self._spares.append(self._new_segment()))
        except OSError as error:
            if self._unneeded() is not None:
                self._delete(self._segments.popleft())
                return True
            log.error("journal_out_of_room", error=error.strerror)
            return False
        finally:
            self._allocating = None
            self._tell_room()
        return True

    async def _on_disk(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    def _tell_room(self) -> None:
        ROOM.set(self.room_bytes)

    # --- in the disk's thread ---

    def _commit(self, batch: list[_Waiting]) -> tuple[_Segment, int]:
        """Write and sync one frame; returns its place."""
        frame = encode_frame(self.incarnation, self._next_number, [waiting.data for waiting in batch])
        segment = self._current
        if segment is None or segment.at + len(frame) > self._segment_bytes:
            return self._begin(frame), PAGE_BYTES
        at = segment.at
        try:
            with SYNC_S.time():
                _write(segment, frame)
        except OSError:
            self._current = None  # never written again
            with suppress(OSError):
                os.ftruncate(segment.file.fileno(), segment.at)
            raise
        return segment, at

    def _begin(self, frame: bytes) -> _Segment:
        """Begin a fresh file with an empty frame: later numbers in earlier files are then void."""
        self._current = None
        segment = self._spares.popleft() if self._spares else self._new_segment()
        head = encode_frame(self.incarnation, self._next_number, [])
        try:
            with SYNC_S.time():
                _write(segment, head + frame)
        except OSError:
            self._delete(segment)  # nothing in it was acknowledged
            raise
        segment.first = self._next_number
        self._segments.append(segment)
        self._current = segment
        return segment

    def _entries(self, segment: _Segment) -> list[bytes]:
        """Read the acknowledged entries of a file. Later ones were not, and were written again elsewhere."""
        end = segment.first + segment.entries
        return [one.data for one in entries_of(self.incarnation, [segment.path]) if one.number < end]

    def _new_segment(self) -> _Segment:
        self._count += 1
        path = self._folder / file_name(self.incarnation, self._count)
        file = path.open("x+b", buffering=0)
        try:
            os.posix_fallocate(file.fileno(), 0, self._segment_bytes)
            os.fsync(file.fileno())
            _sync_folder(self._folder)
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            raise
        return _Segment(path, file)

    @staticmethod
    def _delete(segment: _Segment) -> None:
        segment.file.close()
        with suppress(OSError):  # if the disk fails, the file is read and replayed again, which changes nothing
            segment.path.unlink(missing_ok=True)


def _write(segment: _Segment, frame: bytes) -> None:
    """Write and sync a frame. `at` moves only when all is synced, so after a partial write the file is as before."""
    rest, at = memoryview(frame), segment.at
    while rest:
        written = os.pwrite(segment.file.fileno(), rest, at)
        rest, at = rest[written:], at + written
    os.fdatasync(segment.file.fileno())
    segment.at = at
    segment.written_s = time.time()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
