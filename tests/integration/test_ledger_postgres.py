"""Properties of PostgreSQL: changes in the order of their commits, lost races, and a database that does not answer."""

import asyncio
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path

import orjson
import psycopg
import pytest

from metering import consumer as consumer_module
from metering.events import Event
from metering.ledger import postgres
from metering.ledger.postgres import CONNECTIONS, open_postgres
from metering.ledger.queries import named_queries
from metering.ledger.record import SqlLedger
from metering.ledger.rows import event_row
from metering.ledger.transactions import Closed, Steps
from metering.ports import Charged, LedgerAway, LedgerError, LedgerMisconfigured, NewCredit, Org, SetAside
from metering.verify import verify
from metering.wallet.presence import Presence
from tests.conftest import run
from tests.integration.test_ledger import ORG, opened
from tests.kits.books import (
    ACT,
    NOON,
    UNIT,
    drain,
    event,
    make_groups,
    open_books,
    snapshot,
    sql,
    start_worker,
    waiting,
)
from tests.kits.postgres import PostgresServer

OTHER = "22222222-2222-4222-8222-222222222222"
SHORT_S = 0.5


@pytest.fixture(scope="module")
def durable_server() -> Iterator[PostgresServer]:
    """A server that syncs to disk what it commits; not started."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        yield PostgresServer(Path(folder))


@pytest.fixture
def own_server(durable_server: PostgresServer) -> Iterator[PostgresServer]:
    """A server that this test may freeze and kill."""
    durable_server.start()
    yield durable_server
    durable_server.kill()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger is away after half a second."""
    monkeypatch.setattr(postgres, "CALL_S", SHORT_S)


def waiters(url: str) -> int:
    """Sessions that wait for a lock that another holds."""
    ((count,),) = sql(
        url, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return int(count)


async def until_waiting(url: str, count: int = 1) -> None:
    async with asyncio.timeout(20):
        while await asyncio.to_thread(waiters, url) < count:
            await asyncio.sleep(0.005)


# --- changes in the order of their commits ---


async def test_a_change_that_commits_late_is_not_stepped_over(postgres_url: str) -> None:
    """Two transactions overlap: the second draws no number before the first has committed its own."""
    async with aclosing(await opened(postgres_url)) as ledger:
        await ledger.create_org(Org(OTHER, "other", "default", NOON.isoformat()), ACT)
        seen = await ledger.last_change()
        with psycopg.connect(postgres_url) as late:
            # Past all of our code, as any other program might: the database itself keeps the order.
            late.execute("INSERT INTO changes (org_id, what, at) VALUES (%s, 'late', '')", (ORG,))
            overlapping = asyncio.create_task(ledger.set_limits(OTHER, {"images_per_minute": 3}, NOON, ACT))
            await until_waiting(postgres_url)
            assert (await ledger.last_change(), await ledger.changed_since(seen)) == (seen, [])
            late.commit()
        await overlapping
        assert sql(postgres_url, f"SELECT org_id FROM changes WHERE seq > {seen} ORDER BY seq") == [
            (ORG,),
            (OTHER,),
        ]


async def test_race_a_follower_of_the_changes_misses_none(postgres_url: str) -> None:
    """Eight writers whose transactions stay open for a while, some rolled back; one that polls like the projector."""
    done = threading.Event()

    def write(writer: int) -> set[str]:
        chance, committed = random.Random(writer), set()
        with psycopg.connect(postgres_url) as connection:
            for turn in range(15):
                org_id = f"org-{writer}-{turn}"
                connection.execute("INSERT INTO organizations VALUES (%s, %s, '', NULL, NULL, '')", (org_id, org_id))
                connection.execute("INSERT INTO changes (org_id, what, at) VALUES (%s, 'race', '')", (org_id,))
                connection.execute("SELECT pg_sleep(%s)", (chance.random() / 100,))
                if chance.random() < 0.2:
                    connection.rollback()
                else:
                    connection.commit()
                    committed.add(org_id)
        return committed

    async def follow(ledger: SqlLedger) -> set[str]:
        found: set[str] = set()
        known, ending = 0, False
        while not ending:
            ending = done.is_set()
            last = await ledger.last_change()
            found.update(await ledger.changed_since(known))
            known = last
        return found

    async with aclosing(open_postgres(postgres_url)) as ledger:
        await ledger.migrate()
        following = asyncio.create_task(follow(ledger))
        written = await asyncio.gather(*(asyncio.to_thread(write, writer) for writer in range(8)))
        done.set()
        assert await following == set().union(*written)


# --- races and refusals ---


async def test_a_deadlock_is_tried_again(postgres_url: str) -> None:
    """Another program books the same events the other way round; the one that PostgreSQL throws out begins again."""
    first, second = event(ORG, 1), event(ORG, 2)
    book = named_queries("postgres")["book"].encode()

    def rows(number: int) -> dict[str, str]:
        return {"rows": orjson.dumps([event_row((first, second)[number - 1], NOON.isoformat())]).decode()}

    async with aclosing(await opened(postgres_url)) as ledger:
        with psycopg.connect(postgres_url) as other:
            other.execute("SET deadlock_timeout = '1min'")
            other.execute(book, rows(2))
            booking = asyncio.create_task(ledger.book([first, second], [], NOON))
            await until_waiting(postgres_url)
            await asyncio.to_thread(other.execute, book, rows(1))
            other.commit()
        assert await booking == set()
        assert await ledger.charged_up_to(ORG) == await ledger.recount(ORG) == Charged(2, 2, 2 * UNIT)


async def test_what_no_column_can_hold_is_refused_and_can_be_set_aside(postgres_url: str) -> None:
    """Text with a NUL in it and numbers beyond 64 bits, which SQLite takes or refuses in its own way."""
    async with aclosing(await opened(postgres_url)) as ledger:
        for poison in (replace(event(ORG, 1), reason="a\0b"), event(ORG, 2**63), event(ORG, 2**70)):
            with pytest.raises(LedgerError, match="the ledger refuses"):
                await ledger.book([poison], [], NOON)
        await ledger.book([], [SetAside(1, "1-1", "got 'a\0b'", b"a\0b")], NOON)
        assert sql(postgres_url, "SELECT error, fields FROM events_set_aside") == [(r"got 'a\0b'", b"a\0b")]


@pytest.mark.parametrize("url", ["postgresql://ghub:secret@[::1/db", "postgresql://u:secret@h/db?nonsense=1", "ghub"])
def test_an_address_that_is_none_is_refused_without_its_password(url: str) -> None:
    """A sentence that shows what an address looks like."""
    with pytest.raises(ValueError, match="is no address of a database; it is postgresql://") as refused:
        open_postgres(url)
    assert "secret" not in str(refused.value)


# --- a database that does not answer ---


async def test_where_all_connections_are_in_use_the_ledger_is_away(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more call waits no longer than for a database that is gone; then those that held them get through."""
    async with aclosing(await opened(postgres_url)) as ledger:
        with psycopg.connect(postgres_url) as slow:
            slow.execute("INSERT INTO changes (org_id, what, at) VALUES (%s, 'slow', '')", (ORG,))
            stuck = [asyncio.create_task(ledger.set_limits(ORG, {}, NOON, ACT)) for _ in range(CONNECTIONS)]
            await until_waiting(postgres_url, CONNECTIONS)
            monkeypatch.setattr(postgres, "CALL_S", SHORT_S)
            with pytest.raises(LedgerAway, match="all are in use"):
                await ledger.orgs()
        await asyncio.gather(*stuck)
        assert len(await ledger.orgs()) == 1


@pytest.mark.usefixtures("impatient")
async def test_a_database_that_is_not_there_is_away_and_says_why(tmp_path: Path) -> None:
    """The reason is the connection's own, not that of a pool that waited."""
    async with aclosing(open_postgres(f"postgresql://ghub@/nowhere?host={tmp_path}")) as ledger:
        with pytest.raises(LedgerAway, match="No such file or directory"):
            await ledger.orgs()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("answer", "why"),
    [(b"S", "root certificate file .* does not exist"), (b"N", "server does not support SSL")],
    ids=["nobody is trusted", "no TLS"],
)
async def test_a_server_that_cannot_be_trusted_is_told_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, answer: bytes, why: str
) -> None:
    """Also to a migration, which else waits for long: in a pod nobody has a file of roots at home."""
    monkeypatch.setenv("HOME", "/nowhere")

    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)  # the client asks for TLS
        writer.write(answer)
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(answering, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server, aclosing(open_postgres(f"postgresql://u:p@{host}:{port}/d?sslmode=verify-full")) as ledger:
        with pytest.raises(LedgerMisconfigured, match=f"GHUB_LEDGER_URL: {why}.*sslrootcert=system"):
            async with asyncio.timeout(20 * SHORT_S):
                await ledger.migrate()


@pytest.mark.usefixtures("impatient")
def test_a_frozen_database_is_away_in_time_and_comes_back(own_server: PostgresServer) -> None:
    """Frozen before a call and in the middle of one; what was cut off is not there, and nothing hangs."""

    async def work(url: str) -> None:
        async with aclosing(await opened(url)) as ledger:
            in_the_middle = asyncio.Event()
            book = ledger._book

            def freeze(events: Sequence[Event], booked_at: str, closed: Closed) -> Steps[set[str]]:
                new = yield from book(events, booked_at, closed)
                own_server.freeze()
                in_the_middle.set()
                return new

            ledger._book = freeze  # type: ignore[method-assign]
            for call in (lambda: ledger.book([event(ORG, 1)], [], NOON), ledger.orgs, ledger.orgs):
                began = time.monotonic()
                with pytest.raises(LedgerAway):
                    await asyncio.wait_for(call(), 5.0)
                assert time.monotonic() - began < 4
            assert in_the_middle.is_set()
            own_server.thaw()
            ledger._book = book  # type: ignore[method-assign]
            assert (await ledger.charged_up_to(ORG)).events in (0, 1)  # the commit may have been on its way
            await ledger.book([event(ORG, 1)], [], NOON)
            assert await ledger.charged_up_to(ORG) == Charged(1, 1, UNIT)

    with own_server.database() as url:
        run(work(url))


def test_a_restarted_server_is_not_noticed(own_server: PostgresServer) -> None:
    """Every connection of the pool is dead and no transaction had begun: the next call takes a new one."""

    async def work(url: str) -> None:
        async with aclosing(await opened(url)) as ledger:
            await asyncio.gather(*(ledger.orgs() for _ in range(20)))
            own_server.kill()
            own_server.start()
            assert [org.org_id for org in await ledger.orgs()] == [ORG]

    with suppress(psycopg.OperationalError), own_server.database() as url:  # its own connection is dead, too
        run(work(url))


async def test_a_frozen_writer_holds_the_others_up_for_a_bounded_time(postgres_url: str) -> None:
    """A process that stands still with the turn in its hands is thrown out by the server."""
    async with aclosing(await opened(postgres_url)) as ledger:
        worker = start_worker("write_and_hang", postgres_url, ORG, "credit", SHORT_S)
        assert worker.stdout is not None
        assert await asyncio.to_thread(worker.stdout.readline) == b"written\n"
        worker.send_signal(signal.SIGSTOP)
        assert await ledger.add_credit(NewCredit("credit-2", ORG, "recharge", 7), NOON, ACT)
        found = await snapshot(ledger, ORG)
        assert (found.credit_number, found.credits_micro_mxn) == (1, 7)
        worker.kill()
        worker.communicate()


async def stored(path: str) -> bool:
    return True


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", ["frozen", "killed"])
def test_a_consumer_outlives_its_database(
    redis_url: str, own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Twice, under traffic: it goes on by itself, and nothing is lost or doubled."""
    monkeypatch.setattr(consumer_module, "IDLE_MS", 0)
    monkeypatch.setattr(consumer_module, "SWEEP_S", 0.1)
    monkeypatch.setattr(consumer_module, "WAIT_MS", 10)

    async def work(url: str) -> None:
        async with open_books(redis_url, url) as books:
            caller = await books.org(mxn="1000.00")
            await make_groups(books.redis)
            stop, consumer, charged = asyncio.Event(), books.consumer(), 0
            consuming = asyncio.create_task(consumer.run(stop))

            async def charge(count: int) -> None:
                nonlocal charged
                for _ in range(count):
                    charged += 1
                    await books.charge(caller, f"order-{charged}")

            for _ in range(2):
                await charge(30)
                own_server.freeze() if how == "frozen" else own_server.kill()
                await charge(30)
                while consumer.alive:
                    await asyncio.sleep(0.01)
                await charge(10)
                own_server.thaw() if how == "frozen" else await asyncio.to_thread(own_server.start)
                while await waiting(books.redis):
                    await asyncio.sleep(0.01)
            stop.set()
            await consuming
            await drain(books)
            assert await books.ledger.charged_up_to(caller.org_id) == Charged(140, 140, 140 * UNIT)
            assert await books.ledger.recount(caller.org_id) == Charged(140, 140, 140 * UNIT)
            assert await verify(books.ledger, books.wallet, Presence(books.redis), stored) == []

    with suppress(psycopg.OperationalError), own_server.database() as url:  # its own connection is dead, too
        run(work(url))
