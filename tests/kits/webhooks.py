"""Webhooks in tests: receivers over real HTTP that misbehave as they are told, judged by `standardwebhooks`."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from standardwebhooks.webhooks import Webhook as Judge

from metering.background import cancel_all
from metering.clock import utc_now
from metering.events import LONG, Event
from metering.ledger.record import SqlLedger
from metering.ports import Org, WebhookDelivery
from metering.webhooks.calls import TYPES, order_calls
from metering.webhooks.delivery import WebhookDelivering, WebhookPace
from metering.webhooks.registry import WebhookRegistry, WebhookRules
from metering.webhooks.sealing import SecretsKey
from proxy.sinks.webhooks import WebhookPosts
from proxy.webhooks.explaining import explain
from proxy.webhooks.targets import WebhookHosts, why_not
from tests.kits.books import ACT, event, open_ledger

KEY = SecretsKey("c2VhbHMgdGhlIHNlY3JldHMgb2YgdGhlc2UgdGVzdHM=")
FAST = WebhookPace(poll_s=0.02, lease_s=30.0, pauses_s=(0.02,) * 8)
ORG = "33333333-3333-4333-8333-333333333333"


@dataclass
class Receiver:
    """A server of one organisation's webhooks: what came to each path, and how often each path has failed.

    `answer` chooses a status by path and by how many requests of this id came before; None: it never answers.
    """

    url: str = ""
    secrets: list[str] = field(default_factory=list)
    answer: Callable[[str, int], int | None] = lambda path, before: 204
    taken: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def messages(self, path: str) -> dict[str, Any]:
        """What has been delivered to a path, by id; each was signed right when it came, and a repeat is the same."""
        found: dict[str, Any] = {}
        for where, headers, body in self.taken:
            if where == path:
                assert found.setdefault(headers["webhook-id"], body) == body
        return found

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            method, path, _ = first.split(" ")
            exact = {line.split(": ", 1)[0].lower(): line.split(": ", 1)[1] for line in lines}
            body = await reader.readexactly(int(exact["content-length"]))
            assert method == "POST" and exact["content-type"] == "application/json"
            for secret in self.secrets:
                Judge(secret).verify(body, exact)
            status = self.answer(path, self.attempts[exact["webhook-id"]])
            self.attempts[exact["webhook-id"]] += 1
            if status is None:
                await self.over.wait()
                return
            more = f"location: {self.url}/elsewhere\r\n" if status == 307 else ""
            writer.write(f"HTTP/1.1 {status} x\r\n{more}content-length: 0\r\nconnection: close\r\n\r\n".encode())
            await writer.drain()
            if 200 <= status < 300:
                self.taken.append((path, exact, body))
        finally:
            writer.close()


@asynccontextmanager
async def receiver(answer: Callable[[str, int], int | None] = lambda path, before: 204) -> AsyncIterator[Receiver]:
    """Serve webhooks on this machine until the end."""
    made = Receiver(answer=answer)
    running: set[asyncio.Task[None]] = set()
    faults: list[BaseException] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await made.serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # a client that is cancelled
        except Exception as error:  # noqa: BLE001  # told at the end
            faults.append(error)
        finally:
            running.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        made.over.set()
        while running:
            await asyncio.sleep(0.01)
        assert faults == []


@dataclass
class Told:
    """A ledger with one organisation, and deliveries to its webhooks."""

    ledger: SqlLedger
    registry: WebhookRegistry
    hosts: WebhookHosts
    pace: WebhookPace = FAST
    send_s: float = 5.0
    booked: int = 0

    async def add(self, receiver: Receiver, path: str = "/", *events: str) -> str:
        """Add a webhook, and tell the receiver its secret; returns its id."""
        added = await self.registry.add(ORG, receiver.url + path, events or TYPES)
        if added.secret is not None:
            receiver.secrets.append(added.secret)
        return added.webhook.webhook_id

    async def book(self, count: int = 1, *, end: str = "charge", webhook: str | None = None, **of: Any) -> list[Event]:
        """Book ends of long orders, as a consumer does."""
        new = []
        for _ in range(count):
            self.booked += 1
            one = event(ORG, self.booked, end=end, name=str(uuid4()))
            opened = replace(one.opened, mode=of.get("mode", LONG), webhook=webhook, metadata='{"page":"7"}')
            new.append(replace(one, opened=opened, reason=of.get("reason", one.reason)))
        await self.ledger.book(new, [], utc_now(), order_calls(new, explain))
        return new

    @asynccontextmanager
    async def delivering(self, key: SecretsKey = KEY) -> AsyncIterator[None]:
        """Deliver as a consumer does; a bug in it fails the test."""
        posts = WebhookPosts(self.hosts, send_s=self.send_s)
        task = asyncio.create_task(WebhookDelivering(self.ledger, posts, key, self.pace).run())
        try:
            yield
        finally:
            assert not task.done(), task.exception()
            await cancel_all([task])
            await posts.aclose()

    async def deliveries(self) -> list[WebhookDelivery]:
        return await self.ledger.webhook_deliveries(ORG, None, ("\x7f", ""), 10_000)

    async def until(self, true: Callable[[list[WebhookDelivery]], bool]) -> list[WebhookDelivery]:
        """Wait until it is true of all deliveries."""
        for _ in range(2_000):
            if true(found := await self.deliveries()):
                return found
            await asyncio.sleep(0.01)
        raise AssertionError(f"not within 20 s: {await self.deliveries()}")

    async def until_ended(self) -> list[WebhookDelivery]:
        return await self.until(lambda found: all(one.state != "waiting" for one in found))


@asynccontextmanager
async def told(url: str | Path, *receivers: Receiver, key: SecretsKey = KEY) -> AsyncIterator[Told]:
    """Open a migrated ledger with one organisation, whose webhooks may lead to these receivers."""
    ledger = open_ledger(url)
    hosts = WebhookHosts(",".join(one.url.removeprefix("http://") for one in receivers))
    rules = WebhookRules(key, lambda target: why_not(target, hosts, "url"))
    try:
        await ledger.migrate()
        await ledger.create_org(Org(ORG, "acme", "default", utc_now().isoformat()), ACT)
        yield Told(ledger, WebhookRegistry(ledger, rules, "test", None), hosts)
    finally:
        await ledger.aclose()


DAY = timedelta(days=1)
