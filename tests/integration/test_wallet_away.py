"""Redis gives no verdict: decided in time, and nothing ownerless is left (rules 6 and 28)."""

import asyncio
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis as SyncRedis

from metering.wallet.connection import NotProjected, NotSent, WalletAway, open_redis, warm_up
from metering.wallet.pressure import Pressure, WrongPolicy
from metering.wallet.server import Server
from metering.wallet.values import Caller, Close, Verdict
from metering.wallet.wallet import Wallet
from tests.conftest import ValkeyServer
from tests.kits.books import LIMITS, NOW_US, Books, dump, open_books, pinned

QUICK = replace(LIMITS, decision_s=0.1)


@pytest.fixture
def own_server() -> Iterator[ValkeyServer]:
    """A server that this test may freeze and kill."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        server = ValkeyServer(Path(folder))
        server.start()
        yield server
        server.stop()


def now(books: Books) -> int:
    return books.wallet.now_us()


@pytest.mark.rule(6)
async def test_a_frozen_redis_is_away_within_the_decision_and_opens_no_ownerless_hold(
    own_server: ValkeyServer, tmp_path: Path
) -> None:
    """20 admissions during the freeze are answered in time, and after the thaw not one of them holds money (rule 6)."""
    async with open_books(own_server.url, tmp_path / "l.db", now_us=0, limits=QUICK) as books:
        caller = await books.org()
        assert (await books.admit(caller, "before", pinned(now_us=now(books)))).verdict is Verdict.ADMITTED
        await books.settle(caller, "before")
        before = await books.cut(caller)
        assert own_server.process is not None
        own_server.process.send_signal(signal.SIGSTOP)
        try:
            begun_s = time.monotonic()
            answers = await asyncio.gather(
                *(books.admit(caller, f"r{i}", pinned(now_us=now(books))) for i in range(20)),
                return_exceptions=True,
            )
            took_s = time.monotonic() - begun_s
            frozen_until_s = begun_s + 2.1
            while time.monotonic() < frozen_until_s:
                await asyncio.sleep(0.05)
        finally:
            own_server.process.send_signal(signal.SIGCONT)
        assert {type(answer) for answer in answers} == {WalletAway}
        assert took_s < 2.0
        # The connections that were given up are gone: nobody reads an answer that was meant for another.
        books.wallet.at(0)
        for i in range(30):
            cut = await books.wallet.read(caller.org_id, caller.key_id)
            assert replace(cut, now_us=0) == replace(before, now_us=0), i
        assert (await books.admit(caller, "after", pinned(now_us=now(books)))).available_micro_mxn == 8 * 840_000


@pytest.mark.rule(6)
async def test_an_unread_admission_is_given_back_by_its_owner(own_server: ValkeyServer, tmp_path: Path) -> None:
    """Redis thaws before the latest moment, so the holds open; each is voided by the gateway that gave up (rule 6)."""
    async with open_books(own_server.url, tmp_path / "l.db", now_us=0, limits=QUICK) as books:
        caller = await books.org()
        await books.wallet.read(caller.org_id)
        assert own_server.process is not None
        own_server.process.send_signal(signal.SIGSTOP)
        price = pinned(now_us=now(books))
        admissions = [asyncio.create_task(books.admit(caller, f"r{i}", price)) for i in range(5)]
        answers = await asyncio.gather(*admissions, return_exceptions=True)
        own_server.process.send_signal(signal.SIGCONT)
        assert {type(answer) for answer in answers} == {WalletAway}
        until_us = now(books) + 70_000_000
        closes = await asyncio.gather(
            *(books.wallet.abandon(caller.org_id, f"r{i}", "unread", until_us=until_us) for i in range(5))
        )
        assert set(closes) <= {Close.VOIDED, Close.UNKNOWN}
        cut = await books.cut(caller)
        assert (cut.held_micro_mxn, cut.available_micro_mxn) == (0, 8_400_000)
        assert cut.number == closes.count(Close.VOIDED)


async def test_a_redis_that_is_down_is_away_and_comes_back_unprojected(
    own_server: ValkeyServer, tmp_path: Path
) -> None:
    """Killed: away at once. Started again with nothing: not projected, until it is rebuilt."""
    async with open_books(own_server.url, tmp_path / "l.db", now_us=0, limits=QUICK) as books:
        caller = await books.org()
        own_server.stop()
        with pytest.raises(WalletAway):
            await books.wallet.read(caller.org_id)
        own_server.start()
        with pytest.raises(NotProjected):
            await books.wallet.read(caller.org_id)
        await books.projector.round()
        assert (await books.cut(caller)).available_micro_mxn == 8_400_000


@pytest.mark.rule(28)
async def test_a_full_redis_admits_nothing_and_writes_nothing(redis_url: str, tmp_path: Path) -> None:
    """Out of memory is away, and what is open can still be settled and voided (rule 28)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        for request in ("a", "b"):
            await books.admit(caller, request)
        with SyncRedis.from_url(redis_url) as server:
            server.config_set("maxmemory", 1)
            try:
                before = dump(redis_url)
                with pytest.raises(WalletAway):
                    await books.admit(caller, "c")
                assert dump(redis_url) == before
                assert (await books.settle(caller, "a")).close is Close.CHARGED
                assert (await books.wallet.void(caller.org_id, "b", "x")).close is Close.VOIDED
            finally:
                server.config_set("maxmemory", 0)
        assert (await books.cut(caller)).available_micro_mxn == 9 * 840_000


@pytest.mark.rule(28)
async def test_pressure_stops_admission_before_redis_is_full_and_refuses_eviction(redis_url: str) -> None:
    """At the memory mark there is a reason; under another policy than noeviction the start is refused (rule 28)."""
    redis = open_redis(redis_url, connections=1, call_timeout_s=5)
    pressure = Pressure(redis, 0.8)
    used = (await redis.info("memory"))["used_memory"]

    async def reason() -> str | None:
        await pressure.look()
        return pressure.reason

    with SyncRedis.from_url(redis_url) as server:
        try:
            assert await reason() is None
            server.config_set("maxmemory", used)
            assert "memory" in (await reason() or "")
            server.config_set("maxmemory", used * 10)
            assert await reason() is None
            server.config_set("maxmemory-policy", "allkeys-lru")
            with pytest.raises(WrongPolicy, match="noeviction"):
                await reason()
        finally:
            server.config_set("maxmemory", 0)
            server.config_set("maxmemory-policy", "noeviction")
    await redis.aclose()


async def test_a_clock_that_differs_is_learned_from_the_first_verdict(redis_url: str, tmp_path: Path) -> None:
    """A gateway whose clock is an hour behind is told LATE once, and then admitted."""
    async with open_books(redis_url, tmp_path / "l.db", now_us=0) as books:
        caller = await books.org()
        behind = Wallet(books.redis, LIMITS)
        behind._server(0).offset_us = -3_600_000_000
        price = pinned(now_us=now(books))
        gateway = replace(books, wallet=behind)
        assert (await gateway.admit(caller, "r", price)).verdict is Verdict.LATE
        assert (await gateway.admit(caller, "r", price)).verdict is Verdict.ADMITTED


async def test_a_burst_of_one_organisation_is_no_queue_for_another(redis_url: str, tmp_path: Path) -> None:
    """Its calls wait for one of the connections; another's takes the next that is free, and not the last."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        callers = [await books.org(name) for name in ("many", "one")]
        redis = open_redis(redis_url, connections=4, call_timeout_s=10.0)
        wallet, order = Wallet(redis, LIMITS, now_us=NOW_US), list[str]()

        async def read(caller: Caller) -> None:
            await wallet.read(caller.org_id)
            order.append(caller.org_id)

        burst = [asyncio.create_task(read(callers[0])) for _ in range(200)]
        await asyncio.sleep(0)
        await asyncio.gather(*burst, read(callers[1]))
        assert order.index(callers[1].org_id) < 20
        await redis.aclose()


async def late(for_s: float, by_s: float = 0.15) -> None:
    """Keep this process' event loop busy, a piece at a time, as a crowd of requests does."""
    until_s = time.monotonic() + for_s
    while time.monotonic() < until_s:
        time.sleep(by_s)  # noqa: ASYNC251  # this is the lateness
        await asyncio.sleep(0)


async def test_a_process_that_is_late_does_not_hold_it_against_redis(redis_url: str, tmp_path: Path) -> None:
    """A second of lateness, many times the decision, while 500 calls share four connections: all are answered."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        redis = open_redis(redis_url, connections=4, call_timeout_s=0.5, watched=True)
        wallet = Wallet(redis, QUICK, now_us=NOW_US)
        reads = [wallet.read(caller.org_id) for _ in range(500)]
        await asyncio.gather(late(1.5), *reads)
        await redis.aclose()


async def test_admissions_that_wait_for_seconds_in_this_process_are_not_late_for_redis(
    redis_url: str, tmp_path: Path
) -> None:
    """The latest moment of an admission (rule 6) is counted from its sending."""
    async with open_books(redis_url, tmp_path / "l.db", now_us=0) as books:
        caller = await books.org(mxn="840.00")
        redis = open_redis(redis_url, connections=1, call_timeout_s=0.5, watched=True)
        gateway = replace(books, wallet=Wallet(redis, QUICK))
        price = pinned(now_us=now(books))
        admissions = [gateway.admit(caller, f"r{i}", price) for i in range(40)]
        admitted, *_ = await asyncio.gather(asyncio.gather(*admissions), late(2.5, 0.05))
        assert {one.verdict for one in admitted} == {Verdict.ADMITTED}
        await redis.aclose()


async def test_a_frozen_redis_ends_all_that_wait_for_it_at_once(own_server: ValkeyServer, tmp_path: Path) -> None:
    """An idle process decides in 100 ms, also for calls whose turn has not come; those sent nothing."""
    async with open_books(own_server.url, tmp_path / "l.db", now_us=0) as books:
        caller = await books.org()
        redis = open_redis(own_server.url, connections=4, call_timeout_s=2.0, watched=True)
        wallet = Wallet(redis, QUICK)
        await warm_up(redis, 4)
        await wallet.read(caller.org_id)
        assert own_server.process is not None
        own_server.process.send_signal(signal.SIGSTOP)
        try:
            lateness_s, began_s = asyncio.create_task(most_late()), time.monotonic()
            answers = await asyncio.gather(*(wallet.read(caller.org_id) for _ in range(100)), return_exceptions=True)
            took_s = time.monotonic() - began_s
            lateness_s.cancel()
        finally:
            own_server.process.send_signal(signal.SIGCONT)
        assert Counter(type(answer) for answer in answers) == {WalletAway: 4, NotSent: 96}
        assert 0.07 < took_s < 0.11 + 6 * await lateness_s
        await redis.aclose()


async def most_late() -> float:
    """Measure how late this process is at most, until it is cancelled."""
    most_s = 0.0
    with suppress(asyncio.CancelledError):
        while True:
            began_s = time.monotonic()
            await asyncio.sleep(0.005)
            most_s = max(most_s, time.monotonic() - began_s - 0.005)
    return most_s


async def test_a_connection_that_leads_nowhere_ends_its_own_call(redis_url: str) -> None:
    """Others are answered meanwhile, so the server is not away; the one call has its own end."""
    redis = open_redis(redis_url, connections=2, call_timeout_s=2.0, watched=True)
    server = Server(redis, 0.1)

    async def others() -> None:
        while True:
            await server.ask("other", lambda: redis.ping())
            await asyncio.sleep(0.01)

    answered = asyncio.create_task(others())
    with pytest.raises(WalletAway, match="TimeoutError"):
        await server.ask("org", lambda: redis.blpop(["nothing comes here"], 0))
    assert not answered.done()
    answered.cancel()
    await redis.aclose()
