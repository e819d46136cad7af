"""The local store publishes whole pictures or nothing, whatever ends a write."""

import asyncio
import contextlib
import errno
import hashlib
import os
import random
import resource
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from proxy.ports import StoreFailed, StoreMisconfigured
from proxy.storage.local import WRITE_BYTES, LocalStore
from proxy.storage.probe import probe
from tests.conftest import run
from tests.kits.orders import files

PATH = "org/request/0.png"


async def stream(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


@pytest.mark.parametrize(
    "size", [1, 2, 4095, WRITE_BYTES - 1, WRITE_BYTES, WRITE_BYTES + 1, 1_000_003, 5 * 1024 * 1024]
)
@pytest.mark.parametrize("chunk", [997, 65_536, 3_000_001])
async def test_what_was_put_is_there_to_the_byte(tmp_path: Path, size: int, chunk: int) -> None:
    """At every size and every size of chunks, and no other file is left."""
    data = random.Random(size).randbytes(size)
    store = LocalStore(tmp_path)
    assert not await store.exists(PATH)
    await store.put(PATH, stream(data, chunk), "image/png")
    assert await store.exists(PATH)
    assert hashlib.sha256((tmp_path / PATH).read_bytes()).digest() == hashlib.sha256(data).digest()
    assert files(tmp_path) == {PATH}


@pytest.mark.parametrize("at", [0, 1, 50, 99])
@pytest.mark.parametrize("error", [ConnectionResetError, TimeoutError, ValueError, asyncio.CancelledError])
def test_a_source_that_fails_publishes_nothing(tmp_path: Path, at: int, error: type[BaseException]) -> None:
    """At its first, a middle and its last chunk; its own error reaches the caller, unchanged."""

    async def failing() -> AsyncIterator[bytes]:
        for number in range(100):
            if number == at:
                raise error
            yield b"x" * 10_000

    async def work() -> None:
        with pytest.raises(error):
            await LocalStore(tmp_path).put(PATH, failing(), "image/png")

    run(work())
    assert files(tmp_path) == set()


def test_a_put_that_is_cancelled_at_any_moment_leaves_all_or_nothing(tmp_path: Path) -> None:
    """While it waits for bytes, while a thread writes, while it is published: no part, and no file unless it was whole
    and reported so."""
    data = random.Random(1).randbytes(1_000_000)

    async def put(store: LocalStore, path: str, delay_s: float) -> None:
        task = asyncio.create_task(store.put(path, stream(data, 65_536), "image/png"))
        await asyncio.sleep(delay_s)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert await store.exists(path) == (not task.cancelled())

    async def work() -> None:
        store = LocalStore(tmp_path)
        began_s = time.monotonic()
        await store.put("org/measure/0.png", stream(data, 65_536), "image/png")
        took_s = time.monotonic() - began_s
        for number in range(60):
            await put(store, f"org/{number}/0.png", 1.2 * took_s * number / 60)

    run(work())
    assert all((tmp_path / name).read_bytes() == data for name in files(tmp_path))
    assert not [name for name in files(tmp_path) if name.endswith(".part")]


@contextlib.contextmanager
def disk_takes(max_bytes: int) -> Iterator[None]:
    """Files of this process cannot grow beyond this: the kernel refuses the write that would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("max_bytes", [0, 100, WRITE_BYTES - 1, WRITE_BYTES, 300_000, 399_999])
@pytest.mark.parametrize("chunk", [10, 65_536])
async def test_a_disk_that_takes_no_more_is_a_failed_store(tmp_path: Path, max_bytes: int, chunk: int) -> None:
    """StoreFailed, and nothing is left of the picture, wherever the disk gave up."""
    with disk_takes(max_bytes), pytest.raises(StoreFailed, match="File too large"):
        await LocalStore(tmp_path).put(PATH, stream(b"x" * 400_000, chunk), "image/png")
    assert files(tmp_path) == set()


async def test_a_folder_that_cannot_be_made_is_a_failed_store(tmp_path: Path) -> None:
    """A file has the name of the organisation's folder."""
    (tmp_path / "org").write_text("not a folder")
    with pytest.raises(StoreFailed, match="Not a directory"):
        await LocalStore(tmp_path).put(PATH, stream(b"x", 1), "image/png")
    assert files(tmp_path) == {"org"}


async def test_a_name_that_cannot_be_taken_is_a_failed_store(tmp_path: Path) -> None:
    """A folder has the picture's name: it stays, and no partial file is left."""
    (tmp_path / PATH).mkdir(parents=True)
    for again, words in ((False, "File exists"), (True, "directory")):
        with pytest.raises(StoreFailed, match=words) as failed:
            await LocalStore(tmp_path).put(PATH, stream(b"x", 1), "image/png", again=again)
        assert not failed.value.again
    assert (tmp_path / PATH).is_dir() and files(tmp_path) == set()


@pytest.mark.rule(16)
async def test_a_failed_put_removes_only_what_it_wrote(tmp_path: Path) -> None:
    """Somebody else's picture of that name stays (rule 16)."""
    store = LocalStore(tmp_path)
    await store.put(PATH, stream(b"first", 5), "image/png")
    with disk_takes(100), pytest.raises(StoreFailed):
        await store.put(PATH, stream(b"x" * 200_000, 65_536), "image/png", again=True)
    with pytest.raises(StoreFailed, match="File exists"):
        await store.put(PATH, stream(b"second", 6), "image/png")
    assert (tmp_path / PATH).read_bytes() == b"first" and files(tmp_path) == {PATH}


async def test_puts_at_the_same_time_do_not_mix(tmp_path: Path) -> None:
    """Forty pictures, their chunks interleaved."""
    pictures = {f"org/{number % 5}/{number}.png": bytes([number]) * (50_000 * number + 1) for number in range(40)}
    store = LocalStore(tmp_path)
    await asyncio.gather(*(store.put(path, stream(data, 7_001), "") for path, data in pictures.items()))
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == pictures


def test_a_reader_never_sees_a_part_of_a_picture(tmp_path: Path) -> None:
    """Somebody who looks all the time finds no file, or the whole of it."""
    size, seen, over = 2_000_000, set[int](), threading.Event()

    def look() -> None:
        while not over.is_set():
            with contextlib.suppress(FileNotFoundError):
                seen.add(os.stat(tmp_path / PATH).st_size)  # noqa: PTH116 - what a reader's open would find

    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(40):
            await asyncio.sleep(0.002)
            yield b"x" * (size // 40)

    async def work() -> None:
        store = LocalStore(tmp_path)
        for _ in range(3):
            await store.put(PATH, slowly(), "image/png")
            await store.delete(PATH)
        await store.put(PATH, slowly(), "image/png")
        async with asyncio.timeout(60):  # a busy machine may not have let them look yet
            while not seen:
                await asyncio.sleep(0.01)

    looking = threading.Thread(target=look)
    looking.start()
    run(work())
    over.set()
    looking.join()
    assert seen == {size}


def test_a_cancelled_write_that_is_still_at_the_disk_holds_up_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes half a second to sync: the loop goes on meanwhile, and nothing is left of the picture."""
    syncing = threading.Event()

    def slow_sync(number: int) -> None:
        syncing.set()
        time.sleep(0.5)

    async def work() -> float:
        writing = asyncio.create_task(LocalStore(tmp_path).put(PATH, stream(b"x" * 1000, 100), "image/png"))
        while not syncing.is_set():
            await asyncio.sleep(0.001)
        writing.cancel()
        longest_s, last_s = 0.0, time.monotonic()
        while not writing.done():
            await asyncio.sleep(0.001)
            longest_s, last_s = max(longest_s, time.monotonic() - last_s), time.monotonic()
        assert writing.cancelled()
        return longest_s

    monkeypatch.setattr(os, "fsync", slow_sync)
    assert run(work()) < 0.25
    assert files(tmp_path) == set()


async def test_a_deleted_picture_is_gone_and_deleting_again_is_no_error(tmp_path: Path) -> None:
    """If it cannot be deleted, the store has failed."""
    store = LocalStore(tmp_path)
    await store.put(PATH, stream(b"x", 1), "image/png")
    await store.delete(PATH)
    await store.delete(PATH)
    assert not await store.exists(PATH)
    with pytest.raises(StoreFailed):
        await store.delete("org/request")
    assert files(tmp_path) == set()


def test_of_many_puts_at_one_path_one_is_published(tmp_path: Path) -> None:
    """Create-only is one step, so the others fail, in whatever order they come."""

    async def work() -> list[BaseException | None]:
        store = LocalStore(tmp_path)
        puts = [store.put(PATH, stream(bytes([number]) * 10_000, 100), "image/png") for number in range(20)]
        return await asyncio.gather(*puts, return_exceptions=True)

    ends = run(work())
    [winner] = [number for number, end in enumerate(ends) if end is None]
    assert all(isinstance(end, StoreFailed) and not end.again for end in ends if end is not None)
    assert (tmp_path / PATH).read_bytes() == bytes([winner]) * 10_000
    assert files(tmp_path) == {PATH}


@pytest.mark.parametrize(("number", "again"), [(errno.ENOSPC, True), (errno.EIO, True), (errno.EROFS, False)])
async def test_a_full_disk_may_have_room_at_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, again: bool
) -> None:
    """One that cannot be written never will."""

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    store = LocalStore(tmp_path)
    with pytest.raises(StoreFailed) as failed:
        await store.put(PATH, stream(b"x", 1), "image/png")
    assert failed.value.again == again
    with pytest.raises(StoreFailed if again else StoreMisconfigured, match=os.strerror(number)):
        await store.check()
    assert files(tmp_path) == set()


@pytest.mark.rule(11)
async def test_a_disk_that_takes_no_image_fails_the_probe(tmp_path: Path) -> None:
    """A file of some bytes can be made, so the check goes well; one of the size that matters cannot (rule 11)."""
    store = LocalStore(tmp_path)
    with disk_takes(1_000_000):
        await store.check()
        with pytest.raises(StoreMisconfigured, match=r"GHUB_STORAGE_URL: .* can write: File too large"):
            await probe(store)
    await probe(store)
    assert files(tmp_path) == set()


async def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    """A file has the folder's name; a missing folder is created."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreMisconfigured, match=r"GHUB_STORAGE_URL: .*/file/images is no folder in which"):
        await LocalStore(tmp_path / "file" / "images").check()
    await LocalStore(tmp_path / "not" / "yet").check()
    assert files(tmp_path) == {"file"} and (tmp_path / "not" / "yet").is_dir()


async def test_the_list_has_no_unfinished_files_and_outlives_what_is_removed(tmp_path: Path) -> None:
    """A folder that is not there is empty; one that vanishes on the way is passed over."""
    assert [item async for item in LocalStore(tmp_path / "none").objects()] == []
    store = LocalStore(tmp_path)
    for number in range(4):
        await store.put(f"org/{number}/0.png", stream(bytes(number + 1), 1), "image/png")
    (tmp_path / "org/0/.1.png.abc.part").write_bytes(b"half")
    found = {item.path: item.size_bytes async for item in store.objects()}
    assert found == {f"org/{number}/0.png": number + 1 for number in range(4)}
    left = []
    async for item in store.objects():
        left.append(item.path)
        for number in range(1, 4):
            if item.path != f"org/{number}/0.png":
                shutil.rmtree(tmp_path / f"org/{number}", ignore_errors=True)
    assert len(left) < 4


async def test_a_folder_that_cannot_be_read_does_not_shorten_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep would take the rest for everything."""

    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StoreFailed, match="Permission denied"):
        _ = [item async for item in LocalStore(tmp_path).objects()]
