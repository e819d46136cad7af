"""What a process takes on at once: as many pictures as it may, each with its room in the journal (rules 14, 28)."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from config.settings import MAX_PICTURES
from metering.frames import Folder
from metering.journal import Journal
from proxy.capacity import Capacity
from proxy.errors import ApiError, Kind
from tests.conftest import run


@asynccontextmanager
async def open_capacity(path: Path, refusal: Callable[[], str | None] = lambda: None) -> AsyncIterator[Capacity]:
    folder = Folder(path)
    journal = Journal(folder)
    try:
        yield Capacity(journal, MAX_PICTURES, refusal)
    finally:
        await journal.close()
        folder.close()


@pytest.mark.parametrize("images", [1, 8])
def test_2000_pictures_are_under_way_on_a_disk_with_room(tmp_path: Path, images: int) -> None:
    """All at one moment, and none is refused; the next one is, by what is true; when one ends there is room again."""

    async def work() -> None:
        async with open_capacity(tmp_path) as capacity:
            places = await asyncio.gather(*(capacity.take(images) for _ in range(MAX_PICTURES // images)))
            assert capacity.pictures == MAX_PICTURES
            with pytest.raises(ApiError, match="as many images as it can") as caught:
                await capacity.take(1)
            assert caught.value.kind is Kind.UNAVAILABLE and caught.value.retry
            places[0].give_back()
            places[0].give_back()
            with await capacity.take(images):
                assert capacity.pictures == MAX_PICTURES
            for place in places:
                place.give_back()
            assert capacity.pictures == 0

    run(work())
    assert list(tmp_path.glob("*.journal")) == []


def test_without_room_for_the_journal_an_order_is_refused_before_it_is_bought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full: a sentence that says so, and those that have their place go on."""

    async def work() -> None:
        async with open_capacity(tmp_path) as capacity:
            monkeypatch.setattr(os, "posix_fallocate", full)
            taken = 0
            with pytest.raises(ApiError, match="running out of disk; nothing was charged"):  # noqa: PT012
                while True:
                    await capacity.take(8)
                    taken += 8
            assert capacity.pictures == taken > 500

    run(work())


def full(*_: int) -> None:
    raise OSError(28, "No space left on device")


def test_while_something_else_refuses_orders_no_place_is_given(tmp_path: Path) -> None:
    """By the sentence of whatever it is, and only as long as it does."""

    async def work() -> None:
        reasons = ["the store is away", None]
        async with open_capacity(tmp_path, lambda: reasons.pop(0)) as capacity:
            with pytest.raises(ApiError, match="the store is away"):
                await capacity.take(1)
            (await capacity.take(1)).give_back()
            assert capacity.pictures == 0

    run(work())
