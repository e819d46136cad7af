"""Sinks over NATS: each message is published to JetStream, and delivered once a stream has acknowledged it."""

import asyncio
from contextlib import suppress
from typing import Any

from config.settings import SINK_SEND_S
from metering.sinks.sink import Message, Reply, SinkAway

EXCERPT = 200
"""Characters of an error that are kept."""

CLOSE_S = 1.0
"""The longest that a connection may take to close: it would wait for a server that is frozen."""


class NatsMissing(Exception):
    """A sink needs the extra `nats`: pip install 'geekhub-gateway[nats]'."""


class NatsSender:
    """Publishes over one connection, which is opened when it is needed, and anew after a failure.

    `token` is NATS' own, or none. Raises NatsMissing if nats-py is not installed.
    """

    def __init__(self, url: str, token: str | None, *, send_s: float = SINK_SEND_S) -> None:
        try:
            import nats.aio.client  # noqa: PLC0415  # the loader of the extra `nats`
            import nats.errors  # noqa: PLC0415
            import nats.js.errors  # noqa: PLC0415
        except ImportError:
            raise NatsMissing(NatsMissing.__doc__) from None
        self._nats = nats
        self._url = url
        self._token = token
        self._send_s = send_s
        self._client: Any = None
        self._opening = asyncio.Lock()

    async def send(self, message: Message) -> Reply:
        client: Any = None
        try:
            async with asyncio.timeout(self._send_s):
                client = await self._connected()
                if len(message.body) > client.max_payload:
                    return Reply(413, b"larger than the server's max_payload")
                await client.jetstream(timeout=self._send_s).publish(
                    message.target, message.body, timeout=self._send_s, headers=dict(message.headers)
                )
                return Reply(200)
        except self._nats.js.errors.NoStreamResponseError:
            raise SinkAway(f"no stream takes the subject {message.target}") from None
        except self._nats.js.errors.APIError as error:
            raise SinkAway(f"the stream refuses: {error.description or type(error).__name__}") from None
        except (self._nats.errors.Error, OSError, TimeoutError) as error:
            await self._drop(client)
            raise SinkAway(f"no acknowledgement ({self._said(error)})") from None

    async def aclose(self) -> None:
        """Close the connection."""
        await self._drop(self._client)

    def _said(self, error: Exception) -> str:
        """Say what failed, without our token."""
        text = " ".join(str(error).split())[:EXCERPT] or type(error).__name__
        return text.replace(self._token, "***") if self._token else text

    async def _connected(self) -> Any:
        """Return the one connection, opened if there is none."""
        async with self._opening:
            if self._client is not None and self._client.is_connected:
                return self._client
            await self._drop(self._client)
            self._client = client = self._nats.aio.client.Client()
            try:
                await client.connect(
                    self._url,
                    token=self._token,
                    name="ghub",
                    allow_reconnect=False,
                    connect_timeout=max(1, round(self._send_s)),
                    error_cb=_say_nothing,  # what fails is told by whoever waits for it
                )
            except BaseException:
                await self._drop(client)
                raise
            return client

    async def _drop(self, client: Any) -> None:
        """Close a connection. Others that wait on it fail, and what they send is repeated."""
        if client is None:
            return
        if self._client is client:
            self._client = None
        _abort(client)
        with suppress(self._nats.errors.Error, OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await client.close()


def _abort(client: Any) -> None:
    """Cut a connection now.

    nats-py would wait for a frozen server to read what is not sent yet, and leaves the socket of a failed log-in open.
    """
    writer = getattr(client._transport, "_io_writer", None)
    if writer is not None:
        writer.transport.abort()


async def _say_nothing(error: Exception) -> None:
    pass
