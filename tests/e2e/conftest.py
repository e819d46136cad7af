"""Systems of real processes for the end-to-end tests. At its end no key that one of them issued is found anywhere."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kits.system import System, assert_no_key, prepare

Prepared = Callable[..., System]


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    """One running system with upstreams that answer at once, shared by the tests that do it no harm."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        shared = prepare(Path(folder))
        shared.start_all()
        yield shared
        _end(shared)


@pytest.fixture
def prepared() -> Iterator[Prepared]:
    """Makes systems of a test's own, not yet started, with settings of its own."""
    made: list[System] = []
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:

        def make(**settings: str) -> System:
            place = Path(folder) / str(len(made))
            place.mkdir()
            made.append(prepare(place, **settings))
            return made[-1]

        yield make
        for one in made:
            _end(one)


def _end(system: System) -> None:
    system.stop_all()
    assert_no_key(system.keys, system.folder)
    assert not any(key.encode() in body for key in system.keys for body in system.bodies)
