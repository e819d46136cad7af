"""`verify` beyond money: what it compares, what it calls not provable, and its duration (rules 31, 33 and 34)."""

import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from config.settings import VERIFY_LOOKS
from metering import verify as module
from metering.clock import unix_us_at
from metering.money import parse_mxn
from metering.ports import LedgerError
from metering.verify import Difference, NotProvable, Scope, verify
from metering.wallet import keys
from metering.wallet.presence import Presence
from tests.conftest import ValkeyServer, run
from tests.kits.backups import backup
from tests.kits.books import (
    ACT,
    DAY_US,
    NOON,
    NOW_US,
    UNIT,
    Books,
    drain,
    event,
    forget_kept,
    hash_of,
    open_books,
    pictures,
    sql,
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time for catching up, which some tests never do."""
    monkeypatch.setattr(module, "CATCH_UP_S", 0.5)
    monkeypatch.setattr(module, "PAUSE_S", 0.01)


async def stored(path: str) -> bool:
    return True


async def differences(books: Books, scope: Scope | None = None, exists: Any = stored) -> list[Difference]:
    """All that is found."""
    return await verify(books.ledger, books.wallet, Presence(books.redis), exists, scope)


@pytest.mark.rule(34)
@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda names, key: ("HSET", names.access(key), "state", "revoked"), "key {key}: state"),
        (lambda names, key: ("HSET", names.access(key), "expires_us", 5), "key {key}: ends_us"),
        (lambda names, key: ("HSET", names.access(key), "models", "a/b"), "key {key}: models"),
        (lambda names, key: ("HSET", names.access(key), "in_flight", 5), "key {key}: limits"),
        (lambda names, key: ("DEL", names.access(key)), "key {key}"),
        (lambda names, key: ("HSET", names.wallet, "images_per_day", 5), "limits"),
        (lambda names, key: ("HDEL", names.wallet, "requests_per_minute"), "limits"),
        (lambda names, key: ("HINCRBY", names.wallet, "revision", 1), "last change"),
    ],
)
async def test_what_redis_has_otherwise_than_the_ledger_is_found(
    redis_url: str, tmp_path: Path, spoil: Callable[[Any, str], tuple[Any, ...]], what: str
) -> None:
    """States, ends, models and limits of keys; limits and revision of organisations (rule 34)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        assert await differences(books) == []
        redis: Any = books.redis
        await redis.execute_command(*spoil(keys.OrgKeys(caller.org_id), caller.key_id))
        (found,) = await differences(books)
        assert (found.org, found.what) == ("acme", f"{what.format(key=caller.key_id)}: ledger, Redis")


async def test_whose_a_key_is_is_compared(redis_url: str, tmp_path: Path) -> None:
    """A record that is lost, and one of a key that the ledger does not know."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        await books.org()
        issued = await books.accounts.create_key("acme", "second")
        _, record = keys.key_record(hash_of(issued.secret))
        await books.redis.delete(record)
        (found,) = await differences(books)
        assert (found.what, found.found) == (f"key {issued.key_id}: record: ledger, Redis", "")
        await books.projector.round()
        await books.projector.forget(None)
        await books.projector.round()
        assert await differences(books) == []
        partition, stranger = keys.key_record("00" * 32)
        await books.redis.set(stranger, "somebody key_x")
        await books.redis.hset(f"{{p{partition}}}:access:key_x", "state", "active")
        assert [one.what for one in await differences(books)] == [
            "key key_x: ledger, Redis",
            f"key with the hash {'00' * 32}: ledger, Redis",
        ]


@pytest.mark.rule(31)
async def test_a_change_on_its_way_is_no_difference(redis_url: str, tmp_path: Path) -> None:
    """A revocation that reaches Redis while it is looked at (rule 31)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        await books.ledger.revoke_key(caller.key_id, NOON, ACT)
        checking = asyncio.create_task(differences(books))
        await asyncio.sleep(0.2)
        await books.projector.round()
        assert await checking == []


@pytest.mark.rule(34)
async def test_what_a_restore_lost_is_named_until_it_is_accepted(redis_url: str, ledger_url: str) -> None:
    """Before Redis is rebuilt from the restored ledger, and after: amounts and event numbers by organisation, credits.

    Also an organisation that no longer exists (rule 34).
    """
    async with open_books(redis_url, ledger_url) as books:
        await books.org("other")
        caller = await books.org(mxn="20.00")
        await books.charge(caller, "kept")
        await drain(books)
        copy = backup(ledger_url)
        for i in range(3):
            await books.charge(caller, f"lost-{i}")
        await books.accounts.add_credit("acme", "lost", "bonus", 5 * UNIT)
        new = await books.org("newcomer", "50.00")
        await drain(books)
        await books.projector.round()
        await forget_kept(books.redis)
    async with open_books(redis_url, copy, projected=False) as books:
        found = {(one.org, one.what): one for one in await differences(books)}
        charged = found["acme", "events in the ledger"]
        assert (charged.expected, charged.found, charged.detail) == ("4", "1", "the ledger has no events 2 to 4")
        assert found["acme", "charged: wallet, ledger"].expected == "3.36"
        assert ("acme", "last credit: ledger, wallet") in found
        assert ("", f"key {new.key_id}: ledger, Redis") in found
        assert not any(org == "other" for org, _ in found)

        await books.projector.round()
        assert await differences(books) == [
            Difference(
                "acme", "charges that the ledger lost", "0.00", "2.52", "lost", "the ledger has no events 2 to 4"
            ),
            Difference("acme", "credits that the ledger lost", "0.00", "4.20", "lost"),
            Difference(
                new.org_id,
                "organisation that the ledger lost",
                "none",
                "a wallet with credits of 50.00, charged 0.00",
                "lost",
            ),
        ]
        await books.charge(caller, "next")
        await drain(books)
        await books.projector.forget(None)
        await books.projector.round()
        assert len(await differences(books)) == 3, "made anew once more it is still lost"
        assert await books.accounts.accept_loss("acme", "backup of tonight") == (3 * UNIT, 5 * UNIT)
        assert await books.accounts.accept_loss(new.org_id, "opened anew") == (0, parse_mxn("50.00"))
        assert await differences(books) == []
        for ref in ("acme", new.org_id):
            with pytest.raises(LedgerError, match=r"nothing of .* is lost"):
                await books.accounts.accept_loss(ref, "again")
        (first, *_) = await books.ledger.audits(new.org_id, 2**53, 10)
        assert (first.action, first.target) == ("wallet.accept", new.org_id)
        assert json.loads(first.details)["credits_mxn"] == "50.00"


async def test_organisations_that_are_behind_are_waited_for_together(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty of them cost as long as one."""
    monkeypatch.setattr(module, "CATCH_UP_S", 2.0)
    async with open_books(redis_url, tmp_path / "l.db") as books:
        for i in range(30):
            caller = await books.org(f"org-{i}")
            await books.charge(caller, f"r-{i}")
        began_s = time.monotonic()
        found = await differences(books)
        assert time.monotonic() - began_s < 20, "one after the other it would be a minute"
        assert len([one for one in found if one.what == "events in the ledger"]) == 30


async def sell(books: Books, orders: int) -> str:
    """Orders of eight images each, in the ledger."""
    caller = await books.org(mxn="100000.00")
    for i in range(orders):
        await books.charge(caller, f"r{i}", 8)
    await drain(books)
    return caller.org_id


async def test_images_are_looked_at_many_at_a_time(redis_url: str, tmp_path: Path) -> None:
    """The store answers in 20 ms: a million images take minutes, with never more checks at a time than allowed."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        await sell(books, 250)
        flying = most = looks = 0

        async def slow(path: str) -> bool:
            nonlocal flying, most, looks
            flying, looks = flying + 1, looks + 1
            most = max(most, flying)
            await asyncio.sleep(0.02)
            flying -= 1
            return True

        began_s = time.monotonic()
        assert await differences(books, exists=slow) == []
        assert time.monotonic() - began_s < 20, "one at a time it would be forty seconds"
        assert looks == 2_000
        assert 100 <= most <= VERIFY_LOOKS


async def test_a_store_that_fails_is_not_provable_and_ends_nothing(redis_url: str, tmp_path: Path) -> None:
    """For one image only that one; a hiccup is asked again; what is missing is found all the same."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        org_id = await sell(books, 3)
        bad, hiccup, gone = (pictures(8, f"r{i}")[3].path for i in range(3))
        asked: list[str] = []

        async def exists(path: str) -> bool:
            asked.append(path)
            if path == bad or (path == hiccup and asked.count(path) < 3):
                raise NotProvable("the store answers 500")
            return path != gone

        found = sorted(await differences(books, exists=exists), key=lambda one: one.what)
        assert found == [
            Difference(org_id, "event r0: image", bad, "not provable: the store answers 500", "not provable"),
            Difference(org_id, "event r2: image", gone, "not in the store"),
        ]


async def test_a_store_that_is_away_is_said_in_bounds(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not asked for every image, and not every image is named."""
    monkeypatch.setattr(module, "GIVE_UP", 50)
    monkeypatch.setattr(module, "MAX_NAMED", 10)
    async with open_books(redis_url, tmp_path / "l.db") as books:
        await sell(books, 100)
        asked = 0

        async def away(path: str) -> bool:
            nonlocal asked
            asked += 1
            raise NotProvable("away")

        found = await differences(books, exists=away)
        assert len(found) == 11
        assert found[-1] == Difference("", "images", "in the store", "790 more", "not provable")
        assert asked < 50 + VERIFY_LOOKS + 1


def test_redis_that_is_away_is_not_provable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the ledger alone can prove is proved; the rest is reported once, without a traceback."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        server = ValkeyServer(Path(folder))
        server.start()

        async def work() -> None:
            async with open_books(server.url, tmp_path / "l.db") as books:
                org_id = await sell(books, 1)
                await books.org("other")
                server.stop()
                gone = pictures(8, "r0")[0].path

                async def exists(path: str) -> bool:
                    return path != gone

                assert await differences(books, exists=exists) == [
                    Difference(
                        "", "wallets", "as the ledger has them", "not provable: Redis does not answer", "not provable"
                    ),
                    Difference(org_id, "event r0: image", gone, "not in the store"),
                ]

        run(work())


async def test_one_organisation_one_time_and_no_images(redis_url: str, ledger_url: str) -> None:
    """`--org`, `--since` and `--no-images` look at less, and say nothing of the rest."""
    async with open_books(redis_url, ledger_url) as books:
        first, second = await books.org("first"), await books.org("second")
        old = replace(event(first.org_id, 1), admitted_us=NOW_US - 40 * DAY_US, ended_us=NOW_US - 40 * DAY_US)
        old = replace(old, opened=replace(old.opened, day="2036-10-13", month="2036-10"))
        await books.ledger.book([old, event(first.org_id, 2), event(second.org_id, 1)], [], NOON)

        async def none(path: str) -> bool:
            return False

        async def images(scope: Scope) -> set[str]:
            found = await differences(books, scope, none)
            assert {one.org for one in found} <= {"first", "second", first.org_id, second.org_id}
            return {one.expected for one in found if one.what.endswith(": image")}

        paths = {name: pictures(1, name)[0].path for name in (f"{first.org_id}-1", f"{first.org_id}-2")}
        org = await books.ledger.org("first")
        assert await images(Scope(org=org)) == set(paths.values())
        assert await images(Scope(org=org, since_us=unix_us_at(NOON))) == {paths[f"{first.org_id}-2"]}
        assert len(await images(Scope(since_us=NOW_US))) == 2
        assert await images(Scope(images=False)) == set()


@pytest.mark.rule(33)
async def test_refunds_above_their_charge_are_found(redis_url: str, tmp_path: Path) -> None:
    """However they came in: here past the trigger that bounds them (rule 33)."""
    url = f"sqlite:///{tmp_path}/l.db"
    async with open_books(redis_url, url) as books:
        caller = await books.org(mxn="8.40")
        await books.charge(caller, "r")
        await drain(books)
        sql(url, "DROP TRIGGER refunds_are_bounded")
        sql(
            url,
            "INSERT INTO credit_transactions (id, org_id, type, number, amount_micro_mxn, at, order_id, reason)"
            f" VALUES ('f', '{caller.org_id}', 'refund', 2, {UNIT + 1}, 'now', 'r', 'twice')",
        )
        found = [one for one in await differences(books) if "refunds" in one.what]
        assert found == [Difference(caller.org_id, "order r: refunds", "at most 0.84", "0.840001")]
