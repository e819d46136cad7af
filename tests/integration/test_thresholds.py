"""Thresholds: 80 % and 100 % of a quota or budget once in a period, and a low balance once at each crossing."""

from pathlib import Path
from typing import Any

import pytest

from metering.events import EventError, Notice, decode_notice
from metering.money import parse_mxn
from metering.wallet import keys, projection
from tests.kits.books import (
    NOON,
    UNIT,
    drain,
    open_books,
    result_of,
    start_worker,
    waiting,
    wipe,
)
from tests.kits.cluster_orgs import differences
from tests.kits.limits import Shop, open_shop

ALWAYS = "9999"
Short = tuple[str, int, str, int, int]


async def told(shop: Shop) -> list[Short]:
    """Notices in the ledger, oldest first: what, percent, period, limit, used; a key's with its name before it."""
    await drain(shop.books)
    names = {caller.key_id: f"{name} " for name, caller in shop.callers.items()}
    found = await shop.books.ledger.notices(shop.org_id, ALWAYS, 100)
    return [
        (names.get(one.key_id, "") + one.what, one.percent, one.period, one.limit, one.used)
        for one in sorted(found, key=lambda one: (one.at, one.percent))
    ]


async def charge(shop: Shop, name: str, images: int, asked: int | None = None) -> None:
    assert await shop.do(f"{name} {asked or images}") == "ADMITTED"
    assert await shop.do(f"settle {name} {images}") == "CHARGED"


@pytest.mark.parametrize(
    ("limit", "unit", "periods"),
    [
        ("images_per_day", 1, ("2036-11-22", "2036-11-23", "2036-12-01")),
        ("images_per_month", 1, ("2036-11", "2036-12", "2037-01")),
        ("micro_mxn_per_month", UNIT, ("2036-11", "2036-12", "2037-01")),
    ],
)
@pytest.mark.parametrize("whose", ["org", "key"])
async def test_each_quota_tells_at_80_and_100_once_in_a_period(
    redis_url: str, ledger_url: str, limit: str, unit: int, periods: tuple[str, ...], whose: str
) -> None:
    """By what was delivered, not by what was asked for; and in the next period again."""
    what = limit.removeprefix("micro_")
    async with open_books(redis_url, ledger_url) as books:
        shop = await open_shop(books)
        await shop.do(f"{'org' if whose == 'org' else 'key a'} {limit} {10 * unit}")
        what_ = what if whose == "org" else f"a {what}"
        expected: list[Short] = []
        for number, period in enumerate(periods):
            day = period if len(period) == 10 else f"{period}-03"
            shop.at(f"{day} 18:00:00")
            await charge(shop, f"a{number}1", 3, asked=8)
            assert await shop.do(f"a{number}2 5") == "ADMITTED"
            assert await shop.do(f"void a{number}2") == "VOIDED"
            await charge(shop, f"a{number}3", 4, asked=7)
            assert await told(shop) == expected  # 7 of 10
            shop.at(f"{day} 18:00:01")
            await charge(shop, f"a{number}4", 1)
            expected.append((what_, 80, period, 10 * unit, 8 * unit))
            assert await told(shop) == expected
            await charge(shop, f"a{number}5", 1)
            assert await told(shop) == expected  # 9: nothing new
            shop.at(f"{day} 18:00:02")
            await charge(shop, f"a{number}6", 1)
            expected.append((what_, 100, period, 10 * unit, 10 * unit))
            assert await told(shop) == expected
        assert await differences(books) == []


async def test_one_charge_may_pass_both_and_both_are_told(redis_url: str, tmp_path: Path) -> None:
    """From 70 % to 100 % at once; of the key and of its organisation, each by its own limit."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        shop = await open_shop(books)
        await shop.do("org images_per_day 10")
        await shop.do("key b images_per_day 4")
        await charge(shop, "a1", 6)
        await charge(shop, "b1", 4)
        assert sorted(await told(shop)) == [
            ("b images_per_day", 80, "2036-11-22", 4, 4),
            ("b images_per_day", 100, "2036-11-22", 4, 4),
            ("images_per_day", 80, "2036-11-22", 10, 10),
            ("images_per_day", 100, "2036-11-22", 10, 10),
        ]


async def test_a_limit_that_is_set_below_what_is_used_is_told_at_once(redis_url: str, tmp_path: Path) -> None:
    """No further charge could report it; if the limit is raised and reached again, it is not repeated."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        shop = await open_shop(books)
        await charge(shop, "a1", 8)
        await shop.do("org images_per_month 8")
        expected = [("images_per_month", 80, "2036-11", 8, 8), ("images_per_month", 100, "2036-11", 8, 8)]
        assert sorted(await told(shop)) == expected
        await shop.do("org images_per_month 10")
        await charge(shop, "a2", 2)
        await books.projector.org(shop.org_id)
        assert sorted(await told(shop)) == expected


async def test_a_low_balance_is_told_once_at_each_crossing(redis_url: str, ledger_url: str) -> None:
    """Under 20 MXN by charges or by an adjustment; after a top-up above it and a new fall, again."""
    async with open_books(redis_url, ledger_url) as books:
        shop = await open_shop(books, "21.68")
        number = 0

        async def credit(kind: str, mxn: str) -> None:
            nonlocal number
            number += 1
            await books.accounts.add_credit(shop.org_id, f"c{number}", kind, parse_mxn(mxn))

        low, expected = parse_mxn("20.00"), []
        await charge(shop, "a1", 2)
        assert await told(shop) == []  # 20.00 is not under 20
        await charge(shop, "a2", 1)
        expected.append(("balance", 0, "1", low, parse_mxn("19.16")))
        await charge(shop, "a3", 1)
        assert await told(shop) == expected
        await credit("recharge", "1.00")  # 19.32: still under it
        await charge(shop, "a4", 1)
        assert await told(shop) == expected
        await credit("recharge", "10.00")  # 28.48
        assert await told(shop) == expected
        await credit("adjustment", "-8.48")  # 20.00
        assert await told(shop) == expected
        await credit("adjustment", "-0.000001")
        expected.append(("balance", 0, "5", low, parse_mxn("19.999999")))
        assert sorted(await told(shop)) == sorted(expected)
        await credit("adjustment", "-5.00")
        assert sorted(await told(shop)) == sorted(expected)
        await credit("recharge", "10.00")
        await charge(shop, "b1", 8)
        await books.projector.org(shop.org_id)
        expected.append(("balance", 0, "7", low, parse_mxn("18.279999")))
        assert sorted(await told(shop)) == sorted(expected)
        assert await differences(books) == []


async def test_what_a_consumer_that_dies_had_read_is_told_once(redis_url: str, tmp_path: Path) -> None:
    """Killed between its commit and its acknowledgement: another tells what is left to be told, and nothing twice."""
    url = f"sqlite:///{tmp_path}/l.db"
    async with open_books(redis_url, url) as books:
        shop = await open_shop(books)
        await shop.do("org images_per_day 10")
        doomed = start_worker("consume_and_hang", redis_url, url)
        await charge(shop, "a1", 8)
        assert doomed.stdout is not None
        assert doomed.stdout.readline() == b"committed\n"
        doomed.kill()
        doomed.communicate()
        assert len(await books.ledger.notices(shop.org_id, ALWAYS, 9)) == 1  # it goes before its event
        assert await waiting(books.redis) == 2
        heir = start_worker("consume", redis_url, url, "heir")
        assert heir.stdout is not None
        assert heir.stdout.readline() == b"consuming\n"
        while await waiting(books.redis):
            pass
        heir.terminate()
        result_of(heir)
        assert await told(shop) == [("images_per_day", 80, "2036-11-22", 10, 8)]
        assert await differences(books) == []


@pytest.mark.parametrize("booked", [True, False])
async def test_a_wiped_redis_and_its_replayed_journal_tell_nothing_twice(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch, booked: bool
) -> None:
    """Whether the consumer had been there before the wipe or not: each threshold and each crossing once."""
    async with open_books(redis_url, ledger_url) as books:
        shop = await open_shop(books, "26.72")
        await shop.do("org images_per_day 10")
        await charge(shop, "a1", 8)  # 20.00 are left
        if booked:
            await drain(books)
        await charge(shop, "b1", 1)
        if booked:
            await drain(books)
        await wipe(books.redis)
        monkeypatch.setattr(projection, "utc_now", lambda: NOON)
        await books.projector.round()
        for name, images in (("a1", 8), ("b1", 1)):
            if not booked:
                assert await shop.do(f"replay {name} {images}") == "NOW"
        await charge(shop, "a2", 1)
        await books.projector.round()
        assert sorted(await told(shop)) == [
            ("balance", 0, "1", parse_mxn("20.00"), parse_mxn("19.16")),
            ("images_per_day", 80, "2036-11-22", 10, 8),
            ("images_per_day", 100, "2036-11-22", 10, 10),
        ]
        events = [event async for event in books.ledger.events(org_id=shop.org_id)]
        assert [event.number for event in events] == [1, 2, 3]
        assert await differences(books) == []


async def test_a_rebuild_tells_what_was_lost_with_the_stream(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit set below what was used, and Redis wiped before the consumer read it: told by the rebuild, once."""
    async with open_books(redis_url, ledger_url) as books:
        shop = await open_shop(books)
        await charge(shop, "a1", 8)
        await drain(books)
        await shop.do("org images_per_day 8")
        await wipe(books.redis)
        monkeypatch.setattr(projection, "utc_now", lambda: NOON)
        await books.projector.round()
        expected = [("images_per_day", 80, "2036-11-22", 8, 8), ("images_per_day", 100, "2036-11-22", 8, 8)]
        assert sorted(await told(shop)) == expected
        await wipe(books.redis)
        await books.projector.round()
        assert sorted(await told(shop)) == expected


GOOD: dict[str, Any] = {
    "notice": "images_per_day",
    "org": "o",
    "key": "",
    "percent": 80,
    "limit": 10,
    "used": 8,
    "period": "p",
}
POISON: list[dict[str, Any]] = [
    {"used": "eight"},
    {"used": str(2**70)},
    {"limit": "-" + "9" * 30},
    {"org": "a\0b"},
    {"period": b"\xff"},
    {"notice": "weather"},
    {"at_us": "9" * 30},
    {"percent": ""},
    {"key": None},
]


async def test_a_poison_notice_is_set_aside_and_the_rest_is_told(redis_url: str, ledger_url: str) -> None:
    """It neither stops the consumer nor holds up events and other notices; a person finds it set aside."""
    async with open_books(redis_url, ledger_url) as books:
        shop = await open_shop(books)
        await shop.do("org images_per_day 10")
        for change in POISON:
            fields = {**GOOD, "at_us": 1, **change}
            stream = keys.OrgKeys(shop.org_id).events
            await books.redis.xadd(stream, {name: value for name, value in fields.items() if value is not None})
        await charge(shop, "a1", 8)
        assert await told(shop) == [("images_per_day", 80, "2036-11-22", 10, 8)]
        assert await books.ledger.count_set_aside() == len(POISON)
        assert (await books.ledger.charged_up_to(shop.org_id)).events == 1
        assert await waiting(books.redis) == 0


def test_a_notice_is_read_as_it_was_written() -> None:
    """With every field; one that is missing is named."""
    fields = {name.encode(): str(value).encode() for name, value in {**GOOD, "at_us": 1_000_000}.items()}
    assert decode_notice(fields) == Notice("o", "", "images_per_day", 80, "p", 10, 8, "1970-01-01T00:00:01+00:00")
    del fields[b"limit"]
    with pytest.raises(EventError, match="limit"):
        decode_notice(fields)
