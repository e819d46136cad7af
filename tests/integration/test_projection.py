"""SQL → Redis: what was lost is rebuilt exactly, what is stale never wins (rules 1, 2, 26 and 27)."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from metering.accounts import Accounts
from metering.clock import Period
from metering.ledger.sqlite import SqliteLedger
from metering.money import parse_mxn
from metering.ports import Charged, Snapshot
from metering.wallet import keys
from metering.wallet.connection import NotProjected
from metering.wallet.projection import Projector
from metering.wallet.values import Caller, Close, Verdict
from tests.kits.books import (
    IVA,
    MODELS,
    PLANS,
    UNIT,
    Books,
    drain,
    hash_of,
    open_books,
    patiently,
    pinned,
    result_of,
    snapshot,
    start_worker,
    wipe,
)


class Paused(SqliteLedger):
    """A ledger of a projector that stands still after reading what was charged, until it is told to go on."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.read, self.go_on = asyncio.Event(), asyncio.Event()

    async def charged(self, org_ids: Sequence[str]) -> dict[str, Charged]:
        charged = await super().charged(org_ids)
        self.read.set()
        await self.go_on.wait()
        return charged


@asynccontextmanager
async def stalled_rebuild(books: Books, path: Path) -> AsyncIterator[Paused]:
    """A rebuild that is under way in another gateway, between its reading and its writing."""
    ledger = Paused(path)
    task = asyncio.create_task(Projector(books.redis, ledger).round())
    await ledger.read.wait()
    try:
        yield ledger
    finally:
        ledger.go_on.set()
        await task
        await ledger.aclose()


@pytest.mark.rule(2)
async def test_a_wiped_redis_is_rebuilt(redis_url: str, tmp_path: Path) -> None:
    """Keys, limits, revocations and balances are as before; until then they are away, and never unknown (rule 2)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        org = await books.accounts.create_org("acme", "default")
        good, bad = [await books.accounts.create_key("acme", name) for name in ("good", "bad")]
        await books.accounts.add_credit("acme", "c", "recharge", 20 * UNIT)
        await books.accounts.set_limits("acme", {"requests_per_minute": 77})
        await books.accounts.revoke_key(bad.key_id)
        caller = Caller(org.org_id, good.key_id)
        for i in range(5):
            await books.charge(caller, f"r{i}")
        await drain(books)
        await wipe(books.redis)
        for secret in (good.secret, "never issued"):
            with pytest.raises(NotProjected):
                await books.wallet.key(hash_of(secret))
        with pytest.raises(NotProjected):
            await books.admit(caller, "x")

        await books.projector.round()
        assert await books.wallet.key(hash_of(good.secret)) == caller
        assert await books.wallet.key(hash_of("never issued")) is None
        revoked = await books.wallet.key(hash_of(bad.secret))
        assert revoked is not None
        assert (await books.admit(revoked, "x")).verdict is Verdict.REVOKED
        cut = await books.cut(caller)
        assert (cut.available_micro_mxn, cut.charged_micro_mxn) == (15 * UNIT, 5 * UNIT)
        assert (cut.number, cut.credit_number) == (5, 1)
        admission = await books.admit(caller, "r6")
        assert (admission.verdict, admission.requests.limit) == (Verdict.ADMITTED, 77)


@pytest.mark.rule(27)
async def test_open_holds_survive_a_rebuild_when_only_the_marks_were_lost(redis_url: str, tmp_path: Path) -> None:
    """Their money stays held, and they can be settled and voided afterwards (rule 27)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="8.40")
        await books.charge(caller, "done")
        for request in ("a", "b"):
            await books.admit(caller, request, pinned(2))
        await drain(books)
        await books.projector.forget(None)
        await books.redis.hset(keys.OrgKeys(caller.org_id).wallet, "available", 12345)
        await books.projector.round()
        cut = await books.cut(caller)
        assert (cut.available_micro_mxn, cut.held_micro_mxn) == (5 * UNIT, 4 * UNIT)
        assert (await books.settle(caller, "a", 2)).close is Close.CHARGED
        assert (await books.wallet.void(caller.org_id, "b", "x")).close is Close.VOIDED
        assert (await books.cut(caller)).available_micro_mxn == 7 * UNIT


@pytest.mark.parametrize("booked", [True, False])
async def test_a_wallet_that_was_lost_is_rebuilt_and_none_is_opened_in_its_place(
    redis_url: str, tmp_path: Path, booked: bool
) -> None:
    """Its holds are money that is set aside, also if nothing was charged yet: a new wallet would have it twice."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="8.40")
        if booked:
            await books.charge(caller, "done")
            await drain(books)
        await books.admit(caller, "open", pinned(2))
        await books.redis.delete(keys.OrgKeys(caller.org_id).wallet)
        await books.projector.org(caller.org_id)
        await books.projector.round()
        assert (await books.cut(caller)).held_micro_mxn == 2 * UNIT
        assert (await books.wallet.void(caller.org_id, "open", "x")).close is Close.VOIDED
        assert (await books.cut(caller)).available_micro_mxn == (9 if booked else 10) * UNIT


async def test_a_rebuild_waits_for_the_stream(redis_url: str, tmp_path: Path) -> None:
    """While events are on their way the partition stays away; once they are booked it is rebuilt with them."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="8.40")
        await books.charge(caller, "r")
        await books.redis.delete(keys.OrgKeys(caller.org_id).mark)
        await books.projector.round()
        with pytest.raises(NotProjected):
            await books.wallet.read(caller.org_id)
        await drain(books)
        await books.projector.round()
        assert (await books.cut(caller)).charged_micro_mxn == UNIT


@pytest.mark.rule(2)
async def test_a_change_whose_process_died_reaches_redis(redis_url: str, tmp_path: Path) -> None:
    """Revocation, credit, limit and key were written to SQL and projected by nobody (rule 2)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        dying = Accounts(books.ledger, None, PLANS, MODELS, IVA, "test")
        await dying.add_credit("acme", "c", "bonus", UNIT)
        await dying.set_limits("acme", {"images_per_minute": 3})
        await dying.revoke_key(caller.key_id)
        assert (await books.admit(caller, "r")).verdict is Verdict.ADMITTED
        await books.projector.round()
        denied = await books.admit(caller, "r2")
        assert (denied.verdict, denied.images.limit) == (Verdict.REVOKED, 3)
        assert (await books.cut(caller)).credits_micro_mxn == 11 * UNIT


async def test_a_stale_projection_never_overwrites_a_newer_one(redis_url: str, tmp_path: Path) -> None:
    """An older snapshot that arrives late changes neither key, nor limit, nor credit."""

    class Late(SqliteLedger):
        old: Snapshot

        async def snapshots(self, org_ids: Sequence[str], period: Period) -> list[Snapshot]:
            return [self.old]

    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        late = Late(tmp_path / "l.db")
        late.old = await snapshot(books.ledger, caller.org_id)
        await books.accounts.add_credit("acme", "c", "bonus", UNIT)
        await books.accounts.set_limits("acme", {"images_per_minute": 3})
        await books.accounts.revoke_key(caller.key_id)
        before = await books.redis.hgetall(keys.OrgKeys(caller.org_id).wallet)
        await Projector(books.redis, late).org(caller.org_id)
        assert await books.redis.hgetall(keys.OrgKeys(caller.org_id).wallet) == before
        assert (await books.admit(caller, "r")).verdict is Verdict.REVOKED
        await late.aclose()


@pytest.mark.rule(2)
async def test_a_wipe_in_the_middle_of_a_rebuild_begins_it_again(redis_url: str, tmp_path: Path) -> None:
    """A rebuild that was wiped half-way sets no mark: nobody is told 401 for a key that exists (rule 2)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        org = await books.accounts.create_org("acme", "default")
        key = await books.accounts.create_key("acme", "main")
        await wipe(books.redis)
        async with stalled_rebuild(books, tmp_path / "l.db"):
            await wipe(books.redis)
        assert await books.projector.missing(None) == keys.PARTITIONS
        with pytest.raises(NotProjected):
            await books.wallet.read(org.org_id)
        with pytest.raises(NotProjected):
            await books.wallet.key(hash_of("never issued"))
        await books.projector.round()
        assert await books.wallet.key(hash_of(key.secret)) == Caller(org.org_id, key.key_id)
        assert (await books.wallet.read(org.org_id)).available_micro_mxn == 0


@pytest.mark.rule(27)
async def test_a_rebuild_that_stood_still_never_overwrites_what_happened_since(redis_url: str, tmp_path: Path) -> None:
    """Another rebuilt, charged, booked and lost the mark before it woke: its old figures are refused (rule 27)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="8.40")
        names = keys.OrgKeys(caller.org_id)
        await books.redis.delete(names.mark)
        async with stalled_rebuild(books, tmp_path / "l.db"):
            await books.redis.delete(names.fence)
            await books.projector.round()
            await books.charge(caller, "r")
            await drain(books)
            await books.redis.delete(names.mark)
        await books.projector.round()
        assert (await books.cut(caller)).available_micro_mxn == 9 * UNIT


async def test_a_dead_rebuilders_fence_falls_by_itself(redis_url: str, tmp_path: Path) -> None:
    """It carries an end, within seconds, and while it stands nobody else rebuilds."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        names = keys.OrgKeys(caller.org_id)
        await books.redis.delete(names.mark)
        async with stalled_rebuild(books, tmp_path / "l.db"):
            assert 0 < await books.redis.pttl(names.fence) <= 5_000
            await books.projector.round()
            with pytest.raises(NotProjected):
                await books.wallet.read(caller.org_id)
        assert (await books.cut(caller)).available_micro_mxn == 10 * UNIT
        assert not await books.redis.exists(names.fence)


@pytest.mark.rule(27)
async def test_race_many_projectors_and_a_busy_organisation_keep_the_exact_balance(
    redis_url: str, tmp_path: Path
) -> None:
    """20 rounds of lost marks while four projectors, a consumer, credits, charges and voids go on (rule 27)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="100.00")
        charged, credited = 0, parse_mxn("100.00")
        projectors = [Projector(books.redis, books.ledger) for _ in range(4)]

        async def order(name: str, charge: bool) -> int:
            """Charged 1 or 0."""
            admission = await patiently(lambda: books.admit(caller, name))
            if admission.verdict is not Verdict.ADMITTED:
                return 0
            if charge:
                return (await patiently(lambda: books.settle(caller, name))).close is Close.CHARGED
            await patiently(lambda: books.wallet.void(caller.org_id, name, "race"))
            return 0

        async def keep(stop: asyncio.Event, projector: Projector) -> None:
            while not stop.is_set():
                await projector.round()
                await asyncio.sleep(0)

        stop = asyncio.Event()
        background = [asyncio.create_task(keep(stop, projector)) for projector in projectors]
        background.append(asyncio.create_task(books.consumer().run(stop)))
        for turn in range(20):
            _, *ends = await asyncio.gather(
                books.accounts.add_credit("acme", f"c{turn}", "bonus", 1),
                *(order(f"{turn}-{i}", i % 3 > 0) for i in range(6)),
                books.redis.delete(keys.OrgKeys(caller.org_id).mark),
            )
            credited += 1
            charged += sum(ends[:6]) * UNIT
        stop.set()
        await asyncio.gather(*background)
        await drain(books)
        await books.projector.round()
        await books.projector.round()
        cut = await books.cut(caller)
        assert (cut.credits_micro_mxn, cut.charged_micro_mxn) == (credited, charged)
        assert (cut.available_micro_mxn, cut.held_micro_mxn) == (credited - charged, 0)
        assert (await books.ledger.charged_up_to(caller.org_id)).charged_micro_mxn == charged > 0


async def test_race_projectors_of_two_processes_agree(redis_url: str, tmp_path: Path) -> None:
    """They look 50 times each while organisations, keys and credits appear and the Redis is wiped."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        workers = [start_worker("project", redis_url, tmp_path / "l.db", 50) for _ in range(2)]
        callers = []
        for i in range(8):
            callers.append(await books.org(f"org-{i}", "5.00"))
            if i % 4 == 3:
                await wipe(books.redis)
        assert [result_of(worker) for worker in workers] == [50, 50]
        await books.projector.round()
        await books.projector.round()
        for caller in callers:
            cut = await books.cut(caller)
            assert (cut.available_micro_mxn, cut.key_state) == (parse_mxn("5.00"), "active")
