"""The gateway's own append-only files: "this order is answered 200", synced before the 200 goes out (rules 8, 12–15).

A journal is a folder. Every start of a gateway is an *incarnation* with files and numbers of its own: entries are
numbered from 1, without a gap. Whoever waits for an entry shares one write and one sync with all who wait (group
commit); what they share is one *frame* (`frames.py`).

After a failed sync nobody knows what of the frame is on the disk, so nothing more is acknowledged from that file: the
next file begins with the number that was not acknowledged, and where two files tell a number, the later one is right.
"""

import asyncio
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

import structlog
from prometheus_client import Counter, Gauge, Histogram

from metering.frames import HEAD, LENGTH, MOST_FRAME_BYTES, SUFFIX, Folder, encode_frame

log = structlog.get_logger(__name__)

SEGMENT_BYTES = 16 * 1024 * 1024
"""A file, allocated ahead: some 4,000 commits. One more is always ready, so that a full disk is noticed in time."""

MOST_ENTRY_BYTES = 16 * 1024
"""An order of eight images takes about 4 KiB."""

SYNC_S = Histogram("ghub_journal_commit_seconds", "A group commit: one write and one sync")
ENTRIES = Counter("ghub_journal_entries_total", "Entries that are on the disk")
FAILED = Counter("ghub_journal_failures_total", "Commits that failed; their entries were not acknowledged")
ROOM = Gauge("ghub_journal_room_bytes", "Allocated and not yet written")


class JournalFailed(Exception):
    """An entry is not acknowledged: it may be on the disk, or not."""


@dataclass(slots=True)
class _Waiting:
    data: bytes
    done: asyncio.Future[int]


@dataclass(slots=True)
class _Segment:
    """A file that this incarnation writes or has written. `live` counts entries that are still needed."""

    path: Path
    file: IO[bytes]
    at: int = 0
    live: int = 0


class Journal:
    """The journal of one running gateway, in a folder that it has claimed.

    `segment_bytes` are allocated twice at once. Raises OSError where there is no room for them.
    """

    def __init__(self, folder: Folder, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.incarnation = uuid4()
        self._folder = folder.path
        self._segment_bytes = segment_bytes
        self._count = 0
        self._next_number = 1
        self._pending: list[_Waiting] = []
        self._committing: asyncio.Task[None] | None = None
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="journal")  # a stuck disk blocks nobody else's threads
        self._where: dict[int, _Segment] = {}
        self._segments: deque[_Segment] = deque()
        self._segment = self._new_segment()
        self._spare: _Segment | None = self._new_segment()
        ROOM.set(self.room_bytes)

    @property
    def last_number(self) -> int:
        """Of the last entry that was acknowledged."""
        return self._next_number - 1

    @property
    def room_bytes(self) -> int:
        """Allocated and not yet written, in this file and the spare one."""
        spare_bytes = self._segment_bytes if self._spare is not None else 0
        return self._segment_bytes - self._segment.at + spare_bytes

    async def append(self, data: bytes) -> int:
        """On the disk when it returns, under the number that it returns. Raises JournalFailed.

        A caller that is cancelled does not know whether it is.
        """
        assert 0 < len(data) <= MOST_ENTRY_BYTES
        waiting = _Waiting(data, asyncio.get_running_loop().create_future())
        self._pending.append(waiting)
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_all())
        return await waiting.done

    def release(self, number: int) -> None:
        """This entry is not needed any more. The oldest file is deleted when none in it is, so there are no gaps."""
        self._where.pop(number).live -= 1
        self._tidy()

    async def close(self) -> None:
        """Wait for who waits; the files stay, unless nothing in them is needed."""
        if self._committing is not None:
            await self._committing
        self._disk.shutdown()
        needed = any(segment.live for segment in self._segments)
        for segment in self._segments:
            segment.file.close()
            if not needed:
                segment.path.unlink()

    async def _commit_all(self) -> None:
        while self._pending:
            batch = self._batch()
            try:
                await asyncio.get_running_loop().run_in_executor(self._disk, self._commit, batch)
            except OSError as error:
                FAILED.inc()
                log.error("journal_failed", error=error.strerror)
                for waiting in batch:
                    if not waiting.done.done():
                        waiting.done.set_exception(JournalFailed("the journal's disk failed"))
            else:
                self._acknowledge(batch)
            self._tidy()
            ROOM.set(self.room_bytes)
        self._committing = None

    def _acknowledge(self, batch: list[_Waiting]) -> None:
        ENTRIES.inc(len(batch))
        self._segment.live += len(batch)
        for waiting in batch:
            self._where[self._next_number] = self._segment
            if not waiting.done.done():
                waiting.done.set_result(self._next_number)
            self._next_number += 1

    def _batch(self) -> list[_Waiting]:
        size_bytes, count = HEAD.size, 0
        for waiting in self._pending:
            size_bytes += LENGTH.size + len(waiting.data)
            if size_bytes > MOST_FRAME_BYTES:
                break
            count += 1
        batch, self._pending = self._pending[:count], self._pending[count:]
        return batch

    def _commit(self, batch: list[_Waiting]) -> None:
        """In the disk's thread: one frame, one sync."""
        frame = encode_frame(self.incarnation, self._next_number, [waiting.data for waiting in batch])
        if self._segment.at + len(frame) > self._segment_bytes:
            self._next_segment()
        try:
            with SYNC_S.time():
                _write(self._segment, frame)
        except OSError:
            self._next_segment()
            _write(self._segment, encode_frame(self.incarnation, self._next_number, []))  # what came before is no more
            raise
        if self._spare is None:
            self._spare = self._try_new_segment()

    def _next_segment(self) -> None:
        self._segment, self._spare = self._spare or self._new_segment(), None
        self._spare = self._try_new_segment()

    def _tidy(self) -> None:
        while not self._segments[0].live and self._segments[0] is not self._segment:
            segment = self._segments.popleft()
            segment.file.close()
            segment.path.unlink()

    def _new_segment(self) -> _Segment:
        self._count += 1
        path = self._folder / f"{self.incarnation.hex}-{self._count:08d}{SUFFIX}"
        file = path.open("xb", buffering=0)
        try:
            os.posix_fallocate(file.fileno(), 0, self._segment_bytes)
            os.fsync(file.fileno())
            _sync_folder(self._folder)
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            raise
        segment = _Segment(path, file)
        self._segments.append(segment)
        return segment

    def _try_new_segment(self) -> _Segment | None:
        try:
            return self._new_segment()
        except OSError as error:
            log.error("journal_out_of_room", error=error.strerror)
            return None


def _write(segment: _Segment, frame: bytes) -> None:
    rest = memoryview(frame)
    while rest:
        written = os.pwrite(segment.file.fileno(), rest, segment.at)
        rest = rest[written:]
        segment.at += written
    os.fdatasync(segment.file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
