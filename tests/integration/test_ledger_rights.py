"""A ledger that answers and will not do as it is set up: one sentence that names what is missing, and no password."""

import asyncio
import functools
import os
import tempfile
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import psycopg
import pytest
from structlog.testing import capture_logs

from metering.consumer import Consumer
from metering.ledger import postgres, sqlite
from metering.ledger.postgres import open_postgres
from metering.ledger.record import SqlLedger
from metering.ledger.sqlite import open_sqlite
from metering.ports import LedgerAway, LedgerMisconfigured
from tests.conftest import run
from tests.integration.test_ledger import ORG, opened
from tests.kits.books import NOON, event, open_books, sql
from tests.kits.postgres import FAST, PostgresServer
from tests.kits.processes import Forked, finished

SECRET = "s3cr3t-word"


@pytest.fixture(scope="module")
def guarded_server() -> Iterator[PostgresServer]:
    """A server that asks one role for a password, and lets another in without any right."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        server = PostgresServer(Path(folder), *FAST)
        hba = Path(folder) / "data" / "pg_hba.conf"
        hba.write_text("local all asked scram-sha-256\nlocal all barred reject\nlocal all all trust\n")
        server.start()
        with psycopg.connect(server.url("postgres"), autocommit=True) as db:
            db.execute(f"CREATE ROLE asked LOGIN PASSWORD '{SECRET}'".encode())
            for role in ("poor", "barred", "reader"):
                db.execute(f"CREATE ROLE {role} LOGIN".encode())
            db.execute("CREATE ROLE idle NOLOGIN")
        yield server
        server.kill()


@pytest.fixture
def url(guarded_server: PostgresServer) -> Iterator[str]:
    """A migrated ledger of the owner's, which `reader` may read."""
    with guarded_server.database() as address:

        async def migrate() -> None:
            async with aclosing(await opened(address)):
                pass

        run(migrate())
        sql(address, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
        yield address


def as_role(url: str, login: str) -> str:
    """The same database for another role."""
    return url.replace("ghub@", f"{login}@")


async def orgs(ledger: SqlLedger) -> None:
    await ledger.orgs()


async def book(ledger: SqlLedger) -> None:
    await ledger.book([event(ORG, 1)], [], NOON)


@pytest.mark.parametrize(
    ("login", "words"),
    [
        ("poor", "permission denied for table organizations; grant its role"),
        (f"asked:not-{SECRET}", 'password authentication failed for user "asked"'),
        ("asked", "no password supplied"),
        ("nobody_here", 'role "nobody_here" does not exist'),
        ("barred", "pg_hba.conf rejects connection"),
        ("idle", 'role "idle" is not permitted to log in'),
    ],
)
async def test_who_may_not_is_told_which_right_is_missing(
    url: str, login: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no database that is away, though it is waited for in the same way."""
    monkeypatch.setattr(postgres, "CALL_S", 1.0)
    async with aclosing(open_postgres(as_role(url, login))) as ledger:
        with pytest.raises(LedgerMisconfigured) as refused:
            await ledger.orgs()
        sentence = str(refused.value)
        assert sentence.startswith("GHUB_LEDGER_URL: the database refuses: ") and words in sentence
        assert SECRET not in sentence and "\n" not in sentence
        assert isinstance(refused.value, LedgerAway)


async def test_who_may_read_and_not_write_is_told_so(url: str) -> None:
    """With the table's name, and only when it writes."""
    async with aclosing(open_postgres(as_role(url, "reader"))) as ledger:
        await ledger.orgs()
        with pytest.raises(LedgerMisconfigured, match="permission denied for table events; grant its role"):
            await book(ledger)


def test_a_database_that_is_missing_read_only_or_not_migrated_says_so(
    guarded_server: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Supabase makes a database read-only when its disk is full."""
    monkeypatch.setattr(postgres, "CALL_S", 1.0)

    async def refusal(address: str) -> str:
        async with aclosing(open_postgres(address)) as ledger:
            with pytest.raises(LedgerMisconfigured) as refused:
                await ledger.orgs()
            return str(refused.value)

    assert 'database "nowhere" does not exist' in run(refusal(guarded_server.url("nowhere")))
    with guarded_server.database() as empty:
        assert 'relation "organizations" does not exist; run `ghub migrate`' in run(refusal(empty))
    name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
    sql(url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert "session is read-only" in run(refusal(url))


async def test_a_command_prints_the_sentence_and_a_consumer_goes_on_waiting(redis_url: str, url: str) -> None:
    """The log names the right; once it is granted the events are booked, with no restart."""
    environment = {**os.environ, "GHUB_LEDGER_URL": as_role(url, "poor"), "GHUB_REDIS_URL": redis_url}
    done = finished(Forked, ("org", "list"), environment, within_s=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("ghub: GHUB_LEDGER_URL: the database refuses: permission denied for table")
    async with open_books(redis_url, url) as books:
        caller = await books.org("other")
        await books.charge(caller, "r")
        async with aclosing(open_postgres(as_role(url, "poor"))) as poor:
            consumer, stop = Consumer(books.redis, poor, "poor", 60), asyncio.Event()
            with capture_logs() as lines:
                task = asyncio.create_task(consumer.run(stop))
                async with asyncio.timeout(20):
                    while not any(line["event"] == "consumer_waits" for line in lines):
                        await asyncio.sleep(0.02)
                    assert not consumer.alive
                    sql(url, "GRANT ALL ON ALL TABLES IN SCHEMA public TO poor")
                    sql(url, "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO poor")
                    while not (await books.ledger.charged_up_to(caller.org_id)).events:
                        await asyncio.sleep(0.02)
            stop.set()
            await task
    line = next(line for line in lines if line["event"] == "consumer_waits")
    assert line["error"] == "LedgerMisconfigured" and "permission denied for table" in line["why"]


# --- SQLite ---


def test_a_file_that_takes_no_writes_or_is_no_ledger_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence with the file's name, at once: only another process' write is worth a wait."""
    monkeypatch.setattr(sqlite, "BUSY_S", 60.0)
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "text.db").write_text("this is no database, however long one looks at it\n" * 100)
    (tmp_path / "file").write_text("")

    async def refusal(name: str) -> str:
        async with aclosing(open_sqlite(f"sqlite:///{tmp_path}/{name}")) as ledger, asyncio.timeout(10):
            with pytest.raises(LedgerMisconfigured) as refused:
                await ledger.orgs()
            return str(refused.value)

    assert run(refusal("folder.db")) == (
        f"GHUB_LEDGER_URL: {tmp_path}/folder.db cannot be used: unable to open database file"
    )
    assert run(refusal("text.db")).endswith("text.db cannot be used: file is not a database")
    assert "cannot be used" in run(refusal("file/l.db"))
    assert run(refusal("new.db")).endswith("no such table: organizations")


def as_somebody_else() -> None:
    """Called in the new process: whom the ledger's folder does not belong to."""
    if os.geteuid() == 0:
        os.setuid(65534)


def test_a_file_without_the_right_to_write_says_so() -> None:
    """The user may only read it."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        path = Path(folder) / "l.db"

        async def make() -> None:
            async with aclosing(await opened(path)):
                pass

        run(make())
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        begin = functools.partial(Forked, before=as_somebody_else)
        done = finished(begin, ("org", "list"), {**os.environ, "GHUB_LEDGER_URL": f"sqlite:///{path}"}, within_s=60)
        Path(folder).chmod(0o755)
    assert done.returncode == 1
    assert done.stderr == f"ghub: GHUB_LEDGER_URL: {path} cannot be used: attempt to write a readonly database\n"
