"""Gateways behind a real proxy, restarted in turn under load, and processes of theirs killed: nobody else notices.

What a platform does is done here in its order: the proxy is told that a pod leaves, a pause later the pod gets SIGTERM,
and it is led to again when its `/readyz` says so. `make test` takes seconds of short orders. Two minutes of orders that
take 5 to 20 s, and processes that are killed while gateways are restarted:

    LONG=1 python -m pytest -s tests/e2e/test_rollout.py
"""

import asyncio
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx2
import openai

from tests.conftest import LOOPBACK, run
from tests.e2e.conftest import Prepared
from tests.e2e.test_processes import children_of, clean, open_journals
from tests.kits.nginx import Nginx
from tests.kits.ports import free_port
from tests.kits.system import FLUX, GPT, System, wait_until
from tests.long import LONG

LOAD_S = 120.0 if LONG else 6.0
ORDER_S = (5.0, 20.0) if LONG else (0.3, 1.5)
CLIENTS = 40 if LONG else 12
PRE_STOP_S = 10.0 if LONG else 1.0
"""The platform's own pause, `preStop` of k8s/base; an nginx on the same machine needs less."""

KILLS_S = (3.0, 10.0) if LONG else (1.0, 4.0)
"""Pauses between two kills."""

SOON_S = 2.0
"""By when the client of a process that was killed has noticed, on a machine that is busy with other tests."""

SETTLES_S = 180.0


@dataclass
class Pod:
    """A gateway with a port and a journal that outlive it."""

    system: System
    name: str
    processes: int
    port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    killed: bool = False

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        self.killed = False
        self.system.start(
            self.name,
            *("serve", "--processes", str(self.processes)),
            GHUB_PORT=str(self.port),
            GHUB_METRICS_PORT=str(self.metrics_port),
            GHUB_JOURNAL_DIR=str(self.system.folder / f"journal of {self.name}"),
        )
        wait_until(self.is_ready, f"{self.name} is ready")

    def stop(self) -> None:
        """SIGTERM; its exit code is 0 unless a process of it was killed while it drained."""
        draining = self.system.processes[self.name]
        self.killed = False
        draining.send_signal(signal.SIGTERM)
        code = draining.wait(timeout=100)
        del self.system.processes[self.name]
        assert code == 0 or self.killed, self.system.log(self.name)[-2000:]

    def kill_one(self) -> bool:
        """Kill a process of it with −9; False if it has none at this moment."""
        process = self.system.processes.get(self.name)
        pids = list(children_of(process.pid).values()) if process is not None else []
        if not pids:
            return False
        self.killed = True
        os.kill(random.choice(pids), signal.SIGKILL)
        return True

    def is_ready(self) -> bool:
        try:
            return httpx2.get(f"http://127.0.0.1:{self.metrics_port}/readyz", **LOOPBACK).status_code == 200
        except httpx2.TransportError:
            return False

    def is_settled(self) -> bool:
        """True if all its processes serve, and the ledger has every order that they have answered."""
        page = httpx2.get(f"http://127.0.0.1:{self.metrics_port}/metrics", **LOOPBACK).text
        sums: dict[str, float] = defaultdict(float)
        for name, value in (line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#")):
            sums[name.partition("{")[0]] += float(value)
        serving = sums["ghub_processes"] if self.processes > 1 else 1
        return serving == self.processes and sums["ghub_journal_open_orders"] == 0


@dataclass
class Placed:
    """An order as its client saw it: its id, or why it failed. Times are of `time.monotonic`."""

    number: int
    began_s: float
    ended_s: float = 0.0
    order_id: UUID | None = None
    images: int = 0
    why: str = ""


@dataclass
class World:
    """Pods behind a proxy, and a customer."""

    system: System
    proxy: Nginx
    pods: list[Pod]
    org_id: str
    key: str
    restarts: int = 0
    kills_s: list[float] = field(default_factory=list)

    def roll(self, over: threading.Event) -> None:
        """Restart the pods in turn: each at least once, and on until it is `over`. One that is alone stays."""
        turn = 0
        while len(self.pods) > 1 and (turn < len(self.pods) or not over.is_set()):
            pod = self.pods[turn % len(self.pods)]
            self.proxy.route([one.port for one in self.pods if one is not pod])
            time.sleep(PRE_STOP_S)
            pod.stop()
            pod.start()
            self.proxy.route([one.port for one in self.pods])
            self.restarts += 1
            turn += 1

    def kill(self, over: threading.Event) -> None:
        """Kill processes at random moments until it is `over`."""
        while not over.wait(random.uniform(*KILLS_S)):
            if random.choice(self.pods).kill_one():
                self.kills_s.append(time.monotonic())

    async def load(self, done: threading.Event) -> list[Placed]:
        """Place orders by official clients that retry nothing, each on a connection of its own, until `done`."""
        placed: list[Placed] = []
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        base_url = f"http://127.0.0.1:{self.proxy.port}/v1"
        async with (
            httpx2.AsyncClient(**LOOPBACK, limits=limits, timeout=90) as http,
            openai.AsyncOpenAI(base_url=base_url, api_key=self.key, max_retries=0, http_client=http) as sdk,
        ):

            async def client() -> None:
                while not done.is_set():
                    one = Placed(len(placed), time.monotonic())
                    placed.append(one)
                    try:
                        reply = await sdk.images.with_raw_response.generate(
                            model=random.choice((FLUX, GPT)),
                            prompt=f"order {one.number}",
                            extra_headers={"x-request-id": f"order-{one.number}"},
                        )
                    except openai.OpenAIError as error:
                        one.why = f"{error!r} {error.__cause__!r}"[:300]
                    else:
                        body = json.loads(reply.content)
                        one.order_id, one.images = UUID(body["id"].removeprefix("req_")), len(body["data"])
                    one.ended_s = time.monotonic()

            await asyncio.gather(*(client() for _ in range(CLIENTS)))
        return placed

    def answered(self) -> dict[str, int]:
        """Status of every order that any process has answered, by the id that its client gave it."""
        found: dict[str, int] = {}
        for pod in self.pods:
            for text in self.system.log(pod.name).splitlines():
                line: dict[str, Any] = json.loads(text) if text.startswith("{") and text.endswith("}") else {}
                if line.get("event") == "request" and "client_request_id" in line:
                    found[line["client_request_id"]] = line["status"]
        return found


@contextmanager
def world(prepared: Prepared, pods: int, processes: int) -> Iterator[World]:
    """A system with so many pods, all ready."""
    system = prepared()
    system.valkey.start()
    system.start("simulator", "simulate", "--port", str(system.simulator_port), "--latency-scale", "0")
    system.start("consumer", "consume")
    made = [Pod(system, f"gateway {number}", processes) for number in range(pods)]
    with ThreadPoolExecutor(pods) as starts:
        list(starts.map(Pod.start, made))
    wait_until(lambda: system._answers(f"{system.simulator}/_sim/jobs"), "the simulator is ready")
    for model in (FLUX, GPT):
        steps = [{"scenario": "slow", "seconds": round(random.uniform(*ORDER_S), 2)} for _ in range(100)]
        for _ in range(20):
            body = {"model": model, "sequence": steps, "same": True}
            httpx2.put(f"{system.simulator}/_sim/behaviour", json=body, **LOOPBACK).raise_for_status()
    org_id, key = system.customer("acme", "50000.00", requests_per_minute=100_000, images_per_minute=100_000)
    proxy = Nginx(system.folder / "nginx", [pod.port for pod in made])
    try:
        yield World(system, proxy, made, org_id, key)
    finally:
        proxy.stop()


def run_under_load(there: World, *, kill: bool) -> list[Placed]:
    """Load for LOAD_S and until every pod was restarted; returns what the clients saw."""
    over, done = threading.Event(), threading.Event()

    async def work() -> list[Placed]:
        load = asyncio.create_task(there.load(done))
        rolling = asyncio.create_task(asyncio.to_thread(there.roll, over))
        killing = asyncio.create_task(asyncio.to_thread(there.kill, done)) if kill else None
        try:
            await asyncio.sleep(LOAD_S)
            over.set()
            await rolling
        finally:
            over.set()
            done.set()
            if killing is not None:
                await killing
        return await load

    return run(work())


def settle(there: World) -> None:
    """Wait until the ledger has all that was answered, and stop every pod."""
    wait_until(lambda: all(pod.is_ready() for pod in there.pods), "all are ready", SETTLES_S)
    wait_until(lambda: all(pod.is_settled() for pod in there.pods), "every answered order is booked", SETTLES_S)
    alive = sum(pod.processes for pod in there.pods)
    wait_until(lambda: open_journals(there.system) == alive, "journals of the dead are replayed", SETTLES_S)
    with ThreadPoolExecutor(len(there.pods)) as stops:
        list(stops.map(Pod.stop, there.pods))
    assert open_journals(there.system) == 0


def check_books(there: World, placed: list[Placed]) -> int:
    """Every order that was answered is charged once and has its images; returns how many others are charged."""
    system = there.system
    assert clean(system), system.ghub("verify").stdout
    charges = Counter(
        UUID(event.event_id) for event in system.back(lambda back: _events(back, there.org_id)) if event.end == "charge"
    )
    answered = {one.order_id: one for one in placed if one.order_id is not None}
    assert set(charges.values()) == {1} and answered.keys() <= charges.keys()
    stored: Counter[UUID | None] = Counter(
        UUID(path.split("/")[1]) for path in system.images() if path.split("/")[0] == there.org_id
    )
    assert all(one.images and stored[order_id] == one.images for order_id, one in answered.items())
    assert charges.keys() <= stored.keys()
    return len(charges) - len(answered)


async def _events(back: Any, org_id: str) -> list[Any]:
    return [event async for event in back.ledger.events(org_id=org_id)]


def test_a_rolling_restart_fails_no_request(prepared: Prepared) -> None:
    """Three gateways in turn: every order is answered 200, and no journal is left."""
    with world(prepared, pods=3, processes=1) as there:
        placed = run_under_load(there, kill=False)
        settle(there)
    failed = [one for one in placed if one.order_id is None]
    print(f"{len(placed)} orders, {len(failed)} failed; {there.restarts} restarts", file=sys.stderr)
    assert failed == []
    assert check_books(there, placed) == 0


def test_of_processes_that_are_killed_meanwhile_only_their_own_requests_fail(prepared: Prepared) -> None:
    """Of gateways of two processes, also while those drain or start: what failed was in a killed one, nothing else."""
    with world(prepared, pods=3 if LONG else 1, processes=2) as there:
        placed = run_under_load(there, kill=True)
        settle(there)
    failed = [one for one in placed if one.order_id is None]
    answered = there.answered()
    unseen = check_books(there, placed)
    print(
        f"{len(placed)} orders, {len(failed)} failed, {unseen} of them charged; {there.restarts} restarts,"
        f" {len(there.kills_s)} kills",
        file=sys.stderr,
    )
    assert there.kills_s
    for one in failed:
        assert any(one.began_s < at_s + 0.5 and -0.5 < one.ended_s - at_s < SOON_S for at_s in there.kills_s), one
    # Whoever answers writes a line; a killed process wrote none about what it was working on.
    assert [(one.why, answered[f"order-{one.number}"]) for one in failed if f"order-{one.number}" in answered] == []
    assert all(answered[f"order-{one.number}"] == 200 for one in placed if one.order_id is not None)
    assert unseen <= len(failed)
