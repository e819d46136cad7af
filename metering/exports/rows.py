"""Rows of an export: a row for each charged order, one for each refund, and their seals in a closed month."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import orjson

from metering.clock import period_at, unix_us_at, utc_at
from metering.events import UNKNOWN
from metering.exports.reading import Batch, Scope, read
from metering.money import format_mxn
from metering.ports import Charge, Ledger, Names, Refunded
from metering.seals import Chains

SEALED = (
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
    "org_name",
    "key_name",
    "posted_month",
    "end_user",
    "safety_identifier",
    "tags",
    "metadata",
)
"""Columns that a seal is over, in their order."""

COLUMNS = (*SEALED, "seal")
"""Columns of every export of rows."""

END_COLUMNS = ("end", "end_reason", "upstream_ids", "upstream_usd")
"""Columns that follow with `--all-ends`. They stand behind the seal, which is the same with and without them."""


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
"""Columns that a refund has not: what a charge is recomputed from, and what was delivered."""


NUMBERS = ("number", "images_asked", "quantity")
"""Columns that are whole numbers. Money, prices and rates are decimal strings everywhere."""

AMOUNTS = ("amount_mxn",)
"""Columns with a sign: a minus there begins no formula."""

STRUCTURED = ("tags", "metadata", "upstream_ids")
"""Columns that are JSON: a list, or an object."""

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a formula begins with in a spreadsheet; the wide ones in one whose language is East Asian."""

_SIGNED = frozenset(SEALED.index(name) for name in AMOUNTS)
_SEP = "\x1f"
"""A separator that JSON and names do not contain; if one does, only a comparison is made that was not needed."""
_SUSPECT = re.compile(f"{_SEP}[{re.escape(''.join(FORMULA))}]")
"""Looks at a whole page at once, in a third of the time that one look for each of them would take."""

Cells = tuple[str, ...]

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

    def plus(self, other: "Written") -> "Written":
        """Add the totals of further rows."""
        return Written(
            self.rows + other.rows,
            self.charged_micro_mxn + other.charged_micro_mxn,
            self.refunded_micro_mxn + other.refunded_micro_mxn,
        )


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of an export, and their totals. `rows` are the texts as they are; `safe` ones begin no formula."""

    rows: Sequence[Cells]
    safe: Sequence[Cells]
    written: Written


def columns_of(scope: Scope) -> tuple[str, ...]:
    """Return the columns of the rows of an export."""
    return (*COLUMNS, *END_COLUMNS) if scope.all_ends else COLUMNS


async def pages(ledger: Ledger, scope: Scope, chains: Chains | None = None) -> AsyncIterator[Page]:
    """Yield all rows of an export, with all columns; `chains` are continued, if they are given. Raises LedgerAway."""
    chains = chains or await _chains(ledger, scope)
    async for batch in read(ledger, scope):
        cells, written = _cells(batch)
        safe = safe_cells(cells)
        seals = [""] * len(cells)
        if chains is not None and not batch.others:
            seals = [chains.add(raw[1], row) for raw, row in zip(cells, safe, strict=True)]
        ends = _end_cells(batch) if scope.all_ends else [()] * len(cells)
        behind = [(seal, *end) for seal, end in zip(seals, ends, strict=True)]
        rows = _joined(cells, behind)
        safe_behind = safe_cells(behind, signed=frozenset()) if scope.all_ends else behind
        as_they_are = safe is cells and safe_behind is behind
        yield Page(rows, rows if as_they_are else _joined(safe, safe_behind), written)


def _joined(left: Sequence[Cells], right: Sequence[Cells]) -> list[Cells]:
    return [before + behind for before, behind in zip(left, right, strict=True)]


async def _chains(ledger: Ledger, scope: Scope) -> Chains | None:
    """Begin the seals, if the export is of a whole month that is closed."""
    closed = {one.month for one in await ledger.closed_months()}
    return Chains(scope.month) if scope.month is not None and scope.month in closed else None


def cells_of_json(line: Mapping[str, Any]) -> Cells:
    """Build the cells that a seal is over from a line of JSON lines, exactly as the CSV has them.

    Raises KeyError if a column is missing.
    """
    return safe_cells([tuple(_json_cell(name, line[name]) for name in SEALED)])[0]


def _json_cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "images":
        return " ".join(value)
    return orjson.dumps(value).decode() if name in STRUCTURED else str(value)


def json_fields(columns: Sequence[str], cells: Cells) -> dict[str, Any]:
    """Build a line of JSON lines: texts of people stand in it as they are, because only a spreadsheet would run them.

    What a row does not have is null.
    """
    fields: dict[str, Any] = {name: cell or None for name, cell in zip(columns, cells, strict=True)}
    for name in NUMBERS:
        if fields[name] is not None:
            fields[name] = int(fields[name])
    for name in STRUCTURED:
        if fields.get(name) is not None:
            fields[name] = orjson.Fragment(fields[name])
    fields["images"] = fields["images"].split(" ") if fields["images"] else []
    return fields


def _cells(batch: Batch) -> tuple[list[Cells], Written]:
    names = batch.names
    if batch.refunds:
        refunded = sum(one.refund.amount_micro_mxn for one in batch.refunds)
        rows = [refund_cells(one, names[one.refund.org_id]) for one in batch.refunds]
        return rows, Written(len(rows), 0, refunded)
    charges = batch.charges or batch.others
    charged = sum(one.amount_micro_mxn for one in charges)
    return [charge_cells(one, names[one.org_id]) for one in charges], Written(len(charges), charged)


def charge_cells(charge: Charge, names: Names) -> Cells:
    """Format an order. Days and months are Mexico City's, moments are UTC, money is a decimal string."""
    kind: str = charge.end
    if kind != "charge" and charge.reason in UNKNOWN:
        kind = "unknown"
    return (
        charge.event_id,
        charge.org_id,
        str(charge.number),
        charge.key_id,
        charge.day,
        charge.month,
        _moment(charge.admitted_us),
        _moment(charge.ended_us),
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
        charge.fx_source,
        _mxn(charge.unit_micro_mxn),
        charge.usd_measured or "",
        _mxn(charge.amount_micro_mxn),
        " ".join([image["path"] for image in orjson.loads(charge.images)]),
        kind,
        charge.event_id,
        "",
        names.org,
        names.keys.get(charge.key_id, ""),
        charge.posted or charge.month,
        charge.end_user or "",
        charge.safety_id or "",
        _json(charge.tags),
        _json(charge.metadata),
    )


def refund_cells(refunded: Refunded, names: Names) -> Cells:
    """Format one refund: a negative amount in the period in which it was given. Model and size are its order's.

    It has no price of its own, and no images: quantities add up to what was delivered.
    """
    refund, charge = refunded.refund, refunded.charge
    given_us = unix_us_at(datetime.fromisoformat(refund.at))
    period = period_at(given_us)
    fields = dict(zip(SEALED, charge_cells(charge, names), strict=True)) | {
        "event_id": refund.credit_id,
        "number": "",
        "day": period.day,
        "month": period.month,
        "charged_at": _moment(given_us),
        "images_asked": "0",
        "quantity": "0",
        "amount_mxn": format_mxn(-refund.amount_micro_mxn),
        "kind": "refund",
        "reason": refund.reason,
        "posted_month": period.month,
    }
    return tuple("" if name in _PRICE else fields[name] for name in SEALED)


def _end_cells(batch: Batch) -> list[Cells]:
    if batch.refunds:
        return [("",) * len(END_COLUMNS)] * len(batch.refunds)
    return [
        (one.end, one.reason, _json(one.upstream_ids), one.upstream_usd or "") for one in batch.charges or batch.others
    ]


def _moment(unix_us: int) -> str:
    """Write a moment in UTC as `datetime.isoformat` does, in half its time: a month has few minutes."""
    unix_s, us = divmod(unix_us, 1_000_000)
    minutes, seconds = divmod(unix_s, 60)
    return f"{_minute(minutes)}{seconds:02d}.{us:06d}+00:00" if us else f"{_minute(minutes)}{seconds:02d}+00:00"


@lru_cache(maxsize=4_096)
def _minute(minutes: int) -> str:
    return f"{utc_at(minutes * 60_000_000):%Y-%m-%dT%H:%M:}"


def _json(text: str | None) -> str:
    """Write JSON of the ledger in one form, so that a line of JSON has the same text."""
    return "" if text is None else _canonical(text)


@lru_cache(maxsize=1_024)
def _canonical(text: str) -> str:
    return orjson.dumps(orjson.loads(text)).decode()


def safe_cells(rows: Sequence[Cells], signed: frozenset[int] = _SIGNED) -> Sequence[Cells]:
    """Add a quote before text that begins like a formula, because a spreadsheet would run it.

    Returns the same rows if there is no such text. `signed` are the columns that are amounts.
    """
    text = _SEP + _SEP.join(map(_SEP.join, rows))
    if _SUSPECT.search(text) is None:
        return rows
    return [tuple(cell if at in signed else text_cell(cell) for at, cell in enumerate(row)) for row in rows]


def text_cell(value: str) -> str:
    """Add a quote before text that begins like a formula: a spreadsheet would run it."""
    return f"'{value}" if value.startswith(FORMULA) else value
