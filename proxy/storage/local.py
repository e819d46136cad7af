"""Images as files, for development and the demo: written beside their place, synced, then renamed into it.

Not for production: one disk, no replicas, no CDN.
"""

import asyncio
import io
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, TypeVar
from uuid import uuid4

from proxy.ports import Chunks, StoreFailed

T = TypeVar("T")

READ_BYTES = 64 * 1024

WRITE_BYTES = 128 * 1024
"""Gathered before a trip to a thread: a trip costs as much as writing this."""


class LocalStore:
    """A folder. `path` is relative to it, and always `<org>/<request>/<i>.<ext>`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def put(self, path: str, chunks: Chunks, content_type: str) -> None:
        """Publish all of `chunks` under `path`, or nothing. The content type is the extension's."""
        upload = _Upload(self._root / path)
        gathered: list[bytes] = []
        waiting = 0
        try:
            async for chunk in chunks:
                gathered.append(chunk)
                waiting += len(chunk)
                if waiting >= WRITE_BYTES:
                    await _on_disk(upload.write, gathered)
                    gathered, waiting = [], 0
            await _on_disk(upload.publish, gathered)
        except BaseException:
            # In a thread too: the lock may be held for as long as the disk takes.
            await asyncio.shield(asyncio.to_thread(upload.abort))
            raise

    async def read(self, path: str) -> Chunks:
        """A published image, from its beginning."""
        file = await _on_disk(io.FileIO, self._root / path)
        with file:
            while chunk := await _on_disk(file.read, READ_BYTES):
                yield chunk

    async def delete(self, path: str) -> None:
        """Remove a published image; one that is not there is no error."""
        await _on_disk(partial((self._root / path).unlink, missing_ok=True))

    async def exists(self, path: str) -> bool:
        """Is it published?"""
        return await _on_disk((self._root / path).is_file)


async def _on_disk(work: Callable[..., T], *arguments: Any) -> T:
    """Run in a thread. Only what the disk itself refuses is a StoreFailed: a source has OSErrors of its own."""
    try:
        return await asyncio.to_thread(work, *arguments)
    except OSError as error:
        raise StoreFailed(error.strerror or type(error).__name__, again=True) from error


class _Upload:
    """One file on its way. A cancelled caller leaves a thread behind that may still be writing: the lock makes `abort`
    the last word, whatever that thread was about to do."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._part = target.with_name(f".{target.name}.{uuid4().hex}.part")
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
            self._part.rename(self._target)
            self._written = self._target
            folder = os.open(self._target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            if self._file is not None:
                with suppress(OSError):  # what the disk did not take before it does not take now
                    self._file.close()
                with suppress(OSError):  # what is told is why the picture failed, not why its rest stays
                    self._written.unlink(missing_ok=True)

    def _write(self, data: list[bytes]) -> BinaryIO | None:
        if self._aborted:
            return None
        if self._file is None:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("xb")
        self._file.writelines(data)
        return self._file
