"""A statement as one HTML file: no script, nothing from elsewhere, and every text escaped. Pure."""

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Iterator
from html import escape

from proxy.statements.sheet import Cell, Kind, Row, Sheet, Table

_CSS = """
@page { margin: 16mm 14mm 18mm; @bottom-right { content: counter(page) " / " counter(pages); font-size: 9pt; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 46rem; padding: 1.5rem; background: #fff; color: #1a1a1a;
  font: 15px/1.45 "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }
header { border-bottom: 2px solid #1f5fa8; padding-bottom: .8rem; }
h1 { font-size: 1.7rem; line-height: 1.15; margin: 0 0 .3rem; }
h2 { font-size: 1.1rem; margin: 1.8rem 0 .4rem; color: #17497f; break-after: avoid; }
p { margin: .2rem 0; }
.org { font-size: 1.2rem; font-weight: bold; overflow-wrap: anywhere; }
small, .note { font-size: .85em; color: #4a4a4a; }
small { display: block; overflow-wrap: anywhere; }
.status { margin-top: .8rem; }
.provisional { border: 2px solid #9a5b00; background: #fff6e5; padding: .5rem .8rem; font-weight: bold; }
.provisional span { font-weight: normal; }
table { width: 100%; border-collapse: collapse; margin: .3rem 0; }
thead { display: table-header-group; }
tr { break-inside: avoid; }
th, td { text-align: left; vertical-align: top; padding: .28rem .9rem .28rem 0; border-bottom: 1px solid #d5d5d5;
  overflow-wrap: anywhere; font-weight: normal; }
thead th { font-size: .85em; font-weight: bold; border-bottom: 1.5px solid #555; vertical-align: bottom;
  overflow-wrap: normal; }
th:last-child, td:last-child { padding-right: 0; }
.date, .number { white-space: pre; overflow-wrap: normal; font-variant-numeric: lining-nums tabular-nums; }
.date, .number { width: 1%; }
.number { text-align: right; }
.whole { break-inside: avoid; }
thead .number { white-space: nowrap; }
.strong th, .strong td { font-weight: bold; border-top: 1.5px solid #555; }
svg { display: block; width: 100%; height: auto; break-inside: avoid; }
footer { margin-top: 2rem; border-top: 1px solid #d5d5d5; padding-top: .5rem; }
@media print { body { max-width: none; padding: 0; font-size: 9.5pt; line-height: 1.3; }
  th, td { padding-top: .2rem; padding-bottom: .2rem; }
  .provisional { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

_CSS_HASH = b64encode(hashlib.sha256(_CSS.encode()).digest()).decode()

POLICY = f"default-src 'none'; style-src 'sha256-{_CSS_HASH}'; base-uri 'none'; form-action 'none'"
"""Content Security Policy of the page, in itself too: a file that was saved or sent has no other."""


WHOLE_ROWS = 12
"""A table of at most so many rows is never divided between two pages."""


def page_of(sheet: Sheet) -> bytes:
    """Draw a sheet as HTML in UTF-8."""
    return "".join(_parts(sheet)).encode("utf-8", "replace")


def _parts(sheet: Sheet) -> Iterator[str]:
    title = f"{sheet.title} – {sheet.month} – {sheet.org}"
    yield (
        f'<!DOCTYPE html>\n<html lang="{"es-MX" if sheet.language == "es" else sheet.language}">\n<head>\n'
        f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
    )
    yield f"<header>\n<h1>{escape(sheet.title)}, {escape(sheet.month)}</h1>\n"
    yield f'<p class="org"><bdi>{escape(sheet.org)}</bdi></p>\n'
    yield f"<p><small>{escape(sheet.account)}</small></p>\n<p>{escape(sheet.period)}</p>\n</header>\n<main>\n"
    more = f" <span>{escape(sheet.status_more)}</span>" if sheet.status_more else ""
    kind = "status provisional" if sheet.provisional else "status note"
    yield f'<p class="{kind}">{escape(sheet.status)}{more}</p>\n'
    yield from _table(sheet.summary)
    yield f"<p>{escape(sheet.used)}</p>\n"
    if sheet.chart:
        yield f"<h2>{escape(sheet.chart_title)}</h2>\n{sheet.chart}\n"
        yield from _notes([sheet.chart_text, *sheet.chart_notes])
    for table in sheet.tables:
        yield from _table(table)
    yield "</main>\n<footer>\n"
    yield from _notes(sheet.notes)
    yield "</footer>\n</body>\n</html>\n"


def _table(table: Table) -> Iterator[str]:
    whole = ' class="whole"' if len(table.rows) <= WHOLE_ROWS else ""
    yield f"<section{whole}>\n<h2>{escape(table.title)}</h2>\n"
    if table.rows:
        heads = "".join(
            f'<th scope="col"{_class(kind)}>{escape(head)}</th>'
            for head, kind in zip(table.columns, table.kinds, strict=True)
        )
        yield f'<table aria-label="{escape(table.title)}">\n<thead><tr>{heads}</tr></thead>\n<tbody>\n'
        yield from (_row(row, table.kinds) for row in table.rows)
        yield "</tbody>\n</table>\n"
    yield from _notes(table.notes)
    yield "</section>\n"


def _row(row: Row, kinds: Iterable[Kind]) -> str:
    """Draw a row: its first cell names it."""
    cells = [
        f'<th scope="row"{_class(kind)}>{_cell(cell)}</th>' if place == 0 else f"<td{_class(kind)}>{_cell(cell)}</td>"
        for place, (cell, kind) in enumerate(zip(row.cells, kinds, strict=True))
    ]
    strong = ' class="strong"' if row.strong else ""
    return f"<tr{strong}>{''.join(cells)}</tr>\n"


def _cell(cell: Cell) -> str:
    """Draw a text, isolated: one that is written from the right does not turn its neighbours around."""
    small = f"<small><bdi>{escape(cell.small)}</bdi></small>" if cell.small else ""
    return f"<bdi>{escape(cell.text)}</bdi>{small}"


def _class(kind: Kind) -> str:
    return "" if kind == "words" else f' class="{kind}"'


def _notes(notes: Iterable[str]) -> Iterator[str]:
    return (f'<p class="note">{escape(note)}</p>\n' for note in notes)
