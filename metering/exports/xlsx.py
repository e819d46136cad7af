"""Export as an Excel workbook: a summary, the organisations, and all rows; the extra `[xlsx]`.

The workbook is written row by row to a temporary folder, and packed at the end: memory does not grow with rows.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any, BinaryIO

from xlsxwriter import Workbook
from xlsxwriter.format import Format
from xlsxwriter.utility import xl_col_to_name, xl_rowcol_to_cell
from xlsxwriter.worksheet import Worksheet

from metering.clock import utc_now
from metering.exports.rows import NUMBERS, Cells, Page, Written, columns_of, pages
from metering.exports.spanish import HEADINGS, month_name
from metering.exports.writing import Source, Tell
from metering.money import format_mxn, parse_mxn
from metering.pages import pages as listing
from metering.ports import MonthSums

MAX_ROWS = 1_048_576
"""Rows of a sheet, in every version of Excel."""

HEAD = 2
"""Rows of a sheet's headings: Spanish, and the column's name."""

HEAD_HEIGHT = 32
"""Of the Spanish headings, in points: two lines."""

DECIMALS = ("usd_per_image", "markup", "mxn_per_usd", "usd_measured", "upstream_usd")
MONEY = ("unit_mxn", "amount_mxn")
MOMENTS = ("admitted_at", "charged_at")

SHOWN = {
    "day": 12,
    "charged_at": 20,
    "model": 24,
    "size": 13,
    "quality": 9,
    "quantity": 11,
    "unit_mxn": 13,
    "amount_mxn": 14,
    "kind": 11,
    "reason": 18,
    "org_name": 28,
    "key_name": 18,
    "posted_month": 14,
    "end_user": 18,
    "tags": 24,
    "end": 9,
    "end_reason": 14,
    "upstream_ids": 24,
    "upstream_usd": 12,
}
"""Columns that are open, with their width in characters. The others are folded: one click opens them."""

FOLDED_WIDTH = 20

PARTS = (
    ("Saldo inicial", "Opening balance", "opening_micro_mxn"),
    ("Recargas", "Recharges", "recharges_micro_mxn"),
    ("Bonificaciones", "Bonuses", "bonuses_micro_mxn"),
    ("Reembolsos", "Refunds", "refunds_micro_mxn"),
    ("Ajustes", "Adjustments", "adjustments_micro_mxn"),
    ("Contracargos", "Chargebacks", "chargebacks_micro_mxn"),
    ("Cargos", "Charges", "charges_micro_mxn"),
    ("Saldo final", "Closing balance", "closing_micro_mxn"),
)
"""Sums of an organisation, in Spanish and English."""

ORG_SHEET = "Organizaciones"
SUMMARY = "Resumen"


@dataclass(slots=True)
class _Styles:
    book: Workbook
    made: dict[str, Format] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mxn, line = "#,##0.00####;[Red]-#,##0.00####", {"top": 1}
        head = {"bold": True, "bg_color": "#1F3864", "font_color": "#FFFFFF", "text_wrap": True, "valign": "top"}
        name = {"italic": True, "bg_color": "#D9E2F3", "font_color": "#444444"}
        styles: dict[str, dict[str, Any]] = {
            "title": {"bold": True, "font_size": 16, "indent": 1},
            "quiet": {"font_color": "#666666", "indent": 1},
            "head": {**head, "align": "left", "indent": 1},
            "head of numbers": {**head, "align": "right"},
            "name": {**name, "align": "left", "indent": 1},
            "name of numbers": {**name, "align": "right"},
            # A cell with this mark stays text even if somebody edits it.
            "text": {"quote_prefix": True, "num_format": "@", "indent": 1},
            "mxn": {"num_format": mxn},
            "total": {"num_format": mxn, "bold": True, **line},
            "count": {"num_format": "#,##0"},
            "label": {"bold": True, "indent": 1, **line},
            "factor": {"num_format": "0.00########"},
            "day": {"num_format": "yyyy-mm-dd"},
            "moment": {"num_format": "yyyy-mm-dd hh:mm:ss"},
            "exact": {"quote_prefix": True, "num_format": "@", "align": "right"},
            "exact total": {"quote_prefix": True, "num_format": "@", "align": "right", "bold": True, **line},
        }
        self.made = {name: self.book.add_format(style) for name, style in styles.items()}

    def __getitem__(self, name: str) -> Format:
        return self.made[name]


async def write(source: Source, file: BinaryIO, tell: Tell, *, max_rows: int = MAX_ROWS) -> Written:
    """Write a workbook; a sheet has at most `max_rows` rows. Raises LedgerAway, OSError."""
    book = Workbook(file, {"constant_memory": True, "default_date_format": "yyyy-mm-dd"})
    book.use_zip64()
    styles = _Styles(book)
    summary = book.add_worksheet(SUMMARY)
    orgs = book.add_worksheet(ORG_SHEET) if source.scope.month is not None else None
    rows = _Rows(book, styles, columns_of(source.scope), max_rows)
    async for page in pages(source.ledger, source.scope):
        rows.add(page)
        tell(page.written.rows)
    rows.end()
    closed = await _closed_at(source)
    sums: list[MonthSums] = []
    if orgs is not None:
        sums = [one async for one in _sums(source)]
        names = [(await source.ledger.names(str(source.scope.month), one.org_id)).org for one in sums]
        _write_orgs(orgs, styles, sums, names)
    _write_summary(summary, styles, source, rows, sums, closed)
    # The file's own date is the month's close, so that the same month is the same file.
    book.set_properties({"title": _title(source), "created": (closed or utc_now()).replace(tzinfo=None)})
    book.close()
    return rows.written


class _Rows:
    """The sheets of rows: a new one whenever one is full."""

    def __init__(self, book: Workbook, styles: _Styles, columns: Sequence[str], max_rows: int) -> None:
        self._book, self._styles, self._columns, self._max_rows = book, styles, columns, max_rows
        self._kinds = [_kind(name) for name in columns]
        self._row = 0
        self.sheets: list[tuple[str, int, int]] = []  # name, rows, sum in micro-MXN
        self.written = Written()
        self._sheet = self._open()

    def add(self, page: Page) -> None:
        """Write a page's rows."""
        amount = self._columns.index("amount_mxn")
        for cells in page.rows:
            if self._row == self._max_rows:
                self.end()
                self._sheet = self._open()
            self._write(cells)
            self._micro_mxn += parse_mxn(cells[amount])
            self._row += 1
        self.written = self.written.plus(page.written)

    def end(self) -> None:
        """Note what the open sheet has."""
        last = max(self._row - 1, HEAD - 1)
        self._sheet.autofilter(HEAD - 1, 0, last, len(self._columns) - 1)
        self._sheet.print_area(0, 0, last, len(self._columns) - 1)
        self.sheets.append((self._sheet.get_name(), self._row - HEAD, self._micro_mxn))

    def total_of(self, sheet: str, rows: int) -> str:
        """Write the formula for a sheet's sum of amounts."""
        column = xl_col_to_name(self._columns.index("amount_mxn"))
        return f"SUM('{sheet}'!{column}{HEAD + 1}:{column}{max(rows, 1) + HEAD})"

    def _open(self) -> Worksheet:
        sheet = self._book.add_worksheet(f"Movimientos {len(self.sheets) + 1}")
        for at, name in enumerate(self._columns):
            shown = SHOWN.get(name)
            sheet.set_column(at, at, shown or FOLDED_WIDTH, None, {} if shown else {"level": 1, "hidden": True})
        sheet.freeze_panes(HEAD, 0)
        sheet.set_landscape()
        sheet.set_paper(9)
        sheet.fit_to_pages(1, 0)
        sheet.repeat_rows(0, HEAD - 1)
        sheet.set_footer("&L&A&R&P / &N")
        numbers = [kind != "text" for kind in self._kinds]
        _heads(sheet, self._styles, [HEADINGS[name] for name in self._columns], self._columns, numbers)
        self._row, self._micro_mxn = HEAD, 0
        return sheet

    def _write(self, cells: Cells) -> None:
        sheet, row, styles = self._sheet, self._row, self._styles
        for at, (kind, cell) in enumerate(zip(self._kinds, cells, strict=True)):
            if not cell:
                continue
            if kind == "text":
                sheet.write_string(row, at, cell, styles["text"])
            elif kind == "day":
                sheet.write_datetime(row, at, date.fromisoformat(cell), styles[kind])
            elif kind == "moment":
                sheet.write_datetime(row, at, datetime.fromisoformat(cell).replace(tzinfo=None), styles[kind])
            else:
                sheet.write_number(row, at, Decimal(cell), styles[kind])


def _heads(
    sheet: Worksheet, styles: _Styles, spanish: Sequence[str], english: Sequence[str], numbers: Sequence[bool]
) -> None:
    """Write both rows of headings. Whole rows: what comes after a row's successor would be lost."""
    sheet.set_row(0, HEAD_HEIGHT)
    for row, (style, texts) in enumerate((("head", spanish), ("name", english))):
        for at, text in enumerate(texts):
            sheet.write_string(row, at, text, styles[f"{style} of numbers" if numbers[at] else style])


def _kind(name: str) -> str:
    """Find the style of a column."""
    if name in NUMBERS:
        return "count"
    if name in MONEY:
        return "mxn"
    if name in DECIMALS:
        return "factor"
    if name in MOMENTS:
        return "moment"
    return "day" if name == "day" else "text"


async def _sums(source: Source) -> AsyncIterator[MonthSums]:
    month = str(source.scope.month)

    async def look(after: MonthSums | None) -> list[MonthSums]:
        return await source.ledger.month_sums(month, after, org_id=source.scope.org_id)

    async for page in listing(look):
        for one in page:
            yield one


async def _closed_at(source: Source) -> datetime | None:
    for one in await source.ledger.closed_months():
        if one.month == source.scope.month:
            return datetime.fromisoformat(one.closed_at)
    return None


def _title(source: Source) -> str:
    scope = source.scope
    when = month_name(scope.month) if scope.month is not None else f"{scope.first} – {scope.last}"
    return f"Consumo de {when}"


def _write_orgs(sheet: Worksheet, styles: _Styles, sums: Sequence[MonthSums], names: Sequence[str]) -> None:
    heads = [("Organización", "Organisation"), ("Id de organización", "Organisation id")]
    heads += [part[:2] for part in PARTS] + [("Pedidos", "Orders"), ("Imágenes", "Images")]
    spanish, english = zip(*heads, strict=True)
    _heads(sheet, styles, spanish, english, [at > 1 for at in range(len(heads))])
    sheet.set_column(0, 0, 28)
    sheet.set_column(1, 1, 38)
    sheet.set_column(2, 1 + len(PARTS), 15)
    sheet.set_column(2 + len(PARTS), 3 + len(PARTS), 10)
    sheet.freeze_panes(HEAD, 1)
    sheet.set_landscape()
    sheet.set_paper(9)
    sheet.fit_to_pages(1, 0)
    sheet.repeat_rows(0, HEAD - 1)
    for row, (one, name) in enumerate(zip(sums, names, strict=True), HEAD):
        sheet.write_string(row, 0, name, styles["text"])
        sheet.write_string(row, 1, one.org_id, styles["text"])
        first = xl_rowcol_to_cell(row, 2)
        for at, (_, _, part) in enumerate(PARTS, 2):
            micro = getattr(one, part)
            if part == "closing_micro_mxn":
                before, charges = xl_rowcol_to_cell(row, at - 2), xl_rowcol_to_cell(row, at - 1)
                formula = f"=SUM({first}:{before})-{charges}"
                sheet.write_formula(row, at, formula, styles["mxn"], _number(micro))
            else:
                sheet.write_number(row, at, _number(micro), styles["mxn"])
        sheet.write_number(row, 2 + len(PARTS), one.orders, styles["count"])
        sheet.write_number(row, 3 + len(PARTS), one.images, styles["count"])
    sheet.autofilter(HEAD - 1, 0, HEAD + len(sums) - 1, 3 + len(PARTS))


def _write_summary(
    sheet: Worksheet,
    styles: _Styles,
    source: Source,
    rows: _Rows,
    sums: Sequence[MonthSums],
    closed: datetime | None,
) -> None:
    lines = _Lines(sheet, styles)
    sheet.set_column(0, 0, 34)
    sheet.set_column(1, 1, 30)
    sheet.set_column(2, 2, 20)
    sheet.set_column(3, 3, 24)
    lines.text(_title(source), "title")
    scope = source.scope
    span = scope.month or f"{scope.first} to {scope.last}"
    lines.text("Días y meses de la Ciudad de México; importes en MXN, sin IVA.", "quiet")
    lines.text(f"Usage of {span}. Days and months are Mexico City's; amounts in MXN, without IVA.", "quiet")
    state = f"Cerrado / closed: {closed:%Y-%m-%d %H:%M} UTC" if closed else "Abierto: puede cambiar / open: may change"
    lines.text(state, "quiet")
    lines.skip()
    if scope.month is not None:
        lines.heads("Saldos", "Balances")
        last = max(len(sums), 1) + HEAD
        for at, (spanish, english, part) in enumerate(PARTS, 2):
            column, micro = xl_col_to_name(at), sum(getattr(one, part) for one in sums)
            style = "total" if part == "closing_micro_mxn" else "mxn"
            lines.money(spanish, english, f"=SUM({ORG_SHEET}!{column}{HEAD + 1}:{column}{last})", micro, style)
        lines.skip()
    lines.heads("Movimientos", "Rows")
    totals = []
    for name, count, micro in rows.sheets:
        totals.append(lines.money(name, f"{count:,} rows", f"={rows.total_of(name, count)}", micro, "mxn"))
    written = rows.written
    net = lines.money(
        "Cargos menos reembolsos", "Charges less refunds", f"={'+'.join(totals)}", written.amount_micro_mxn, "total"
    )
    if scope.month is not None:
        of = {part: xl_col_to_name(at) for at, (_, _, part) in enumerate(PARTS, 2)}
        charges, refunds = (
            f"SUM({ORG_SHEET}!{of[part]}{HEAD + 1}:{of[part]}{max(len(sums), 1) + HEAD})"
            for part in ("charges_micro_mxn", "refunds_micro_mxn")
        )
        difference = sum(one.charges_micro_mxn - one.refunds_micro_mxn for one in sums) - written.amount_micro_mxn
        formula = f"=ROUND({charges}-{refunds}-{net},6)"
        lines.money("Diferencia con los saldos", "Difference from the balances", formula, difference, "mxn")
    lines.skip()
    lines.heads("Totales de control", "Control totals, exact")
    for spanish, english, micro in (
        ("Cargos", "Charges", written.charged_micro_mxn),
        ("Reembolsos", "Refunds", written.refunded_micro_mxn),
        ("Cargos menos reembolsos", "Charges less refunds", written.amount_micro_mxn),
    ):
        lines.exact(spanish, english, format_mxn(micro))
    lines.exact("Renglones", "Rows", str(written.rows))
    sheet.set_portrait()
    sheet.set_paper(9)
    sheet.fit_to_pages(1, 1)
    sheet.print_area(0, 0, lines.row - 1, 3)
    sheet.set_footer("&L&A&R&P / &N")
    sheet.activate()


@dataclass(slots=True)
class _Lines:
    """Lines of the summary, from the first to the last."""

    sheet: Worksheet
    styles: _Styles
    row: int = 0

    def text(self, text: str, style: str) -> None:
        self.sheet.write_string(self.row, 0, text, self.styles[style])
        self.row += 1

    def skip(self) -> None:
        self.row += 1

    def heads(self, spanish: str, english: str) -> None:
        for at, text in enumerate((spanish, english, "MXN", "Exacto / exact")):
            self.sheet.write_string(self.row, at, text, self.styles["head of numbers" if at > 1 else "head"])
        self.row += 1

    def money(self, spanish: str, english: str, formula: str, micro_mxn: int, style: str) -> str:
        """Write a formula with its value, and the exact value as text; returns the formula's cell."""
        label = "label" if style == "total" else "text"
        self.sheet.write_string(self.row, 0, spanish, self.styles[label])
        self.sheet.write_string(self.row, 1, english, self.styles[label])
        self.sheet.write_formula(self.row, 2, formula, self.styles[style], _number(micro_mxn))
        exact = "exact total" if style == "total" else "exact"
        self.sheet.write_string(self.row, 3, format_mxn(micro_mxn), self.styles[exact])
        self.row += 1
        return str(xl_rowcol_to_cell(self.row - 1, 2))

    def exact(self, spanish: str, english: str, text: str) -> None:
        self.sheet.write_string(self.row, 0, spanish, self.styles["text"])
        self.sheet.write_string(self.row, 1, english, self.styles["text"])
        self.sheet.write_string(self.row, 3, text, self.styles["exact"])
        self.row += 1


def _number(micro_mxn: int) -> Decimal:
    return Decimal(format_mxn(micro_mxn))
