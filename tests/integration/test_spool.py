"""The spool: bounded, followed while it grows, read again from the beginning, and gone with its process."""

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from config.settings import SPOOL_MEMORY_BYTES, SPOOL_WINDOW_BYTES
from proxy.ports import StoreFailed
from proxy.storage.spool import PREFIX, Copy, Spool

PIECE = 48 * 1024


async def pieces(data: bytes, size: int = PIECE) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        await asyncio.sleep(0)
        yield data[start : start + size]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def read(copy: Copy) -> bytes:
    return b"".join([chunk async for chunk in copy.read()])


SIZES = [1, PIECE, SPOOL_MEMORY_BYTES, SPOOL_MEMORY_BYTES + 1, 5_000_001]


@pytest.mark.parametrize("size", SIZES)
async def test_what_goes_in_comes_out_as_often_as_wanted(tmp_path: Path, size: int) -> None:
    """By a reader that follows it, and by two that come when it is whole; its room is given back."""
    spool, data = Spool(tmp_path, 10**8), os.urandom(size)
    copy = Copy(spool, "org")
    following = asyncio.create_task(read(copy))
    await copy.fill(pieces(data))
    assert copy.known_bytes == size and spool.shares.taken == size
    assert hashlib.sha256(await following).digest() == hashlib.sha256(data).digest()
    assert await read(copy) == data and await read(copy) == data
    await copy.close()
    assert spool.shares.taken == 0


async def test_a_small_picture_never_sees_the_disk(tmp_path: Path) -> None:
    """A folder that does not exist is not missed; a larger picture says that the disk failed."""
    small, large = Copy(Spool(tmp_path / "none", 10**8), "org"), Copy(Spool(tmp_path / "none", 10**8), "org")
    await small.fill(pieces(b"x" * SPOOL_MEMORY_BYTES))
    assert await read(small) == b"x" * SPOOL_MEMORY_BYTES
    with pytest.raises(StoreFailed, match="disk"):
        await large.fill(pieces(b"x" * 10**6))
    await large.close()


async def test_a_slow_reader_slows_the_source(tmp_path: Path) -> None:
    """The source is never further ahead than the window and what it takes in at once."""
    given, taken, furthest = 0, 0, 0
    copy = Copy(Spool(tmp_path, 10**8), "org")

    async def source() -> AsyncIterator[bytes]:
        nonlocal given, furthest
        for _ in range(100):
            given += PIECE
            furthest = max(furthest, given - taken)
            yield bytes(PIECE)

    filling = asyncio.create_task(copy.fill(source()))
    async for chunk in copy.read():
        taken += len(chunk)
        await asyncio.sleep(0.002)
    await filling
    await copy.close()
    assert taken == 100 * PIECE
    assert furthest <= SPOOL_WINDOW_BYTES + 2 * PIECE + 64 * 1024


async def test_a_reader_that_is_stuck_or_gone_holds_nothing_back(tmp_path: Path) -> None:
    """The upstream's reply is read to its end, so that the upload can begin again from the copy."""
    for gone in (True, False):
        data = os.urandom(3_000_000)
        copy = Copy(Spool(tmp_path, 10**8), "org")
        reader = copy.read()
        filling = asyncio.create_task(copy.fill(pieces(data)))
        await anext(reader)
        if gone:
            copy.let_go()
        async with asyncio.timeout(5):
            await filling
        assert await read(copy) == data
        await copy.close()


async def test_a_source_that_breaks_off_reaches_the_reader(tmp_path: Path) -> None:
    """After what was there, as the very same exception; so an upload that follows is broken off too."""

    class Broken(Exception):
        pass

    async def source() -> AsyncIterator[bytes]:
        yield b"abc"
        raise Broken

    copy = Copy(Spool(tmp_path, 10**8), "org")
    following = asyncio.create_task(read(copy))
    try:
        await copy.fill(source())
    except Broken as error:
        copy.fail(error)
    with pytest.raises(Broken):
        await following
    with pytest.raises(Broken):
        await copy.whole()
    assert copy.known_bytes is None


async def test_a_full_spool_waits_for_room_and_then_gives_up(tmp_path: Path) -> None:
    """Room that comes in time is taken; without any the picture fails, and the bound was never passed."""
    spool = Spool(tmp_path, 1_000_000, wait_s=0.3)
    first, second, third = (Copy(spool, "org") for _ in range(3))
    await first.fill(pieces(bytes(900_000)))
    waiting = asyncio.create_task(second.fill(pieces(bytes(400_000))))
    await asyncio.sleep(0.05)
    assert not waiting.done() and spool.shares.taken <= 1_000_000
    await first.close()
    await waiting
    with pytest.raises(StoreFailed, match="full"):
        await third.fill(pieces(bytes(700_000)))
    assert spool.shares.taken <= 1_000_000
    await second.close()
    await third.close()
    assert spool.shares.taken == 0


async def test_room_goes_to_the_organisation_that_has_least(tmp_path: Path) -> None:
    """A spool full of one organisation's pictures: what becomes free is the other's first, before those that waited."""
    spool = Spool(tmp_path, 22_000, wait_s=20)
    held = [Copy(spool, "a") for _ in range(3)]
    for copy in held:
        await copy.fill(pieces(bytes(7_000), 7_000))
    waiting = [asyncio.create_task(Copy(spool, "a").fill(pieces(bytes(7_000), 7_000))) for _ in range(5)]
    await until(lambda: spool._turns.waiting("a") == 5)
    other = asyncio.create_task(Copy(spool, "b").fill(pieces(bytes(7_000), 7_000)))
    await until(lambda: spool._turns.waiting("b") == 1)
    await held[0].close()
    await other
    assert not any(task.done() for task in waiting)
    assert (spool.shares.has("a"), spool.shares.has("b")) == (14_000, 7_000)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize("at", [10, 100_000, 400_000])
async def test_a_cancelled_fill_leaves_no_file_open(tmp_path: Path, at: int) -> None:
    """Wherever it was, in a thread of the disk too."""
    before = open_files()
    for _ in range(20):
        copy = Copy(Spool(tmp_path, 10**8), "org")
        filling = asyncio.create_task(copy.fill(pieces(bytes(10**7))))
        while copy.size_bytes < at:
            await asyncio.sleep(0)
        filling.cancel()
        with suppress(asyncio.CancelledError):
            await filling
        await copy.close()
    assert open_files() <= before + 1


def test_nothing_is_left_of_a_process_that_was_killed(tmp_path: Path) -> None:
    """No name in the folder, and what an older crash left goes at start; nobody else's files do."""
    script = f"""
import asyncio, os, signal
from pathlib import Path
from proxy.storage.spool import Copy, Spool

async def work():
    copy = Copy(Spool(Path({str(tmp_path)!r}), 10**8), "org")
    async def data():
        for _ in range(100):
            yield bytes(65536)
    await copy.fill(data())
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(work())
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    assert list(tmp_path.iterdir()) == []
    for name in (f"{PREFIX}old", f"{PREFIX}of a process beside", "other"):
        (tmp_path / name).write_bytes(b"left")
    os.utime(tmp_path / f"{PREFIX}old", (0, 0))
    Spool(tmp_path, 10**8).clean()
    assert {path.name for path in tmp_path.iterdir()} == {f"{PREFIX}of a process beside", "other"}


def test_a_folder_that_cannot_be_used_is_told_at_once(tmp_path: Path) -> None:
    """Not with the first picture."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        Spool(tmp_path / "file" / "spool", 10**8).clean()
