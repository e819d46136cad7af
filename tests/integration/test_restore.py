"""A ledger restored from a while Redis lives: it is projected whole, and what it lost is named (rule 34)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from metering.wallet import keys
from metering.wallet.values import Caller, Verdict
from tests.kits.backups import backup
from tests.kits.books import (
    ACT,
    NOON,
    UNIT,
    Books,
    drain,
    forget_kept,
    hash_of,
    make_groups,
    open_books,
    pinned,
    wipe,
)


@asynccontextmanager
async def restored(redis_url: str, copy: str) -> AsyncIterator[Books]:
    """The same Redis over the backup; nobody has looked yet."""
    async with open_books(redis_url, copy, projected=False) as books:
        yield books


async def busy_day(books: Books) -> None:
    """More changes than a restored ledger will soon have again."""
    for limit in range(3, 12):
        await books.accounts.set_limits("acme", {"images_per_minute": limit})


@pytest.mark.rule(34)
async def test_a_key_that_is_revoked_after_a_restore_places_no_order(redis_url: str, ledger_url: str) -> None:
    """Redis' mark lies above the restored ledger's last change (rule 34)."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        copy = backup(ledger_url)
        await busy_day(books)
        await books.projector.round()
    async with restored(redis_url, copy) as books:
        await books.accounts.revoke_key(caller.key_id)
        await books.projector.round()
        denied = await books.admit(caller, "r")
        assert (denied.verdict, denied.images.limit) == (Verdict.REVOKED, 1_000_000)


@pytest.mark.rule(26, 34)
async def test_a_credit_after_a_restore_is_applied_once(redis_url: str, ledger_url: str) -> None:
    """Its number was another credit's before the restore, and the wallet has seen it (rules 26 and 34)."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org(mxn="8.40")
        copy = backup(ledger_url)
        await books.accounts.add_credit("acme", "lost", "bonus", 5 * UNIT)
        await books.accounts.add_credit("acme", "lost-too", "bonus", 5 * UNIT)
        await books.projector.round()
    async with restored(redis_url, copy) as books:
        await books.accounts.add_credit("acme", "new", "recharge", UNIT)
        for _ in range(3):
            await books.projector.round()
        cut = await books.cut(caller)
        assert (cut.available_micro_mxn, cut.credits_micro_mxn, cut.credit_number) == (11 * UNIT, 11 * UNIT, 2)


@pytest.mark.rule(34)
async def test_a_restored_ledger_that_has_caught_up_in_numbers_is_told_by_its_rows(
    redis_url: str, ledger_url: str
) -> None:
    """It was written to before anybody looked: its last change lies above the mark, and is another (rule 34)."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        copy = backup(ledger_url)
        await books.accounts.set_limits("acme", {"images_per_minute": 3})
        await books.accounts.add_credit("acme", "lost", "bonus", 5 * UNIT)
        await books.projector.round()
        mark = await books.ledger.last_change()
    async with restored(redis_url, copy) as books:
        other = await books.accounts.create_org("other", "default")
        for limit in range(1, 9):
            await books.ledger.set_limits(other.org_id, {"in_flight": limit}, NOON, ACT)
        assert await books.ledger.last_change() > mark
        await books.projector.round()
        admitted = await books.admit(caller, "r")
        assert (admitted.verdict, admitted.images.limit) == (Verdict.ADMITTED, 1_000_000)
        assert (await books.cut(caller)).credits_micro_mxn == 10 * UNIT


@pytest.mark.rule(2, 34)
async def test_a_key_that_was_issued_after_the_backup_is_no_key(redis_url: str, ledger_url: str) -> None:
    """It may belong to an organisation that the ledger knows, or to one that it does not know.

    It also holds for a gateway that remembers the key (rules 2 and 34).
    """
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        copy = backup(ledger_url)
        late = await books.accounts.create_key("acme", "late")
        org = await books.accounts.create_org("newcomer", "default")
        new = await books.accounts.create_key("newcomer", "new")
        await books.accounts.add_credit("newcomer", "c", "bonus", 5 * UNIT)
        await books.projector.round()
    async with restored(redis_url, copy) as books:
        await books.projector.round()
        for owner, key in ((caller.org_id, late), (org.org_id, new)):
            assert await books.wallet.key(hash_of(key.secret)) is None
            assert (await books.admit(Caller(owner, key.key_id), f"r-{key.key_id}")).verdict is Verdict.REVOKED
        assert (await books.admit(caller, "r")).verdict is Verdict.ADMITTED


async def test_charges_that_a_restore_lost_are_found_although_nothing_else_changed(
    redis_url: str, ledger_url: str
) -> None:
    """Only events came after the backup: the mark is the ledger's, and the last booked event is missing.

    The wallet is as in the ledger, its loss is kept with it, and its numbers are given to no other event.
    """
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org(mxn="8.40")
        await books.charge(caller, "kept")
        await drain(books)
        await books.projector.round()
        copy = backup(ledger_url)
        for i in range(3):
            await books.charge(caller, f"lost-{i}")
        await books.admit(caller, "open", pinned(2))
        await drain(books)
        await books.projector.round()
        await forget_kept(books.redis)
    async with restored(redis_url, copy) as books:
        # The first that it books is no proof of what it has lost.
        await books.settle(caller, "open", 2)
        for _ in range(2):  # the projector feeds what was booked meanwhile once more, which changes nothing
            await drain(books)
            await books.projector.round()
        cut = await books.cut(caller)
        assert (cut.charged_micro_mxn, cut.number, cut.events) == (3 * UNIT, 5, 2)
        names = keys.OrgKeys(caller.org_id)
        assert await books.redis.hget(names.wallet, "gone_charged") == str(3 * UNIT).encode()
        await books.charge(caller, "next")
        await drain(books)
        assert [event.number async for event in books.ledger.events(org_id=caller.org_id)] == [1, 5, 6]


@pytest.mark.rule(34)
@pytest.mark.parametrize("noticed_by", ["projector", "consumer"])
async def test_a_restore_after_a_rebuild_is_noticed_although_redis_was_wiped(
    redis_url: str, ledger_url: str, noticed_by: str
) -> None:
    """A wiped Redis does not know what the ledger committed before.

    A wallet that was rebuilt from it counts events that the restored ledger lacks, and nothing was booked since that
    would prove it (rule 34).
    """
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org(mxn="8.40")
        await books.charge(caller, "kept")
        await drain(books)
        copy = backup(ledger_url)
        await books.charge(caller, "lost")
        await books.admit(caller, "void")
        await books.wallet.void(caller.org_id, "void", "upstream_error")
        await drain(books)
        await wipe(books.redis)
        await books.projector.round()
        assert (await books.cut(caller)).events == 3
    async with restored(redis_url, copy) as books:
        if noticed_by == "consumer":  # it has books to make before any projector looks
            await make_groups(books.redis)
            await books.charge(caller, "later")
            await books.consumer().round()
        for _ in range(3):
            await books.projector.round()
            await drain(books)
        booked, cut = await books.ledger.charged_up_to(caller.org_id), await books.cut(caller)
        assert (cut.events, cut.charged_micro_mxn) == (booked.events, booked.charged_micro_mxn)
        assert booked.events == 1 + (noticed_by == "consumer")


@pytest.mark.rule(30, 34)
@pytest.mark.parametrize("first", ["projector", "consumer"])
async def test_charges_that_a_restore_lost_are_fed_again(redis_url: str, ledger_url: str, first: str) -> None:
    """Recent commits are kept: the restored ledger gets them back, whichever process notices first.

    The wallet is as it was (rules 30, 34).
    """
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org(mxn="8.40")
        await books.charge(caller, "before")
        await drain(books)
        await books.projector.round()
        copy = backup(ledger_url)
        for i in range(3):
            await books.charge(caller, f"after-{i}")
        await drain(books)
        await books.projector.round()
        before = await books.cut(caller)
    async with restored(redis_url, copy) as books:
        if first == "projector":
            await books.projector.round()
        else:
            await books.consumer().round()
        await drain(books)
        for _ in range(2):
            await books.projector.round()
        assert await books.cut(caller) == replace(before, now_us=(await books.cut(caller)).now_us)
        assert [event.number async for event in books.ledger.events(org_id=caller.org_id)] == [1, 2, 3, 4]
        names = keys.OrgKeys(caller.org_id)
        assert not int(await books.redis.hget(names.wallet, "gone_charged") or 0)


async def test_a_mark_of_an_older_version_counts_as_before(redis_url: str, ledger_url: str) -> None:
    """It tells no ledger: only one above the ledger's last change is none. The proof is added without a rebuild."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        partition = keys.partition_of(caller.org_id)
        await books.redis.delete(keys.ledger(partition), keys.committed(partition))
        with capture_logs() as logs:
            await books.projector.round()
        assert not logs
        proof: Any = await books.redis.get(keys.ledger(partition))
        assert proof.split()[0] == await books.redis.get(keys.mark(partition))
        # An older version that runs at the same time moves only the mark.
        await books.accounts.set_limits("acme", {"images_per_minute": 3})
        await books.redis.set(keys.mark(partition), await books.ledger.last_change())
        with capture_logs() as logs:
            await books.projector.round()
            await books.projector.round()
        assert not logs
        assert await books.redis.get(keys.ledger(partition)) != proof


async def test_a_rebuild_after_a_restore_that_dies_begins_again(redis_url: str, ledger_url: str) -> None:
    """Keys that the ledger does not know are shut out before the fence is raised: the next process does it again."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        copy = backup(ledger_url)
        late = await books.accounts.create_key("acme", "late")
        await books.projector.round()
    async with restored(redis_url, copy) as books:

        async def dies(key_ids: object) -> set[str]:
            raise ConnectionError("the process ends here")

        known, books.ledger.known_keys = books.ledger.known_keys, dies  # type: ignore[method-assign]
        with pytest.raises(ConnectionError):
            await books.projector.round()
        books.ledger.known_keys = known  # type: ignore[method-assign]
        await books.projector.forget(None)  # by hand, too
        await books.projector.round()
        assert (await books.admit(Caller(caller.org_id, late.key_id), "r")).verdict is Verdict.REVOKED
        assert await books.projector.missing(None) == 0
