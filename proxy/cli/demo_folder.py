"""The folder of `ghub demo`: for its owner only, and for one demo at a time."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEPT = frozenset({"images", "journal", "ledger.db", "ledger.db-shm", "ledger.db-wal", "lock", "logs", "valkey"})
"""The contents of a demo's folder, except the files that are written for their owner only."""

UNIX_PATH_BYTES = 100
"""A socket's path may have 107 bytes on Linux and 103 on macOS."""

SOURCES_ONLY = "the demo is part of the sources and of no package: run `make demo` in a clone"


class DemoFailed(Exception):
    """The folder cannot be used, or a part ended or did not become ready; the message says which, and what helps."""


def try_out(data: Path) -> None:
    """Make the folder, and write into it: better here than in one of the parts. Raises DemoFailed."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data) as file:
            file.write(b"\0")
    except OSError as error:
        raise DemoFailed(f"--data: {str(data)!r} cannot be used: {error.strerror}. Choose another folder.") from None


@contextmanager
def alone_in(data: Path) -> Iterator[None]:
    """Lock the folder: two demos in one folder would share a database and a socket."""
    with (data / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DemoFailed(f"another demo runs in {data}; choose another folder with --data") from None
        yield


def make_private(data: Path) -> None:
    """Make private what an earlier version left readable for everybody. The folder itself keeps its mode, because its
    owner may use it for other things."""
    for one in data.iterdir():
        if one.name in KEPT:
            one.chmod(0o700 if one.is_dir() else 0o600)


@contextmanager
def socket_folder(data: Path) -> Iterator[Path]:
    """Return the data folder, or a short temporary one if the socket's path would be too long."""
    if len(str(data / "valkey.sock").encode()) <= UNIX_PATH_BYTES:
        yield data
        return
    with tempfile.TemporaryDirectory(prefix="ghub-") as short:
        yield Path(short)


def write_private(path: Path, text: str) -> None:
    """Write a file whole or not at all, and for its owner only: there is a key in it."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    part.rename(path)
