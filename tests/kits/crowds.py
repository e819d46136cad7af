"""Crowds of hostile connections, and honest customers at the same time."""

import asyncio
import json
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes

from tests.kits.system import FLUX, GPT, System

PAUSE_S = 0.1
WAVES = 20
"""Number of waves, one at a time, in which a crowd comes (again)."""

RECEIVE_BYTES = 4096
"""Bytes that a hostile client's kernel accepts for it: nearly nothing."""

HONEST_PAUSE_S = 0.2
STREAMS = 990
LISTENS, TIME_WAIT = "0A", "06"
KEY = "tests/doors"
"""Idempotency key of the replayed order."""


class Crowd:
    """`count` hostile connections, each reopened when the gateway has ended it, in their own thread.

    `lasted_s` is the duration in seconds of each connection that the gateway ended.
    """

    def __init__(self, port: int, opening: bytes, count: int) -> None:
        self._port = port
        self._opening = opening
        self._count = count
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.lasted_s: list[float] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        poll = select.poll()
        held: dict[int, tuple[socket.socket, float]] = {}
        while not self._over.is_set():
            for _ in range(min(self._count - len(held), max(1, self._count // WAVES))):
                began_s = time.monotonic()
                if (one := self._open()) is None:
                    self.lasted_s.append(time.monotonic() - began_s)
                    continue
                held[one.fileno()] = one, began_s
                poll.register(one, select.POLLRDHUP)  # errors and hang-ups are always reported
            self._over.wait(PAUSE_S)
            for number, _ in poll.poll(0):
                one, began_s = held.pop(number)
                poll.unregister(number)
                one.close()
                self.lasted_s.append(time.monotonic() - began_s)
        for one, _ in held.values():
            one.close()

    def _open(self) -> socket.socket | None:
        """Open a connection; None if the gateway ended it before all was sent."""
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        one.settimeout(10)
        try:
            one.connect(("127.0.0.1", self._port))
            one.sendall(self._opening)
        except (ConnectionError, TimeoutError):
            one.close()
            return None
        return one


def openings(key: str) -> dict[str, bytes]:
    """First bytes of a hostile client of each kind, before it becomes silent. The last one has a customer's key."""
    return {
        "silent": b"",
        "half a head": b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ghub_",
        "h2c": h2c(STREAMS),
        "pipelined": b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 120,
        "replays": replay(key),
    }


def h2c(streams: int) -> bytes:
    """Make prior knowledge of HTTP/2: this many requests on one connection whose window is closed."""
    connection = H2Connection(H2Configuration(client_side=True))
    connection.initiate_connection()
    connection.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    head = [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/v1/credits")]
    for stream in range(streams):
        connection.send_headers(2 * stream + 1, head, end_stream=True)
    return connection.data_to_send()


def replay(key: str) -> bytes:
    """Make the order of `place_large` again."""
    body = json.dumps(LARGE).encode()
    return (
        f"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        f"idempotency-key: {KEY}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


LARGE = {"model": GPT, "prompt": "a large one", "response_format": "b64_json"}


async def place_large(system: System, key: str, size_bytes: int) -> None:
    """Place one order whose reply is a large base64 picture, under a key that replays it for free."""
    system.behave(GPT, "ok", bytes=size_bytes)
    async with system.client(key) as client:
        reply = await client.post("/images/generations", json=LARGE, headers={"idempotency-key": KEY})
    assert reply.status_code == 200 and len(reply.content) > size_bytes


async def replayed(system: System, key: str) -> httpx2.Response:
    """Place the order of `place_large` again, by a client that reads its reply."""
    async with system.client(key) as client:
        return await client.post("/images/generations", json=LARGE, headers={"idempotency-key": KEY})


async def honest(system: System, key: str, customers: int, until: Awaitable[object]) -> Counter[int]:
    """Count statuses of all orders of this many customers, one after the other, each on its own connection.

    A 503 is retried, as the SDKs do.
    """
    statuses: Counter[int] = Counter()
    over = asyncio.ensure_future(until)

    async def customer() -> None:
        async with system.client(key) as client:
            client.headers["connection"] = "close"
            while not over.done():
                statuses[(await ordered(client)).status_code] += 1
                await asyncio.sleep(HONEST_PAUSE_S)

    await asyncio.gather(over, *(customer() for _ in range(customers)))
    return statuses


async def ordered(client: httpx2.AsyncClient) -> httpx2.Response:
    """Place one order, with at most five tries."""
    for _ in range(5):
        reply = await client.post("/images/generations", json={"model": FLUX, "prompt": "honest"})
        if reply.status_code != 503:
            break
        await asyncio.sleep(float(reply.headers.get("retry-after", 0)))
    return reply


def connections(port: int) -> list[tuple[int, int]]:
    """List bytes that the kernel still has to send and to deliver, for each connection to a port.

    Connections that their process has closed and that hold nothing are left out.
    """
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, state, queues, inode = fields[1], fields[3], fields[4], fields[9]
        if local.endswith(f":{port:04X}") and state not in (LISTENS, TIME_WAIT):
            sending, received = (int(number, 16) for number in queues.split(":"))
            if inode != "0" or sending or received:
                found.append((sending, received))
    return found
