"""A month's facts for statements, without a ledger; and a PDF's text, read by another program than wrote it."""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import pypdfium2

from metering.ports import (
    Credit,
    FxOrigin,
    FxRecord,
    MonthFacts,
    MonthSums,
    MonthUse,
    Names,
    NewCredit,
    PaidSums,
    RateUse,
)
from metering.pricing import FxRate
from metering.statement import Statement, statement_of
from metering.tax import tax_on

ORG_ID = "5f0c7a39-1f5e-4a43-9b6e-7c1de7a9a001"
UNIT = 840_000
MILLION = 1_000_000

SOURCE = "Banxico FIX, DOF del 30/10/2026"
RATES = (
    FxRecord(
        1,
        FxRate("2026-11", Decimal("18.4512"), SOURCE),
        FxOrigin("SF43718", "last", "18.4512"),
        "ana",
        "2026-10-30T18:00:00+00:00",
        "luis",
        "2026-10-30T19:00:00+00:00",
    ),
)


def credits_of_a_month() -> list[Credit]:
    """One of each kind, at noon in Mexico City of the first days."""
    every = [
        NewCredit("SPEI-8841", ORG_ID, "recharge", 500 * MILLION, tax=tax_on(500 * MILLION, Decimal("0.16"))),
        NewCredit("gift", ORG_ID, "bonus", 50 * MILLION, reason="Bienvenida"),
        NewCredit("r1", ORG_ID, "refund", UNIT, reason="borrosa", order_id="7d2f1f0e-0c5b-4a35-a1f8-f6f1f0b1c2d3"),
        NewCredit("fix", ORG_ID, "adjustment", -1, reason="redondeo"),
        NewCredit(
            "cb",
            ORG_ID,
            "chargeback",
            -100 * MILLION,
            recharge_id="SPEI-8841",
            tax=tax_on(-100 * MILLION, Decimal("0.16")),
        ),
    ]
    return [Credit(new, n, f"2026-11-{n:02d}T18:00:00+00:00", "ana", 0) for n, new in enumerate(every, 1)]


def paid_for(given: Sequence[Credit]) -> list[PaidSums]:
    """Sums as the ledger makes them, for credits of different kinds."""
    return [
        PaidSums(
            one.new.type,
            None if one.new.tax is None else str(one.new.tax.rate),
            1,
            one.new.amount_micro_mxn,
            0 if one.new.tax is None else one.new.tax.base_micro_mxn,
            0 if one.new.tax is None else one.new.tax.iva_micro_mxn,
        )
        for one in given
    ]


def statement(
    names: Sequence[str] = ("Sitio web",),
    *,
    org: str = "Panadería Ñandú",
    days: int = 1,
    closed: bool = True,
    late: bool = False,
    tags: Sequence[str] = (),
    credited: bool = True,
) -> Statement:
    """A month with one order of 0.84 MXN a day for each key; the keys have these names. Without days it is empty."""
    count = days * len(names)
    given = credits_of_a_month() if credited else []
    kinds: Mapping[str, Any] = {one.new.type: one.new.amount_micro_mxn for one in given}
    before = [MonthUse("2026-10", 2, 3, 3 * UNIT)] if late else []
    own = (count, count, count * UNIT)
    rates = [RateUse("2026-11", "18.4512", SOURCE, 0, *own)] if count else []
    rates += [RateUse("2026-10", "18.3011", "DOF", -1, *one[1:]) for one in before]
    charges = count * UNIT + sum(one.amount_micro_mxn for one in before)
    sums = MonthSums(
        org_id=ORG_ID,
        opening_micro_mxn=1_234_567 * MILLION + 500_000,
        recharges_micro_mxn=kinds.get("recharge", 0),
        bonuses_micro_mxn=kinds.get("bonus", 0),
        refunds_micro_mxn=kinds.get("refund", 0),
        adjustments_micro_mxn=kinds.get("adjustment", 0),
        chargebacks_micro_mxn=kinds.get("chargeback", 0),
        charges_micro_mxn=charges,
        orders=count + sum(one.orders for one in before),
        images=count + sum(one.images for one in before),
    )
    facts = MonthFacts(
        sums=sums,
        names=Names(org, {f"key_{n}": name for n, name in enumerate(names)}),
        closed_at="2026-12-01T18:00:00+00:00" if closed else None,
        days=[MonthUse(f"2026-11-{n:02d}", len(names), len(names), len(names) * UNIT) for n in range(1, days + 1)],
        models=[MonthUse("fal/flux-1.1-pro", *own)] if count else [],
        keys=[MonthUse(f"key_{n}", days, days, days * UNIT) for n in range(len(names))] if count else [],
        tags=[MonthUse(tag, 1, 1, UNIT) for tag in tags],
        all_tags=len(tags),
        late=before,
        rates=rates,
        records=RATES,
        paid=paid_for(given),
        credits=given,
    )
    return statement_of("2026-11", facts)


def pdf_text(pdf: bytes) -> str:
    """Read a PDF's text, page after page, with each white space as one space."""
    document = pypdfium2.PdfDocument(pdf)
    try:
        pages = [page.get_textpage().get_text_range() for page in document]
    finally:
        document.close()
    return re.sub(r"\s+", " ", " ".join(pages))
