"""What every adapter does with an upstream's reply: read it within bounds, and say what a broken one means."""

import httpx2

from proxy.outcomes import Failure, Outcome


async def read_document(response: httpx2.Response, most_bytes: int) -> bytes:
    """A reply that holds no pictures, whole. Raises Failure past `most_bytes`."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > most_bytes:
            raise Failure(Outcome.BAD_REPLY, "the reply is too large")
    return bytes(body)


def broken_off(error: httpx2.HTTPError) -> Failure:
    """Only a connection that never came about is certain not to have bought an image."""
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout):
        return Failure(Outcome.REFUSED_CONNECTION, type(error).__name__)
    return Failure(Outcome.NO_ANSWER, type(error).__name__)


def retry_after_s(response: httpx2.Response) -> float | None:
    """The upstream's wish in seconds; a date or nonsense is passed over."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else None
