"""Shared parts of the tests of outgoing calls: clients on both event loops, names from a table, open files."""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import httpx2

from proxy.outbound.pool import Address
from proxy.outbound.transport import Transport
from tests.conftest import TRUST
from tests.kits.raw_server import Peer

PATIENCE_S = 20.0  # time for what must happen, on a noisy machine too
SHORT_S = 0.3  # a timeout that is meant to expire
LARGE_BYTES = 16 * 1024 * 1024  # more than the socket buffers of both sides together

Run = Callable[[Coroutine[Any, Any, None]], None]
MakeClient = Callable[..., httpx2.AsyncClient]


def our_client(verify: ssl.SSLContext | None = TRUST, **timeouts_s: float) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        transport=Transport(verify=verify),
        timeout=httpx2.Timeout(PATIENCE_S, **timeouts_s),
        trust_env=False,
    )


class Names:
    """Name resolution from a table of the test."""

    def __init__(self, **addresses: list[str]) -> None:
        self.addresses = {name.replace("_", "."): found for name, found in addresses.items()}

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        if host not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, port))
            for address in self.addresses[host]
        ]


def open_files() -> int:
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 - /dev/fd holds descriptors, not files


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def says_nothing(peer: Peer) -> None:
    await peer.read_request()
    await peer.gone()


async def stalls_in_the_body(peer: Peer) -> None:
    await peer.read_request()
    await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")
    await peer.gone()


@contextlib.contextmanager
def full_backlog() -> Iterator[str]:
    """Open a listener that accepts nobody and whose queue is full: the kernel drops further connections."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            knocking = stack.enter_context(socket.socket())
            knocking.setblocking(False)
            knocking.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
