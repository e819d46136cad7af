"""The clients for Node, from their lock file: every package by its hash."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.kits.programs import program

NODE = Path(__file__).parent / "node_programs"
CACHE = Path(__file__).parents[2] / ".pytest_cache" / "npm"
ENVIRONMENT = {**os.environ, "NODE_USE_SYSTEM_CA": "1", "npm_config_cache": str(CACHE)}
"""It trusts what this machine trusts, and needs no home folder."""

PROGRAM_S = 120
"""Maximum time of an installation or of one program."""


def install(folder: Path) -> Path:
    """Copies of our programs with their packages, in this new folder, which is returned."""
    shutil.copytree(NODE, folder)
    line = [program("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    installed = subprocess.run(
        line, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=PROGRAM_S, check=False
    )
    assert installed.returncode == 0, f"npm ci failed: {installed.stderr[-1000:]}"
    return folder


def tell(folder: Path, name: str, given: dict[str, Any]) -> list[dict[str, Any]]:
    """Run one of our programs with this input; returns its results."""
    line = [program("node"), name]
    text = json.dumps(given)
    done = subprocess.run(line, cwd=folder, input=text, capture_output=True, text=True, timeout=PROGRAM_S, check=False)
    assert done.returncode == 0, done.stderr
    ends: list[dict[str, Any]] = json.loads(done.stdout)
    return ends
