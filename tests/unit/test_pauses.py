"""Tries and the pauses between them."""

import asyncio
import random
import time

import pytest

from metering.pauses import Pauses


class Clock:
    """Time that passes in pauses only."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []
        patch.setattr(asyncio, "sleep", self._sleep)
        patch.setattr(time, "monotonic", lambda: self.now_s)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def tries(of: Pauses, most: int = 100) -> list[float]:
    """What each try is told of the pause after it."""
    told: list[float] = []
    async for pause_s in of:
        told.append(pause_s)
        if len(told) == most:
            break
    return told


async def test_the_first_try_is_at_once_and_pauses_double_up_to_the_longest(clock: Clock) -> None:
    """And each try knows the pause that comes after it; none comes after the last."""
    assert await tries(Pauses(0.2, 1.0), most=5) == [0.2, 0.4, 0.8, 1.0, 1.0]
    assert clock.slept == [0.2, 0.4, 0.8, 1.0]


async def test_without_a_longest_all_are_alike(clock: Clock) -> None:
    """As of a look each so many seconds."""
    await tries(Pauses(0.1), most=4)
    assert clock.slept == [0.1, 0.1, 0.1]


async def test_they_grow_as_they_are_told(clock: Clock) -> None:
    """By any factor."""
    await tries(Pauses(1.0, 2.0, growth=1.5), most=4)
    assert clock.slept == [1.0, 1.5, 2.0]


async def test_no_try_begins_when_time_is_over(clock: Clock) -> None:
    """Not after a pause that ends then, and not as the first."""
    assert await tries(Pauses(1.0, 8.0, until_s=103.0)) == [1.0, 2.0]
    assert clock.slept == [1.0, 2.0]
    assert await tries(Pauses(1.0, until_s=103.0)) == []


async def test_chance_takes_a_part_of_a_pause_and_never_of_the_next_ones_growth(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between `least` and all of it is waited, and what is told is the longest that it may be."""
    asked: list[tuple[float, float]] = []

    def lowest(least: float, most: float) -> float:
        asked.append((least, most))
        return least

    monkeypatch.setattr(random, "uniform", lowest)
    assert await tries(Pauses(1.0, 4.0, least=0.5), most=4) == [1.0, 2.0, 4.0, 4.0]
    assert clock.slept == [0.5, 1.0, 2.0]
    assert asked == [(0.5, 1.0)] * 3
