"""Handling of a picture's bytes for every store: check their size, send them, read answers within limits."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import httpx2

from config.settings import MAX_IMAGE_BYTES
from proxy.outbound.transport import cause_of
from proxy.ports import Chunks, PictureLost, StoreFailed

CACHE_CONTROL = "public, max-age=31536000, immutable"
"""A path is written only once, so everybody may cache it."""

ERROR_BYTES = 16 * 1024
"""Maximum bytes of a refusal. Real ones are a few hundred bytes; a proxy's error page may be longer, and is cut."""

LISTING_BYTES = 8 * 1024 * 1024
"""Maximum bytes of a listing; a page of 1,000 entries has less than one megabyte."""


async def measured(chunks: Chunks, size_bytes: int | None) -> AsyncGenerator[bytes]:
    """Yield the pieces that are not empty. Raises PictureLost if there are none, or not `size_bytes` in all."""
    sent = 0
    async for chunk in chunks:
        sent += len(chunk)
        if size_bytes is not None and sent > size_bytes:
            raise PictureLost("the picture is longer than was announced")
        if chunk:
            yield chunk
    if not sent or sent != (size_bytes or sent):
        raise PictureLost("the picture is shorter than was announced, or empty")


async def upload(chunks: Chunks, size_bytes: int | None, send: Callable[[Chunks], Awaitable[None]]) -> None:
    """Call `send` for a request whose body is `chunks`. Their error is raised unchanged, and aborts the request.

    The request begins with the first bytes. The last ones are kept back until the source has ended well: before that
    nobody can have the whole picture. If the store refuses while there is still a lot to send, this is noticed at the
    next piece.
    """
    drained, failure = False, None
    async with aclosing(measured(chunks, size_bytes)) as pieces:
        held = await anext(pieces)

        async def body() -> AsyncGenerator[bytes]:
            nonlocal held, drained, failure
            try:
                async for piece in pieces:
                    yield held
                    held = piece
            except Exception as error:
                failure = error
                raise
            drained = True
            yield held

        try:
            await send(body())
        except StoreFailed:
            if failure is not None:  # an upstream's error, which `send` took for the store's
                raise failure from None
            raise
    if not drained:
        raise StoreFailed("the store answered before it had the picture", again=True)


async def document(response: httpx2.Response, max_bytes: int) -> bytes:
    """Read an answer that is not a picture, up to `max_bytes`."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) >= max_bytes:
            break
    return bytes(body[:max_bytes])


def away(error: httpx2.HTTPError, request: str) -> StoreFailed:
    """Build the error for a missing answer, or one cut short, which may be retried. `asked` comes from `request_of`."""
    return StoreFailed(f"the store is away: {cause_of(error)}, at {request}", again=True)


def request_of(method: str, url: str) -> str:
    """Name a request for a log: method, host and path, without the query and without credentials before the host."""
    parts = httpx2.URL(url)
    path = parts.raw_path.partition(b"?")[0]
    return f"{method} {parts.scheme}://{parts.netloc.decode()}{path.decode()}"


def body_limit(refused: StoreFailed) -> str:
    """Say what to do if a body was too large: the bucket's own limit is known, so a limit on the way refused it."""
    return (
        f"GHUB_STORAGE_URL: the store, or a proxy in front of it, does not take bodies of the size of an image; raise "
        f"its limit to at least {MAX_IMAGE_BYTES} bytes (nginx: client_max_body_size 64m) ({refused})"
    )
