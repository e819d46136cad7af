"""`ghub usage export` as finance runs it: every format, days, and clear sentences for what does not go together."""

import csv
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from pyarrow import parquet
from python_calamine import CalamineWorkbook

from metering.exports.rows import END_COLUMNS
from tests.conftest import LOOPBACK
from tests.kits.system import FLUX, System, bearer


@pytest.fixture(scope="module")
def org(system: System) -> tuple[str, str, str]:
    """An organisation with an order, its day, and its month."""
    org_id, key = system.customer("exports", "50.00")
    body = {"model": FLUX, "prompt": "x", "n": 2}
    httpx2.post(f"{system.url}/images/generations", headers=bearer(key), json=body, **LOOPBACK, timeout=60)
    (event,) = system.events(org_id, 1)
    return org_id, event.opened.day, event.opened.month


def test_every_format_has_the_same_order(system: System, org: tuple[str, str, str], tmp_path: Path) -> None:
    """With the same sums, in files that other libraries read."""
    org_id, day, month = org
    export = ("usage", "export", "--org", org_id, "--json", "--from", day, "--to", day)
    told = {}
    for name in ("csv", "jsonl", "parquet", "xlsx", "focus"):
        done = system.ghub(*export, "--format", name, "--out", str(tmp_path / f"out.{name}"))
        assert done.returncode == 0, done.stderr
        told[name] = json.loads(done.stdout)
        assert (told[name]["from"], told[name]["to"], told[name]["charged_mxn"]) == (day, day, "1.68")
    (row,) = csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text(encoding="utf-8")))
    assert (row["org_name"], row["amount_mxn"], row["posted_month"]) == ("exports", "1.68", month)
    assert json.loads((tmp_path / "out.jsonl").read_text())["amount_mxn"] == "1.68"
    assert str(parquet.read_table(tmp_path / "out.parquet").to_pylist()[0]["amount_mxn"]) == "1.680000"
    assert "Movimientos 1" in CalamineWorkbook.from_path(str(tmp_path / "out.xlsx")).sheet_names
    focus = list(csv.DictReader(io.StringIO((tmp_path / "out.focus").read_text(encoding="utf-8"))))
    assert [one["ChargeCategory"] for one in focus] == ["Usage", "Purchase", "Tax"]
    assert (told["focus"]["rows"], told["csv"]["rows"]) == (3, 1)


def test_rows_go_to_a_pipe(system: System, org: tuple[str, str, str]) -> None:
    """Nothing but them is on standard output; the report is beside it."""
    done = system.ghub("usage", "export", "--org", org[0], "--format", "jsonl", "--out", "-", "--all-ends")
    assert set(END_COLUMNS) <= json.loads(done.stdout).keys()
    assert "rows" in done.stderr


MISUSES = [
    (("--from", "2026-11-01"), "--from and --to: give both"),
    (("--from", "2026-11-01", "--to", "2026-11-31"), "--to: '2026-11-31' is not a day, such as 2026-11-22"),
    (("--from", "2026-11-02", "--to", "2026-11-01"), "--to: 2026-11-01 is before 2026-11-02"),
    (("--from", "2026-11-01", "--to", "2026-11-02", "--month", "2026-11"), "--month: it is a whole month"),
    (("--format", "ods"), "--format: 'ods' is not offered; there is: csv, jsonl, parquet, xlsx, focus"),
    (("--format", "xlsx", "--excel"), "--excel: it is for --format csv, and this is xlsx"),
    (("--focus-version", "1.2"), "--focus-version: it is for --format focus, and this is csv"),
    (("--format", "focus", "--focus-version", "1.3"), "--focus-version: '1.3' is not offered; there is: 1.2, 1.4"),
    (("--format", "focus", "--all-ends"), "--all-ends: --format focus has no place for orders that were not charged"),
]


@pytest.mark.parametrize(("options", "sentence"), MISUSES)
def test_what_does_not_go_together_is_one_sentence(system: System, options: tuple[str, ...], sentence: str) -> None:
    """It names the option, and nothing is written."""
    done = system.ghub("usage", "export", "--out", "x.csv", *options)
    assert done.returncode == 2 and done.stderr.startswith(f"ghub: {sentence}") and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and not Path("x.csv").exists()


def test_a_workbook_is_not_written_to_a_terminal() -> None:
    """It would be unreadable, and could change the terminal."""
    primary, replica = pty.openpty()
    command = (sys.executable, "-m", "proxy.cli", "usage", "export", "--out", "-", "--format", "xlsx")
    done = subprocess.run(command, stdout=replica, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(replica)
    os.close(primary)
    assert done.returncode == 2 and "--out: xlsx cannot be read on a terminal; name a file" in done.stderr
