"""The connection between a supervisor and each of its processes, both ends of it.

The supervisor asks and the process answers, in order: a line, then a length and as many bytes, none if it has no
answer. Its end tells each side that the other one is gone, however that ended.
"""

import asyncio
import json
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import asdict, dataclass

import structlog
from prometheus_client import generate_latest

log = structlog.get_logger(__name__)

_STATE, _METRICS, _STOP = b"state\n", b"metrics\n", b"stop\n"
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class State:
    """Whether a process accepts connections, and what keeps it from being ready; None if nothing does."""

    accepts: bool
    not_ready: str | None
    versions: Mapping[str, str]


STARTING = State(accepts=False, not_ready="starting", versions={})


class Answering:
    """A process' end. It answers from its start to its end; `begin` says from when on it accepts connections."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self._not_ready: Callable[[], str | None] | None = None
        self._versions: Callable[[], Mapping[str, str]] = dict

    def begin(self, not_ready: Callable[[], str | None], versions: Callable[[], Mapping[str, str]]) -> None:
        """Note that connections are accepted from now on, until the stop."""
        self._not_ready, self._versions = not_ready, versions

    @property
    def state(self) -> State:
        if self._not_ready is None:
            return STARTING
        return State(not self._stop.is_set(), self._not_ready(), self._versions())

    async def run(self, control: socket.socket) -> None:
        """Answer the supervisor; stop this process if it says so, or is gone, or can be answered no more."""
        try:
            with suppress(OSError):
                reader, writer = await asyncio.open_unix_connection(sock=control)
                with closing(writer):
                    while question := await reader.readline():
                        if question == _STOP:
                            self._stop.set()
                            continue
                        answer = self._answer(question)
                        writer.write(_LENGTH.pack(len(answer)) + answer)
                        await writer.drain()
        finally:
            self._stop.set()

    def _answer(self, question: bytes) -> bytes:
        try:
            return generate_latest() if question == _METRICS else json.dumps(asdict(self.state)).encode()
        except Exception:  # any part of the process may be at fault; silence would have it killed
            log.exception("answer_failed", question=question.decode().strip())
            return b""


@asynccontextmanager
async def answering(control: socket.socket, stop: asyncio.Event) -> AsyncIterator[Answering]:
    """Answer the supervisor at the other end of `control` in the background, as long as this block runs."""
    answers = Answering(stop)
    task = asyncio.create_task(answers.run(control))
    try:
        yield answers
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class Asking:
    """The supervisor's end. A question raises ConnectionError if the process is gone; it has no time-out of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._asked: deque[asyncio.Future[bytes]] = deque()
        self._reading = asyncio.create_task(self._read())

    async def state(self) -> State | None:
        """Ask for its state; None if it cannot say it."""
        answer = await self._ask(_STATE)
        return State(**json.loads(answer)) if answer else None

    async def metrics(self) -> str | None:
        """Ask for its metrics, in Prometheus' text format; None if it cannot say them."""
        return (await self._ask(_METRICS)).decode() or None

    def stop(self) -> None:
        """Tell it to stop. One that is still starting does so as soon as it reads this."""
        self._writer.write(_STOP)

    def close(self) -> None:
        """Close the connection; questions that are not answered yet raise ConnectionError."""
        self._reading.cancel()
        self._writer.close()
        self._give_up()

    def _ask(self, question: bytes) -> Awaitable[bytes]:
        answer = asyncio.get_running_loop().create_future()
        self._asked.append(answer)
        if self._reading.done():
            self._give_up()
        else:
            self._writer.write(question)
        return answer

    async def _read(self) -> None:
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                data = await self._reader.readexactly(length)
                answer = self._asked.popleft()
                if not answer.done():  # nobody waits any more for one that came late
                    answer.set_result(data)
        self._give_up()

    def _give_up(self) -> None:
        while self._asked:
            answer = self._asked.popleft()
            if not answer.done():
                answer.set_exception(ConnectionError("the process is gone"))


async def open_asking(control: socket.socket) -> Asking:
    """Open the supervisor's end of a connection."""
    return Asking(*await asyncio.open_unix_connection(sock=control))
