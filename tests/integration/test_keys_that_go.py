"""Every key in Redis either goes by itself, or stays by design: nothing fills a Redis that may not evict (rule 28)."""

import re
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from metering.wallet.connection import WalletAway
from metering.wallet.jobs import UpstreamJob, UpstreamJobs
from metering.wallet.keys import OrgKeys
from metering.wallet.presence import Presence
from metering.wallet.values import OrderIdentity
from tests.conftest import run
from tests.integration.test_replay import answered
from tests.kits.books import NOW_US, SECOND_US, drain, dump, hash_of, make_groups, open_books, pinned

STAYS = {
    "mark": "says that the partition is projected",
    "home": "on which run of which server",
    "ledger": "and from which ledger",
    "committed": "what this ledger committed last; bounded",
    "kept": "what it has committed, for a while and within a space",
    "events": "the stream; what is booked is deleted from it",
    "wallet": "one an organisation",
    "access": "one an API key",
    "key": "one an API key",
    "busy": "one a partition; who has no hold is taken out",
    "open": "one an organisation with holds, which end",
    "hold": "goes with the order's end",
    "jobs": "one a partition; goes with the order's end",
}
"""Without an end, and why."""

GOES_S = {
    "closed": 86_400,
    "result": 86_400,
    "placed": 86_400,
    "once": 86_400,
    "sandbox": 86_400,
    "retried": 86_400,
    "recent": 180,
    "commit": 86_400,
    "again": 86_400,
    "taken": 600,
    "claims": 180,
    "claimed": 180,
    "gone": 180,
    "asking": 180,
    "awaited": 180,
    "journal": 10,
    "alive": 10,
    "claim": 30,
    "fence": 5,
}
"""The longest that a key of this kind may stay, in seconds."""

_KIND = re.compile(rb"\{p[0-9]+\}:([a-z]+)")


def test_every_key_goes_by_itself_or_stays_by_design(redis_url: str, tmp_path: Path) -> None:
    """After orders of every kind (with keys, retried, refused, failed, from a journal, of the sandbox, of clients that
    are gone) no key is of an unknown kind or stays for longer than its kind may."""

    async def work() -> None:
        async with open_books(redis_url, tmp_path / "l.db") as books:
            await make_groups(books.redis)
            caller = await books.org(mxn="1000.00", requests_per_minute=60)
            test = await books.accounts.create_key("acme", "test", test=True)
            sandbox = await books.wallet.key(hash_of(test.secret))
            assert sandbox is not None
            await books.wallet.admit_test(sandbox, "a/b", 1, OrderIdentity("f", key_hash="k"), "sandbox")
            for tries in range(3):
                await books.admit(caller, f"sdk-{tries}", identity=OrderIdentity("same", tries=tries))
            await books.wallet.void(caller.org_id, "sdk-0", "test", comes_again=True)
            await books.admit(caller, "keyed", pinned(2), OrderIdentity("keyed", key_hash="key"))
            await books.settle(caller, "keyed", 2)
            await books.admit(caller, "gone")
            await books.wallet.client_gone(caller, "gone", OrderIdentity("gone"))
            await books.settle(caller, "gone")
            await books.charge(caller, "claimed")
            await books.admit(caller, "claims it", identity=OrderIdentity("claimed", tries=1))
            await books.wallet.client_gone(caller, "never heard of", OrderIdentity("never heard of"))
            for name in ("left", "given", "given again"):
                await books.admit(caller, name, identity=OrderIdentity("left"))
                await books.wallet.client_gone(caller, "left", OrderIdentity("left"))
            await books.wallet.replay(answered(caller, "replayed"))
            for i in range(80):
                await books.admit(caller, f"refused-{i}", identity=OrderIdentity("many", tries=1))
            jobs = UpstreamJobs(books.redis)
            await jobs.note(caller.org_id, "sdk-1", "fal", "handle")
            assert await jobs.claim(UpstreamJob("sdk-1", caller.org_id, jobs.owner, "fal", "handle"))
            await Presence(books.redis).beat(uuid4(), 0)
            books.wallet.at(NOW_US + 100 * SECOND_US)
            await books.admit(caller, "expires the others")
            await books.projector.forget(None)
            await drain(books)
            await books.projector.round()
            await books.charge(caller, "after the rebuild")
            await drain(books)
            await books.projector.round()

    run(work())
    now_s = time.time()
    kinds = set()
    for name, (_, ends_s) in dump(redis_url).items():
        found = _KIND.match(name)
        assert found is not None, name
        kind = found[1].decode()
        kinds.add(kind)
        if kind in STAYS:
            assert ends_s == -1, name
        else:
            assert 0 < ends_s - now_s <= GOES_S[kind] + 1, (name, ends_s - now_s)
    wanted = {"claims", "claimed", "gone", "asking", "awaited", "recent", "once", "sandbox", "result", "closed"}
    wanted |= {"committed", "kept", "journal"}
    assert wanted <= kinds


@pytest.mark.rule(28)
async def test_what_a_dying_call_leaves_goes_by_itself(redis_url: str, tmp_path: Path) -> None:
    """That a client is gone is written together with its end: the gateway may die behind any call (rule 28)."""

    async def dies(*_: object) -> None:
        raise ConnectionError("the process ends here")

    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        books.redis.expire = dies  # type: ignore[method-assign, assignment]
        with suppress(WalletAway):
            await books.admit(caller, "r")
            await books.wallet.client_gone(caller, "r", OrderIdentity("r"))
        names = OrgKeys(caller.org_id)
        assert await books.redis.hget(names.claims("r"), "gone") is not None
        for name in (names.claims("r"), names.gone(caller.key_id, "r"), names.recent(caller.key_id, "r")):
            assert 0 < await books.redis.pttl(name) <= 180_000
