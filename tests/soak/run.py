"""A gateway, a consumer, upstreams and Valkey as real processes under steady load, watched by Prometheus."""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import httpx2
from redis import Redis

from docs.dashboard import PANELS, Query
from tests.conftest import LOOPBACK, run
from tests.kits.postgres import FAST, PostgresServer
from tests.kits.processes import Begin, executed
from tests.kits.prometheus import Prometheus, Series
from tests.kits.system import FLUX, GPT, System, prepare
from tests.kits.watched import Watched, plain
from tests.soak.record import Line, Points, Record

GROK, FAILING = "xai/grok-2-image", "fal/sd-3.5-large"
MIX = (*(FLUX,) * 24, *(GPT,) * 12, *(GROK,) * 11, FAILING, "no/such-model", "too dear")
"""Models of fifty orders: by URL, inline, in one call; then one each that fails upstream, that there is not, and that
its customer cannot pay."""

NO_LIMITS = {"in_flight": 100_000, "requests_per_minute": 1_000_000, "images_per_minute": 1_000_000}
LATENCY_SCALE = 0.2
"""Of the published latencies: pictures take one to five seconds."""

POINTS = 300
"""Of each series, whatever the length of the run."""

PREPARED_ORDERS = 60
"""Placed at once before the load begins: threads, connections and caches are there then."""

FORGET_S = 20.0
"""How often the simulator forgets its jobs, which it keeps for tests."""

GONE_S = 90.0
"""For the last orders, and until their events are booked."""


def soak(
    folder: Path,
    seconds: float,
    orders_per_s: float,
    *,
    begin: Begin = executed,
    latency_scale: float = LATENCY_SCALE,
    tell: Callable[[str], None] = print,
) -> Record:
    """Run it. Its logs and Prometheus' storage stay in `folder`.

    The ledger is PostgreSQL, as in production: SQLite's own cache of pages grows with the ledger, up to its bound.
    """
    (folder / "system").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as place:  # PostgreSQL runs as another user where we are root
        postgres = PostgresServer(Path(place), *FAST)
        postgres.start()
        try:
            with postgres.database() as url:
                system = prepare(folder / "system", GHUB_LEDGER_URL=url)
                return _soaked(system, folder, seconds, orders_per_s, begin, latency_scale, tell)
        finally:
            postgres.kill()


def _soaked(
    system: System,
    folder: Path,
    seconds: float,
    orders_per_s: float,
    begin: Begin,
    latency_scale: float,
    tell: Callable[[str], None],
) -> Record:
    scrape_ms = 250 if seconds < 60 else 1000
    watched = Watched(folder / "prometheus", scrape_ms=scrape_ms)
    try:
        system.valkey.start()
        system.start(
            "simulator", "simulate", "--port", str(system.simulator_port), "--latency-scale", f"{latency_scale:g}"
        )
        watched.start(system, "consumer-0", "consumer")
        watched.start(system, "gateway-0", "gateway", begin)
        _, key = system.customer("soak", "1000000.00", **NO_LIMITS)
        _, poor = system.customer("poor", "0.10", **NO_LIMITS)
        system.behave(FAILING, "http_500", times=None)
        watched.prometheus.start(2)
        load = Load(system, key, poor)
        run(load.prepare())
        tell("load begins")
        began_s = time.time()
        redis = run(load.steady(seconds, orders_per_s))
        ended_s = began_s + seconds  # the last orders end after it
        tell("load has ended")
        verify = _verified(system)
        step_s = max(scrape_ms / 1000, seconds / POINTS)
        over = Span(watched.prometheus, began_s, ended_s, step_s, rate_s=max(4 * scrape_ms / 1000, 2 * step_s))
        return Record(
            seconds,
            orders_per_s,
            {str(status): many for status, many in load.answers.items()},
            {**over.processes(), **redis},
            over.panels(),
            verify,
        )
    finally:
        watched.prometheus.stop()
        system.stop_all()


class Load:
    """Orders at a steady rate, whether the earlier ones are answered or not; each is another."""

    def __init__(self, system: System, key: str, poor: str) -> None:
        self._system = system
        self._keys = {"too dear": poor}
        self._key = key
        self._numbers = count()
        self.answers: Counter[int] = Counter()

    async def prepare(self) -> None:
        """Place some orders at once; they do not count."""
        async with self._system.client(None) as client:
            await asyncio.gather(*(self._order(client, MIX[place % len(MIX)]) for place in range(PREPARED_ORDERS)))
        self.answers.clear()

    async def steady(self, seconds: float, per_s: float) -> dict[str, Points]:
        """Place them, and look at Redis meanwhile; returns what was seen there."""
        seen: dict[str, Points] = {}
        async with self._system.client(None) as client, asyncio.TaskGroup() as tasks:
            began_s = time.monotonic()
            looking = tasks.create_task(self._look(began_s, max(0.5, seconds / POINTS), seen))
            orders = []
            for place in range(round(seconds * per_s)):
                await asyncio.sleep(max(0.0, began_s + place / per_s - time.monotonic()))
                orders.append(asyncio.create_task(self._order(client, MIX[place % len(MIX)])))
                orders = [one for one in orders if not one.done()]
            looking.cancel()
            await asyncio.wait(orders, timeout=GONE_S)
        return seen

    async def _order(self, client: httpx2.AsyncClient, model: str) -> None:
        headers = {"authorization": f"Bearer {self._keys.get(model, self._key)}"}
        body = {"model": FLUX if model in self._keys else model, "prompt": f"soak {next(self._numbers)}"}
        try:
            reply = await client.post("/images/generations", json=body, headers=headers)
            self.answers[reply.status_code] += 1
        except httpx2.TransportError:
            self.answers[0] += 1

    async def _look(self, began_s: float, every_s: float, seen: dict[str, Points]) -> None:
        """Read Redis' own figures, and have the simulator forget what it made."""
        forget_s = began_s
        with Redis.from_url(self._system.valkey.url) as redis:
            while True:
                info, now_s = await asyncio.to_thread(redis.info), time.monotonic()
                keyspace = info.get("db0", {"keys": 0, "expires": 0})
                for name, value in (
                    ("keys of Redis without an end", keyspace["keys"] - keyspace["expires"]),
                    ("keys of Redis that expire", keyspace["expires"]),
                    ("memory of Redis", info["used_memory"]),
                ):
                    seen.setdefault(name, []).append((now_s - began_s, value))
                if now_s - forget_s > FORGET_S:
                    forget_s = now_s
                    await asyncio.to_thread(partial(httpx2.delete, f"{self._system.simulator}/_sim/jobs", **LOOPBACK))
                await asyncio.sleep(every_s)


class Span:
    """Prometheus' answers about one time, from the beginning of the load."""

    def __init__(self, prometheus: Prometheus, start_s: float, end_s: float, step_s: float, rate_s: float) -> None:
        self._prometheus = prometheus
        self._start_s, self._end_s, self._step_s = start_s, end_s, step_s
        self._rate_s = rate_s

    def processes(self) -> dict[str, Points]:
        """Memory, descriptors and tasks of gateway and consumer."""
        found = {}
        for pod in ("gateway", "consumer"):
            for name, metric in (
                ("memory", "process_resident_memory_bytes"),
                ("descriptors", "process_open_fds"),
                ("tasks", "ghub_tasks"),
            ):
                (series,) = self._ask(f'{metric}{{pod="{pod}-0"}}')
                found[f"{name} of the {pod}"] = self._points(series)
        return found

    def panels(self) -> dict[str, list[Line]]:
        """The dashboard's panels, all of them."""
        return {panel.title: [line for query in panel.queries for line in self._lines(query)] for panel in PANELS}

    def _lines(self, query: Query) -> list[Line]:
        found = []
        for series in self._ask(plain(query.expr, self._rate_s)):
            legend = query.legend
            for name, value in series["metric"].items():
                legend = legend.replace(f"{{{{{name}}}}}", value)
            found.append(Line(legend, self._points(series)))
        return found

    def _ask(self, expr: str) -> list[Series]:
        return self._prometheus.query_range(expr, self._start_s, self._end_s, self._step_s)

    def _points(self, series: Series) -> Points:
        values = [(at_s - self._start_s, float(value)) for at_s, value in series["values"]]
        return [(at_s, value) for at_s, value in values if value == value]  # NaN: nothing to divide by


def _verified(system: System) -> str:
    """What `ghub verify` says, once the last events are booked."""
    until_s = time.monotonic() + GONE_S
    while True:
        done = system.ghub("verify")
        if done.returncode == 0 or time.monotonic() > until_s:
            return "ok" if done.returncode == 0 else (done.stdout + done.stderr).strip()
        time.sleep(1.0)
