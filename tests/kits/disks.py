"""A disk that fails in a process of the product, controlled by a file: for journals only."""

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from metering.journal.frames import PAGE_BYTES, SUFFIX

FAULTS = ("sync", "short", "full")
"""Faults: a sync fails with EIO; a write is cut short and its rest finds no room; no new file finds any."""


CUT_BYTES = 200
"""Bytes of a write that is cut short: fewer than any entry of an order has."""


def failing(control: Path) -> Callable[[], None]:
    """Call it in the new process: from then on its journals' disk fails as the text in `control` says."""
    return partial(_install, control)


def _install(control: Path) -> None:
    sync, write, allocate = os.fdatasync, os.pwrite, os.posix_fallocate

    def fault(descriptor: int) -> str:
        if Path(f"/proc/self/fd/{descriptor}").readlink().suffix != SUFFIX:
            return ""
        try:
            return control.read_text()
        except FileNotFoundError:
            return ""

    def fdatasync(descriptor: int) -> None:
        sync(descriptor)
        if fault(descriptor) == "sync":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def pwrite(descriptor: int, data: bytes, at: int) -> int:
        if fault(descriptor) != "short":
            return write(descriptor, data, at)
        if len(data) % PAGE_BYTES:  # the rest of a write that was cut short
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, memoryview(data)[:CUT_BYTES], at)

    def posix_fallocate(descriptor: int, at: int, length: int) -> None:
        if fault(descriptor) in ("short", "full"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(descriptor, at, length)

    os.fdatasync, os.pwrite, os.posix_fallocate = fdatasync, pwrite, posix_fallocate  # type: ignore[assignment]
