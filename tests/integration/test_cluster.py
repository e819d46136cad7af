"""Redis Cluster: the money suites' essentials, the consumer over all partitions, and what is asked of every master."""

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from metering.consumer import GROUP
from metering.wallet import cluster as module
from metering.wallet import keys
from metering.wallet.connection import open_redis, server_of, servers, warm_up
from metering.wallet.jobs import UpstreamJobs
from metering.wallet.pressure import Pressure, WrongPolicy
from metering.wallet.values import Verdict
from tests.integration import test_adoptions as adoptions
from tests.integration import test_consumer as consumer
from tests.integration import test_consumer_backlog as backlog
from tests.integration import test_jobs as jobs
from tests.integration import test_kept as kept
from tests.integration import test_projection as projection
from tests.integration import test_wallet_admit as admit
from tests.integration import test_wallet_close as close
from tests.integration import test_wallet_sandbox as sandbox
from tests.kits.books import UNIT, drain, open_books, pinned, result_of, start_worker, waiting
from tests.kits.cluster import MASTERS, Cluster
from tests.kits.cluster_orgs import differences, everywhere

Test = Callable[..., Coroutine[Any, Any, None]]


@pytest.mark.parametrize(
    "test",
    [
        admit.test_an_admission_opens_a_hold_of_the_worst_case,
        admit.test_race_a_balance_for_ten_admits_ten_of_a_hundred,
        admit.test_race_two_processes_admit_no_more_than_the_balance,
        admit.test_expiry_is_written_down_for_organisations_that_nobody_asks_for,
        adoptions.test_parts_go_on_begin_or_are_lost_and_what_is_stored_is_charged,
        adoptions.test_a_gateway_that_stops_takes_nothing_and_leaves_what_it_can,
        adoptions.test_telling_of_an_order_races_its_end_and_one_of_them_counts,
        close.test_a_settlement_charges_what_was_delivered_and_gives_back_the_rest,
        close.test_race_settle_and_void_of_the_same_hold_end_it_exactly_once,
        jobs.test_a_job_is_an_orphan_from_its_owners_death_until_its_order_ends,
        jobs.test_one_of_many_claims_a_dead_owners_order,
        projection.test_a_wiped_redis_is_rebuilt,
        projection.test_open_holds_survive_a_rebuild_when_only_the_marks_were_lost,
        projection.test_a_rebuild_waits_for_the_stream,
        projection.test_a_change_whose_process_died_reaches_redis,
        projection.test_a_wipe_in_the_middle_of_a_rebuild_begins_it_again,
        projection.test_a_rebuild_that_stood_still_never_overwrites_what_happened_since,
        sandbox.test_race_fifty_takers_of_five_on_a_hundred_admit_twenty,
        sandbox.test_a_live_order_and_one_of_the_sandbox_never_meet_under_a_key,
    ],
    ids=lambda test: test.__name__,
)
async def test_the_wallets_hold_on_a_cluster(cluster: Cluster, tmp_path: Path, test: Test) -> None:
    """Rules that hold on one server hold on a cluster."""
    await test(cluster.url, tmp_path)


@pytest.mark.parametrize(
    "test",
    [
        consumer.test_events_reach_the_ledger_and_leave_the_stream,
        consumer.test_a_lost_group_starts_from_the_beginning,
        consumer.test_a_poison_entry_is_set_aside_and_the_rest_is_booked,
        kept.test_only_booked_events_are_kept,
        kept.test_a_projector_that_sees_it_first_feeds_the_ledger_before_it_makes_a_wallet_anew,
        backlog.test_what_was_read_is_kept_while_the_ledger_is_away,
    ],
    ids=lambda test: test.__name__,
)
async def test_the_consumer_holds_on_a_cluster(cluster: Cluster, tmp_path: Path, test: Test) -> None:
    """Rules that hold on one server hold on a cluster."""
    await test(cluster.url, f"sqlite:///{tmp_path}/l.db")


async def test_two_consumers_book_all_partitions_once(cluster: Cluster, tmp_path: Path) -> None:
    """They are processes; one is killed while they consume. Every event of every partition is booked exactly once."""
    ledger = f"sqlite:///{tmp_path}/l.db"
    async with open_books(cluster.url, ledger) as books:
        callers = await everywhere(books)
        workers = [start_worker("consume", cluster.url, ledger, name) for name in ("c1", "c2")]
        try:
            for worker in workers:
                assert worker.stdout is not None
                assert await asyncio.to_thread(worker.stdout.readline) == b"consuming\n"
            for i in range(6):
                await asyncio.gather(*(books.charge(caller, f"{caller.org_id}-{i}") for caller in callers))
                if i == 3:
                    workers[0].kill()
                    workers[0].communicate()
            began_s = time.monotonic()
            while any([(await books.ledger.charged_up_to(caller.org_id)).events < 6 for caller in callers]):
                assert time.monotonic() < began_s + 60
                await asyncio.sleep(0.1)
            workers[1].send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(result_of, workers[1]) is not None
            assert await differences(books) == []
        finally:
            for worker in workers:
                if worker.poll() is None:  # one that is left would book what the next tests write to this cluster
                    worker.kill()
                    worker.communicate()


async def test_a_waiting_consumer_costs_little_and_is_quick(cluster: Cluster, tmp_path: Path) -> None:
    """Idle it asks all masters together fewer than 100 times a second; an event is in the ledger within 0.2 s."""
    async with open_books(cluster.url, tmp_path / "l.db") as books:
        callers = await everywhere(books)
        stop = asyncio.Event()
        task = asyncio.create_task(books.consumer().run(stop))
        await asyncio.sleep(1.0)  # the groups are made
        asked, began_s = commands(cluster), time.monotonic()
        await asyncio.sleep(3.0)
        rate = (commands(cluster) - asked) / (time.monotonic() - began_s)
        lags_s = []
        for caller in callers[::4]:
            began_s = time.monotonic()
            await books.charge(caller, caller.org_id)
            while (await books.ledger.charged_up_to(caller.org_id)).events == 0:
                await asyncio.sleep(0.002)
            lags_s.append(time.monotonic() - began_s)
        stop.set()
        await task
        print(f"idle: {rate:.0f} commands/s; from order to ledger: {sorted(lags_s)[len(lags_s) // 2] * 1e3:.0f} ms")
        assert rate < 100
        assert sorted(lags_s)[len(lags_s) // 2] < 0.2


def commands(cluster: Cluster) -> int:
    """Commands from clients to all masters, without those between the masters and their replicas."""
    stats = [node.redis.info("commandstats") for node in cluster.masters]
    names = ("xreadgroup", "xautoclaim", "evalsha", "xack", "xdel", "xgroup|create")
    return sum(one.get(f"cmdstat_{name}", {"calls": 0})["calls"] for one in stats for name in names)


async def test_a_master_that_lost_its_data_is_rebuilt_while_the_others_go_on(cluster: Cluster, tmp_path: Path) -> None:
    """FLUSHALL on one of three: its partitions are away and then as before; no other is touched."""
    async with open_books(cluster.url, tmp_path / "l.db") as books:
        callers = await everywhere(books)
        for caller in callers:
            await books.charge(caller, caller.org_id)
        await drain(books)
        lost = cluster.masters[0]
        gone = cluster.partitions_of(lost)
        before = {caller: await books.cut(caller) for caller in callers}
        lost.redis.flushall()
        for caller in callers:
            if keys.partition_of(caller.org_id) not in gone:
                assert await books.cut(caller) == before[caller]
        assert await books.projector.missing(None) == len(gone)
        await books.projector.round()
        assert {caller: await books.cut(caller) for caller in callers} == before
        assert (await books.admit(callers[0], "next")).verdict is Verdict.ADMITTED


@pytest.mark.rule(28, 29)
async def test_every_master_is_asked_for_memory_policy_and_time(cluster: Cluster) -> None:
    """One that is full, or would evict, is enough to stop; each has its own clock (rules 28 and 29)."""
    redis = open_redis(cluster.url, connections=4, call_timeout_s=2.0)
    await warm_up(redis, 4)
    assert len(await servers(redis)) == MASTERS
    pressure = Pressure(redis, 0.8)
    for node in cluster.masters:
        await pressure.look()
        before = pressure.reason
        assert before is None
        node.redis.config_set("maxmemory", node.redis.info("memory")["used_memory"])
        await pressure.look()
        assert "memory" in (pressure.reason or "")
        node.redis.config_set("maxmemory", 0)
        node.redis.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(WrongPolicy):
            await pressure.look()
        node.redis.config_set("maxmemory-policy", "noeviction")
    await redis.aclose()


@pytest.mark.rule(6, 29)
async def test_clocks_of_masters_are_learned_one_by_one(cluster: Cluster, tmp_path: Path) -> None:
    """A gateway that has one master's time wrong is told LATE by that one, once, and by no other (rules 6 and 29)."""
    async with open_books(cluster.url, tmp_path / "l.db", now_us=0) as books:
        callers = await everywhere(books)
        await books.wallet.set_clock()
        wrong = server_of(books.redis, 0)
        books.wallet._servers[wrong].offset_us -= 3_600_000_000
        now_us = time.time_ns() // 1000
        for turn in range(2):
            for caller in callers:
                mine = server_of(books.redis, keys.partition_of(caller.org_id)) is wrong
                answer = await books.admit(caller, f"{caller.org_id}-{turn}", pinned(now_us=now_us))
                first = mine and caller is callers[0] and turn == 0
                assert answer.verdict is (Verdict.LATE if first else Verdict.ADMITTED)


async def test_a_client_follows_partitions_that_have_moved(cluster: Cluster, tmp_path: Path) -> None:
    """After planned failovers that it was not told of, its first command of each kind finds the new master."""
    async with open_books(cluster.url, tmp_path / "l.db") as books:
        callers = await everywhere(books)
        for master in cluster.masters:
            await asyncio.to_thread(cluster.switch, cluster.replica_of(master))
        assert await waiting(books.redis) == 0  # a pipeline
        await books.projector.round()
        for caller in callers:
            await books.charge(caller, caller.org_id)
        assert sum([len(await books.events(caller)) for caller in callers]) == keys.PARTITIONS


async def test_a_heartbeat_lies_in_its_owners_partition(cluster: Cluster) -> None:
    """So that it can be kept, and looked for, on a cluster."""
    redis = open_redis(cluster.url, connections=4, call_timeout_s=2.0)
    for _ in range(8):
        owner = UpstreamJobs(redis)
        await owner.beat()
        assert await redis.exists(keys.alive(owner.owner)) == 1
    await redis.aclose()


async def test_a_command_that_belongs_to_no_partition_is_a_mistake(cluster: Cluster) -> None:
    """It is refused before anything is sent; so is a transaction, and an address without a host."""
    redis = open_redis(cluster.url, connections=4, call_timeout_s=2.0)
    with pytest.raises(ValueError, match="partition"):
        await redis.get("stray")
    with pytest.raises(ValueError, match="transaction"):
        redis.pipeline()
    await redis.aclose()
    with pytest.raises(ValueError, match="name at least one node"):
        open_redis("redis+cluster://", connections=1, call_timeout_s=1.0)


async def test_nodes_that_are_gone_are_forgotten_and_new_ones_known(cluster: Cluster) -> None:
    """From one address the client learns all six; a node that no other names is closed."""
    one = f"redis+cluster://{cluster.masters[0].address}"
    redis = open_redis(one, connections=4, call_timeout_s=2.0)
    assert isinstance(redis, module.Cluster)
    assert await redis.exists(keys.mark(0)) == 0
    assert {f"{host}:{port}" for host, port in redis._clients} == {node.address for node in cluster.nodes}
    redis._meet(("127.0.0.1", 1))
    await redis._look()
    assert ("127.0.0.1", 1) not in redis._clients
    await redis.aclose()


async def test_the_groups_of_all_partitions_are_made_where_they_lie(cluster: Cluster, tmp_path: Path) -> None:
    """A new cluster has no streams: the consumer makes them, each on its master."""
    async with open_books(cluster.url, tmp_path / "l.db") as books:
        caller = (await everywhere(books))[7]
        await books.charge(caller, "r")
        stop = asyncio.Event()
        task = asyncio.create_task(books.consumer().run(stop))
        while (await books.ledger.charged_up_to(caller.org_id)).charged_micro_mxn != UNIT:
            await asyncio.sleep(0.01)
        stop.set()
        await task
        for partition in range(keys.PARTITIONS):
            (group,) = await books.redis.xinfo_groups(keys.events(partition))
            assert group["name"] == GROUP.encode()
