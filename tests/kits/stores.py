"""Shared parts of the tests of stores: a store of each kind, paths that are deleted, and the form of an upload."""

import asyncio
import contextlib
import dataclasses
import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from proxy.outbound.clients import store_client
from proxy.ports import Chunks, ImageStore, StoreFailed
from proxy.storage.supabase import Auth, Key, Supabase
from tests.conftest import TRUST
from tests.conftest import run as on_uvloop
from tests.kits.raw_server import Peer, RawServer, raw_server
from tests.stores.running import BUCKET, KEY, PATIENCE_S, SECRET, SupabaseProcess
from tests.stores.supabase import Bucket, Server

PIECE_BYTES = 64 * 1024
SHORT_S = 0.4  # a timeout that is meant to expire
PAGE = 3

T = TypeVar("T")


def a_client(timeout_s: float = PATIENCE_S) -> httpx2.AsyncClient:
    return store_client(
        connect_timeout_s=timeout_s, write_timeout_s=timeout_s, answer_timeout_s=timeout_s, verify=TRUST
    )


@dataclasses.dataclass(frozen=True)
class Kit:
    """A store for tests: how to make it, the public URL of its images, and the process to freeze, if any."""

    make: Callable[[httpx2.AsyncClient], ImageStore]
    public_url: str | None = None
    process: Callable[[], subprocess.Popen[bytes] | None] = lambda: None

    @contextlib.asynccontextmanager
    async def opened(self, timeout_s: float = PATIENCE_S) -> AsyncIterator[ImageStore]:
        async with a_client(timeout_s) as client:
            yield self.make(client)


MADE: list[str] = []


def fresh_path(name: str = "0.png") -> str:
    MADE.append(f"{uuid.uuid4()}/{uuid.uuid4()}/{name}")
    return MADE[-1]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run on a new uvloop, with a time limit."""

    async def bounded() -> T:
        async with asyncio.timeout(3 * PATIENCE_S):
            return await work

    return on_uvloop(bounded())


async def pieces(data: bytes, size: int = PIECE_BYTES) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def whole(chunks: Chunks) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def put(store: ImageStore, path: str, data: bytes, **more: Any) -> None:
    await store.put(path, pieces(data), "image/png", size_bytes=len(data), **more)


def open_files() -> int:
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 - /dev/fd holds descriptors, not files


def supabase_store(client: httpx2.AsyncClient, server: SupabaseProcess | Server, auth: Auth | None = None) -> Supabase:
    return Supabase(client, server.url, BUCKET, auth or Key(KEY))


def with_supabase(
    folder: Path, work: Callable[[Server, httpx2.AsyncClient], Any], bucket: Bucket | None = None
) -> None:
    """Run `work` with its own server."""

    async def main() -> None:
        async with Server(folder, SECRET, KEY, bucket).serving() as server, a_client() as client:
            await work(server, client)

    run(main())


async def sent_heads(make: Callable[[httpx2.AsyncClient, RawServer], ImageStore], **how: Any) -> bytes:
    """The head of the request that an upload of one byte makes."""
    seen: list[bytes] = []

    async def keeps(peer: Peer) -> None:
        seen.append(await peer.read_head())
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async with raw_server(keeps) as server, a_client() as client:
        with contextlib.suppress(StoreFailed):
            await make(client, server).put("org/request/0.png", pieces(b"x"), "image/png", **how)
    return seen[0].lower()
