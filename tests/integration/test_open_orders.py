"""Orders that are answered, until the ledger has them: each by itself, uncharged ones first, in little memory."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from metering.answered import AnsweredOrder, encode
from metering.clock import utc_now
from metering.journal import open_orders as answers_module
from metering.journal.file import Journal, JournalFailed, Keep
from metering.journal.frames import Folder
from metering.journal.open_orders import OpenOrders
from metering.journal.recovery import Recovery
from metering.ports import Act, LedgerAway, SetAside
from metering.wallet.keys import OrgKeys
from metering.wallet.presence import Presence
from metering.wallet.values import OrderIdentity, Replay
from tests.integration.test_replay import answered
from tests.kits.backups import backup
from tests.kits.books import (
    NOW_US,
    SECOND_US,
    UNIT,
    Books,
    drain,
    forget_kept,
    make_groups,
    open_books,
)

SEGMENT = 64 * 1024
LATE_US = NOW_US + 13 * 3600 * SECOND_US
"""When Redis may soon forget how an order ended that is scripted for now."""


@asynccontextmanager
async def open_answers(books: Books, path: Path) -> AsyncIterator[OpenOrders]:
    """Answers over a journal of their own, registered in the ledger."""
    folder = Folder(path)
    journal = Journal(folder, SEGMENT)
    open_orders = OpenOrders(journal, books.wallet, books.ledger, Presence(books.redis))
    await open_orders.begin(utc_now())
    try:
        yield open_orders
    finally:
        await journal.close()
        folder.close()


async def confirm(open_orders: OpenOrders, order: AnsweredOrder, *, charged: bool) -> None:
    open_orders.confirm(await open_orders.note(encode(order)), order.org_id, order.order_id, charged=charged)


async def unproven(books: Books, name: str) -> AnsweredOrder:
    """A charged order, half a day later, whose event nobody has booked: nothing can be said of it."""
    caller = await books.org(name, mxn="8.40")
    await books.charge(caller, f"{name}-r", 2)
    return answered(caller, f"{name}-r")


@pytest.mark.rule(30)
async def test_an_order_that_cannot_be_proven_holds_up_no_other(redis_url: str, tmp_path: Path) -> None:
    """Its event waits or was set aside; another organisation's answered order is charged all the same (rule 30)."""
    async with (
        open_books(redis_url, tmp_path / "l.db") as books,
        open_answers(books, tmp_path / "j") as open_orders,
    ):
        stuck, other = await unproven(books, "a"), await books.org("b")
        books.wallet.at(LATE_US)
        await confirm(open_orders, stuck, charged=False)
        await confirm(open_orders, replace(answered(other, "b-r"), ended_us=LATE_US), charged=False)
        await open_orders.round()
        assert (await books.cut(other)).charged_micro_mxn == 2 * UNIT
        assert open_orders.waiting == 2


@pytest.mark.rule(30)
@pytest.mark.parametrize("charged", [True, False])
async def test_an_order_whose_event_was_set_aside_is_let_go(redis_url: str, tmp_path: Path, charged: bool) -> None:
    """A person has it in hand now: it keeps no file of the journal, and no gateway from closing it (rule 30)."""
    async with (
        open_books(redis_url, tmp_path / "l.db") as books,
        open_answers(books, tmp_path / "j") as open_orders,
    ):
        order = await unproven(books, "a")
        await confirm(open_orders, order, charged=charged)
        await books.ledger.book([], [SetAside(1, "1-0", "x", b"{}", order.order_id, order.org_id)], utc_now())
        await open_orders.round()
        assert open_orders.waiting == 0


@pytest.mark.rule(30)
async def test_an_order_that_cannot_be_proven_holds_up_no_other_journal(redis_url: str, tmp_path: Path) -> None:
    """It belongs to a dead gateway: the rest of its journal, and the journals after it, come to their end (rule 30)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        stuck, others = await unproven(books, "a"), [await books.org(name) for name in ("b", "c")]
        books.wallet.at(LATE_US)
        late = [replace(answered(caller, f"{caller.key_id}-r"), ended_us=LATE_US) for caller in others]
        for place, orders in enumerate(([stuck, late[0]], [late[1]])):
            folder = Folder(tmp_path / str(place))
            journal = Journal(folder, SEGMENT)
            journal.registered = True
            await books.ledger.open_incarnation(journal.incarnation, utc_now())
            for order in orders:
                await journal.append(encode(order))
            await journal.close()
            folder.close()
        folders = [Folder(tmp_path / name) for name in "01"]
        recovery = Recovery([past for folder in folders for past in folder.past()], books.wallet, books.ledger)
        await recovery.round()
        assert [(await books.cut(caller)).charged_micro_mxn for caller in others] == [2 * UNIT] * 2
        await make_groups(books.redis)
        consumer = books.consumer()
        while await consumer.round():
            pass
        while recovery.left:
            assert not await recovery.round()
        assert await books.ledger.open_incarnations() == []
        for folder in folders:
            folder.close()


async def test_an_uncharged_order_goes_before_all_that_are_charged(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of those wait for the consumer: as long as it waits, its money may be spent again."""
    monkeypatch.setattr(answers_module, "BATCH", 20)
    async with (
        open_books(redis_url, tmp_path / "l.db") as books,
        open_answers(books, tmp_path / "j") as open_orders,
    ):
        caller = await books.org(mxn="100.00")
        for number in range(60):
            await books.charge(caller, f"r{number}")
            await confirm(open_orders, answered(caller, f"r{number}", 1), charged=True)
        await confirm(open_orders, answered(caller, "uncharged", 1), charged=False)
        await open_orders.round()
        assert (await books.cut(caller)).charged_micro_mxn == 61 * UNIT
        await make_groups(books.redis)
        consumer = books.consumer()
        while await consumer.round():
            pass
        await open_orders.round()
        assert open_orders.waiting == 0


@pytest.mark.rule(8)
async def test_a_charge_that_redis_has_lost_is_not_hidden_by_older_ones(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many wait for the consumer, each has its turn: what a failover forgot is charged once more (rule 8)."""
    monkeypatch.setattr(answers_module, "BATCH", 20)
    monkeypatch.setattr(answers_module, "SETTLED_S", 0.0)
    async with (
        open_books(redis_url, tmp_path / "l.db") as books,
        open_answers(books, tmp_path / "j") as open_orders,
    ):
        caller = await books.org(mxn="100.00")
        for number in range(40):
            await books.charge(caller, f"r{number}")
            await confirm(open_orders, answered(caller, f"r{number}", 1), charged=True)
        await confirm(open_orders, answered(caller, "lost", 1), charged=True)
        for _ in range(3):  # a page each
            await open_orders.round()
        assert (await books.cut(caller)).charged_micro_mxn == 41 * UNIT


async def test_race_rounds_at_once(redis_url: str, tmp_path: Path) -> None:
    """At a stop two look at the same orders: one after the other, and none is let go twice."""
    async with (
        open_books(redis_url, tmp_path / "l.db") as books,
        open_answers(books, tmp_path / "j") as open_orders,
    ):
        caller = await books.org(mxn="100.00")
        await make_groups(books.redis)
        consumer = books.consumer()
        for turn in range(10):
            for number in range(5):
                await books.charge(caller, f"r{turn}-{number}")
                await confirm(open_orders, answered(caller, f"r{turn}-{number}", 1), charged=True)
            while await consumer.round():
                pass
            await asyncio.gather(*(open_orders.round() for _ in range(4)))
            assert open_orders.waiting == 0


@pytest.mark.rule(30)
async def test_an_old_order_that_waits_does_not_keep_every_later_file(redis_url: str, tmp_path: Path) -> None:
    """It is written again at the end, and what lies behind it goes (rule 30)."""
    async with (
        open_books(redis_url, tmp_path / "l.db") as books,
        open_answers(books, tmp_path / "j") as open_orders,
    ):
        stuck, caller = await unproven(books, "a"), await books.org("b", mxn="900.00")
        books.wallet.at(LATE_US)
        await confirm(open_orders, stuck, charged=True)
        late = books.wallet.now_us()
        for number in range(400):
            order = replace(answered(caller, f"r{number}", 8), admitted_us=late, ended_us=late)
            await confirm(open_orders, order, charged=False)
        await open_orders.round()
        files = len(list((tmp_path / "j").glob("*.journal")))
        await books.ledger.book([one for one in await books.events(caller)], [], utc_now())
        await open_orders.round()
        await open_orders.round()
        assert open_orders.waiting == 1
        assert len(list((tmp_path / "j").glob("*.journal"))) <= 3 < files


@pytest.mark.rule(15)
async def test_a_journal_is_closed_only_by_a_ledger_that_says_so(redis_url: str, tmp_path: Path) -> None:
    """A ledger that is busy at the end: the files stay, and the next start closes the incarnation (rule 15)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        await books.org()
        folder = Folder(tmp_path / "j")
        journal = Journal(folder, SEGMENT)
        open_orders = OpenOrders(journal, books.wallet, books.ledger, Presence(books.redis))
        await open_orders.begin(utc_now())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(books.ledger, "close_incarnation", busy)
            with pytest.raises(LedgerAway):
                await open_orders.end(utc_now())
        await journal.close()
        folder.close()
        assert await books.ledger.open_incarnations() == [journal.incarnation]
        folder = Folder(tmp_path / "j")
        recovery = Recovery(folder.past(), books.wallet, books.ledger)
        assert not await recovery.round()
        assert await books.ledger.open_incarnations() == []
        folder.close()
        assert list((tmp_path / "j").glob("*.journal")) == []


async def test_a_journal_is_not_closed_by_a_ledger_that_was_restored_meanwhile(redis_url: str, ledger_url: str) -> None:
    """Orders that were there a moment ago are checked in the step that closes: between two steps they can disappear."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        incarnation = uuid4()
        await books.ledger.open_incarnation(incarnation, utc_now())
        await books.charge(caller, "there")
        await drain(books)
        assert not await books.ledger.close_incarnation(incarnation, 2, utc_now(), ["there", "gone"])
        assert await books.ledger.open_incarnations() == [incarnation]
        assert await books.ledger.close_incarnation(incarnation, 2, utc_now(), ["there"])
        assert await books.ledger.open_incarnations() == []


@pytest.mark.rule(30)
@pytest.mark.parametrize("gateway", ["lives", "is gone"])
async def test_a_restored_ledger_is_brought_what_a_journal_keeps(
    redis_url: str, ledger_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gateway: str
) -> None:
    """Redis keeps nothing any more, and its wallet was rebuilt from the backup.

    Each answered order is charged once more, and only once, also if it is checked again and again (rule 30).
    """
    monkeypatch.setattr(answers_module, "SETTLED_S", 0.0)
    keep = Keep(3600.0, 2**30)
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org(mxn="8.40")
        copy = backup(ledger_url)
        folder = Folder(tmp_path / "j")
        journal = Journal(folder, SEGMENT, keep)
        open_orders = OpenOrders(journal, books.wallet, books.ledger, Presence(books.redis))
        await open_orders.begin(utc_now())
        for number in range(3):
            await books.charge(caller, f"r{number}")
            await confirm(open_orders, answered(caller, f"r{number}", 1), charged=True)
        await drain(books)
        await open_orders.round()
        assert open_orders.waiting == 0
        if gateway == "is gone":
            await open_orders.end(utc_now())
            await journal.close()
        await forget_kept(books.redis)
    async with open_books(redis_url, copy, projected=False) as books:
        await books.projector.round()
        assert (await books.cut(caller)).charged_micro_mxn == 0
        recovery = Recovery(folder.past() if gateway == "is gone" else [], books.wallet, books.ledger, keep)
        open_orders._wallet, open_orders._ledger = books.wallet, books.ledger
        for _ in range(5):
            if gateway == "lives":
                await open_orders.round()
            await recovery.round()
            await books.projector.round()
            await drain(books)
            await books.projector.round()
        cut = await books.cut(caller)
        assert (cut.charged_micro_mxn, cut.available_micro_mxn) == (3 * UNIT, 7 * UNIT)
        charges = [event.event_id async for event in books.ledger.events(org_id=caller.org_id)]
        assert sorted(charges) == ["r0", "r1", "r2"]
        gone = await books.redis.hget(OrgKeys(caller.org_id).wallet, "gone_charged")
        assert int(gone or 0) == 0 and open_orders.waiting == recovery.left == 0
        if gateway == "lives":
            await journal.close()
        folder.close()


@pytest.mark.rule(14)
async def test_a_journal_of_which_nothing_is_left_is_not_closed_in_silence(redis_url: str, tmp_path: Path) -> None:
    """Its only file is all zeros: one that was registered had begun it; a start that died before had not (rule 14)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        for registered in (True, False):
            folder = Folder(tmp_path / str(registered))
            journal = Journal(folder, SEGMENT)
            open_orders = OpenOrders(journal, books.wallet, books.ledger, Presence(books.redis))
            if registered:
                await open_orders.begin(utc_now())
                await journal.append(b"an order")
            journal.registered = True
            await journal.close()
            (file,) = (tmp_path / str(registered)).glob("*.journal")
            file.write_bytes(bytes(SEGMENT))
            recovery = Recovery(folder.past(), books.wallet, books.ledger)
            assert bool(await recovery.round()) is registered
            assert (await books.ledger.open_incarnations() == [journal.incarnation]) is registered
            if registered:
                act = Act("test", "journal.close", str(journal.incarnation))
                await books.ledger.lose_incarnation(journal.incarnation, "all zeros", utc_now(), act)
                assert not await recovery.round()
            assert recovery.left == 0
            folder.close()


@pytest.mark.rule(12, 30)
async def test_race_two_replay_what_a_restored_ledger_lacks(redis_url: str, tmp_path: Path) -> None:
    """Each with the same proof at the same moment: it is charged once more, and not twice (rules 12, 30)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="8.40")
        await books.charge(caller, "r", 2)
        order = answered(caller, "r", 2)
        for _ in range(2):  # it may be lost again
            number = (await books.cut(caller)).number
            again = await asyncio.gather(*(books.wallet.replay(order, lost_up_to=number) for _ in range(4)))
            assert sorted(again) == [Replay.CHARGED] * 3 + [Replay.NOW]


@pytest.mark.rule(19)
@pytest.mark.parametrize("late", [False, True])
async def test_an_order_that_was_served_again_is_never_charged(redis_url: str, tmp_path: Path, late: bool) -> None:
    """Its key gave another order that is charged: at zero, however late its journal comes; and nothing brings it again,
    not even when Redis has forgotten all that (rule 19)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        await make_groups(books.redis)
        caller, identity = await books.org(mxn="8.40"), OrderIdentity("f", key_hash="k")
        await books.admit(caller, "other", identity=identity)
        await books.settle(caller, "other")
        await drain(books)
        if late:
            books.wallet.at(LATE_US)
        folder = Folder(tmp_path / "j")
        journal = Journal(folder, SEGMENT)
        open_orders = OpenOrders(journal, books.wallet, books.ledger, Presence(books.redis))
        await open_orders.begin(utc_now())
        await confirm(open_orders, answered(caller, "first", 1, identity), charged=False)
        await open_orders.round()
        assert open_orders.waiting == 0
        await journal.close()  # as if it were killed: the ledger has it as open
        await books.redis.delete(*await books.redis.keys("*:closed:*"), *await books.redis.keys("*:once:*"))
        recovery = Recovery(folder.past(), books.wallet, books.ledger)
        assert not await recovery.round()
        assert recovery.left == 0 and (await books.cut(caller)).charged_micro_mxn == UNIT
        folder.close()


@pytest.mark.rule(8)
async def test_a_withdrawal_that_the_disk_refuses_is_made_again(redis_url: str, tmp_path: Path) -> None:
    """Until the disk takes it: or a replay would charge what was answered with an error (rule 8)."""
    async with (
        open_books(redis_url, tmp_path / "l.db") as books,
        open_answers(books, tmp_path / "j") as open_orders,
    ):
        caller = await books.org()
        number = await open_orders.note(encode(answered(caller, "r", 1)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fdatasync", broken)
            with pytest.raises(JournalFailed):
                await open_orders.withdraw(number, "r")
            with pytest.raises(JournalFailed):
                await open_orders.round()
        await open_orders.round()
        await open_orders.end(utc_now())
        assert await books.ledger.open_incarnations() == []


def broken(_: int) -> None:
    raise OSError(5, "Input/output error")


async def test_journals_that_are_kept_are_let_alone(redis_url: str, tmp_path: Path) -> None:
    """The ledger had all of a closed one: nothing in it is asked for again, whatever its last order became."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller, keep = await books.org(), Keep(3600.0, 2**20)
        folder = Folder(tmp_path / "j")
        journal = Journal(folder, SEGMENT, keep)
        open_orders = OpenOrders(journal, books.wallet, books.ledger, Presence(books.redis))
        await open_orders.begin(utc_now())
        await open_orders.withdraw(await open_orders.note(encode(answered(caller, "withdrawn", 1))), "withdrawn")
        await open_orders.end(utc_now())
        await journal.close()
        recovery = Recovery(folder.past(), books.wallet, books.ledger, keep)
        for _ in range(3):
            assert not await recovery.round()
            await recovery.look_back()
            assert recovery.left == 0
        assert (await books.cut(caller)).charged_micro_mxn == 0
        assert len(folder.past()) == 1
        folder.close()


async def busy(*_: object) -> None:
    raise LedgerAway("database is locked")


MEASURE = """
import asyncio, resource, sys, time
from pathlib import Path
from metering.answered import encode
from metering.journal.open_orders import OpenOrders
from metering.journal.frames import Folder
from metering.journal.file import Journal, JournalFailed, Keep
from metering.wallet.values import Caller
from tests.integration.test_replay import answered
from dataclasses import replace
from uuid import uuid4

def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

async def main():
    folder = Folder(Path(sys.argv[1]))
    open_orders = OpenOrders(Journal(folder), None, None, None)
    caller = Caller(str(uuid4()), "key_1")
    order = replace(answered(caller, "r", 8), result=b'"%s"' % (b"x" * 1_500))

    async def one():
        entry = replace(order, order_id=str(uuid4()))
        open_orders.confirm(await open_orders.note(encode(entry)), caller.org_id, entry.order_id, charged=True)

    count = int(sys.argv[2])
    await asyncio.gather(*(one() for _ in range(200)))
    before = rss()
    for _ in range(count // 200):
        await asyncio.gather(*(one() for _ in range(200)))
    print((rss() - before) / count)

asyncio.run(main())
"""


def test_an_unbooked_answer_costs_little_memory(tmp_path: Path) -> None:
    """Under 1.5 kB each, so 100,000 cost under 150 MB; all else is read from the journal when it is needed."""
    count = 20_000
    command = [sys.executable, "-c", MEASURE, str(tmp_path), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert float(done.stdout) < 1_500, done.stdout
