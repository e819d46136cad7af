"""Invoices as files: what people's programs write, and sentences for what cannot be read."""

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from config.catalogue import read_catalogue
from metering.reconciliation.books import Bill
from metering.reconciliation.calendars import span_of
from proxy.providers_books.invoice import Invoice, parse_day, parse_number
from proxy.providers_books.names import Names
from proxy.providers_books.reading import BooksFailed

SPAN = span_of("2036-11", "UTC", datetime(2036, 12, 10, tzinfo=UTC))
PACIFIC = span_of("2036-11", "America/Los_Angeles", datetime(2036, 12, 10, tzinfo=UTC))
MODELS = read_catalogue(None).models
NAMES = Names("openai", MODELS, ["gpt-image-2"])
THIRD = date(2036, 11, 3)


def opened(folder: Path, text: str | bytes) -> Invoice:
    path = folder / "invoice.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Invoice.open(path, SPAN, NAMES)


def read(folder: Path, text: str | bytes) -> Bill:
    return opened(folder, text).bill()[0]


def cells(bill: Bill) -> dict[tuple[str, date | None], tuple[int, str]]:
    return {place: (one.images, f"{one.usd:f}") for place, one in bill.cells.items()}


def test_an_invoice_as_a_spreadsheet_writes_it(tmp_path: Path) -> None:
    """With a mark, semicolons, decimal commas, quotes, empty lines, a title, a credit, a tax and a total."""
    text = (
        "\ufeffFactura 4711;;;\r\n;;;\r\n"
        "Fecha;Concepto;Cantidad;Importe\r\n"
        '2036-11-03;"gpt-image-1";1.234.567;1.234.567,25\r\n'
        "\r\n;;;\r\n"
        '2036-11-03;"GPT Image 1; edición ""noviembre""";3;0,57\r\n'
        "2036-11-04;gpt-image-2;2;$ 0,12\r\n"
        "2036-11-05;crédito por servicio;;-10,00\r\n"
        ";Subtotal;;1.234.557,94\r\n"
        "2036-11-30;IVA 16 %;;1,60\r\n"
        ";Total;1234572;1.234.559,54\r\n"
    )
    bill, lines = opened(tmp_path, text).bill()
    assert lines == 3
    assert cells(bill) == {
        ("gpt-image-1", THIRD): (1_234_570, "1234567.82"),
        ("gpt-image-2", date(2036, 11, 4)): (2, "0.12"),
    }
    assert (bill.credits_usd, bill.taxes_usd, bill.total_usd) == (
        Decimal("-10.00"),
        Decimal("1.60"),
        Decimal("1234559.54"),
    )
    assert bill.total_usd == bill.usd + bill.credits_usd + bill.taxes_usd


@pytest.mark.parametrize(
    "text",
    [
        "date,model,images,usd\n2036-11-03,gpt-image-1,\"1,200\",\"$1,234.50\"\n",
        "Usage Start Date\tSKU description\tUsage amount\tCost ($)\n2036/11/03\tgpt-image-1\t1200\t1234.50\n",
        "timestamp|endpoint_id|quantity|cost_usd\n2036-11-03T23:59:59.999Z|GPT-IMAGE-1|1200|1234.5\n",
        "day,line item,qty,amount,currency\n20361103,\"gpt-image-1, image output\",1200,\"1,234.50\",USD\n",
        "created_at,model,units,unit_price\n2036-11-04T00:30:00+01:00,openai/gpt-image-1,1200,1.02875\n",
        "date,model,images,usd\n\"Nov 3, 2036\",gpt-image-1-2025-04-23,1200,1234.50 USD\n",
        "date,model,images,usd\n2109110399,other,0,0\n2109369599,gpt-image-1,1200,1234.50\n",
    ],
)  # fmt: skip
def test_columns_have_many_names(tmp_path: Path, text: str) -> None:
    found = cells(read(tmp_path, text))
    images, usd = found["gpt-image-1", THIRD]
    assert (images, Decimal(usd)) == (1_200, Decimal("1234.50"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("model,images\ngpt-image-1,1\n", "no line names a column for usd; it may be called: usd, amount"),
        ("date,usd\n2036-11-03,1\n", "no line names a column for model"),
        ("date,model,usd\n03/11/2036,gpt-image-1,1\n", "line 2, column 'date': '03/11/2036' is no day; write it as"),
        ("date,model,usd\n2036-11-03,gpt-image-1,abc\n", "line 2, column 'usd': 'abc' is no number"),
        ("date,model,usd\n\n2036-11-03,gpt-image-1,\n", "line 3, column 'usd': is empty"),
        ("date,model,usd\n2036-11-03,gpt-image-1,\"1,5\"\n", "line 2, column 'usd': '1,5' is no number"),
        ("date,model,usd\n2036-11-03,gpt-image-1,1e400\n", "line 2, column 'usd': '1e400' is no number"),
        ("date,model,usd\n2036-11-03,gpt-image-1,99999999999\n", "is too large to be one"),
        ("date,model,images,usd\n2036-11-03,gpt-image-1,1.5,1\n", "column 'images': '1.5' is no number of images"),
        ("date,model,images,usd\n2036-11-03,gpt-image-1,-1,1\n", "column 'images': '-1' is no number of images"),
        ("date,model,usd\n2036-11-03,,1\n", "line 2, column 'model': is empty"),
        ("date,model,usd,moneda\n2036-11-03,gpt-image-1,1,MXN\n", "line 2, column 'moneda': 'MXN' is not USD"),
        ("date,model,usd,request id\n2036-11-03,gpt-image-1,1,\n", "column 'request id': is empty, though"),
        (f"date,model,usd,request id\n2036-11-03,gpt-image-1,1,{'x' * 201}\n", "is too long to be one"),
        (f"date,model,usd\n2036-11-03,gpt-image-1,{'x' * 9_000}\n", "column 'usd': 'xxx"),
        ("date,model,usd\n2036-11-03,\"gpt\n-image-1,1\n2036-11-03,x,1\n", "line 2: is no CSV"),
        (b"date,model,usd\n2036-11-03,edici\xf3n de noviembre,1\n", "line 2: is not UTF-8; save it as CSV UTF-8"),
        ("date,model,usd\n" + "2036-11-03,gpt-image-1,1\n" * 9 + "x\n", "line 11, column 'usd': is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_by_line_and_column(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(BooksFailed) as told:
        read(tmp_path, text)
    assert says in str(told.value) and str(told.value).startswith(str(tmp_path)) and len(str(told.value)) < 500


def test_a_file_that_is_not_utf_8_far_behind_its_beginning(tmp_path: Path) -> None:
    text = b"date,model,usd\n" + b"2036-11-03,gpt-image-1,1\n" * 9_000 + b"2036-11-03,\xf3,1\n"
    with pytest.raises(BooksFailed, match="is no CSV: 'utf-8' codec"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "comma", "number"),
    [
        ("1,234.50", False, "1234.50"),
        ("1.234,50", False, "1234.50"),
        ("1,234,567", False, "1234567"),
        ("1,234", False, "1234"),
        ("1,234", True, "1.234"),
        ("0.040", True, "0.040"),
        ("1.234.567", True, "1234567"),
        ("(12.00)", False, "-12.00"),
        ("-$12", False, "-12"),
        ("12.00-", False, "-12.00"),
        ("\u22121.5", False, "-1.5"),
        ("US$ 1 234.50", False, "1234.50"),
        (".5", False, "0.5"),
    ],
)
def test_numbers_as_people_print_them(text: str, comma: bool, number: str) -> None:
    assert parse_number(text, decimal_comma=comma) == Decimal(number)


@pytest.mark.parametrize("text", ["1,23", "1,2,3", "1..2", "1.2.3", "NaN", "inf", "--", "12 MXN", "1e5"])
def test_what_is_no_number_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no number"):
        parse_number(text, decimal_comma=False)


def test_a_moment_is_the_day_of_the_provider() -> None:
    """A day without a time is taken as it is."""
    assert parse_day("2036-11-04T07:59:59.999Z", PACIFIC) == THIRD
    assert parse_day("2036-11-04T08:00:00Z", PACIFIC) == date(2036, 11, 4)
    assert parse_day("2036-11-04 08:00:00 UTC", PACIFIC) == date(2036, 11, 4)
    assert parse_day("2036-11-04", PACIFIC) == date(2036, 11, 4)
    assert parse_day("11/04/2036", PACIFIC) is None


def test_roundings_are_those_that_are_printed(tmp_path: Path) -> None:
    """Half of the last digit, of the coarsest line; they do not add up."""
    bill = read(tmp_path, "date,model,usd\n2036-11-03,gpt-image-1,0.57\n2036-11-03,gpt-image-1,0.1900\n")
    assert bill.cells["gpt-image-1", THIRD].rounding == Decimal("0.005")


def test_another_model_of_a_longer_name_is_another_one() -> None:
    names = Names("openai", MODELS, ["gpt-image-1-mini", "gpt-image-2.5"])
    assert names.find("gpt-image-1-mini, image output") == "gpt-image-1-mini"
    assert names.find("gpt-image-1.5") is None
    assert names.find("gpt-image-2.5 (batch)") == "gpt-image-2.5"
    assert names.find("gpt-image-1 | 1024x1024") == "gpt-image-1"
    assert Names("fal", MODELS, []).find("fal-ai/flux-pro/v1.1-ultra") == "fal-ai/flux-pro/v1.1-ultra"
