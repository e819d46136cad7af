"""An order that nobody was given goes to the next that is the same, once (rule 38); and what the look for it costs."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from metering.wallet import keys
from metering.wallet.values import Admission, Caller, OrderIdentity, Replay, Verdict
from metering.wallet.wallet import RECENT_S
from tests.conftest import ValkeyServer, run
from tests.integration.test_replay import answered
from tests.kits.books import (
    NOW_US,
    SECOND_US,
    UNIT,
    Books,
    admit,
    drain,
    dump,
    open_books,
    open_wallets,
    pinned,
)

ORDER = OrderIdentity("order")
RECENT_US = int(RECENT_S * SECOND_US)


def check(redis_url: str, path: Path, work: Callable[[Books, Caller], Awaitable[None]], mxn: str = "84.00") -> None:
    """Do this with an organisation of its own; the books are opened and closed around it."""

    async def opened() -> None:
        async with open_books(redis_url, path / "l.db") as books:
            await work(books, await books.org(mxn=mxn))

    run(opened())


def given(answer: Admission) -> str | None:
    """Find the earlier order; if there is none it must have been admitted."""
    assert answer.verdict is (Verdict.DUPLICATE if answer.earlier else Verdict.ADMITTED)
    return answer.earlier.order_id if answer.earlier else None


async def abandon(books: Books, caller: Caller, *requests: str, identity: OrderIdentity = ORDER) -> None:
    """The same order several times; each of their clients hangs up."""
    for request in requests:
        assert given(await books.admit(caller, request, identity=identity)) is None
    for request in requests:
        await books.wallet.client_gone(caller, request, identity)


# --- to whom it is given ----------------------------------------------------------------------------------------------


@pytest.mark.rule(38)
@pytest.mark.parametrize("charged", [False, True])
@pytest.mark.parametrize("first", [ORDER, OrderIdentity("order", tries=0)])
@pytest.mark.parametrize("then", [ORDER, OrderIdentity("order", tries=0)])
def test_an_order_that_nobody_was_given_goes_to_the_next_that_is_the_same(
    first: OrderIdentity, then: OrderIdentity, charged: bool, redis_url: str, tmp_path: Path
) -> None:
    """While it is made and when it is charged, whether or not an SDK counts; once; and it is charged once (38)."""

    async def work(books: Books, caller: Caller) -> None:
        await abandon(books, caller, "left", identity=first)
        if charged:
            await books.settle(caller, "left")
        answer = await books.admit(caller, "next", identity=then)
        assert given(answer) == "left" and answer.earlier is not None
        assert answer.earlier.end == ("charge" if charged else "open")
        assert given(await books.admit(caller, "after", identity=then)) is None
        await books.wallet.void(caller.org_id, "after", "test")
        await books.settle(caller, "left")
        cut = await books.cut(caller)
        assert (cut.charged_micro_mxn, cut.held_micro_mxn) == (UNIT, 0)

    check(redis_url, tmp_path, work)


@pytest.mark.rule(38)
def test_three_that_nobody_was_given_are_three_results(redis_url: str, tmp_path: Path) -> None:
    """Each goes to another order, and a fourth order is made (38)."""

    async def work(books: Books, caller: Caller) -> None:
        await abandon(books, caller, "a", "b", "c")
        answers = [given(await books.admit(caller, f"next-{i}", identity=ORDER)) for i in range(4)]
        assert answers == ["a", "b", "c", None]

    check(redis_url, tmp_path, work)


@pytest.mark.rule(38)
@pytest.mark.parametrize(
    ("first", "then"),
    [
        (OrderIdentity("order", key_hash="key"), ORDER),
        (ORDER, OrderIdentity("order", key_hash="key")),
        (OrderIdentity("order", key_hash="key"), OrderIdentity("order", tries=0)),
        (ORDER, OrderIdentity("another-order")),
    ],
)
def test_whose_order_it_is(first: OrderIdentity, then: OrderIdentity, redis_url: str, tmp_path: Path) -> None:
    """It must be the same order, with no idempotency key on either side (38)."""
    check(redis_url, tmp_path, lambda books, caller: _made_anew(books, caller, caller, first, then))


@pytest.mark.rule(38)
def test_another_key_of_the_organisation_is_another_program(redis_url: str, tmp_path: Path) -> None:
    """An order that one API key placed is given to no other (38)."""

    async def work(books: Books, caller: Caller) -> None:
        second = await books.accounts.create_key(caller.org_id, "second")
        await _made_anew(books, caller, Caller(caller.org_id, second.key_id), ORDER, ORDER)

    check(redis_url, tmp_path, work)


async def _made_anew(books: Books, caller: Caller, other: Caller, first: OrderIdentity, then: OrderIdentity) -> None:
    await abandon(books, caller, "left", identity=first)
    assert given(await books.admit(other, "next", identity=then)) is None


@pytest.mark.rule(38)
def test_who_has_its_answer_and_orders_the_same_again_gets_a_new_picture(redis_url: str, tmp_path: Path) -> None:
    """Nobody left it (38)."""

    async def work(books: Books, caller: Caller) -> None:
        await books.admit(caller, "first", identity=ORDER)
        await books.settle(caller, "first")
        assert given(await books.admit(caller, "second", identity=ORDER)) is None

    check(redis_url, tmp_path, work)


@pytest.mark.rule(38)
@pytest.mark.parametrize("how", ["void", "expiry", "expiry, written down"])
def test_one_that_failed_leads_to_a_new_order(how: str, redis_url: str, tmp_path: Path) -> None:
    """A refused, failed or expired order is given to nobody (38)."""

    async def work(books: Books, caller: Caller) -> None:
        await abandon(books, caller, "left")
        if how == "void":
            await books.wallet.void(caller.org_id, "left", "content_policy")
        else:
            books.wallet.at(NOW_US + 70 * SECOND_US)
        if how == "expiry, written down":
            await books.charge(caller, "another")
        assert given(await books.admit(caller, "next", identity=ORDER)) is None

    check(redis_url, tmp_path, work)


@pytest.mark.rule(18, 38)
@pytest.mark.parametrize(("after_us", "found"), [(RECENT_US, True), (RECENT_US + 1, False)])
@pytest.mark.parametrize("tries", [None, 1])
def test_it_is_given_for_three_minutes_after_its_client_left(
    tries: int | None, after_us: int, found: bool, redis_url: str, tmp_path: Path
) -> None:
    """To the microsecond, however long it had been waited for before; to an SDK's own retry, too (18, 38)."""

    async def work(books: Books, caller: Caller) -> None:
        await books.admit(caller, "left", identity=ORDER, life_s=400)
        books.wallet.at(NOW_US + 100 * SECOND_US)
        await books.wallet.client_gone(caller, "left", ORDER)
        await books.settle(caller, "left")
        books.wallet.at(NOW_US + 100 * SECOND_US + after_us)
        answer = await books.admit(caller, "next", identity=OrderIdentity("order", tries=tries))
        assert given(answer) == ("left" if found else None)

    check(redis_url, tmp_path, work)


@pytest.mark.rule(38)
def test_who_was_given_it_and_leaves_too_leaves_it_to_the_next(redis_url: str, tmp_path: Path) -> None:
    """A client that tries twice more: each of its tries hangs up but the last, and one order is charged (38)."""

    async def work(books: Books, caller: Caller) -> None:
        await abandon(books, caller, "left")
        for turn in range(3):
            assert given(await books.admit(caller, f"next-{turn}", identity=ORDER)) == "left"
            if turn < 2:
                await books.wallet.client_gone(caller, "left", ORDER, asked_by=f"next-{turn}")
        assert given(await books.admit(caller, "another", identity=ORDER)) is None

    check(redis_url, tmp_path, work)


@pytest.mark.rule(18, 38)
@pytest.mark.parametrize("retry", [None, 1])
def test_a_note_that_comes_late_takes_it_from_nobody(retry: int | None, redis_url: str, tmp_path: Path) -> None:
    """The first client is seen to leave, once more or only now, when another waits for the order (18, 38)."""

    async def work(books: Books, caller: Caller) -> None:
        await books.admit(caller, "left", identity=ORDER)
        if retry is None:
            await books.wallet.client_gone(caller, "left", ORDER)
        assert given(await books.admit(caller, "next", identity=OrderIdentity("order", tries=retry))) == "left"
        for late in ("left", "never heard of"):
            await books.wallet.client_gone(caller, "left", ORDER, asked_by=late)
        assert given(await books.admit(caller, "after", identity=ORDER)) is None

    check(redis_url, tmp_path, work)


@pytest.mark.rule(18, 38)
def test_while_one_of_two_waits_for_it_it_is_given_to_no_new_order(redis_url: str, tmp_path: Path) -> None:
    """Retries of two counts were given it; the one that leaves may be either (18, 38)."""

    async def work(books: Books, caller: Caller) -> None:
        await abandon(books, caller, "left")
        for tries in (2, 1):
            assert (
                given(await books.admit(caller, f"try {tries}", identity=OrderIdentity("order", tries=tries))) == "left"
            )
        await books.wallet.client_gone(caller, "left", OrderIdentity("order", tries=1), asked_by="try 1")
        assert given(await books.admit(caller, "next", identity=ORDER)) is None
        await books.wallet.client_gone(caller, "left", OrderIdentity("order", tries=2), asked_by="try 2")
        assert given(await books.admit(caller, "after", identity=ORDER)) == "left"

    check(redis_url, tmp_path, work)


@pytest.mark.rule(18, 38)
def test_what_a_new_order_was_given_is_no_sdks_any_more(redis_url: str, tmp_path: Path) -> None:
    """Its SDK comes back for it, and is made a picture of its own: never are two given one (18, 38)."""

    async def work(books: Books, caller: Caller) -> None:
        await abandon(books, caller, "left", identity=OrderIdentity("order", tries=0))
        assert given(await books.admit(caller, "next", identity=ORDER)) == "left"
        assert given(await books.admit(caller, "twin", identity=OrderIdentity("order", tries=0))) is None
        retries = [
            given(await books.admit(caller, f"retry {i}", identity=OrderIdentity("order", tries=1))) for i in range(2)
        ]
        assert retries == [None, "twin"]

    check(redis_url, tmp_path, work)


@pytest.mark.rule(18, 38)
def test_it_needs_no_balance_and_counts_as_a_request(redis_url: str, tmp_path: Path) -> None:
    """It was paid for; at the limit of requests it is told to wait, and is there after that (18, 38)."""

    async def work(books: Books, caller: Caller) -> None:
        await books.accounts.set_limits(caller.org_id, {"requests_per_minute": 2, "images_per_minute": 1})
        await abandon(books, caller, "a")
        await books.settle(caller, "a")
        assert given(await books.admit(caller, "next", identity=ORDER)) == "a"
        await books.wallet.client_gone(caller, "a", ORDER, asked_by="next")
        refused = await books.admit(caller, "too many", identity=ORDER)
        assert (refused.verdict, refused.retry_us) == (Verdict.REQUESTS, 30 * SECOND_US)
        books.wallet.at(NOW_US + 30 * SECOND_US)
        assert given(await books.admit(caller, "later", identity=ORDER)) == "a"

    check(redis_url, tmp_path, work, mxn="0.84")


@pytest.mark.rule(20, 38)
def test_a_revoked_key_is_given_nothing(redis_url: str, tmp_path: Path) -> None:
    """It is looked at at this moment, and nothing is written (20, 38)."""

    async def work(books: Books, caller: Caller) -> None:
        await abandon(books, caller, "left")
        await books.accounts.revoke_key(caller.key_id)
        before = dump(redis_url)
        assert (await books.admit(caller, "next", identity=ORDER)).verdict is Verdict.REVOKED
        assert dump(redis_url) == before

    check(redis_url, tmp_path, work)


@pytest.mark.rule(8, 38)
def test_an_order_that_ran_out_and_was_answered_all_the_same_is_given(redis_url: str, tmp_path: Path) -> None:
    """Its gateway died; a journal brings the charge; who left it gets it for that (8, 38)."""

    async def work(books: Books, caller: Caller) -> None:
        await abandon(books, caller, "left")
        books.wallet.at(NOW_US + 70 * SECOND_US)
        await books.charge(caller, "writes the expiry")
        assert await books.wallet.replay(answered(caller, "left", 1, ORDER, client_gone=True)) is Replay.NOW
        assert given(await books.admit(caller, "next", identity=ORDER)) == "left"

    check(redis_url, tmp_path, work)


# --- races, restarts, wipes -------------------------------------------------------------------------------------------


@pytest.mark.rule(38)
def test_a_crowd_takes_each_of_twenty_once(redis_url: str, tmp_path: Path) -> None:
    """Two hundred at once over ten connections, for twenty: each goes to exactly one, 180 are made (38)."""

    async def work(books: Books, caller: Caller) -> None:
        left = [f"left-{i}" for i in range(20)]
        await abandon(books, caller, *left)
        async with open_wallets(redis_url, 10, now_us=NOW_US) as wallets:
            answers = await asyncio.gather(
                *(admit(wallets[i % 10], caller, f"r{i}", identity=ORDER) for i in range(200))
            )
        assert Counter(given(answer) for answer in answers) == dict.fromkeys(left, 1) | {None: 180}
        assert (await books.cut(caller)).held_micro_mxn == 200 * UNIT

    check(redis_url, tmp_path, work, mxn="840.00")


@pytest.mark.rule(38)
def test_a_crowd_of_which_each_leaves_again_never_shares_one(redis_url: str, tmp_path: Path) -> None:
    """Each client that gets one hangs up at once: the order moves on, and always has one waiting client (38)."""

    async def work(books: Books, caller: Caller) -> None:
        await abandon(books, caller, "left")
        waits: set[str] = set()

        async def one(wallet_: object, name: str) -> None:
            async with open_wallets(redis_url, 1, now_us=NOW_US) as (wallet,):
                if given(await admit(wallet, caller, name, identity=ORDER)) is None:
                    return
                waits.add(name)
                assert waits == {name}
                await asyncio.sleep(0)
                waits.remove(name)
                await wallet.client_gone(caller, "left", ORDER, asked_by=name)

        await asyncio.gather(*(one(None, f"r{i}") for i in range(40)))

    check(redis_url, tmp_path, work)


@pytest.mark.rule(38)
@pytest.mark.parametrize("how", ["restarted", "wiped"])
def test_what_a_restart_may_have_forgotten_is_given_to_nobody(how: str, tmp_path: Path) -> None:
    """Redis comes back as it was before the order was given: a claim that it forgot is not made twice (38)."""
    server = ValkeyServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")

    async def before() -> Caller:
        async with open_books(server.url, tmp_path / "l.db") as books:
            caller = await books.org()
            await abandon(books, caller, "left")
            await books.settle(caller, "left")
            await drain(books)
            if how == "wiped":
                await books.redis.flushall()
            return caller

    async def after(caller: Caller) -> None:
        async with open_books(server.url, tmp_path / "l.db") as books:
            noted = await books.redis.hexists(keys.OrgKeys(caller.org_id).claims("left"), "gone")
            assert noted == (how == "restarted")
            assert given(await books.admit(caller, "next", identity=ORDER)) is None

    server.start()
    try:
        caller = run(before())
        if how == "restarted":
            server.stop()
            server.start()
        run(after(caller))
    finally:
        server.stop()


# --- what the look costs ----------------------------------------------------------------------------------------------


async def commands(redis: Redis) -> int:
    """How many commands the server has run, those of scripts among them."""
    told = await redis.info("commandstats")
    return sum(one["calls"] for name, one in told.items() if name != "cmdstat_info")


@pytest.mark.rule(18)
@pytest.mark.parametrize(
    ("limits", "verdict", "most"),
    [
        ({}, Verdict.DUPLICATE, 60),
        ({"in_flight": 1}, Verdict.IN_FLIGHT, 60),
        ({"requests_per_minute": 1}, Verdict.REQUESTS, 10),
        (None, Verdict.REVOKED, 10),
    ],
)
def test_the_look_for_an_earlier_order_is_bounded(
    limits: dict[str, int] | None, verdict: Verdict, most: int, redis_url: str, tmp_path: Path
) -> None:
    """Among 500 identical orders, all or all but one given to retries of this count, it takes no more commands.

    Before, it took a thousand. If the order is refused in any case, it takes nearly none (18).
    """

    async def work(books: Books, caller: Caller) -> None:
        for i in range(500):
            books.wallet.at(NOW_US + i)
            await books.admit(caller, f"same-{i:03}", identity=OrderIdentity("order", tries=0))
            await books.settle(caller, f"same-{i:03}")
        for i in range(499 if verdict is Verdict.DUPLICATE else 500):
            answer = await books.admit(caller, f"again-{i}", identity=OrderIdentity("order", tries=1))
            assert given(answer) == f"same-{i:03}"
        await books.admit(caller, "other", identity=OrderIdentity("other"))
        if limits is None:
            await books.accounts.revoke_key(caller.key_id)
        else:
            await books.accounts.set_limits(caller.org_id, limits)
        before = await commands(books.redis)
        answer = await books.admit(caller, "last", pinned(), OrderIdentity("order", tries=1))
        assert (answer.verdict, await commands(books.redis) - before <= most) == (verdict, True)
        if answer.earlier:
            assert answer.earlier.order_id == "same-499"

    check(redis_url, tmp_path, work, mxn="8400.00")


@pytest.mark.rule(18)
def test_orders_that_failed_hide_none_behind_them(redis_url: str, tmp_path: Path) -> None:
    """A hundred of the same failed before one that was lost: its retry is given that (18)."""

    async def work(books: Books, caller: Caller) -> None:
        for i in range(100):
            await books.admit(caller, f"failed-{i}", identity=ORDER)
            await books.wallet.void(caller.org_id, f"failed-{i}", "busy")
        await books.admit(caller, "lost", identity=ORDER)
        assert given(await books.admit(caller, "retry", identity=OrderIdentity("order", tries=1))) == "lost"

    check(redis_url, tmp_path, work)


@pytest.mark.rule(18)
def test_a_retry_above_the_rate_is_given_its_order_once_it_may(redis_url: str, tmp_path: Path) -> None:
    """Whatever else would refuse a new order: it is told to wait, and not that its balance is used up (18)."""

    async def work(books: Books, caller: Caller) -> None:
        await books.accounts.set_limits(caller.org_id, {"requests_per_minute": 1})
        await books.admit(caller, "lost", identity=OrderIdentity("order", tries=0))
        await books.settle(caller, "lost")
        refused = await books.admit(caller, "try 1", identity=OrderIdentity("order", tries=1))
        assert (refused.verdict, refused.retry_us) == (Verdict.REQUESTS, 60 * SECOND_US)
        books.wallet.at(NOW_US + 60 * SECOND_US)
        assert given(await books.admit(caller, "try 2", identity=OrderIdentity("order", tries=2))) == "lost"

    check(redis_url, tmp_path, work, mxn="0.84")
