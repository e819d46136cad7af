"""Exports as FOCUS: judged by the specification's own model, and by what the books say."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import aclosing
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from metering.exports.focus import COLUMNS
from metering.exports.reading import Scope, days
from metering.exports.writing import Source
from metering.ledger.record import SqlLedger
from metering.ports import NewCredit
from metering.tax import tax_on
from tests.kits.books import ACT, event, open_ledger
from tests.kits.exports import CLOSE, IVA_RATE, MONTH, exported, fill, org_id_of
from tests.kits.focus_model import ABSENT, DYNAMIC, NOT_OURS, PERMISSION, Expression, Judge, Row, rules_of

HERE = Path(__file__).parent
MODEL = rules_of(HERE / "focus_1_2.json")
RENAMED = {"ProviderName": "ServiceProviderName", "PublisherName": "HostProviderName"}
"""What 1.3 called anew, and 1.4 has no more under the old names."""

RULES: Mapping[str, Mapping[str, Expression]] = {
    "1.2": MODEL,
    "1.4": {**rules_of(HERE / "focus_1_2.json", RENAMED), **rules_of(HERE / "focus_1_4.json")},
}
CRITERIA = frozenset(
    {
        "ACCOUNT_NAMING_SUPPORTED",
        "MULTIPLE_BILLING_ACCOUNT_TYPES_SUPPORTED",
        "MULTIPLE_PRICING_CATEGORIES_SUPPORTED",
        "MULTIPLE_SUB_ACCOUNT_TYPES_SUPPORTED",
        "NEGOTIATED_PRICING_SUPPORTED",
        "PRICING_BILLING_CURRENCY_DIFFERENCES_SUPPORTED",
        "PUBLIC_PRICE_LIST_SUPPORTED",
        "REGION_SUPPORTED",
        "SUB_ACCOUNT_SUPPORTED",
        "TAGGING_SUPPORTED",
        "UNIT_PRICING_SUPPORTED",
        "USAGE_MEASUREMENT_SUPPORTED",
    }
)
"""What the model asks of a provider of whom this is true; of columns that we write anyway, too."""

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


async def two_months(url: str, version: str) -> list[Row]:
    async with aclosing(await filled(url)) as ledger:
        return [row for month in (MONTH, "2036-12") for row in await read(ledger, version, Scope((month,)))]


LEFT_OUT = {
    "AvailabilityZone",
    "CapacityReservationId",
    "CapacityReservationStatus",
    "CommitmentDiscountCategory",
    "CommitmentDiscountId",
    "CommitmentDiscountName",
    "CommitmentDiscountQuantity",
    "CommitmentDiscountStatus",
    "CommitmentDiscountType",
    "CommitmentDiscountUnit",
    "ResourceId",
    "ResourceName",
    "ResourceType",
}
"""Columns that we have no facts for."""

PERMISSIONS = {
    "CommitmentDiscountQuantity-C-006-C",
    "ConsumedQuantity-C-007-C",
    "CostAndUsage-D-049-C",
    "CostAndUsage-D-053-C",
    "CostAndUsage-D-057-C",
    "ListUnitPrice-C-006-O",
    "SkuPriceDetails-C-005-C",
    "SkuPriceId-C-011-O",
    "Tags-C-002-O",
}
"""Rules that have a check, and allow what it finds."""

BLIND = {
    "InvoiceId-C-004-C",  # null, or
    "InvoiceId-C-005-C",  # not null: the model has both as alternatives, without a condition
    "PricingQuantity-C-008-M",  # not null, if it is not null
}
"""Rules that no row can break."""

ELSEWHERE: Mapping[str, Row] = {
    "BilledCost-C-005-C": {"InvoiceIssuerName": "Another"},
    "BillingAccountType-C-004-C": {"BillingAccountId": ""},
}
"""Rules whose condition chooses no row of ours, and what makes it choose one."""

FAULTS = {
    "CheckGreaterOrEqualThanValue": "-1",
    "FormatString": " ",
    "TypeString": "\ud800",
}
"""What breaks a check; of others, a word that no list has."""


def faulty(row: Row, asked: Expression, number: int) -> Row:
    """Put a fault into the cell that a requirement is about."""
    name = asked["CheckFunction"]
    if name in ("AND", "OR"):
        return faulty(row, asked["Items"][0], number)
    if name == "ColumnPresent":
        return {column: cell for column, cell in row.items() if column != asked["ColumnName"]}
    if name == "CheckNotValue":
        return {**row, asked["ColumnName"]: asked["Value"] or ""}
    if name == "CheckDistinctCount":
        return {**row, asked["ColumnBName"]: str(number) if number % 2 else ""}
    if name == "ColumnByColumnEqualsColumnValue":
        return {**row, asked["ResultColumnName"]: "7"}
    return {**row, asked["ColumnName"]: FAULTS.get(name, "no such thing")}


@VERSIONS
async def test_every_rule_of_the_specification_holds(ledger_url: str, version: str) -> None:
    """Of a month with orders, recharges, IVA, bonuses and refunds, and of the next, which corrects it."""
    rows = await two_months(ledger_url, version)
    assert tuple(rows[0]) == COLUMNS[version]
    assert {row["ChargeCategory"] for row in rows} == {"Usage", "Purchase", "Tax", "Credit", "Adjustment"}
    judge = Judge(RULES[version], rows, CRITERIA)
    broken = {rule_id: rows[min(found)] for rule_id, found in judge.broken.items() if found}
    assert broken == {}
    assert not {"ProviderName", "PublisherName"} & set(COLUMNS["1.4"])


@VERSIONS
async def test_no_rule_disappears(ledger_url: str, version: str) -> None:
    """Each rule is checked, or skipped for what its own fields in the model say."""
    judge = Judge(RULES[version], await two_months(ledger_url, version), CRITERIA)
    assert judge.broken.keys().isdisjoint(judge.skipped) and {*judge.broken, *judge.skipped} == RULES[version].keys()
    assert Counter(judge.skipped.values()) == {DYNAMIC: 201, ABSENT: 65, NOT_OURS: 30, PERMISSION: 9}
    assert len(judge.broken) == len(RULES[version]) - 305
    permissions = {rule_id for rule_id, why in judge.skipped.items() if why == PERMISSION}
    assert permissions == PERMISSIONS
    left_out = {RULES[version][rule_id]["Reference"] for rule_id, why in judge.skipped.items() if why == ABSENT}
    need_not_be = {
        RULES[version][rule_id]["Requirement"]["ColumnName"]
        for rule_id, why in judge.skipped.items()
        if why == NOT_OURS and RULES[version][rule_id]["Function"] == "Presence"
    }
    assert left_out == need_not_be == LEFT_OUT


@VERSIONS
async def test_the_judge_finds_what_is_wrong(ledger_url: str, version: str) -> None:
    """A rule that no fault breaks proves nothing: of each that is checked, a fault in every row that it names."""
    kinds = ("ChargeCategory", "ChargeClass", "InvoiceId")
    of_kinds = {tuple(map(row.get, kinds)): row for row in await two_months(ledger_url, version)}
    good, rules = [*of_kinds.values()], RULES[version]
    blind = set()
    for rule_id in Judge(rules, good, CRITERIA).broken:
        asked = rules[rule_id]["Requirement"]
        if rules[rule_id]["Function"] == "Composite":
            continue
        elsewhere = ELSEWHERE.get(rule_id, {})
        bad = [{**faulty(row, asked, number), **elsewhere} for number, row in enumerate(good)]
        if not Judge(rules, bad, CRITERIA).broken[rule_id]:
            blind.add(rule_id)
    assert blind == BLIND


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
    rule = {
        **MODEL["BilledCost-C-002-M"],
        "Requirement": {"CheckFunction": "CheckSomething", "ColumnName": "BilledCost"},
    }
    with pytest.raises(KeyError):
        Judge({"x": rule}, [{"BilledCost": "1"}], CRITERIA)
