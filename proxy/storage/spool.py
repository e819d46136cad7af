"""Limited disk space for pictures that cannot be read twice, or whose length must be known before sending."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import IO, Any, TypeVar

import structlog
from prometheus_client import Counter, Gauge

from config.settings import SPOOL_MEMORY_BYTES, SPOOL_WAIT_S, SPOOL_WINDOW_BYTES
from metering.shares import Bound, Shares
from metering.turns import Turns
from proxy.ports import Chunks, PictureLost

log = structlog.get_logger(__name__)
T = TypeVar("T")

PREFIX = "ghub-spool-"
"""Prefix of our files' names, while they have one."""

NAMED_S = 60.0
"""Age from which a file that still has its name was left by a crash. The folder may be that of other processes too, and
without the file system's help their names are there for a moment."""

READ_BYTES = 64 * 1024

STUCK_S = 1.0
"""Time after which a stuck reader no longer slows the upstream: its upload will fail, or go on later."""

TAKEN = Gauge("ghub_spool_bytes", "Bytes of pictures in the spool, memory and disk")
FULL = Counter("ghub_spool_full_total", "Pictures given up as the spool was full")


class Spool:
    """One folder and one limit, in bytes, for all pictures of a process.

    A file's name is removed as soon as it is made, so the file ends with the process, however that ends. On a file
    system without this feature, a crash may leave a name: `clean` removes it at start.
    """

    def __init__(self, folder: Path, max_bytes: int, *, wait_s: float = SPOOL_WAIT_S) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._wait_s = wait_s
        self._turns = Turns(Bound(max_bytes))

    def clean(self) -> None:
        """Make the folder, and remove what a crash left. Raises OSError if the folder cannot be used."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(f"{PREFIX}*"):
            with suppress(FileNotFoundError):  # another process has just made it, and removes its name itself
                found = left.stat()
                if time.time() - found.st_mtime > NAMED_S:
                    log.warning("spool_cleaned", bytes=found.st_size)
                    left.unlink()
        tempfile.TemporaryFile(dir=self.folder, prefix=PREFIX).close()

    @property
    def shares(self) -> Shares:
        """How much of it each organisation has, in bytes."""
        return self._turns.shares

    def part(self, of: float) -> int:
        """Compute a fraction of the spool in bytes; `of` is from 0 to 1."""
        return int(of * self._max_bytes)

    async def take(self, org_id: str, size_bytes: int) -> None:
        """Take room for this many more bytes. If the spool is full, wait for a turn. Raises PictureLost."""
        if not self._turns.take_now(org_id, size_bytes):
            try:
                async with asyncio.timeout(self._wait_s):
                    await self._turns.take(org_id, size_bytes)
            except TimeoutError:
                FULL.inc()
                raise PictureLost("the spool is full") from None
        TAKEN.set(self.shares.taken)

    def give_back(self, org_id: str, size_bytes: int) -> None:
        """Give back the room of a picture that is stored or given up."""
        self._turns.give_back(org_id, size_bytes)
        TAKEN.set(self.shares.taken)


class Copy:
    """One picture in the spool: filled once, and read from its beginning as often as needed, even while it grows.

    A reader that follows the growing copy slows its filling, so the upstream is read no faster than the store accepts.
    Only the newest reader counts. It is given bytes from memory as long as it keeps up; the disk is for those who begin
    again. The last bytes stay in memory, so a small picture is never written to disk.
    """

    def __init__(self, spool: Spool, org_id: str) -> None:
        self._spool = spool
        self._org_id = org_id
        self._file: _File | None = None
        self._on_disk_bytes = 0
        self._memory = bytearray()
        self._memory_at = 0  # what came before it is on the disk only
        self._whole = False
        self._failure: Exception | None = None
        self._grown = asyncio.Event()
        self._reader: object | None = None
        self._read_bytes = 0
        self._moved = asyncio.Event()
        self._closed = False
        self.size_bytes = 0

    async def fill(self, pieces: Chunks) -> None:
        """Take in all of `pieces`. Raises their error, or PictureLost if there is no room; then call `fail`."""
        async for piece in pieces:
            await self._spool.take(self._org_id, len(piece))
            self.size_bytes += len(piece)
            self._memory += piece
            self._grown.set()
            if self.size_bytes - self._on_disk_bytes > SPOOL_MEMORY_BYTES:
                await self._to_disk()
            await self._in_step()
        self._whole = True
        self._grown.set()

    def fail(self, error: Exception) -> None:
        """Declare that it will never be whole: its readers get `error` instead of its end."""
        self._failure = error
        self._grown.set()

    @property
    def known_bytes(self) -> int | None:
        """Length, once it is whole."""
        return self.size_bytes if self._whole else None

    async def whole(self) -> None:
        """Wait until it is whole. Raises the error of `fail`."""
        while not self._whole:
            await self._growth()

    async def read(self) -> AsyncIterator[bytes]:
        """Read all of it from the beginning. Raises the error of `fail`."""
        me = self._reader = object()
        at = self._read_bytes = 0
        while at < self.size_bytes or not self._whole:
            if at == self.size_bytes:
                await self._growth()
                continue
            chunk = await self._chunk(at)
            if self._closed:
                raise PictureLost("the picture was given up")
            at += len(chunk)
            yield chunk
            if self._reader is me:
                self._read_bytes = at
                self._moved.set()

    def let_go(self) -> None:
        """Remove the reader, so that it no longer slows the filling."""
        self._reader = None
        self._moved.set()

    async def close(self) -> None:
        """Give its room back. A remaining reader can read no further."""
        self._closed = True
        if self._file is not None:
            await asyncio.to_thread(self._file.close)
        self._memory = bytearray()
        self._spool.give_back(self._org_id, self.size_bytes)

    async def _growth(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._grown.clear()
        await self._grown.wait()

    async def _in_step(self) -> None:
        while self._reader is not None and self.size_bytes - self._read_bytes > SPOOL_WINDOW_BYTES:
            self._moved.clear()
            try:
                async with asyncio.timeout(STUCK_S):
                    await self._moved.wait()
            except TimeoutError:
                self._reader = None

    async def _chunk(self, at: int) -> bytes:
        if at >= self._memory_at:
            start = at - self._memory_at
            return bytes(memoryview(self._memory)[start : start + READ_BYTES])
        assert self._file is not None
        return await _on_disk(self._file.read, at, min(READ_BYTES, self._memory_at - at))

    async def _to_disk(self) -> None:
        """Write what is not there yet, and forget what the reader has passed."""
        if self._file is None:
            self._file = _File(self._spool.folder)
        # A view instead of a copy, released here: the thread may still hold it, and then the memory cannot shrink.
        with memoryview(self._memory) as memory, memory[self._on_disk_bytes - self._memory_at :] as rest:
            await _on_disk(self._file.append, rest)
        self._on_disk_bytes = self.size_bytes
        passed = self._on_disk_bytes if self._reader is None else self._read_bytes
        del self._memory[: max(0, passed - self._memory_at)]
        self._memory_at = max(self._memory_at, passed)


async def _on_disk(work: Callable[..., T], *arguments: Any) -> T:
    try:
        return await asyncio.to_thread(work, *arguments)
    except OSError as error:
        log.error("spool_failed", error=error.strerror)
        raise PictureLost("the spool's disk failed") from error


class _File:
    """A file in threads.

    A cancelled caller leaves a thread that still uses it; the lock makes sure that `close` is final.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._lock = Lock()
        self._closed = False

    def append(self, data: memoryview) -> None:
        with self._lock:
            if self._closed:
                return
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, prefix=PREFIX, buffering=0)  # noqa: SIM115  # closed by close
            rest = memoryview(data)
            self._file.seek(0, 2)
            while rest:
                rest = rest[self._file.write(rest) :]

    def read(self, at: int, size_bytes: int) -> bytes:
        with self._lock:
            if self._file is None:
                return b""
            self._file.seek(at)
            return self._file.read(size_bytes)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._file is not None:
                self._file.close()
                self._file = None
