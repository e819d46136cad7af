"""The sandbox's script: a test key's orders have rates of their own and touch nothing that is worth anything."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from metering.clock import utc_at
from metering.wallet import keys
from metering.wallet.connection import NotProjected
from metering.wallet.values import Caller, OrderIdentity, Rehearsal, Verdict
from tests.kits.books import DAY_US, NOW_US, SECOND_US, Books, dump, open_books, open_wallets, pinned, wipe

S = SECOND_US
MODEL = "fal/flux-1.1-pro"
FREE = {b"sandbox_tat_requests", b"sandbox_tat_images", b"used_us"}
"""Fields of its key's access that a sandbox order may write."""


async def sandbox_key(books: Books, caller: Caller, **more: Any) -> Caller:
    """A test key of the caller's organisation."""
    issued = await books.accounts.create_key(caller.org_id, "tests", test=True, **more)
    return Caller(caller.org_id, issued.key_id, test=True)


async def rehearse(
    books: Books,
    caller: Caller,
    order_id: str = "r",
    images: int = 1,
    identity: OrderIdentity | None = None,
    model: str = MODEL,
) -> Rehearsal:
    return await books.wallet.admit_test(caller, model, images, identity or OrderIdentity("f"), order_id)


def verdict(rehearsal: Rehearsal) -> Verdict:
    return rehearsal.admission.verdict


async def test_it_writes_its_keys_rates_and_its_last_use_and_nothing_else(redis_url: str, tmp_path: Path) -> None:
    """Not the wallet, not a hold, not the stream, no quota; with an idempotency key one record more, for a day."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await sandbox_key(books, await books.org())
        names = keys.OrgKeys(caller.org_id)
        access, once = names.access(caller.key_id).encode(), names.sandbox_once("k").encode()
        before = dump(redis_url)
        assert verdict(await rehearse(books, caller, "r1", 8)) is Verdict.ADMITTED
        assert verdict(await rehearse(books, caller, "r2", 2, OrderIdentity("f", key_hash="k"))) is Verdict.ADMITTED
        after = dump(redis_url)
        (record, expires_s), (fields, _) = after.pop(once), after.pop(access)
        kept, _ = before.pop(access)
        assert after == before
        assert record and expires_s > 0
        assert {name for name in fields if fields[name] != kept.get(name)} == FREE
        assert {name: fields[name] for name in kept} == kept
        assert await books.wallet.last_used(caller.org_id, [caller.key_id]) == {caller.key_id: NOW_US}


async def test_an_organisation_that_may_order_nothing_may_rehearse(redis_url: str, tmp_path: Path) -> None:
    """Without a balance, over its budget, its quotas and its images in flight; what it has is told unchanged."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        live = await books.org("full", "8.40")
        await books.charge(live, "spent", 4)
        await books.accounts.set_limits(
            live.org_id, {"in_flight": 1, "images_per_day": 1, "images_per_month": 1, "micro_mxn_per_month": 1}
        )
        assert (await books.admit(live, "r1")).verdict is Verdict.BUDGET
        found = await rehearse(books, await sandbox_key(books, live), images=8)
        assert (verdict(found), found.admission.available_micro_mxn) == (Verdict.ADMITTED, 5_040_000)
        poor = await books.org("poor", "0.00")
        assert (await books.admit(poor, "r2")).verdict is Verdict.BALANCE
        found = await rehearse(books, await sandbox_key(books, poor), images=8)
        assert (verdict(found), found.admission.available_micro_mxn) == (Verdict.ADMITTED, 0)
        assert (found.order_id, found.admitted_s) == ("r", NOW_US // S)


async def test_what_a_key_may_not_do_it_may_not_rehearse(redis_url: str, tmp_path: Path) -> None:
    """Revoked, expired to the microsecond, or not for this model; a denial writes nothing."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        live = await books.org()
        revoked, models = await sandbox_key(books, live), await sandbox_key(books, live, models=("a/b", MODEL))
        ending = await sandbox_key(books, live, expires=utc_at(NOW_US) + timedelta(seconds=1))
        await books.accounts.revoke_key(revoked.key_id)
        assert verdict(await rehearse(books, models)) is Verdict.ADMITTED
        assert verdict(await rehearse(books, models, model="a/b")) is Verdict.ADMITTED
        books.wallet.at(NOW_US + S - 1)
        assert verdict(await rehearse(books, ending)) is Verdict.ADMITTED
        books.wallet.at(NOW_US + S)
        before = dump(redis_url)
        assert verdict(await rehearse(books, ending)) is Verdict.EXPIRED
        assert verdict(await rehearse(books, revoked)) is Verdict.REVOKED
        for other in ("fal/flux", MODEL + "-ultra", "a", "b", "a/b fal"):
            assert verdict(await rehearse(books, models, model=other)) is Verdict.MODEL
        assert dump(redis_url) == before


# at_us, images, verdict, requests remaining, images remaining, retry_us
TABLE = [
    (0, 4, Verdict.ADMITTED, 2, 6, 0),
    (0, 7, Verdict.IMAGES, 2, 6, 6 * S),
    (0, 11, Verdict.IMAGES, 2, 6, 0),
    (0, 6, Verdict.ADMITTED, 1, 0, 0),
    (6 * S - 1, 1, Verdict.IMAGES, 1, 0, 1),
    (6 * S, 1, Verdict.ADMITTED, 0, 0, 0),
    (6 * S, 1, Verdict.REQUESTS, 0, 0, 14 * S),
    (20 * S - 1, 1, Verdict.REQUESTS, 0, 2, 1),
    (20 * S, 1, Verdict.ADMITTED, 0, 1, 0),
]


@pytest.mark.parametrize("whose", ["org", "key"])
async def test_rates_follow_their_table(redis_url: str, tmp_path: Path, whose: str) -> None:
    """By the key's own limits, or by its organisation's numbers: 3 requests and 10 images a minute."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        limits = {"requests_per_minute": 3, "images_per_minute": 10}
        live = await books.org()
        caller = await sandbox_key(books, live)
        if whose == "org":
            await books.accounts.set_limits(live.org_id, limits)
        else:
            await books.accounts.set_key_limits(caller.key_id, limits)
        for at_us, images, expected, requests_left, images_left, retry_us in TABLE:
            books.wallet.at(NOW_US + at_us)
            before = dump(redis_url)
            found = (await rehearse(books, caller, images=images)).admission
            assert (found.verdict, found.requests.limit, found.images.limit) == (expected, 3, 10)
            figures = (found.requests.remaining, found.images.remaining, found.retry_us)
            assert figures == (requests_left, images_left, retry_us), at_us
            assert (dump(redis_url) == before) == (expected is not Verdict.ADMITTED)


async def test_where_both_rates_refuse_the_wait_is_enough_for_both(redis_url: str, tmp_path: Path) -> None:
    """As for live orders: a client that waits as long as it was told is admitted; if no wait helps, none is given."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await sandbox_key(books, await books.org("acme", requests_per_minute=2, images_per_minute=4))
        await rehearse(books, caller, "r1", 4, OrderIdentity("f", key_hash="k"))
        await rehearse(books, caller, "r2", 4, OrderIdentity("f", key_hash="k"))
        told = (await rehearse(books, caller, "r3", 4)).admission
        assert (told.verdict, told.retry_us) == (Verdict.REQUESTS, 60 * S)
        told = (await rehearse(books, caller, "r3", 5)).admission
        assert (told.verdict, told.retry_us) == (Verdict.IMAGES, 0)
        again = (await rehearse(books, caller, "r3", 4, OrderIdentity("f", key_hash="k"))).admission
        assert (again.verdict, again.retry_us) == (Verdict.REQUESTS, 30 * S)
        books.wallet.at(NOW_US + 60 * S)
        assert verdict(await rehearse(books, caller, "r3", 4)) is Verdict.ADMITTED


async def test_race_fifty_takers_of_five_on_a_hundred_admit_twenty(redis_url: str, tmp_path: Path) -> None:
    """At once, over ten clients of their own: exactly 20 orders of 5 images fit into 100 a minute."""
    async with open_books(redis_url, tmp_path / "l.db") as books, open_wallets(redis_url, 10) as wallets:
        caller = await sandbox_key(books, await books.org(images_per_minute=100))
        takers = (wallets[i % 10].admit_test(caller, MODEL, 5, OrderIdentity("f"), f"r{i}") for i in range(50))
        verdicts = [verdict(found) for found in await asyncio.gather(*takers)]
        assert (verdicts.count(Verdict.ADMITTED), verdicts.count(Verdict.IMAGES)) == (20, 30)


async def test_test_traffic_and_live_traffic_use_up_nothing_of_each_others(redis_url: str, tmp_path: Path) -> None:
    """A test key at its end leaves the organisation and its other keys all of theirs, and the other way round."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        live = await books.org(requests_per_minute=2, images_per_minute=2)
        first, second = await sandbox_key(books, live), await sandbox_key(books, live)
        for caller in (first, second):
            assert [verdict(await rehearse(books, caller)) for _ in range(3)][1:] == [
                Verdict.ADMITTED,
                Verdict.REQUESTS,
            ]
        one = await books.admit(live, "r1")
        assert (one.verdict, one.requests.remaining, one.images.remaining) == (Verdict.ADMITTED, 1, 1)
        assert (await books.admit(live, "r2")).verdict is Verdict.ADMITTED
        assert (await books.admit(live, "r3")).verdict is Verdict.REQUESTS
        assert verdict(await rehearse(books, await sandbox_key(books, live))) is Verdict.ADMITTED


async def test_an_order_under_an_idempotency_key_is_one_order(redis_url: str, tmp_path: Path) -> None:
    """The first one's id and second again, for any key of the organisation; another order is REUSED."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        live = await books.org(requests_per_minute=4, images_per_minute=3)
        caller, colleague = await sandbox_key(books, live), await sandbox_key(books, live)
        assert verdict(await rehearse(books, caller, "r1", 2, OrderIdentity("f", key_hash="k"))) is Verdict.ADMITTED
        books.wallet.at(NOW_US + S)
        again = await rehearse(books, caller, "r2", 2, OrderIdentity("f", key_hash="k"))
        assert (verdict(again), again.order_id, again.admitted_s) == (Verdict.DUPLICATE, "r1", NOW_US // S)
        assert (again.admission.requests.remaining, again.admission.images.remaining) == (2, 1)
        assert (await rehearse(books, colleague, "r3", 2, OrderIdentity("f", key_hash="k"))).order_id == "r1"
        before = dump(redis_url)
        assert verdict(await rehearse(books, caller, "r4", 1, OrderIdentity("g", key_hash="k"))) is Verdict.REUSED
        assert dump(redis_url) == before
        assert verdict(await rehearse(books, caller, "r5", 1, OrderIdentity("g", key_hash="l"))) is Verdict.ADMITTED
        other = await sandbox_key(books, await books.org("other"))
        assert (await rehearse(books, other, "r6", 1, OrderIdentity("g", key_hash="k"))).order_id == "r6"


async def test_a_live_order_and_one_of_the_sandbox_never_meet_under_a_key(redis_url: str, tmp_path: Path) -> None:
    """The same `Idempotency-Key` and the same order, each as its own."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        live = await books.org()
        caller, identity = await sandbox_key(books, live), OrderIdentity("f", key_hash="k")
        assert verdict(await rehearse(books, caller, "test", 1, identity)) is Verdict.ADMITTED
        assert await books.wallet.order_of_key(live.org_id, "k") is None
        assert (await books.admit(live, "live", pinned(), identity)).verdict is Verdict.ADMITTED
        assert await books.wallet.order_of_key(live.org_id, "k") == "live"
        assert (await rehearse(books, caller, "again", 1, identity)).order_id == "test"
        assert await books.wallet.status_of(live.org_id, "test") is None


async def test_a_record_of_an_idempotency_key_lives_a_day(redis_url: str, tmp_path: Path) -> None:
    """By Redis' own clock."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await sandbox_key(books, await books.org())
        await rehearse(books, caller, identity=OrderIdentity("f", key_hash="k"))
        left_s = await books.redis.ttl(keys.OrgKeys(caller.org_id).sandbox_once("k"))
        assert DAY_US // S - 60 < left_s <= DAY_US // S


async def test_where_redis_does_not_know_it_is_away_and_never_a_refusal(redis_url: str, tmp_path: Path) -> None:
    """A wiped Redis, a key that is not projected yet, and an organisation that is not."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await sandbox_key(books, await books.org())
        strangers = [
            Caller(caller.org_id, "key_test_unknown", test=True),
            Caller("99999999-9999-4999-8999-999999999999", caller.key_id, test=True),
        ]
        before = dump(redis_url)
        for unknown in strangers:
            with pytest.raises(NotProjected):
                await rehearse(books, unknown)
        assert dump(redis_url) == before
        redis: Redis = books.redis
        await wipe(redis)
        with pytest.raises(NotProjected):
            await rehearse(books, caller)
