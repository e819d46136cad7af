"""A generated year: each sum of each month, in the books, exports and manifests, is what the year itself counted."""

import csv
import io
import os
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from config.settings import Settings
from metering.clock import month_start_us, next_month, period_at, utc_at, utc_now
from metering.exports.csv_lines import write
from metering.exports.formats import FORMATS
from metering.exports.reading import Scope
from metering.exports.rows import COLUMNS, SEALED
from metering.exports.writing import Source, untold, write_file
from metering.ledger.record import SqlLedger
from metering.manifest import SUMS, Manifest, SealedRow, check_rows
from metering.money import format_mxn, parse_mxn
from metering.months import check_month, close_month
from metering.pages import pages
from metering.ports import LAST, MonthSums
from metering.reconciliation.findings import Findings
from metering.statement import Statement, read_statement
from proxy.backends import Backends
from proxy.reconciliation import Scope as RunScope
from proxy.reconciliation import reconcile
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
            for org, sums in zip(sorted(year.orgs, key=lambda one: one.org_id), expected, strict=True):
                _check_statement(
                    await read_statement(books.ledger, org.org_id, month, utc_now()), sums, org.names[month]
                )
                _check_tags(year, org.org_id, month, await read_statement(books.ledger, org.org_id, month, utc_now()))
            await _check_focus(books.ledger, month, expected)
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


def _check_statement(statement: Statement, sums: MonthSums, name: str) -> None:
    assert (statement.sums, statement.org) == (sums, name)
    late = sum(line.amount_micro_mxn for line in statement.late)
    for lines in (statement.days, statement.keys.shown, statement.models.shown):
        assert sum(line.amount_micro_mxn for line in lines) + late == sums.charges_micro_mxn


def _check_tags(year: Year, org_id: str, month: str, statement: Statement) -> None:
    """An order counts for each of its tags; those that came late stand in no tag."""
    late = [one for one in year.events if one.opened.org_id == org_id and year.posted[one.event_id] != one.opened.month]
    expected: dict[str, int] = defaultdict(int)
    for one in year.events:
        if one.opened.org_id == org_id and one.opened.month == month and one not in late and one.end == "charge":
            for tag in orjson.loads(one.opened.tags or "[]"):
                expected[tag] += one.amount_micro_mxn
    assert {line.name: line.amount_micro_mxn for line in statement.tags.shown} == expected


async def _check_focus(ledger: SqlLedger, month: str, expected: list[MonthSums]) -> None:
    """Billed is what was invoiced with IVA; effective is charges less refunds."""
    for version in ("1.2", "1.4"):
        file = io.BytesIO()
        await FORMATS["focus"].load(version)(Source(ledger, Scope((month,))), file, untold)
        rows = [*csv.DictReader(io.StringIO(file.getvalue().decode()))]
        for one in expected:
            of_it = [row for row in rows if row["BillingAccountId"] == one.org_id]
            invoiced = await _invoiced(ledger, one.org_id, month)
            assert sum(parse_mxn(row["BilledCost"]) for row in of_it) == invoiced
            effective = sum(parse_mxn(row["EffectiveCost"]) for row in of_it)
            assert effective == one.charges_micro_mxn - one.refunds_micro_mxn


async def _invoiced(ledger: SqlLedger, org_id: str, month: str) -> int:
    """Sum what was paid for recharges with IVA, less what banks took back, from the credits themselves."""
    first, end = (utc_at(month_start_us(one)).isoformat() for one in (month, next_month(month)))
    credits_ = await ledger.credits(org_id, None, LAST, first_at=first, end_at=end)
    return sum(one.new.tax.total_micro_mxn for one in credits_ if one.new.tax is not None)


@pytest.mark.parametrize("provider", ["fal", "xai"])
async def test_a_year_is_reconciled(redis_url: str, tmp_path: Path, provider: str) -> None:
    """With the invoice of each month, by the provider's days: nothing. What is planted is found, and nothing else."""
    place = tmp_path / "l.db"
    async with open_books(redis_url, place, now_us=0) as books:
        year = (await lived(books, tmp_path)).year
        settings = Settings(storage_url=f"file://{tmp_path}/images")
        opened = Backends(settings, books.ledger, books.redis, "cli:ana")

        async def found(month: str, lines: list[dict[str, str]]) -> list[tuple[str, str]]:
            path = tmp_path / "invoice.csv"
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["date", "model", "images", "usd", "request_id"])
                writer.writeheader()
                writer.writerows(lines)
            scope = RunScope(month, provider, path, zone="UTC", store=False)
            outcome = await reconcile(opened, scope, Findings(), utc_now(), lambda what, count: None)
            assert outcome.unread == []
            return [(one.kind.name, one.id) for one in outcome.findings.named]

        for month in MONTHS[1:-1]:
            assert await found(month, _invoice(year, provider, month)) == []
        lines = _invoice(year, provider, "2025-06")
        first, second, third = lines[0], lines[1], lines[2]
        away = {"date": "2025-06-30" if third["date"] < "2025-06-15" else "2025-06-01"}
        planted = {
            "NOT_BILLED": lines[1:],
            "TWICE": [*lines, first],
            "PRICE": [first | {"usd": "9.99"}, *lines[1:]],
            "NO_ORDER": [*lines, second | {"request_id": "nobody's"}],
            "MISDATED": [first, second, third | away, *lines[3:]],
        }
        for kind, rows in planted.items():
            assert [name for name, _ in await found("2025-06", rows)] == [kind]


def _invoice(year: Year, provider: str, month: str) -> list[dict[str, str]]:
    """A line for each order that the provider was paid for, on its day of UTC."""
    return [
        {
            "date": f"{utc_at(one.admitted_us):%Y-%m-%d}",
            "model": one.opened.upstream,
            "images": str(one.quantity),
            "usd": one.upstream_usd or "",
            "request_id": orjson.loads(one.upstream_ids or "[]")[0],
        }
        for one in year.events
        if one.opened.provider == provider and one.end == "charge" and f"{utc_at(one.admitted_us):%Y-%m}" == month
    ]
