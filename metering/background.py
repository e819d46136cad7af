"""Background work: repeated at intervals, and restarted if it ends in an unexpected way."""

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
"""Pauses before a restart after a fault: from the first to the longest, doubled each time."""

STEADY_S = 60.0
"""Time after which a running part counts as healthy: as long as the longest interval of any part."""

MAX_FAULTS = 8
"""Maximum faults in a row.

Then the process ends: half a minute has passed, so any temporary cause is over. The platform starts a new process,
without any state that this one may have got wrong.
"""

CANCEL_AGAIN_S = 0.5

FAULTS = Counter("ghub_background_faults_total", "Background work that ended unforeseen, and was begun anew", ["part"])


class BeyondHelp(Exception):
    """A part that orders need fails again and again; the message names it."""


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of background work. `run` goes on until it is cancelled or, if it `ends`, until it is done.

    No order is accepted while a `needed` part does not run. A part that is not needed is restarted without limit:
    ending every gateway again and again would turn a small problem into an outage.
    """

    name: str
    run: Callable[[], Coroutine[Any, Any, None]]
    needed: bool = True
    ends: bool = False


class Background:
    """Runs its parts concurrently. A part that fails is logged, counted and restarted, with its own state unchanged.

    `give_up` is called when a needed part has failed MAX_FAULTS times in a row. It should stop the process.
    """

    def __init__(self, parts: Sequence[Part], give_up: Callable[[], None]) -> None:
        self._kept = {part.name: _Kept(part) for part in parts}
        self._give_up = give_up
        self._keepers: dict[str, asyncio.Task[None]] = {}
        for name in self._kept:
            FAULTS.labels(name)

    @property
    def needed(self) -> list[str]:
        """Names of the parts that orders need."""
        return [name for name, kept in self._kept.items() if kept.part.needed]

    def fails(self, name: str) -> bool:
        """True if this part does not run, or fails again and again."""
        return not self._kept[name].well

    def begin(self) -> None:
        self._keepers = {name: asyncio.create_task(self._keep(kept)) for name, kept in self._kept.items()}

    async def until_done(self, name: str) -> None:
        """Wait until a part ends by itself, or is given up."""
        await asyncio.wait({self._keepers[name]})

    async def end(self) -> None:
        await cancel_all(self._keepers.values())
        await cancel_all([kept.running for kept in self._kept.values() if kept.running is not None])

    def check(self) -> None:
        """Raise BeyondHelp if a part was given up."""
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
        """True if it is done, or runs. After more than one fault it must also have run for `STEADY_S`."""
        if self._done:
            return True
        runs = self.running is not None and not self.running.done()
        return runs and (self.faults < 2 or self._steady)

    @property
    def given_up(self) -> bool:
        """True if it has failed too often."""
        return self.part.needed and self.faults >= MAX_FAULTS

    @property
    def _steady(self) -> bool:
        return time.monotonic() - self._began_s >= STEADY_S

    async def run(self) -> BaseException | None:
        """Run it once. Returns why it ended, or None if it is done. The task goes on if this call is cancelled."""
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
    """Call `look` now, and then every `seconds`, until cancelled.

    If something that it needs is `away`, it writes a log line with this name and goes on.
    """
    foreseen = tuple(away)
    while True:
        try:
            await look()
        except foreseen as error:
            log.warning(name, **error_fields(error))
        await asyncio.sleep(seconds)


def error_fields(error: Exception) -> dict[str, str]:
    """Log fields for something that is away: its kind, and its sentence if that is one of ours."""
    why = {"why": str(error)} if isinstance(error, LedgerMisconfigured) else {}
    return {"error": type(error).__name__, **why}


async def until_one_ends(under_way: set[asyncio.Task[None]], look_s: float) -> set[asyncio.Task[None]]:
    """Wait until a task ends, or for `look_s` seconds; returns the others. A task's own error is raised."""
    if not under_way:
        await asyncio.sleep(look_s)
        return under_way
    done, others = await asyncio.wait(under_way, timeout=look_s, return_when=asyncio.FIRST_COMPLETED)
    for one in done:
        one.result()
    return others


async def cancel_all(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks, again every `CANCEL_AGAIN_S` until all have ended.

    A library may lose a cancellation, for example one that meets a connection being opened.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
