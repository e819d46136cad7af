"""Storms: whatever is asked for at once, no limit is exceeded by one, and nothing is refused while there is room."""

import asyncio
import random
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from redis.asyncio import Redis

from metering.money import parse_mxn
from metering.wallet.values import Caller, Verdict
from tests.conftest import ValkeyServer, run
from tests.kits.books import (
    LIFE_S,
    NOW_US,
    SECOND_US,
    UNIT,
    Books,
    admit,
    drain,
    expire,
    open_books,
    open_wallets,
    pinned,
    result_of,
    settle,
    start_worker,
)
from tests.kits.cluster import Cluster
from tests.kits.limits import counters, nothing_open, open_shop
from tests.long import LONG

LIMITS = [
    ("requests_per_minute", 20, 1, Verdict.REQUESTS),
    ("images_per_minute", 100, 5, Verdict.IMAGES),
    ("in_flight", 100, 5, Verdict.IN_FLIGHT),
    ("images_per_day", 100, 5, Verdict.DAY),
    ("images_per_month", 100, 5, Verdict.MONTH),
    ("micro_mxn_per_month", 100 * UNIT, 5, Verdict.BUDGET),
]


async def takers(url: str, ledger: Path, whose: str, name: str, limit: int, cost: int, denial: Verdict) -> None:
    """Fifty at once, over ten clients of their own."""
    async with open_books(url, ledger) as books, open_wallets(url, 10) as wallets:
        shop = await open_shop(books)
        caller = shop.callers["a"]
        if whose == "org":
            await books.accounts.set_limits(caller.org_id, {name: limit})
        else:
            await books.accounts.set_key_limits(caller.key_id, {name: limit})
        answers = await asyncio.gather(*(admit(wallets[i % 10], caller, f"r{i}", pinned(cost)) for i in range(50)))
        verdicts = [answer.verdict for answer in answers]
        assert (verdicts.count(Verdict.ADMITTED), verdicts.count(denial)) == (20, 30)
        denials = [answer for answer in answers if answer.verdict is denial]
        assert {(answer.whose, answer.limit) for answer in denials} == {(whose, limit)}
        if denial not in (Verdict.REQUESTS, Verdict.IMAGES):
            assert {answer.used for answer in denials} == {limit}
        other = (await admit(books.wallet, shop.callers["b"], "other", pinned(cost))).verdict
        assert other is (denial if whose == "org" else Verdict.ADMITTED)


@pytest.mark.parametrize("whose", ["org", "key"])
@pytest.mark.parametrize(("name", "limit", "cost", "denial"), LIMITS, ids=[row[0] for row in LIMITS])
def test_fifty_takers_of_five_on_a_hundred_admit_exactly_twenty(
    redis_url: str, tmp_path: Path, whose: str, name: str, limit: int, cost: int, denial: Verdict
) -> None:
    """For every limit of an organisation and of a key; for requests, fifty of one on twenty."""
    run(takers(redis_url, tmp_path / "l.db", whose, name, limit, cost, denial))


@pytest.mark.xdist_group("cluster")
@pytest.mark.parametrize("whose", ["org", "key"])
@pytest.mark.parametrize(("name", "limit", "cost", "denial"), LIMITS, ids=[row[0] for row in LIMITS])
def test_so_it_is_on_a_cluster(
    cluster: Cluster, tmp_path: Path, whose: str, name: str, limit: int, cost: int, denial: Verdict
) -> None:
    """Fifty takers of five on a hundred admit exactly twenty."""
    run(takers(cluster.url, tmp_path / "l.db", whose, name, limit, cost, denial))


@pytest.mark.parametrize("whose", ["org", "key"])
def test_race_two_processes_take_no_more_than_there_is(redis_url: str, tmp_path: Path, whose: str) -> None:
    """A hundred orders of one image from two gateways: each limit in turn admits exactly as many as it says."""
    url = f"sqlite:///{tmp_path}/l.db"

    async def prepare() -> list[tuple[Caller, int]]:
        async with open_books(redis_url, url) as books:
            found = []
            for i, (name, *_) in enumerate(LIMITS[2:] if LONG else LIMITS[-1:]):
                caller = await books.org(f"org-{i}", "1000.00")
                limit = 30 + i
                given = {name: limit * UNIT if name == "micro_mxn_per_month" else limit}
                if whose == "org":
                    await books.accounts.set_limits(caller.org_id, given)
                else:
                    await books.accounts.set_key_limits(caller.key_id, given)
                found.append((caller, limit))
            return found

    for caller, limit in run(prepare()):
        asked = (redis_url, caller.org_id, caller.key_id)
        workers = [start_worker("admissions", *asked, f"{caller.key_id}-{name}", 50) for name in ("p", "q")]
        assert sum(result_of(worker) for worker in workers) == limit


async def test_a_balance_for_a_hundred_admits_twenty_of_fifty_takers_of_five(redis_url: str, tmp_path: Path) -> None:
    """The balance is a limit like the others, whichever key spends it."""
    async with open_books(redis_url, tmp_path / "l.db") as books, open_wallets(redis_url, 10) as wallets:
        shop = await open_shop(books, "84.00")
        callers = [shop.callers["ab"[i % 2]] for i in range(50)]
        answers = await asyncio.gather(*(admit(wallets[i % 10], callers[i], f"r{i}", pinned(5)) for i in range(50)))
        verdicts = [answer.verdict for answer in answers]
        assert (verdicts.count(Verdict.ADMITTED), verdicts.count(Verdict.BALANCE)) == (20, 30)


# --- the mixed storm ---

QUOTAS = {
    "micro_mxn_per_month": Verdict.BUDGET,
    "images_per_month": Verdict.MONTH,
    "images_per_day": Verdict.DAY,
    "in_flight": Verdict.IN_FLIGHT,
}
"""In the order in which they are looked at."""

PRICES = (UNIT, 2 * UNIT, UNIT // 3)
"""Prices of three models."""

NAME = re.compile(r"hold:(s[0-9]+-[0-9]+)")
STORM_IS_OVER = "the storm is over"
Said = tuple[str, str, int, int]


@dataclass
class Hold:
    caller: Caller
    images: int
    amount: int
    expires_us: int


@dataclass
class Serial:
    """The rules, applied one command after the other in the order in which Redis executed them."""

    credits: dict[str, int]
    limits: dict[str, dict[str, int]]
    holds: dict[str, Hold] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    spent: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def used(self, what: str, scope: str, now_us: int) -> int:
        mine = [one for one in self.holds.values() if scope in (one.caller.org_id, one.caller.key_id)]
        open_ = [one for one in mine if one.expires_us > now_us]
        if what == "micro_mxn_per_month":
            return self.spent[scope] + sum(one.amount for one in open_)
        return sum(one.images for one in open_) + (0 if what == "in_flight" else self.images[scope])

    def admit(self, name: str, caller: Caller, images: int, amount: int, now_us: int) -> Said:
        if amount > self.credits[caller.org_id] - self.used("micro_mxn_per_month", caller.org_id, now_us):
            return ("BALANCE", "", 0, 0)
        for what, verdict in QUOTAS.items():
            cost = amount if what == "micro_mxn_per_month" else images
            refusing = []
            for whose, scope in (("org", caller.org_id), ("key", caller.key_id)):
                limit, used = self.limits[scope].get(what), self.used(what, scope, now_us)
                if limit is not None and used + cost > limit:
                    refusing.append((cost <= limit, (verdict.name, whose, limit, used)))
            if refusing:
                return min(refusing, key=lambda one: one[0])[1]  # the first; one that never fits before it
        for old in [old for old, one in self.holds.items() if one.expires_us <= now_us]:
            if self.holds[old].caller.org_id == caller.org_id:
                del self.holds[old]
        self.holds[name] = Hold(caller, images, amount, now_us + int(LIFE_S * SECOND_US))
        return ("ADMITTED", "", 0, 0)

    def end(self, name: str, delivered: int, unit: int, now_us: int) -> str:
        hold = self.holds.get(name)
        if delivered and (hold is None or hold.expires_us <= now_us):
            return "REFUSED"
        if hold is not None:
            del self.holds[name]
            for scope in (hold.caller.org_id, hold.caller.key_id):
                self.images[scope] += delivered
                self.spent[scope] += delivered * unit
        return "CHARGED" if delivered else "VOIDED"


@dataclass
class Asked:
    """One order, what its customer was told, and how it ended: with images delivered, none (a void), or not at all."""

    caller: Caller
    images: int
    unit: int
    said: Said = ("", "", 0, 0)
    delivered: int | None = None
    ended: str = ""


async def watch(url: str, seen: list[str]) -> None:
    """Every script that a server runs, in its order, until `STORM_IS_OVER`."""
    async with Redis.from_url(url, socket_timeout=None) as redis, redis.monitor() as monitor:
        seen.append("watching")
        while STORM_IS_OVER not in (command := (await monitor.next_command())["command"]):
            if command.startswith("EVALSHA"):
                seen.append(command)


async def mixed(url: str, servers: list[str], ledger: Path, seed: int, customers: int, orders: int) -> None:
    """Three organisations with three keys each and three models; then Redis' own order is replayed in a plain model."""
    chance = random.Random(seed)
    asked: dict[str, Asked] = {}
    async with open_books(url, ledger) as books, open_wallets(url, 12) as wallets:
        callers, serial = await prepare(books)

        async def customer(number: int, turn: int) -> None:
            name, wallet = f"s{number}-{turn}", wallets[(number + turn) % len(wallets)]
            order = asked[name] = Asked(chance.choice(callers), chance.randint(1, 8), chance.choice(PRICES))
            told = await admit(wallet, order.caller, name, pinned(order.images, unit=order.unit))
            order.said = (told.verdict.name, told.whose, told.limit, told.used)
            fate = chance.random()
            if told.verdict is not Verdict.ADMITTED or fate < 0.2:
                return
            order.delivered = chance.randint(1, order.images) if fate < 0.5 else 0
            if order.delivered:
                order.ended = (await settle(wallet, order.caller, name, order.delivered, order.unit)).close.name
            else:
                order.ended = (await wallet.void(order.caller.org_id, name, "test")).close.name

        seen: dict[str, list[str]] = {server: [] for server in servers}
        watching = [asyncio.create_task(watch(server, commands)) for server, commands in seen.items()]
        while not all(seen.values()):
            await asyncio.sleep(0.01)
        for turn in range(orders):
            await asyncio.gather(*(customer(number, turn) for number in range(customers)))
            for wallet in wallets:
                wallet.at(NOW_US + (turn + 1) * 20 * SECOND_US)  # what nobody has ended runs out after four turns
        for server in servers:
            async with Redis.from_url(server) as redis:
                await redis.echo(STORM_IS_OVER)
        await asyncio.gather(*watching)
        verdicts: dict[str, int] = defaultdict(int)
        begun: set[str] = set()
        for commands in seen.values():
            for command in commands:
                if (found := NAME.search(command)) is None:
                    continue
                order, tokens = asked[found[1]], command.split(" ")
                now_us = int(tokens[3 + int(tokens[2])])
                if found[1] not in begun:
                    begun.add(found[1])
                    amount = order.images * order.unit
                    assert order.said == serial.admit(found[1], order.caller, order.images, amount, now_us), found[1]
                    verdicts[order.said[0]] += 1
                else:
                    assert order.delivered is not None
                    assert order.ended == serial.end(found[1], order.delivered, order.unit, now_us), found[1]
        assert begun == set(asked)
        print(dict(verdicts))
        assert {"ADMITTED", "BALANCE", *(verdict.name for verdict in QUOTAS.values())} == set(verdicts)
        await all_is_given_back(books, callers, serial)


async def all_is_given_back(books: Books, callers: list[Caller], serial: Serial) -> None:
    """Once all orders have ended: nothing is open, and what is used is what the model and the ledger say."""
    ended_us = NOW_US + 5 * 3600 * SECOND_US
    for caller in callers:
        await expire(books.redis, caller.org_id, ended_us, most=10_000, remember_s=86_400)
    await drain(books)
    for caller in callers:
        found = await counters(books, caller)
        used = await books.ledger.usage(caller.org_id, "2036-11-01", "2036-11-30", ("key",), 1_000)
        assert nothing_open(found)
        for whose, scope in (("org", caller.org_id), ("key", caller.key_id)):
            rows = [row for row in used if scope in (caller.org_id, row.key_id)]
            images, money = sum(row.images for row in rows), sum(row.amount_micro_mxn for row in rows)
            assert found[whose]["month_done"] == found[whose]["day_done"] == images == serial.images[scope]
            assert found[whose]["spent_done"] == money == serial.spent[scope]


async def prepare(books: Books) -> tuple[list[Caller], Serial]:
    """Organisations and keys with limits that the storm reaches, each another one first; every script is known."""
    callers, serial = [], Serial({}, defaultdict(dict))
    tight = [
        {"in_flight": 60, "images_per_day": 150},
        {"images_per_month": 150},
        {"micro_mxn_per_month": 240 * UNIT},
        {},
    ]
    for number, limits in enumerate(tight):
        credits_ = "126.00" if not limits else "100000.00"
        first = await books.org(f"storm-{number}", credits_)
        serial.credits[first.org_id] = parse_mxn(credits_)
        await books.accounts.set_limits(first.org_id, limits)
        serial.limits[first.org_id] = limits
        of_keys = [
            {"in_flight": 25 + number, "images_per_day": 30},
            {"images_per_month": 40},
            {"micro_mxn_per_month": 60 * UNIT},
        ]
        callers.append(first)
        for key, key_limits in enumerate(of_keys):
            issued = await books.accounts.create_key(first.org_id, f"key {key}")
            await books.accounts.set_key_limits(issued.key_id, key_limits)
            serial.limits[issued.key_id] = key_limits
            callers.append(Caller(first.org_id, issued.key_id))
    for number, caller in enumerate(callers):
        await books.admit(caller, f"warm-{number}")
        await books.wallet.void(caller.org_id, f"warm-{number}", "test")
        await books.settle(caller, f"warm-{number}")
    return callers, serial


@pytest.mark.parametrize("seed", range(20 if LONG else 1))
def test_a_mixed_storm_is_as_if_one_came_after_the_other(
    redis_url: str, valkey_server: ValkeyServer, tmp_path: Path, seed: int
) -> None:
    """Every verdict, with what it says is used, is the rules' own: nothing exceeded by one, none refused that fits."""
    run(mixed(redis_url, [valkey_server.url], tmp_path / "l.db", seed, 60, 60 if LONG else 25))


@pytest.mark.xdist_group("cluster")
@pytest.mark.parametrize("seed", range(10 if LONG else 1))
def test_a_mixed_storm_on_a_cluster(cluster: Cluster, tmp_path: Path, seed: int) -> None:
    """The same, with organisations on three masters."""
    nodes = [f"redis://{node.address}" for node in cluster.masters]
    run(mixed(cluster.url, nodes, tmp_path / "l.db", seed, 60, 60 if LONG else 25))
