"""Redis far away: a relay that passes every byte on, later, and no fewer of them a second."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PIECE_BYTES = 64 * 1024


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, away_s: float) -> None:
    """Pass each piece on `away_s` after it came: pieces travel side by side, as on a long line."""
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while piece := await reader.read(PIECE_BYTES):
            loop.call_later(away_s, writer.write, piece)
    await asyncio.sleep(away_s)
    writer.close()


@contextmanager
def far_away(socket: Path, port: int, round_trip_s: float) -> Iterator[str]:
    """Open `socket` on a port, a round trip away; yields its address for GHUB_REDIS_URL."""
    ready, over = threading.Event(), asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, out = await asyncio.open_unix_connection(str(socket))
        try:
            await asyncio.gather(_carry(reader, out, round_trip_s / 2), _carry(there, writer, round_trip_s / 2))
        finally:
            out.transport.abort()
            writer.transport.abort()

    async def listen() -> None:
        server = await asyncio.start_server(take, "127.0.0.1", port)
        loops.append(asyncio.get_running_loop())
        ready.set()
        await over.wait()
        server.close()

    loops: list[asyncio.AbstractEventLoop] = []
    thread = threading.Thread(target=lambda: asyncio.run(listen()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        loops[0].call_soon_threadsafe(over.set)
        thread.join(10)
