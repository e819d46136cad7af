"""The benchmark's short version: it runs, and the gateway is not far from the bare script even on a busy machine."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_benchmark_runs_and_prints_its_ratios() -> None:
    """One short round. The bound of 0.5 is `make bench`'s, on a quiet machine; here others share the cores."""
    command = [sys.executable, "-m", "bench.gateway", "--rounds", "1", "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    ratios = [float(found) for found in re.findall(r"(\d\.\d\d) +│$", done.stdout, re.MULTILINE)]
    assert len(ratios) == 2, done.stdout + done.stderr
    assert min(ratios) > 0.2
