"""Export for finance, as CSV or JSON lines: a row for each charged order of a month, and one for each refund in it."""

import csv
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

import orjson

from metering.clock import period_at, unix_us_at, utc_at
from metering.money import format_mxn
from metering.ports import Charge, Refunded

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
"""Columns that only a charge has: what it is recomputed from, and what was delivered."""


_NUMBERS = ("number", "images_asked", "quantity")
"""Columns that are whole numbers. Money, prices and rates are decimal strings everywhere."""

_mxn = lru_cache(maxsize=1_024)(format_mxn)
"""A month has millions of charges, of a few amounts."""


@dataclass(frozen=True, slots=True)
class Written:
    """Totals of an export: its rows, and the sums of charges and of refunds in micro-MXN."""

    rows: int = 0
    charged_micro_mxn: int = 0
    refunded_micro_mxn: int = 0

    @property
    def amount_micro_mxn(self) -> int:
        """Sum of the column `amount_mxn`: charges minus refunds."""
        return self.charged_micro_mxn - self.refunded_micro_mxn


def row(charge: Charge) -> tuple[str, ...]:
    """Format one charged order. Days and months are Mexico City's, moments are UTC, money is a decimal string."""
    return (
        charge.event_id,
        charge.org_id,
        str(charge.number),
        charge.key_id,
        charge.day,
        charge.month,
        utc_at(charge.admitted_us).isoformat(),
        utc_at(charge.ended_us).isoformat(),
        charge.model,
        charge.provider,
        charge.upstream,
        charge.size,
        charge.quality or "",
        charge.region,
        str(charge.images_asked),
        str(charge.quantity),
        charge.variant,
        charge.usd_per_image,
        charge.price_book,
        charge.markup,
        charge.mxn_per_usd,
        charge.fx_month,
        text_cell(charge.fx_source),
        _mxn(charge.unit_micro_mxn),
        charge.usd_measured or "",
        _mxn(charge.amount_micro_mxn),
        " ".join([image["path"] for image in orjson.loads(charge.images)]),
        "charge",
        charge.event_id,
        "",
    )


def refund_row(refunded: Refunded) -> tuple[str, ...]:
    """Format one refund: a negative amount in the period in which it was given. Model and size are its order's.

    It has no price of its own, and no images: quantities add up to what was delivered.
    """
    refund, charge = refunded.refund, refunded.charge
    given_us = unix_us_at(datetime.fromisoformat(refund.at))
    period = period_at(given_us)
    fields = dict(zip(COLUMNS, row(charge), strict=True)) | {
        "event_id": text_cell(refund.credit_id),
        "number": "",
        "day": period.day,
        "month": period.month,
        "charged_at": utc_at(given_us).isoformat(),
        "images_asked": "0",
        "quantity": "0",
        "amount_mxn": format_mxn(-refund.amount_micro_mxn),
        "kind": "refund",
        "reason": text_cell(refund.reason),
    }
    return tuple("" if name in _PRICE else fields[name] for name in COLUMNS)


Format = Callable[[AsyncIterator[Sequence[Charge]], AsyncIterator[Refunded], TextIO], Awaitable[Written]]
"""Writes these pages of charges, then the refunds, to an open file."""


async def write_csv(
    charges: AsyncIterator[Sequence[Charge]], refunds: AsyncIterator[Refunded], file: TextIO
) -> Written:
    """Write a header, and a line for each row."""
    file.write(csv_lines([COLUMNS]))
    rows = charged = refunded = 0
    async for page in charges:
        file.write(csv_lines([row(charge) for charge in page]))
        rows, charged = rows + len(page), charged + sum(charge.amount_micro_mxn for charge in page)
    async for one in refunds:
        file.write(csv_lines([refund_row(one)]))
        rows, refunded = rows + 1, refunded + one.refund.amount_micro_mxn
    return Written(rows, charged, refunded)


async def write_json_lines(
    charges: AsyncIterator[Sequence[Charge]], refunds: AsyncIterator[Refunded], file: TextIO
) -> Written:
    """Write a JSON object for each row, by the names of the columns; what a row does not have is null."""
    rows = charged = refunded = 0
    async for page in charges:
        file.write("".join([_json_line(row(charge), charge.fx_source) for charge in page]))
        rows, charged = rows + len(page), charged + sum(charge.amount_micro_mxn for charge in page)
    async for one in refunds:
        file.write(_json_line(refund_row(one), None, reason=one.refund.reason, event_id=one.refund.credit_id))
        rows, refunded = rows + 1, refunded + one.refund.amount_micro_mxn
    return Written(rows, charged, refunded)


def _json_line(cells: Sequence[str], fx_source: str | None, **as_it_is: str) -> str:
    """Write a row as JSON. Texts of people stand in it as they are: only a spreadsheet would run them."""
    fields: dict[str, Any] = {name: cell or None for name, cell in zip(COLUMNS, cells, strict=True)}
    fields |= {name: int(fields[name]) for name in _NUMBERS if fields[name] is not None}
    fields |= {"images": (fields["images"] or "").split(), "fx_source": fx_source, **as_it_is}
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE).decode()


def csv_lines(rows: Sequence[Sequence[str]]) -> str:
    """Write rows of all columns as `csv.writer` does, which is asked only if a cell of them needs quotes."""
    text = "\r\n".join([*map(",".join, rows), ""])
    separators = text.count(","), text.count("\r"), text.count("\n")
    if '"' not in text and separators == ((len(COLUMNS) - 1) * len(rows), len(rows), len(rows)):
        return text
    quoted = io.StringIO(newline="")
    csv.writer(quoted).writerows(rows)
    return quoted.getvalue()


async def write_file(
    charges: AsyncIterator[Sequence[Charge]],
    refunds: AsyncIterator[Refunded],
    path: Path,
    write: Format = write_csv,
    *,
    mark: str = "",
) -> Written:
    """Write to `path` completely or not at all, behind a `mark`."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            file.write(mark)
            written = await write(charges, refunds, file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return written


FORMATS: Mapping[str, Format] = {"csv": write_csv, "jsonl": write_json_lines}
"""Formats by their name in `ghub usage export --format`. A new format is a function, and a line here."""


BYTE_ORDER_MARK = "\ufeff"
"""What Excel wants at the beginning of a CSV, or it takes it for another alphabet."""


def text_cell(value: str) -> str:
    """Add a quote before text that begins like a formula: a spreadsheet would run it."""
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
