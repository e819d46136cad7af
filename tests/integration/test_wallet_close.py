"""The end of an order: charge, void or expiry, exactly one of them (rules 4 and 9)."""

import asyncio
from pathlib import Path

import pytest

from metering.events import Opened, Proof
from metering.money import MAX_MICRO_MXN, parse_mxn
from metering.wallet import keys
from metering.wallet.connection import NotProjected, WalletAway
from metering.wallet.values import Close, Verdict
from metering.wallet.wallet import Wallet
from tests.kits.books import (
    BOOK,
    FACTS,
    LIFE_S,
    NOW_US,
    SECOND_US,
    UNIT,
    dump,
    open_books,
    open_wallets,
    pictures,
    pinned,
    settle,
)


@pytest.mark.rule(4, 22)
async def test_a_settlement_charges_what_was_delivered_and_gives_back_the_rest(redis_url: str, tmp_path: Path) -> None:
    """3 of 8 images: 2.52 of 6.72 MXN are charged, and the event says all of it (rules 4 and 22)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="10.00")
        await books.admit(caller, "r", pinned(8))
        books.wallet.at(NOW_US + SECOND_US)
        closing = await books.settle(caller, "r", 3)
        assert (closing.close, closing.now_us) == (Close.CHARGED, NOW_US + SECOND_US)
        assert closing.available_micro_mxn == parse_mxn("7.48")
        cut = await books.cut(caller)
        assert (cut.available_micro_mxn, cut.held_micro_mxn) == (parse_mxn("7.48"), 0)
        assert (cut.charged_micro_mxn, cut.number) == (parse_mxn("2.52"), 1)
        (event,) = await books.events(caller)
        assert (event.number, event.end, event.reason) == (1, "charge", "delivered")
        assert (event.quantity, event.amount_micro_mxn) == (3, parse_mxn("2.52"))
        assert (event.admitted_us, event.ended_us) == (NOW_US, NOW_US + SECOND_US)
        assert event.images == pictures(3, "r")
        assert event.opened == Opened(
            request_id="r",
            org_id=caller.org_id,
            key_id=caller.key_id,
            images=8,
            day="2036-11-22",
            month="2036-11",
            proof=Proof("", "0.04", BOOK, "1.05", "20.00", "2036-11", "test", UNIT),
            **FACTS,  # type: ignore[arg-type]  # quality is None, all others are text
        )


@pytest.mark.rule(24)
async def test_a_late_settlement_keeps_the_day_of_the_admission(redis_url: str, tmp_path: Path) -> None:
    """Admitted in the last second of a day, settled in the next (rule 24)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        books.wallet.at(pinned().period.end_us - 1)
        await books.admit(caller, "r", pinned())
        books.wallet.at(pinned().period.end_us + SECOND_US)
        assert (await books.settle(caller, "r")).close is Close.CHARGED
        (event,) = await books.events(caller)
        assert (event.opened.day, event.ended_us) == ("2036-11-22", pinned().period.end_us + SECOND_US)


@pytest.mark.rule(9)
async def test_a_repeated_close_gives_the_same_answer_and_writes_nothing(redis_url: str, tmp_path: Path) -> None:
    """Charge again, void after charge, void again, charge after void: the first stands (rule 9)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        for request in ("charged", "voided"):
            await books.admit(caller, request, pinned(2))
        first = await books.settle(caller, "charged", 2)
        assert (await books.wallet.void(caller.org_id, "voided", "test")).close is Close.VOIDED
        before = dump(redis_url)
        again = await books.settle(caller, "charged", 2)
        assert again.close is first.close is Close.CHARGED
        assert (await books.settle(caller, "charged", 1)).close is Close.CHARGED
        assert (await books.wallet.void(caller.org_id, "charged", "test")).close is Close.CHARGED
        assert (await books.wallet.void(caller.org_id, "voided", "test")).close is Close.VOIDED
        assert (await books.settle(caller, "voided", 2)).close is Close.REFUSED
        books.wallet.at(NOW_US + 3600 * SECOND_US)
        assert (await books.settle(caller, "charged", 2)).close is Close.CHARGED
        assert dump(redis_url) == before


async def test_a_settlement_without_a_living_hold_is_refused(redis_url: str, tmp_path: Path) -> None:
    """Unknown, or run out, whether or not somebody wrote the expiry down; nothing is written."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        await books.admit(caller, "r")
        before = dump(redis_url)
        assert (await books.settle(caller, "unknown")).close is Close.REFUSED
        books.wallet.at(NOW_US + int(LIFE_S) * SECOND_US)
        assert (await books.settle(caller, "r")).close is Close.REFUSED
        assert dump(redis_url) == before
        assert (await books.admit(caller, "next")).verdict is Verdict.ADMITTED
        before = dump(redis_url)
        assert (await books.settle(caller, "r")).close is Close.REFUSED
        assert (await books.wallet.void(caller.org_id, "r", "test")).close is Close.VOIDED
        assert dump(redis_url) == before
        assert [event.end for event in await books.events(caller)] == ["expiry"]


async def test_a_settlement_in_the_last_microsecond_of_the_hold_counts(redis_url: str, tmp_path: Path) -> None:
    """Alive until its end, and dead at it."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        await books.admit(caller, "r")
        books.wallet.at(NOW_US + int(LIFE_S) * SECOND_US - 1)
        assert (await books.settle(caller, "r")).close is Close.CHARGED


@pytest.mark.rule(5, 6)
async def test_a_settlement_that_comes_too_late_writes_nothing(redis_url: str, tmp_path: Path) -> None:
    """After its latest moment it says LATE, and the hold can still be voided (rules 5 and 6)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        await books.admit(caller, "r")
        before = dump(redis_url)
        late = await books.wallet.settle(caller.org_id, "r", UNIT, pictures(1), latest_us=NOW_US - 1)
        assert late.close is Close.LATE
        assert dump(redis_url) == before
        assert (await books.wallet.void(caller.org_id, "r", "late")).close is Close.VOIDED
        (event,) = await books.events(caller)
        assert (event.end, event.reason, event.quantity, event.images) == ("void", "late", 0, ())


async def test_a_void_of_an_unknown_order_writes_nothing(redis_url: str, tmp_path: Path) -> None:
    """UNKNOWN is told apart from VOIDED, for an admission may still come."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        before = dump(redis_url)
        assert (await books.wallet.void(caller.org_id, "unknown", "test")).close is Close.UNKNOWN
        assert dump(redis_url) == before


@pytest.mark.parametrize(
    ("images", "amount"),
    [(2, UNIT * 2), (1, UNIT + 1), (1, UNIT - 1), (1, 1), (8, UNIT * 8)],
    ids=["more-images", "too-much", "too-little", "far-too-little", "far-more"],
)
async def test_a_charge_that_is_not_quantity_times_price_writes_nothing(
    redis_url: str, tmp_path: Path, images: int, amount: int
) -> None:
    """Above the hold, or of an amount that the ledger would refuse: an error, and the hold stays as it was."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        await books.admit(caller, "r")
        before = dump(redis_url)
        with pytest.raises(WalletAway):
            await books.wallet.settle(caller.org_id, "r", amount, pictures(images), latest_us=NOW_US + 60 * SECOND_US)
        assert dump(redis_url) == before
        assert (await books.settle(caller, "r")).close is Close.CHARGED


@pytest.mark.rule(2)
async def test_without_its_mark_a_partition_settles_and_voids_nothing(redis_url: str, tmp_path: Path) -> None:
    """Open orders wait for the rebuild; closed ones are still answered (rule 2)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        await books.charge(caller, "done")
        await books.admit(caller, "open")
        await books.redis.delete(keys.OrgKeys(caller.org_id).mark)
        before = dump(redis_url)
        with pytest.raises(NotProjected):
            await books.settle(caller, "open")
        with pytest.raises(NotProjected):
            await books.wallet.void(caller.org_id, "open", "test")
        assert (await books.settle(caller, "done")).close is Close.CHARGED
        assert dump(redis_url) == before


@pytest.mark.rule(9)
async def test_race_settle_and_void_of_the_same_hold_end_it_exactly_once(redis_url: str, tmp_path: Path) -> None:
    """200 holds, each with two settlements and two voids at once from four clients: one event each (rule 9)."""
    async with open_books(redis_url, tmp_path / "l.db") as books, open_wallets(redis_url, 4) as wallets:
        caller = await books.org(mxn="1000.00")
        charged = 0
        for i in range(200):
            await books.admit(caller, f"r{i}", pinned(2))

            async def settled(wallet: Wallet, request: str = f"r{i}") -> Close:
                return (await settle(wallet, caller, request)).close

            async def voided(wallet: Wallet, request: str = f"r{i}") -> Close:
                return (await wallet.void(caller.org_id, request, "race")).close

            first, second = (settled, voided) if i % 2 else (voided, settled)
            answers = await asyncio.gather(first(wallets[0]), second(wallets[1]), first(wallets[2]), second(wallets[3]))
            assert set(answers) in ({Close.CHARGED}, {Close.VOIDED, Close.REFUSED})
            charged += answers[0] is Close.CHARGED
            cut = await books.cut(caller)
            assert (cut.number, cut.held_micro_mxn, cut.charged_micro_mxn) == (i + 1, 0, charged * UNIT)
        events = await books.events(caller)
        assert [event.number for event in events] == list(range(1, 201))
        assert [event.event_id for event in events] == [f"r{i}" for i in range(200)]
        assert sum(event.amount_micro_mxn for event in events) == charged * UNIT
        assert 0 < charged < 200


@pytest.mark.parametrize(
    ("unit", "images"),
    [
        (1, 1),
        (10**9, 1),  # would be 1e+09 in a sloppy script
        (10**15, 8),
        (123_456_789_012_347, 7),
        (900_719_925_474_099, 8),
        (MAX_MICRO_MXN, 1),
        (MAX_MICRO_MXN - 1, 1),
    ],
)
async def test_amounts_near_the_largest_stay_exact(redis_url: str, tmp_path: Path, unit: int, images: int) -> None:
    """Up to 2^53 - 1 micro-MXN every digit survives hold, charge, event and reading."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="9007199254.740991")
        answer = await books.admit(caller, "r", pinned(images, unit=unit))
        assert answer.available_micro_mxn == MAX_MICRO_MXN - unit * images
        assert (await books.cut(caller)).held_micro_mxn == unit * images
        assert (await books.settle(caller, "r", 1, unit)).available_micro_mxn == MAX_MICRO_MXN - unit
        cut = await books.cut(caller)
        assert (cut.available_micro_mxn, cut.charged_micro_mxn) == (MAX_MICRO_MXN - unit, unit)
        (event,) = await books.events(caller)
        assert event.amount_micro_mxn == event.opened.proof.unit_micro_mxn == unit
        assert (await books.settle(caller, "r", 1, unit)).close is Close.CHARGED


@pytest.mark.rule(6)
async def test_an_abandoned_admission_is_voided(redis_url: str, tmp_path: Path) -> None:
    """An admission whose reply was not read leaves no hold, and a charge that came first stands (rule 6)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        until_us = NOW_US + int(LIFE_S) * SECOND_US
        await books.admit(caller, "unread")
        assert await books.wallet.abandon(caller.org_id, "unread", "unread", until_us=until_us) is Close.VOIDED
        await books.charge(caller, "charged")
        assert await books.wallet.abandon(caller.org_id, "charged", "x", until_us=until_us) is Close.CHARGED
        assert (await books.cut(caller)).held_micro_mxn == 0


@pytest.mark.rule(6)
async def test_an_abandonment_waits_for_an_admission_that_may_still_come(redis_url: str, tmp_path: Path) -> None:
    """It gives up only after the admission's latest moment, and voids one that came late (rule 6)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        until_us = NOW_US + int(LIFE_S) * SECOND_US
        task = asyncio.create_task(books.wallet.abandon(caller.org_id, "r", "unread", until_us=until_us))
        await asyncio.sleep(0)
        await books.admit(caller, "r")
        assert await task is Close.VOIDED
        assert [event.reason for event in await books.events(caller)] == ["unread"]

        task = asyncio.create_task(books.wallet.abandon(caller.org_id, "never", "unread", until_us=until_us))
        await asyncio.sleep(0)
        books.wallet.at(NOW_US + 2 * SECOND_US)
        assert await task is Close.UNKNOWN
