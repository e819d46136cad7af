"""A start that fails says why in one sentence, and leaves nothing behind that nobody can repair (rule 15)."""

import functools
import json
import os
from collections.abc import Callable
from typing import NoReturn

import pytest

import proxy.wiring
from proxy.server.serving import bind
from tests.e2e.conftest import Prepared
from tests.kits.processes import Forked
from tests.kits.system import System


def fails_late() -> None:
    """Called in the new process: the start fails when everything is open."""
    proxy.wiring.build_app = _fail  # type: ignore[attr-defined,assignment]


def dies_late() -> None:
    """The same, as by kill −9."""
    proxy.wiring.build_app = _die  # type: ignore[attr-defined,assignment]


def _fail(*_: object) -> NoReturn:
    raise ValueError("a bug in the last step of the start")


def _die(*_: object) -> NoReturn:
    os._exit(9)


def open_journals(system: System) -> int:
    """Incarnations that the ledger does not know to be over."""
    return len(system.back(lambda back: back.ledger.open_incarnations()))


@pytest.mark.parametrize(("name", "command"), [("gateway", "serve"), ("consumer", "consume")])
def test_a_metrics_port_that_is_taken_is_one_sentence_and_opens_nothing(
    prepared: Prepared, name: str, command: str
) -> None:
    """It names the variable; no journal, and no incarnation that `verify` would miss for good."""
    system = prepared()
    system.valkey.start()
    with bind("a test", "127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        system.start(name, command, GHUB_METRICS_PORT=str(port))
        assert system.processes.pop(name).wait(timeout=20) == 1
    assert system.log(name) == f"ghub: GHUB_METRICS_PORT: 127.0.0.1:{port} is in use. Choose another port.\n"
    assert open_journals(system) == 0 and not (system.folder / "journal").exists()


@pytest.mark.parametrize("before", [fails_late, dies_late])
def test_a_start_that_fails_late_is_made_good_by_the_next(prepared: Prepared, before: Callable[[], None]) -> None:
    """Whether it could still tell the ledger or not: after the next start `verify` is clean."""
    system = prepared()
    system.valkey.start()
    system.begin = functools.partial(Forked, before=before)
    system.start("gateway", "serve")
    assert system.processes.pop("gateway").wait(timeout=20) != 0
    assert open_journals(system) == (1 if before is dies_late else 0)
    system.begin = Forked
    system.start("consumer", "consume")
    system.start_gateway()
    assert json.loads(system.ghub("verify", "--json").stdout) == {"ok": True, "differences": []}
    assert system.stop("gateway") == 0 and open_journals(system) == 0
