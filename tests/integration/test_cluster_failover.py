"""A master of the cluster dies, freezes, or hands over under load: what is away, for how long, and that the books are
right afterwards without a restart of anything (rules 1, 6, 10, 27 and 29)."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import MovedError, RedisError

from metering.background import cancel_all
from metering.wallet import keys
from metering.wallet.connection import open_redis, warm_up
from metering.wallet.projection import Projector
from metering.wallet.values import Close, Verdict
from metering.wallet.wallet import Wallet
from tests.integration.test_wallet_away import QUICK
from tests.kits.books import (
    UNIT,
    Books,
    drain,
    open_books,
    patiently,
    result_of,
    start_worker,
    waiting,
)
from tests.kits.cluster import Cluster, Node, wait_for
from tests.kits.cluster_orgs import Load, differences, everywhere
from tests.long import long

MAX_REFUSED = 0.3
"""Maximum share of refused orders in other partitions.

It is zero if the machine has time. A client that searches all masters again because one is away refuses nearly all of
them.
"""


@asynccontextmanager
async def company(cluster: Cluster, ledger: str) -> AsyncIterator[Load]:
    """Customers everywhere, a gateway's wallet as in production, a projector, and two consumers as processes.

    At the end the books must be right: what Redis acknowledged is in the ledger, or a journal brings it back.
    """
    async with AsyncExitStack() as stack:
        books = await stack.enter_async_context(open_books(cluster.url, ledger, now_us=0, limits=QUICK))
        callers = await everywhere(books)
        # As in production: requests have connections of their own, and background work has others.
        hot, back = [open_redis(cluster.url, connections=16, call_timeout_s=2.0) for _ in range(2)]
        stack.push_async_callback(hot.aclose)
        stack.push_async_callback(back.aclose)
        await warm_up(hot, 16)
        wallet = Wallet(hot, QUICK)
        await wallet.set_clock()
        projecting = asyncio.create_task(Projector(back, books.ledger).run(0.2))
        stack.push_async_callback(cancel_all, [projecting])
        workers = [start_worker("consume", cluster.url, ledger, name) for name in ("c1", "c2")]
        for worker in workers:
            stack.callback(worker.communicate)
            stack.callback(worker.kill)
            assert worker.stdout is not None
            assert await asyncio.to_thread(worker.stdout.readline) == b"consuming\n"
        async with Load(wallet, callers) as load:
            await load.admitted_since(set(range(keys.PARTITIONS)), time.monotonic())
            yield load
        await asyncio.to_thread(cluster.settle)
        await booked(books, cluster)
        lost = await unbooked(books, load)
        for order in lost:
            await patiently(lambda: wallet.replay(order))  # noqa: B023  # asked here and now
        await booked(books, cluster)
        print(f"{len(load.answered)} orders answered, {len(lost)} of them brought back by their journal")
        assert await unbooked(books, load) == []
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
            await asyncio.to_thread(result_of, worker)
        assert await differences(books) == []
        charges = [event.event_id async for event in books.ledger.events() if event.end == "charge"]
        assert len(charges) == len(set(charges))


async def booked(books: Books, cluster: Cluster) -> None:
    """Wait until no partition is away, and no stream holds an event."""
    for _ in range(600):
        lengths = [node.redis.xlen(keys.events(p)) for node in cluster.masters for p in cluster.partitions_of(node)]
        with suppress(RedisError):  # a line to a node that was killed has not been used since
            if sum(lengths) == 0 and await books.projector.missing(None) == 0:
                return
        await asyncio.sleep(0.05)
    raise AssertionError("the consumers do not end")


async def until_found(books: Books) -> None:
    """Wait until this process has found all masters again."""
    for _ in range(200):
        with suppress(RedisError):
            await waiting(books.redis)
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the masters are not found")


async def unbooked(books: Books, load: Load) -> list[Any]:
    """Orders that were answered and that the ledger does not have as charged."""
    ended = await books.ledger.ended([order.order_id for order in load.answered])
    charged = {order_id for order_id, end in ended.items() if end.charged}
    return [order for order in load.answered if order.order_id not in charged]


def report(what: str, load: Load, mine: set[int], from_s: float, until_s: float) -> tuple[float, float, float]:
    """Print what customers saw; p99 of refusals at the master's own partitions, how late this process itself was at
    worst meanwhile, and the others' share of refusals."""
    during = [one for one in load.decisions if from_s <= one.at_s <= until_s]
    refused = sorted(one.took_s for one in during if one.partition in mine and not one.admitted)
    others = [one for one in during if one.partition not in mine]
    took = sorted(one.took_s for one in others if one.admitted)
    late_s = max((late_s for at_s, late_s in load.late_s if from_s <= at_s <= until_s + late_s), default=0.0)
    p99 = refused[int(len(refused) * 0.99)] if refused else 0.0
    share = sum(not one.admitted for one in others) / len(others)
    p50_others, p99_others = took[len(took) // 2], took[int(len(took) * 0.99)]
    print(
        f"{what}: away {until_s - from_s:.2f} s; {len(refused)} refusals, p99 {p99 * 1e3:.0f} ms; "
        f"others: {len(took)} admitted, p50 {p50_others * 1e3:.1f} ms, p99 {p99_others * 1e3:.0f} ms, "
        f"{share:.2%} refused; this process was late by {late_s * 1e3:.0f} ms at most"
    )
    return p99, max(p99_others, late_s), share


def kill(node: Node) -> None:
    node.kill()


def freeze(node: Node) -> None:
    node.freeze()


@pytest.mark.parametrize("lose", [kill, pytest.param(freeze, marks=long)])
async def test_a_lost_master_is_replaced_under_load(
    cluster: Cluster, tmp_path: Path, lose: Callable[[Node], None]
) -> None:
    """Its partitions are refused at once and come back by themselves; the others go on; the books are right."""
    async with company(cluster, f"sqlite:///{tmp_path}/l.db") as load:
        lost = cluster.masters[0]
        mine, replica = cluster.partitions_of(lost), cluster.replica_of(lost)
        from_s = time.monotonic()
        lose(lost)
        back_s = await load.admitted_since(mine, from_s + 0.5)
        p99_s, late_s, share = report(lose.__name__, load, mine, from_s, back_s)
        assert replica.role == "master"
        assert p99_s < 2 * QUICK.decision_s + max(0.1, 4 * late_s)
        assert share < MAX_REFUSED
        if lost.process is None:
            lost.start()
        else:
            lost.thaw()
        await asyncio.to_thread(cluster.settle)
        assert lost.role == "slave"
        with pytest.raises(MovedError):
            lost.ask("SET", keys.mark(min(mine)), "stale")
        await load.admitted_since(set(range(keys.PARTITIONS)), time.monotonic())


@long
async def test_a_planned_failover_is_a_blink(cluster: Cluster, tmp_path: Path) -> None:
    """CLUSTER FAILOVER, to the replica and back: nothing is lost, and no customer of another partition notices."""
    async with company(cluster, f"sqlite:///{tmp_path}/l.db") as load:
        master = cluster.masters[1]
        mine, replica = cluster.partitions_of(master), cluster.replica_of(master)
        for successor in (replica, master):
            from_s = time.monotonic()
            await asyncio.to_thread(cluster.switch, successor)
            back_s = await load.admitted_since(mine, time.monotonic())
            *_, share = report("planned", load, mine, from_s, back_s)
            assert share < MAX_REFUSED
            await asyncio.to_thread(cluster.settle)


async def test_charges_that_a_failover_lost_are_found_and_restored(cluster: Cluster, tmp_path: Path) -> None:
    """The replica had not received them: booked ones stay charged, and a journal brings the others back.

    Until its wallets are rebuilt from the ledger, the partition is away: no number is given twice, and an order that
    has ended in the ledger cannot be settled again.
    """
    async with open_books(cluster.url, tmp_path / "l.db", now_us=0) as books:
        callers = await everywhere(books)
        caller = callers[0]
        master = cluster.master_of(keys.partition_of(caller.org_id))
        replica = cluster.replica_of(master)
        load = Load(books.wallet, [])
        await load.order(caller, "known")
        await books.admit(caller, "replicated")
        await books.admit(caller, "voided")
        master.ask("WAIT", 1, 1_000)
        replica.freeze()
        master.ask("CLIENT KILL TYPE replica")
        await books.settle(caller, "replicated")
        await books.wallet.void(caller.org_id, "voided", "test")
        await load.order(caller, "booked")
        await drain(books)
        await load.order(caller, "not booked")
        assert (await books.cut(caller)).number == 5
        master.kill()
        replica.thaw()
        await asyncio.to_thread(wait_for, lambda: replica.role == "master", "the replica was not promoted")
        assert int(replica.redis.hget(keys.OrgKeys(caller.org_id).wallet, "number") or 0) == 1

        await until_found(books)
        assert await books.projector.missing(None) == len(cluster.partitions_of(replica))
        await drain(books)
        await books.projector.round()
        cut = await patiently(lambda: books.cut(caller))
        assert (cut.number, cut.charged_micro_mxn, cut.held_micro_mxn) == (4, 3 * UNIT, 0)
        again = await books.settle(caller, "replicated")
        assert (again.close, (await books.cut(caller)).number) == (Close.CHARGED, 4)

        (lost,) = await unbooked(books, load)
        assert lost.order_id == "not booked"
        await books.wallet.replay(lost)
        assert (await books.admit(caller, "next")).verdict is Verdict.ADMITTED
        await drain(books)
        assert await differences(books) == []
        cut = await books.cut(caller)
        assert (cut.number, cut.charged_micro_mxn, cut.held_micro_mxn) == (5, 4 * UNIT, UNIT)


async def test_a_restart_of_a_master_is_a_new_home(cluster: Cluster, tmp_path: Path) -> None:
    """It is back before its replica took over, from a file up to a second old: its partitions are rebuilt, too."""
    async with open_books(cluster.url, tmp_path / "l.db") as books:
        callers = await everywhere(books)
        master = cluster.masters[2]
        mine = cluster.partitions_of(master)
        for caller in callers:
            await books.charge(caller, caller.org_id)
        await drain(books)
        master.kill()
        master.start()
        await asyncio.to_thread(cluster.settle)
        await until_found(books)
        assert await books.projector.missing(None) == len(mine)
        await books.projector.round()
        assert await books.projector.missing(None) == 0
        for caller in callers:
            assert (await books.cut(caller)).charged_micro_mxn == UNIT
        await books.projector.round()  # the rebuild is a change, too: of an organisation that may lie elsewhere
        assert await differences(books) == []


@pytest.mark.rule(2)
@long
async def test_a_change_reaches_the_living_and_the_dead_when_they_are_back(cluster: Cluster, tmp_path: Path) -> None:
    """A revocation holds at once if the master lives, and from the first answer on if it was away (rule 2)."""
    async with open_books(cluster.url, tmp_path / "l.db", now_us=0, limits=QUICK) as books:
        callers = await everywhere(books)
        master = cluster.masters[0]
        mine = cluster.partitions_of(master)
        master.kill()
        for caller in callers:
            await books.accounts.revoke_key(caller.key_id)
        await books.projector.round()
        for caller in callers:
            if keys.partition_of(caller.org_id) not in mine:
                assert (await books.wallet.read(caller.org_id, caller.key_id)).key_state == "revoked"
        await asyncio.to_thread(wait_for, lambda: len(cluster.masters) == 3, "the replica was not promoted")
        await until_found(books)
        await books.projector.round()
        for caller in callers:
            assert (await books.wallet.read(caller.org_id, caller.key_id)).key_state == "revoked"
