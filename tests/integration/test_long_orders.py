"""Long orders in a real Valkey: one owner at a time, parts, cancels, and what an unknown end keeps (rule 35)."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from metering.clock import period_at, unix_us_at
from metering.events import ADMISSION_UNREAD
from metering.money import parse_mxn
from metering.pricing import FxRate
from metering.wallet import keys
from metering.wallet.long_orders import NOBODY, Adopted, Cancel, Left, LongOrders, Noted, Part
from metering.wallet.values import Caller, Close, Closing, LongTerms, OrderIdentity, Verdict
from metering.wallet.wallet import Wallet
from proxy.orders.admission import Duplicate
from proxy.orders.adoptions import Adoptions
from proxy.orders.replay import Replay as Joins
from proxy.orders.result import Delivery, Result, encode
from tests.kits.books import LIMITS, NOON, Books, drain, dump, open_books, pictures, pinned

HOLD_S, MADE_S = 600.0, 580.0
TERMS = LongTerms(b'{"order": 1}', MADE_S)
KEYED = OrderIdentity("equal", key_hash="k")
REMEMBER_S, MAX_UNPAID = LIMITS.remember_s, LIMITS.max_unpaid_micro_mxn
QUEUE, SYNC = Part("fal", 0, 1, '{"status_url":"…"}'), Part("openai", 0, 1)
HOUR_US = 3_600_000_000
ADOPTIONS_NEED = 6
"""What adoptions need besides, to go on with an order."""

A, B, C = (letter * 32 for letter in "abc")
"""Gateways, as holds name them."""


class Gateway:
    """One gateway's side of long orders, over the same Redis as another one's."""

    def __init__(self, books: Books, name: str) -> None:
        self.name = name
        self.orders = LongOrders(books.redis, name)
        self.incarnation = uuid4()
        self._books = books

    async def beat(self) -> None:
        """Say that it is alive."""
        await self._books.redis.set(keys.alive(self.name), b"1")

    async def die(self) -> None:
        """Say nothing any more."""
        await self._books.redis.delete(keys.alive(self.name))

    async def found(self, *made: str) -> list[Left]:
        """Look twice, as whoever declares somebody dead must."""
        await self.orders.left(made)
        return await self.orders.left(made)

    async def adopt(self, order_id: str, caller: Caller, dead: str, number: int = 7) -> Adopted | None:
        """Take an order over."""
        return await self.orders.adopt(Left(order_id, caller.org_id, dead), self.incarnation, number)

    async def settle(self, caller: Caller, order_id: str, images: int = 1) -> Closing:
        """Charge it."""
        wallet, stored = self._books.wallet, pictures(images, order_id)
        amount, latest_us = images * pinned().unit_micro_mxn, wallet.now_us() + 60_000_000
        return await wallet.settle(
            caller.org_id, order_id, amount, stored, latest_us=latest_us, owner=self.name, result=b"{}"
        )

    async def void(self, caller: Caller, order_id: str, reason: str) -> Close:
        """End it without a charge."""
        return (await self._books.wallet.void(caller.org_id, order_id, reason, owner=self.name)).close


@asynccontextmanager
async def shop(redis_url: str, tmp_path: Path) -> AsyncIterator[tuple[Books, Caller]]:
    """Books by the server's own time, as holds of long orders are looked at by it, and a customer."""
    async with open_books(redis_url, tmp_path / "l.db", now_us=0) as books:
        month = period_at(books.wallet.now_us()).month
        await books.ledger.add_rate(FxRate(month, Decimal("20.00"), "test"), datetime.now(UTC))
        yield books, await books.org(mxn="1000.00")


async def place(
    books: Books, caller: Caller, order_id: str, images: int = 1, identity: OrderIdentity | None = None, owner: str = A
) -> None:
    """Admit a long order of a gateway."""
    price = pinned(images, now_us=books.wallet.now_us())
    admission = await books.admit(caller, order_id, price, identity, life_s=HOLD_S, owner=owner, long=TERMS)
    assert admission.verdict is Verdict.ADMITTED


@pytest.mark.rule(35)
async def test_a_part_is_queued_then_begun_then_kept_with_its_handle(redis_url: str, tmp_path: Path) -> None:
    """`begin` makes it in progress, `untaken` queued again, and a later owner reads the handle that `note` left."""
    async with shop(redis_url, tmp_path) as (books, caller):
        mine = Gateway(books, A)
        await place(books, caller, "r", 5)
        status = await books.wallet.status_of(caller.org_id, "r")
        assert status is not None and (status.long, status.begun, status.held_micro_mxn) == (True, False, 4_200_000)
        second = replace(QUEUE, first=4)
        for part, begun in ((SYNC, True), (second, True)):
            assert await mine.orders.begin(caller.org_id, "r", part) is Noted.OURS
            status = await books.wallet.status_of(caller.org_id, "r")
            assert status is not None and status.begun is begun
        assert await mine.orders.untaken(caller.org_id, "r", 0) is Noted.OURS
        assert await mine.orders.untaken(caller.org_id, "r", 0) is Noted.OURS  # once more changes nothing
        status = await books.wallet.status_of(caller.org_id, "r")
        assert status is not None and status.begun
        assert await mine.orders.untaken(caller.org_id, "r", 4) is Noted.OURS
        status = await books.wallet.status_of(caller.org_id, "r")
        assert status is not None and not status.begun
        assert await mine.orders.begin(caller.org_id, "r", SYNC) is Noted.OURS
        assert await mine.orders.note(caller.org_id, "r", second) is Noted.OURS
        assert await mine.orders.release(caller.org_id, "r", ())
        adopted = await Gateway(books, B).adopt("r", caller, NOBODY)
        assert adopted is not None and set(adopted.parts) == {SYNC, second}
        kept = await mine.orders.read(Left("r", caller.org_id, NOBODY))
        assert kept is not None and (kept.document, kept.opened) == (TERMS.document, adopted.opened)
        assert adopted.key_id == caller.key_id
        assert adopted.until_us == adopted.admitted_us + MADE_S * 1_000_000
        assert adopted.ends_us == adopted.admitted_us + HOLD_S * 1_000_000


class Numbers:
    """A journal that gives numbers to what is taken over."""

    incarnation = uuid4()

    async def take_over(self, order_id: str) -> int:
        return 7

    def let_go(self, number: int) -> None:
        assert number == 7


@pytest.mark.rule(9, 35)
async def test_an_order_that_no_gateway_has_begun_is_void_when_it_is_found(redis_url: str, tmp_path: Path) -> None:
    """Its admission's answer was lost and its customer told so, and then its gateway died: nobody makes it."""
    async with shop(redis_url, tmp_path) as (books, caller):
        dead, heir = Gateway(books, A), Gateway(books, B)
        nothing: Any = None
        numbers: Any = Numbers()
        adoptions = Adoptions(heir.orders, books.wallet, numbers, *(nothing,) * ADOPTIONS_NEED)
        await place(books, caller, "unheard")
        await adoptions._go_on(Left("unheard", caller.org_id, A), nothing, nothing, nothing, nothing, nothing)
        status = await books.wallet.status_of(caller.org_id, "unheard")
        assert status is not None and (status.end, status.reason) == ("void", ADMISSION_UNREAD)
        await place(books, caller, "begun")
        assert await dead.orders.begin(caller.org_id, "begun", QUEUE) is Noted.OURS
        assert await dead.orders.untaken(caller.org_id, "begun", QUEUE.first) is Noted.OURS
        await place(books, caller, "let go")
        assert await dead.orders.release(caller.org_id, "let go", ())
        for order_id, owner in (("begun", A), ("let go", NOBODY)):
            adopted = await heir.adopt(order_id, caller, owner)
            assert adopted is not None and adopted.taken


@pytest.mark.rule(35)
async def test_an_order_that_is_let_go_is_found_at_once_and_a_dead_ones_at_the_second_look(
    redis_url: str, tmp_path: Path
) -> None:
    """A living owner's never; and a Redis that has lost every sign of life makes nobody dead at the first look."""
    async with shop(redis_url, tmp_path) as (books, caller):
        one, other, looking = (Gateway(books, name) for name in (A, B, C))
        await one.beat()
        await place(books, caller, "lives", owner=A)
        await place(books, caller, "dead", owner=B)
        await place(books, caller, "free", owner=A)
        assert await one.orders.release(caller.org_id, "free", ())
        assert not await one.orders.release(caller.org_id, "free", ())
        free, dead = Left("free", caller.org_id, NOBODY), Left("dead", caller.org_id, B)
        assert await looking.orders.left(()) == [free]
        await other.beat()
        assert await looking.orders.left(()) == [free]
        await other.die()
        assert await looking.orders.left(()) == [free]
        assert {order.order_id for order in await looking.orders.left(())} == {free.order_id, dead.order_id}


@pytest.mark.rule(35)
async def test_one_adopter_wins_and_a_lost_answer_is_found_again(redis_url: str, tmp_path: Path) -> None:
    """Of twenty that ask at once one has it; if it did not hear so, its own next looks find the order."""
    async with shop(redis_url, tmp_path) as (books, caller):
        await place(books, caller, "r")
        heirs = [Gateway(books, f"{number:032x}") for number in range(20)]
        answers = await asyncio.gather(*(heir.adopt("r", caller, A) for heir in heirs))
        ((winner, adopted),) = [(heir, got) for heir, got in zip(heirs, answers, strict=True) if got is not None]
        assert adopted.order_id == "r"
        await winner.beat()
        assert await winner.found("r") == []  # it is made there
        assert await winner.found() == [Left("r", caller.org_id, winner.name)]  # it is not: the answer was lost
        assert await heirs[0 if winner is not heirs[0] else 1].found() == []
        again = await winner.adopt("r", caller, winner.name, number=8)
        assert again is not None and again.admitted_us == adopted.admitted_us
        assert (await winner.settle(caller, "r")).close is Close.CHARGED
        (event,) = await books.events(caller)
        assert event.handed == f"{winner.incarnation}:7 {winner.incarnation}:8"
        assert await winner.found() == []


@pytest.mark.rule(9, 35)
@pytest.mark.parametrize("charged_before", [False, True])
async def test_an_old_owner_neither_charges_nor_voids_nor_notes(
    redis_url: str, tmp_path: Path, charged_before: bool
) -> None:
    """Before the new owner's charge and after it: NOT_OWNER, or the charge that stands, and nothing is written."""
    async with shop(redis_url, tmp_path) as (books, caller):
        old, new = Gateway(books, A), Gateway(books, B)
        await place(books, caller, "r", 2)
        assert await old.orders.begin(caller.org_id, "r", QUEUE) is Noted.OURS
        assert await new.adopt("r", caller, A) is not None
        if charged_before:
            assert (await new.settle(caller, "r", 2)).close is Close.CHARGED
        before = dump(redis_url)
        assert (await old.settle(caller, "r", 1)).close is Close.NOT_OWNER
        assert await old.void(caller, "r", "deadline") is (Close.CHARGED if charged_before else Close.NOT_OWNER)
        for note in (old.orders.begin, old.orders.note):
            assert await note(caller.org_id, "r", replace(QUEUE, first=1)) is Noted.GONE
        assert await old.orders.untaken(caller.org_id, "r", 0) is Noted.GONE
        assert not await old.orders.release(caller.org_id, "r", ())
        assert await Gateway(books, C).adopt("r", caller, A) is None
        assert dump(redis_url) == before
        assert (await new.settle(caller, "r", 2)).close is Close.CHARGED  # the first time, or again
        (event,) = await books.events(caller)
        assert (event.quantity, event.handed) == (2, f"{new.incarnation}:7")
        assert (await books.cut(caller)).charged_micro_mxn == 2 * pinned().unit_micro_mxn


@pytest.mark.rule(35)
async def test_what_has_ended_or_run_out_is_adopted_by_nobody(redis_url: str, tmp_path: Path) -> None:
    """And it is not on the list any more; the order of an organisation that is being rebuilt waits."""
    async with shop(redis_url, tmp_path) as (books, caller):
        heir, names = Gateway(books, B), keys.OrgKeys(caller.org_id)
        await place(books, caller, "ended")
        assert await Gateway(books, A).void(caller, "ended", "fault") is Close.VOIDED
        assert await heir.adopt("ended", caller, A) is None
        await place(books, caller, "over")
        await books.redis.zadd(names.open, {"over": books.wallet.now_us()})
        assert await heir.adopt("over", caller, A) is None
        await place(books, caller, "waits")
        mark = await books.redis.get(names.mark)
        assert mark is not None
        await books.redis.delete(names.mark)
        assert await heir.adopt("waits", caller, A) is None
        await books.redis.set(names.mark, mark)
        assert await heir.adopt("waits", caller, A) is not None
        await books.redis.hset(names.long, "lost", f"{caller.org_id} {A}")  # its hold is gone
        assert await heir.adopt("lost", caller, A) is None
        assert await heir.orders.read(Left("lost", caller.org_id, A)) is None
        assert set(await books.redis.hkeys(names.long)) == {b"waits"}
        await books.redis.hset(names.long, "damaged", b"\xff")
        assert await heir.found("waits") == []


@pytest.mark.rule(9, 17)
async def test_a_cancel_before_a_provider_has_it_is_void_and_frees_the_key(redis_url: str, tmp_path: Path) -> None:
    """The owner's next note is GONE, its close changes nothing, and the key may be used for another order."""
    async with shop(redis_url, tmp_path) as (books, caller):
        mine = Gateway(books, A)
        await place(books, caller, "r", identity=KEYED)
        assert await mine.orders.cancel(caller.org_id, "r", REMEMBER_S, MAX_UNPAID) == (Cancel.CANCELLED, ())
        before = dump(redis_url)
        assert await mine.orders.cancel(caller.org_id, "r", REMEMBER_S, MAX_UNPAID) == (Cancel.CANCELLED, ())
        assert await mine.orders.begin(caller.org_id, "r", QUEUE) is Noted.GONE
        assert (await mine.settle(caller, "r")).close is Close.REFUSED
        assert await mine.void(caller, "r", "deadline") is Close.VOIDED
        assert dump(redis_url) == before
        (event,) = await books.events(caller)
        assert (event.end, event.reason, event.amount_micro_mxn) == ("void", "cancelled", 0)
        assert (await books.cut(caller)).held_micro_mxn == 0
        assert await unpaid(books, caller) == 0
        await place(books, caller, "again", identity=replace(KEYED, fingerprint="another"))


@pytest.mark.rule(35)
async def test_a_cancel_asks_a_queue_and_stops_further_parts(redis_url: str, tmp_path: Path) -> None:
    """Without a handle nobody can confirm it: it runs. With one it is asked, and no other part begins."""
    async with shop(redis_url, tmp_path) as (books, caller):
        mine = Gateway(books, A)
        await place(books, caller, "r", 8)
        begun = replace(QUEUE, handle="")
        assert await mine.orders.begin(caller.org_id, "r", begun) is Noted.OURS
        assert await mine.orders.cancel(caller.org_id, "r", REMEMBER_S, MAX_UNPAID) == (Cancel.RUNS, (begun,))
        assert await mine.orders.note(caller.org_id, "r", QUEUE) is Noted.OURS
        assert await mine.orders.cancel(caller.org_id, "r", REMEMBER_S, MAX_UNPAID) == (Cancel.ASKED, (QUEUE,))
        assert await mine.orders.begin(caller.org_id, "r", replace(QUEUE, first=4)) is Noted.CANCELLED
        assert await mine.orders.untaken(caller.org_id, "r", 0) is Noted.OURS  # then the try after it is told
        assert await mine.orders.begin(caller.org_id, "r", begun) is Noted.CANCELLED
        assert await mine.void(caller, "r", "cancelled") is Close.VOIDED
        assert await mine.orders.cancel(caller.org_id, "r", REMEMBER_S, MAX_UNPAID) == (Cancel.CANCELLED, ())


@pytest.mark.rule(9)
async def test_what_is_awaited_charged_void_or_unknown_is_not_cancelled(redis_url: str, tmp_path: Path) -> None:
    """And nothing is written; without a mark nobody knows."""
    async with shop(redis_url, tmp_path) as (books, caller):
        mine = Gateway(books, A)
        await books.admit(caller, "awaited", pinned(now_us=books.wallet.now_us()), life_s=HOLD_S)
        await place(books, caller, "charged")
        assert (await mine.settle(caller, "charged")).close is Close.CHARGED
        await place(books, caller, "void")
        assert await mine.void(caller, "void", "content_policy") is Close.VOIDED
        before = dump(redis_url)
        for order_id, answer in (("awaited", Cancel.AWAITED), ("charged", Cancel.ENDED), ("void", Cancel.ENDED)):
            assert await mine.orders.cancel(caller.org_id, order_id, REMEMBER_S, MAX_UNPAID) == (answer, ())
        assert await mine.orders.cancel(caller.org_id, "nobody's", REMEMBER_S, MAX_UNPAID) == (Cancel.ENDED, ())
        assert dump(redis_url) == before
        await books.redis.delete(keys.OrgKeys(caller.org_id).mark)
        assert await mine.orders.cancel(caller.org_id, "awaited", REMEMBER_S, MAX_UNPAID) == (Cancel.AWAY, ())


@pytest.mark.rule(9)
async def test_cancels_against_settlements_end_each_order_once(redis_url: str, tmp_path: Path) -> None:
    """Of 100 races on several connections each has one end: cancelled and uncharged, or charged."""
    async with shop(redis_url, tmp_path) as (books, caller):
        mine, ends = Gateway(books, A), []
        for number in range(100):
            await place(books, caller, f"r{number}")
            settling = mine.settle(caller, f"r{number}")
            cancelling = mine.orders.cancel(caller.org_id, f"r{number}", REMEMBER_S, MAX_UNPAID)
            if number % 2:
                settled, (cancelled, _) = await asyncio.gather(settling, cancelling)
            else:
                (cancelled, _), settled = await asyncio.gather(cancelling, settling)
            ends.append((settled.close, cancelled))
        assert set(ends) <= {(Close.CHARGED, Cancel.ENDED), (Close.REFUSED, Cancel.CANCELLED)}
        charged = sum(close is Close.CHARGED for close, _ in ends)
        events = await books.events(caller)
        assert (len(events), sum(event.end == "charge" for event in events)) == (100, charged)
        assert (await books.cut(caller)).charged_micro_mxn == charged * pinned().unit_micro_mxn


@pytest.mark.rule(17, 35)
async def test_an_unknown_end_keeps_the_key_until_the_hold_would_have_run_out(redis_url: str, tmp_path: Path) -> None:
    """Not the whole day of an awaited order: who is told that nobody knows can order again with the same key."""
    async with shop(redis_url, tmp_path) as (books, caller):
        names, mine = keys.OrgKeys(caller.org_id), Gateway(books, A)
        once = names.once("k")
        await place(books, caller, "r", identity=KEYED)
        assert await books.redis.ttl(once) > REMEMBER_S
        ends_us = await books.redis.zscore(names.open, "r")
        assert ends_us is not None
        assert await mine.orders.begin(caller.org_id, "r", SYNC) is Noted.OURS
        assert await mine.void(caller, "r", "lost") is Close.VOIDED
        assert abs(await books.redis.pexpiretime(once) - ends_us / 1000) < 2
        reused = await books.admit(caller, "again", pinned(now_us=books.wallet.now_us()), KEYED, life_s=HOLD_S)
        assert reused.verdict is Verdict.DUPLICATE
        assert reused.earlier is not None and (reused.earlier.end, reused.earlier.reason) == ("void", "lost")
        await books.redis.pexpireat(once, books.wallet.now_us() // 1000 - 1)  # the time passes
        await place(books, caller, "new", identity=KEYED)


async def unpaid(books: Books, caller: Caller) -> int:
    """What orders without a known end may have cost in all, in micro-MXN."""
    return (await books.wallet.read(caller.org_id)).unpaid_micro_mxn


@pytest.mark.rule(35)
async def test_unpaid_orders_are_counted_and_bounded_by_the_hour(redis_url: str, tmp_path: Path) -> None:
    """At the bound, with a tenth of the month's spend on top, the next order waits for the hour's end."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="1000.00")
        limits = replace(LIMITS, max_unpaid_micro_mxn=parse_mxn("1.68"))
        now_us = unix_us_at(NOON) + HOUR_US // 2
        wallet = Wallet(books.redis, limits, now_us)
        mine = Gateway(books, A)
        books = replace(books, wallet=wallet)
        mine._books = books
        for number in range(2):
            await place(books, caller, f"begun-{number}")
            assert await mine.orders.begin(caller.org_id, f"begun-{number}", SYNC) is Noted.OURS
            assert await mine.void(caller, f"begun-{number}", "deadline") is Close.VOIDED
        denied = await books.admit(caller, "denied", life_s=HOLD_S, long=TERMS)
        assert (denied.verdict, denied.retry_us) == (Verdict.UNPAID, HOUR_US // 2)
        assert (await books.admit(caller, "awaited")).verdict is Verdict.UNPAID
        assert await unpaid(books, caller) == parse_mxn("1.68")
        wallet.at(now_us + HOUR_US // 2)
        await place(books, caller, "not begun")
        assert await mine.void(caller, "not begun", "deadline") is Close.VOIDED
        await place(books, caller, "refused")
        assert await mine.orders.begin(caller.org_id, "refused", SYNC) is Noted.OURS
        assert await mine.void(caller, "refused", "content_policy") is Close.VOIDED
        assert await unpaid(books, caller) == parse_mxn("1.68")  # neither was made at our cost
        await place(books, caller, "away")
        assert await mine.orders.begin(caller.org_id, "away", SYNC) is Noted.OURS
        assert await mine.void(caller, "away", "no_answer") is Close.VOIDED
        assert await unpaid(books, caller) == parse_mxn("2.52")  # counted, but an outage bounds nobody
        # The month's spend of 84 MXN allows 8.40 more.
        await place(books, caller, "paid", 100)
        assert (await mine.settle(caller, "paid", 100)).close is Close.CHARGED
        await place(books, caller, "dear", 12)
        assert await mine.orders.begin(caller.org_id, "dear", SYNC) is Noted.OURS
        assert await mine.void(caller, "dear", "cancelled") is Close.VOIDED
        assert (await books.admit(caller, "denied", life_s=HOLD_S, long=TERMS)).verdict is Verdict.UNPAID


@pytest.mark.rule(35)
async def test_at_the_bound_what_has_begun_is_not_cancelled_and_what_has_not_is(redis_url: str, tmp_path: Path) -> None:
    """Many orders that are placed before the first one ends could be cancelled otherwise, however much they cost us."""
    async with shop(redis_url, tmp_path) as (books, caller):
        mine, bound = Gateway(books, A), parse_mxn("0.84")
        for order_id in ("lost", "begun", "waits"):
            await place(books, caller, order_id)
        for order_id in ("lost", "begun"):
            assert await mine.orders.begin(caller.org_id, order_id, QUEUE) is Noted.OURS
        assert await mine.void(caller, "lost", "deadline") is Close.VOIDED
        for order_id, most, answer in (
            ("begun", bound, (Cancel.RUNS, (QUEUE,))),
            ("waits", bound, (Cancel.CANCELLED, ())),
            ("begun", bound + 1, (Cancel.ASKED, (QUEUE,))),
        ):
            assert await mine.orders.cancel(caller.org_id, order_id, REMEMBER_S, most) == answer


@pytest.mark.rule(17)
async def test_a_slow_order_is_refused_unless_it_repeats_one(redis_url: str, tmp_path: Path) -> None:
    """Whoever asks with the key of a long order, and waits, joins it; a new one is told to be long."""
    async with shop(redis_url, tmp_path) as (books, caller):
        price = pinned(now_us=books.wallet.now_us())
        before = dump(redis_url)
        assert (await books.admit(caller, "slow", price, KEYED, slow=True)).verdict is Verdict.SLOW
        assert dump(redis_url) == before
        await place(books, caller, "long", identity=KEYED)
        for order_id, terms in (("waits", None), ("asks", TERMS)):
            joined = await books.admit(caller, order_id, price, KEYED, slow=terms is None, long=terms)
            assert joined.verdict is Verdict.DUPLICATE and joined.earlier is not None
            assert (joined.earlier.order_id, joined.earlier.end) == ("long", "open")
        other = await books.admit(caller, "other", price, replace(KEYED, fingerprint="other"), slow=True)
        assert other.verdict is Verdict.REUSED


@pytest.mark.rule(24, 25)
async def test_a_month_that_ends_and_a_rate_that_changes_are_not_the_orders(redis_url: str, tmp_path: Path) -> None:
    """Admitted in November's last minute at 20.00, and charged by an adopter in December: all is November's."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="20.00", micro_mxn_per_month=parse_mxn("8.40"))
        ends_us = unix_us_at(datetime(2036, 12, 1, 6, tzinfo=UTC))
        books.wallet.at(ends_us - 60_000_000)
        await place(books, caller, "r", 8)
        await books.ledger.add_rate(FxRate("2036-12", Decimal("40.00"), "test"), NOON)
        books.wallet.at(ends_us + 60_000_000)
        new = Gateway(books, B)
        assert await new.adopt("r", caller, A) is not None
        assert (await new.settle(caller, "r", 8)).close is Close.CHARGED
        await place(books, caller, "of december", 10)  # the budget of its month is whole
        (event,) = await books.events(caller)
        assert (event.opened.day, event.opened.month) == ("2036-11-30", "2036-11")
        assert (event.opened.proof.fx_month, event.opened.proof.mxn_per_usd) == ("2036-11", "20.00")
        assert (event.amount_micro_mxn, event.ended_us) == (parse_mxn("6.72"), ends_us + 60_000_000)
        await drain(books)
        (row,) = [one async for one in books.ledger.events(org_id=caller.org_id)]
        assert (row.opened.month, row.handed) == ("2036-11", f"{new.incarnation}:7")


async def joined(books: Books, caller: Caller) -> Delivery:
    """What a request under the same key that waits is given."""
    price = pinned(now_us=books.wallet.now_us())
    again = await books.admit(caller, "again", price, KEYED, life_s=HOLD_S, owner=C)
    assert again.verdict is Verdict.DUPLICATE and again.earlier is not None
    duplicate = Duplicate(caller, KEYED, "again", again.earlier, 0, time.monotonic() + 5.0, {})
    return await Joins(books.wallet, books.ledger).of(duplicate)


@pytest.mark.rule(17, 35)
@pytest.mark.parametrize("let_go", [True, False])
async def test_who_waits_for_an_order_of_a_gateway_that_has_gone_is_given_what_its_adopter_makes(
    redis_url: str, tmp_path: Path, let_go: bool
) -> None:
    """Between the two nobody owns it, or somebody dead does: it is no order that nobody makes."""
    async with shop(redis_url, tmp_path) as (books, caller):
        await place(books, caller, "r", identity=KEYED)
        if let_go:
            await Gateway(books, A).orders.release(caller.org_id, "r", ())
        waiting = asyncio.create_task(joined(books, caller))
        done, _ = await asyncio.wait({waiting}, timeout=0.5)
        assert not done, waiting.exception()
        heir, images = Gateway(books, B), pictures(1, "r")
        assert await heir.adopt("r", caller, NOBODY if let_go else A) is not None
        made = Result("r", 1, "m", "m", {}, None, (None,), pinned().unit_micro_mxn, images)
        latest_us = books.wallet.now_us() + 60_000_000
        closing = await books.wallet.settle(
            caller.org_id,
            "r",
            made.cost_micro_mxn,
            images,
            latest_us=latest_us,
            owner=heir.name,
            result=encode(made),
        )
        assert closing.close is Close.CHARGED
        assert (await waiting).result == made


@pytest.mark.rule(5)
async def test_an_order_that_has_run_out_is_known_as_that_before_its_end_is_recorded(
    redis_url: str, tmp_path: Path
) -> None:
    """To its organisation only; the consumer records it, and may be away."""
    async with shop(redis_url, tmp_path) as (books, caller):
        other = await books.org("other")
        await place(books, caller, "r")
        books.wallet.at(books.wallet.now_us() + int(HOLD_S * 1_000_000) + 1_000_000)
        status = await books.wallet.status_of(caller.org_id, "r")
        assert status is not None and (status.end, status.key_id) == ("expiry", caller.key_id)
        assert await books.wallet.status_of(other.org_id, "r") is None
