"""The import rules of pyproject.toml refuse what they are there to refuse: it is planted in a copy of the code."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = Path(sysconfig.get_path("scripts")) / "lint-imports"

PLANTED = [
    ("proxy/api/usage.py", "import httptools", "proxy.api.usage -> httptools"),
    ("proxy/api/deliveries.py", "import httptools", "proxy.api.deliveries -> httptools"),
    ("proxy/api/openapi.py", "import httptools", "proxy.api.openapi -> httptools"),
    ("proxy/api/requests.py", "import httptools", "proxy.api.requests -> httptools"),
    ("proxy/orders/capacity.py", "import starlette", "proxy.orders.capacity -> starlette"),
    (
        "proxy/server/serving.py",
        "from proxy.api.admin.endpoint import AdminEndpoint",
        "proxy.server.serving -> proxy.api.admin.endpoint",
    ),
    (
        "proxy/orders/result.py",
        "from proxy.orders.generations import Generations",
        "proxy.orders.result -> proxy.orders.generations",
    ),
    ("proxy/wiring.py", "import simulator.app", "proxy.wiring -> simulator.app"),
    ("metering/wallet/keys.py", "from metering.consumer import Consumer", "metering.wallet.keys -> metering.consumer"),
    ("metering/ledger/rows.py", "import redis", "metering.ledger.rows -> redis"),
    ("metering/wallet/marks.py", "import sqlite3", "metering.wallet.marks -> sqlite3"),
]
"""File, line, and the text of its refusal."""

HOMELESS = ["proxy/new.py", "proxy/api/new.py", "proxy/orders/new.py", "metering/new.py"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code and its rules."""
    for name in ("proxy", "metering", "config", "simulator"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """All rules; a line is never wrapped."""
    environment = {**os.environ, "COLUMNS": "300"}
    command = [str(LINT), "--no-cache"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_an_import_that_no_room_allows_is_refused(copy: Path) -> None:
    """Each of those that the rules once let through, and one for each rule since."""
    for name, line, _ in PLANTED:
        path = copy / name
        path.write_text(f"{path.read_text()}\n{line}\n")
    result = lint(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    assert [told for _, _, told in PLANTED if told not in result.stdout] == []


def test_a_module_without_a_room_is_refused(copy: Path) -> None:
    for name in HOMELESS:
        (copy / name).write_text('"""A new thing."""\n')
    result = lint(copy)
    assert result.returncode == 1
    said = result.stdout + result.stderr
    missing = [name for name in HOMELESS if name.removesuffix(".py").replace("/", ".") not in said]
    assert missing == [], said
