"""Orders at given moments, each on its own connection: a client that costs little and need not wait for the gateway."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from tests.kits.system import FLUX


@dataclass(frozen=True, slots=True)
class Shot:
    """One order's answer: its status, or 0 if the connection ended without one, and the seconds until its last byte.

    `at_s` is when it was sent, by `time.monotonic`.
    """

    at_s: float
    status: int
    took_s: float
    head: bytes

    def header(self, name: str) -> str | None:
        """Read a header of the answer."""
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return next((value.strip() for key, _, value in (line.partition(":") for line in lines) if key == name), None)


def order(key: str, number: int, model: str = FLUX) -> bytes:
    """Make the bytes of one order, different from every other."""
    body = json.dumps({"model": model, "prompt": f"order {number}"}).encode()
    return (
        f"POST /v1/images/generations HTTP/1.1\r\nhost: api.geekhub.mx\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


class _Client(asyncio.Protocol):
    def __init__(self, request: bytes) -> None:
        self._request = request
        self._began_s = time.monotonic()
        self._read = bytearray()
        self._transport: asyncio.Transport
        self.shot: asyncio.Future[Shot] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, body = bytes(self._read).partition(b"\r\n\r\n")
        if not found:
            return
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if len(body) >= int(length):
            self._end(int(head[9:12]), head)
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(0, b"")

    def _end(self, status: int, head: bytes) -> None:
        if not self.shot.done():
            self.shot.set_result(Shot(self._began_s, status, time.monotonic() - self._began_s, head.lower()))


async def shoot(port: int, request: bytes) -> Shot:
    """Place one order on a connection of its own."""
    began_s = time.monotonic()
    try:
        _, client = await asyncio.get_running_loop().create_connection(lambda: _Client(request), "127.0.0.1", port)
    except OSError:
        return Shot(began_s, 0, time.monotonic() - began_s, b"")
    return await client.shot


async def burst(port: int, requests: Sequence[bytes]) -> list[Shot]:
    """Place all orders at one moment."""
    return await asyncio.gather(*(shoot(port, request) for request in requests))


async def open_loop(port: int, requests: Sequence[bytes], per_s: float) -> list[Shot]:
    """Place so many orders a second, whether the earlier ones are answered or not."""
    began_s, shots = time.monotonic(), []
    for place, request in enumerate(requests):
        pause_s = began_s + place / per_s - time.monotonic()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        shots.append(asyncio.create_task(shoot(port, request)))
    return await asyncio.gather(*shots)


async def closed_loop(port: int, requests: Sequence[bytes], clients: int) -> float:
    """Place orders by so many clients, each one after the other; returns the orders a second."""
    began_s, left = time.monotonic(), iter(requests)

    async def client() -> None:
        for request in left:
            shot = await shoot(port, request)
            assert shot.status == 200, shot

    await asyncio.gather(*(client() for _ in range(clients)))
    return len(requests) / (time.monotonic() - began_s)
