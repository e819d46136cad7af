"""A process and its supervisor, over a real connection: what is wrong in an answer is no end of the process."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import REGISTRY, Metric
from prometheus_client.registry import Collector
from structlog.testing import capture_logs

from proxy.server.control import Answering, Asking, answering, open_asking


class Faulty(Collector):
    """A collector with a fault, as long as it has one."""

    faulty = True

    def collect(self) -> Iterator[Metric]:
        if self.faulty:
            raise RuntimeError("a collector's fault")
        yield from ()

    def describe(self) -> Iterator[Metric]:
        yield from ()


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    """The collector, among those of this process."""
    one = Faulty()
    REGISTRY.register(one)
    yield one
    REGISTRY.unregister(one)


@asynccontextmanager
async def connected(stop: asyncio.Event) -> AsyncIterator[tuple[Answering, Asking]]:
    """Both ends."""
    ours, theirs = socket.socketpair()
    async with answering(theirs, stop) as answers, asyncio.timeout(10):
        asking = await open_asking(ours)
        yield answers, asking
        asking.close()


async def test_metrics_that_cannot_be_read_cost_that_page_and_nothing_else(faulty: Faulty) -> None:
    """The fault is logged, the next question is answered, and the process works on."""
    stop = asyncio.Event()
    with capture_logs() as logs:
        async with connected(stop) as (_, asking):
            assert await asking.metrics() is None
            state = await asking.state()
            assert state is not None and state.not_ready == "starting"
            faulty.faulty = False
            assert "ghub_" in (await asking.metrics() or "")
            assert not stop.is_set()
    assert [(line["event"], line["question"]) for line in logs] == [("answer_failed", "metrics")]


async def test_a_state_that_cannot_be_read_is_none_and_no_silence() -> None:
    """Whichever part of it has the fault."""
    stop, broken = asyncio.Event(), [True]

    def not_ready() -> str | None:
        if broken:
            raise ZeroDivisionError
        return None

    with capture_logs() as logs:
        async with connected(stop) as (answers, asking):
            answers.begin(not_ready, dict)
            assert await asking.state() is None
            broken.clear()
            state = await asking.state()
            assert state is not None and state.accepts and not stop.is_set()
    assert [(line["event"], line["question"]) for line in logs] == [("answer_failed", "state")]


async def test_a_process_that_can_answer_no_more_stops() -> None:
    """A question without an end cannot be read: it is no reason to be killed with what is in flight."""
    stop = asyncio.Event()

    async def asked_without_end() -> None:
        async with connected(stop) as (_, asking):
            asking._writer.write(b"x" * 200_000)
            await stop.wait()
            with pytest.raises(ConnectionError):
                await asking.state()

    with pytest.raises(ValueError, match="limit"):
        await asked_without_end()
