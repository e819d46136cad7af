"""The month's rate: one source of truth, a grace that ends, an alarm that comes in time (rule 25)."""

from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from metering.clock import month_start_us, unix_us_at, utc_at
from metering.fx import WARN_US, FxRateMissing, FxTable, seed
from metering.ledger.sqlite import SqliteLedger
from metering.ports import LedgerAway, NotThere, WrongField
from metering.pricing import FxRate
from tests.conftest import run
from tests.kits.books import ACT, open_books, sql

HOUR_US = 3_600_000_000
NOVEMBER = FxRate("2036-11", Decimal(20), "test")
DECEMBER_US = month_start_us("2036-12")
EARLY = datetime(2036, 1, 1, tzinfo=UTC)


def rates_of(path: Path, *known: FxRate, grace_h: float = 48) -> FxTable:
    async def work() -> FxTable:
        ledger = SqliteLedger(path / "l.db")
        await ledger.migrate()
        for rate in known:
            await ledger.add_rate(rate, EARLY)
        rates = FxTable(ledger, grace_h)
        await rates.refresh()
        await ledger.aclose()
        return rates

    return run(work())


def test_last_months_rate_goes_on_for_its_grace_and_no_longer(tmp_path: Path) -> None:
    """It names its own month; after the grace there is none."""
    rates = rates_of(tmp_path, NOVEMBER)
    assert rates.rate_for("2036-11", DECEMBER_US - 1) == NOVEMBER
    assert rates.rate_for("2036-12", DECEMBER_US) == NOVEMBER
    assert rates.rate_for("2036-12", DECEMBER_US + 48 * HOUR_US - 1) == NOVEMBER
    with pytest.raises(FxRateMissing, match="2036-12"):
        rates.rate_for("2036-12", DECEMBER_US + 48 * HOUR_US)


def test_a_rate_of_the_month_needs_no_grace(tmp_path: Path) -> None:
    """It holds for the whole month, and not for the month after next."""
    december = FxRate("2036-12", Decimal("21.5"), "test")
    rates = rates_of(tmp_path, NOVEMBER, december)
    assert rates.rate_for("2036-12", DECEMBER_US + 100 * HOUR_US) == december
    with pytest.raises(FxRateMissing):
        rates.rate_for("2037-02", month_start_us("2037-02"))


def test_without_grace_a_missing_rate_is_missing_at_once(tmp_path: Path) -> None:
    """`GHUB_FX_GRACE_H=0`."""
    with pytest.raises(FxRateMissing):
        rates_of(tmp_path, NOVEMBER, grace_h=0).rate_for("2036-12", DECEMBER_US)


@pytest.mark.parametrize(
    ("known", "at_us", "missing"),
    [
        ([NOVEMBER], DECEMBER_US - WARN_US - 1, []),
        ([NOVEMBER], DECEMBER_US - WARN_US, ["2036-12"]),
        ([NOVEMBER], DECEMBER_US - 1, ["2036-12"]),
        ([NOVEMBER], DECEMBER_US, ["2036-12"]),
        ([], DECEMBER_US - 1, ["2036-11", "2036-12"]),
        ([NOVEMBER, FxRate("2036-12", Decimal(1), "x")], DECEMBER_US - 1, []),
    ],
)
def test_a_missing_rate_is_alarmed_three_days_before(
    tmp_path: Path, known: list[FxRate], at_us: int, missing: list[str]
) -> None:
    """This month's at once, the next one's from three days before it begins."""
    assert rates_of(tmp_path, *known).missing(at_us) == missing


async def test_a_new_rate_is_seen_and_an_absent_table_leaves_the_last_reading(tmp_path: Path) -> None:
    """A refresh reads the table again; while the database is away the last reading holds."""
    ledger = SqliteLedger(tmp_path / "l.db")
    await ledger.migrate()
    rates = FxTable(ledger, 48)
    await rates.refresh()
    with pytest.raises(FxRateMissing):
        rates.rate_for("2036-11", unix_us_at(EARLY))
    await ledger.add_rate(NOVEMBER, EARLY)
    await rates.refresh()
    assert rates.rate_for("2036-11", unix_us_at(EARLY)) == NOVEMBER
    await ledger.aclose()

    nowhere = SqliteLedger(tmp_path / "unmigrated.db")
    rates._ledger = nowhere
    with pytest.raises(LedgerAway):
        await rates.refresh()
    assert rates.rate_for("2036-11", unix_us_at(EARLY)) == NOVEMBER
    await nowhere.aclose()


async def test_the_seed_fills_an_empty_table_and_nothing_else(tmp_path: Path) -> None:
    """A rate that somebody set is never touched by the file that ships."""
    ledger = SqliteLedger(tmp_path / "l.db")
    await ledger.migrate()
    await seed(ledger, [NOVEMBER])
    await seed(ledger, [FxRate("2036-11", Decimal(99), "other"), FxRate("2099-12", Decimal(99), "other")])
    assert await ledger.rates() == [NOVEMBER]
    await ledger.aclose()


@pytest.mark.rule(25)
async def test_a_rate_is_in_force_once_it_is_approved(redis_url: str, ledger_url: str) -> None:
    """(rule 25) Until then the month has none, or the one before; who entered and who approved it stay known."""
    async with open_books(redis_url, ledger_url) as books:
        accounts, table = books.accounts, FxTable(books.ledger, 0)
        assert await accounts.add_rate(FxRate("2041-02", Decimal(19), "DOF"))
        await table.refresh()
        at_us = month_start_us("2041-02")
        assert table.missing(at_us) == ["2041-02"], "it waits for its approval"
        with pytest.raises(FxRateMissing):
            table.rate_for("2041-02", at_us)
        with pytest.raises(WrongField, match=r"rate: the last that was entered for 2041-02 is 19\.00 by test"):
            await accounts.approve_rate("2041-02", Decimal("19.5"))
        approved = await accounts.approve_rate("2041-02", Decimal(19))
        assert (approved.entered_by, approved.approved_by) == ("test", "test")
        assert await accounts.approve_rate("2041-02", Decimal(19)) == approved, "twice is once"
        assert await accounts.add_rate(FxRate("2041-02", Decimal("19.5"), "DOF"))
        await table.refresh()
        assert table.rate_for("2041-02", at_us).mxn_per_usd == Decimal(19), "the new one is not approved"
        assert ("2041-02", Decimal("19.5")) not in await books.ledger.rate_rows(), "no proof may have it"
        await accounts.approve_rate("2041-02", Decimal("19.5"))
        await table.refresh()
        assert table.rate_for("2041-02", at_us).mxn_per_usd == Decimal("19.5")
        with pytest.raises(NotThere, match="no rate was entered for 2041-03"):
            await accounts.approve_rate("2041-03", Decimal(19))


async def test_a_month_that_has_begun_approves_no_other_rate(redis_url: str, ledger_url: str) -> None:
    """It was entered in time and approved too late; a month without any may still be given one."""
    async with open_books(redis_url, ledger_url) as books:
        ledger, begun = books.ledger, utc_at(month_start_us("2041-02"))
        assert await ledger.add_rate(FxRate("2041-02", Decimal(19), "x"), EARLY, ACT, approved=True)
        assert await ledger.add_rate(FxRate("2041-02", Decimal(20), "x"), EARLY, ACT)
        with pytest.raises(WrongField, match=r"2041-02 has begun at 19\.00"):
            await ledger.approve_rate("2041-02", Decimal(20), begun, ACT)
        assert await ledger.add_rate(FxRate("2041-01", Decimal(18), "late"), begun, ACT)
        assert (await ledger.approve_rate("2041-01", Decimal(18), begun, ACT)).approved_by == "test"


@pytest.mark.parametrize(
    ("rate", "refused"),
    [("22.00", False), ("22.0001", True), ("18.00", False), ("17.9999", True), ("195", True), ("1.95", True)],
)
async def test_a_jump_over_a_tenth_is_refused(redis_url: str, tmp_path: Path, rate: str, refused: bool) -> None:
    """It is compared with the rate before it, and says both; whoever is sure may insist."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        new = FxRate("2036-12", Decimal(rate), "DOF")
        if refused:
            with pytest.raises(WrongField, match=rf"mxn_per_usd: 20\.00 of 2036-11 → {rate.rstrip('0')}.* %"):
                await books.accounts.add_rate(new)
            assert [one.rate.month for one in await books.ledger.rate_records()] == ["2036-11"]
        assert await books.accounts.add_rate(new, force=refused)


async def test_small_steps_that_nobody_approved_do_not_add_up(redis_url: str, tmp_path: Path) -> None:
    """A rate is compared with what is in force, not with what somebody has just entered."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        assert await books.accounts.add_rate(FxRate("2036-12", Decimal("21.9"), "x"))
        with pytest.raises(WrongField, match=r"20\.00 of 2036-11 → 23\.90 is \+19\.5 %"):
            await books.accounts.add_rate(FxRate("2036-12", Decimal("23.9"), "x"))


async def test_what_is_entered_again_where_no_approval_is_needed_is_in_force(redis_url: str, tmp_path: Path) -> None:
    """It was there already, and waited."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        rate = FxRate("2036-12", Decimal("20.1"), "x")
        assert await books.accounts.add_rate(rate)
        assert not await books.accounts.add_rate(rate, approved=True)
        assert rate in await books.ledger.rates()


@pytest.mark.rule(3)
@pytest.mark.parametrize("statement", ["UPDATE fx_approvals SET approved_by = 'x'", "DELETE FROM fx_approvals"])
async def test_approvals_are_append_only(redis_url: str, ledger_url: str, statement: str) -> None:
    """(rule 3) Also for who goes around the program."""
    async with open_books(redis_url, ledger_url) as books:
        before = await books.ledger.rate_records()
        with suppress(Exception):
            sql(ledger_url, statement)
        assert await books.ledger.rate_records() == before
