"""Programs that came with the test tools: kubectl, node and npm out of wheels, like all else that tests need."""

import sys
from pathlib import Path


def program(name: str) -> str:
    """The path of one that `make test` has installed. Where it is not there, the assertion says what to do."""
    path = Path(sys.prefix) / "bin" / name
    assert path.exists(), f"{path} is not there: `make .venv/.test` installs it out of requirements/test.txt"
    return str(path)
