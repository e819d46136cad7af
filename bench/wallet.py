"""What an order costs Redis: its round trips, the server's time for its two scripts, and how many one core admits.

Round trips are counted where they arrive: Valkey's MONITOR tells the gateway's commands from all others, because the
gateway alone comes over TCP. An order's commands name its organisation, its key or its hold; all others are sent by the
clock (heartbeats, looks at the projection), however many orders there are.

The machine may have other work, so of each round of scripts the hundred counts that was disturbed least.
"""

import random
import socket
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
from redis import Redis
from redis.exceptions import ConnectionError as NoConnection
from rich.console import Console
from rich.progress import Progress

from bench.admissions import ALLOCATOR, Command, Filled, filled
from bench.figures import Figure
from tests.conftest import LOOPBACK, run
from tests.kits.ports import free_port
from tests.kits.processes import executed
from tests.kits.system import FLUX, System, bearer, prepare

MAX_ROUND_TRIPS = 2
MAX_US = 60
LEAST_PER_S = 10_000

ORDERS, WARM, IN_A_ROUND = 200, 10, 50
RATES = {"requests_per_minute": 100_000, "images_per_minute": 100_000}
SAID_S = 0.5
"""Until the monitor has said everything."""

ORGS = 100
ROUNDS = 9
OF_A_ROUND = 1_000
AT_ONCE = 2_000
"""Admissions in one piece for the server: two pieces wait for it while the client reads the replies to a third."""

REPLY, REPLY_END = b"*16\r\n", b"\r\n:0\r\n:0\r\n"
"""How the reply of an admission begins and ends; then follows its verdict, 1 if it is admitted."""


def measure() -> list[Figure]:
    """Measure all of it; half a minute."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("counting round trips")
        trips = round_trips()
        progress.update(task, description="measuring scripts")
        with tempfile.TemporaryDirectory(prefix="ghub-") as folder, filled(Path(folder), ORGS) as server:
            admission_us, settlement_us, per_s = run(scripts(server))
    return [
        Figure("round trips of a warm order", "commands", trips, most=MAX_ROUND_TRIPS),
        Figure(f"an admission, on the server, {ALLOCATOR}", "µs", admission_us, most=MAX_US),
        Figure(f"a settlement, on the server, {ALLOCATOR}", "µs", settlement_us, most=MAX_US),
        Figure("admissions on one core of Valkey", "1/s", per_s, least=LEAST_PER_S),
    ]


def round_trips() -> list[float]:
    """Count the gateway's commands for each of 200 orders that come one after the other."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        system, port = prepare(Path(folder), GHUB_FAL_MODE="direct"), free_port()
        system.begin = executed
        try:
            system.valkey.start("--port", str(port))
            system.start("simulator", "simulate", "--port", str(system.simulator_port), "--latency-scale", "0")
            system.start("consumer", "consume")
            system.start_gateway(GHUB_REDIS_URL=f"redis://127.0.0.1:{port}")
            return _count(system, *system.customer("bench", "1000.00", **RATES))
        finally:
            system.stop_all()


def _count(system: System, org_id: str, key: str) -> list[float]:
    of_orders: list[str] = []

    def watch() -> None:
        with Redis.from_url(system.valkey.url) as redis, redis.monitor() as monitor, suppress(NoConnection):
            for seen in monitor.listen():  # until the server is stopped
                if seen["client_type"] == "tcp" and any(
                    name in seen["command"] for name in (org_id, ":key:", ":hold:")
                ):
                    of_orders.append(seen["command"])

    def order(number: int) -> None:
        reply = client.post("/images/generations", json={"model": FLUX, "prompt": f"plaza {number}"})
        assert reply.status_code == 200, reply.text

    threading.Thread(target=watch, daemon=True).start()
    rounds = []
    with httpx2.Client(base_url=system.url, headers=bearer(key), timeout=60, **LOOPBACK) as client:
        for number in range(WARM):
            order(number)
        for first in range(WARM, WARM + ORDERS, IN_A_ROUND):
            time.sleep(SAID_S)
            before = len(of_orders)
            for number in range(first, first + IN_A_ROUND):
                order(number)
            time.sleep(SAID_S)
            rounds.append((len(of_orders) - before) / IN_A_ROUND)
    return rounds


async def scripts(server: Filled) -> tuple[list[float], list[float], list[float]]:
    """Measure the server's µs for an admission and for a settlement, and admissions per second, by round."""
    admission_us: list[float] = []
    settlement_us: list[float] = []
    per_s: list[float] = []
    await server.fill(lambda done: None)
    for number in range(ROUNDS + 1):  # the first one warms up and does not count
        admissions, settlements = await server.orders(OF_A_ROUND, random.Random(number))
        admission_us.append(min(await server.server_us(admissions)))
        settlement_us.append(min(await server.server_us(settlements)))
        pieces = []
        for piece in range(5):
            admissions, settlements = await server.orders(AT_ONCE, random.Random(f"{number} {piece}"))
            pieces.append(admissions)
        per_s.append(admitted_per_s(server, pieces))
        await server.forget_orders()
    return admission_us[1:], settlement_us[1:], per_s[1:]


def admitted_per_s(server: Filled, pieces: list[list[Command]]) -> float:
    """Give the server one piece after the other, so that it never waits for the client."""
    ready = [packed(piece) for piece in pieces]
    lines = [socket.socket(socket.AF_UNIX) for _ in ready]
    for line in lines:
        line.connect(str(server.server.socket))
    senders = [threading.Thread(target=line.sendall, args=(data,)) for line, data in zip(lines, ready, strict=True)]
    began = time.perf_counter()
    for sender in senders:
        sender.start()
    for line, piece in zip(lines, pieces, strict=True):
        _read(line, len(piece))
    took = time.perf_counter() - began
    for line in lines:
        line.close()
    return sum(map(len, pieces)) / took


def _read(line: socket.socket, replies: int) -> None:
    """Read this many replies, each of which admits."""
    line.settimeout(60)
    read = bytearray()
    while read.count(REPLY) < replies or not read.endswith(REPLY_END):
        read += line.recv(1 << 20)
    assert read.count(REPLY + b":1\r\n") == replies, "not all were admitted"


def packed(commands: list[Command]) -> bytes:
    """Write commands as they go over the wire."""
    return b"".join(map(_packed, commands))


def _packed(command: Command) -> bytes:
    parts: list[Any] = ["EVALSHA", *command]
    texts = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return b"*%d\r\n" % len(texts) + b"".join(b"$%d\r\n%s\r\n" % (len(text), text) for text in texts)
