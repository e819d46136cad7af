"""Export as Parquet: decimals, moments in UTC, dates and lists with types of their own; the extra `[parquet]`."""

from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Context, Decimal
from functools import lru_cache
from typing import BinaryIO

import orjson
import pyarrow as pa
from pyarrow import parquet

from metering.exports.rows import Written, columns_of, pages
from metering.exports.writing import Source, Tell

ROW_GROUP = 50_000
"""Rows in one row group: about 25 MB in memory, and what a reader takes at a time."""

MXN = pa.decimal128(18, 6)
"""Amounts in MXN, to the millionth, as in the ledger."""

FACTOR = pa.decimal128(38, 18)
"""Prices and figures in USD, and what they are multiplied by. A provider's figure with more decimals is rounded."""

_SMALLEST = Decimal("1e-18")
_ROUND = Context(prec=100, rounding=ROUND_HALF_UP)

MOMENT = pa.timestamp("us", tz="UTC")

TYPES: Mapping[str, pa.DataType] = {
    "number": pa.int64(),
    "day": pa.date32(),
    "admitted_at": MOMENT,
    "charged_at": MOMENT,
    "images_asked": pa.int64(),
    "quantity": pa.int64(),
    "usd_per_image": FACTOR,
    "markup": FACTOR,
    "mxn_per_usd": FACTOR,
    "unit_mxn": MXN,
    "usd_measured": FACTOR,
    "amount_mxn": MXN,
    "images": pa.list_(pa.string()),
    "tags": pa.list_(pa.string()),
    "upstream_ids": pa.list_(pa.string()),
    "upstream_usd": FACTOR,
}
"""Types of columns that are no text. What a row does not have is null."""

LISTS: Mapping[str, Callable[[str], list[str]]] = {
    "images": lambda cell: cell.split(" "),
    "tags": orjson.loads,
    "upstream_ids": orjson.loads,
}

UNIQUE = frozenset({"event_id", "order_id", "seal", "number", "admitted_at", "charged_at"})
"""Columns of which each row has another value. All others are written once, and by their number."""


async def write(source: Source, file: BinaryIO, tell: Tell) -> Written:
    """Write row groups of a bounded size. Raises LedgerAway, OSError."""
    schema = pa.schema([(name, TYPES.get(name, pa.string())) for name in columns_of(source.scope)])
    total = Written()
    waiting: list[pa.RecordBatch] = []
    with parquet.ParquetWriter(
        file, schema, compression="zstd", use_dictionary=[name for name in schema.names if name not in UNIQUE]
    ) as writer:

        def flush() -> None:
            if waiting:
                writer.write_table(pa.Table.from_batches(waiting, schema), row_group_size=ROW_GROUP)
                waiting.clear()

        async for page in pages(source.ledger, source.scope):
            if sum(batch.num_rows for batch in waiting) + len(page.rows) > ROW_GROUP:
                flush()
            waiting.append(_batch(schema, page.rows))
            total = total.plus(page.written)
            tell(page.written.rows)
        flush()
    return total


def _batch(schema: pa.Schema, rows: Sequence[Sequence[str]]) -> pa.RecordBatch:
    columns = zip(schema, zip(*rows, strict=True), strict=True)
    return pa.RecordBatch.from_arrays([_array(field, cells) for field, cells in columns], schema=schema)


def _array(field: pa.Field, cells: Sequence[str]) -> pa.Array:
    if (parse := LISTS.get(field.name)) is not None:
        return pa.array([parse(cell) if cell else None for cell in cells], field.type)
    if field.type == FACTOR:
        return pa.array([_factor(cell) for cell in cells], FACTOR)
    texts = pa.array([cell or None for cell in cells], pa.string())
    return texts if field.type == pa.string() else texts.cast(field.type)


@lru_cache(maxsize=1_024)
def _factor(cell: str) -> Decimal | None:
    return _ROUND.quantize(Decimal(cell), _SMALLEST) if cell else None
