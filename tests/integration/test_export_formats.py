"""Exports of a real ledger, read back by other libraries: Parquet and Excel, ranges of days, all ends."""

import asyncio
import csv
import io
import zipfile
from collections.abc import Mapping
from contextlib import aclosing
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from pyarrow import parquet
from python_calamine import CalamineWorkbook

from metering.exports import parquet as ours
from metering.exports import xlsx
from metering.exports.formats import FORMATS, ExtraMissing, Offered
from metering.exports.reading import Scope, days
from metering.exports.rows import COLUMNS, END_COLUMNS, SEALED, Written, columns_of, pages
from metering.exports.writing import Source, untold
from metering.ledger.record import SqlLedger
from metering.money import format_mxn, parse_mxn
from metering.seals import Chains
from tests.kits.books import ACT, NOON, charge_of, event, open_ledger
from tests.kits.exports import CLOSE, MONTH, ORGS, exported, fill, org_id_of
from tests.kits.exports import source as of_rows

CHARGES = 24
SUM = Decimal("42.84")
"""What `fill` charges in all: 24 orders of 51 images."""


async def filled(url: str, *, closed: bool = True) -> SqlLedger:
    ledger = open_ledger(url)
    await ledger.migrate()
    await fill(ledger)
    if closed:
        assert await ledger.close_month(MONTH, CLOSE, ACT)
    return ledger


def rows_of(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


@pytest.mark.rule(37)
async def test_the_same_closed_month_is_the_same_file(ledger_url: str) -> None:
    """(rule 37) Byte by byte, in every format, though names change and time passes between two exports."""
    async with aclosing(await filled(ledger_url)) as ledger:
        source = Source(ledger, Scope((MONTH,)))
        first = {name: await exported(source, name) for name in FORMATS}
        await ledger.rename(org_id_of(0), "another name", CLOSE, ACT)
        await ledger.book([event(org_id_of(0), 99, name="late")], [], CLOSE)
        await asyncio.sleep(2.1)  # a file's times have steps of two seconds: later ones would be seen
        assert {name: await exported(source, name) for name in FORMATS} == first


@pytest.mark.rule(37)
async def test_seals_are_the_same_for_one_organisation_and_with_all_ends(ledger_url: str) -> None:
    """(rule 37) They are of each organisation's own rows, and what follows a seal is not in it."""
    async with aclosing(await filled(ledger_url)) as ledger:
        whole = rows_of((await exported(Source(ledger, Scope((MONTH,)))))[0])
        alone = rows_of((await exported(Source(ledger, Scope((MONTH,), org_id_of(1)))))[0])
        every = rows_of((await exported(Source(ledger, Scope((MONTH,), all_ends=True))))[0])
        assert [one for one in whole if one["org_id"] == org_id_of(1)] == alone and len(alone) == CHARGES / 3
        assert [{name: one[name] for name in COLUMNS} for one in every if one["seal"]] == whole
        sealed = [row async for page in pages(ledger, Scope((MONTH,)), Chains(MONTH)) for row in page.safe]
        assert [(one[: len(SEALED)], one[-1]) for one in sealed] == [
            (tuple(one.values())[: len(SEALED)], one["seal"]) for one in whole
        ]
        assert all(one["seal"] for one in whole)


async def test_all_ends_are_exported_on_request(ledger_url: str) -> None:
    """With the provider's ids and cost, no money and no seal; what the provider may have made is `unknown`."""
    async with aclosing(await filled(ledger_url)) as ledger:
        source = Source(ledger, Scope((MONTH,), all_ends=True))
        data, written = await exported(source)
        rows = rows_of(data)
        others = rows[CHARGES + 1 :]
        assert tuple(rows[0]) == columns_of(source.scope) == (*COLUMNS, *END_COLUMNS)
        assert written == Written(36 + 1, int(SUM * 1_000_000), 500_000) and len(others) == 12
        assert {(one["kind"], one["end"], one["amount_mxn"], one["quantity"], one["seal"]) for one in others} == {
            ("unknown", "void", "0.00", "0", ""),
            ("expiry", "expiry", "0.00", "0", ""),
        }
        assert (others[0]["end_reason"], others[0]["upstream_ids"], others[0]["upstream_usd"]) == (
            "no_answer",
            '["=up-1"]',
            "0.04",
        )


@pytest.mark.rule(24)
async def test_days_add_up_to_months(ledger_url: str) -> None:
    """(rule 24) Each row counts on one day: its own, a refund when it was given, a late one on its month's first."""
    async with aclosing(await filled(ledger_url)) as ledger:
        await ledger.book([event(org_id_of(0), 99, name="late")], [], CLOSE)
        november: list[list[dict[str, str]]] = []
        for month, last in ((MONTH, 30), ("2036-12", 31)):
            whole = rows_of((await exported(Source(ledger, Scope((month,)))))[0])
            daily = [
                rows_of((await exported(Source(ledger, days(f"{month}-{day:02d}", f"{month}-{day:02d}"))))[0])
                for day in range(1, last + 1)
            ]
            found = sorted(one["event_id"] for rows in daily for one in rows)
            assert found == sorted(one["event_id"] for one in whole) and found
            assert {row["day"] for row in daily[6] if row["kind"] == "charge"} <= {f"{month}-07"}
            assert not any(row["seal"] for rows in daily for row in rows)
            november = daily if month == MONTH else november
        assert [row["event_id"] for row in daily[0]] == ["late"]
        (late,) = daily[0]
        assert (late["month"], late["posted_month"], late["day"]) == (MONTH, "2036-12", "2036-11-22")
        both = rows_of((await exported(Source(ledger, days("2036-11-20", "2036-12-05"))))[0])
        ours = [row["event_id"] for rows in november[19:] for row in rows]
        assert sorted(row["event_id"] for row in both) == sorted([*ours, "late"]) and ours


async def test_parquet_has_types(ledger_url: str) -> None:
    """Exact decimals, moments in UTC, days, lists; null where there is nothing; the same sums."""
    async with aclosing(await filled(ledger_url)) as ledger:
        data, written = await exported(Source(ledger, Scope((MONTH,), all_ends=True)), "parquet")
        wanted = rows_of((await exported(Source(ledger, Scope((MONTH,), all_ends=True))))[0])
    table = parquet.read_table(io.BytesIO(data))
    rows: list[dict[str, Any]] = table.to_pylist()
    assert len(rows) == written.rows == len(wanted)
    assert sum(row["amount_mxn"] for row in rows) == SUM - Decimal("0.50")
    first = next(row for row in rows if row["tags"])
    assert first["admitted_at"].tzinfo is not None and isinstance(first["day"], date)
    assert (first["tags"], first["usd_per_image"], first["unit_mxn"]) == (
        ["campaña", "=1+1"],
        Decimal("0.04"),
        Decimal("0.84"),
    )
    assert first["upstream_ids"] == ["=up-1"] and first["org_name"] == ORGS[0]
    for row, cells in zip(rows, wanted, strict=True):
        assert row["number"] == (int(cells["number"]) if cells["number"] else None)
        assert row["admitted_at"] == datetime.fromisoformat(cells["admitted_at"])
        assert row["amount_mxn"] == Decimal(cells["amount_mxn"]) and (row["seal"] or "") == cells["seal"]
        assert (row["images"] or []) == cells["images"].split()


@pytest.mark.parametrize(
    ("figure", "read"), [("1E-7", "0.0000001"), ("0.1234567890123456785", "0.123456789012345679"), ("12", "12")]
)
async def test_a_providers_figure_stops_no_export(figure: str, read: str) -> None:
    """However many decimals it has, and in whichever form it came."""
    one = charge_of(event(org_id_of(0), 1))._replace(usd_measured=figure)
    data, _ = await exported(of_rows([[one]]), "parquet")
    assert parquet.read_table(io.BytesIO(data)).to_pylist()[0]["usd_measured"] == Decimal(read)


async def test_row_groups_are_bounded(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows there are."""
    monkeypatch.setattr(ours, "ROW_GROUP", 10)
    async with aclosing(await filled(ledger_url)) as ledger:
        data, written = await exported(Source(ledger, Scope((MONTH,))), "parquet")
    file = parquet.ParquetFile(io.BytesIO(data))
    groups = [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)]
    assert sum(groups) == written.rows and max(groups) <= 10


def sheets(data: bytes) -> Mapping[str, list[list[Any]]]:
    book = CalamineWorkbook.from_filelike(io.BytesIO(data))
    return {name: book.get_sheet_by_name(name).to_python() for name in book.sheet_names}


async def test_a_workbook_is_read_back_by_another_library(ledger_url: str) -> None:
    """Totals are formulas with their values, dates are dates, names are text, and the balances hold."""
    async with aclosing(await filled(ledger_url)) as ledger:
        data, _ = await exported(Source(ledger, Scope((MONTH,))), "xlsx")
        wanted = rows_of((await exported(Source(ledger, Scope((MONTH,)))))[0])
    found = sheets(data)
    assert list(found) == ["Resumen", "Organizaciones", "Movimientos 1"]
    summary = {row[0]: row[2:] for row in found["Resumen"] if row[0]}
    for name, mxn in (
        ("Saldo inicial", "0.00"),
        ("Recargas", "1500.00"),
        ("Bonificaciones", "150.00"),
        ("Reembolsos", "0.50"),
        ("Saldo final", "1607.66"),
        ("Diferencia con los saldos", "0.00"),
    ):
        assert summary[name][0] in (float(mxn), "") and summary[name][1] == mxn
    assert summary["Cargos menos reembolsos"][1] == "42.34" and summary["Renglones"][1] == str(len(wanted))
    head, names, *orgs = found["Organizaciones"]
    assert (head[0], names[0], [row[0] for row in orgs]) == ("Organización", "Organisation", list(ORGS))
    assert all(row[2] + sum(row[3:8]) - row[8] == pytest.approx(row[9]) for row in orgs)
    spanish, english, *rows = found["Movimientos 1"]
    assert tuple(english) == COLUMNS and spanish[COLUMNS.index("amount_mxn")] == "Importe MXN"
    for row, cells in zip(rows, wanted, strict=True):
        line = dict(zip(COLUMNS, row, strict=True))
        assert line["day"] == date.fromisoformat(cells["day"])
        admitted = datetime.fromisoformat(cells["admitted_at"]).replace(tzinfo=None)
        assert abs(line["admitted_at"] - admitted) < timedelta(milliseconds=1)
        assert line["amount_mxn"] == float(cells["amount_mxn"])
        assert (line["org_name"], line["seal"]) == (cells["org_name"].removeprefix("'"), cells["seal"])


async def test_a_workbook_has_formulas_with_values_and_fits_one_page(ledger_url: str) -> None:
    """As its own XML says: every formula has a value beside it, the summary has one page, and no text is a formula."""
    async with aclosing(await filled(ledger_url)) as ledger:
        data, _ = await exported(Source(ledger, Scope((MONTH,))), "xlsx")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist()}
        assert {one.date_time for one in archive.infolist()} == {(1980, 1, 31, 0, 0, 0)}
    summary, orgs, rows = (files[f"xl/worksheets/sheet{at}.xml"] for at in (1, 2, 3))
    assert '<pageSetUpPr fitToPage="1"/>' in summary and "fitToHeight" not in summary
    assert "_xlnm.Print_Area" in files["xl/workbook.xml"]
    assert "<f>SUM('Movimientos 1'!Z3:Z27)</f><v>42.34</v>" in summary
    assert summary.count("<f>") == summary.count("</f><v>") == 11 and orgs.count("<f>") == len(ORGS)
    assert "<f>" not in rows and 'ySplit="2"' in rows and 'state="frozen"' in rows
    assert "2036-12-03T06:00:00Z" in files["docProps/core.xml"]
    assert 'quotePrefix="1"' in files["xl/styles.xml"]


async def test_a_sheet_that_is_full_is_followed_by_another(ledger_url: str) -> None:
    """No row is lost or doubled, and the summary adds all sheets up."""
    async with aclosing(await filled(ledger_url)) as ledger:
        file = io.BytesIO()
        written = await xlsx.write(Source(ledger, Scope((MONTH,))), file, untold, max_rows=12)
        wanted = [row["event_id"] async for row in _dicts(ledger)]
    found = sheets(file.getvalue())
    parts = [name for name in found if name.startswith("Movimientos")]
    assert parts == ["Movimientos 1", "Movimientos 2", "Movimientos 3"]
    assert [row[0] for name in parts for row in found[name][2:]] == wanted and len(wanted) == written.rows == 25
    assert max(len(found[name]) for name in parts) == 12
    listed = {row[0]: row[2:] for row in found["Resumen"] if row[0] in parts}
    amount = COLUMNS.index("amount_mxn")
    for name in parts:
        sums = sum(Decimal(str(row[amount])) for row in found[name][2:])
        assert listed[name] == [float(sums), format_mxn(parse_mxn(str(sums)))]


async def _dicts(ledger: SqlLedger) -> Any:
    for row in rows_of((await exported(Source(ledger, Scope((MONTH,)))))[0]):
        yield row | {"event_id": row["event_id"].removeprefix("'")}


async def test_a_workbook_of_days_has_no_balances(ledger_url: str) -> None:
    """They are of whole months; the rows and their sums are there."""
    async with aclosing(await filled(ledger_url)) as ledger:
        found = sheets((await exported(Source(ledger, days("2036-11-01", "2036-11-15")), "xlsx"))[0])
    first = [row[0] for row in found["Resumen"]]
    assert first[0] == "Consumo de 2036-11-01 – 2036-11-15" and "Saldo inicial" not in first
    assert "Organizaciones" not in found


async def test_an_open_month_is_exported_as_it_is(ledger_url: str) -> None:
    """With the names of now, and without seals."""
    async with aclosing(await filled(ledger_url, closed=False)) as ledger:
        await ledger.rename(org_id_of(0), "another name", NOON, ACT)
        rows = rows_of((await exported(Source(ledger, Scope((MONTH,)))))[0])
        assert rows[0]["org_name"] == "another name" and not any(row["seal"] for row in rows)
        found = sheets((await exported(Source(ledger, Scope((MONTH,))), "xlsx"))[0])
        assert any("Abierto" in row[0] for row in found["Resumen"])


async def test_orders_of_an_unknown_organisation_are_exported(ledger_url: str) -> None:
    """One that was not charged needs no organisation in the ledger; it has no name, and stops no export."""
    async with aclosing(await filled(ledger_url)) as ledger:
        nobody = "99999999-0000-4000-8000-000000000000"
        await ledger.book([event(nobody, 1, end="void")], [], CLOSE)
        (row,) = rows_of((await exported(Source(ledger, Scope(("2036-12",), all_ends=True))))[0])
        assert (row["org_id"], row["org_name"], row["key_name"], row["kind"]) == (nobody, "", "", "void")


def test_an_extra_that_is_not_there_is_named() -> None:
    """With the command that installs it."""
    missing = Offered("metering.exports.nothing:write", extra="parquet")
    with pytest.raises(ExtraMissing, match=r"pip install 'geekhub-gateway\[parquet\]'"):
        missing.load()
