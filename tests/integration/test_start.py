"""What a command loads before it works, counted in libraries: a start becomes slow by one import in the wrong place."""

import gc
import importlib
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from proxy.cli.loading import loading
from proxy.cli.running import SENTENCES
from tests.kits.system import prepare

LIBRARIES = frozenset(
    {
        *("aiohttp", "botocore", "brotli", "cryptography", "google", "httpx2", "hypercorn", "jwt", "orjson"),
        *("prometheus_client", "psycopg", "pybase64", "pydantic", "pydantic_settings", "redis", "rich", "starlette"),
        *("structlog", "typer", "uvloop", "yarl"),
    }
)
"""Everything that `pyproject.toml` names and that takes time; what those load themselves is their own affair."""

RUN = """
import atexit, sys
atexit.register(lambda: print("loaded", *{name.partition(".")[0] for name in sys.modules}, file=sys.stderr))
from proxy.cli.root import main
main()
"""

OF_LEDGER = frozenset(
    {"orjson", "pydantic", "pydantic_settings", "rich", "structlog", "typer", "uvloop"}  # structlog loads rich
)
OF_REDIS = OF_LEDGER | {"cryptography", "prometheus_client", "redis"}  # redis loads cryptography

NEEDED: Sequence[tuple[Sequence[str], frozenset[str]]] = [
    (["--version"], frozenset({"typer"})),
    (["--help"], frozenset({"rich", "typer"})),
    (["nonsense"], frozenset({"pydantic", "rich", "typer"})),  # typer has its values checked by pydantic
    (["--nonsense"], frozenset({"rich", "typer"})),
    (["migrate"], OF_LEDGER),
    (["fx", "list"], OF_LEDGER),
    (["org", "list"], OF_LEDGER),
    (["audit"], OF_LEDGER),
    (["notices"], OF_LEDGER),
    (["event", "list"], OF_LEDGER),
    (["org", "create", "--help"], OF_LEDGER),
    (["org", "create", "acme"], OF_REDIS),
    (["balance", "acme"], OF_REDIS),
    (["wallet", "rebuild"], OF_REDIS),
    (
        ["token", "create", "--role", "admin"],
        frozenset({"cryptography", "jwt", "orjson", "pydantic", "pydantic_settings", "typer"}),
    ),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A migrated ledger, and an address at which no Redis is: what is loaded is the same."""
    system = prepare(tmp_path_factory.mktemp("start"), GHUB_JWT_SECRET="x" * 40)
    return {**os.environ, **system.environment}


@pytest.mark.parametrize(
    ("arguments", "needed"), NEEDED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_command_loads_the_libraries_that_it_needs_and_no_other(
    environment: dict[str, str], arguments: Sequence[str], needed: frozenset[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    loaded = done.stderr.splitlines()[-1].split()
    assert loaded[0] == "loaded"
    assert LIBRARIES & set(loaded) == needed


def test_every_error_that_has_a_sentence_exists() -> None:
    """They are named and not imported, so nothing else would notice that one was renamed."""
    for name in SENTENCES:
        module, _, kind = name.rpartition(".")
        assert issubclass(getattr(importlib.import_module(module), kind), Exception)


def test_the_collector_works_again_after_a_load() -> None:
    """Also if the load fails."""
    with pytest.raises(ZeroDivisionError):
        _fail_to_load()
    assert gc.isenabled()


def _fail_to_load() -> None:
    with loading():
        assert not gc.isenabled()
        raise ZeroDivisionError
