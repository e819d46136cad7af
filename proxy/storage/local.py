"""Images as files, for development and the demo: written to a temporary name, synced, then linked into place.
Not for production: one disk, no replicas, no CDN.
"""

import asyncio
import errno
import io
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, TypeVar
from uuid import uuid4

from proxy.ports import Chunks, StoredObject, StoreFailed, StoreMisconfigured
from proxy.storage.streams import measured

T = TypeVar("T")

READ_BYTES = 16 * 1024
"""Bytes of an image in memory for a client that reads slowly."""

WRITE_BYTES = 128 * 1024
"""Bytes gathered before a call to a thread: the call costs as much as writing them."""


PART = ".part"
"""Suffix of an unfinished file's name."""

_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""Errors of a disk that the next try may not have."""


class LocalStore:
    """A folder. `path` is relative to it, and always `<org>/<request>/<i>.<ext>`."""

    needs_length = False

    def __init__(self, root: Path) -> None:
        self._root = root

    async def check(self) -> None:
        """Check that a file can be made and published in it."""
        upload = _Upload(self._root / f".check-{uuid4().hex}")
        try:
            await _on_disk(upload.publish, [b"check"])
        except StoreFailed as failed:
            if failed.again:
                raise
            raise StoreMisconfigured(self.unwritable(failed)) from failed
        finally:
            await asyncio.shield(asyncio.to_thread(upload.abort))

    def unwritable(self, refused: StoreFailed) -> str:
        """Say what to do about a lasting refusal."""
        return f"GHUB_STORAGE_URL: {self._root} is no folder in which this process can write: {refused}"

    async def put(
        self, path: str, chunks: Chunks, content_type: str, *, size_bytes: int | None = None, again: bool = False
    ) -> None:
        """Publish all of `chunks`. The extension gives the content type."""
        upload = _Upload(self._root / path, replace=again)
        gathered: list[bytes] = []
        waiting = 0
        try:
            async with aclosing(measured(chunks, size_bytes)) as pieces:
                async for piece in pieces:
                    gathered.append(piece)
                    waiting += len(piece)
                    if waiting >= WRITE_BYTES:
                        await _on_disk(upload.write, gathered)
                        gathered, waiting = [], 0
            await _on_disk(upload.publish, gathered)
        except BaseException:
            # In a thread too: the lock may be held as long as the disk needs.
            await asyncio.shield(asyncio.to_thread(upload.abort))
            raise

    async def read(self, path: str) -> AsyncGenerator[bytes]:
        """Read a published image from its beginning."""
        file = await _on_disk(io.FileIO, self._root / path)
        with file:
            while chunk := await _on_disk(file.read, READ_BYTES):
                yield chunk

    async def delete(self, path: str) -> None:
        """Remove a published image. A missing one is no error."""
        await _on_disk(partial((self._root / path).unlink, missing_ok=True))

    async def exists(self, path: str) -> bool:
        """True if it is published."""
        return await _on_disk((self._root / path).is_file)

    async def objects(self) -> AsyncGenerator[StoredObject]:
        """Yield every file in the folder, except unfinished ones."""
        folders = os.walk(self._root, onerror=_unless_gone)
        while (found := await _on_disk(_next_folder, self._root, folders)) is not None:
            for item in found:
                yield item


async def _on_disk(work: Callable[..., T], *arguments: Any) -> T:
    """Run in a thread. Only errors of the disk itself become StoreFailed: a source has its own OSErrors."""
    try:
        return await asyncio.to_thread(work, *arguments)
    except OSError as error:
        raise StoreFailed(error.strerror or type(error).__name__, again=error.errno in _PASSING) from error


def _unless_gone(error: OSError) -> None:
    """Ignore a folder that was removed during the listing; any other error must not shorten the list silently."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _next_folder(root: Path, folders: Iterator[tuple[str, list[str], list[str]]]) -> list[StoredObject] | None:
    """List the files of the walk's next folder; None after the last."""
    step = next(folders, None)
    if step is None:
        return None
    folder, _, names = step
    found = []
    for path in (Path(folder, name) for name in names if not name.endswith(PART)):
        with suppress(FileNotFoundError):
            facts = path.stat()
            modified_at = datetime.fromtimestamp(facts.st_mtime, UTC)
            found.append(StoredObject(path.relative_to(root).as_posix(), facts.st_size, modified_at))
    return found


class _Upload:
    """One file on its way.

    A cancelled caller leaves a thread that may still be writing. The lock makes sure that `abort` is final, whatever
    that thread was going to do.
    """

    def __init__(self, target: Path, *, replace: bool = False) -> None:
        self._target = target
        self._replace = replace
        self._part = target.with_name(f".{target.name}.{uuid4().hex}{PART}")
        self._written = self._part
        self._file: BinaryIO | None = None
        self._lock = Lock()
        self._aborted = False

    def write(self, data: list[bytes]) -> None:
        with self._lock:
            self._write(data)

    def publish(self, data: list[bytes]) -> None:
        with self._lock:
            file = self._write(data)
            if file is None:
                return
            file.flush()
            os.fsync(file.fileno())
            file.close()
            self._move()
            folder = os.open(self._target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            if self._file is not None:
                with suppress(OSError):  # what the disk did not accept before is lost
                    self._file.close()
                with suppress(OSError):  # the picture's own error is reported, not a remaining file
                    self._written.unlink(missing_ok=True)

    def _move(self) -> None:
        """Move it into place, in one step. Unlike a rename, a link never replaces another file."""
        if self._replace:
            self._part.rename(self._target)
        else:
            self._target.hardlink_to(self._part)
        self._written = self._target
        self._part.unlink(missing_ok=True)

    def _write(self, data: list[bytes]) -> BinaryIO | None:
        if self._aborted:
            return None
        if self._file is None:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("xb")
        self._file.writelines(data)
        return self._file
