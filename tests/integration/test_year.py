"""A generated year: each sum of each month, in the books, exports and manifests, is what the year itself counted."""

import csv
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from metering.clock import period_at
from metering.exports.csv_lines import write
from metering.exports.reading import Scope
from metering.exports.rows import COLUMNS, SEALED
from metering.exports.writing import Source, write_file
from metering.ledger.record import SqlLedger
from metering.manifest import SUMS, Manifest, SealedRow, check_rows
from metering.money import format_mxn, parse_mxn
from metering.months import check_month, close_month
from metering.pages import pages
from metering.ports import MonthSums
from tests.kits.books import ACT, NOW_US, Books, open_books
from tests.kits.year import MONTHS, Year

KEY = Ed25519PrivateKey.from_private_bytes(b"y" * 32)

ORGS, ORDERS = (50, 12) if "LONG" in os.environ else (6, 4)
"""Organisations, and orders of each in a month. The whole size is for `make long`."""


@dataclass(frozen=True, slots=True)
class Lived:
    """A year in books, all months closed; the manifests and exports that there were when each was closed."""

    year: Year
    manifests: dict[str, Manifest]
    exports: dict[str, Path]


async def lived(books: Books, folder: Path) -> Lived:
    """Live through a year, and close each month before what is late of it comes."""
    found = Lived(Year(2025, ORGS, ORDERS), {}, {})
    await found.year.begin(books.ledger)
    await books.projector.round()
    for month in MONTHS:
        await found.year.month(books.ledger, month)
        closed = await close_month(books.ledger, books.redis, month, ACT, KEY)
        assert closed.new
        found.manifests[month] = closed.manifest
        found.exports[month] = await exported(books.ledger, month, folder / f"{month}.csv")
        await found.year.after_close(books.ledger, month)
    return found


async def exported(ledger: SqlLedger, month: str, path: Path) -> Path:
    await write_file(Source(ledger, Scope((month,))), path, write)
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file)]


def sealed(rows: list[dict[str, str]]) -> list[SealedRow]:
    return [
        SealedRow(place, row["org_id"], row["event_id"], [row[name] for name in SEALED], row["seal"], row["amount_mxn"])
        for place, row in enumerate(rows, start=2)
    ]


@pytest.mark.rule(24, 33, 37)
async def test_a_year_adds_up(redis_url: str, ledger_url: str, tmp_path: Path) -> None:
    """opening + credits − charges = closing, for each organisation and month, in the books, exports and manifests."""
    async with open_books(redis_url, ledger_url, now_us=0) as books:
        all_of_it = await lived(books, tmp_path)
        year = all_of_it.year
        assert len({one.opened.model for one in year.events}) == len(year.offered)
        rows = [row for path in all_of_it.exports.values() for row in rows_of(path)]
        late = [row for row in rows if row["month"] != row["posted_month"]]
        assert late and all(row["posted_month"] == _next(row["month"]) for row in late)
        closings: dict[str, int] = {}
        for month in MONTHS:
            expected = sorted((org.expected(month) for org in year.orgs), key=lambda one: one.org_id)
            found = [one async for page in pages(partial(books.ledger.month_sums, month)) for one in page]
            assert found == expected
            _check_manifest(all_of_it.manifests[month], expected, {org.org_id: org.names[month] for org in year.orgs})
            _check_export(rows_of(all_of_it.exports[month]), all_of_it.manifests[month], expected)
            for one in expected:
                assert one.opening_micro_mxn == closings.get(one.org_id, 0)
                closings[one.org_id] = one.closing_micro_mxn
            again = await exported(books.ledger, month, tmp_path / "again.csv")
            assert again.read_bytes() == all_of_it.exports[month].read_bytes(), "the same month gives the same bytes"
            _, wrong = await check_month(books.ledger, month)
            assert wrong == []
            closed = await close_month(books.ledger, books.redis, month, ACT, KEY)
            assert not closed.new and closed.manifest == all_of_it.manifests[month]
        for org in year.orgs:
            credits_ = (await books.ledger.snapshots([org.org_id], period_at(NOW_US)))[0].credits_micro_mxn
            charged = (await books.ledger.charged_up_to(org.org_id)).charged_micro_mxn
            # What came after the close of December is posted to January.
            late_micro_mxn = org.expected("2026-01").charges_micro_mxn
            assert credits_ - charged == closings[org.org_id] - late_micro_mxn


def _next(month: str) -> str:
    return MONTHS[MONTHS.index(month) + 1]


def _check_manifest(manifest: Manifest, expected: list[MonthSums], names: dict[str, str]) -> None:
    assert [(org.org, org.name) for org in manifest.orgs] == [(one.org_id, names[one.org_id]) for one in expected]
    for name in SUMS:
        figures = [getattr(one, f"{name}_micro_mxn") for one in expected]
        assert [getattr(org, f"{name}_mxn") for org in manifest.orgs] == [format_mxn(figure) for figure in figures]
        assert getattr(manifest, f"{name}_mxn") == format_mxn(sum(figures))


def _check_export(rows: list[dict[str, str]], manifest: Manifest, expected: list[MonthSums]) -> None:
    assert tuple(rows[0]) == COLUMNS and len(rows) == manifest.rows
    check = check_rows(manifest, sealed(rows))
    assert (check.wrong, check.rows) == ([], len(rows))
    for one in expected:
        amounts = [parse_mxn(row["amount_mxn"]) for row in rows if row["org_id"] == one.org_id]
        assert sum(amounts) == one.charges_micro_mxn - one.refunds_micro_mxn
        counted = [row for row in rows if row["org_id"] == one.org_id and row["kind"] == "charge"]
        assert (len(counted), sum(int(row["quantity"]) for row in counted)) == (one.orders, one.images)
