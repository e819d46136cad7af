"""Committed events stay, within a stated space, to be fed again to a ledger that was restored (rule 30)."""

import asyncio
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import psycopg
import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as NoConnection

from config.settings import KEPT_MARK
from metering.consumer import Consumer
from metering.verify import verify
from metering.wallet import kept as module
from metering.wallet import keys
from metering.wallet.connection import NotProjected
from metering.wallet.kept import feed_again, heal
from metering.wallet.presence import Presence
from metering.wallet.script import Script
from metering.wallet.values import Caller
from tests.kits.books import LIMITS, UNIT, Books, drain, make_groups, open_books, open_ledger, waiting
from tests.kits.consumer import fill

HOUR_S = 3600


def backup(url: str) -> str:
    """A copy of a ledger as it is now; returns its address. Nobody may be connected to it."""
    if not url.startswith("postgresql"):
        path = url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(f"{path}.backup")) as copy:
            db.backup(copy)
        return f"{url}.backup"
    name = url.partition("?")[0].rpartition("/")[2]
    with psycopg.connect(url.replace(f"/{name}?", "/postgres?"), autocommit=True) as connection:
        others = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        connection.execute(others.encode())
        connection.execute(f"DROP DATABASE IF EXISTS {name}_backup WITH (FORCE)".encode())
        connection.execute(f"CREATE DATABASE {name}_backup TEMPLATE {name}".encode())
    return url.replace(f"/{name}?", f"/{name}_backup?")


async def kept(redis: Redis, caller: Caller) -> int:
    return int(await redis.xlen(keys.kept(keys.partition_of(caller.org_id))))


async def stored(path: str) -> bool:
    return True


async def whole(books: Books, caller: Caller, events: int) -> None:
    """Every event is booked once, the wallet agrees, and verify is clean."""
    await books.projector.round()
    booked = await books.ledger.charged_up_to(caller.org_id)
    assert (booked.events, booked.charged_micro_mxn) == (events, events * UNIT)
    assert (await books.cut(caller)).charged_micro_mxn == events * UNIT
    assert await verify(books.ledger, books.wallet, Presence(books.redis), stored) == []


async def before_and_after(redis_url: str, ledger_url: str) -> tuple[Caller, str]:
    """Three orders, a backup, and three orders more; returns the backup."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        for n in range(3):
            await books.charge(caller, f"r{n}")
        await drain(books)
    restored = await asyncio.to_thread(backup, ledger_url)
    async with open_books(redis_url, ledger_url) as books:
        for n in range(3, 6):
            await books.charge(caller, f"r{n}")
        await drain(books)
        assert await kept(books.redis, caller) == 6
    return caller, restored


@pytest.mark.parametrize("traffic", [False, True], ids=["quiet", "traffic"])
async def test_a_restored_ledger_is_fed_with_what_it_lacks(redis_url: str, ledger_url: str, traffic: bool) -> None:
    """By whatever consumer starts on it, with or without new orders; each event counts once, in wallet and ledger."""
    caller, restored = await before_and_after(redis_url, ledger_url)
    async with open_books(redis_url, restored, projected=False) as books:
        if traffic:
            await books.charge(caller, "r6")
        await books.consumer("later").round()
        await drain(books)
        await whole(books, caller, 7 if traffic else 6)
        await books.charge(caller, "r7")
        await drain(books)
        await whole(books, caller, 8 if traffic else 7)


async def test_a_projector_that_sees_it_first_feeds_the_ledger_before_it_makes_a_wallet_anew(
    redis_url: str, ledger_url: str
) -> None:
    """With its mark or without: nobody sees a wallet that lacks the events, and the stream gets each of them once."""
    caller, restored = await before_and_after(redis_url, ledger_url)
    async with open_books(redis_url, restored, projected=False) as books:
        await books.projector.forget(None)
        for _ in range(2):
            await books.projector.round()
            with pytest.raises(NotProjected):
                await books.cut(caller)
            assert await waiting(books.redis) == 6
        await books.consumer("later").round()
        await drain(books)
        await whole(books, caller, 6)


async def test_a_projector_believes_no_single_proof(redis_url: str, ledger_url: str) -> None:
    """Of two consumers, the one that committed before the backup may have reported last."""
    caller, restored = await before_and_after(redis_url, ledger_url)
    async with open_books(redis_url, restored, projected=False) as books:
        await books.redis.lpush(keys.committed(keys.partition_of(caller.org_id)), "charge:r2")
        await books.projector.forget(None)
        await books.projector.round()
        await drain(books)
        await whole(books, caller, 6)


async def test_a_rebuild_forgets_no_proof(redis_url: str, ledger_url: str) -> None:
    """It is also noticed if the ledger is restored after a rebuild of a wallet and before the next order."""
    caller, restored = await before_and_after(redis_url, ledger_url)
    async with open_books(redis_url, ledger_url) as books:
        await books.projector.forget(None)
        await books.projector.round()
    async with open_books(redis_url, restored) as books:
        await drain(books)
        await whole(books, caller, 6)


async def test_a_ledger_that_is_restored_under_a_running_consumer_is_noticed_before_the_next_booking(
    redis_url: str, ledger_url: str
) -> None:
    """Between two sweeps: nothing new is booked before what is missing is on its way."""
    caller, restored = await before_and_after(redis_url, ledger_url)
    async with open_books(redis_url, ledger_url) as books:
        consumer = books.consumer()
        await consumer.round()  # sweeps
        ledger = open_ledger(restored)
        for lane in consumer._lanes:
            lane._ledger = ledger
        await books.charge(caller, "r6")
        await consumer.round()
        assert await waiting(books.redis) == 6
        await ledger.aclose()
    async with open_books(redis_url, restored) as books:
        await drain(books)
        await whole(books, caller, 7)


async def test_two_who_notice_at_once_and_one_who_dies_half_way_feed_each_event(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A feeding continues where another stopped, and an event that was fed twice is booked once."""
    monkeypatch.setattr(module, "FED_AT_ONCE", 2)
    caller, restored = await before_and_after(redis_url, ledger_url)
    async with open_books(redis_url, restored, projected=False) as books:
        partition, once = keys.partition_of(caller.org_id), Script.__call__

        async def dies(script: Script, keys: Mapping[str, str], **args: Any) -> Any:
            await once(script, keys, **args)
            raise NoConnection("half-way")

        monkeypatch.setattr(Script, "__call__", dies)
        with pytest.raises(NoConnection):
            await heal(books.redis, books.ledger, [partition])
        monkeypatch.setattr(Script, "__call__", once)
        assert await kept(books.redis, caller) == 4
        fed = await asyncio.gather(*(heal(books.redis, books.ledger, [partition]) for _ in range(2)))
        assert sum(fed) == 4
        assert await waiting(books.redis) == 6
        await drain(books)
        await whole(books, caller, 6)
        assert await heal(books.redis, books.ledger, [partition]) == 0


@pytest.mark.parametrize("first", ["consumer", "projector"])
async def test_what_is_out_of_reach_ends_the_feeding_and_the_wallet_follows_the_ledger(
    redis_url: str, ledger_url: str, first: str
) -> None:
    """Nothing was kept: it is noticed once, and the wallet is rebuilt from the record."""
    caller, restored = await before_and_after(redis_url, ledger_url)
    async with open_books(redis_url, restored, projected=False) as books:
        await books.redis.delete(keys.kept(keys.partition_of(caller.org_id)))
        if first == "consumer":
            await books.consumer("later").round()
            assert not await books.redis.exists(keys.OrgKeys(caller.org_id).mark)
        await books.projector.round()
        booked = await books.ledger.charged_up_to(caller.org_id)
        assert (booked.events, (await books.cut(caller)).charged_micro_mxn) == (3, 3 * UNIT)
        found = await verify(books.ledger, books.wallet, Presence(books.redis), stored)
        assert [one.what for one in found] == ["charges that the ledger lost"]
        await books.consumer("later").round()
        await books.projector.round()
        assert await books.redis.exists(keys.OrgKeys(caller.org_id).mark)


async def test_nothing_is_fed_again_that_the_ledger_has(redis_url: str, ledger_url: str) -> None:
    """In the usual life of a ledger no mark goes, and nothing comes back, however often it is looked for."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        for n in range(3):
            await books.charge(caller, f"r{n}")
            await books.wallet.void(caller.org_id, f"x{n}", "test")
        await drain(books)
        assert await heal(books.redis, books.ledger, range(keys.PARTITIONS)) == 0
        assert await books.projector.missing(None) == 0
        assert await waiting(books.redis) == 0


async def test_only_booked_events_are_kept(redis_url: str, ledger_url: str) -> None:
    """Set-aside events, and notices, prove nothing."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org(images_per_day=1)
        stream = keys.OrgKeys(caller.org_id).events
        await books.charge(caller, "r")
        await books.redis.xadd(stream, {b"opened": b"\xff"})
        assert await waiting(books.redis) > 3
        await drain(books)
        assert await kept(books.redis, caller) == 1
        assert await books.redis.lrange(keys.committed(keys.partition_of(caller.org_id)), 0, -1) == [b"charge:r"]


async def test_what_is_kept_is_bounded_in_time_and_space(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By age, by bytes and by Redis' own memory; the newest stay longest."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        name = keys.kept(keys.partition_of(caller.org_id))
        await make_groups(books.redis)

        async def consume(count: int, keep_s: float) -> list[Any]:
            await fill(books.redis, [caller], count)
            consumer = Consumer(books.redis, books.ledger, "c", LIMITS.remember_s, keep_s)
            while await waiting(books.redis):
                await consumer.round()
            await consumer.round()
            entries: Any = await books.redis.xrange(name)
            return list(entries)

        (one,) = await consume(1, HOUR_S)
        size = int(one[1][b"kept_sum"])
        monkeypatch.setattr(module, "KEPT_BYTES", 10 * size)
        entries = await consume(400, HOUR_S)
        assert 8 <= len(entries) <= 12
        assert entries[-1][1][b"number"] == b"400"
        assert len(await consume(1, 0.001)) <= 1
        await asyncio.sleep(0.01)
        consumer = Consumer(books.redis, books.ledger, "c", LIMITS.remember_s, 0.001)
        await consumer.round()
        assert await kept(books.redis, caller) == 0
        assert len(await consume(5, HOUR_S)) == 5
        with SyncRedis.from_url(redis_url) as server:
            used = server.info("memory")["used_memory"]
            server.config_set("maxmemory", int(used / (KEPT_MARK + 0.1)))
            try:
                assert await consume(1, HOUR_S) == []
            finally:
                server.config_set("maxmemory", 0)


async def test_with_nothing_to_be_kept_nothing_is(redis_url: str, ledger_url: str) -> None:
    """GHUB_KEEP_H=0 keeps no event, not even the last of a commit until the next."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        await books.charge(caller, "r")
        await drain(books, Consumer(books.redis, books.ledger, "c", LIMITS.remember_s, 0.0))
        assert await kept(books.redis, caller) == 0


async def test_a_feeding_of_nothing_touches_nothing(redis_url: str, ledger_url: str) -> None:
    """A projector may ask for it at any time."""
    async with open_books(redis_url, ledger_url) as books:
        assert await feed_again(books.redis, 3) == 0
        assert await books.projector.missing(None) == 0
