"""An organisation that is suspended: its orders are refused, on every gateway and after a wipe; all else goes on."""

import pytest
from redis import Redis

from metering.accounts import Accounts
from metering.ports import WrongField
from metering.verify import Scope, verify
from metering.wallet import keys
from metering.wallet.presence import Presence
from metering.wallet.values import Close, OrderIdentity, Verdict
from tests.kits.books import IVA, MODELS, PLANS, open_books
from tests.long import LONG


async def _never(path: str) -> bool:
    raise AssertionError("no image was charged")


async def test_orders_of_all_its_keys_are_refused_and_reads_go_on(redis_url: str, ledger_url: str) -> None:
    """Live and test keys alike; what is being made is charged, the balance is read, and another one is not touched."""
    async with open_books(redis_url, ledger_url) as books:
        caller, other = await books.org("acme"), await books.org("other")
        assert (await books.admit(caller, "before")).verdict is Verdict.ADMITTED
        org = await books.accounts.suspend_org(caller.org_id, "chargeback")
        assert org.suspended and org.suspended_at is not None
        second = await books.accounts.suspend_org(caller.org_id, "again")
        assert second.suspended_at == org.suspended_at, "it is suspended since then"
        denied = await books.admit(caller, "after")
        assert denied.verdict is Verdict.SUSPENDED and denied.retry_us == 0
        tested = await books.wallet.admit_test(caller, "m", 1, OrderIdentity("f"), "test")
        assert tested.admission.verdict is Verdict.SUSPENDED
        assert (await books.settle(caller, "before", 1)).close is Close.CHARGED
        cut = await books.wallet.read(caller.org_id, caller.key_id)
        assert cut.key_state == "active" and cut.held_micro_mxn == 0
        assert (await books.admit(other, "theirs")).verdict is Verdict.ADMITTED
        assert not (await books.accounts.resume_org(caller.org_id)).suspended
        assert (await books.admit(caller, "resumed")).verdict is Verdict.ADMITTED
        acts = [(one.action, one.details) for one in await books.ledger.audits(caller.org_id, 2**53, 2)]
        assert acts == [("org.resume", "{}"), ("org.suspend", '{"reason":"chargeback"}')]


async def test_an_order_that_was_placed_before_is_given_again(redis_url: str, ledger_url: str) -> None:
    """It is paid: the same order under its idempotency key is answered, and nothing new is bought."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org("acme")
        identity = OrderIdentity("f", key_hash="k")
        assert (await books.admit(caller, "r1", identity=identity)).verdict is Verdict.ADMITTED
        await books.accounts.suspend_org(caller.org_id)
        again = await books.admit(caller, "r2", identity=identity)
        assert again.verdict is Verdict.DUPLICATE
        assert again.earlier is not None and again.earlier.order_id == "r1"
        new = await books.admit(caller, "r3", identity=OrderIdentity("f", key_hash="k2"))
        assert new.verdict is Verdict.SUSPENDED


@pytest.mark.parametrize("while_redis_is", ["there", "wiped"] if LONG else ["wiped"])
async def test_redis_follows_and_forgets_nothing(redis_url: str, ledger_url: str, while_redis_is: str) -> None:
    """A suspension that only SQL knows reaches Redis by any projector, and comes back after a wipe; `verify` looks."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org("acme")
        org = await books.ledger.org("acme")
        wallet = keys.OrgKeys(caller.org_id).wallet
        await Accounts(books.ledger, None, PLANS, MODELS, IVA, "test").suspend_org(org.org_id)
        assert await books.redis.hget(wallet, "suspended") is None, "nobody has told Redis yet"
        if while_redis_is == "wiped":
            with Redis.from_url(redis_url) as redis:
                redis.flushall()
        await books.projector.round()
        assert (await books.admit(caller, "r1")).verdict is Verdict.SUSPENDED
        await books.redis.hdel(wallet, "suspended")
        found = await verify(books.ledger, books.wallet, Presence(books.redis), _never, Scope(org, images=False))
        assert [(one.what, one.expected, one.found) for one in found] == [("suspended: ledger, Redis", "True", "False")]


async def test_a_name_that_is_taken_and_a_plan_that_is_not_there_are_refused(redis_url: str, ledger_url: str) -> None:
    """Each names its field, and nothing is written; the old name leads nowhere after a renaming, the id stays."""
    async with open_books(redis_url, ledger_url) as books:
        caller, _ = await books.org("acme"), await books.org("other")
        for change in (
            books.accounts.rename_org("acme", "other"),
            books.accounts.rename_org("acme", " x"),
            books.accounts.set_plan("acme", "gold"),
        ):
            with pytest.raises(WrongField, match=r"^(name|plan): "):
                await change
        assert (await books.accounts.rename_org("acme", "Ñandú")).org_id == caller.org_id
        assert [one.name for one in await books.ledger.orgs()] == ["Ñandú", "other"]
        (row, *_) = await books.ledger.audits(caller.org_id, 2**53, 1)
        assert (row.action, row.details) == ("org.rename", '{"name":"Ñandú","before":"acme"}')
