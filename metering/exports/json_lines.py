"""Export as JSON lines: an object for each row, by the names of the columns."""

from typing import BinaryIO

import orjson

from metering.exports.rows import Written, columns_of, json_fields, pages
from metering.exports.writing import Source, Tell


async def write(source: Source, file: BinaryIO, tell: Tell) -> Written:
    """Write a line for each row; what a row does not have is null. Raises LedgerAway, OSError."""
    columns = columns_of(source.scope)
    total = Written()
    async for page in pages(source.ledger, source.scope):
        lines = [orjson.dumps(json_fields(columns, row), option=orjson.OPT_APPEND_NEWLINE) for row in page.rows]
        file.write(b"".join(lines))
        total = total.plus(page.written)
        tell(page.written.rows)
    return total
