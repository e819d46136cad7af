"""One simulator for the tests of a file, as at its start for each of them."""

from collections.abc import Iterator

import pytest

from tests.kits.simulator import Simulator, simulating


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with simulating(tmp_path_factory.mktemp("tls")) as simulator:
        yield simulator


@pytest.fixture
def simulator(running: Simulator) -> Simulator:
    running.forget()
    return running
