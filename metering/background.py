"""Work beside the requests: looked at again and again, and begun anew where it ends in a way that nobody foresaw."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import structlog
from prometheus_client import Counter

from metering.ports import LedgerMisconfigured

log = structlog.get_logger(__name__)

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0
"""Between a fault and the next beginning; the pause doubles from the first to the longest."""

STEADY_S = 60.0
"""A part that has run for so long is well again: as long as the slowest of them waits between two looks."""

MAX_FAULTS = 8
"""In a row, and a process ends: half a minute has passed by then, and what passes by itself is over. The platform's new
process begins with nothing that this one may have got wrong."""

CANCEL_AGAIN_S = 0.5

FAULTS = Counter("ghub_background_faults_total", "Background work that ended unforeseen, and was begun anew", ["part"])


class BeyondHelp(Exception):
    """A part without which no order may be taken fails again and again; the message names it."""


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of background work: `run` goes on until it is cancelled, or, where it `ends`, until it is done.

    No order may be taken while a part that is `needed` does not run. One that is not needed is begun anew for ever: to
    end every gateway, again and again, would make an outage of a nuisance.
    """

    name: str
    run: Callable[[], Coroutine[Any, Any, None]]
    needed: bool = True
    ends: bool = False


class Background:
    """Runs its parts side by side. One that fails is logged, counted and begun anew, with its own state as it is.

    `give_up` is called once a needed part has failed MAX_FAULTS times in a row; it should stop the process.
    """

    def __init__(self, parts: Sequence[Part], give_up: Callable[[], None]) -> None:
        self._kept = {part.name: _Kept(part) for part in parts}
        self._give_up = give_up
        self._keepers: dict[str, asyncio.Task[None]] = {}

    @property
    def needed(self) -> list[str]:
        """The parts without which no order may be taken."""
        return [name for name, kept in self._kept.items() if kept.part.needed]

    def fails(self, name: str) -> bool:
        """Does this part not run, or fail again and again?"""
        return not self._kept[name].well

    def begin(self) -> None:
        """Begin all parts."""
        self._keepers = {name: asyncio.create_task(self._keep(kept)) for name, kept in self._kept.items()}

    async def until_done(self, name: str) -> None:
        """Wait for a part that ends by itself, or is given up."""
        await asyncio.wait({self._keepers[name]})

    async def end(self) -> None:
        """End all parts."""
        await cancel_all(self._keepers.values())
        await cancel_all([kept.running for kept in self._kept.values() if kept.running is not None])

    def check(self) -> None:
        """Raises BeyondHelp where a part was given up."""
        for name, kept in self._kept.items():
            if kept.given_up:
                raise BeyondHelp(f"{name} failed {kept.faults} times in a row: see `background_fault` in the log")

    async def _keep(self, kept: "_Kept") -> None:
        while (fault := await kept.run()) is not None:
            FAULTS.labels(kept.part.name).inc()
            log.error("background_fault", part=kept.part.name, in_a_row=kept.faults, exc_info=fault)
            if kept.given_up:
                self._give_up()
                return
            await asyncio.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (kept.faults - 1)))


class _Kept:
    """A part, the task that it runs in, and its faults in a row."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.faults = 0
        self.running: asyncio.Task[None] | None = None
        self._began_s = 0.0
        self._done = False

    @property
    def well(self) -> bool:
        """After one fault it is as soon as it runs again, after more than one when it has gone on for a while."""
        if self._done:
            return True
        runs = self.running is not None and not self.running.done()
        return runs and (self.faults < 2 or self._steady)

    @property
    def given_up(self) -> bool:
        """Has it failed too often?"""
        return self.part.needed and self.faults >= MAX_FAULTS

    @property
    def _steady(self) -> bool:
        return time.monotonic() - self._began_s >= STEADY_S

    async def run(self) -> BaseException | None:
        """Run it once; returns why it ended, or None where it is done. The task goes on when this is cancelled."""
        self._began_s = time.monotonic()
        self.running = asyncio.create_task(self.part.run(), name=self.part.name)
        await asyncio.wait({self.running})
        fault = _why(self.running)
        if fault is None and self.part.ends:
            self._done = True
            return None
        self.faults = 1 if self._steady else self.faults + 1
        return fault or RuntimeError("it ended, and nobody asked it to")


def _why(task: asyncio.Task[None]) -> BaseException | None:
    return RuntimeError("it was cancelled from within") if task.cancelled() else task.exception()


async def every(
    seconds: float, look: Callable[[], Awaitable[None]], *, away: Collection[type[Exception]], name: str
) -> NoReturn:
    """Look now, and then every `seconds`, until cancelled.

    While something that it needs is `away` it says so, in a line of the log with this name, and looks again.
    """
    foreseen = tuple(away)
    while True:
        try:
            await look()
        except foreseen as error:
            log.warning(name, **told(error))
        await asyncio.sleep(seconds)


def told(error: Exception) -> dict[str, str]:
    """What the log may say of whatever is away: its kind, and its sentence where that is our own."""
    why = {"why": str(error)} if isinstance(error, LedgerMisconfigured) else {}
    return {"error": type(error).__name__, **why}


async def cancel_all(tasks: Collection[asyncio.Task[None]]) -> None:
    """End tasks. A cancellation may be lost inside a library (it meets a connection that is being made, for example),
    so it is said again until all are gone."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
