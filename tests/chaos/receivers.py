"""Receivers of webhooks: each fails half of the time, and the last one always, until there is peace."""

import asyncio
import random
from collections import defaultdict
from contextlib import suppress
from typing import Any

import orjson
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

RECEIVERS = 10
"""Servers. Each is a lane of its own for the consumers, which spare one that fails."""

SLOW_S = 2.0

FAILURES = ("refuses", "closes", "takes and closes", "is slow")
"""`takes and closes`: it has the message, and its sender does not know."""


class Receivers:
    """What has been delivered. The path of every URL names the organisation, by whose secret it must be signed.

    `arrived`: states of the orders that each URL was told of, by the order's public id. `wrong`: what must not come.
    """

    def __init__(self) -> None:
        self.secrets: dict[str, str] = {}
        self.arrived: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.wrong: list[str] = []
        self.count = 0
        self.failed = 0
        self.peace = False
        self._bodies: dict[str, bytes] = {}
        self._urls: list[str] = []
        self._servers: list[asyncio.Server] = []
        self._random = random.Random("receivers")

    async def start(self) -> None:
        """Listen."""
        for number in range(RECEIVERS):
            server = await asyncio.start_server(self._serving(number), "127.0.0.1", 0)
            self._servers.append(server)
            self._urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")

    def stop(self) -> None:
        """Listen no more."""
        for server in self._servers:
            server.close()

    def url(self, place: int, org_id: str, of: str) -> str:
        """Where an organisation is told: on every order (`of` is "org"), or on one that says so ("order")."""
        return f"{self._urls[place % RECEIVERS]}/{org_id}/{of}"

    def _serving(self, number: int) -> Any:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await self._serve(number, reader, writer)
            writer.close()

        return serve

    async def _serve(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(headers["content-length"]))
        failure = self._failure(number)
        if failure in (None, "takes and closes", "is slow"):
            self._take(f"{self._urls[number]}{first.split(' ')[1]}", headers, body)
        self.failed += failure is not None
        if failure == "is slow":
            await asyncio.sleep(SLOW_S)
        elif failure in ("closes", "takes and closes"):
            return
        writer.write(f"HTTP/1.1 {500 if failure == 'refuses' else 204} x\r\ncontent-length: 0\r\n\r\n".encode())
        await writer.drain()

    def _failure(self, number: int) -> str | None:
        if self.peace:
            return None
        if number == RECEIVERS - 1:
            return "refuses"
        return self._random.choice(FAILURES) if self._random.random() < 0.5 else None

    def _take(self, url: str, headers: dict[str, str], body: bytes) -> None:
        self.count += 1
        try:
            told = Webhook(self.secrets[url.split("/")[3]]).verify(body, headers)
        except WebhookVerificationError as error:
            self.wrong.append(f"(k) a webhook to {url} is signed wrong: {error}")
            return
        if self._bodies.setdefault(headers["webhook-id"], body) != body:
            self.wrong.append(f"(k) the webhook {headers['webhook-id']} came with two bodies")
        self.arrived[url, told["data"]["id"]].add(told["data"]["status"])
        state = told["data"]["status"]
        kind = "failed" if state == "expired" else state  # there is no type of its own for what has run out
        if orjson.loads(body)["type"] != f"image.generation.{kind}":
            self.wrong.append(f"(k) a webhook to {url} has another type than its state: {body.decode()}")
