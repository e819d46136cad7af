"""The benchmark's short version: it runs, prints one table, and fails where a goal is missed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def bench(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run it with a folder of its own for results."""
    shutil.copytree(ROOT / "bench", folder / "bench", ignore=shutil.ignore_patterns("results.json"))
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", **more}
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, timeout=180, check=False
    )


def test_one_point_gives_a_table_and_json_and_says_what_is_missed(tmp_path: Path) -> None:
    """One short round, over http. Whether goals are reached is for a quiet machine; here others share the cores."""
    done = bench(tmp_path, ROUNDS="1", LEG_S="0.3", IN_FLIGHT="8", SCHEMES="http", ONLY="job")
    assert "gateway / hypercorn" in done.stdout, done.stdout + done.stderr
    figures = json.loads((tmp_path / "bench" / "results.json").read_text())["job"]["figures"]
    missed = [one["name"] for one in figures if not one["reached"]]
    assert done.returncode == bool(missed), (done.stdout, missed)
    ratios = {one["name"]: one["median"] for one in figures if "gateway / " in one["name"]}
    assert len(ratios) == 8 and all(0.3 < ratio < 10 for ratio in ratios.values()), ratios


def test_a_point_that_is_unknown_is_named(tmp_path: Path) -> None:
    done = bench(tmp_path, "--only", "speed")
    assert done.returncode == 2 and "no such point: speed; there are" in done.stderr
