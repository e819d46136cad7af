"""Sinks over HTTP: one POST a message, its own connections, an answer that is read within bounds."""

import asyncio
import ssl

import httpx2

from config.settings import SINK_SEND_S
from metering.sinks.sink import Message, Reply, SinkAway
from proxy.outbound.clients import Client
from proxy.outbound.transport import Transport, cause_of

MAX_REPLY_BYTES = 64 * 1024
"""How much of an answer is read; Lago's to a batch of 100 is the largest. Its status counts, however long it is."""


class HttpSender:
    """Posts to one receiver, with its token if it has one. No redirect is followed: a token is not for others.

    Create it inside the running event loop. `send_s` is the timeout of a whole delivery.
    """

    def __init__(self, token: str | None, *, send_s: float = SINK_SEND_S, verify: ssl.SSLContext | None = None) -> None:
        self._token = token
        self._send_s = send_s
        self._client = Client(Transport(verify=verify), httpx2.Timeout(send_s))

    async def send(self, message: Message) -> Reply:
        headers = dict(message.headers)
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        try:
            async with (
                asyncio.timeout(self._send_s),
                self._client.stream("POST", message.target, content=message.body, headers=headers) as reply,
            ):
                body = await self._read(reply)
                return Reply(reply.status_code, body, _seconds(reply.headers.get("retry-after", "")))
        except TimeoutError:
            raise SinkAway(f"no answer in {self._send_s:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise SinkAway(cause_of(error) if isinstance(error, httpx2.HTTPError) else "its URL is none") from None

    async def aclose(self) -> None:
        """Close every connection, also those in use."""
        await self._client.aclose()

    async def _read(self, reply: httpx2.Response) -> bytes:
        """Read the beginning of the body, without our token: some receivers give back what they were sent."""
        body = b""
        async for piece in reply.aiter_raw():
            body += piece
            if len(body) > MAX_REPLY_BYTES:
                break
        return body[:MAX_REPLY_BYTES].replace(self._token.encode(), b"***") if self._token else body[:MAX_REPLY_BYTES]


def _seconds(retry_after: str) -> float:
    """Parse `retry-after` in seconds; a date is none of ours."""
    return float(retry_after) if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 7 else 0.0
