"""Work that runs to its end, even if its caller is gone."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog
from prometheus_client import Gauge

from metering.journal.file import JournalFailed
from proxy.errors import ApiError
from proxy.ports import LetGo

log = structlog.get_logger(__name__)
T = TypeVar("T")

IN_FLIGHT = Gauge("ghub_generations_in_flight", "Generations under way, their ends included")


class Tasks:
    """All running work of this process that is detached from clients' connections."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def detach(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` to its end."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        IN_FLIGHT.set(len(self._tasks))
        task.add_done_callback(self._forget)
        return task

    async def drain(self) -> None:
        """Wait for all of them; each ends by its own deadline."""
        while self._tasks:
            log.info("draining", generations=len(self._tasks))
            await asyncio.wait(set(self._tasks))

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        IN_FLIGHT.set(len(self._tasks))
        if task.cancelled():
            return
        fault = task.exception()
        if fault is not None and not isinstance(fault, ApiError | JournalFailed | LetGo):
            log.error("generation_fault", exc_info=fault)
