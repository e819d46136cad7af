"""Export as CSV: RFC 4180, a header, and a line for each row."""

import csv
import io
from collections.abc import Sequence
from typing import BinaryIO

from metering.exports.rows import Written, columns_of, pages
from metering.exports.writing import Source, Tell

BYTE_ORDER_MARK = "\ufeff"
"""What Excel wants at the beginning of a CSV, or it takes it for another alphabet."""


async def write(source: Source, file: BinaryIO, tell: Tell) -> Written:
    """Write a header, and a line for each row. Raises LedgerAway, OSError."""
    file.write(csv_lines([columns_of(source.scope)]).encode())
    total = Written()
    async for page in pages(source.ledger, source.scope):
        file.write(csv_lines(page.safe).encode())
        total = total.plus(page.written)
        tell(page.written.rows)
    return total


async def write_for_excel(source: Source, file: BinaryIO, tell: Tell) -> Written:
    """Write the same behind a byte order mark."""
    file.write(BYTE_ORDER_MARK.encode())
    return await write(source, file, tell)


def csv_lines(rows: Sequence[Sequence[str]]) -> str:
    """Write rows as `csv.writer` does, which is asked only if a cell of them needs quotes."""
    text = "\r\n".join([*map(",".join, rows), ""])
    cells = sum(map(len, rows))
    separators = text.count(","), text.count("\r"), text.count("\n")
    if '"' not in text and separators == (cells - len(rows), len(rows), len(rows)):
        return text
    quoted = io.StringIO(newline="")
    csv.writer(quoted).writerows(rows)
    return quoted.getvalue()
