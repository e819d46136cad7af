"""What every store does with a picture's bytes: hold them to their size, send them on, read answers within bounds."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import httpx2

from config.settings import MAX_IMAGE_BYTES
from proxy.outbound.transport import cause_of
from proxy.ports import Chunks, PictureLost, StoreFailed

CACHE_CONTROL = "public, max-age=31536000, immutable"
"""A path is written once: whoever has it may keep it."""

ERROR_BYTES = 16 * 1024
"""Of a refusal. Real ones are a few hundred bytes; an error page of something in front may be longer, and is cut."""

LISTING_BYTES = 8 * 1024 * 1024
"""A page of 1,000 entries is under one megabyte."""


async def measured(chunks: Chunks, size_bytes: int | None) -> AsyncGenerator[bytes]:
    """The same without empty pieces. Raises PictureLost where there are none, or not `size_bytes` in all."""
    sent = 0
    async for chunk in chunks:
        sent += len(chunk)
        if size_bytes is not None and sent > size_bytes:
            raise PictureLost("the picture is longer than was announced")
        if chunk:
            yield chunk
    if not sent or sent != (size_bytes or sent):
        raise PictureLost("the picture is shorter than was announced, or empty")


class _Pipe:
    """Hands pieces from the task that reads a picture to the one that sends it, one at a time."""

    def __init__(self) -> None:
        self._slot = asyncio.Queue[tuple[bytes, bool]](maxsize=1)
        self._shut = False
        self.drained = False

    async def give(self, piece: bytes, *, last: bool = False) -> bool:
        """False when nobody takes any more."""
        if not self._shut:
            await self._slot.put((piece, last))
        return not self._shut

    async def taken(self) -> AsyncGenerator[bytes]:
        while not self.drained:
            piece, self.drained = await self._slot.get()
            yield piece

    def shut(self, sender: object) -> None:
        self._shut = True
        if self._slot.full():
            self._slot.get_nowait()  # whoever waits to give may go on


async def upload(chunks: Chunks, size_bytes: int | None, send: Callable[[Chunks], Awaitable[None]]) -> None:
    """`send` a request whose body is `chunks`; what they raise comes out as it was, and breaks the request off.

    They are read in the caller's own task: the transport reads a body in a task of its own, and a source with
    time-outs or an open response inside must not be passed between two. The request begins with the first bytes.
    The last ones stay back until the source has ended well: before that nobody can have the whole picture. A
    refusal while there is still a lot to send is seen at the next piece.
    """
    async with aclosing(measured(chunks, size_bytes)) as pieces:
        held = await anext(pieces)
        pipe = _Pipe()
        sending = asyncio.ensure_future(send(pipe.taken()))
        sending.add_done_callback(pipe.shut)
        try:
            async for piece in pieces:
                if not await pipe.give(held):
                    break
                held = piece
            else:
                await pipe.give(held, last=True)
            await sending
        except BaseException:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            raise
    if not pipe.drained:
        raise StoreFailed("the store answered before it had the picture", again=True)


async def document(response: httpx2.Response, max_bytes: int) -> bytes:
    """An answer that is no picture, as far as `max_bytes`."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) >= max_bytes:
            break
    return bytes(body[:max_bytes])


def away(error: httpx2.HTTPError, asked: str) -> StoreFailed:
    """No answer, or one cut short: the next try may have one. `asked` is the request, as `request_of` names it."""
    return StoreFailed(f"the store is away: {cause_of(error)}, at {asked}", again=True)


def request_of(method: str, url: str) -> str:
    """A request for a log: what was asked of which host, without a query and whatever stands before the host."""
    parts = httpx2.URL(url)
    path = parts.raw_path.partition(b"?")[0]
    return f"{method} {parts.scheme}://{parts.netloc.decode()}{path.decode()}"


def body_limit(refused: StoreFailed) -> str:
    """Where a body was refused for its size: the limit is one of the way to the store, as the bucket's own is known."""
    return (
        f"GHUB_STORAGE_URL: the store, or a proxy in front of it, does not take bodies of the size of an image; raise "
        f"its limit to at least {MAX_IMAGE_BYTES} bytes (nginx: client_max_body_size 64m) ({refused})"
    )
