"""A journal's order is charged once, whatever its hold's end, unless another order replaced it (8, 13, 19)."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from metering.answered import AnsweredError, AnsweredOrder, Withdrawn, decode, encode
from metering.events import UNTOLD, Route, Upstream, encode_opened
from metering.wallet.keys import OrgKeys
from metering.wallet.values import Caller, Close, OrderIdentity, Replay, Verdict
from tests.kits.books import FACTS, NOW_US, SECOND_US, UNIT, drain, expire, open_books, pictures, pinned


def answered(
    caller: Caller,
    request: str = "r",
    images: int = 2,
    identity: OrderIdentity | None = None,
    *,
    client_gone: bool = False,
) -> AnsweredOrder:
    """The journal's record of an order."""
    identity = identity or OrderIdentity(request)
    return AnsweredOrder(
        org_id=caller.org_id,
        key_id=caller.key_id,
        fingerprint=identity.fingerprint,
        key_hash=identity.key_hash,
        client_gone=client_gone,
        order_id=request,
        amount_micro_mxn=images * UNIT,
        images=pictures(images, request),
        usd_measured=None,
        opened=encode_opened(request, caller.org_id, caller.key_id, pinned(images), FACTS),
        result=b'{"v":1}',
        admitted_us=NOW_US,
        ended_us=NOW_US + SECOND_US,
    )


def test_records_come_back_from_the_journal_as_they_went_in() -> None:
    """Withdrawn ones do not stand; another version is refused by name."""
    first = answered(Caller("11111111-1111-4111-8111-111111111111", "key"))
    second = replace(first, order_id="other", key_hash="abc", usd_measured="0.1")
    entries = [encode(first), encode(second), encode(Withdrawn("r"))]
    assert [decode(entry) for entry in entries] == [first, second, Withdrawn("r")]
    told = replace(first, upstream=Upstream('["req-1"]', "0.04"))
    assert decode(encode(told)) == told
    with pytest.raises(AnsweredError, match="version 9"):
        decode(b'{"v":9}')
    with pytest.raises(AnsweredError):
        decode(b'{"v":1,"answered":{}}')


def test_the_version_before_reads_an_entry_with_what_the_provider_told_and_the_other_way_round() -> None:
    """It knows the order's fields only, and builds the order from them; without the provider's, nothing is added."""
    plain = answered(Caller("11111111-1111-4111-8111-111111111111", "key"))
    told = orjson.loads(encode(replace(plain, upstream=Upstream('["req-1"]'))))
    former = orjson.loads(encode(plain))
    assert former.keys() == {"v", "answered"}
    assert told["answered"] == former["answered"]
    assert "upstream" not in former["answered"]
    assert decode(orjson.dumps(former)) == plain


def test_the_version_before_reads_an_entry_with_a_route() -> None:
    """It builds `upstream` from the fields that it knows, and passes over what stands beside them."""
    plain = answered(Caller("11111111-1111-4111-8111-111111111111", "key"))
    by_second = replace(plain, upstream=Upstream('["req-1"]', route=Route("fal", "fal-ai/flux", "0.04")))
    entry = orjson.loads(encode(by_second))
    assert decode(encode(by_second)) == by_second
    assert entry["upstream"].keys() == {"ids", "usd"} and entry.keys() == {"v", "answered", "upstream", "route"}
    only = replace(plain, upstream=Upstream(route=Route("fal", "fal-ai/flux", "0.04")))
    assert orjson.loads(encode(only)).keys() == {"v", "answered", "route"} and decode(encode(only)) == only


@pytest.mark.parametrize("end", ["settle", "void", "replay", "untold"])
async def test_what_the_provider_told_reaches_the_ledger(redis_url: str, ledger_url: str, end: str) -> None:
    """Its ids, its figure and the route, charged or not; without them the event has no such field, as before."""
    upstream = Upstream('["req-1","req-2"]', "0.0425", Route("fal", "fal-ai/flux", "0.04"))
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org(mxn="50.00")
        order = answered(caller)
        if end != "replay":
            await books.admit(caller, "r", pinned(2))
        match end:
            case "settle":
                latest_us = NOW_US + SECOND_US
                amount = order.amount_micro_mxn
                await books.wallet.settle(
                    caller.org_id, "r", amount, order.images, latest_us=latest_us, upstream=upstream
                )
            case "void":
                await books.wallet.void(caller.org_id, "r", "no_answer", upstream=upstream)
            case "replay":
                await books.wallet.replay(replace(order, upstream=upstream))
            case _:
                await books.wallet.void(caller.org_id, "r", "no_answer")
                entries: Any = await books.redis.xrange(OrgKeys(caller.org_id).events)
                assert not {b"upstream_ids", b"upstream_usd", b"route"} & {
                    name for _, fields in entries for name in fields
                }
        await drain(books)
        (booked,) = [one async for one in books.ledger.events(org_id=caller.org_id)]
        wanted = UNTOLD if end == "untold" else upstream
        assert Upstream(booked.upstream_ids, booked.upstream_usd, booked.route) == wanted


@pytest.mark.parametrize("end", ["charge", "void", "expiry", "replay"])
async def test_whose_order_it_was_is_known_however_it_ends(redis_url: str, ledger_url: str, end: str) -> None:
    """Charged, voided, expired, or brought by a journal after Redis had forgotten it: the ledger has its labels."""
    labels = {"end_user": "0a", "safety_id": "0b", "tags": '["web"]', "metadata": '{"once":"\\"once\\":\\"a b\\""}'}
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org(mxn="50.00")
        price = pinned(2)
        opened = encode_opened("r", caller.org_id, caller.key_id, price, {**FACTS, **labels})
        if end != "replay":
            identity = OrderIdentity("r")
            await books.wallet.admit(caller, "r", price, opened, identity, life_s=60, owner="test")
        match end:
            case "charge":
                await books.settle(caller, "r", 2)
            case "void":
                await books.wallet.void(caller.org_id, "r", "test")
            case "expiry":
                assert await expire(books.redis, caller.org_id, NOW_US + 3600 * SECOND_US) == 1
            case _:
                await books.wallet.replay(replace(answered(caller), key_hash="k", opened=opened))
        await drain(books)
        (booked,) = [one async for one in books.ledger.events(org_id=caller.org_id)]
        assert booked.end == {"replay": "charge"}.get(end, end)
        assert {name: getattr(booked.opened, name) for name in labels} == labels


@pytest.mark.parametrize("state", ["open", "run out", "written down as run out", "voided", "unknown", "charged"])
async def test_an_order_is_charged_once_whatever_became_of_its_hold(redis_url: str, tmp_path: Path, state: str) -> None:
    """Three replays, two of them at once: one charge, one event of it, and the money adds up."""
    async with open_books(redis_url, tmp_path / "ledger.db") as books:
        caller = await books.org(mxn="50.00")
        if state != "unknown":
            assert (await books.admit(caller, "r", pinned(2))).verdict is Verdict.ADMITTED
        if state in ("run out", "written down as run out"):
            books.wallet.at(NOW_US + 3600 * SECOND_US)
        if state == "written down as run out":
            assert (await books.admit(caller, "next")).verdict is Verdict.ADMITTED
            await books.wallet.void(caller.org_id, "next", "test")
        if state == "voided":
            await books.wallet.void(caller.org_id, "r", "owner_died")
        if state == "charged":
            await books.settle(caller, "r", 2)
        order = answered(caller)
        twice = await asyncio.gather(books.wallet.replay(order), books.wallet.replay(order))
        done = [*twice, await books.wallet.replay(order)]
        assert done.count(Replay.NOW) == (0 if state == "charged" else 1)
        assert set(done) <= {Replay.NOW, Replay.CHARGED}
        cut = await books.cut(caller)
        assert (cut.charged_micro_mxn, cut.held_micro_mxn) == (2 * UNIT, 0)
        charges = [event for event in await books.events(caller) if event.end == "charge"]
        assert [(one.event_id, one.amount_micro_mxn, one.quantity) for one in charges] == [("r", 2 * UNIT, 2)]
        if state != "charged":
            assert (charges[0].admitted_us, charges[0].ended_us) == (NOW_US, NOW_US + SECOND_US)
            assert charges[0].result == '{"v":1}'
        assert (await books.settle(caller, "r", 2)).close is Close.CHARGED
        assert (await books.wallet.void(caller.org_id, "r", "late")).close is Close.CHARGED


async def test_a_replay_may_take_a_balance_below_zero_and_admission_says_402(redis_url: str, tmp_path: Path) -> None:
    """Rule 10: the image was given; nothing more is until the balance is topped up."""
    async with open_books(redis_url, tmp_path / "ledger.db") as books:
        caller = await books.org(mxn="0.84")
        assert await books.wallet.replay(answered(caller)) is Replay.NOW
        assert (await books.cut(caller)).available_micro_mxn == -UNIT
        assert (await books.admit(caller, "next")).verdict is Verdict.BALANCE


@pytest.mark.parametrize("hold", ["unknown", "run out"])
async def test_a_key_that_another_order_served_is_recorded_at_zero(redis_url: str, tmp_path: Path, hold: str) -> None:
    """Rule 19: Redis forgot the first order, the client came again under its key, and that was charged."""
    async with open_books(redis_url, tmp_path / "ledger.db") as books:
        caller = await books.org(mxn="50.00")
        identity = OrderIdentity("same", key_hash="k")
        if hold == "run out":
            await books.admit(caller, "first", identity=identity)
            books.wallet.at(NOW_US + 3600 * SECOND_US)
        assert (await books.admit(caller, "second", identity=identity)).verdict is Verdict.ADMITTED
        await books.settle(caller, "second")
        first = answered(caller, "first", 1, identity)
        assert [await books.wallet.replay(first) for _ in range(2)] == [Replay.SERVED] * 2
        assert (await books.cut(caller)).charged_micro_mxn == UNIT
        ends = [(one.event_id, one.end, one.reason, one.amount_micro_mxn) for one in await books.events(caller)]
        ran_out = ("first", "expiry", "hold_expired", 0)
        assert sorted(ends) == sorted(
            [*([ran_out] if hold == "run out" else []), ("second", "charge", "delivered", UNIT)]
        )


async def test_a_retry_that_ran_as_new_stands_for_one_lost_order_and_not_for_two(
    redis_url: str, tmp_path: Path
) -> None:
    """Two lost orders in the journals, one retry that was charged: one is recorded at zero, the other is charged."""
    async with open_books(redis_url, tmp_path / "ledger.db") as books:
        caller = await books.org(mxn="50.00")
        assert (await books.admit(caller, "retry", identity=OrderIdentity("same", tries=1))).verdict is Verdict.ADMITTED
        await books.settle(caller, "retry")
        done = [
            await books.wallet.replay(answered(caller, name, 1, OrderIdentity("same"), client_gone=True))
            for name in ("a", "b", "a")
        ]
        assert done == [Replay.SERVED, Replay.NOW, Replay.SERVED]
        assert (await books.cut(caller)).charged_micro_mxn == 2 * UNIT


async def test_a_retry_of_what_was_refused_stands_for_no_lost_order(redis_url: str, tmp_path: Path) -> None:
    """It was never admitted before: an identical order in a journal is charged in addition."""
    async with open_books(redis_url, tmp_path / "ledger.db") as books:
        caller = await books.org(mxn="50.00")
        await books.accounts.set_limits(caller.org_id, {"in_flight": 1})
        await books.admit(caller, "other")
        refused = await books.admit(caller, "refused", identity=OrderIdentity("same", tries=0))
        assert refused.verdict is Verdict.IN_FLIGHT
        await books.settle(caller, "other")
        assert (await books.admit(caller, "retry", identity=OrderIdentity("same", tries=1))).verdict is Verdict.ADMITTED
        await books.settle(caller, "retry")
        lost = answered(caller, "lost", 1, OrderIdentity("same"), client_gone=True)
        assert await books.wallet.replay(lost) is Replay.NOW
        assert (await books.cut(caller)).charged_micro_mxn == 3 * UNIT


@pytest.mark.rule(11)
async def test_a_200_that_may_have_arrived_is_charged_whatever_was_given_for_it(redis_url: str, tmp_path: Path) -> None:
    """Without a key nobody knows whether a retry replaces it: it is given up only if its client was gone (11)."""
    async with open_books(redis_url, tmp_path / "ledger.db") as books:
        caller = await books.org(mxn="50.00")
        assert (await books.admit(caller, "retry", identity=OrderIdentity("same", tries=1))).verdict is Verdict.ADMITTED
        await books.settle(caller, "retry")
        assert await books.wallet.replay(answered(caller, "a", 1, OrderIdentity("same"))) is Replay.NOW
        assert (await books.cut(caller)).charged_micro_mxn == 2 * UNIT
