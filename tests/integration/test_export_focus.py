"""Exports as FOCUS: judged by the specification's own rules, and by what the books say."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from metering.exports.focus import COLUMNS, OWN
from metering.exports.reading import Scope, days
from metering.exports.writing import Source
from metering.ledger.record import SqlLedger
from metering.ports import NewCredit
from metering.tax import tax_on
from tests.kits.books import ACT, event, open_ledger
from tests.kits.exports import CLOSE, IVA_RATE, MONTH, exported, fill, org_id_of
from tests.kits.focus import Row, Rule, rules

HERE = Path(__file__).parent
RULES = {version: rules(HERE / f"focus_{version.replace('.', '_')}.txt") for version in COLUMNS}
VERSIONS = pytest.mark.parametrize("version", COLUMNS)
ORG = org_id_of(0)


async def filled(url: str) -> SqlLedger:
    """A month that is closed, and one after it with a late charge, a late refund, a chargeback and an adjustment."""
    ledger = open_ledger(url)
    await ledger.migrate()
    await fill(ledger)
    await ledger.complete_credit("spei-0", {"cfdi": "0a1b2c3d-0000-4000-8000-000000000001"}, CLOSE, ACT)
    assert await ledger.close_month(MONTH, CLOSE, ACT)
    await ledger.book([event(ORG, 99, images=2, name="late")], [], CLOSE)
    at = CLOSE + timedelta(days=1)
    await ledger.refund(f"{ORG}-2", 300_000, "-otra vez", at, ACT)
    back = NewCredit(
        "back-0", ORG, "chargeback", -500_000_000, recharge_id="spei-0", tax=tax_on(-500_000_000, IVA_RATE)
    )
    await ledger.add_credit(back, at, ACT)
    await ledger.add_credit(NewCredit("adjust-0", ORG, "adjustment", -250_000, reason="=tasa"), at, ACT)
    return ledger


async def read(ledger: SqlLedger, version: str, scope: Scope) -> list[Row]:
    data, _ = await exported(Source(ledger, scope), "focus", version)
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


def total(rows: list[Row], column: str, keep: Callable[[Row], bool] = lambda row: True) -> Decimal:
    return sum((Decimal(row[column]) for row in rows if keep(row)), Decimal(0))


@VERSIONS
async def test_every_rule_of_the_specification_holds(ledger_url: str, version: str) -> None:
    """Of a month with orders, recharges, IVA, bonuses and refunds, and of the next, which corrects it."""
    async with aclosing(await filled(ledger_url)) as ledger:
        rows = [row for month in (MONTH, "2036-12") for row in await read(ledger, version, Scope((month,)))]
    assert tuple(rows[0]) == COLUMNS[version]
    assert {row["ChargeCategory"] for row in rows} == {"Usage", "Purchase", "Tax", "Credit", "Adjustment"}
    assert {rule.name: broken[0] for rule in RULES[version] if (broken := rule.broken(rows))} == {}
    assert len(RULES[version]) > 195


@VERSIONS
async def test_the_judge_finds_what_is_wrong(ledger_url: str, version: str) -> None:
    """A rule that no fault breaks proves nothing: for each column, a fault that its rules name."""
    async with aclosing(await filled(ledger_url)) as ledger:
        good = await read(ledger, version, Scope((MONTH,)))
    faults = {
        "BilledCost": "1,5",
        "BillingPeriodStart": "2036-11-01",
        "BillingAccountId": "",
        "ChargeCategory": "usage",
        "ConsumedQuantity": "",
        "ContractedCost": "7",
        "ListCost": "7",
        "PricingCurrency": "EUROS",
        "PricingUnit": "image",
        "ServiceSubcategory": "Pictures",
        "SkuMeter": "",
        "Tags": '{"a": [1]}',
        "SubAccountName": "",
    }
    for column, fault in faults.items():
        bad = [{**row, column: fault} if row["ChargeCategory"] == "Usage" else row for row in good]
        found = [rule for rule in RULES[version] if rule.broken(bad)]
        assert any(column in rule.requirement for rule in found), (column, found)
    for column in COLUMNS[version][: -len(OWN)]:
        without = [{name: cell for name, cell in row.items() if name != column} for row in good]
        present = [rule for rule in RULES[version] if rule.requirement == f"ColumnPresent({column})"]
        assert len(present) == 1 and present[0].broken(without), column


@VERSIONS
async def test_sums_are_what_was_invoiced_and_what_was_used(ledger_url: str, version: str) -> None:
    """Per organisation and period: BilledCost with IVA; EffectiveCost charges less refunds, as in the balances."""
    async with aclosing(await filled(ledger_url)) as ledger:
        for month, invoiced in ((MONTH, "580.00"), ("2036-12", "-580.00")):
            rows = await read(ledger, version, Scope((month,)))
            for sums in await ledger.month_sums(month):
                its_own = [row for row in rows if row["BillingAccountId"] == sums.org_id]
                used = sums.charges_micro_mxn - sums.refunds_micro_mxn
                assert total(its_own, "EffectiveCost") == Decimal(used) / 1_000_000
                wanted = Decimal(invoiced) if month == MONTH or sums.org_id == ORG else Decimal(0)
                assert total(its_own, "BilledCost") == wanted
                entered = total(its_own, "x_CreditMxn", lambda row: bool(row["x_CreditMxn"]))
                assert entered == Decimal(sums.credits_micro_mxn - sums.refunds_micro_mxn) / 1_000_000
            assert {(row["BillingPeriodStart"], row["BillingPeriodEnd"]) for row in rows} == {
                {
                    MONTH: ("2036-11-01T06:00:00Z", "2036-12-01T06:00:00Z"),
                    "2036-12": ("2036-12-01T06:00:00Z", "2037-01-01T06:00:00Z"),
                }[month]
            }


async def test_rows_say_what_they_are(ledger_url: str) -> None:
    """Purchase and IVA, use at the list price in USD and MXN, and corrections of a month that is over."""
    async with aclosing(await filled(ledger_url)) as ledger:
        november, december = [await read(ledger, "1.4", Scope((month,))) for month in (MONTH, "2036-12")]
        both = await read(ledger, "1.4", days("2036-11-01", "2036-12-31"))
    assert Counter(map(str, both)) == Counter(map(str, november + december))
    use = next(row for row in november if row["x_RowId"] == f"{ORG}-2")
    wanted = {
        "BilledCost": "0.00",
        "EffectiveCost": "1.68",
        "ListUnitPrice": "0.84",
        "ListCost": "1.68",
        "PricingCurrency": "USD",
        "PricingCurrencyListUnitPrice": "0.042",
        "PricingCurrencyEffectiveCost": "0.084",
        "ConsumedQuantity": "2",
        "HostProviderName": "fal",
        "SubAccountId": "key_0",
        "ChargeClass": "",
        "SkuPriceId": "2026-11-22+test/fal/flux-1.1-pro",
    }
    assert {name: use[name] for name in wanted} == wanted
    assert json.loads(use["Tags"]) == {"campaña": True, "=1+1": True, "metadata/proyecto": "@x"}
    bought = [row for row in november if row["x_RowId"] == "spei-0"]
    assert [(row["ChargeCategory"], row["BilledCost"], row["EffectiveCost"]) for row in bought] == [
        ("Purchase", "500.00", "0.00"),
        ("Tax", "80.00", "0.00"),
    ]
    assert [row["InvoiceId"][-1] + row["InvoiceDetailId"] for row in bought] == ["1spei-0", "1spei-0/IVA"]
    given = next(row for row in november if row["ChargeCategory"] == "Credit")
    assert (given["x_RowId"], given["x_CreditMxn"], given["ChargeDescription"]) == (
        "'=bonus-0",
        "50.00",
        "Bonus: -bienvenida",
    )
    corrections = {row["x_RowId"]: (row["ChargeCategory"], row["ChargeClass"]) for row in december}
    assert corrections == {
        "late": ("Usage", "Correction"),
        f"refund-{ORG}-2-1": ("Usage", "Correction"),
        "back-0": ("Tax", "Correction"),
        "adjust-0": ("Adjustment", ""),
    }
    refund = next(row for row in november if row["x_RowId"].startswith("refund"))
    assert (refund["ChargeClass"], refund["EffectiveCost"], refund["PricingQuantity"]) == ("", "-0.50", "0")


async def test_a_closed_month_keeps_the_facts_of_its_close(ledger_url: str) -> None:
    """A CFDI that is entered later changes no export of it."""
    async with aclosing(await filled(ledger_url)) as ledger:
        before = await read(ledger, "1.4", Scope((MONTH,)))
        fact = {"cfdi": "0a1b2c3d-0000-4000-8000-000000000002"}
        assert await ledger.complete_credit("spei-1", fact, CLOSE + timedelta(hours=1), ACT)
        assert await read(ledger, "1.4", Scope((MONTH,))) == before
        assert (await ledger.credit("spei-1")).facts == fact


def test_a_rule_that_is_not_known_is_no_rule_that_holds() -> None:
    """The judge does not pass over what it cannot check."""
    with pytest.raises(KeyError):
        Rule("x", "CheckSomething(BilledCost)", "").broken([{"BilledCost": "1"}])
