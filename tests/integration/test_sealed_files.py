"""Files of a closed month: untouched ones are right, and whatever is done to them is told."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from metering.exports.formats import FORMATS
from metering.exports.reading import Scope
from metering.exports.rows import COLUMNS, SEALED
from metering.exports.sealed import NoExport, SealedFile
from metering.exports.writing import Source, untold
from metering.ledger.record import SqlLedger
from metering.manifest import Check, Manifest, check_rows
from metering.months import close_month
from tests.kits.books import ACT, open_books
from tests.kits.year import MONTHS, Year

KEY = Ed25519PrivateKey.from_private_bytes(b"f" * 32)
MONTH = MONTHS[1]


async def exported(ledger: SqlLedger, name: str, variant: str | None = None, **scope: object) -> str:
    file = io.BytesIO()
    of = Scope((MONTH,), **scope)  # type: ignore[arg-type]
    await FORMATS[name].load(variant)(Source(ledger, of), file, untold)
    return file.getvalue().decode("utf-8-sig")


def checked(manifest: Manifest, text: str, org_id: str | None = None) -> tuple[Check, int]:
    sealed = SealedFile(io.StringIO(text, newline=""))
    return check_rows(manifest, sealed.rows(), org_id), sealed.not_sealed


Change = Callable[[list[list[str]]], list[list[str]]]


def _added(rows: list[list[str]]) -> list[list[str]]:
    """A row of money that has no seal."""
    new = [*rows[-1]]
    new[SEALED.index("kind")], new[SEALED.index("amount_mxn")], new[len(SEALED)] = "adjustment", "-1000.00", ""
    return [*rows, new]


def _wider(rows: list[list[str]]) -> list[list[str]]:
    return [rows[0], [*rows[1], "-999.00"], *rows[2:]]


def _voided(rows: list[list[str]]) -> list[list[str]]:
    """A charge that says that it was none."""
    new = [*rows[1]]
    new[SEALED.index("kind")], new[SEALED.index("amount_mxn")], new[len(SEALED)] = "void", "0.00", ""
    return [rows[0], new, *rows[2:]]


CHANGES: dict[str, Change] = {
    "a row without a seal": _added,
    "a cell more": _wider,
    "a charge made void": _voided,
    "a row less": lambda rows: rows[:-1],
    "a header twice": lambda rows: [rows[0], rows[0], *rows[1:]],
}


async def test_files_of_a_closed_month(redis_url: str, tmp_path: Path) -> None:
    async with open_books(redis_url, tmp_path / "l.db", now_us=0) as books:
        year = Year(7, 4, 4)
        await year.begin(books.ledger)
        await books.projector.round()
        for month in MONTHS[:2]:
            await year.month(books.ledger, month)
            manifest = (await close_month(books.ledger, books.redis, month, ACT, KEY)).manifest
        files = {
            "csv": await exported(books.ledger, "csv"),
            "excel": await exported(books.ledger, "csv", "excel"),
            "jsonl": await exported(books.ledger, "jsonl"),
            "all ends": await exported(books.ledger, "csv", all_ends=True),
            "all ends, jsonl": await exported(books.ledger, "jsonl", all_ends=True),
        }
        void = sum(one.end != "charge" and one.opened.month == MONTH for one in year.events)
        assert void
        for name, text in files.items():
            check, not_sealed = checked(manifest, text)
            assert (check.wrong, check.rows, not_sealed) == ([], manifest.rows, void if "all" in name else 0), name
        for org in year.orgs:
            text = await exported(books.ledger, "csv", org_id=org.org_id)
            assert checked(manifest, text, org.org_id)[0].wrong == []
            assert checked(manifest, text)[0].wrong != [], "of one, and taken for all"
        for name in ("csv", "all ends"):
            rows = [*csv.reader(io.StringIO(files[name], newline=""))]
            for what, change in CHANGES.items():
                file = io.StringIO(newline="")
                csv.writer(file).writerows(change(rows))
                found = checked(manifest, file.getvalue())[0].wrong
                # Orders that were not charged stand last, and have no seal.
                assert found != [] or (name, what) == ("all ends", "a row less"), (name, what)
        first, *rest = files["jsonl"].splitlines(keepends=True)
        for twice in ('{"amount_mxn":"999.00",' + first[1:], first.replace("{", '{"x":1,', 1), "{}\n", "[]\n", "5\n"):
            with pytest.raises(NoExport):
                checked(manifest, "".join([twice, *rest]) if twice[0] == "{" else "".join([first, twice, *rest]))
        row = json.loads(first) | {"quantity": 800}
        assert checked(manifest, "".join([json.dumps(row) + "\n", *rest]))[0].wrong != []
        with pytest.raises(NoExport, match="its first line is not that of an export"):
            checked(manifest, files["csv"].replace("event_id", "org_id", 1))
        with pytest.raises(NoExport, match="its first line is not that of an export"):
            checked(manifest, "")
        assert len(COLUMNS) == len(SEALED) + 1
