"""What the money tests share: real books over a real Valkey and a real database, and small builders."""

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import orjson
import psycopg
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from metering.accounts import Accounts, hash_key
from metering.clock import period_at, unix_us_at
from metering.consumer import GROUP, Consumer
from metering.events import Event, Opened, Proof, StoredImage, decode, encode_opened
from metering.ledger.postgres import open_postgres
from metering.ledger.record import SqlLedger
from metering.ledger.sqlite import open_sqlite
from metering.limits import Limits
from metering.money import parse_mxn
from metering.ports import Act, ListPrice, Snapshot
from metering.pricing import FxRate, Price, Quote, quote
from metering.wallet import keys
from metering.wallet.connection import NotProjected, open_redis, servers
from metering.wallet.projection import Projector
from metering.wallet.script import load_script
from metering.wallet.values import (
    Admission,
    Caller,
    Close,
    Closing,
    OrderIdentity,
    Verdict,
    WalletLimits,
    WalletSnapshot,
)
from metering.wallet.wallet import Wallet

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
NOON = datetime(2036, 11, 22, 18, tzinfo=UTC)
"""Noon in Mexico City, and far ahead: what takes the server's own time never sees a scripted hold run out."""

NOW_US = unix_us_at(NOON)
SECOND_US = 1_000_000
DAY_US = 24 * 3600 * SECOND_US
LIFE_S = 70.0
UNIT = parse_mxn("0.84")
BOOK = "2026-11-22+test"
PLANS = {"default": Limits(requests_per_minute=1_000_000, images_per_minute=1_000_000)}
MODELS = ("a/b", "fal/flux-1.1-pro")
ACT = Act("test", "test", "test")
LIMITS = WalletLimits(decision_s=10.0, max_open_holds=2_000, stream_backlog=50_000, remember_s=86_400)
FACTS = {
    "model": "fal/flux-1.1-pro",
    "provider": "fal",
    "upstream": "fal-ai/flux-pro/v1.1",
    "size": "1024x1024",
    "quality": None,
    "region": "local",
}


def pinned(images: int = 1, *, unit: int = UNIT, now_us: int = NOW_US) -> Quote:
    """A quote of `unit` micro-MXN an image; at the usual 0.84 MXN its proof is right, too."""
    price = Price("fal/flux-1.1-pro", Decimal("0.04"), Decimal("1.05"), BOOK)
    fixed = quote(price, FxRate("2036-11", Decimal("20.00"), "test"), period_at(now_us), images)
    return Quote(fixed.price, fixed.rate, fixed.period, images, unit)


def pictures(count: int, name: str = "picture") -> tuple[StoredImage, ...]:
    """Stored images."""
    return tuple(
        StoredImage(f"2026/11/{name}_{i}.png", "image/png", 1_000 + i, "0" * 64, 1024, 1024) for i in range(count)
    )


def event(org_id: str, number: int, *, images: int = 1, end: str = "charge", name: str = "") -> Event:
    """An event as the consumer has it; its id is made of organisation and number."""
    proof = Proof("", "0.04", BOOK, "1.05", "20.00", "2036-11", "test", UNIT)
    request_id = name or f"{org_id}-{number}"
    opened = Opened(
        request_id=request_id,
        org_id=org_id,
        key_id="key_1",
        images=max(images, 1),
        day="2036-11-22",
        month="2036-11",
        proof=proof,
        **FACTS,  # type: ignore[arg-type]  # quality is None, all others are text
    )
    quantity = images if end == "charge" else 0
    return Event(
        number=number,
        opened=opened,
        end=end,  # type: ignore[arg-type]  # one of the three
        reason="delivered" if end == "charge" else "test",
        quantity=quantity,
        amount_micro_mxn=quantity * UNIT,
        admitted_us=NOW_US,
        ended_us=NOW_US + SECOND_US,
        images=pictures(quantity, request_id),
    )


@dataclass(frozen=True, slots=True)
class Books:
    """One process' parts, over the same Redis and the same record as everybody else's."""

    redis: Redis
    ledger: SqlLedger
    projector: Projector
    accounts: Accounts
    wallet: Wallet

    async def org(self, name: str = "acme", mxn: str = "8.40", **limits: int) -> Caller:
        """A projected organisation with one key, a credit and its own limits; the key's secret is `name`'s own."""
        org = await self.accounts.create_org(name, "default")
        issued = await self.accounts.create_key(org.org_id, "main")
        if mxn != "0.00":
            await self.accounts.add_credit(org.org_id, f"first-{name}", "recharge", parse_mxn(mxn))
        if limits:
            await self.accounts.set_limits(org.org_id, limits)
        return Caller(org.org_id, issued.key_id)

    async def admit(
        self,
        caller: Caller,
        request_id: str,
        price: Quote | None = None,
        identity: OrderIdentity | None = None,
        *,
        life_s: float = LIFE_S,
    ) -> Admission:
        """One admission, of one image at 0.84 MXN where nothing else is said."""
        return await admit(self.wallet, caller, request_id, price, identity, life_s=life_s)

    async def settle(self, caller: Caller, request_id: str, images: int = 1, unit: int = UNIT) -> Closing:
        """Charge `images` of an order."""
        return await settle(self.wallet, caller, request_id, images, unit)

    async def charge(self, caller: Caller, request_id: str, images: int = 1) -> None:
        """A whole order, from admission to charge."""
        assert (await self.admit(caller, request_id, pinned(images))).verdict is Verdict.ADMITTED
        assert (await self.settle(caller, request_id, images)).close is Close.CHARGED

    async def events(self, caller: Caller) -> list[Event]:
        """What the organisation's stream holds, oldest first."""
        entries: Any = await self.redis.xrange(keys.OrgKeys(caller.org_id).events)
        decoded = [decode(fields) for _, fields in entries if b"notice" not in fields]
        return [one for one in decoded if one.opened.org_id == caller.org_id]

    async def cut(self, caller: Caller) -> WalletSnapshot:
        """The wallet now; its money must add up."""
        cut = await self.wallet.read(caller.org_id, caller.key_id)
        assert cut.credits_micro_mxn == cut.available_micro_mxn + cut.held_micro_mxn + cut.charged_micro_mxn
        return cut

    def consumer(self, name: str = "c1") -> Consumer:
        """A consumer over these parts."""
        return Consumer(self.redis, self.ledger, name, LIMITS.remember_s)


async def admit(
    wallet: Wallet,
    caller: Caller,
    request_id: str,
    price: Quote | None = None,
    identity: OrderIdentity | None = None,
    *,
    life_s: float = LIFE_S,
) -> Admission:
    """Admit over any wallet."""
    price = price or pinned(now_us=wallet.now_us())
    opened = encode_opened(request_id, caller.org_id, caller.key_id, price, FACTS)
    identity = identity or OrderIdentity(fingerprint=request_id)
    return await wallet.admit(caller, request_id, price, opened, identity, life_s=life_s, owner="test")


async def settle(wallet: Wallet, caller: Caller, request_id: str, images: int = 1, unit: int = UNIT) -> Closing:
    """Settle over any wallet, in time."""
    latest_us = wallet.now_us() + 60 * SECOND_US
    stored = pictures(images, request_id)
    return await wallet.settle(caller.org_id, request_id, images * unit, stored, latest_us=latest_us)


def open_ledger(place: Path | str) -> SqlLedger:
    """A ledger by its address, or by its file where it is SQLite's."""
    text = str(place)
    return open_postgres(text) if text.startswith("postgresql://") else open_sqlite(text)


async def snapshot(ledger: SqlLedger, org_id: str) -> Snapshot:
    """One organisation as the record has it."""
    (found,) = await ledger.snapshots([org_id], period_at(NOW_US))
    return found


def sql(url: str, statement: str) -> list[tuple[Any, ...]]:
    """One statement straight at a ledger's database, past all of our code, and committed."""
    if url.startswith("postgresql://"):
        with psycopg.connect(url) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as db, db:
        return db.execute(statement).fetchall()


@asynccontextmanager
async def open_books(
    url: str, place: Path | str, *, now_us: int = NOW_US, limits: WalletLimits = LIMITS, projected: bool = True
) -> AsyncIterator[Books]:
    """Books with a migrated ledger, prices and a rate; time is scripted unless `now_us` is 0."""
    redis = open_redis(url, connections=32, call_timeout_s=10.0)
    ledger = open_ledger(place)
    projector = Projector(redis, ledger)
    try:
        await ledger.migrate()
        await ledger.register_prices(BOOK, Decimal("1.05"), [ListPrice("fal/flux-1.1-pro", Decimal("0.04"))], NOON)
        await ledger.add_rate(FxRate("2036-11", Decimal("20.00"), "test"), NOON)
        await ledger.register_plans(PLANS, NOON)
        if projected:
            await projector.round()
        yield Books(
            redis, ledger, projector, Accounts(ledger, projector, PLANS, MODELS, "test"), Wallet(redis, limits, now_us)
        )
    finally:
        await ledger.aclose()
        await redis.aclose()


@asynccontextmanager
async def open_wallets(url: str, count: int, *, now_us: int = NOW_US) -> AsyncIterator[list[Wallet]]:
    """Wallets that share no connection, as those of `count` gateways."""
    clients = [open_redis(url, connections=2, call_timeout_s=10.0) for _ in range(count)]
    try:
        yield [Wallet(client, LIMITS, now_us) for client in clients]
    finally:
        for client in clients:
            await client.aclose()


def dump(url: str) -> dict[bytes, tuple[Any, int]]:
    """Every key of the Redis with its whole value and the moment at which it expires."""
    with SyncRedis.from_url(url) as redis:

        def value(name: bytes) -> Any:
            # The serialised form of a hash has no certain order.
            return redis.hgetall(name) if redis.type(name) == b"hash" else redis.dump(name)

        names: Iterable[bytes] = redis.scan_iter(count=10_000)
        return {name: (value(name), redis.expiretime(name)) for name in names}


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """As a gateway's customer does: where a wallet is away for a moment, ask again."""
    for _ in range(5_000):
        try:
            return await call()
        except NotProjected:
            await asyncio.sleep(0.002)
    raise AssertionError("away for ten seconds")


async def wipe(redis: Redis) -> None:
    """Have every server forget everything."""
    for server, _ in await servers(redis):
        await server.flushall()


async def make_groups(redis: Redis) -> None:
    """What a consumer does as it begins, for tests that make its rounds one by one."""
    async with redis.pipeline(transaction=False) as pipe:
        for partition in range(keys.PARTITIONS):
            pipe.xgroup_create(keys.events(partition), GROUP, id="0", mkstream=True)
        await pipe.execute(raise_on_error=False)  # it may be there


async def waiting(redis: Redis) -> int:
    """Entries in all streams."""
    async with redis.pipeline(transaction=False) as pipe:
        for partition in range(keys.PARTITIONS):
            pipe.xlen(keys.events(partition))
        return sum(await pipe.execute())


async def forget_kept(redis: Redis) -> None:
    """As if what was committed had been so for longer than events are kept: nothing can be fed again."""
    await redis.delete(*(keys.kept(partition) for partition in range(keys.PARTITIONS)))


async def expire(redis: Redis, org_id: str, now_us: int, most: int = 100, remember_s: int = 60) -> int:
    """End the holds of an organisation's partition that have run out by then, as a consumer does; how many."""
    names = keys.OrgKeys(org_id)
    script = load_script(redis, "expire_v1")
    ended: int = await script({"mark": names.mark, "busy": names.busy}, now_us=now_us, most=most, remember_s=remember_s)
    return ended


async def drain(books: Books, *consumers: Consumer) -> None:
    """Consume until no stream holds an entry."""
    consumers = consumers or (books.consumer(),)
    await make_groups(books.redis)
    while await waiting(books.redis):
        for consumer in consumers:
            await consumer.round()


def hash_of(secret: str) -> str:
    """What a gateway looks a key up by."""
    return hash_key(secret)


def start_worker(command: str, *arguments: Any) -> subprocess.Popen[bytes]:
    """Another process of ours; the commands are in `worker.py`."""
    line = [sys.executable, "-m", "tests.kits.worker", command, *map(str, arguments)]
    return subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def race(command: str, *each: tuple[Any, ...]) -> list[Any]:
    """A process for each of these arguments; all begin at the same moment. Returns their results."""
    workers = [start_worker(command, *arguments) for arguments in each]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(b"go\n")
        worker.stdin.flush()
    return [result_of(worker) for worker in workers]


def result_of(worker: subprocess.Popen[bytes]) -> Any:
    """What a worker found out, as JSON; it must have ended well."""
    out, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0
    return orjson.loads(out)
