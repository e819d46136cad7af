"""The clients for Node, as their lock file says: every package by its hash."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

NODE = Path(__file__).parent / "node"
PROGRAM_S = 120
"""The most that an installation or one program may take."""


def install(folder: Path) -> Path:
    """Copies of our programs with their packages, in this new folder, which is returned."""
    programs = {name: shutil.which(name) for name in ("node", "npm")}
    absent = [name for name, path in programs.items() if path is None]
    assert not absent, f"{' and '.join(absent)} must be on the PATH: clients are tested with Node 20 or newer"
    shutil.copytree(NODE, folder)
    line = [str(programs["npm"]), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    installed = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=PROGRAM_S, check=False)
    assert installed.returncode == 0, f"npm ci failed: {installed.stderr[-1000:]}"
    return folder


def tell(folder: Path, program: str, given: dict[str, Any]) -> list[dict[str, Any]]:
    """What one of our programs says to this."""
    line = [str(shutil.which("node")), program]
    text = json.dumps(given)
    done = subprocess.run(line, cwd=folder, input=text, capture_output=True, text=True, timeout=PROGRAM_S, check=False)
    assert done.returncode == 0, done.stderr
    ends: list[dict[str, Any]] = json.loads(done.stdout)
    return ends
