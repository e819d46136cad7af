"""Shared parts of the money tests: real books over a real Valkey and a real database, and small builders."""

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
from typing import Any, TypeVar, get_args

import orjson
import psycopg
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from metering.accounts import Accounts, hash_key
from metering.clock import period_at, unix_us_at
from metering.consumer import GROUP, Consumer
from metering.events import Event, Opened, Proof, StoredImage, decode, encode_images, encode_opened
from metering.ledger.postgres import open_postgres
from metering.ledger.queries import Dialect, migrations
from metering.ledger.record import SqlLedger
from metering.ledger.sqlite import open_sqlite
from metering.limits import Limits
from metering.money import parse_mxn
from metering.ports import Act, Charge, ListPrice, Snapshot
from metering.pricing import FxRate, Price, Quote, quote
from metering.tax import read_iva
from metering.wallet import keys
from metering.wallet.connection import NotProjected, open_redis, servers
from metering.wallet.projection import Projector
from metering.wallet.script import load_script
from metering.wallet.values import (
    Admission,
    Caller,
    Close,
    Closing,
    LongTerms,
    OrderIdentity,
    Verdict,
    WalletLimits,
    WalletSnapshot,
)
from metering.wallet.wallet import Wallet
from metering.webhooks.registry import WebhookRules
from metering.webhooks.sealing import SecretsKey

T = TypeVar("T")

(SCHEMA,) = {migrations(dialect)[-1][0] for dialect in get_args(Dialect)}
"""The version of a ledger that is up to date, which is the same in both databases."""

ROOT = Path(__file__).parents[2]
NOON = datetime(2036, 11, 22, 18, tzinfo=UTC)
"""Noon in Mexico City, far in the future: code with the server's own time never sees a scripted hold expire."""

NOW_US = unix_us_at(NOON)
SECOND_US = 1_000_000
DAY_US = 24 * 3600 * SECOND_US
LIFE_S = 70.0
UNIT = parse_mxn("0.84")
BOOK = "2026-11-22+test"
PLANS = {"default": Limits(requests_per_minute=1_000_000, images_per_minute=1_000_000)}
MODELS = ("a/b", "fal/flux-1.1-pro")
IVA = read_iva(None)
WEBHOOKS = WebhookRules(SecretsKey("c2VhbHMgdGhlIHNlY3JldHMgb2YgdGhlc2UgdGVzdHM="), lambda url: None)
"""Rules by which a webhook may lead anywhere."""

ACT = Act("test", "test", "test")
LIMITS = WalletLimits(
    decision_s=10.0,
    max_open_holds=2_000,
    stream_backlog=50_000,
    remember_s=86_400,
    max_unpaid_micro_mxn=10**12,
)
FACTS = {
    "model": "fal/flux-1.1-pro",
    "provider": "fal",
    "upstream": "fal-ai/flux-pro/v1.1",
    "size": "1024x1024",
    "quality": None,
    "region": "local",
}


def pinned(images: int = 1, *, unit: int = UNIT, now_us: int = NOW_US) -> Quote:
    """Make a quote of `unit` micro-MXN an image; with the usual 0.84 MXN its proof is right, too."""
    price = Price("fal/flux-1.1-pro", Decimal("0.04"), Decimal("1.05"), BOOK)
    fixed = quote(price, FxRate("2036-11", Decimal("20.00"), "test"), period_at(now_us), images)
    return Quote(fixed.price, fixed.rate, fixed.period, images, unit)


def pictures(count: int, name: str = "picture") -> tuple[StoredImage, ...]:
    """Make stored images."""
    return tuple(
        StoredImage(f"2026/11/{name}_{i}.png", "image/png", 1_000 + i, "0" * 64, 1024, 1024) for i in range(count)
    )


def event(org_id: str, number: int, *, images: int = 1, end: str = "charge", name: str = "") -> Event:
    """Make an event in the consumer's form; its id consists of organisation and number."""
    proof = Proof("", "0.04", BOOK, "1.05", "20.00", "2036-11", "test", UNIT)
    order_id = name or f"{org_id}-{number}"
    opened = Opened(
        request_id=order_id,
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
        images=pictures(quantity, order_id),
    )


def charge_of(event: Event) -> Charge:
    """Make the charge that an export reads of an event."""
    opened, proof = event.opened, event.opened.proof
    return Charge(
        event_id=event.event_id,
        org_id=opened.org_id,
        number=event.number,
        key_id=opened.key_id,
        day=opened.day,
        month=opened.month,
        admitted_us=event.admitted_us,
        ended_us=event.ended_us,
        model=opened.model,
        provider=opened.provider,
        upstream=opened.upstream,
        size=opened.size,
        quality=opened.quality,
        region=opened.region,
        images_asked=opened.images,
        quantity=event.quantity,
        variant=proof.variant,
        usd_per_image=proof.usd_per_image,
        price_book=proof.price_book,
        markup=proof.markup,
        mxn_per_usd=proof.mxn_per_usd,
        fx_month=proof.fx_month,
        fx_source=proof.fx_source,
        unit_micro_mxn=proof.unit_micro_mxn,
        usd_measured=event.usd_measured,
        amount_micro_mxn=event.amount_micro_mxn,
        images=encode_images(event.images).decode(),
        posted=None,
        end_user=opened.end_user,
        safety_id=opened.safety_id,
        tags=opened.tags,
        metadata=opened.metadata,
        upstream_ids=event.upstream_ids,
        upstream_usd=event.upstream_usd,
        end=event.end,
        reason=event.reason,
    )


@dataclass(frozen=True, slots=True)
class Books:
    """One process' parts, over the same Redis and the same record as other processes'."""

    redis: Redis
    ledger: SqlLedger
    projector: Projector
    accounts: Accounts
    wallet: Wallet

    async def org(self, name: str = "acme", mxn: str = "8.40", **limits: int) -> Caller:
        """Make a projected organisation with one key, a credit and its own limits; `name` gives the key's secret."""
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
        order_id: str,
        price: Quote | None = None,
        identity: OrderIdentity | None = None,
        *,
        life_s: float = LIFE_S,
        owner: str = "test",
        long: LongTerms | None = None,
        slow: bool = False,
    ) -> Admission:
        """Admit one order, of one image at 0.84 MXN by default."""
        return await admit(
            self.wallet, caller, order_id, price, identity, life_s=life_s, owner=owner, long=long, slow=slow
        )

    async def settle(self, caller: Caller, order_id: str, images: int = 1, unit: int = UNIT) -> Closing:
        """Charge `images` of an order."""
        return await settle(self.wallet, caller, order_id, images, unit)

    async def charge(self, caller: Caller, order_id: str, images: int = 1) -> None:
        """Do a whole order, from admission to charge."""
        assert (await self.admit(caller, order_id, pinned(images))).verdict is Verdict.ADMITTED
        assert (await self.settle(caller, order_id, images)).close is Close.CHARGED

    async def events(self, caller: Caller) -> list[Event]:
        """Read the organisation's events in its stream, oldest first."""
        entries: Any = await self.redis.xrange(keys.OrgKeys(caller.org_id).events)
        decoded = [decode(fields) for _, fields in entries if b"notice" not in fields]
        return [one for one in decoded if one.opened.org_id == caller.org_id]

    async def cut(self, caller: Caller) -> WalletSnapshot:
        """Read the wallet now; its money must add up."""
        cut = await self.wallet.read(caller.org_id, caller.key_id)
        assert cut.credits_micro_mxn == cut.available_micro_mxn + cut.held_micro_mxn + cut.charged_micro_mxn
        return cut

    def consumer(self, name: str = "c1") -> Consumer:
        """Make a consumer over these parts."""
        return Consumer(self.redis, self.ledger, name, LIMITS.remember_s)


async def admit(
    wallet: Wallet,
    caller: Caller,
    order_id: str,
    price: Quote | None = None,
    identity: OrderIdentity | None = None,
    *,
    life_s: float = LIFE_S,
    owner: str = "test",
    long: LongTerms | None = None,
    slow: bool = False,
) -> Admission:
    """Admit with any wallet."""
    price = price or pinned(now_us=wallet.now_us())
    opened = encode_opened(order_id, caller.org_id, caller.key_id, price, FACTS)
    identity = identity or OrderIdentity(fingerprint=order_id)
    return await wallet.admit(
        caller, order_id, price, opened, identity, life_s=life_s, owner=owner, long=long, slow=slow
    )


async def settle(wallet: Wallet, caller: Caller, order_id: str, images: int = 1, unit: int = UNIT) -> Closing:
    """Settle with any wallet, in time."""
    latest_us = wallet.now_us() + 60 * SECOND_US
    stored = pictures(images, order_id)
    return await wallet.settle(caller.org_id, order_id, images * unit, stored, latest_us=latest_us)


def open_ledger(place: Path | str) -> SqlLedger:
    """Open a ledger by its address, or by its file if it is SQLite's."""
    text = str(place)
    return open_postgres(text) if text.startswith("postgresql://") else open_sqlite(text)


async def snapshot(ledger: SqlLedger, org_id: str) -> Snapshot:
    """Read one organisation from the record."""
    (found,) = await ledger.snapshots([org_id], period_at(NOW_US))
    return found


def sql(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Run one statement directly in a ledger's database, without our code, and commit it."""
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
    """Open books with a migrated ledger, prices and a rate; time is scripted unless `now_us` is 0."""
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
            redis,
            ledger,
            projector,
            Accounts(ledger, projector, PLANS, MODELS, IVA, "test", webhook_rules=WEBHOOKS),
            Wallet(redis, limits, now_us),
        )
    finally:
        await ledger.aclose()
        await redis.aclose()


@asynccontextmanager
async def open_wallets(url: str, count: int, *, now_us: int = NOW_US) -> AsyncIterator[list[Wallet]]:
    """Open wallets that share no connection, like those of `count` gateways."""
    clients = [open_redis(url, connections=2, call_timeout_s=10.0) for _ in range(count)]
    try:
        yield [Wallet(client, LIMITS, now_us) for client in clients]
    finally:
        for client in clients:
            await client.aclose()


def dump(url: str) -> dict[bytes, tuple[Any, int]]:
    """Read every key of the Redis with its whole value and its expiry."""
    with SyncRedis.from_url(url) as redis:

        def value(name: bytes) -> Any:
            # The serialised form of a hash has no fixed order.
            return redis.hgetall(name) if redis.type(name) == b"hash" else redis.dump(name)

        names: Iterable[bytes] = redis.scan_iter(count=10_000)
        return {name: (value(name), redis.expiretime(name)) for name in names}


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Call like a gateway's customer: if a wallet is away for a moment, retry."""
    for _ in range(5_000):
        try:
            return await call()
        except NotProjected:
            await asyncio.sleep(0.002)
    raise AssertionError("away for ten seconds")


async def wipe(redis: Redis) -> None:
    """Make every server forget everything."""
    for server, _ in await servers(redis):
        await server.flushall()


async def make_groups(redis: Redis) -> None:
    """Make the groups that a consumer makes at its start, for tests that call its rounds one by one."""
    async with redis.pipeline(transaction=False) as pipe:
        for partition in range(keys.PARTITIONS):
            pipe.xgroup_create(keys.events(partition), GROUP, id="0", mkstream=True)
        await pipe.execute(raise_on_error=False)  # it may be there


async def waiting(redis: Redis) -> int:
    """Count entries in all streams."""
    async with redis.pipeline(transaction=False) as pipe:
        for partition in range(keys.PARTITIONS):
            pipe.xlen(keys.events(partition))
        return sum(await pipe.execute())


async def forget_kept(redis: Redis) -> None:
    """Delete kept events, as if they were too old: nothing can be fed again."""
    await redis.delete(*(keys.kept(partition) for partition in range(keys.PARTITIONS)))


async def expire(redis: Redis, org_id: str, now_us: int, most: int = 100, remember_s: int = 60) -> int:
    """End the holds of an organisation's partition that have expired by then, like a consumer; returns how many."""
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
    """Compute the hash by which a gateway finds a key."""
    return hash_key(secret)


def start_worker(command: str, *arguments: Any) -> subprocess.Popen[bytes]:
    """Start another process of ours; the commands are in `worker.py`."""
    line = [sys.executable, "-m", "tests.kits.worker", command, *map(str, arguments)]
    return subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def race(command: str, *each: tuple[Any, ...]) -> list[Any]:
    """Start a process for each of these arguments; all begin at the same moment. Returns their results."""
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
    """Read a worker's result as JSON; it must have ended well."""
    out, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0
    return orjson.loads(out)
