"""What finance takes away, as CSV: one row for each charged order of a month, and one for each refund given in it."""

import csv
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

from metering.clock import period_at, unix_us_at, utc_at
from metering.events import Event
from metering.money import format_mxn
from metering.ports import Refunded

COLUMNS = (
    "event_id",
    "org_id",
    "number",
    "key_id",
    "day",
    "month",
    "admitted_at",
    "charged_at",
    "model",
    "provider",
    "upstream",
    "size",
    "quality",
    "region",
    "images_asked",
    "quantity",
    "variant",
    "usd_per_image",
    "price_book",
    "markup",
    "mxn_per_usd",
    "fx_month",
    "fx_source",
    "unit_mxn",
    "usd_measured",
    "amount_mxn",
    "images",
    "kind",
    "order_id",
    "reason",
)


_PRICE = frozenset(
    {
        "variant",
        "usd_per_image",
        "price_book",
        "markup",
        "mxn_per_usd",
        "fx_month",
        "fx_source",
        "unit_mxn",
        "usd_measured",
        "images",
    }
)
"""Of a charge alone: what it is recomputed from, and what was delivered."""


@dataclass(frozen=True, slots=True)
class Written:
    """What an export has: its rows, and the sums of those of either kind in micro-MXN."""

    rows: int = 0
    charged_micro_mxn: int = 0
    refunded_micro_mxn: int = 0

    @property
    def amount_micro_mxn(self) -> int:
        """What the column `amount_mxn` sums up to: charges less refunds."""
        return self.charged_micro_mxn - self.refunded_micro_mxn


def row(event: Event) -> tuple[str | int, ...]:
    """One charged order. Days and months are Mexico City's, moments are UTC, money is a decimal string."""
    opened, proof = event.opened, event.opened.proof
    return (
        event.event_id,
        opened.org_id,
        event.number,
        opened.key_id,
        opened.day,
        opened.month,
        utc_at(event.admitted_us).isoformat(),
        utc_at(event.ended_us).isoformat(),
        opened.model,
        opened.provider,
        opened.upstream,
        opened.size,
        opened.quality or "",
        opened.region,
        opened.images,
        event.quantity,
        proof.variant,
        proof.usd_per_image,
        proof.price_book,
        proof.markup,
        proof.mxn_per_usd,
        proof.fx_month,
        text_cell(proof.fx_source),
        format_mxn(proof.unit_micro_mxn),
        event.usd_measured or "",
        format_mxn(event.amount_micro_mxn),
        " ".join(image.path for image in event.images),
        "charge",
        event.event_id,
        "",
    )


def refund_row(refunded: Refunded) -> tuple[str | int, ...]:
    """One refund, a negative amount in the period in which it was given; model and size are its order's.

    It has no price of its own, and counts no images: quantities sum up to what was delivered.
    """
    refund, charge = refunded.refund, refunded.charge
    given_us = unix_us_at(datetime.fromisoformat(refund.at))
    period = period_at(given_us)
    told = dict(zip(COLUMNS, row(charge), strict=True)) | {
        "event_id": text_cell(refund.credit_id),
        "number": "",
        "day": period.day,
        "month": period.month,
        "charged_at": utc_at(given_us).isoformat(),
        "images_asked": 0,
        "quantity": 0,
        "amount_mxn": format_mxn(-refund.amount_micro_mxn),
        "kind": "refund",
        "reason": text_cell(refund.reason),
    }
    return tuple("" if name in _PRICE else told[name] for name in COLUMNS)


Format = Callable[[AsyncIterator[Event], AsyncIterator[Refunded], TextIO], Awaitable[Written]]
"""Writes the charged ones of these events, then the refunds, to an open file."""


async def write_csv(events: AsyncIterator[Event], refunds: AsyncIterator[Refunded], file: TextIO) -> Written:
    """A header, and a line each."""
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    rows = charged = refunded = 0
    async for event in events:
        if event.end == "charge":
            writer.writerow(row(event))
            rows, charged = rows + 1, charged + event.amount_micro_mxn
    async for one in refunds:
        writer.writerow(refund_row(one))
        rows, refunded = rows + 1, refunded + one.refund.amount_micro_mxn
    return Written(rows, charged, refunded)


async def write_file(
    events: AsyncIterator[Event], refunds: AsyncIterator[Refunded], path: Path, write: Format = write_csv
) -> Written:
    """Write to `path`, whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            written = await write(events, refunds, file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return written


FORMATS: Mapping[str, Format] = {"csv": write_csv}
"""By the name that `ghub usage export --format` knows; a new one is a function, and its line here."""


def text_cell(value: str) -> str:
    """A spreadsheet runs a cell that begins like a formula; a quote before it makes it text."""
    return f"'{value}" if value[:1] in "=+-@\t\r" else value
