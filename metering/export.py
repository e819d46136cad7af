"""What finance takes away: one row for each charged order of a month, as CSV."""

import csv
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TextIO

from metering.clock import utc_at
from metering.events import Event
from metering.money import format_mxn

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
)


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
    )


async def write_csv(events: AsyncIterator[Event], path: Path) -> tuple[int, int]:
    """Write the charged ones to `path`, whole or not at all; returns rows and their sum in micro-MXN."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            counted = await _write(events, file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return counted


async def _write(events: AsyncIterator[Event], file: TextIO) -> tuple[int, int]:
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    rows, total = 0, 0
    async for event in events:
        if event.end == "charge":
            writer.writerow(row(event))
            rows, total = rows + 1, total + event.amount_micro_mxn
    return rows, total


def text_cell(value: str) -> str:
    """A spreadsheet runs a cell that begins like a formula; a quote before it makes it text."""
    return f"'{value}" if value[:1] in "=+-@\t\r" else value
