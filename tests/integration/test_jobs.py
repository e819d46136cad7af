"""Upstream jobs with their holds: kept as long as the order is open, and found when their owner is dead (rule 21)."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from metering.wallet import keys
from metering.wallet.jobs import UpstreamJobs
from metering.wallet.values import Caller, Close
from proxy.orders.orphans import Orphans
from tests.kits.books import NOW_US, SECOND_US, Books, open_books, pinned, wipe

Ending = Callable[[Books, Caller], Coroutine[Any, Any, None]]


class Called:
    """An upstream that remembers what was called off."""

    def __init__(self) -> None:
        self.handles: list[str] = []

    async def cancel_job(self, handle: str) -> None:
        """Remember it."""
        self.handles.append(handle)

    def job_id(self, handle: str) -> str | None:
        """Its handles do not say."""
        return None


async def die(books: Books, jobs: UpstreamJobs) -> None:
    """Age the beat by ten seconds."""
    await books.redis.delete(keys.alive(jobs.owner))


def seen_from(books: Books) -> UpstreamJobs:
    """The jobs as another gateway sees them, which has missed the dead ones once already."""
    return UpstreamJobs(books.redis)


async def found(jobs: UpstreamJobs) -> list[str]:
    """Handles of the orphans after two looks, as a gateway makes them, sorted."""
    await jobs.orphans()
    return sorted(job.handle for job in await jobs.orphans())


@pytest.mark.rule(21)
async def test_a_job_is_an_orphan_from_its_owners_death_until_its_order_ends(redis_url: str, tmp_path: Path) -> None:
    """Two calls of one order are two jobs; a beat keeps both from everybody."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        owner, other = UpstreamJobs(books.redis), seen_from(books)
        await books.admit(caller, "r", pinned(8))
        await owner.note(caller.org_id, "r", "fal", "https://fal/1/cancel")
        await owner.note(caller.org_id, "r", "fal", "https://fal/2/cancel\nwith a line break")
        assert await found(other) == []
        await die(books, owner)
        assert await found(other) == ["https://fal/1/cancel", "https://fal/2/cancel\nwith a line break"]
        await owner.beat()
        assert await found(other) == []


async def test_a_job_without_an_open_hold_is_not_kept(redis_url: str, tmp_path: Path) -> None:
    """Nothing would ever forget it."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        owner = UpstreamJobs(books.redis)
        await owner.note(caller.org_id, "never admitted", "fal", "h")
        await books.charge(caller, "r")
        await owner.note(caller.org_id, "r", "fal", "h")
        await die(books, owner)
        assert await found(seen_from(books)) == []


async def _settle(books: Books, caller: Caller) -> None:
    assert (await books.settle(caller, "r")).close is Close.CHARGED


async def _void(books: Books, caller: Caller) -> None:
    assert (await books.wallet.void(caller.org_id, "r", "test")).close is Close.VOIDED


async def _expire(books: Books, caller: Caller) -> None:
    books.wallet.at(NOW_US + 71 * SECOND_US)
    await books.admit(caller, "another")


@pytest.mark.parametrize("end", [_settle, _void, _expire])
async def test_closing_an_order_forgets_its_jobs(redis_url: str, tmp_path: Path, end: Ending) -> None:
    """A charge, a void and an expiry alike, and only that order's."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller, neighbour = await books.org(), await books.org("neighbour")
        owner = UpstreamJobs(books.redis)
        for one, name in ((caller, "r"), (neighbour, "theirs")):
            await books.admit(one, name)
            await owner.note(one.org_id, name, "fal", name)
        await end(books, caller)
        await die(books, owner)
        assert await found(seen_from(books)) == ["theirs"]


async def test_forget_takes_one_order_off_the_list(redis_url: str, tmp_path: Path) -> None:
    """The order of the job no longer has a hold."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        owner, other = UpstreamJobs(books.redis), seen_from(books)
        for name in ("a", "b"):
            await books.admit(caller, name)
            await owner.note(caller.org_id, name, "fal", name)
        await die(books, owner)
        await found(other)
        (first,) = [job for job in await other.orphans() if job.handle == "a"]
        await other.forget(first)
        assert await found(other) == ["b"]


@pytest.mark.rule(21)
async def test_one_of_many_claims_a_dead_owners_order(redis_url: str, tmp_path: Path) -> None:
    """Twenty gateways at once."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        owner = UpstreamJobs(books.redis)
        await books.admit(caller, "r")
        await owner.note(caller.org_id, "r", "fal", "h")
        await die(books, owner)
        many = [seen_from(books) for _ in range(20)]
        await found(many[0])
        (job,) = await many[0].orphans()
        claims = await asyncio.gather(*(one.claim(job) for one in many))
        assert claims.count(True) == 1


async def test_flushall_is_harmless(redis_url: str, tmp_path: Path) -> None:
    """The jobs are gone with their holds; a job noted right after it is not taken for a dead owner's."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        owner, other = UpstreamJobs(books.redis), seen_from(books)
        await owner.beat()
        await books.admit(caller, "r")
        await owner.note(caller.org_id, "r", "fal", "lost")
        await wipe(books.redis)
        assert await found(other) == []
        await owner.note(caller.org_id, "r", "fal", "lost")
        assert await found(other) == []
        await books.projector.round()
        await books.admit(caller, "next")
        await owner.note(caller.org_id, "next", "fal", "next")  # its owner's next beat is up to a second away
        assert await found(other) == []


async def test_a_redis_that_was_away_longer_than_a_life_kills_nobody(redis_url: str, tmp_path: Path) -> None:
    """All signs of life have expired when it is back: the first check gives the others time to beat."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        owner, other = UpstreamJobs(books.redis), seen_from(books)
        await books.admit(caller, "r")
        await owner.note(caller.org_id, "r", "fal", "h")
        await die(books, owner)
        assert await other.orphans() == []
        await owner.beat()
        assert await other.orphans() == []
        await die(books, owner)
        assert await other.orphans() == []
        assert [job.handle for job in await other.orphans()] == ["h"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"damaged",
        b"[]",
        b"{}",
        b'{"request_id": "r"}',
        b"\xff",
        b'"text"',
        b"null",
        b'{"request_id": "r", "org_id": "no uuid", "owner": "dead", "provider": "fal", "handle": "h"}',
        b'{"request_id": "r", "org_id": 5, "owner": "dead", "provider": "fal", "handle": "h"}',
        b'{"request_id": "r", "org_id": "%032d", "owner": null, "provider": "fal", "handle": "h"}' % 0,
    ],
)
async def test_a_malformed_record_does_not_stop_the_others(redis_url: str, tmp_path: Path, line: bytes) -> None:
    """Alone, or with a good one of the same order: readable ones are ended, and the books are right."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        owner, upstream = UpstreamJobs(books.redis), Called()
        names = keys.OrgKeys(caller.org_id)
        for name in ("mixed", "whole"):
            await books.admit(caller, name)
            await owner.note(caller.org_id, name, "fal", name)
        good = await books.redis.hget(names.jobs, "mixed")
        assert isinstance(good, bytes)
        await books.redis.hset(names.jobs, mapping={"bad": line, "mixed": line + b"\n" + good})
        await die(books, owner)
        orphans = Orphans(seen_from(books), books.wallet, {"fal": upstream})
        await orphans.look()
        await orphans.look()
        assert sorted(upstream.handles) == ["mixed", "whole"]
        assert {(event.end, event.reason) for event in await books.events(caller)} == {("void", "owner_died")}
        assert (await books.cut(caller)).held_micro_mxn == 0


async def test_jobs_of_a_provider_that_is_not_set_up_here_end_as_voids_too(redis_url: str, tmp_path: Path) -> None:
    """Nobody can call the job off, and the customer gets the money back all the same."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        owner = UpstreamJobs(books.redis)
        await books.admit(caller, "r")
        await owner.note(caller.org_id, "r", "elsewhere", "h")
        await die(books, owner)
        orphans = Orphans(seen_from(books), books.wallet, {})
        await orphans.look()
        await orphans.look()
        (event,) = await books.events(caller)
        assert (event.end, event.reason, event.amount_micro_mxn) == ("void", "owner_died", 0)
