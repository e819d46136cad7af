"""Why admission is closed because of the store, and what reopens it (rule 11)."""

import asyncio
import time
from pathlib import Path

import pytest

from proxy.ports import Chunks, StoreFailed, StoreMisconfigured
from proxy.storage.local import LocalStore
from proxy.storage.probe import PREFIX
from proxy.storage.watch import MAX_FAILURES, StoreWatch

AWAY = "The store for images is away; nothing was charged."


class Moody(LocalStore):
    """A folder that can be looked at as `seen` has it, and written as `writes` has it; it counts both."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.seen: Exception | None = None
        self.writes: Exception | None = None
        self.looks = self.probes = 0

    async def check(self) -> None:
        self.looks += 1
        if self.seen:
            raise self.seen

    async def put(
        self, path: str, chunks: Chunks, content_type: str, *, size_bytes: int | None = None, again: bool = False
    ) -> None:
        assert path.startswith(PREFIX) and (size_bytes or 0) > 4 * 2**20 and content_type == "image/png"
        self.probes += 1
        if self.writes:
            raise self.writes
        await super().put(path, chunks, content_type, size_bytes=size_bytes, again=again)


def away() -> StoreFailed:
    return StoreFailed("away", again=True)


def is_shut(watch: StoreWatch) -> bool:
    return watch.reason is not None


async def test_the_store_is_written_at_the_start_and_not_in_between(tmp_path: Path) -> None:
    """A look costs nothing while all goes well."""
    store = Moody(tmp_path)
    watch = StoreWatch(store)
    for _ in range(5):
        await watch.look()
        watch.stored()
    assert (store.looks, store.probes, watch.reason) == (5, 1, None)


async def test_a_store_that_cannot_be_written_at_the_start_takes_no_orders(tmp_path: Path) -> None:
    """Away, until a probe goes well; and a refusal is raised: it is a wrong setting."""
    store = Moody(tmp_path)
    watch, store.writes = StoreWatch(store), away()
    await watch.look()
    assert watch.reason == AWAY
    store.writes = StoreFailed("no right", again=False)
    with pytest.raises(StoreMisconfigured, match=r"GHUB_STORAGE_URL: .*no right"):
        await watch.look()
    assert watch.reason is not None
    store.writes = None
    await watch.look()
    assert watch.reason is None


async def test_uploads_that_fail_in_a_row_shut_it_and_only_a_probe_opens_it(tmp_path: Path) -> None:
    """A success in between restarts the row.

    Once admission is closed, neither a success nor a check without a probe opens it.
    """
    store = Moody(tmp_path)
    watch = StoreWatch(store)
    await watch.look()
    for _ in range(3):
        for _ in range(MAX_FAILURES - 1):
            watch.failed()
        assert watch.reason is None
        watch.stored()
    for _ in range(MAX_FAILURES):
        watch.failed()
    assert watch.reason == AWAY
    watch.stored()
    assert watch.reason == AWAY
    store.writes, looks = away(), store.looks
    await watch.look()
    assert (watch.reason, store.looks) == (AWAY, looks + 1)
    store.writes = None
    await watch.look()
    assert watch.reason is None


@pytest.mark.parametrize("fault", ["seen", "writes"])
async def test_looks_that_fail_count_with_uploads(tmp_path: Path, fault: str) -> None:
    """A store that cannot be written is not asked whether it can be seen, once an upload has failed."""
    store = Moody(tmp_path)
    watch = StoreWatch(store)
    await watch.look()
    setattr(store, fault, away())
    watch.failing()
    await watch.look()
    assert watch.reason is None
    watch.failed()
    assert watch.reason == AWAY


async def test_a_first_sign_of_trouble_is_looked_into_at_once(tmp_path: Path) -> None:
    """Not at the next look's time; and the crowd of failures after it does not have the store written all the time."""
    store = Moody(tmp_path)
    watch = StoreWatch(store)
    await watch.look()
    running = asyncio.create_task(watch.run(every_s=3600))
    await asyncio.sleep(0)
    store.writes = away()

    async def until_probes(count: int) -> None:
        async with asyncio.timeout(10):
            while store.probes < count:
                await asyncio.sleep(0.001)

    watch.failing()
    await until_probes(2)
    for _ in range(100):
        watch.failing()
        watch.failed()
    assert watch.reason == AWAY
    await until_probes(3)  # it may have been one picture's fault: a probe says at once
    began_s = time.monotonic()
    while time.monotonic() - began_s < 0.2:
        watch.failed()
        await asyncio.sleep(0.01)
    assert store.probes == 3
    running.cancel()


async def test_one_bad_picture_shuts_it_for_no_longer_than_a_probe_takes(tmp_path: Path) -> None:
    """An image that is above a limit of the store is refused for good, while all others are stored."""
    watch = StoreWatch(Moody(tmp_path))
    await watch.look()
    running = asyncio.create_task(watch.run(every_s=3600))
    for _ in range(MAX_FAILURES):
        watch.failed()
    assert watch.reason == AWAY
    async with asyncio.timeout(10):
        while is_shut(watch):
            await asyncio.sleep(0.001)
    running.cancel()
