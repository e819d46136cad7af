"""Export as FOCUS 1.2 or 1.4: the dataset Cost and Usage of the FinOps Open Cost and Usage Specification, as CSV.

Prices are those of the list, in USD; billed is in MXN, when credit is bought. So a recharge has a BilledCost and no
EffectiveCost, and use of it has an EffectiveCost and no BilledCost.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_UP, Context, Decimal
from functools import lru_cache, partial
from typing import BinaryIO

import orjson

from metering.clock import Period, day_end_us, day_start_us, month_start_us, next_month, period_at, unix_us_at, utc_at
from metering.exports.csv_lines import csv_lines
from metering.exports.reading import Batch, NamesOf, read
from metering.exports.rows import Written, safe_cells
from metering.exports.writing import Source, Tell
from metering.money import format_mxn, format_rate
from metering.ports import Charge, Credit, CreditType, Names, Refunded
from metering.tax import Tax

BOTH = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingAccountType",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "InvoiceId",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingCurrency",
    "PricingCurrencyContractedUnitPrice",
    "PricingCurrencyEffectiveCost",
    "PricingCurrencyListUnitPrice",
    "PricingQuantity",
    "PricingUnit",
    "RegionId",
    "RegionName",
    "ServiceCategory",
    "ServiceName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceDetails",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "SubAccountType",
    "Tags",
)
"""Columns of both versions."""

OWN = ("x_CreditMxn", "x_EndUser", "x_OrderId", "x_Quality", "x_RowId", "x_SafetyIdentifier", "x_Size")
"""Our own columns, behind those of the specification, with the prefix that it asks for."""

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "1.2": (*sorted((*BOTH, "ProviderName", "PublisherName")), *OWN),
    "1.4": (*sorted((*BOTH, "HostProviderName", "InvoiceDetailId", "ServiceProviderName")), *OWN),
}
"""Columns by version, in the order of the alphabet."""

NUMBERS = frozenset(
    {
        "BilledCost",
        "ConsumedQuantity",
        "ContractedCost",
        "ContractedUnitPrice",
        "EffectiveCost",
        "ListCost",
        "ListUnitPrice",
        "PricingCurrencyContractedUnitPrice",
        "PricingCurrencyEffectiveCost",
        "PricingCurrencyListUnitPrice",
        "PricingQuantity",
        "x_CreditMxn",
    }
)
"""Columns with a sign: a minus there begins no formula."""

COMPANY = "GeekHub"
SERVICE = "GeekHub image generation"
IMAGES, CREDITS = "Images", "Credits"
"""What is counted: images, and credits of 1 MXN each."""

USD_DECIMALS = Decimal("1e-12")
"""An amount in MXN as USD is rounded half up to this: far below a micro-MXN."""

_EXACT = Context(prec=100)
_ROUND = Context(prec=100, rounding=ROUND_HALF_UP)

Fields = dict[str, str]

NOTHING = "0.00"


@dataclass(frozen=True, slots=True)
class _Account:
    """Whose row it is, and in which month it counts."""

    org_id: str
    names: Names
    month: str


async def _write(source: Source, file: BinaryIO, tell: Tell, *, version: str) -> Written:
    """Write usage, then refunds, then what was paid for credit and given. Raises LedgerAway, OSError."""
    columns = COLUMNS[version]
    file.write(csv_lines([columns]).encode())
    signed = frozenset(at for at, name in enumerate(columns) if name in NUMBERS)
    total = Written()

    def write(rows: Sequence[Fields]) -> None:
        cells = [tuple(row.get(name, "") for name in columns) for row in rows]
        file.write(csv_lines(safe_cells(cells, signed)).encode())
        tell(len(rows))

    async for batch in read(source.ledger, source.scope):
        rows = list(_of_batch(batch))
        write(rows)
        charged = sum(one.amount_micro_mxn for one in batch.charges)
        total = total.plus(Written(len(rows), charged, sum(one.refund.amount_micro_mxn for one in batch.refunds)))
    async for rows in _credits(source):
        write(rows)
        total = total.plus(Written(len(rows)))
    return total


write_1_2 = partial(_write, version="1.2")
write_1_4 = partial(_write, version="1.4")


def _of_batch(batch: Batch) -> Iterator[Fields]:
    for charge in batch.charges:
        yield _usage(charge, _Account(charge.org_id, batch.names[charge.org_id], batch.month))
    for one in batch.refunds:
        yield _refund(one, _Account(one.refund.org_id, batch.names[one.refund.org_id], batch.month))


async def _credits(source: Source) -> AsyncIterator[list[Fields]]:
    scope, names = source.scope, NamesOf(source.ledger)
    for month in scope.months:
        async for page in source.ledger.month_credits(month, org_id=scope.org_id, first=scope.first, last=scope.last):
            known = await names.of(month, {one.new.org_id for one in page})
            rows: list[Fields] = []
            for credit in page:
                recharge_id = credit.new.recharge_id
                recharged = None if recharge_id is None else (await source.ledger.credit(recharge_id)).at
                account = _Account(credit.new.org_id, known[credit.new.org_id], month)
                rows += _CREDITS[credit.new.type](credit, account, recharged)
            yield rows


def _common(account: _Account, row_id: str, category: str, period: Period) -> Fields:
    """Build the fields of every row."""
    begins, ends = _month_span(account.month)
    return {
        "BilledCost": NOTHING,
        "BillingAccountId": account.org_id,
        "BillingAccountName": account.names.org,
        "BillingAccountType": "Organization",
        "BillingCurrency": "MXN",
        "BillingPeriodStart": begins,
        "BillingPeriodEnd": ends,
        "ChargeCategory": category,
        "ChargeFrequency": "Usage-Based" if category == "Usage" else "One-Time",
        "ChargePeriodStart": _moment(period.start_us),
        "ChargePeriodEnd": _moment(period.end_us),
        "ContractedCost": NOTHING,
        "EffectiveCost": NOTHING,
        "HostProviderName": COMPANY,
        "InvoiceIssuerName": COMPANY,
        "ListCost": NOTHING,
        "PricingCurrency": "MXN",
        "PricingCurrencyEffectiveCost": NOTHING,
        "ProviderName": COMPANY,
        "PublisherName": COMPANY,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": SERVICE,
        "ServiceProviderName": COMPANY,
        "ServiceSubcategory": "Generative AI",
        "x_RowId": row_id,
    }


def _usage(charge: Charge, account: _Account) -> Fields:
    """Write a charged order. Of a month that was closed when it was booked, it is a correction."""
    images = "1 image" if charge.quantity == 1 else f"{charge.quantity} images"
    cost = format_mxn(charge.unit_micro_mxn * charge.quantity)
    return {
        **_order(charge, account, charge.event_id, _day(charge.day)),
        "ChargeClass": "Correction" if charge.posted is not None else "",
        "ChargeDescription": f"{images} of {charge.model}, {charge.size}",
        "ConsumedQuantity": str(charge.quantity),
        "ContractedCost": cost,
        "EffectiveCost": format_mxn(charge.amount_micro_mxn),
        "ListCost": cost,
        "PricingCurrencyEffectiveCost": _usd(charge.amount_micro_mxn, charge.mxn_per_usd),
        "PricingQuantity": str(charge.quantity),
    }


def _refund(refunded: Refunded, account: _Account) -> Fields:
    """Write a refund: less use, of no images. It corrects a month that is over if its order is of an earlier one."""
    refund, charge = refunded.refund, refunded.charge
    period = _period(refund.at)
    return {
        **_order(charge, account, refund.credit_id, period),
        "ChargeClass": _class(charge.posting_month, period),
        "ChargeDescription": f"Refund of order {charge.event_id}: {refund.reason}",
        "ConsumedQuantity": "0",
        "EffectiveCost": format_mxn(-refund.amount_micro_mxn),
        "PricingCurrencyEffectiveCost": _usd(-refund.amount_micro_mxn, charge.mxn_per_usd),
        "PricingQuantity": "0",
    }


def _order(charge: Charge, account: _Account, row_id: str, period: Period) -> Fields:
    """Build the fields of an order: its price in USD and in MXN, its key, and its labels."""
    list_usd = _list_usd(charge.usd_per_image, charge.markup)
    unit = format_mxn(charge.unit_micro_mxn)
    return {
        **_common(account, row_id, "Usage", period),
        "ConsumedUnit": IMAGES,
        "ContractedUnitPrice": unit,
        "HostProviderName": charge.provider,
        "ListUnitPrice": unit,
        "PricingCategory": "Standard",
        "PricingCurrency": "USD",
        "PricingCurrencyContractedUnitPrice": list_usd,
        "PricingCurrencyListUnitPrice": list_usd,
        "PricingUnit": IMAGES,
        "RegionId": charge.region,
        "RegionName": charge.region,
        "SkuId": charge.model,
        "SkuMeter": IMAGES,
        "SkuPriceDetails": _details(charge.variant, charge.usd_per_image, charge.markup),
        "SkuPriceId": "/".join(filter(None, (charge.price_book, charge.model, charge.variant))),
        "SubAccountId": charge.key_id,
        "SubAccountName": account.names.keys.get(charge.key_id) or charge.key_id,
        "SubAccountType": "API key",
        "Tags": _tags(charge.tags, charge.metadata),
        "x_EndUser": charge.end_user or "",
        "x_OrderId": charge.event_id,
        "x_Quality": charge.quality or "",
        "x_SafetyIdentifier": charge.safety_id or "",
        "x_Size": charge.size,
    }


def _recharge(credit: Credit, account: _Account, recharged: str | None) -> list[Fields]:
    """Write a purchase of credit, and its IVA; or both taken back."""
    new = credit.new
    tax = new.tax or Tax(new.amount_micro_mxn, Decimal(0), 0)
    period = _period(credit.at)
    base, iva, cfdi = format_mxn(tax.base_micro_mxn), format_mxn(tax.iva_micro_mxn), credit.facts.get("cfdi", "")
    what = "Recharge" if recharged is None else f"Chargeback of recharge {new.recharge_id}"
    both = {
        "ChargeClass": "" if recharged is None else _class(_period(recharged).month, period),
        "InvoiceId": cfdi,
    }
    purchase = {
        **_common(account, new.credit_id, "Purchase", period),
        **both,
        "BilledCost": base,
        "ChargeDescription": f"{what}: prepaid credit",
        "ContractedCost": base,
        "ContractedUnitPrice": "1.00",
        "InvoiceDetailId": new.credit_id if cfdi else "",
        "ListCost": base,
        "ListUnitPrice": "1.00",
        "PricingCategory": "Standard",
        "PricingCurrencyContractedUnitPrice": "1.00",
        "PricingCurrencyListUnitPrice": "1.00",
        "PricingQuantity": base,
        "PricingUnit": CREDITS,
        "SkuId": "credit",
        "SkuMeter": CREDITS,
        "SkuPriceDetails": '{"x_Currency":"MXN"}',
        "SkuPriceId": "credit/mxn",
        "x_CreditMxn": format_mxn(new.amount_micro_mxn),
    }
    if not tax.iva_micro_mxn:
        return [purchase]
    return [
        purchase,
        {
            **_common(account, new.credit_id, "Tax", period),
            **both,
            "BilledCost": iva,
            "ChargeDescription": f"{what}: IVA, {format_rate(tax.rate * 100)} %",
            "ContractedCost": iva,
            "InvoiceDetailId": f"{new.credit_id}/IVA" if cfdi else "",
            "ListCost": iva,
        },
    ]


def _given(credit: Credit, account: _Account, recharged: str | None, *, category: str) -> list[Fields]:
    """Write what enters or leaves a wallet without being paid: its amount stands in a column of our own.

    What mends an earlier month's rate corrects that month.
    """
    new, period = credit.new, _period(credit.at)
    what, _, month = (new.corrects or "").partition(":")
    return [
        {
            **_common(account, new.credit_id, category, period),
            "ChargeClass": _class(month, period) if what == "fx" else "",
            "ChargeDescription": f"{new.type.capitalize()}: {new.reason or 'prepaid credit'}",
            "x_CreditMxn": format_mxn(new.amount_micro_mxn),
        }
    ]


def _refunded_already(credit: Credit, account: _Account, recharged: str | None) -> list[Fields]:
    """Write nothing: a refund is a row of its order."""
    return []


_CREDITS: Mapping[CreditType, Callable[[Credit, _Account, str | None], list[Fields]]] = {
    "recharge": _recharge,
    "chargeback": _recharge,
    "bonus": partial(_given, category="Credit"),
    "adjustment": partial(_given, category="Adjustment"),
    "refund": _refunded_already,
}


def _class(month: str, period: Period) -> str:
    """Say that a row corrects a billing period that is over; empty if it is of the same one."""
    return "Correction" if month < period.month else ""


def _period(at: str) -> Period:
    return period_at(unix_us_at(datetime.fromisoformat(at)))


@lru_cache(maxsize=64)
def _day(day: str) -> Period:
    return Period(day, day[:7], day_start_us(day), day_end_us(day))


@lru_cache(maxsize=64)
def _month_span(month: str) -> tuple[str, str]:
    return _moment(month_start_us(month)), _moment(month_start_us(next_month(month)))


def _moment(unix_us: int) -> str:
    return f"{utc_at(unix_us):%Y-%m-%dT%H:%M:%SZ}"


@lru_cache(maxsize=1_024)
def _list_usd(usd_per_image: str, markup: str) -> str:
    return format_rate(_EXACT.multiply(Decimal(usd_per_image), Decimal(markup)))


@lru_cache(maxsize=1_024)
def _usd(micro_mxn: int, mxn_per_usd: str) -> str:
    usd = _ROUND.divide(Decimal(format_mxn(micro_mxn)), Decimal(mxn_per_usd))
    return format_rate(_ROUND.quantize(usd, USD_DECIMALS))


@lru_cache(maxsize=1_024)
def _details(variant: str, usd_per_image: str, markup: str) -> str:
    details = {"x_Variant": variant or None, "x_UsdPerImage": usd_per_image, "x_Markup": markup}
    return orjson.dumps(details).decode()


@lru_cache(maxsize=1_024)
def _tags(tags: str | None, metadata: str | None) -> str:
    """Write tags as keys that are true, and metadata under a prefix: the specification knows one scheme without."""
    found: dict[str, str | bool] = dict.fromkeys(orjson.loads(tags or "[]"), True)
    found |= {f"metadata/{name}": value for name, value in orjson.loads(metadata or "{}").items()}
    return orjson.dumps(found).decode() if found else ""
