"""An invoice of a provider as a CSV file: read line by line, so that its size does not matter.

`docs/reconcile.md` has its columns. A line that cannot be read stops it, with the number of the line and the column: an
invoice of which a part is left out would prove nothing.
"""

import csv
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import NoReturn

from metering.reconciliation.books import LEAST_USD, Bill
from metering.reconciliation.by_id import Line
from metering.reconciliation.calendars import Span
from proxy.providers_books.names import Names
from proxy.providers_books.reading import MAX_USD, BooksFailed

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "date": (
        "date", "day", "usage date", "usage start date", "usage start time", "start time", "start date", "timestamp",
        "time", "created at", "started at", "charge period start", "chargeperiodstart", "fecha", "dia", "día",
    ),
    "model": (
        "model", "endpoint", "endpoint id", "sku", "sku description", "line item", "item", "product", "description",
        "service", "modelo", "producto", "concepto", "descripcion", "descripción",
    ),
    "images": (
        "images", "image count", "num images", "quantity", "qty", "units", "usage amount", "consumedquantity",
        "imagenes", "imágenes", "cantidad", "unidades",
    ),
    "usd": (
        "usd", "amount", "amount usd", "cost", "cost usd", "total cost", "cost ($)", "total", "billedcost", "subtotal",
        "importe", "monto", "costo",
    ),
    "unit_usd": ("unit price", "unit usd", "price", "rate", "precio unitario", "precio"),
    "id": ("request id", "generation id", "job id", "id de solicitud"),
    "currency": ("currency", "currency code", "billingcurrency", "moneda", "divisa"),
}  # fmt: skip
"""Columns by what they say, with the names under which they are known, in the order in which they are looked for."""

TOTALS = re.compile(r"(?i)^\W*((grand |gran |invoice )?totals?|amount due|sum|suma)\b")
SUBTOTALS = re.compile(r"(?i)^\W*sub-?\s?totals?\b")
TAXES = re.compile(r"(?i)\b(tax|vat|iva|gst)\b")

MAX_NAME = 200
"""Maximum length of a model's name and of an id in characters: findings with them are kept."""

MAX_CELL = 64 * 1024
"""Maximum size of a cell in characters: a quote that is never closed would make the rest of the file one cell."""

_COMMAS = re.compile(r"[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?")
_DOTS = re.compile(r"[0-9]{1,3}(\.[0-9]{3})+,[0-9]+|[0-9]{1,3}(\.[0-9]{3}){2,}")
_PLAIN = re.compile(r"[0-9]*\.?[0-9]+|[0-9]+\.")
_DATES = ("%Y-%m-%d", "%Y/%m/%d", "%Y%m%d", "%b %d, %Y", "%B %d, %Y", "%d %b %Y", "%d-%b-%Y")
_SECONDS = re.compile(r"[12][0-9]{9}")


@dataclass(frozen=True, slots=True)
class _Row:
    """One line: what it bills, or what else it is."""

    number: int
    kind: str
    model: str = ""
    day: date | None = None
    images: int = 0
    usd: Decimal = Decimal(0)
    rounding: Decimal = LEAST_USD
    id: str = ""


class Invoice:
    """A file, opened by `open`; it is read from its beginning by each method that reads."""

    def __init__(
        self, path: Path, delimiter: str, header: list[str], header_line: int, span: Span, names: Names
    ) -> None:
        self._path = path
        self._delimiter = delimiter
        self._header_line = header_line
        self._span = span
        self._names = names
        wanted = {
            name: next((place for alias in known for place, cell in enumerate(header) if cell == alias), None)
            for name, known in COLUMNS.items()
        }
        self._places = {name: place for name, place in wanted.items() if place is not None}
        self.header = header

    @classmethod
    def open(cls, path: Path, span: Span, names: Names) -> "Invoice":
        """Read the header: the first line that names a model and an amount. Raises BooksFailed."""
        try:
            with path.open("rb") as raw:
                beginning = raw.read(MAX_CELL)
            encoded = _decoded(path, beginning)
        except OSError as error:
            raise BooksFailed(f"{path}: cannot be read: {error.strerror}") from None
        best: Invoice | None = None
        for number, text in enumerate(encoded.splitlines()[:20], 1):
            for delimiter in (",", ";", "\t", "|"):
                try:
                    (cells,) = csv.reader([text], delimiter=delimiter) if text.strip() else ([],)
                except (csv.Error, ValueError):
                    continue
                found = cls(path, delimiter, [_named(cell) for cell in cells], number, span, names)
                if best is None or len(found._places) > len(best._places):
                    best = found
        if best is None:
            raise BooksFailed(f"{path}: is empty")
        for name in ("model", "usd"):
            if name not in best._places and not (name == "usd" and {"images", "unit_usd"} <= best._places.keys()):
                raise BooksFailed(
                    f"{path}: no line names a column for {name}; it may be called: {', '.join(COLUMNS[name][:6])}"
                )
        return best

    @property
    def names_ids(self) -> bool:
        """True if its lines name the provider's requests."""
        return "id" in self._places

    def sha256(self) -> str:
        """Hash the file."""
        digest = hashlib.sha256()
        with self._path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()

    def bill(self) -> tuple[Bill, int]:
        """Sum its lines; returns also how many there are. Raises BooksFailed."""
        found = Bill(counts="images" in self._places, sums=True)
        lines = 0
        for row in self._rows():
            if row.kind == "line":
                lines += 1
                found.add(row.model, row.day, row.images, row.usd, row.rounding)
            elif row.kind == "credit":
                found.credits_usd += row.usd
            elif row.kind == "tax":
                found.taxes_usd += row.usd
            elif row.kind == "total":  # the last one is that of the whole
                found.total_usd, found.total_rounding = row.usd, row.rounding
        return found, lines

    def lines(self) -> Iterator[Line]:
        """Yield the lines that bill a request. Raises BooksFailed."""
        for row in self._rows():
            if row.kind == "line":
                yield Line(row.id, row.model, row.day, row.images, row.usd, row.rounding)

    def _rows(self) -> Iterator[_Row]:
        try:
            with self._path.open(encoding=_encoding(self._path), newline="") as file:
                csv.field_size_limit(MAX_CELL)
                reader = csv.reader(file, delimiter=self._delimiter, strict=True)
                before = 0
                for cells in reader:
                    number, before = before + 1, reader.line_num
                    if number > self._header_line and any(cell.strip() for cell in cells):
                        yield self._row(number, cells)
        except OSError as error:
            raise BooksFailed(f"{self._path}: cannot be read: {error.strerror}") from None
        except (csv.Error, UnicodeDecodeError) as error:
            raise BooksFailed(f"{self._path}: line {before + 1}: is no CSV: {error}") from None

    def _row(self, number: int, cells: list[str]) -> _Row:
        text = self._cell(cells, "model")
        known = self._names.find(text)
        if known is None and any(SUBTOTALS.match(cell) for cell in cells):
            return _Row(number, "subtotal")
        if known is None and any(TOTALS.match(cell) for cell in cells):
            usd, rounding = self._usd(number, cells)
            return _Row(number, "total", usd=usd, rounding=rounding)
        currency = self._cell(cells, "currency")
        if currency and currency.upper() not in ("USD", "US$", "$"):
            self._wrong(number, "currency", f"{currency!r} is not USD")
        usd, rounding = self._usd(number, cells)
        if known is None and TAXES.search(text):
            return _Row(number, "tax", usd=usd)
        if usd < 0:
            return _Row(number, "credit", usd=usd)
        if not text:
            self._wrong(number, "model", "is empty")
        images = self._images(number, cells)
        named = self._cell(cells, "id")
        if self.names_ids and not 0 < len(named) <= MAX_NAME:
            self._wrong(number, "id", "is too long to be one" if named else "is empty, though other lines have one")
        return _Row(number, "line", known or text[:MAX_NAME], self._day(number, cells), images, usd, rounding, named)

    def _usd(self, number: int, cells: list[str]) -> tuple[Decimal, Decimal]:
        """Read the amount, and half of its last digit."""
        if "usd" in self._places:
            figure = self._number(number, cells, "usd")
        else:
            figure = self._number(number, cells, "images") * self._number(number, cells, "unit_usd")
        if abs(figure) > MAX_USD:
            self._wrong(number, "usd", f"{figure:f} is too large to be one")
        exponent = figure.as_tuple().exponent
        rounding = Decimal(5).scaleb(exponent - 1) if isinstance(exponent, int) and exponent < 0 else LEAST_USD
        return figure, max(rounding, LEAST_USD)

    def _images(self, number: int, cells: list[str]) -> int:
        if "images" not in self._places:
            return 0
        figure = self._number(number, cells, "images")
        if figure != figure.to_integral_value() or figure < 0:
            self._wrong(number, "images", f"{self._cell(cells, 'images')!r} is no number of images")
        return int(figure)

    def _number(self, number: int, cells: list[str], name: str) -> Decimal:
        text = self._cell(cells, name)
        try:
            return parse_number(text, decimal_comma=self._delimiter == ";")
        except ValueError as error:
            self._wrong(number, name, str(error))

    def _day(self, number: int, cells: list[str]) -> date | None:
        if "date" not in self._places:
            return None
        text = self._cell(cells, "date")
        if (found := parse_day(text, self._span)) is None:
            self._wrong(number, "date", f"{text!r} is no day; write it as 2026-11-22, or with time and zone")
        return found

    def _cell(self, cells: list[str], name: str) -> str:
        place = self._places.get(name)
        return "" if place is None or place >= len(cells) else cells[place].strip()

    def _wrong(self, number: int, name: str, why: str) -> NoReturn:
        column = self.header[self._places[name]] if name in self._places else name
        raise BooksFailed(f"{self._path}: line {number}, column {column!r}: {why[:MAX_NAME]}") from None


def parse_number(text: str, *, decimal_comma: bool) -> Decimal:
    """Parse `1,234.50`, `1.234,50`, `$0.04`, `(12.00)` or `-12.00`. Raises ValueError with what is wrong.

    `decimal_comma`: a single comma is a decimal one, as in a file with semicolons; elsewhere commas group thousands.
    """
    bare = re.sub(r"(?i)usd|us\$|\$|[\s\u00a0\u202f']", "", text)
    minus = bare.startswith(("-", "\u2212", "(")) or bare.endswith("-")
    bare = bare.strip("-\u2212()+")
    if not bare:
        raise ValueError("is empty" if not text.strip() else f"{text!r} is no number")
    if _COMMAS.fullmatch(bare) and not (decimal_comma and bare.count(",") == 1 and "." not in bare):
        bare = bare.replace(",", "")
    elif _DOTS.fullmatch(bare):
        bare = bare.replace(".", "").replace(",", ".")
    elif decimal_comma and bare.count(",") == 1 and "." not in bare:
        bare = bare.replace(",", ".")
    if not _PLAIN.fullmatch(bare):
        raise ValueError(f"{text!r} is no number")
    return -Decimal(bare) if minus else Decimal(bare)


def parse_day(text: str, span: Span) -> date | None:
    """Parse a day, or a moment as the day that it has in the provider's zone; None if it is neither.

    `03/11/2026` is neither: it is one day in Mexico and another in the United States.
    """
    for form in _DATES:
        try:
            return datetime.strptime(text, form).date()  # noqa: DTZ007  # a day has no zone
        except ValueError:
            continue
    if _SECONDS.fullmatch(text):
        return datetime.fromtimestamp(int(text), UTC).astimezone(span.zone).date()
    try:
        moment = datetime.fromisoformat(text.removesuffix(" UTC") + ("+00:00" if text.endswith(" UTC") else ""))
    except ValueError:
        return None
    return (moment if moment.tzinfo is None else moment.astimezone(span.zone)).date()


def _named(cell: str) -> str:
    return " ".join(cell.strip().lower().replace("_", " ").split())


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        beginning = file.read(4)
    return "utf-16" if beginning.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"


def _decoded(path: Path, beginning: bytes) -> str:
    """Decode the first bytes; a character that is cut at the end is left out. Raises BooksFailed."""
    if beginning.startswith((b"\xff\xfe", b"\xfe\xff")):
        return beginning.decode("utf-16", "ignore")
    try:
        return beginning.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(beginning) - 4:
            line = beginning[: error.start].count(b"\n") + 1
            raise BooksFailed(f"{path}: line {line}: is not UTF-8; save it as CSV UTF-8") from None
        return beginning[: error.start].decode("utf-8-sig")
