"""Programs that came with the test tools: kubectl, node and npm out of wheels, like every other thing that tests need."""

import sys
from pathlib import Path


def program(name: str) -> str:
    """The path of one that `make test` has installed. Raises AssertionError that says what to do where it is not there."""
    path = Path(sys.prefix) / "bin" / name
    assert path.exists(), f"{path} is not there: `make .venv/.test` installs it out of requirements/test.txt"
    return str(path)
