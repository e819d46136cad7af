"""Sinks over real receivers, which are processes that can be killed, frozen, and told to misbehave."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import nats
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from nats.js.errors import NotFoundError
from prometheus_client import REGISTRY

from metering.background import cancel_all
from metering.clock import utc_now
from metering.events import Event
from metering.ledger.record import SqlLedger
from metering.money import parse_mxn
from metering.ports import LedgerAway, Org, SinkState
from metering.sinks.delivery import Delivery, Pace
from metering.sinks.file import read_sinks
from metering.sinks.sink import Sender, Sink
from proxy.sinks.http import HttpSender
from proxy.sinks.nats import NatsSender
from tests.conftest import TRUST
from tests.kits import receiver
from tests.kits.books import ACT, event, open_ledger, sql
from tests.kits.ports import free_port

TOKEN = receiver.TOKEN
ORG = "6f1f9d1c-8d3e-4b51-9a50-0c9de8e1a001"
HTTP = ("structured", "binary", "batched", "openmeter", "lago", "stripe")

FAST = Pace(poll_s=0.005, lease_s=2.0, first_pause_s=0.005, longest_pause_s=0.05)
SEND_S = 5.0
SHORT_S = 0.15
"""Timeouts of a delivery; the short one for receivers that hang."""

STREAM = "images"
DUPLICATE_WINDOW_S = 0.1
"""The shortest that NATS allows: a repeat after it is stored again."""

_TABLES = {
    "structured": 'profile = "cloudevents"',
    "binary": 'profile = "cloudevents"\nmode = "binary"',
    "batched": 'profile = "cloudevents"\nmode = "batched"\nbatch = 7',
    "openmeter": 'profile = "openmeter"\nbatch = 7',
    "lago": 'profile = "lago"\ncode = "images"\nbatch = 7',
    "stripe": f'profile = "stripe"\nevent_name = "images"\ncustomers = {{ "{ORG}" = "cus_acme" }}',
    "nats": 'profile = "nats"\nsubject = "ghub.images"',
}


def table(profile: str, url: str, name: str = "") -> str:
    """Write a sink's table of GHUB_SINKS."""
    return f'[[sinks]]\nname = "{name or profile}"\nurl = "{url}"\ntoken_env = "RECEIVER_TOKEN"\n{_TABLES[profile]}\n'


def sink(folder: Path, profile: str, url: str, name: str = "") -> Sink:
    """Read one sink as a consumer does."""
    path = folder / f"sinks-{name or profile}.toml"
    path.write_text(table(profile, url, name))
    (one,) = read_sinks(path)
    return one


class _Process:
    """A server's process; what it has taken outlives it."""

    def __init__(self, port: int, command: list[str]) -> None:
        self._port = port
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return when it accepts connections."""
        self._process = subprocess.Popen(self._command)
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1.0):
                return
            assert self._process.poll() is None, "the receiver did not start"
            subprocess.run(["sleep", "0.005"], check=True)

    def kill(self) -> None:
        """Send SIGKILL, also if it is frozen."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Freeze it; its kernel still accepts connections."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    @property
    def ended(self) -> bool:
        """True if it has ended by itself."""
        return self._process is not None and self._process.poll() is not None


class HttpReceiver(_Process):
    """`tests/kits/receiver.py`."""

    def __init__(self, profile: str, folder: Path) -> None:
        self.folder = folder / f"receiver-{profile}-{uuid4().hex[:6]}"
        self.folder.mkdir()
        port = free_port()
        super().__init__(port, [sys.executable, "-S", "-E", receiver.__file__, profile, str(port), str(self.folder)])
        self.url = f"http://127.0.0.1:{port}"
        self.mode("ok")

    def mode(self, mode: str) -> None:
        """Set what it does with every request from now on."""
        part = self.folder / "mode.part"
        part.write_text(mode)
        part.replace(self.folder / "mode")

    async def taken(self) -> list[dict[str, Any]]:
        """Read what it has taken, repeats among it."""
        path = self.folder / "taken"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


class NatsReceiver(_Process):
    """The real server, with a stream in a folder, which takes the sink's subject while the mode is `ok`."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.folder = folder / f"nats-{uuid4().hex[:6]}"
        binary = str(Path(sys.executable).parent / "nats-server")
        options = ["-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(self.folder), "-l", os.devnull]
        options += ["--auth", TOKEN]
        super().__init__(port, [binary, *options])
        self.url = f"nats://127.0.0.1:{port}"

    async def make_stream(self, subject: str = "ghub.images") -> None:
        """Make the stream, or have it take another subject."""
        async with self._stream() as stream:
            config = StreamConfig(STREAM, subjects=[subject], duplicate_window=DUPLICATE_WINDOW_S)
            try:
                await stream.update_stream(config)
            except NotFoundError:
                await stream.add_stream(config)

    async def taken(self) -> list[dict[str, Any]]:
        """Read all messages of the stream."""
        found = []
        async with self._stream() as stream:
            info = await stream.stream_info(STREAM)
            for number in range(1, info.state.last_seq + 1):
                message = await stream.get_msg(STREAM, number)
                whole = json.loads(message.data or b"")
                assert message.headers is not None and message.headers["Nats-Msg-Id"] == whole["id"]
                row = {"id": whole["id"], "time": whole["time"], "amount_mxn": whole["data"]["amount_mxn"]}
                found.append(row | {"whole": whole})
        return found

    @asynccontextmanager
    async def _stream(self) -> AsyncIterator[JetStreamContext]:
        client = await nats.connect(self.url, token=TOKEN, max_reconnect_attempts=50, reconnect_time_wait=0.02)
        try:
            yield client.jetstream()
        finally:
            await client.close()


@dataclass
class Outgoing:
    """A ledger with one organisation, and deliveries to its sinks."""

    ledger: SqlLedger
    url: str
    folder: Path
    pace: Pace = FAST
    send_s: float = SEND_S
    token: str = TOKEN
    booked: list[Event] = field(default_factory=list)
    turn: asyncio.Semaphore = field(default_factory=asyncio.Semaphore)

    async def register(self, *sinks: Sink) -> None:
        await self.ledger.register_sinks({one.name: one.profile for one in sinks}, utc_now())

    async def book(self, count: int = 1, images: int = 1, at: datetime | None = None) -> list[Event]:
        """Book charges, with as many voids between them, which no sink is told of."""
        new: list[Event] = []
        for _ in range(count):
            number = 2 * len(self.booked) + 2 * len(new) + 1
            new.append(event(ORG, number, images=images, name=uuid4().hex))
            new.append(event(ORG, number + 1, end="void", name=uuid4().hex))
        await self.ledger.book(new, [], at or utc_now())
        charges = [one for one in new if one.end == "charge"]
        self.booked += charges
        return charges

    async def refund(self, order_id: str, micro_mxn: int | None = None, credit_id: str | None = None) -> str:
        """Refund an order; returns the credit's id."""
        refund, _ = await self.ledger.refund(
            order_id, micro_mxn, "blurred: ana@example.mx", utc_now(), ACT, credit_id=credit_id
        )
        return refund.credit_id

    def sender(self, one: Sink) -> Sender:
        """Make a sender as a consumer does, but with a short timeout."""
        if one.profile == "nats":
            return NatsSender(one.url, self.token, send_s=self.send_s)
        return HttpSender(self.token, send_s=self.send_s, verify=TRUST)

    @asynccontextmanager
    async def delivering(self, *sinks: Sink) -> AsyncIterator[None]:
        """Deliver to these sinks, each in its own task; a bug in one fails the test."""
        senders = [(one, self.sender(one)) for one in sinks]
        tasks = [
            asyncio.create_task(Delivery(one, sender, self.ledger, self.turn, self.pace).run())
            for one, sender in senders
        ]
        try:
            yield
        finally:
            for task in tasks:
                assert not task.done(), task.exception()
            await cancel_all(tasks)  # as the consumer does: psycopg may lose the first, where it opens a connection
            for _, sender in senders:
                await sender.aclose()

    async def state(self, name: str) -> SinkState:
        (found,) = [one for one in await self.ledger.sinks() if one.name == name]
        return found

    async def until_empty(self, name: str) -> SinkState:
        """Wait until nothing is pending."""
        return await self.until(name, lambda state: state.pending == 0)

    async def until(self, name: str, true: Callable[[SinkState], bool]) -> SinkState:
        for _ in range(4_000):
            with suppress(LedgerAway):
                if true(state := await self.state(name)):
                    return state
            await asyncio.sleep(0.005)
        raise AssertionError(f"not within 20 s: {await self.state(name)}")

    def ledger_micro_mxn(self) -> int:
        """Charges less refunds, as the record has them."""
        ((charged,),) = sql(self.url, "SELECT sum(amount_micro_mxn) FROM events")
        of_refunds = "SELECT coalesce(sum(amount_micro_mxn), 0) FROM credit_transactions WHERE type = 'refund'"
        ((refunded,),) = sql(self.url, of_refunds)
        return int(charged) - int(refunded)


def failures(name: str) -> float:
    """Read how many requests to a sink have failed in this process."""
    return REGISTRY.get_sample_value("ghub_sink_failures_total", {"sink": name}) or 0.0


async def until_another_fails(name: str) -> None:
    """Wait until a request to the sink has failed."""
    before = failures(name)
    for _ in range(4_000):
        if failures(name) > before:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("nothing has failed for 20 s")


def once(taken: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Remove repeats by id; each must be the same, its time included."""
    found: dict[str, dict[str, Any]] = {}
    for one in taken:
        assert found.setdefault(one["id"], one) == one
    return found


def sum_of(taken: list[dict[str, Any]]) -> int:
    """Add up, in micro-MXN, what is left after repeats are removed."""
    return sum(parse_mxn(one["amount_mxn"]) for one in once(taken).values())


@asynccontextmanager
async def outgoing(url: str, folder: Path, *, org: bool = True) -> AsyncIterator[Outgoing]:
    """Open a migrated ledger, and make its one organisation."""
    ledger = open_ledger(url)
    try:
        await ledger.migrate()
        if org:
            await ledger.create_org(Org(ORG, "acme", "default", utc_now().isoformat()), ACT)
        yield Outgoing(ledger, url, folder)
    finally:
        await ledger.aclose()
