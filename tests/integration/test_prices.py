"""What the ledger says of prices: one schedule for all gateways, from files that they see at different times."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from redis.asyncio import from_url
from redis.exceptions import RedisError

from metering.clock import FOREVER_US
from metering.ledger.record import SqlLedger
from metering.ports import LedgerAway, ListPrice, PriceBook
from metering.price_table import PriceTable
from metering.pricing import quote
from metering.schedules import NOTICE_S, PriceRefused, price_of_moment
from metering.verify import Difference, verify
from metering.wallet.presence import Presence
from metering.wallet.price_lists import FRESH_S, PriceLists
from metering.wallet.values import Verdict
from tests.kits.books import BOOK, NOON, NOW_US, drain, open_books, open_ledger, pinned, sql

NOTICE_US = int(NOTICE_S * 1_000_000)
THEN_US = NOW_US + NOTICE_US
FLUX = "fal/flux-1.1-pro"


def book(usd: str, effective_us: int | None = None, *, name: str = "book", **more: str) -> PriceBook:
    """A book with one model, and `more` models without the slash in their names."""
    prices = [ListPrice(FLUX, Decimal(usd)), *(ListPrice(model, Decimal(price)) for model, price in more.items())]
    return PriceBook("+".join([name, usd, *more, *more.values()]), Decimal("1.05"), prices, effective_us)


async def opened(url: str) -> SqlLedger:
    ledger = open_ledger(url)
    await ledger.migrate()
    return ledger


async def read(ledger: SqlLedger) -> PriceTable:
    table = PriceTable(ledger)
    await table.refresh(FOREVER_US)
    return table


@pytest.mark.rule(25)
async def test_a_change_holds_from_its_moment_on(ledger_url: str) -> None:
    """The first price holds at once; the next one from `effective_from` on, and until then the first, with its book."""
    ledger = await opened(ledger_url)
    assert await ledger.list_prices(book("0.04"), NOW_US, NOON)
    assert not await ledger.list_prices(book("0.04"), NOW_US + 1, NOON)
    assert await ledger.list_prices(book("0.05", THEN_US), NOW_US, NOON)
    assert not await ledger.list_prices(book("0.05", THEN_US), THEN_US + 7, NOON), "the file stays as it is"
    table = await read(ledger)
    before, after = table.price(FLUX, "", THEN_US - 1), table.price(FLUX, "", THEN_US)
    assert (before.usd_per_image, before.price_book, before.until_us) == (Decimal("0.04"), "book+0.04", THEN_US)
    assert (after.usd_per_image, after.price_book, after.from_us) == (Decimal("0.05"), "book+0.05", THEN_US)
    assert (table.upcoming(FLUX, "", THEN_US - 1), table.upcoming(FLUX, "", THEN_US)) == (after, None)
    await ledger.aclose()


async def test_a_refused_file_leaves_nothing(ledger_url: str) -> None:
    """Neither of its prices is written, nor the model that it adds."""
    ledger = await opened(ledger_url)
    await ledger.list_prices(book("0.04"), NOW_US, NOON)
    for wrong in (book("0.05", another="1"), book("0.05", THEN_US - 1, another="1")):
        with pytest.raises(
            PriceRefused, match=r"models\.fal/flux-1\.1-pro: the price 0\.04 × 1\.05 would become 0\.05"
        ):
            await ledger.list_prices(wrong, NOW_US, NOON)
    assert list(await ledger.price_rows()) == [("book+0.04", FLUX, "")]
    assert (await ledger.last_price_list()).number == 1
    await ledger.aclose()


async def test_models_come_and_go_without_notice(ledger_url: str) -> None:
    """A model that is gone keeps its price: nobody can change it by removing it for a while."""
    ledger = await opened(ledger_url)
    await ledger.list_prices(book("0.04"), NOW_US, NOON)
    await ledger.list_prices(book("0.04", another="1"), NOW_US, NOON)
    assert not await ledger.list_prices(book("0.04"), NOW_US, NOON), "the file of the beginning is known"
    table = await read(ledger)
    assert table.has("another", [""]) and table.price("another", "", NOW_US).until_us == FOREVER_US
    with pytest.raises(PriceRefused, match=r"models\.another: the price 1\.00 × 1\.05 would "):
        await ledger.list_prices(book("0.04", another="2"), NOW_US, NOON)
    await ledger.aclose()


async def test_a_gateway_with_an_old_file_undoes_nothing(ledger_url: str) -> None:
    """It starts before its copy of the file has followed. Another name of the price book makes it a decision."""
    ledger = await opened(ledger_url)
    old, later_us = book("0.04"), NOW_US + 10 * NOTICE_US
    await ledger.list_prices(old, NOW_US, NOON)
    await ledger.list_prices(book("0.04", another="1"), NOW_US, NOON)  # of this file no price of FLUX was written
    await ledger.list_prices(book("0.05", later_us), NOW_US, NOON)
    for stale in (old, book("0.04", another="1")):
        with pytest.raises(PriceRefused, match=r"price_book: .* was replaced .* give the price book another name"):
            await ledger.list_prices(stale, NOW_US, NOON)
    assert (await read(ledger)).price(FLUX, "", later_us).usd_per_image == Decimal("0.05")
    assert await ledger.list_prices(book("0.04", name="withdrawn"), NOW_US, NOON)
    assert (await read(ledger)).price(FLUX, "", later_us).usd_per_image == Decimal("0.04")
    await ledger.aclose()


async def test_race_many_gateways_list_the_same_file(ledger_url: str) -> None:
    """One of them writes it, and all agree."""
    first = await opened(ledger_url)
    ledgers = [first, *(open_ledger(ledger_url) for _ in range(4))]
    await first.list_prices(book("0.04"), NOW_US, NOON)
    listed = await asyncio.gather(*(one.list_prices(book("0.05", THEN_US), NOW_US, NOON) for one in ledgers))
    assert sorted(listed) == [False] * 4 + [True]
    assert {(await read(one)).price(FLUX, "", THEN_US).price_book for one in ledgers} == {"book+0.05"}
    for one in ledgers:
        await one.aclose()


async def test_schedules_are_append_only(ledger_url: str) -> None:
    """The database refuses, whoever asks."""
    ledger = await opened(ledger_url)
    await ledger.list_prices(book("0.04"), NOW_US, NOON)
    for statement in (
        "UPDATE price_schedules SET from_us = 1",
        "DELETE FROM price_schedules",
        "UPDATE price_lists SET at_us = 1",
        "DELETE FROM price_lists",
    ):
        with pytest.raises(Exception, match="append-only"):
            sql(ledger_url, statement)
    await ledger.aclose()


async def test_a_restored_ledger_is_noticed_and_takes_no_price_away(tmp_path: Path) -> None:
    """A model that it has lost keeps its price here until its file is listed again."""
    ledger, backup = await opened(f"sqlite:///{tmp_path / 'l.db'}"), await opened(f"sqlite:///{tmp_path / 'b.db'}")
    for one in (ledger, backup):
        await one.list_prices(book("0.04"), NOW_US, NOON)
    await ledger.list_prices(book("0.04", another="1"), NOW_US, NOON)
    table = await read(ledger)
    table._ledger = backup
    await table.refresh(FOREVER_US)
    assert table.losses == 1 and table.has("another", [""])
    await ledger.aclose()
    await backup.aclose()


@contextmanager
def cut_off(url: str) -> Iterator[None]:
    """The ledger's lists cannot be read meanwhile."""
    sql(url, "ALTER TABLE price_lists RENAME TO elsewhere")
    try:
        yield
    finally:
        sql(url, "ALTER TABLE elsewhere RENAME TO price_lists")


async def behind(table: PriceTable, lists: PriceLists, url: str) -> bool:
    """Whether it takes no order when it is cut off."""
    with cut_off(url), pytest.raises(LedgerAway):
        await table.follow(lists)
    return table.behind


async def test_who_is_cut_off_from_the_ledger_learns_that_a_list_is_missing(redis_url: str, tmp_path: Path) -> None:
    """By Redis, from any gateway; while there is no such list it goes on selling."""
    url = f"sqlite:///{tmp_path / 'l.db'}"
    ledger, lists = await opened(url), PriceLists(from_url(redis_url))
    async with aclosing(ledger), aclosing(lists._redis):
        table = await read(ledger)
        await table.follow(lists)
        assert not await behind(table, lists, url)
        await ledger.list_prices(book("0.04"), NOW_US, NOON)
        assert not await behind(table, lists, url), "nobody has told of it yet"
        await (await read(ledger)).follow(lists)
        assert await behind(table, lists, url)
        await table.follow(lists)
        assert not table.behind and table.has(FLUX, [""])
        assert not await behind(table, lists, url)


async def test_what_nobody_knows_is_no_confirmation(redis_url: str, tmp_path: Path) -> None:
    """A Redis that was wiped, or one that does not answer: a reading holds for its lease, and no longer."""
    url = f"sqlite:///{tmp_path / 'l.db'}"
    ledger, lists = await opened(url), PriceLists(from_url(redis_url))
    async with aclosing(ledger), aclosing(lists._redis):
        await ledger.list_prices(book("0.04"), NOW_US, NOON)
        table, now_us = PriceTable(ledger), await lists.now_us()
        await table.follow(lists)
        sold_until_us = table.price(FLUX, "", now_us).until_us
        assert now_us < sold_until_us <= now_us + int(NOTICE_S * 1e6) - int(FRESH_S * 1e6)
        await lists.forget()
        assert not await behind(table, lists, url), "its lease is not over"
        table._confirmed_us -= int(NOTICE_S * 1e6)
        assert await behind(table, lists, url)
        with pytest.raises(RedisError):
            await table.follow(PriceLists(from_url("redis://127.0.0.1:1")))
        assert table.price(FLUX, "", now_us).until_us < now_us, "Redis refuses what it quotes"
        await table.follow(lists)
        assert not table.behind and await lists.told() == (await ledger.last_price_list()).name


async def test_who_was_frozen_after_it_read_the_ledger_tells_nothing(redis_url: str) -> None:
    lists = PriceLists(from_url(redis_url))
    async with aclosing(lists._redis):
        await lists.tell("2:7", await lists.now_us())
        await lists.tell("1:5", await lists.now_us() - int(FRESH_S * 1e6) - 1)
        assert await lists.told() == "2:7"


async def test_a_restored_ledger_gets_back_what_is_sold_by(redis_url: str, tmp_path: Path) -> None:
    """Its list has the number of one that it lost; the price of before does not come back, and `verify` knows it."""
    ledger, backup = [await opened(f"sqlite:///{tmp_path / name}") for name in ("l.db", "b.db")]
    later_us = THEN_US + int(NOTICE_S * 1e6)
    async with aclosing(ledger), aclosing(backup):
        for one in (ledger, backup):
            await one.list_prices(book("0.04"), NOW_US, NOON)
        await ledger.list_prices(book("0.05", THEN_US), NOW_US, NOON)
        table = await read(ledger)
        await backup.list_prices(book("0.04", another="9"), NOW_US + 5, NOON)  # list 2, too
        table._ledger = backup
        await table.refresh(FOREVER_US)
        assert table.losses == 1 and table.price(FLUX, "", later_us).usd_per_image == Decimal("0.05")
        with pytest.raises(PriceRefused):
            await backup.list_prices(book("0.05", THEN_US), later_us, NOON)
        assert await backup.list_prices(book("0.05", THEN_US), later_us, NOON, table.lost)
        assert not await backup.list_prices(book("0.05", THEN_US), later_us, NOON, table.lost)
        await table.refresh(FOREVER_US)
        assert not table.lost and table.price(FLUX, "", later_us).usd_per_image == Decimal("0.05")
        assert (await read(backup)).price(FLUX, "", later_us).usd_per_image == Decimal("0.05")
        history = (await backup.price_schedules())[FLUX, ""]
        sold = price_of_moment(history, THEN_US)
        assert sold is not None and sold.usd_per_image == Decimal("0.05")


@pytest.mark.rule(24, 25)
async def test_redis_refuses_a_quote_whose_price_is_over(redis_url: str, tmp_path: Path) -> None:
    """By its own time, to the microsecond, on both sides; and takes nothing."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="20.00")
        usual = pinned()
        for name, price, at_us, verdict in (
            ("a", replace(usual.price, until_us=THEN_US), THEN_US - 1, Verdict.ADMITTED),
            ("b", replace(usual.price, until_us=THEN_US), THEN_US, Verdict.QUOTE_OVER),
            ("c", replace(usual.price, from_us=THEN_US), THEN_US - 1, Verdict.QUOTE_OVER),
            ("d", replace(usual.price, from_us=THEN_US), THEN_US, Verdict.ADMITTED),
        ):
            books.wallet.at(at_us)
            admission = await books.admit(caller, name, quote(price, usual.rate, usual.period, 1))
            assert (admission.verdict, admission.now_us) == (verdict, at_us), name
        assert (await books.wallet.read(caller.org_id)).held_micro_mxn == 2 * usual.total_micro_mxn


@pytest.mark.rule(31)
async def test_verify_finds_an_order_at_the_price_of_another_moment(redis_url: str, tmp_path: Path) -> None:
    """Its proof is right in itself: its price stands in a book, but not in that of its moment."""

    async def stored(path: str) -> bool:
        return True

    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="20.00")
        first = PriceBook(BOOK, Decimal("1.05"), [ListPrice(FLUX, Decimal("0.04"))])
        await books.ledger.list_prices(first, NOW_US - 1, NOON)
        await books.ledger.list_prices(book("0.05", THEN_US), NOW_US, NOON)
        await books.charge(caller, "in-time")
        await drain(books)
        assert await verify(books.ledger, books.wallet, Presence(books.redis), stored) == []
        books.wallet.at(THEN_US)
        await books.charge(caller, "too-late")
        await drain(books)
        assert await verify(books.ledger, books.wallet, Presence(books.redis), stored) == [
            Difference(caller.org_id, "event too-late: price of its moment", "0.05 × 1.05", "0.04 × 1.05")
        ]
