"""Statements as people see them: words, numbers, the chart, HTML and PDF; names of any kind come out as text."""

import re
from datetime import date
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from proxy.messages import Language, Text
from proxy.statements import words
from proxy.statements.chart import axis_top, chart
from proxy.statements.numbers import column, day_of, long_day, mxn, plain, short_day
from proxy.statements.page import POLICY, page_of
from proxy.statements.pdf import PAPER, pdf_of
from proxy.statements.sheet import Row, Sheet, Table, sheet_of
from tests.kits.statements import pdf_text, statement

HOSTILE = (
    '#read("/etc/passwd") #import "@preview/cetz:0.3.0" $x$ *b* _i_ ]',
    '"quotes" & <b>tag</b> \' <script>alert(1)</script>',
    "</style></title><img src=x onerror=alert(1)>",
    "🎨 estudio 🦊",
    "متجر الصور",
    "w" * 200,
    "cigüeña ñandú ÁÉÍÓÚ ¿¡",
    "line\nbreak\ttab",
)


class Read(HTMLParser):
    """What a page has: its elements, their attributes, and its text outside of CSS."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._in_css = False
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in_css = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_css = False

    def handle_data(self, data: str) -> None:
        if not self._in_css:
            self.text.append(data)


def table_of(sheet: Sheet, title: Text, language: Language = "es") -> Table:
    wanted = title.es if language == "es" else str(title)
    (found,) = [table for table in (sheet.summary, *sheet.tables) if table.title == wanted]
    return found


def texts(row: Row) -> list[str]:
    return [cell.text.strip() for cell in row.cells]


@pytest.mark.parametrize(
    ("micro", "text"),
    [
        (0, "0.00"),
        (840_000, "0.84"),
        (-1, "-0.000001"),
        (1_234_567_891_200, "1,234,567.8912"),
        (10**15, "1,000,000,000.00"),
    ],
)
def test_an_amount_is_exact_with_separators(micro: int, text: str) -> None:
    assert mxn(micro) == text


def test_the_points_of_a_column_are_below_each_other() -> None:
    found = column([840_000, -1, 1_234_500_000])
    assert [len(text) - text.index(".") for text in found] == [7, 7, 7]
    assert [text.strip() for text in found] == ["0.84", "-0.000001", "1,234.50"]


def test_dates_are_written_as_in_mexico() -> None:
    """A moment's day is Mexico City's."""
    day = day_of("2026-11-06T05:59:59+00:00")
    assert day == date(2026, 11, 5)
    assert (short_day(day, "es"), short_day(day, "en")) == ("05/11/2026", "5 Nov 2026")
    assert (long_day(day, "es"), long_day(day, "en")) == ("5 de noviembre de 2026", "5 November 2026")


def test_a_name_is_shown_as_it_is_read() -> None:
    """Characters that turn a text around are left out, and controls are spaces."""
    assert plain("\u202egnp.exe") == "gnp.exe" and plain("a\x00b\u2028c") == "a b c" and plain("ñ 🎨") == "ñ 🎨"


@pytest.mark.parametrize(
    ("highest", "top"), [(0, 20_000), (1, 20_000), (840_000, 1_000_000), (619_455_200, 800_000_000)]
)
def test_the_axis_ends_at_a_round_amount(highest: int, top: int) -> None:
    assert axis_top(highest) == top
    assert top % 2 == 0


def test_each_bar_is_as_high_as_its_cost() -> None:
    """From zero; a day that cost next to nothing is still seen; days without cost have no bar."""
    svg = ElementTree.fromstring(chart("2026-02", {1: 10**9, 2: 5 * 10**8, 28: 1}, "a < b", "c & d"))
    space = "{http://www.w3.org/2000/svg}"
    bars = [float(bar.attrib["height"]) for bar in svg.iter(f"{space}rect")]
    assert bars[0] == 2 * bars[1] and bars[2] == 1
    assert [node.text for node in svg.iter() if node.tag in (f"{space}title", f"{space}desc")] == ["a < b", "c & d"]
    assert [node.text for node in svg.iter(f"{space}text")][:3] == ["0.00", "500.00", "1,000.00"]


def test_a_statement_says_what_was_used_paid_and_left() -> None:
    """Worked example: one order of the price list costs 0.84 MXN, and stands as 0.84 everywhere."""
    sheet = sheet_of(statement(), "es")
    assert [texts(row) for row in sheet.summary.rows] == [
        ["Saldo inicial", "1,234,567.50"],
        ["Recargas", "500.00"],
        ["Bonificaciones", "50.00"],
        ["Reembolsos", "0.84"],
        ["Ajustes", "-0.000001"],
        ["Contracargos", "-100.00"],
        ["Cargos por imágenes", "-0.84"],
        ["Saldo final", "1,235,017.499999"],
    ]
    assert texts(table_of(sheet, words.BY_DAY).rows[0]) == ["01/11/2026", "1", "1", "0.84"]
    for title in (words.BY_DAY, words.BY_KEY, words.BY_MODEL):
        assert texts(table_of(sheet, title).rows[-1]) == ["Total", "1", "1", "0.84"]
    assert [texts(row) for row in table_of(sheet, words.IVA).rows] == [["16 %", "400.00", "64.00", "464.00"]]
    (rate,) = table_of(sheet, words.RATE).rows
    assert texts(rate) == ["noviembre de 2026", "18.4512", "Banxico FIX, DOF del 30/10/2026", "18.4512"]
    movements = table_of(sheet, words.MOVEMENTS)
    assert texts(movements.rows[0]) == ["01/11/2026", "Recarga", "500.00", "80.00", "580.00", "500.00"]
    assert movements.rows[2].cells[1].small == "Del pedido req_7d2f1f0e0c5b4a35a1f8f6f1f0b1c2d3 · borrosa"
    assert movements.rows[4].cells[1].small == "De la recarga SPEI-8841"
    assert sheet.status == "Mes cerrado el 1 de diciembre de 2026. Este estado de cuenta ya no cambia."


def test_charges_of_earlier_months_have_a_line_in_every_sum() -> None:
    """And a table that says of which months they are; by tag it is said that they are left out."""
    sheet = sheet_of(statement(("a", "b"), days=2, late=True, tags=("web",)), "en")
    for title in (words.BY_DAY, words.BY_KEY, words.BY_MODEL):
        rows = table_of(sheet, title, "en").rows
        assert texts(rows[-2]) == ["Charges of earlier months", "2", "3", "2.52"]
        assert texts(rows[-1]) == ["Total", "6", "7", "5.88"]
    assert texts(table_of(sheet, words.LATE, "en").rows[0]) == ["October 2026", "2", "3", "2.52"]
    tags = table_of(sheet, words.BY_TAG, "en")
    assert [texts(row)[0] for row in tags.rows] == ["web", "Without a tag"]
    assert tags.notes == (str(words.TAGS_OVERLAP), str(words.TAGS_LATE))


def test_an_open_month_is_provisional() -> None:
    for language, said in (
        ("es", "Provisional: el mes no está cerrado."),
        ("en", "Provisional: the month is not closed."),
    ):
        sheet = sheet_of(statement(closed=False), language)  # type: ignore[arg-type]  # the two languages
        assert sheet.provisional and said in page_of(sheet).decode() and said in pdf_text(pdf_of(sheet, "2026-11"))


@pytest.mark.parametrize("language", ["es", "en"])
def test_html_and_pdf_say_the_same(language: Language) -> None:
    """Every text of the sheet stands in both; numbers are whole."""
    sheet = sheet_of(statement(("a", "ñandú"), days=31 - 1, late=True, tags=("web", "campaña")), language)
    html = re.sub(r"\s+", " ", " ".join(Read(page_of(sheet)).text))
    pdf = pdf_text(pdf_of(sheet, "2026-11"))
    said = [sheet.title, sheet.month, sheet.org, sheet.period, sheet.status, sheet.used, *sheet.notes]
    for table in (sheet.summary, *sheet.tables):
        said += [
            table.title,
            *table.columns,
            *table.notes,
            *(cell.text.strip() for row in table.rows for cell in row.cells),
        ]
    missing = [(text, where) for where, whole in (("html", html), ("pdf", pdf)) for text in said if text not in whole]
    assert missing == []


def test_a_page_runs_and_loads_nothing() -> None:
    """Whatever things are called: no script, no address, no style but its own; language and heads are marked."""
    sheet = sheet_of(statement(HOSTILE, org=HOSTILE[2], tags=HOSTILE), "es")
    read = Read(page_of(sheet))
    tags = {tag for tag, _ in read.elements}
    assert tags.isdisjoint({"script", "img", "iframe", "link", "a", "b", "object", "form", "use", "image"})
    names = {name for _, attributes in read.elements for name in attributes}
    assert not {name for name in names if name.startswith("on") or name in ("style", "src", "href")}
    assert ("html", {"lang": "es-MX"}) in read.elements
    assert {attributes["scope"] for tag, attributes in read.elements if tag == "th"} == {"col", "row"}
    assert any(attributes.get("content") == POLICY for tag, attributes in read.elements if tag == "meta")
    text = "".join(read.text)
    assert all(plain(name) in text for name in HOSTILE)


def test_hostile_names_are_text_in_a_pdf() -> None:
    """Nothing of them is run or read. What the fonts do not have is a box, and the rest of its name stands."""
    text = pdf_text(pdf_of(sheet_of(statement(HOSTILE, org=HOSTILE[0], tags=HOSTILE), "es"), "2026-11"))
    packed = text.replace(" ", "")
    for name in HOSTILE:
        shown = plain(name).replace("🎨", "").replace("🦊", "").replace(" ", "")
        assert shown in packed, name
    assert "root:x:0" not in text


@pytest.mark.parametrize("paper", [PAPER, "a4"])
def test_a_pdf_is_the_same_each_time(paper: str) -> None:
    """Its date is the month's end."""
    sheet = sheet_of(statement(("a",) * 40, days=30, tags=("web",)), "es")
    once = pdf_of(sheet, "2026-11", paper)
    assert once.startswith(b"%PDF-") and once == pdf_of(sheet, "2026-11", paper)
    assert b"2026-12-01T06:00:00" in once or b"D:20261201060000" in once


def test_a_month_of_nothing_is_a_statement() -> None:
    sheet = sheet_of(statement(days=0, credited=False), "es")
    assert sheet.chart == "" and sheet.used == "En este mes no hubo cargos."
    assert [table.title for table in sheet.tables] == ["Pagos y abonos", "IVA de las recargas", "Tipo de cambio"]
    assert page_of(sheet) and "Ninguno en este mes." in pdf_text(pdf_of(sheet, "2026-11"))
