"""Shares of a limited resource: the rule as a table, and those that wait for their turn."""

import asyncio
import random
from collections import Counter

import pytest

from metering.shares import Bound, Shares
from metering.turns import Turns


@pytest.mark.parametrize(
    ("settled", "wanting", "share"),
    [
        ([], 1, 120),
        ([], 2, 60),
        ([], 7, 17),
        ([10], 1, 110),
        ([10], 2, 55),
        ([10, 100], 1, 55),  # the one with 100 is above its part, and counts like one that wants more
        ([60, 60], 1, 40),
        ([5, 10, 60], 1, 52),
        ([1] * 200, 1, 0),
    ],
)
def test_who_has_less_than_an_equal_part_leaves_the_rest_to_the_others(
    settled: list[int], wanting: int, share: int
) -> None:
    """What each organisation that wants more may have of 120."""
    assert Bound(120).share(settled, wanting) == share


@pytest.mark.parametrize(
    ("has", "more", "taken", "settled", "wanting", "allowed"),
    [
        # Alone, or with others that want nothing: everything except the spare.
        (0, 8, 0, [], 0, True),
        (92, 8, 92, [], 0, True),
        (93, 8, 93, [], 0, False),
        (60, 8, 92, [32], 0, True),
        (100, 1, 100, [], 0, False),
        # Another was refused: no more than the share, though there is room.
        (50, 1, 60, [], 1, False),
        (49, 1, 60, [], 1, True),
        (49, 1, 60, [], 2, False),
        (70, 8, 80, [10], 1, False),
        (10, 8, 80, [], 1, True),
        # All is taken: what is spare is for those with little, and half of what is left of it for each.
        (0, 8, 100, [50, 50], 0, True),
        (8, 8, 108, [50, 50], 0, False),
        (0, 8, 108, [50, 50, 8], 0, False),
        (0, 1, 108, [50, 50, 8], 0, True),
        (50, 1, 100, [50], 0, False),
        # An equal part among very many is less than one order: an organisation that has nothing may have one anyway.
        (0, 8, 40, [2] * 20, 30, True),
        (8, 8, 48, [2] * 20, 30, False),
    ],
)
def test_may_an_organisation_have_more(
    has: int, more: int, taken: int, settled: list[int], wanting: int, allowed: bool
) -> None:
    """Of 100 and 20 spare; `wanting` others were refused or wait."""
    assert Bound(100, 20).allows(has, more, taken, settled, wanting) is allowed


def test_what_is_given_back_is_forgotten() -> None:
    """An organisation that has nothing left is not remembered, and no longer counted."""
    shares = Shares(Bound(10))
    shares.take("a", 4)
    shares.take("b", 1)
    shares.give_back("a", 4)
    assert (shares.taken, shares.has("a"), shares.has("b"), shares.holders) == (1, 0, 1, 1)


async def test_one_organisation_alone_has_all_of_it() -> None:
    """Nobody waits: it is a semaphore."""
    turns = Turns(Bound(5))
    for _ in range(5):
        await turns.take("a")
    sixth = asyncio.create_task(turns.take("a"))
    await asyncio.sleep(0)
    assert not sixth.done() and turns.waiting("a") == 1
    turns.give_back("a")
    await sixth
    assert turns.shares.has("a") == 5


async def test_what_becomes_free_goes_to_whoever_has_least() -> None:
    """Behind a queue of a hundred of another organisation, until both have the same."""
    turns = Turns(Bound(6))
    got: list[str] = []

    async def one(org_id: str) -> None:
        await turns.take(org_id)
        got.append(org_id)

    waiting = [asyncio.create_task(one("a")) for _ in range(100)]
    await asyncio.sleep(0)
    waiting += [asyncio.create_task(one("b")) for _ in range(3)]
    await asyncio.sleep(0)
    assert got == ["a"] * 6
    for _ in range(3):
        turns.give_back("a")
        await asyncio.sleep(0)
    assert got == ["a"] * 6 + ["b"] * 3
    turns.give_back("b")
    await asyncio.sleep(0)
    assert got[-1] == "a"
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_what_is_spare_lets_a_newcomer_in_at_once() -> None:
    """While others have everything and give nothing back."""
    turns = Turns(Bound(10, 4))
    for org_id in "ab":
        for _ in range(5):
            await turns.take(org_id)
    async with asyncio.timeout(1):
        await turns.take("c")
        await turns.take("c")
        await turns.take("d")
    for org_id in "ac":
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await turns.take(org_id)
    assert turns.shares.taken == 13


async def test_nobody_has_more_than_each_may_have() -> None:
    """Though there is room; and that holds up no other."""
    turns = Turns(Bound(2), each=1)
    await turns.take("a")
    second = asyncio.create_task(turns.take("a"))
    await asyncio.sleep(0)
    async with asyncio.timeout(1):
        await turns.take("b")
    assert not second.done()
    turns.give_back("a")
    await second


async def test_whoever_gives_up_waiting_has_taken_nothing() -> None:
    """At any moment: before its turn, and in the very moment in which it comes."""
    turns = Turns(Bound(1))
    await turns.take("a")
    gone, stays = asyncio.create_task(turns.take("b")), asyncio.create_task(turns.take("c"))
    await asyncio.sleep(0)
    gone.cancel()
    turns.give_back("a")
    await stays
    late = asyncio.create_task(turns.take("b"))
    await asyncio.sleep(0)
    turns.give_back("c")
    late.cancel()
    await asyncio.gather(gone, late, return_exceptions=True)
    assert (turns.shares.taken, turns.waiting("b")) == (0, 0)


@pytest.mark.parametrize("seed", range(5))
async def test_all_come_to_their_turn_and_the_bound_is_never_passed(seed: int) -> None:
    """Amounts, organisations and cancellations at random."""
    chance = random.Random(seed)
    turns, done = Turns(Bound(20, 5)), Counter[str]()

    async def one(org_id: str, amount: int) -> None:
        async with turns.hold(org_id, amount):
            assert turns.shares.taken <= 25
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
        done[org_id] += 1

    tasks = [asyncio.create_task(one(chance.choice("abcdef"), chance.randint(1, 6))) for _ in range(400)]
    for _ in range(40):
        await asyncio.sleep(0)
        chance.choice(tasks).cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(done.values()) == sum(end is None for end in ended) > 300
    assert turns.shares.taken == 0 and not turns._queues
