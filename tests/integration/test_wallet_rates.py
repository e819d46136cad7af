"""Requests and images per minute: GCRA as a table of times, with no sleeping."""

import asyncio
from pathlib import Path

import pytest

from metering.wallet.values import Verdict
from tests.kits.books import (
    DAY_US,
    NOW_US,
    SECOND_US,
    admit,
    open_books,
    open_wallets,
    pinned,
)

S = SECOND_US
SEVENTH = 8_571_429
"""A seventh of a minute is no whole number of microseconds; it is rounded up."""

# at_us, cost, admitted, remaining, reset_us, retry_us
Row = tuple[int, int, bool, int, int, int]

ONE: list[Row] = [
    (0, 1, True, 0, 60 * S, 0),
    (0, 1, False, 0, 60 * S, 60 * S),
    (60 * S - 1, 1, False, 0, 1, 1),
    (60 * S, 1, True, 0, 60 * S, 0),
    (200 * S, 1, True, 0, 60 * S, 0),
]
SEVEN: list[Row] = [
    *((0, 1, True, 6 - i, SEVENTH * (i + 1), 0) for i in range(7)),
    (0, 1, False, 0, 7 * SEVENTH, SEVENTH),
    (SEVENTH - 1, 1, False, 0, 6 * SEVENTH + 1, 1),
    (SEVENTH, 1, True, 0, 7 * SEVENTH, 0),
    (3 * SEVENTH, 1, True, 1, 6 * SEVENTH, 0),
    (9 * SEVENTH, 1, True, 6, SEVENTH, 0),
]
SIX_HUNDRED: list[Row] = [
    (0, 1, True, 599, 100_000, 0),
    (99_999, 1, True, 598, 100_001, 0),
    (50 * S, 1, True, 599, 100_000, 0),
]
IN_BULK: list[Row] = [
    (0, 8, True, 12, 24 * S, 0),
    (0, 8, True, 4, 48 * S, 0),
    (0, 8, False, 4, 48 * S, 12 * S),
    (0, 4, True, 0, 60 * S, 0),
    (3 * S, 2, False, 1, 57 * S, 3 * S),
    (6 * S, 2, True, 0, 60 * S, 0),
]
ABOVE: list[Row] = [
    (0, 8, False, 5, 0, 0),  # waiting does not help, so there is nothing to wait for
    (0, 5, True, 0, 60 * S, 0),
    (0, 6, False, 0, 60 * S, 0),
    (60 * S, 6, False, 5, 0, 0),
]


@pytest.mark.parametrize(
    ("what", "limit", "table"),
    [
        ("requests", 1, ONE),
        ("requests", 7, SEVEN),
        ("requests", 600, SIX_HUNDRED),
        ("images", 1, ONE),
        ("images", 7, SEVEN),
        ("images", 20, IN_BULK),
        ("images", 5, ABOVE),
    ],
)
async def test_a_limit_follows_its_table(
    redis_url: str, tmp_path: Path, what: str, limit: int, table: list[Row]
) -> None:
    """Verdict, remaining, reset and retry at each time are exact to the microsecond."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org("acme", "1000.00", **{f"{what}_per_minute": limit})
        for i, (at_us, cost, admitted, *figures) in enumerate(table):
            books.wallet.at(NOW_US + at_us)
            answer = await books.admit(caller, f"r{i}", pinned(cost))
            state = answer.requests if what == "requests" else answer.images
            denial = Verdict.REQUESTS if what == "requests" else Verdict.IMAGES
            found = (answer.verdict, state.limit, state.remaining, state.reset_us, answer.retry_us)
            assert found == (Verdict.ADMITTED if admitted else denial, limit, *figures), (i, at_us)


async def test_waiting_for_retry_is_enough_and_not_too_long(redis_url: str, tmp_path: Path) -> None:
    """One microsecond before `retry_us` is over it is still refused; then admitted, for every limit from 1 to 60."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="100000.00")
        now_us = NOW_US
        for limit in range(1, 61):
            now_us += 240 * S
            await books.accounts.set_limits(caller.org_id, {"images_per_minute": limit})
            books.wallet.at(now_us)
            full = await books.admit(caller, f"a{limit}", pinned(limit))
            assert (full.verdict, full.images.remaining) == (Verdict.ADMITTED, 0)
            denied = await books.admit(caller, f"b{limit}")
            assert denied.verdict is Verdict.IMAGES
            books.wallet.at(now_us + denied.retry_us - 1)
            assert (await books.admit(caller, f"b{limit}")).retry_us == 1
            books.wallet.at(now_us + denied.retry_us)
            assert (await books.admit(caller, f"b{limit}")).verdict is Verdict.ADMITTED


async def test_race_fifty_takers_of_five_on_a_hundred_admit_twenty(redis_url: str, tmp_path: Path) -> None:
    """At once, over ten clients of their own: exactly 20 orders of 5 images fit into 100 a minute."""
    async with open_books(redis_url, tmp_path / "l.db") as books, open_wallets(redis_url, 10) as wallets:
        caller = await books.org(mxn="1000.00", images_per_minute=100)
        answers = await asyncio.gather(*(admit(wallets[i % 10], caller, f"r{i}", pinned(5)) for i in range(50)))
        verdicts = [answer.verdict for answer in answers]
        assert (verdicts.count(Verdict.ADMITTED), verdicts.count(Verdict.IMAGES)) == (20, 30)


@pytest.mark.rule(7)
async def test_what_a_void_gives_back_is_money_and_no_rate(redis_url: str, tmp_path: Path) -> None:
    """Rate tokens are not given back (rule 7)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(requests_per_minute=1)
        await books.admit(caller, "r1")
        await books.wallet.void(caller.org_id, "r1", "test")
        denied = await books.admit(caller, "r2")
        assert (denied.verdict, denied.available_micro_mxn) == (Verdict.REQUESTS, 8_400_000)


async def test_a_new_limit_holds_from_the_next_request_on(redis_url: str, tmp_path: Path) -> None:
    """Up and down, and what was used before stays used."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(requests_per_minute=1)
        await books.admit(caller, "r1")
        assert (await books.admit(caller, "r2")).verdict is Verdict.REQUESTS
        await books.accounts.set_limits(caller.org_id, {"requests_per_minute": 60})
        books.wallet.at(NOW_US + S)
        assert (await books.admit(caller, "r2")).verdict is Verdict.ADMITTED
        await books.accounts.set_limits(caller.org_id, {"requests_per_minute": 1})
        assert (await books.admit(caller, "r3")).verdict is Verdict.REQUESTS


@pytest.mark.rule(29)
@pytest.mark.parametrize("back_us", [S, 3600 * S, 5 * 3600 * S])
async def test_a_clock_that_is_set_back_locks_nobody_out_for_long(redis_url: str, tmp_path: Path, back_us: int) -> None:
    """After a failover to a server whose clock is behind, one is admitted within three minutes (rule 29)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="100.00", requests_per_minute=1)
        assert (await books.admit(caller, "r1")).verdict is Verdict.ADMITTED
        books.wallet.at(NOW_US - back_us)
        admission = await books.admit(caller, "r2")
        if admission.verdict is not Verdict.ADMITTED:
            assert 0 < admission.retry_us <= 180 * S
            books.wallet.at(NOW_US - back_us + admission.retry_us)
            admission = await books.admit(caller, "r2")
        assert admission.verdict is Verdict.ADMITTED
        assert (await books.admit(caller, "r3")).verdict is Verdict.REQUESTS


async def test_a_clock_that_is_set_ahead_gives_one_burst_and_no_more(redis_url: str, tmp_path: Path) -> None:
    """A jump forward is time that has passed: the limit is full again, once."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="100.00", requests_per_minute=3)
        ahead = pinned(now_us=NOW_US + DAY_US)
        assert (await books.admit(caller, "r1")).verdict is Verdict.ADMITTED
        books.wallet.at(NOW_US + DAY_US)
        verdicts = [(await books.admit(caller, f"s{i}", ahead)).verdict for i in range(5)]
        assert verdicts.count(Verdict.ADMITTED) == 3
