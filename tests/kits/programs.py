"""Programs from the test tools: kubectl, node and npm from wheels, like everything that tests need."""

import sys
from pathlib import Path


def program(name: str) -> str:
    """Find a program that `make test` has installed. If it is missing, the assertion says what to do."""
    path = Path(sys.prefix) / "bin" / name
    assert path.exists(), f"{path} is not there: `make .venv/.test` installs it out of requirements/test.txt"
    return str(path)
