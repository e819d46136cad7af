"""Quotas, budgets and images at once as tables of scripted moments: time, action, verdict with what is used, and wait.

Times are UTC; Mexico City is six hours behind, so its midnight is 06:00.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from metering.clock import month_start_us, next_month, unix_us_at, utc_at
from metering.limits import Limits
from metering.ports import Charged
from metering.wallet import keys, projection
from metering.wallet.values import Verdict
from tests.kits.books import NOON, NOW_US, PLANS, SECOND_US, UNIT, Books, drain, open_books, pinned, wipe
from tests.kits.limits import DONE, OPEN, Shop, counters, nothing_open, open_shop

OK = "ADMITTED"
Table = list[tuple[str, str, str]]
D, N = "2036-11-22", "2036-11-23"

DAY: Table = [
    (f"{D} 18:00:00", "org images_per_day 10", ""),
    (f"{D} 18:00:00", "a1 5", OK),
    (f"{D} 18:00:00", "a2 6", "DAY org 5/10 12:00:00"),
    (f"{D} 18:00:00", "b1 5", OK),
    (f"{D} 18:00:00", "b2 1", "DAY org 10/10 12:00:00"),
    (f"{D} 18:00:00", "a3 11", "DAY org 10/10 never"),
    (f"{D} 18:00:10", "settle a1 3", "CHARGED"),  # asked 5, delivered 3: 3 count
    (f"{D} 18:00:10", "b3 3", "DAY org 8/10 11:59:50"),
    (f"{D} 18:00:10", "b4 2", OK),
    (f"{D} 18:00:20", "void b1", "VOIDED"),  # given back on the same day
    (f"{D} 18:00:20", "b5 5", OK),
    (f"{D} 18:00:20", "b6 1", "DAY org 10/10 11:59:40"),
    (f"{D} 18:01:20", "b7 3", "DAY org 8/10 11:58:40"),  # b4 has run out
    (f"{D} 18:01:30", "b7 7", OK),  # so has b5
    (f"{N} 05:59:59", "b8 7", OK),
    (f"{N} 05:59:59", "b9 1", "DAY org 10/10 0:00:01"),
    (f"{N} 06:00:00", "c1 10", OK),
    (f"{N} 06:00:01", "void b8", "VOIDED"),  # yesterday's images do not come back today
    (f"{N} 06:00:01", "c2 1", "DAY org 10/10 23:59:59"),
]
DAY_OF_A_KEY: Table = [
    (f"{D} 18:00:00", "org images_per_day 10", ""),
    (f"{D} 18:00:00", "key a images_per_day 4", ""),
    (f"{D} 18:00:00", "a1 4", OK),
    (f"{D} 18:00:00", "a2 1", "DAY key 4/4 12:00:00"),
    (f"{D} 18:00:00", "b1 6", OK),
    (f"{D} 18:00:00", "b2 1", "DAY org 10/10 12:00:00"),
    (f"{D} 18:00:00", "a3 1", "DAY org 10/10 12:00:00"),
    (f"{D} 18:00:00", "a4 5", "DAY key 4/4 never"),  # no wait helps, whatever else is used up
    (f"{D} 18:00:00", "void b1", "VOIDED"),
    (f"{D} 18:00:00", "a5 1", "DAY key 4/4 12:00:00"),  # another key's images are not this one's
    (f"{D} 18:00:00", "settle a1 1", "CHARGED"),
    (f"{D} 18:00:00", "a6 3", OK),
    (f"{D} 18:00:00", "key a images_per_day -", ""),
    (f"{D} 18:00:00", "a7 6", OK),
    (f"{D} 18:00:00", "a8 1", "DAY org 10/10 12:00:00"),
]
CLOCK_SET_BACK: Table = [
    (f"{D} 18:00:00", "org images_per_day 10", ""),
    (f"{D} 18:00:00", "key a images_per_day 8", ""),
    (f"{N} 05:59:59", "a1 8", OK),
    (f"{N} 05:59:59", "settle a1 8", "CHARGED"),
    (f"{N} 06:00:01", "a2 8", OK),
    (f"{N} 06:00:01", "settle a2 8", "CHARGED"),
    (f"{N} 05:59:50", "a3 1", "DAY key 8/8 0:00:10"),  # back in a day that is over: it does not begin again
    (f"{N} 05:59:50", "b3 2", OK),
    (f"{N} 05:59:50", "settle b3 2", "CHARGED"),
    (f"{N} 05:59:50", "b4 1", "DAY org 10/10 0:00:10"),
    (f"{N} 06:00:02", "b5 1", "DAY org 10/10 23:59:58"),
    ("2036-11-24 06:00:00", "a6 8", OK),
    ("2036-11-24 06:00:00", "b6 2", OK),
]
MONTH: Table = [
    (f"{D} 18:00:00", "org images_per_month 20", ""),
    (f"{D} 18:00:00", "key b images_per_month 6", ""),
    (f"{D} 18:00:00", "b1 8", "MONTH key 0/6 never"),
    (f"{D} 18:00:00", "b1 6", OK),
    (f"{D} 18:00:00", "b2 1", "MONTH key 6/6 8 days, 12:00:00"),
    (f"{D} 18:00:00", "a1 8", OK),
    (f"{D} 18:00:00", "settle a1 7", "CHARGED"),
    (f"{N} 18:00:00", "a2 8", OK),  # b1 ran out: nothing of the key's, seven of the organisation's
    (f"{N} 18:00:00", "settle a2 8", "CHARGED"),
    (f"{N} 18:00:00", "b3 6", "MONTH org 15/20 7 days, 12:00:00"),
    (f"{N} 18:00:00", "b3 5", OK),
    ("2036-12-01 05:59:59", "b4 5", OK),
    ("2036-12-01 05:59:59", "b5 1", "MONTH org 20/20 0:00:01"),
    ("2036-12-01 06:00:00", "b6 6", OK),
    ("2036-12-01 06:00:01", "void b4", "VOIDED"),
    ("2036-12-01 06:00:01", "a6 8", OK),
    ("2036-12-01 06:00:01", "a7 6", OK),
    ("2036-12-01 06:00:01", "a8 1", "MONTH org 20/20 30 days, 23:59:59"),
]
LONGEST_FIRST: Table = [
    (f"{D} 18:00:00", "org images_per_day 8", ""),
    (f"{D} 18:00:00", "org images_per_month 8", ""),
    (f"{D} 18:00:00", "org micro_mxn_per_month 7560000", ""),
    (f"{D} 18:00:00", "org in_flight 8", ""),
    (f"{D} 18:00:00", "org requests_per_minute 1", ""),
    (f"{D} 18:00:00", "a1 8", OK),
    (f"{D} 18:00:00", "a2 2", "BUDGET org 6.72/7.56 8 days, 12:00:00"),
    (f"{D} 18:00:00", "a2 1", "MONTH org 8/8 8 days, 12:00:00"),
    (f"{D} 18:00:00", "org images_per_month 9", ""),
    (f"{D} 18:00:00", "a2 1", "DAY org 8/8 12:00:00"),
    (f"{D} 18:00:00", "org images_per_day 9", ""),
    (f"{D} 18:00:00", "a2 1", "REQUESTS"),
    (f"{D} 18:01:00", "a2 1", "IN_FLIGHT org 8/8 0:00:02"),
    (f"{D} 18:01:10", "a2 1", OK),
]
NEVER_AT_ALL: Table = [
    # What is used up comes back, and yet the order alone is above another limit: no wait helps.
    (f"{D} 18:00:00", "org micro_mxn_per_month 6720000", ""),
    (f"{D} 18:00:00", "a1 8", OK),
    (f"{D} 18:00:00", "b1 3", "BUDGET org 6.72/6.72 8 days, 12:00:00"),
    (f"{D} 18:00:00", "key b images_per_month 2", ""),
    (f"{D} 18:00:00", "b1 3", "BUDGET org 6.72/6.72 never"),
    (f"{D} 18:00:00", "b1 2", "BUDGET org 6.72/6.72 8 days, 12:00:00"),
    (f"{D} 18:00:00", "key b images_per_month -", ""),
    (f"{D} 18:00:00", "org micro_mxn_per_month -", ""),
    (f"{D} 18:00:00", "org images_per_month 8", ""),
    (f"{D} 18:00:00", "key b images_per_day 2", ""),
    (f"{D} 18:00:00", "b1 3", "MONTH org 8/8 never"),
    (f"{D} 18:00:00", "b1 2", "MONTH org 8/8 8 days, 12:00:00"),
    (f"{D} 18:00:00", "key b images_per_day -", ""),
    (f"{D} 18:00:00", "org images_per_month -", ""),
    (f"{D} 18:00:00", "org images_per_day 8", ""),
    (f"{D} 18:00:00", "key b in_flight 2", ""),
    (f"{D} 18:00:00", "b1 3", "DAY org 8/8 never"),
    (f"{D} 18:00:00", "b1 2", "DAY org 8/8 12:00:00"),
    (f"{D} 18:00:00", "key b in_flight -", ""),
    (f"{D} 18:00:00", "key b images_per_minute 2", ""),
    (f"{D} 18:00:00", "b1 3", "DAY org 8/8 never"),
    (f"{D} 18:00:00", "b1 2", "DAY org 8/8 12:00:00"),
]
RATE_OVER_MIDNIGHT: Table = [
    # The new day begins, and the rate is not yet back.
    (f"{D} 18:00:00", "org images_per_day 8", ""),
    (f"{D} 18:00:00", "org images_per_minute 8", ""),
    (f"{N} 05:59:50", "a1 8", OK),
    (f"{N} 05:59:55", "a2 8", "DAY org 8/8 0:00:55"),
    (f"{N} 06:00:00", "a2 8", "IMAGES"),
    (f"{N} 06:00:50", "a2 8", OK),
    (f"{N} 06:00:50", "settle a1 8", "CHARGED"),
    (f"{N} 06:00:50", "settle a2 8", "CHARGED"),
    (f"{N} 06:00:50", "org images_per_day -", ""),
    (f"{N} 06:00:50", "org images_per_month 16", ""),
    (f"{N} 06:00:50", "org requests_per_minute 1", ""),
    ("2036-12-01 05:59:59", "a3 1", "MONTH org 16/16 0:00:01"),
    ("2036-12-01 05:59:59", "org images_per_month 17", ""),
    ("2036-12-01 05:59:59", "a3 1", OK),
    ("2036-12-01 05:59:59", "a4 1", "MONTH org 17/17 0:01:00"),
    ("2036-12-01 05:59:59", "org micro_mxn_per_month 840000", ""),
    ("2036-12-01 05:59:59", "a4 1", "BUDGET org 14.28/0.84 0:01:00"),
    ("2036-12-01 06:00:58", "a4 1", "REQUESTS"),
    ("2036-12-01 06:00:59", "a4 1", OK),
]
BUDGET: Table = [
    (f"{D} 18:00:00", "org micro_mxn_per_month 8400000", ""),
    (f"{D} 18:00:00", "key b micro_mxn_per_month 2520000", ""),
    (f"{D} 18:00:00", "b1 4", "BUDGET key 0.00/2.52 never"),
    (f"{D} 18:00:00", "b1 3", OK),
    (f"{D} 18:00:00", "b2 1", "BUDGET key 2.52/2.52 8 days, 12:00:00"),
    (f"{D} 18:00:00", "a1 8", "BUDGET org 2.52/8.40 8 days, 12:00:00"),
    (f"{D} 18:00:00", "a1 7", OK),
    (f"{D} 18:00:00", "a2 1", "BUDGET org 8.40/8.40 8 days, 12:00:00"),
    (f"{D} 18:00:00", "settle b1 1", "CHARGED"),
    (f"{D} 18:00:00", "a2 3", "BUDGET org 6.72/8.40 8 days, 12:00:00"),
    (f"{D} 18:00:00", "b3 2", OK),
    (f"{D} 18:00:00", "b4 1", "BUDGET org 8.40/8.40 8 days, 12:00:00"),
    (f"{D} 18:00:00", "void a1", "VOIDED"),
    (f"{D} 18:00:00", "a3 7", OK),
    (f"{D} 18:00:00", "org micro_mxn_per_month 0", ""),  # lifted
    (f"{D} 18:00:00", "a4 8", OK),
    (f"{D} 18:00:00", "org micro_mxn_per_month 840000", ""),  # below what is spent
    (f"{D} 18:00:00", "a5 1", "BUDGET org 15.12/0.84 8 days, 12:00:00"),
    ("2036-12-01 05:59:59", "a6 1", "BUDGET org 0.84/0.84 0:00:01"),  # all but b1 ran out
    ("2036-12-01 06:00:00", "a7 1", OK),
    ("2036-12-01 06:00:00", "a8 1", "BUDGET org 0.84/0.84 31 days, 0:00:00"),
]
IN_FLIGHT: Table = [
    (f"{D} 18:00:00", "org in_flight 10", ""),
    (f"{D} 18:00:00", "key b in_flight 4", ""),
    (f"{D} 18:00:00", "b1 5", "IN_FLIGHT key 0/4 never"),
    (f"{D} 18:00:00", "b1 4", OK),
    (f"{D} 18:00:00", "b2 1", "IN_FLIGHT key 4/4 0:00:02"),
    (f"{D} 18:00:00", "a1 7", "IN_FLIGHT org 4/10 0:00:02"),
    (f"{D} 18:00:00", "a1 6", OK),
    (f"{D} 18:00:10", "settle b1 2", "CHARGED"),  # two were delivered, none is in flight any more
    (f"{D} 18:00:10", "b3 4", OK),
    (f"{D} 18:00:10", "a2 1", "IN_FLIGHT org 10/10 0:00:02"),
    (f"{D} 18:00:20", "void a1", "VOIDED"),
    (f"{D} 18:00:20", "a3 7", "IN_FLIGHT org 4/10 0:00:02"),
    (f"{D} 18:00:20", "a3 6", OK),
    (f"{D} 18:01:19", "b4 1", "IN_FLIGHT org 10/10 0:00:02"),
    (f"{D} 18:01:20", "b4 4", OK),  # b3 has run out
    ("2036-12-01 05:59:59", "a5 8", OK),
    ("2036-12-01 06:00:00", "a6 3", "IN_FLIGHT org 8/10 0:00:02"),  # what flies over midnight still flies
    ("2036-12-01 06:00:01", "settle a5 8", "CHARGED"),
    ("2036-12-01 06:00:01", "a6 8", OK),
]
REPLAYED: Table = [
    (f"{D} 18:00:00", "org images_per_day 10", ""),
    (f"{D} 18:00:00", "org images_per_month 30", ""),
    (f"{N} 05:58:00", "a1 8", OK),
    (f"{N} 05:59:20", "a2 8", OK),  # a1 has run out
    (f"{N} 05:59:30", "replay a1 8", "NOW"),  # and yet was answered
    (f"{N} 05:59:30", "replay a1 8", "CHARGED"),
    (f"{N} 05:59:30", "a3 1", "DAY org 16/10 0:00:30"),
    (f"{N} 06:00:00", "b1 8", OK),
    (f"{N} 06:00:01", "replay a2 3", "NOW"),  # counts yesterday, where it was ordered, and in the month
    (f"{N} 06:00:01", "b2 3", "DAY org 8/10 23:59:59"),
    (f"{N} 06:00:01", "b2 2", OK),
    (f"{N} 06:00:02", "org images_per_day 0", ""),
    (f"{N} 06:00:02", "b3 8", OK),
    (f"{N} 06:00:02", "b4 2", "MONTH org 29/30 7 days, 23:59:58"),
    (f"{N} 06:00:02", "b4 1", OK),
]
CHANGED: Table = [
    (f"{D} 18:00:00", "a1 8", OK),  # counted though nothing is limited
    (f"{D} 18:00:00", "settle a1 8", "CHARGED"),
    (f"{D} 18:00:00", "org images_per_day 8", ""),
    (f"{D} 18:00:00", "a2 1", "DAY org 8/8 12:00:00"),
    (f"{D} 18:00:00", "org images_per_day 9", ""),
    (f"{D} 18:00:00", "a2 1", OK),
    (f"{D} 18:00:00", "org images_per_day 5", ""),
    (f"{D} 18:00:00", "void a2", "VOIDED"),
    (f"{D} 18:00:00", "b1 1", "DAY org 8/5 12:00:00"),
    (f"{D} 18:00:00", "org images_per_day -", ""),  # the plan's again: none
    (f"{D} 18:00:00", "key b images_per_day 2", ""),
    (f"{D} 18:00:00", "b1 3", "DAY key 0/2 never"),
    (f"{D} 18:00:00", "b1 2", OK),
    (f"{D} 18:00:00", "key b images_per_day 3", ""),
    (f"{D} 18:00:00", "b2 1", OK),
]
TABLES = {
    "day": DAY,
    "day of a key": DAY_OF_A_KEY,
    "clock set back": CLOCK_SET_BACK,
    "month": MONTH,
    "longest first": LONGEST_FIRST,
    "never at all": NEVER_AT_ALL,
    "rate over midnight": RATE_OVER_MIDNIGHT,
    "budget": BUDGET,
    "in flight": IN_FLIGHT,
    "replayed": REPLAYED,
    "changed": CHANGED,
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
async def test_a_limit_follows_its_table(redis_url: str, tmp_path: Path, table: Table) -> None:
    """Verdict, whose limit, what is used and how long to wait, at each moment; in the end all of it is back."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        shop = await open_shop(books)
        shop.callers["c"] = shop.callers["b"]
        for number, (moment, action, wanted) in enumerate(table):
            shop.at(moment)
            assert await shop.do(action) == wanted, (number, moment, action)
        await end_all(shop)
        assert all([nothing_open(await counters(books, caller)) for caller in shop.callers.values()])


async def end_all(shop: Shop) -> None:
    """Whatever is open ends, each its own way."""
    for number, name in enumerate(shop.orders):
        await shop.do(f"settle {name} 1" if number % 2 else f"void {name}")
        await shop.do(f"void {name}")


# at_s, order, verdict, limit, remaining, reset_s, retry_s
FxRate = tuple[int, str, Verdict, int, int, float, float]
ADMITTED, REQUESTS, IMAGES = Verdict.ADMITTED, Verdict.REQUESTS, Verdict.IMAGES
REQUESTS_OF_A_KEY: list[FxRate] = [
    # The organisation has 6 a minute, key a 2.
    (0, "a1 1", ADMITTED, 2, 1, 30, 0),
    (0, "a2 1", ADMITTED, 2, 0, 60, 0),
    (0, "a3 1", REQUESTS, 2, 0, 60, 30),
    (0, "b1 1", ADMITTED, 6, 3, 30, 0),
    (0, "b2 1", ADMITTED, 6, 2, 40, 0),
    (0, "b3 1", ADMITTED, 6, 1, 50, 0),
    (0, "b4 1", ADMITTED, 6, 0, 60, 0),
    (0, "b5 1", REQUESTS, 6, 0, 60, 10),
    (0, "a4 1", REQUESTS, 2, 0, 60, 30),  # both refuse: the longer wait is told
    (10, "a4 1", REQUESTS, 2, 0, 50, 20),
    (10, "b6 1", ADMITTED, 6, 0, 60, 0),
    (30, "a5 1", ADMITTED, 2, 0, 60, 0),
]
IMAGES_OF_A_KEY: list[FxRate] = [
    # The organisation has 6 a minute, key a 4.
    (0, "a1 2", ADMITTED, 4, 2, 30, 0),
    (0, "a2 5", IMAGES, 4, 2, 30, 0),  # never
    (0, "b1 4", ADMITTED, 6, 0, 60, 0),
    (0, "a3 1", IMAGES, 6, 0, 60, 10),
    (0, "a4 7", IMAGES, 6, 0, 60, 0),
    (10, "a5 1", ADMITTED, 6, 0, 60, 0),
    (20, "a6 5", IMAGES, 4, 2, 25, 0),  # the organisation has room in 40 s, the key never: nothing to wait for
]


@pytest.mark.parametrize(("what", "table"), [("requests", REQUESTS_OF_A_KEY), ("images", IMAGES_OF_A_KEY)])
async def test_of_two_rates_the_tighter_one_is_told(
    redis_url: str, tmp_path: Path, what: str, table: list[FxRate]
) -> None:
    """Limit, rest, reset and wait are those of the key or of its organisation, whichever has less left or refuses."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        shop = await open_shop(books)
        await shop.do(f"org {what}_per_minute 6")
        await shop.do(f"key a {what}_per_minute {2 if what == 'requests' else 4}")
        for number, (at_s, order, verdict, limit, *figures) in enumerate(table):
            books.wallet.at(NOW_US + at_s * SECOND_US)
            name, images = order.split()
            told = await shop.order(name, int(images))
            state = told.requests if what == "requests" else told.images
            found = [state.remaining, state.reset_us / SECOND_US, told.retry_us / SECOND_US]
            assert (told.verdict, state.limit, found) == (verdict, limit, figures), (number, order)
            denied = verdict is not ADMITTED
            assert (told.whose, told.limit) == (("org" if limit == 6 else "key", limit) if denied else ("", 0))


async def test_where_both_rates_refuse_the_wait_is_enough_for_both(redis_url: str, tmp_path: Path) -> None:
    """A lone client that waits as long as it was told is admitted then, and not a microsecond before."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        shop = await open_shop(books)
        await shop.do("org requests_per_minute 2")
        await shop.do("org images_per_minute 8")
        await shop.do("a1 1")
        await shop.do("a2 7")
        told = await shop.order("a3", 8)
        assert (told.verdict, told.retry_us) == (REQUESTS, 60 * SECOND_US)
        books.wallet.at(NOW_US + told.retry_us - 1)
        assert (await shop.order("a3", 8)).retry_us == 1
        books.wallet.at(NOW_US + told.retry_us)
        assert (await shop.order("a3", 8)).verdict is ADMITTED
        await shop.do("org in_flight 7")  # so eight never fit
        told = await shop.order("a4", 8)
        assert (told.verdict, told.retry_us) == (IMAGES, 0)


@pytest.mark.parametrize(
    ("month", "days"), [("2037-02", 28), ("2036-02", 29), ("2036-04", 30), ("2036-11", 30), ("2036-12", 31)]
)
@pytest.mark.parametrize("limit", ["images_per_month 8", "micro_mxn_per_month 6720000"])
async def test_a_month_ends_at_midnight_in_mexico_city(
    redis_url: str, tmp_path: Path, month: str, days: int, limit: str
) -> None:
    """On its first day the wait is its whole length, in its last second a second; then a new one begins, once."""
    start_us, end_us = month_start_us(month), month_start_us(next_month(month))
    assert (end_us - start_us) == days * 86_400 * SECOND_US
    assert utc_at(start_us).hour == 6
    async with open_books(redis_url, tmp_path / "l.db", now_us=start_us) as books:
        shop = await open_shop(books)
        await shop.do(f"org {limit}")
        assert await shop.do("a1 8") == OK
        assert await shop.do("settle a1 8") == "CHARGED"
        assert (await shop.do("a2 1")).endswith(f"{days} days, 0:00:00")
        books.wallet.at(end_us - SECOND_US)
        assert (await shop.do("a2 1")).endswith("0:00:01")
        books.wallet.at(end_us)
        assert await shop.do("a2 8") == OK
        assert not (await shop.do("a3 1")).startswith(OK)


async def test_every_day_of_two_years_has_its_own_quota(redis_url: str, tmp_path: Path) -> None:
    """At 05:59:59 UTC it is the old day, at 06:00:00 the new one, leap day and month ends included."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        shop = await open_shop(books)
        await shop.do("org images_per_day 2")
        first = unix_us_at(datetime(2036, 1, 1, 6, tzinfo=UTC))
        for day in range(0, 2 * 366, 5):
            midnight_us = first + day * 86_400 * SECOND_US
            books.wallet.at(midnight_us)
            assert await shop.do(f"a{day} 2") == OK
            assert await shop.do(f"a{day}x 1") == "DAY org 2/2 1 day, 0:00:00"
            await shop.do(f"settle a{day} 2")
            books.wallet.at(midnight_us + 86_399 * SECOND_US)
            assert await shop.do(f"a{day}x 1") == "DAY org 2/2 0:00:01"


@pytest.mark.parametrize("wiped", [True, False])
async def test_a_rebuilt_wallet_knows_what_was_used(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch, wiped: bool
) -> None:
    """Delivered images of today and this month come from the ledger, open ones from the holds that are still there."""
    async with open_books(redis_url, ledger_url) as books:
        shop = await open_shop(books)
        await shop.do("org images_per_day 50")
        for moment, order in (
            ("2036-10-31 18:00:00", "a0"),
            ("2036-11-02 18:00:00", "a1"),
            (f"{D} 18:00:00", "b1"),
        ):
            shop.at(moment)
            assert await shop.do(f"{order} 8") == OK
            assert await shop.do(f"settle {order} 5") == "CHARGED"
        assert await shop.do("a2 4") == OK
        before = [await counters(books, shop.callers[key]) for key in "ab"]
        await drain(books)
        monkeypatch.setattr(projection, "utc_now", lambda: NOON)
        await (wipe(books.redis) if wiped else books.projector.forget(None))
        await books.projector.round()
        after = [await counters(books, shop.callers[key]) for key in "ab"]
        if not wiped:
            assert after == before
        assert (after[0]["org"]["day_done"], after[0]["org"]["month_done"]) == (5, 10)
        assert after[0]["org"]["spent_done"] == 10 * UNIT
        assert (after[0]["key"]["day_done"], after[0]["key"]["month_done"]) == (0, 5)
        assert (after[1]["key"]["day_done"], after[1]["key"]["month_done"]) == (5, 5)
        for counted, flying in ((after[0]["org"], 4), (after[0]["key"], 4), (after[1]["key"], 0)):
            open_ = 0 if wiped else flying
            assert [counted[what] for what in ("flying", "day_open", "month_open")] == [open_] * 3
            assert counted["spent_open"] == open_ * UNIT
        if wiped:
            assert await shop.do("replay a2 4") == "NOW"  # from the journal, as the hold is lost
        else:
            assert await shop.do("settle a2 4") == "CHARGED"
        assert (await counters(books, shop.callers["a"]))["org"]["day_done"] == 9
        await shop.do("org images_per_day 10")
        assert await shop.do("b2 2") == "DAY org 9/10 12:00:00"
        assert await shop.do("b2 1") == OK
        await shop.do("void b2")
        assert all([nothing_open(await counters(books, caller)) for caller in shop.callers.values()])


async def test_a_changed_plan_holds_from_the_next_request_on(redis_url: str, ledger_url: str) -> None:
    """For all that have no limit of their own, up and down and gone; what was used before stays used."""
    async with open_books(redis_url, ledger_url) as books:
        ours, own = await open_shop(books), await open_shop(books, name="own")
        await own.do("org images_per_day 3")
        assert await plan(books, images_per_day=5, in_flight=4)
        for shop in (ours, own):
            assert await shop.do("a1 3") == OK
        assert await ours.do("a2 3") == "DAY org 3/5 12:00:00"
        assert await ours.do("a2 2") == "IN_FLIGHT org 3/4 0:00:02"
        assert await own.do("a2 1") == "DAY org 3/3 12:00:00"
        assert not await plan(books, images_per_day=5, in_flight=4)
        assert await plan(books, images_per_day=2)
        assert await ours.do("a3 1") == "DAY org 3/2 12:00:00"
        assert await plan(books)
        assert await ours.do("a3 8") == OK
        assert await own.do("a3 1") == "DAY org 3/3 12:00:00"
        await own.do("org images_per_day -")
        assert await own.do("a3 8") == OK


async def plan(books: Books, **limits: int) -> bool:
    """Do what a gateway with another plan file does at its start: register and project."""
    values = PLANS["default"].values() | limits
    changed = await books.ledger.register_plans({"default": Limits(**values)}, NOON)
    await books.projector.round()
    return changed


async def test_what_is_given_back_after_the_month_ended_is_not_given_to_the_next(
    redis_url: str, tmp_path: Path
) -> None:
    """December → January: a void and a charge of December leave January's counters alone."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        shop = await open_shop(books)
        shop.at("2037-01-01 05:59:50")
        await shop.do("a1 8")
        await shop.do("b1 8")
        shop.at("2037-01-01 06:00:00")
        await shop.do("a2 5")
        await shop.do("void a1")
        await shop.do("settle b1 8")
        counted = await counters(books, shop.callers["a"])
        for whose in ("org", "key"):
            open_ = {what: counted[whose][what] for what in ("flying", "day_open", "month_open", "spent_open")}
            assert open_ == {"flying": 5, "day_open": 5, "month_open": 5, "spent_open": 5 * UNIT}
            assert [counted[whose][what] for what in ("day_done", "month_done", "spent_done")] == [0, 0, 0]
        assert pinned(now_us=books.wallet.now_us()).period.month == "2037-01"


async def as_before_quotas(shop: Shop, name: str) -> None:
    """The order's hold, and what its admission counted, as the version before quotas had left them."""
    names = keys.OrgKeys(shop.org_id)
    await shop.books.redis.hdel(names.hold(shop.id(name)), "key", "day", "month")
    for place in (names.wallet, names.access(shop.callers[name[0]].key_id)):
        await shop.books.redis.hdel(place, "day", "month", *OPEN, *DONE)


@pytest.mark.parametrize("end", ["settle", "void", "run out", "replay"])
@pytest.mark.parametrize("rebuilt", [False, True])
async def test_an_order_that_the_version_before_admitted_ends_whole(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, rebuilt: bool
) -> None:
    """In a roll-out: its money and its event are as ever, and what it never took of a limit it does not give back."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        shop = await open_shop(books, mxn="84.00")
        await shop.do("org in_flight 5")
        assert await shop.do("a1 5") == OK
        await as_before_quotas(shop, "a1")
        if rebuilt:
            monkeypatch.setattr(projection, "utc_now", lambda: NOON)
            await books.projector.forget(None)
            await books.projector.round()
        match end:
            case "settle":
                assert await shop.do("settle a1 5") == "CHARGED"
            case "void":
                assert await shop.do("void a1") == "VOIDED"
            case "replay":
                assert await shop.do("replay a1 5") == "NOW"
            case _:
                shop.at(f"{D} 18:01:20")
        assert await shop.do("b1 6") == "IN_FLIGHT org 0/5 never"
        assert await shop.do("b1 5") == OK
        assert await shop.do("a2 1") == "IN_FLIGHT org 5/5 0:00:02"
        await shop.do("void b1")
        assert all([nothing_open(await counters(books, caller)) for caller in shop.callers.values()])
        charged = 0 if end in ("void", "run out") else 5 * UNIT
        assert (await books.cut(shop.callers["a"])).charged_micro_mxn == charged
        assert [event.amount_micro_mxn for event in await books.events(shop.callers["a"])] == [charged, 0]


async def test_a_rebuild_over_midnight_books_yesterday_to_yesterday(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day's figures from the ledger never count against the next day, however late the wallet is written."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        shop = await open_shop(books)
        await shop.do("org images_per_day 8")
        shop.at(f"{D} 18:00:00")
        assert await shop.do("a1 8") == OK
        assert await shop.do("settle a1 8") == "CHARGED"
        await drain(books)
        moment = datetime.fromisoformat(f"{D} 18:00:00").replace(tzinfo=UTC)
        monkeypatch.setattr(projection, "utc_now", lambda: moment)
        whole = books.ledger.charged

        async def slowly(org_ids: Sequence[str]) -> dict[str, Charged]:
            nonlocal moment
            moment = datetime.fromisoformat(f"{N} 06:00:00").replace(tzinfo=UTC)
            return await whole(org_ids)

        monkeypatch.setattr(books.ledger, "charged", slowly)
        await books.projector.forget(None)
        await books.projector.round()
        shop.at(f"{N} 06:00:01")
        assert await shop.do("a2 8") == OK
        assert await shop.do("a3 1") == "DAY org 8/8 23:59:59"


@pytest.mark.parametrize("end", ["settle", "void", "run out"])
async def test_a_rebuild_by_an_earlier_clock_counts_what_a_later_one_opened(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """A server whose clock was ahead is gone, its holds are not: they count today, and give back what they took."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        shop = await open_shop(books)
        await shop.do("org images_per_day 8")
        shop.at(f"{N} 06:00:00")
        assert await shop.do("a1 5") == OK
        monkeypatch.setattr(projection, "utc_now", lambda: NOON)
        await books.projector.forget(None)
        await books.projector.round()
        shop.at(f"{D} 18:00:00")
        assert await shop.do("b1 3") == OK
        assert await shop.do("b2 1") == "DAY org 8/8 12:00:00"
        await shop.do("settle b1 3")
        if end == "settle":
            assert await shop.do("settle a1 5") == "CHARGED"
            assert await shop.do("b2 1") == "DAY org 8/8 12:00:00"
        elif end == "void":
            assert await shop.do("void a1") == "VOIDED"
            assert await shop.do("b2 5") == OK
        shop.at(f"{N} 06:01:20")
        assert await shop.do("b3 8") == OK
        assert await shop.do("b4 1") == "DAY org 8/8 23:58:40"
        await end_all(shop)
        assert all([nothing_open(await counters(books, caller)) for caller in shop.callers.values()])


async def test_a_journals_order_of_a_clock_that_was_ahead_counts_today(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hold is lost. No later day begins with it: what was used today stays used, and tomorrow has its own quota."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        shop = await open_shop(books)
        await shop.do("org images_per_day 8")
        shop.at(f"{N} 06:00:00")
        assert await shop.do("a1 3") == OK
        await wipe(books.redis)
        monkeypatch.setattr(projection, "utc_now", lambda: NOON)
        await books.projector.round()
        shop.at(f"{D} 18:00:00")
        assert await shop.do("b1 4") == OK
        assert await shop.do("settle b1 4") == "CHARGED"
        assert await shop.do("replay a1 3") == "NOW"
        assert await shop.do("b2 2") == "DAY org 7/8 12:00:00"
        shop.at(f"{N} 06:00:00")
        assert await shop.do("b3 8") == OK
