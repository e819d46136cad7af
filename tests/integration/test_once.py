"""An order that is placed again is not placed twice: the admit script on keys and SDKs' retries (17–20)."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from metering.answered import AnsweredOrder
from metering.events import encode_opened
from metering.wallet import keys
from metering.wallet.values import Admission, Caller, OrderIdentity, Replay, Verdict
from metering.wallet.wallet import RECENT_S
from tests.conftest import run
from tests.kits.books import (
    DAY_US,
    FACTS,
    LIFE_S,
    NOW_US,
    SECOND_US,
    UNIT,
    Books,
    admit,
    drain,
    dump,
    open_books,
    open_wallets,
    pictures,
    pinned,
)

KEYED = OrderIdentity("order", key_hash="key")
LIFE_US, RECENT_US = int(LIFE_S * SECOND_US), int(RECENT_S * SECOND_US)

Step = Callable[[Books, Caller], Awaitable[object]]


def again(tries: int = 1, fingerprint: str = "order") -> OrderIdentity:
    """Retry as an SDK does by itself."""
    return OrderIdentity(fingerprint, tries=tries)


def check(redis_url: str, path: Path, work: Callable[[Books, Caller], Awaitable[None]], mxn: str = "84.00") -> None:
    """Do this with an organisation of its own; the books are opened and closed around it."""

    async def opened() -> None:
        async with open_books(redis_url, path / "l.db") as books:
            await work(books, await books.org(mxn=mxn))

    run(opened())


def given(answer: Admission) -> str | None:
    """Which earlier order it is."""
    return answer.earlier.order_id if answer.earlier else None


# --- what may have become of an order before it is placed again -------------------------------------------------------


async def open_(books: Books, caller: Caller) -> None:
    pass


async def charged(books: Books, caller: Caller) -> None:
    await books.settle(caller, "first")


async def failed(books: Books, caller: Caller) -> None:
    await books.wallet.void(caller.org_id, "first", "content_policy")


async def unknown(books: Books, caller: Caller) -> None:
    await books.wallet.void(caller.org_id, "first", "no_answer")


async def run_out(books: Books, caller: Caller) -> None:
    books.wallet.at(NOW_US + LIFE_US)


async def run_out_and_written(books: Books, caller: Caller) -> None:
    books.wallet.at(NOW_US + LIFE_US)
    await books.admit(caller, "another")


async def forgotten(books: Books, caller: Caller) -> None:
    await books.redis.delete(keys.OrgKeys(caller.org_id).open, keys.OrgKeys(caller.org_id).hold("first"))


async def charged_and_wiped(books: Books, caller: Caller) -> None:
    await books.settle(caller, "first")
    await drain(books)
    await books.redis.flushall()
    await books.projector.round()


@pytest.mark.rule(17)
@pytest.mark.parametrize(
    ("became", "end"),
    [
        (open_, "open"),
        (charged, "charge"),
        (failed, None),
        (unknown, "void"),
        (run_out, None),
        (run_out_and_written, None),
        (forgotten, None),
        (charged_and_wiped, "charge"),
    ],
)
def test_the_same_order_under_the_same_key(became: Step, end: str | None, redis_url: str, tmp_path: Path) -> None:
    """It is the first one while that is open, charged, or unknown; a failure or an expiry frees the key (17)."""

    async def work(books: Books, caller: Caller) -> None:
        opened = encode_opened("first", caller.org_id, caller.key_id, pinned(), FACTS | {"once": "key order"})
        await books.wallet.admit(caller, "first", pinned(), opened, KEYED, life_s=LIFE_S, owner="pod-1")
        await became(books, caller)
        before = await books.cut(caller)
        answer = await books.admit(caller, "second", pinned(), KEYED)
        after = await books.cut(caller)
        if end is None:
            assert (answer.verdict, given(answer)) == (Verdict.ADMITTED, None)
            assert await books.wallet.order_of_key(caller.org_id, "key") == "second"
            return
        assert (answer.verdict, given(answer)) == (Verdict.DUPLICATE, "first") and answer.earlier is not None
        assert (answer.earlier.end, answer.earlier.amount_micro_mxn) == (end, UNIT if end == "charge" else 0)
        assert answer.earlier.owner == ("pod-1" if end == "open" else "")
        assert answer.available_micro_mxn == before.available_micro_mxn
        assert (after.available_micro_mxn, after.number) == (before.available_micro_mxn, before.number)
        assert await books.wallet.status_of(caller.org_id, "second") is None

    check(redis_url, tmp_path, work)


async def failover(books: Books, caller: Caller) -> Callable[[], Awaitable[None]]:
    """The order `first` is open now. The call is a failover that has lost all that became of it, and the rebuild."""
    names = keys.OrgKeys(caller.org_id)
    hold, expires = await books.redis.dump(names.hold("first")), await books.redis.zscore(names.open, "first")
    record = await books.redis.get(names.once("key"))
    assert hold is not None and expires is not None and record is not None

    async def back() -> None:
        await drain(books)
        await books.redis.restore(names.hold("first"), 0, hold)
        await books.redis.zadd(names.open, {"first": expires})
        await books.redis.set(names.once("key"), record)
        await books.redis.delete(names.closed("first"), names.closed("second"), names.mark)
        await books.projector.round()

    return back


@pytest.mark.rule(17)
def test_a_failover_that_lost_a_void_still_knows_its_reason(redis_url: str, tmp_path: Path) -> None:
    """The ledger has it, and a rebuild ends the hold that is back: the key says why, and takes no other (17)."""

    async def work(books: Books, caller: Caller) -> None:
        await books.admit(caller, "first", pinned(), KEYED)
        back = await failover(books, caller)
        await unknown(books, caller)
        await back()
        answer = await books.admit(caller, "second", pinned(), KEYED)
        assert answer.verdict is Verdict.DUPLICATE and answer.earlier is not None
        assert (answer.earlier.order_id, answer.earlier.end, answer.earlier.reason) == ("first", "void", "no_answer")
        assert (await books.cut(caller)).held_micro_mxn == 0

    check(redis_url, tmp_path, work)


@pytest.mark.rule(17)
@pytest.mark.parametrize("became", [failed, run_out])
@pytest.mark.parametrize("charged_since", [True, False])
def test_a_failover_that_lost_how_a_key_became_free(
    became: Step, charged_since: bool, redis_url: str, tmp_path: Path
) -> None:
    """The ledger knows the order's end, and the one that was charged under the key since: that one is given (17)."""

    async def work(books: Books, caller: Caller) -> None:
        async def order(name: str) -> Admission:
            opened = encode_opened(name, caller.org_id, caller.key_id, pinned(), FACTS | {"once": "key order"})
            return await books.wallet.admit(caller, name, pinned(), opened, KEYED, life_s=LIFE_S, owner="pod-1")

        await order("first")
        back = await failover(books, caller)
        await became(books, caller)
        if charged_since:
            assert (await order("second")).verdict is Verdict.ADMITTED
            await books.settle(caller, "second")
        else:
            await books.admit(caller, "another")  # writes down what ran out
        await back()
        assert given(await order("third")) == ("second" if charged_since else None)

    check(redis_url, tmp_path, work)


@pytest.mark.rule(17)
def test_an_unknown_outcome_whose_end_nobody_heard_keeps_its_key(redis_url: str, tmp_path: Path) -> None:
    """It is told to Redis again and again, and stays unknown (17)."""

    async def work(books: Books, caller: Caller) -> None:
        await books.admit(caller, "first", pinned(), KEYED)
        await books.wallet.abandon(caller.org_id, "first", "no_answer", until_us=NOW_US)
        assert given(await books.admit(caller, "second", pinned(), KEYED)) == "first"

    check(redis_url, tmp_path, work)


@pytest.mark.parametrize("became", [open_, charged, unknown])
def test_another_order_under_the_same_key_is_refused(became: Step, redis_url: str, tmp_path: Path) -> None:
    """REUSED, and nothing is written (17); once the key is free it takes any order."""

    async def work(books: Books, caller: Caller) -> None:
        await books.admit(caller, "first", pinned(), KEYED)
        await became(books, caller)
        before = dump(redis_url)
        answer = await books.admit(caller, "second", pinned(), OrderIdentity("another-order", key_hash="key"))
        assert (answer.verdict, given(answer)) == (Verdict.REUSED, None)
        assert dump(redis_url) == before

    check(redis_url, tmp_path, work)


@pytest.mark.rule(17)
def test_a_free_key_takes_another_order(redis_url: str, tmp_path: Path) -> None:
    """After a failure the customer may mend the order and keep the key (17)."""

    async def work(books: Books, caller: Caller) -> None:
        await books.admit(caller, "first", pinned(), KEYED)
        await failed(books, caller)
        answer = await books.admit(caller, "second", pinned(), OrderIdentity("another-order", key_hash="key"))
        assert answer.verdict is Verdict.ADMITTED
        assert (await books.admit(caller, "third", pinned(), KEYED)).verdict is Verdict.REUSED

    check(redis_url, tmp_path, work)


def test_a_key_belongs_to_its_organisation(redis_url: str, tmp_path: Path) -> None:
    """The same name, the same order, another organisation: another key (17). Two API keys of one share it."""

    async def work(books: Books, caller: Caller) -> None:
        other = await books.org("other")
        second = await books.accounts.create_key(caller.org_id, "second")
        for request, who, verdict in (
            ("a", caller, Verdict.ADMITTED),
            ("b", other, Verdict.ADMITTED),
            ("c", Caller(caller.org_id, second.key_id), Verdict.DUPLICATE),
        ):
            assert (await books.admit(who, request, pinned(), KEYED)).verdict is verdict
        assert await books.wallet.result(other.org_id, "a") is None

    check(redis_url, tmp_path, work)


@pytest.mark.rule(17)
def test_a_key_counts_for_a_day(redis_url: str, tmp_path: Path) -> None:
    """Redis itself forgets it 24 h after the admission, and no sooner; an end is remembered as long as its key (17)."""

    async def work(books: Books, caller: Caller) -> None:
        names = keys.OrgKeys(caller.org_id)
        await books.admit(caller, "first", pinned(), KEYED)
        await books.settle(caller, "first")
        books.wallet.at(NOW_US + DAY_US - 1)
        price = pinned(now_us=NOW_US + DAY_US - 1)
        assert given(await books.admit(caller, "second", price, KEYED)) == "first"
        for name in (names.once("key"), names.closed("first")):
            assert 86_400 - 60 < await books.redis.ttl(name) <= 86_400
        await books.redis.delete(names.once("key"))
        assert (await books.admit(caller, "third", price, KEYED)).verdict is Verdict.ADMITTED

    check(redis_url, tmp_path, work)


@pytest.mark.rule(18)
@pytest.mark.parametrize("identity", [KEYED, again()])
def test_a_replay_is_a_request_and_no_image(identity: OrderIdentity, redis_url: str, tmp_path: Path) -> None:
    """Three a minute: the fourth of the same order is told to wait, whatever it would have been given (18)."""

    async def work(books: Books, caller: Caller) -> None:
        await books.accounts.set_limits(caller.org_id, {"requests_per_minute": 3, "images_per_minute": 1})
        await books.admit(caller, "first", pinned(), KEYED if identity is KEYED else OrderIdentity("order"))
        answers = []
        for tries in (1, 2, 3):
            placing = KEYED if identity is KEYED else again(tries)
            answers.append(await books.admit(caller, f"again {tries}", pinned(), placing))
        assert [answer.verdict for answer in answers] == [Verdict.DUPLICATE, Verdict.DUPLICATE, Verdict.REQUESTS]
        assert [answer.requests.remaining for answer in answers] == [1, 0, 0]
        assert answers[2].retry_us == 20 * SECOND_US
        books.wallet.at(NOW_US + 20 * SECOND_US)
        placing = KEYED if identity is KEYED else again(3)
        assert given(await books.admit(caller, "later", pinned(), placing)) == "first"

    check(redis_url, tmp_path, work)


@pytest.mark.rule(17)
def test_a_replay_needs_no_balance(redis_url: str, tmp_path: Path) -> None:
    """The result was paid for, so it is given although no money is left; a new order is refused (17)."""

    async def work(books: Books, caller: Caller) -> None:
        await books.admit(caller, "first", pinned(), KEYED)
        await charged(books, caller)
        assert given(await books.admit(caller, "second", pinned(), KEYED)) == "first"
        assert (await books.admit(caller, "third")).verdict is Verdict.BALANCE

    check(redis_url, tmp_path, work, mxn="0.84")


@pytest.mark.rule(20)
@pytest.mark.parametrize("identity", [KEYED, again()])
def test_a_revoked_key_gets_neither_a_replay_nor_a_claim(
    identity: OrderIdentity, redis_url: str, tmp_path: Path
) -> None:
    """It is looked at at this moment, and nothing is written (20)."""

    async def work(books: Books, caller: Caller) -> None:
        await books.admit(caller, "first", pinned(), KEYED if identity is KEYED else OrderIdentity("order"))
        await charged(books, caller)
        await books.accounts.revoke_key(caller.key_id)
        before = dump(redis_url)
        answer = await books.admit(caller, "second", pinned(), identity)
        assert (answer.verdict, given(answer)) == (Verdict.REVOKED, None)
        assert dump(redis_url) == before

    check(redis_url, tmp_path, work)


# --- an SDK's own retries ---------------------------------------------------------------------------------------------


async def place(books: Books, caller: Caller, *requests: str) -> None:
    """The same order several times, a second between them, without a key."""
    for at, request in enumerate(requests):
        books.wallet.at(NOW_US + at * SECOND_US)
        await books.admit(caller, request, pinned(), OrderIdentity("order"))


@pytest.mark.rule(18)
def test_lost_orders_are_claimed_once_by_each_count(redis_url: str, tmp_path: Path) -> None:
    """Three are lost: the three first retries get three different ones, so do the second; a fourth runs as new (18)."""

    async def work(books: Books, caller: Caller) -> None:
        await place(books, caller, "a", "b", "c")
        for count in (1, 2):
            answers = [await books.admit(caller, f"{count}-{i}", pinned(), again(count)) for i in range(3)]
            assert [given(answer) for answer in answers] == ["a", "b", "c"]
        fourth = await books.admit(caller, "fourth", pinned(), again(1))
        assert fourth.verdict is Verdict.ADMITTED

    check(redis_url, tmp_path, work)


@pytest.mark.rule(18)
def test_those_whose_client_is_gone_are_claimed_first(redis_url: str, tmp_path: Path) -> None:
    """However much older the others are (18)."""

    async def work(books: Books, caller: Caller) -> None:
        await place(books, caller, "a", "b", "c")
        await books.wallet.client_gone(caller, "c", OrderIdentity("order"))
        answers = [await books.admit(caller, f"again-{i}", pinned(), again()) for i in range(3)]
        assert [given(answer) for answer in answers] == ["c", "a", "b"]

    check(redis_url, tmp_path, work)


@pytest.mark.rule(18)
@pytest.mark.parametrize(
    ("became", "claimed"),
    [(open_, True), (charged, True), (failed, False), (unknown, False), (run_out, False), (forgotten, False)],
)
def test_what_a_retry_may_claim(became: Step, claimed: bool, redis_url: str, tmp_path: Path) -> None:
    """An order that is being made or was delivered; a failed or expired order is placed as a new one (18)."""

    async def work(books: Books, caller: Caller) -> None:
        await place(books, caller, "first")
        await became(books, caller)
        answer = await books.admit(caller, "again", pinned(), again())
        assert (answer.verdict, given(answer)) == (
            (Verdict.DUPLICATE, "first") if claimed else (Verdict.ADMITTED, None)
        )

    check(redis_url, tmp_path, work)


@pytest.mark.rule(18)
@pytest.mark.parametrize(
    ("first", "retry", "claimed"),
    [
        (OrderIdentity("order"), again(), True),
        (OrderIdentity("order"), OrderIdentity("order"), False),
        (OrderIdentity("order"), again(fingerprint="another-order"), False),
        (OrderIdentity("order"), OrderIdentity("order", key_hash="key", tries=1), False),
        (KEYED, again(), False),
        (again(1), again(1), False),
        (again(1), again(2), True),
        (again(2), again(1), False),
    ],
)
def test_whose_retry_it_is(
    first: OrderIdentity, retry: OrderIdentity, claimed: bool, redis_url: str, tmp_path: Path
) -> None:
    """It must be the same order, without a key on either side; later counts repeat an order that ran as new (18)."""

    async def work(books: Books, caller: Caller) -> None:
        assert (await books.admit(caller, "first", pinned(), first)).verdict is Verdict.ADMITTED
        answer = await books.admit(caller, "again", pinned(), retry)
        assert (answer.verdict, given(answer)) == (
            (Verdict.DUPLICATE, "first") if claimed else (Verdict.ADMITTED, None)
        )

    check(redis_url, tmp_path, work)


@pytest.mark.rule(18)
def test_a_retry_claims_only_what_its_own_api_key_placed(redis_url: str, tmp_path: Path) -> None:
    """Another key of the organisation belongs to another program (18)."""

    async def work(books: Books, caller: Caller) -> None:
        second = await books.accounts.create_key(caller.org_id, "second")
        await place(books, caller, "first")
        answer = await books.admit(Caller(caller.org_id, second.key_id), "again", pinned(), again())
        assert answer.verdict is Verdict.ADMITTED

    check(redis_url, tmp_path, work)


# --- a retry of what was refused --------------------------------------------------------------------------------------


REFUSALS: list[tuple[dict[str, int | None], Verdict]] = [
    ({"in_flight": 1}, Verdict.IN_FLIGHT),
    ({"requests_per_minute": 1}, Verdict.REQUESTS),
    ({"images_per_minute": 1}, Verdict.IMAGES),
]
"""Limits that fit one order; the next one is refused and told to retry."""


@pytest.mark.parametrize(("limits", "denial"), REFUSALS, ids=[verdict.name for _, verdict in REFUSALS])
def test_a_retry_of_what_was_refused_is_an_order_of_its_own(
    limits: dict[str, int | None], denial: Verdict, redis_url: str, tmp_path: Path
) -> None:
    """Two of the same are refused, once and once more: both are made at last. A third retry finds an earlier one."""

    async def work(books: Books, caller: Caller) -> None:
        await books.accounts.set_limits(caller.org_id, limits)
        assert (await books.admit(caller, "made", pinned(), again(0))).verdict is Verdict.ADMITTED
        for count in (0, 1):
            for name in "ab":
                assert (await books.admit(caller, name, pinned(), again(count))).verdict is denial
        await books.accounts.set_limits(caller.org_id, {name: 60 for name in limits})
        books.wallet.at(NOW_US + 60 * SECOND_US)
        for name in "ab":
            assert (await books.admit(caller, name, pinned(), again(2))).verdict is Verdict.ADMITTED
        assert given(await books.admit(caller, "lost", pinned(), again(2))) == "made"

    check(redis_url, tmp_path, work)


def test_a_lost_order_is_found_among_refused_ones(redis_url: str, tmp_path: Path) -> None:
    """Whose client is gone goes first, whichever of both asks; and the other is made."""

    async def work(books: Books, caller: Caller) -> None:
        await books.accounts.set_limits(caller.org_id, {"in_flight": 1})
        await books.admit(caller, "lost", pinned(), again(0))
        assert (await books.admit(caller, "refused", pinned(), again(0))).verdict is Verdict.IN_FLIGHT
        await books.wallet.client_gone(caller, "lost", again(0))
        await books.accounts.set_limits(caller.org_id, {"in_flight": 2})
        answers = [await books.admit(caller, name, pinned(), again()) for name in "ab"]
        assert [given(answer) for answer in answers] == ["lost", None]
        assert answers[1].verdict is Verdict.ADMITTED

    check(redis_url, tmp_path, work)


@pytest.mark.parametrize("told", [True, False])
def test_a_retry_of_what_failed_is_an_order_of_its_own(told: bool, redis_url: str, tmp_path: Path) -> None:
    """Also if an identical order was delivered; if the client is told not to retry, no retry is expected."""

    async def work(books: Books, caller: Caller) -> None:
        for name in ("made", "failed"):
            await books.admit(caller, name, pinned(), again(0))
        await books.settle(caller, "made")
        await books.wallet.void(caller.org_id, "failed", "busy", comes_again=told)
        answers = [await books.admit(caller, name, pinned(), again()) for name in "ab"]
        assert [given(answer) for answer in answers] == ([None, "made"] if told else ["made", None])

    check(redis_url, tmp_path, work)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(("gone", "claims"), [(False, 0), (False, 1), (True, 0), (True, 1), (True, 2)])
def test_the_try_that_is_awaited_of_what_failed_is_the_one_after_the_last(
    gone: bool, claims: int, told: bool, redis_url: str, tmp_path: Path
) -> None:
    """It was given to so many tries while it was made: the last is told. A gone one that is not back comes anyway."""

    async def work(books: Books, caller: Caller) -> None:
        for name in ("failed", "made"):
            await books.admit(caller, name, pinned(), again(0))
        if gone:
            await books.wallet.client_gone(caller, "failed", again(0))
        for count in range(1, claims + 1):
            assert given(await books.admit(caller, f"try {count}", pinned(), again(count))) == "failed"
        await books.settle(caller, "made")
        await books.wallet.void(caller.org_id, "failed", "busy", comes_again=told)
        awaited = claims + 1 if told or (gone and not claims) else None
        for count in range(1, claims + 3):
            answer = await books.admit(caller, f"new {count}", pinned(), again(count))
            assert given(answer) == (None if count == awaited else "made")

    check(redis_url, tmp_path, work)


@pytest.mark.parametrize(
    ("limits", "images", "identity", "denial"),
    [
        ({"in_flight": 1}, 1, OrderIdentity("order"), Verdict.IN_FLIGHT),
        ({"in_flight": 1}, 1, OrderIdentity("order", key_hash="other", tries=0), Verdict.IN_FLIGHT),
        ({"in_flight": 1}, 2, again(0), Verdict.IN_FLIGHT),
        ({"images_per_minute": 1}, 2, again(0), Verdict.IMAGES),
        ({"images_per_day": 1}, 1, again(0), Verdict.DAY),
        ({"images_per_month": 1}, 1, again(0), Verdict.MONTH),
        ({"micro_mxn_per_month": UNIT}, 1, again(0), Verdict.BUDGET),
        ({}, 1000, again(0), Verdict.BALANCE),
    ],
)
def test_a_refusal_after_which_no_sdk_comes_again_writes_nothing(
    limits: dict[str, int | None], images: int, identity: OrderIdentity, denial: Verdict, redis_url: str, tmp_path: Path
) -> None:
    """None that counts, a key of its own, an order that never fits, a quota, the balance."""

    async def work(books: Books, caller: Caller) -> None:
        await books.accounts.set_limits(caller.org_id, limits)
        await books.admit(caller, "made", pinned(), again(0))
        before = dump(redis_url)
        assert (await books.admit(caller, "refused", pinned(images), identity)).verdict is denial
        assert dump(redis_url) == before

    check(redis_url, tmp_path, work)


@pytest.mark.parametrize(("after_us", "made"), [(RECENT_US, True), (RECENT_US + 1, False)])
def test_a_refusal_is_remembered_for_three_minutes(after_us: int, made: bool, redis_url: str, tmp_path: Path) -> None:
    """To the microsecond; then a retry is taken for one of an order that was placed meanwhile."""

    async def work(books: Books, caller: Caller) -> None:
        await books.accounts.set_limits(caller.org_id, {"in_flight": 1})
        await books.admit(caller, "a", pinned(), again(0), life_s=100)
        assert (await books.admit(caller, "refused", pinned(), again(0))).verdict is Verdict.IN_FLIGHT
        books.wallet.at(NOW_US + 150 * SECOND_US)
        await books.admit(caller, "b", pinned(), again(0))
        await books.settle(caller, "b")
        books.wallet.at(NOW_US + after_us)
        assert given(await books.admit(caller, "again", pinned(), again())) == (None if made else "b")

    check(redis_url, tmp_path, work)


def test_refusals_are_remembered_within_bounds(redis_url: str, tmp_path: Path) -> None:
    """1,500 different orders of one key were refused, and at most a thousand are remembered."""

    async def work(books: Books, caller: Caller) -> None:
        await books.accounts.set_limits(caller.org_id, {"in_flight": 1})
        await books.admit(caller, "made", pinned(), again(0))
        for number in range(1500):
            identity = again(0, fingerprint=f"order-{number}")
            assert (await books.admit(caller, "refused", pinned(), identity)).verdict is Verdict.IN_FLIGHT
            if number in (999, 1000):
                kept = int(await books.redis.hlen(f"{{p{keys.partition_of(caller.org_id)}}}:awaited:{caller.key_id}"))
                assert kept == (1000 if number == 999 else 1)

    check(redis_url, tmp_path, work)


@pytest.mark.rule(18)
@pytest.mark.parametrize(("after_us", "claimed"), [(RECENT_US, True), (RECENT_US + 1, False)])
def test_the_window_of_a_claim(after_us: int, claimed: bool, redis_url: str, tmp_path: Path) -> None:
    """Three minutes from the admission, to the microsecond (18)."""

    async def work(books: Books, caller: Caller) -> None:
        await place(books, caller, "first")
        await charged(books, caller)
        books.wallet.at(NOW_US + after_us)
        assert given(await books.admit(caller, "again", pinned(), again())) == ("first" if claimed else None)

    check(redis_url, tmp_path, work)


# --- a journal that is replayed later ---------------------------------------------------------------------------------


@pytest.mark.rule(13, 19)
@pytest.mark.parametrize("first", [KEYED, OrderIdentity("order")])
@pytest.mark.parametrize("became", [run_out, run_out_and_written, forgotten])
def test_a_replay_of_what_was_served_again(first: OrderIdentity, became: Step, redis_url: str, tmp_path: Path) -> None:
    """Recorded at zero, however often it is replayed; one lost order for each that was given for it (13, 19)."""

    async def work(books: Books, caller: Caller) -> None:
        def answered(request: str) -> AnsweredOrder:
            return AnsweredOrder(
                org_id=caller.org_id,
                key_id=caller.key_id,
                fingerprint="order",
                key_hash=first.key_hash,
                client_gone=True,
                order_id=request,
                amount_micro_mxn=UNIT,
                images=pictures(1),
                usd_measured=None,
                opened=encode_opened(request, caller.org_id, caller.key_id, pinned(), FACTS),
                result=b"{}",
                admitted_us=NOW_US,
                ended_us=NOW_US + SECOND_US,
            )

        await books.admit(caller, "first", pinned(), first)
        await became(books, caller)
        again_placed = first if first.key_hash else again()
        assert (await books.admit(caller, "second", pinned(), again_placed)).verdict is Verdict.ADMITTED
        await books.settle(caller, "second")
        for _ in range(3):
            assert await books.wallet.replay(answered("first")) is Replay.SERVED
        assert await books.wallet.replay(answered("second")) is Replay.CHARGED
        if not first.key_hash:
            assert await books.wallet.replay(answered("third, lost")) is Replay.NOW
        await drain(books)
        ends = [event.end for event in [event async for event in books.ledger.events()] if event.event_id == "first"]
        assert "charge" not in ends and len(ends) <= 1
        cut = await books.cut(caller)
        assert cut.charged_micro_mxn == UNIT * (1 if first.key_hash else 2)
        assert cut.number == (await books.ledger.charged_up_to(caller.org_id)).events

    check(redis_url, tmp_path, work)


# --- races ------------------------------------------------------------------------------------------------------------


@pytest.mark.rule(17)
def test_fifty_at_once_under_one_key_are_one_order(redis_url: str, tmp_path: Path) -> None:
    """Over ten connections: one is admitted, forty-nine are told that they are that one (17)."""

    async def work(books: Books, caller: Caller) -> None:
        async with open_wallets(redis_url, 10) as wallets:
            answers = await asyncio.gather(
                *(admit(wallets[i % 10], caller, f"r{i}", pinned(), KEYED) for i in range(50))
            )
        assert Counter(answer.verdict for answer in answers) == {Verdict.ADMITTED: 1, Verdict.DUPLICATE: 49}
        (order,) = {given(answer) for answer in answers if answer.earlier}
        assert order == await books.wallet.order_of_key(caller.org_id, "key")
        assert (await books.cut(caller)).held_micro_mxn == UNIT

    check(redis_url, tmp_path, work)


@pytest.mark.rule(18)
def test_twenty_retries_at_once_over_ten_orders(redis_url: str, tmp_path: Path) -> None:
    """Ten of them get an order each, and ten run as new (18)."""

    async def work(books: Books, caller: Caller) -> None:
        await place(books, caller, *(f"lost-{i}" for i in range(10)))
        async with open_wallets(redis_url, 10, now_us=books.wallet.now_us()) as wallets:
            answers = await asyncio.gather(
                *(admit(wallets[i % 10], caller, f"r{i}", pinned(), again()) for i in range(20))
            )
        assert Counter(answer.verdict for answer in answers) == {Verdict.ADMITTED: 10, Verdict.DUPLICATE: 10}
        assert {given(answer) for answer in answers} - {None} == {f"lost-{i}" for i in range(10)}
        assert (await books.cut(caller)).held_micro_mxn == 20 * UNIT

    check(redis_url, tmp_path, work)
