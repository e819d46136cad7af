"""Whether a server of Redis is away: judged by what the server does, never by how late this process is."""

import asyncio
from types import TracebackType
from typing import Self

from metering.wallet.pool import Pool

LOOKS = 5
"""Looks in a row without any answer, after which a server is away. They take the time of a decision together."""

LINE_LOOKS = 8 * LOOKS
"""Looks after which a call ends alone, though the server answers others: its connection leads nowhere."""


class Pulse:
    """One server's signs of life, and the calls that wait for it.

    It looks at intervals whether the server has answered anything, while a call has been sent. The event loop reads its
    sockets between two looks, however late it is: so a look that finds no answer counts, and lateness does not. When a
    server is away, every call that waits for it ends, also those that were not sent yet. `decision_s` is the time, in
    seconds, in which that is decided while the process is idle.
    """

    def __init__(self, pool: Pool, decision_s: float) -> None:
        self._pool = pool
        self._look_s = decision_s / LOOKS
        self._calls: set[Watched] = set()
        self._sent = self._silent = 0
        self._answers = pool.answers
        self._looking: asyncio.TimerHandle | None = None

    def watch(self) -> "Watched":
        """Watch a call of the current task, for the length of a block."""
        return Watched(self)

    def enter(self, call: "Watched") -> None:
        """Begin to watch a call that waits for its turn."""
        self._calls.add(call)

    def send(self) -> None:
        """Note that one more call is sent: from now on the server must show signs of life."""
        if not self._sent:
            self._silent, self._answers = 0, self._pool.answers
        self._sent += 1
        self._look_later()

    def leave(self, call: "Watched") -> None:
        """Watch a call no more."""
        self._calls.discard(call)
        self._sent -= call.sent

    def _look_later(self) -> None:
        if self._looking is None and self._sent:
            self._looking = asyncio.get_running_loop().call_later(self._look_s, self._look)

    def _look(self) -> None:
        self._looking = None
        if self._pool.answers != self._answers:
            self._silent, self._answers = 0, self._pool.answers
        else:
            self._silent += 1
        away = self._silent >= LOOKS
        for call in list(self._calls):
            call.look(away)
        if away:
            self._silent = 0
        self._look_later()


class Watched:
    """A call of the current task: after `with`, it has its answer, or has raised what went wrong.

    Raises TimeoutError if the server is away, or if this call alone had no answer.
    """

    __slots__ = ("_cancelled", "_cancelling", "_looks", "_pulse", "_task", "sent")

    def __init__(self, pulse: Pulse) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pulse, self._task, self._cancelling = pulse, task, task.cancelling()
        self._cancelled = self._looks = 0
        self.sent = False

    def send(self) -> None:
        """Note that the call is sent now."""
        self.sent = True
        self._pulse.send()

    def look(self, away: bool) -> None:
        """Look after the call: end it, or count one look.

        One that was ended and goes on is ended again: the library loses a cancellation that meets a connection being
        opened.
        """
        self._looks += self.sent
        if away or self._looks >= LINE_LOOKS or (self._cancelled and self._looks % LOOKS == 0):
            self._cancelled += 1
            self._task.cancel()

    def __enter__(self) -> Self:
        self._pulse.enter(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pulse.leave(self)
        for _ in range(self._cancelled):
            self._task.uncancel()
        if self._cancelled and kind is asyncio.CancelledError and self._task.cancelling() <= self._cancelling:
            raise TimeoutError from error
