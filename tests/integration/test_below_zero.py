"""Each step that lowers a balance and leaves it below zero is counted and logged, once (rule 10)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from metering.wallet import keys
from metering.wallet.values import Close, Replay
from tests.integration.test_replay import answered
from tests.kits.books import UNIT, drain, open_books


def counted() -> float:
    """Value of the metric."""
    return REGISTRY.get_sample_value("ghub_balance_below_zero_total") or 0.0


@contextmanager
def told(*lines: tuple[str, str]) -> Iterator[None]:
    """These (cause, balance) are logged inside, and counted, and no other."""
    before = counted()
    with capture_logs() as logs:
        yield
    said: list[dict[str, Any]] = [dict(line) for line in logs if line["event"] == "balance_below_zero"]
    assert [(line["cause"], line["balance_mxn"]) for line in said] == list(lines)
    assert counted() == before + len(lines)


@pytest.mark.rule(10)
async def test_each_charge_of_a_journal_below_zero_is_counted(redis_url: str, tmp_path: Path) -> None:
    """Not the one that reaches zero, not one that is replayed again, and not every look of a projection (rule 10)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="1.68")
        with told():
            assert await books.wallet.replay(answered(caller, "a", 2)) is Replay.NOW
        with told(("replay", "-0.84")):
            assert await books.wallet.replay(answered(caller, "b", 1)) is Replay.NOW
            assert await books.wallet.replay(answered(caller, "b", 1)) is Replay.CHARGED
        with told(("replay", "-2.52")):
            assert await books.wallet.replay(answered(caller, "c", 2)) is Replay.NOW
        with told():
            for _ in range(3):
                await books.projector.org(caller.org_id)
            await books.accounts.add_credit("acme", "some", "bonus", UNIT)
            await books.accounts.set_limits("acme", {"images_per_minute": 3})


async def test_a_settlement_below_zero_is_counted(redis_url: str, tmp_path: Path) -> None:
    """An adjustment took the money that a hold had set aside: the balance is zero then, and below after the charge."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="0.84")
        await books.admit(caller, "r")
        with told():
            await books.accounts.add_credit("acme", "back", "adjustment", -UNIT)
        with told(("settlement", "-0.84")):
            for _ in range(2):
                assert (await books.settle(caller, "r")).close is Close.CHARGED


async def test_an_adjustment_below_zero_is_counted_once(redis_url: str, tmp_path: Path) -> None:
    """And a second one that takes it further down again."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="0.84")
        with told(("adjustment", "-0.84"), ("adjustment", "-1.68")):
            await books.accounts.add_credit("acme", "a", "adjustment", -2 * UNIT)
            await books.projector.org(caller.org_id)
            await books.accounts.add_credit("acme", "b", "adjustment", -UNIT)
            await books.projector.round()


async def test_a_rebuild_that_finds_a_charge_which_redis_had_lost_is_counted(redis_url: str, tmp_path: Path) -> None:
    """Redis had acknowledged it and forgot it; the rebuilt wallet is below zero. A second rebuild changes nothing."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="1.68")
        await books.charge(caller, "r", 2)
        await drain(books)
        wallet = keys.OrgKeys(caller.org_id).wallet
        await books.redis.hset(wallet, mapping={"charged": 0, "available": 2 * UNIT, "number": 0})
        await books.redis.delete(keys.OrgKeys(caller.org_id).closed("r"))
        await books.charge(caller, "again", 1)
        await drain(books)
        await books.projector.forget(None)
        with told(("rebuild", "-0.84")):
            await books.projector.round()
        await books.projector.forget(None)
        with told():
            await books.projector.round()
