"""Processes that share one port: started, watched, started again, and stopped together.

The supervisor has the listening socket, and never accepts from it. Its processes inherit it, so connections that wait
in the kernel are lost with none of them. It does no work of theirs and has no connection to anything but them. If it
dies, they see the end of their connection to it, and stop as at SIGTERM.
"""

import asyncio
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest

from config.settings import PLATFORM_GRACE_S, PRE_STOP_S
from proxy.server.control import STARTING, Asking, State, open_asking
from proxy.server.union import union

log = structlog.get_logger(__name__)

LOOK_S = 1.0
"""How often each process is asked for its state, and how long its answer may take to count."""

STARTING_LOOK_S = 0.1
"""The same before it accepts connections: others wait for that."""

SILENT_LOOKS = 3
"""Answers missed in a row after which a process is taken for one that accepts nothing."""

FROZEN_S = 15.0
"""Silence after which a process is killed, and its successor started. Others have by then taken over its upstream jobs,
as they do after ten seconds (`metering/wallet/jobs.py`). It is counted in looks, so a machine that slept kills none."""

START_S = 60.0
"""The same before its first answer, while Python loads it: as long as the platform gives a gateway to start."""

LEAVING_S = PLATFORM_GRACE_S - PRE_STOP_S
"""The same after it has closed its connection: it stops, and finishes the orders that it has, as at SIGTERM."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Pauses before a process is started again: from the first to the longest, doubled each time."""

STEADY_S = 60.0
"""Time after which a process that runs counts as healthy: the next pause is the first again."""

METRICS_S = 1.0
"""The longest wait for the metrics of a process. A page without those of a frozen one is better than none."""

OWN = CollectorRegistry()
"""The supervisor's metrics: those of its process and of its work, and none of a gateway's."""

ProcessCollector(registry=OWN)
SERVING = Gauge("ghub_processes", "Processes of this gateway that are alive and accept connections", registry=OWN)
RESTARTS = Counter("ghub_process_restarts_total", "Processes that ended by themselves", registry=OWN)


class StopFailed(Exception):
    """Some processes did not end as they should; the message is a sentence."""


Command = Callable[[int, int, int], Sequence[str]]
"""The command of a process: of its number, and of the descriptors of the listening socket and of its connection."""


class _Child:
    """A process under way.

    `heard`: it has answered; `served`: it has accepted connections; `leaves`: it has closed its connection to here.
    """

    def __init__(self, number: int, process: asyncio.subprocess.Process, control: Asking) -> None:
        self.number = number
        self.process = process
        self.control = control
        self.state = STARTING
        self.heard = self.served = self.leaves = False
        self.missed = 0
        self.began_s = time.monotonic()

    @property
    def is_silent(self) -> bool:
        return self.leaves or not self.heard or self.missed >= SILENT_LOOKS

    async def ended(self, serving: asyncio.Event) -> int:
        """Watch it until its end; returns its exit code, or −n for signal n. A silent one is killed.

        `serving` is set as soon as it accepts connections.
        """
        watching = asyncio.create_task(self._watch(serving))
        try:
            return await self.process.wait()
        finally:
            watching.cancel()
            self.control.close()

    async def _watch(self, serving: asyncio.Event) -> None:
        while self.missed * LOOK_S < self._silent_s:
            try:
                async with asyncio.timeout(LOOK_S):
                    self.state = await self.control.state() or self.state
            except TimeoutError:
                self.missed += 1
                continue
            except ConnectionError:
                self.missed += 1
                self.leaves = True
            else:
                self.heard, self.missed = True, 0
            if self.state.accepts:
                self.served = True
                serving.set()
            await asyncio.sleep(LOOK_S if self.served else STARTING_LOOK_S)
        log.error("process_frozen", process=self.number, silent_s=round(self.missed * LOOK_S))
        self.process.kill()

    @property
    def _silent_s(self) -> float:
        """Silence that it may have."""
        if self.leaves:
            return LEAVING_S
        return FROZEN_S if self.heard else START_S

    async def metrics(self) -> str | None:
        """Read its metrics; None if it cannot say them, or not in time."""
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(METRICS_S):
                return await self.control.metrics()
        return None


class Supervisor:
    """Keeps `count` processes of a command on one listening socket, until `stop` is set.

    The first one starts alone, so that what is wrong with the start is said once.
    """

    def __init__(self, command: Command, listener: socket.socket, count: int, stop: asyncio.Event) -> None:
        self._command = command
        self._listener = listener
        self._count = count
        self._stop = stop
        self._children: dict[int, _Child] = {}
        self._serving = asyncio.Event()
        self._start_failed = False
        self._failures: list[str] = []

    async def run(self) -> bool:
        """Start all, keep them, and stop them all. Closes the listener. Raises StopFailed.

        False if they could not start: then one of them has said why.
        """
        async with asyncio.TaskGroup() as keepers:
            keepers.create_task(self._keep(0))
            await _any_of(self._serving, self._stop)
            for number in range(1, self._count):
                keepers.create_task(self._keep(number))
            await self._stop.wait()
            self._listener.close()
            for child in self._children.values():
                child.control.stop()
        if self._failures:
            raise StopFailed(f"not every process stopped as it should: {'; '.join(self._failures)}.")
        return not self._start_failed

    def not_ready(self) -> str | None:
        """Name what keeps the whole from being ready; None if nothing does.

        At least one process must accept connections, and each that does must be ready: nobody can keep a client's
        connection from one of those.
        """
        if self._stop.is_set():
            return "stopping"
        if not self._accepting:
            return "no process accepts connections"
        return next((state.not_ready for state in self._accepting if state.not_ready is not None), None)

    def versions(self) -> dict[str, str]:
        """Versions of the files that the processes go by; of one that is just being taken, both."""
        found: dict[str, set[str]] = {}
        for state in self._accepting:
            for name, version in state.versions.items():
                found.setdefault(name, set()).add(version)
        return {name: " ".join(sorted(versions)) for name, versions in found.items()}

    def dead(self) -> str | None:
        """Say why the platform should start all of it anew; None if any process answers."""
        answers = any(not child.is_silent for child in self._children.values())
        return None if answers else "no process answers"

    async def metrics(self) -> str:
        """Read the metrics of all processes, and the supervisor's own."""
        SERVING.set(len(self._accepting))
        children = sorted(self._children.items())
        pages = await asyncio.gather(*(child.metrics() for _, child in children))
        found = {number: page for (number, _), page in zip(children, pages, strict=True) if page is not None}
        return union(generate_latest(OWN).decode(), found)

    async def _keep(self, number: int) -> None:
        """Keep process `number` alive until the stop."""
        pause_s, served_before = FIRST_PAUSE_S, False
        while not self._stop.is_set():
            began_s = time.monotonic()
            try:
                child = await self._start(number)
            except OSError as error:  # no memory, or too many processes: as if it had died at once
                why = error.strerror
            else:
                code = await child.ended(self._serving)
                del self._children[number]
                why, served_before = _why(code), served_before or child.served
                if self._stop.is_set():
                    self._failures += [f"process {number}, {why}"] if code else []
                    return
                if code > 0 and not child.served and not (served_before and self._anybody_serves):
                    self._start_failed = True
                    self._stop.set()
                    return
            if time.monotonic() - began_s >= STEADY_S:
                pause_s = FIRST_PAUSE_S
            log.error("process_ended", process=number, why=why, again_in_s=pause_s)
            RESTARTS.inc()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause_s)
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    async def _start(self, number: int) -> _Child:
        """Start a process with the listening socket and its end of a connection to here. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            given = self._listener.fileno(), theirs.fileno()
            process = await asyncio.create_subprocess_exec(
                *self._command(number, *given), stdin=asyncio.subprocess.DEVNULL, pass_fds=given
            )
        child = self._children[number] = _Child(number, process, await open_asking(ours))
        if self._stop.is_set():
            child.control.stop()
        return child

    @property
    def _accepting(self) -> list[State]:
        return [child.state for child in self._children.values() if child.state.accepts and not child.is_silent]

    @property
    def _anybody_serves(self) -> bool:
        return any(child.served for child in self._children.values())


async def _any_of(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _why(code: int) -> str:
    return f"exit {code}" if code >= 0 else signal.Signals(-code).name
