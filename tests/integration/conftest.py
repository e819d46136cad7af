"""Receivers of metering events for these tests; they end with the test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kits.sinks import HttpReceiver, NatsReceiver

Receivers = Callable[[str], HttpReceiver]


@pytest.fixture
def receivers(tmp_path: Path) -> Iterator[Receivers]:
    """Make a receiver that speaks a profile's wire, and start it."""
    made: list[HttpReceiver] = []

    def make(profile: str) -> HttpReceiver:
        made.append(HttpReceiver(profile, tmp_path))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def receiver(receivers: Receivers) -> HttpReceiver:
    """One that takes CloudEvents in the structured mode."""
    return receivers("structured")


@pytest.fixture
def nats_receiver(tmp_path: Path) -> Iterator[NatsReceiver]:
    """A real NATS server, without a stream yet."""
    server = NatsReceiver(tmp_path)
    server.start()
    yield server
    server.kill()
