"""Exports of many rows: memory does not grow with them, and a file is whole or not there."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.exports import MEMORY_MAX, exported, fill
from tests.long import LONG

FEW, MANY = (100_000, 1_000_000) if LONG else (3_000, 30_000)
FORMATS = ["csv", "jsonl", "focus", "parquet", *(["xlsx"] if LONG else [])]


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ledgers")
    few, many = folder / "few.db", folder / "many.db"
    fill(few, FEW)
    fill(many, MANY)
    return few, many


@pytest.mark.parametrize("file_format", FORMATS)
def test_memory_does_not_grow_with_rows(ledgers: tuple[Path, Path], tmp_path: Path, file_format: str) -> None:
    """Ten times the rows take at most 1.2 times the memory, measured in processes of their own."""
    few, many = (exported(ledger, file_format, tmp_path, small=not LONG) for ledger in ledgers)
    assert (few.rows, many.rows) == (FEW, MANY)
    assert many.peak_mb <= MEMORY_MAX * few.peak_mb, f"{many.peak_mb:.0f} MB by {few.peak_mb:.0f} MB"


def test_an_export_that_is_killed_leaves_the_former_file(ledgers: tuple[Path, Path], tmp_path: Path) -> None:
    """It is written beside it, and takes its place at the end."""
    out = tmp_path / "month.csv"
    out.write_text("former", encoding="utf-8")
    command = (sys.executable, "-m", "bench.exports", str(ledgers[1]), "csv", str(out), "small")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        part = tmp_path / "month.csv.part"
        until_s = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size):
            assert time.monotonic() < until_s and running.poll() is None
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    assert out.read_text(encoding="utf-8") == "former"
