"""Work that a process accepts at once: a maximum of pictures, each order with room in the journal (rules 14, 28)."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from config.settings import MAX_PICTURES, SPARE_PICTURES
from metering.answered import max_bytes
from metering.journal.file import Journal
from metering.journal.frames import PAGE_BYTES, Folder
from metering.shares import Shares
from proxy.errors import ApiError, Kind
from proxy.orders.places import Places
from tests.conftest import run
from tests.kits.orders import room_for


@asynccontextmanager
async def open_places(
    path: Path, broken: Callable[[], str | None] = lambda: None
) -> AsyncIterator[tuple[Places, Shares]]:
    """Places over a journal of their own, and the pictures that are under way."""
    folder = Folder(path)
    journal = Journal(folder)
    capacity = room_for(MAX_PICTURES, SPARE_PICTURES, broken)
    try:
        yield Places(journal, capacity), capacity.pictures
    finally:
        await journal.close()
        folder.close()


@pytest.mark.parametrize("images", [1, 8])
def test_2000_pictures_are_under_way_on_a_disk_with_room(tmp_path: Path, images: int) -> None:
    """All at one moment, and none is refused; the next one is, by what is true; when one ends there is room again."""

    async def work() -> None:
        async with open_places(tmp_path) as (places, pictures):
            taken = await asyncio.gather(*(places.take("org", images) for _ in range(MAX_PICTURES // images)))
            assert pictures.taken == MAX_PICTURES
            with pytest.raises(ApiError, match="as many images as it can") as caught:
                await places.take("org", 1)
            assert caught.value.kind is Kind.BUSY and caught.value.retry and caught.value.retry_after_s
            taken[0].give_back()
            taken[0].give_back()
            with await places.take("org", images):
                assert pictures.taken == MAX_PICTURES
            for place in taken:
                place.give_back()
            assert pictures.taken == 0

    run(work())
    assert list(tmp_path.glob("*.journal")) == []


async def test_without_room_for_the_journal_an_order_is_refused_before_it_is_bought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full: a sentence that says so, and those that have their place go on."""
    async with open_places(tmp_path) as (places, pictures):
        monkeypatch.setattr(os, "posix_fallocate", full)
        taken = 0
        with pytest.raises(ApiError, match="running out of disk; nothing was charged") as caught:  # noqa: PT012
            while True:
                await places.take("org", 8)
                taken += 8
        assert caught.value.kind is Kind.UNAVAILABLE
        assert pictures.taken == taken > 500


async def test_an_order_has_room_for_its_one_entry_and_a_few_files_are_enough_for_all(tmp_path: Path) -> None:
    """For its longest entry, and no more: a gateway at its maximum has allocated some 100 MB."""
    async with open_places(tmp_path) as (places, _):
        taken = await asyncio.gather(*(places.take("org", 8) for _ in range(MAX_PICTURES // 8)))
        assert places._journal._reserved_bytes == len(taken) * (max_bytes(8) + 2 * PAGE_BYTES)
        assert len(places._journal._spares) < 7
        for place in taken:
            place.give_back()


def full(*_: int) -> None:
    raise OSError(28, "No space left on device")


async def test_while_something_else_refuses_orders_no_place_is_given(tmp_path: Path) -> None:
    """By the sentence of whatever it is, and only as long as it does."""
    reasons = ["the store is away", None]
    async with open_places(tmp_path, lambda: reasons.pop(0)) as (places, pictures):
        with pytest.raises(ApiError, match="the store is away"):
            await places.take("org", 1)
        (await places.take("org", 1)).give_back()
        assert pictures.taken == 0
