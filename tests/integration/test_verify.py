"""Does the money add up? Clean when it does, and the very difference when it does not (rule 31)."""

import asyncio
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from metering import verify as module
from metering.consumer import Consumer
from metering.ledger.sqlite import SqliteLedger
from metering.ports import ListPrice, NewCredit
from metering.verify import Difference, verify
from metering.wallet import keys
from metering.wallet.presence import Presence
from metering.wallet.values import Caller
from tests.kits.books import (
    ACT,
    NOON,
    UNIT,
    Books,
    drain,
    event,
    make_groups,
    open_books,
    pictures,
    pinned,
)


async def stored(path: str) -> bool:
    return True


async def traffic(books: Books) -> Caller:
    """Charges, a void and an open hold."""
    caller = await books.org(mxn="20.00")
    for i in range(3):
        await books.charge(caller, f"r{i}", i + 1)
    await books.admit(caller, "v")
    await books.wallet.void(caller.org_id, "v", "test")
    await books.admit(caller, "open", pinned(2))
    await drain(books)
    return caller


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time for catching up, which some tests never do."""
    monkeypatch.setattr(module, "CATCH_UP_S", 0.2)


async def test_books_are_right_after_traffic(redis_url: str, tmp_path: Path) -> None:
    """With open holds and with events that are still on their way to the ledger."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await traffic(books)
        assert await verify(books.ledger, books.wallet, Presence(books.redis), stored) == []
        await books.charge(caller, "on-its-way")
        checking = asyncio.create_task(verify(books.ledger, books.wallet, Presence(books.redis), stored))
        await asyncio.sleep(0.05)
        await drain(books)
        assert await checking == []


@pytest.mark.parametrize(
    ("field", "by", "what"),
    [
        ("available", 1, "credits = available + held + charged"),
        ("held", -UNIT, "credits = available + held + charged"),
        ("charged", UNIT, "charged: wallet, ledger"),
        ("credits", 1, "credits: ledger, wallet"),
        ("credit_number", 1, "last credit: ledger, wallet"),
        ("number", 1, "events in the ledger"),
    ],
)
async def test_a_wallet_that_was_changed_by_hand_is_found(
    redis_url: str, tmp_path: Path, impatient: None, field: str, by: int, what: str
) -> None:
    """Whichever of its figures it was."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await traffic(books)
        await books.redis.hincrby(keys.OrgKeys(caller.org_id).wallet, field, by)
        assert what in {
            difference.what for difference in await verify(books.ledger, books.wallet, Presence(books.redis), stored)
        }


async def test_an_event_that_never_reached_the_ledger_is_found(redis_url: str, tmp_path: Path, impatient: None) -> None:
    """It was charged in the wallet, and its entry was lost from the stream."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await traffic(books)
        await books.charge(caller, "lost")
        await books.redis.delete(keys.OrgKeys(caller.org_id).events)
        assert await verify(books.ledger, books.wallet, Presence(books.redis), stored) == [
            Difference("acme", "events in the ledger", "5", "4", detail="the ledger has no events 5"),
            Difference("acme", "charged: wallet, ledger", "5.88", "5.04"),
        ]


async def test_a_credit_that_was_not_projected_is_found(redis_url: str, tmp_path: Path, impatient: None) -> None:
    """The ledger has two, the wallet knows of one."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        await traffic(books)
        last = await books.ledger.last_change()
        await books.ledger.add_credit(
            NewCredit("c2", (await books.ledger.org("acme")).org_id, "bonus", UNIT), NOON, ACT
        )
        assert await verify(books.ledger, books.wallet, Presence(books.redis), stored) == [
            Difference("acme", "last change: ledger, Redis", str(last + 1), str(last)),
            Difference("acme", "last credit: ledger, wallet", "2", "1"),
        ]


@pytest.mark.rule(11)
async def test_a_missing_image_is_found(redis_url: str, tmp_path: Path) -> None:
    """Every charge has its stored images (rule 11)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await traffic(books)
        gone = pictures(2, "r1")[1].path

        async def exists(path: str) -> bool:
            return path != gone

        assert await verify(books.ledger, books.wallet, Presence(books.redis), exists) == [
            Difference(caller.org_id, "event r1: image", gone, "not in the store")
        ]


@pytest.mark.rule(25, 31)
async def test_a_charge_whose_proof_does_not_hold_is_found(redis_url: str, tmp_path: Path) -> None:
    """Amount, price row and rate row are recomputed against what was of record (rules 25 and 31)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        org = await books.accounts.create_org("acme", "default")
        right = event(org.org_id, 1)
        for number, (changes, what) in enumerate(
            [
                ({"unit_micro_mxn": UNIT + 1}, "amount"),
                ({"mxn_per_usd": "10.00", "unit_micro_mxn": UNIT // 2}, "rate row"),
                ({"fx_month": "2036-10"}, "rate row"),
                ({"markup": "2.10", "unit_micro_mxn": UNIT * 2}, "price row"),
                ({"price_book": "unknown"}, "price row"),
            ],
            start=1,
        ):
            proof = replace(right.opened.proof, **changes)  # type: ignore[arg-type]
            wrong = replace(
                right,
                number=number,
                opened=replace(right.opened, proof=proof, request_id=f"wrong-{number}"),
                amount_micro_mxn=proof.unit_micro_mxn,
            )
            await books.ledger.book([wrong], [], NOON)
            found = await verify(books.ledger, books.wallet, Presence(books.redis), stored)
            assert [one.what for one in found if f"wrong-{number}:" in one.what] == [f"event wrong-{number}: {what}"]


async def test_a_wallet_that_is_away_is_no_clean_wallet(redis_url: str, tmp_path: Path, impatient: None) -> None:
    """Not projected is not provable, never silence."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        await traffic(books)
        await books.redis.flushall()
        assert await verify(books.ledger, books.wallet, Presence(books.redis), stored) == [
            Difference("acme", "wallet", "in Redis", "not provable: away, or not projected", "not provable")
        ]


@pytest.mark.rule(25)
async def test_an_old_month_is_still_proved_after_prices_and_rates_have_changed(redis_url: str, tmp_path: Path) -> None:
    """New rows, and the old ones stay (rule 25)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        await traffic(books)
        await books.ledger.register_prices("next", Decimal(2), [ListPrice("fal/flux-1.1-pro", Decimal(9))], NOON)
        assert await verify(books.ledger, books.wallet, Presence(books.redis), stored) == []


async def test_race_verify_is_exact_under_live_traffic(redis_url: str, tmp_path: Path) -> None:
    """Charges, voids, credits, two consumers of which one is slow: ten checks, and never a false difference."""

    class Slow(SqliteLedger):
        async def book(self, *batch: object) -> set[str]:
            await asyncio.sleep(0.05)
            return await super().book(*batch)  # type: ignore[arg-type]

    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="10000.00")
        await make_groups(books.redis)
        slow, stop = Slow(tmp_path / "l.db"), asyncio.Event()
        consumers = [Consumer(books.redis, books.ledger, "fast", 60), Consumer(books.redis, slow, "slow", 60)]
        done = 0

        async def customer(name: str) -> None:
            nonlocal done
            while not stop.is_set():
                done += 1
                request = f"{name}-{done}"
                await books.admit(caller, request, pinned(2))
                if done % 4:
                    await books.settle(caller, request)
                else:
                    await books.wallet.void(caller.org_id, request, "race")
                await asyncio.sleep(0.005)

        async def payer() -> None:
            nonlocal done
            while not stop.is_set():
                done += 1
                await books.ledger.add_credit(NewCredit(f"credit-{done}", caller.org_id, "bonus", 1), NOON, ACT)
                await asyncio.sleep(0.02)
                await books.projector.org(caller.org_id)

        async def manager() -> None:
            while not stop.is_set():
                for limit in (100_000, 200_000):
                    await books.ledger.set_limits(caller.org_id, {"images_per_day": limit}, NOON, ACT)
                    await books.ledger.set_key_limits(caller.key_id, {"images_per_month": limit}, NOON, ACT)
                    await asyncio.sleep(0.05)
                    await books.projector.org(caller.org_id)
                    await asyncio.sleep(0.2)

        running = [asyncio.create_task(consumer.run(stop)) for consumer in consumers]
        running.append(asyncio.create_task(manager()))
        running += [asyncio.create_task(customer(f"customer-{i}")) for i in range(3)]
        running.append(asyncio.create_task(payer()))
        try:
            for _ in range(10):
                assert await verify(books.ledger, books.wallet, Presence(books.redis), stored) == []
        finally:
            stop.set()
            await asyncio.gather(*running)
        assert done > 50
        await books.projector.org(caller.org_id)
        await drain(books)
        assert await verify(books.ledger, books.wallet, Presence(books.redis), stored) == []
        await slow.aclose()
