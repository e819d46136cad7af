"""Every alert fires if its cause is there, and none at peace: real processes, read by a real Prometheus.

The rules are production's, printed with shorter windows and waits. What takes minutes there takes seconds here.
"""

import asyncio
import os
import resource
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
from redis import Redis

from docs.alerts import ALERTS
from metering.background import cancel_all
from metering.clock import period_at, previous_month, unix_us_at, utc_now
from metering.money import parse_mxn
from metering.ports import LATEST, WebhookCall, WebhookEnd
from metering.wallet import keys
from proxy.backends import Backends
from proxy.server.descriptors import FILES_EACH, RESERVED_FILES
from tests.conftest import run
from tests.e2e.conftest import Prepared
from tests.e2e.test_background import SWITCH, faulty_projection
from tests.e2e.test_store_outage import storing_in
from tests.integration.conftest import Receivers
from tests.integration.conftest import receivers as receivers
from tests.kits.backups import backup, restore
from tests.kits.disks import failing
from tests.kits.metrics import scrape
from tests.kits.ports import free_port
from tests.kits.processes import Forked, executed
from tests.kits.sinks import TOKEN, table
from tests.kits.system import FLUX, GPT, System, wait_until
from tests.kits.watched import PROMPTS, Watched, answers, order
from tests.long import long
from tests.stores.running import SupabaseProcess, frozen

SCALE, SCRAPE_MS = 1 / 80, 500
"""Five minutes are 3.75 s: seven looks of this Prometheus, and half a second is time to answer it under a CPU limit."""

GROK, SLOW = "xai/grok-2-image", "fal/flux-1.1-pro-ultra"
FEW_CONNECTIONS = 1_500
FEW_FILES = RESERVED_FILES + FILES_EACH * FEW_CONNECTIONS
"""With so many files so many connections are all: more than the crowd of this test has."""

NO_LIMITS = {"in_flight": 1_000_000, "requests_per_minute": 1_000_000, "images_per_minute": 1_000_000}

ROOT = Path(__file__).parents[2]


def few_files() -> None:
    """Called in the new process: it may open no more."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_FILES, FEW_FILES))


def faulty_gateway(disk: Path) -> None:
    """Called in the new process: its disk and its projection fail when a test says so, and it has few connections."""
    few_files()
    faulty_projection()
    failing(disk)()


@contextmanager
def throttled(pid: int, stopped_s: float, runs_s: float) -> Iterator[None]:
    """A process stands still again and again, as under a CPU limit."""
    over = threading.Event()

    def throttle() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(stopped_s)
            os.kill(pid, signal.SIGCONT)
            over.wait(runs_s)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(throttle)
        try:
            yield
        finally:
            over.set()
            done.result()


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Nobody writes to the ledger meanwhile."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        yield
        db.execute("ROLLBACK")


class Causes:
    """What each alert is for, made in a system of its own: one function for those that one cause makes fire."""

    def __init__(self, system: System, watched: Watched, receiver_mode: Callable[[str], None]) -> None:
        self._system = system
        self._watched = watched
        self._receiver_mode = receiver_mode
        self._disk = system.folder / "disk"
        self._models = system.folder / "models.toml"
        self._org, self._key = system.customer("causes", "5000.00", **NO_LIMITS)

    def start(self) -> None:
        """Everything, well."""
        begin = partial(Forked, before=partial(faulty_gateway, self._disk))
        self._watched.start(self._system, "consumer-a", "consumer", RECEIVER_TOKEN=TOKEN)
        self._watched.start(self._system, "gateway-0", "gateway", begin)

    def peace(self) -> None:
        """Orders of three wires, and one that is refused."""
        assert [order(self._system, self._key, model).status_code for model in (FLUX, GPT, FLUX, SLOW)] == [200] * 4
        assert order(self._system, self._key, "no/such-model").status_code == 404

    def counters(self) -> None:
        """Things of which each alone is told: they are made one after the other, and seen together."""
        system = self._system
        self._receiver_mode("refuse")
        system.back(self._tell)
        with Redis.from_url(system.valkey.url) as redis:
            redis.xadd(keys.OrgKeys(self._org).events, {b"opened": b"\xff\x00"})
        assert order(system, self._key, GROK).status_code == 200  # its reply names seven times of our price
        poor, key = system.customer("poor", "1.26")

        async def take(back: Backends) -> None:
            await back.accounts.add_credit(poor, "taken-back", "adjustment", -parse_mxn("1.26"))

        system.behave(SLOW, "slow", seconds=2)
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(order, system, key, SLOW)
            wait_until(lambda: any(job["state"] == "running" for job in system.jobs(SLOW)), "it is being made")
            system.back(take)
            assert answer.result().status_code == 200
        system.behave(FLUX, "http_500", times=None)

        def fail() -> None:
            assert order(system, self._key, FLUX).status_code == 502

        self._watched.until_fired("GhubUpstreamFailing", "GhubOrdersFailing", keep_on=fail)
        self._watched.until_fired("GhubEventsSetAside", "GhubCostAboveQuote", "GhubBalanceBelowZero")
        system.behave(FLUX, "ok", times=None)

    def crowd(self) -> None:
        """More connections than there may be; then more orders than a process can serve that gets a fifth of a core."""
        system = self._system
        held = [socket.create_connection(("127.0.0.1", system.port)) for _ in range(FEW_CONNECTIONS + 8)]
        self._watched.until_fired("GhubConnectionsFull")
        for one in held:
            one.close()

    def overload(self) -> None:
        """A CPU limit makes the loop late; under a hard one more orders come than can be served."""
        system = self._system
        pid = system.processes["gateway-0"].pid
        for alert, per_s, (stopped_s, runs_s) in (
            ("GhubLoopLate", 100.0, (0.15, 0.15)),
            ("GhubOrdersTurnedAway", 150.0, (0.3, 0.1)),
        ):
            with throttled(pid, stopped_s, runs_s), self._crowd(per_s):
                self._watched.until_fired(alert)
        wait_until(lambda: order(system, self._key, FLUX).status_code == 200, "orders are taken again")

    @contextmanager
    def _crowd(self, per_s: float) -> Iterator[None]:
        """So many orders a second, each on its own connection; at the end those that wait hang up."""
        over = threading.Event()

        async def come() -> None:
            async with self._system.client(self._key) as client:

                async def one() -> None:
                    body = {"model": FLUX, "prompt": f"crowd {next(PROMPTS)}"}
                    with suppress(httpx2.TransportError):  # the gateway may cut off whom it has no place for
                        await client.post("/images/generations", json=body)

                orders = []
                while not over.is_set():
                    orders.append(asyncio.create_task(one()))
                    await asyncio.sleep(1 / per_s)
                await cancel_all(orders)

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(run, come())
            try:
                yield
            finally:
                over.set()
                done.result()

    def ledger_away(self) -> None:
        """The ledger takes no write while orders are answered."""
        with locked(self._system.environment["GHUB_LEDGER_URL"]):
            assert order(self._system, self._key, FLUX).status_code == 200
            self._watched.until_fired("GhubConsumerBehind", "GhubAnswersWait")

    def redis(self) -> None:
        """Nearly full, then away."""
        with Redis.from_url(self._system.valkey.url) as redis:
            redis.config_set("maxmemory", int(redis.info("memory")["used_memory"] * 1.13))
            self._watched.until_fired("GhubRedisFull")
            redis.config_set("maxmemory", 0)
        self._system.valkey.stop()
        self._watched.until_fired("GhubRedisAway")
        self._system.valkey.start()
        wait_until(lambda: order(self._system, self._key, FLUX).status_code == 200, "orders are taken again")

    def disk(self) -> None:
        """The journal's disk is full while orders are being made."""
        system = self._system
        system.behave(SLOW, "slow", times=3, seconds=1)
        with ThreadPoolExecutor() as pool:
            before = len(system.jobs(SLOW))
            answers = [pool.submit(order, system, self._key, SLOW) for _ in range(3)]
            wait_until(lambda: len(system.jobs(SLOW)) == before + 3, "they are being made")
            self._disk.write_text("short")
            assert {answer.result().status_code for answer in answers} == {503}
        self._watched.until_fired("GhubJournalNotWritable", "GhubJournalRoom", "GhubNotReady", "GhubChargedAfterError")
        self._disk.unlink()

    def background(self) -> None:
        """A bug in the projection."""
        (self._system.folder / SWITCH).touch()
        self._watched.until_fired("GhubBackgroundFault")
        (self._system.folder / SWITCH).unlink()
        wait_until(lambda: order(self._system, self._key, FLUX).status_code == 200, "orders are taken again")

    def restored(self) -> None:
        """A backup is put back."""
        url = self._system.environment["GHUB_LEDGER_URL"]
        copy, booked = backup(url), self._booked()
        assert order(self._system, self._key, FLUX).status_code == 200
        wait_until(lambda: self._booked() > booked, "it is booked")
        restore(copy, url)
        self._watched.until_fired("GhubLedgerRestored")

    def config(self) -> None:
        """A file of models that is wrong."""
        whole = self._models.read_text()
        self._models.write_text(whole + "\n[models")
        self._watched.until_fired("GhubConfigRefused")
        self._models.write_text(whole)

    def leave_journal(self) -> None:
        """Another gateway dies, and nobody starts on its volume again. It takes a minute until all say so."""
        port, usual = free_port(), self._system.begin
        self._system.begin = executed
        more = {"GHUB_PORT": str(free_port()), "GHUB_JOURNAL_DIR": str(self._system.folder / "journal-9")}
        self._system.start("gateway-9", "serve", GHUB_METRICS_PORT=str(port), **more)
        self._system.begin = usual
        wait_until(lambda: answers(port) and scrape(port)["ghub_ready"] == 1.0, "the other gateway is ready")
        self._system.stop("gateway-9", signal.SIGKILL)

    def orphaned(self) -> None:
        """That journal is told of."""
        self._watched.until_fired("GhubJournalsOrphaned", within_s=90.0)

    def restarts(self) -> None:
        """A consumer that starts four times, and is gone; then the gateway, too."""
        for _ in range(4):
            self._system.stop("consumer-a", signal.SIGKILL)
            self._watched.start(self._system, "consumer-a", "consumer", RECEIVER_TOKEN=TOKEN)
        self._watched.until_fired("GhubProcessRestarts")
        self._system.stop("consumer-a", signal.SIGKILL)
        self._system.stop("gateway-0", signal.SIGKILL)
        self._watched.until_fired("GhubConsumersAbsent", "GhubGatewaysAbsent", "GhubTargetDown")

    async def _tell(self, back: Backends) -> None:
        """Two webhooks of an order: one was given up, and nobody here has the key to deliver the other."""
        at = utc_now()
        url = "https://hooks.example.mx/"
        calls = [WebhookCall(self._org, "balance.low", subject, "{}", url) for subject in ("late", "given up")]
        await back.ledger.call_webhooks(calls, at)
        (row, _) = await back.ledger.webhook_deliveries(self._org, "waiting", (LATEST, ""))
        await back.ledger.conclude_webhooks([WebhookEnd(row.delivery_id, "set_aside", at, at, at, "it answers 503")])

    def sinks(self) -> None:
        """One receiver refuses, the other has been away since the beginning; nobody has delivered webhooks."""
        self._watched.until_fired("GhubSinkRefused", "GhubSinkBehind", "GhubWebhooksSetAside", "GhubWebhooksWait")

    def _booked(self) -> int:
        with closing(sqlite3.connect(self._system.environment["GHUB_LEDGER_URL"].removeprefix("sqlite:///"))) as db:
            (count,) = db.execute("SELECT count(*) FROM events").fetchone()
            return int(count)


def store_of_its_own(system: System, watched: Watched, store: SupabaseProcess) -> None:
    """A second gateway whose month has no rate (the last one's holds for long), and whose store freezes and dies."""
    system.valkey.start()
    system.start("simulator", "simulate", "--port", str(system.simulator_port), "--latency-scale", "0")
    watched.start(system, "gateway-b", "gateway")
    _, key = system.customer("store", "500.00", **NO_LIMITS)
    watched.until_fired("GhubFxRateMissing")
    system.behave(GPT, "ok", times=2, bytes=45_000_000)
    with ThreadPoolExecutor(8) as pool:
        with frozen(store.process):
            large = [pool.submit(order, system, key, GPT) for _ in range(2)]
            watched.until_fired("GhubSpoolFull")
        for answer in large:
            answer.result()
        system.behave(FLUX, "slow", times=8, seconds=1)
        before = len(system.jobs(FLUX))
        small = [pool.submit(order, system, key, FLUX) for _ in range(8)]
        wait_until(lambda: len(system.jobs(FLUX)) == before + 8, "they are being made")
        store.kill()
        watched.until_fired("GhubStoreFailing")
        store.start()
        for answer in small:
            answer.result()
    watched.forget("gateway-b")
    system.stop_all()


@long
def test_each_alert_fires_on_its_cause_and_none_at_peace(
    prepared: Prepared, receivers: Receivers, tmp_path: Path
) -> None:
    """All of them, in two systems, read by one Prometheus. Some causes are crowds, and need idle cores."""
    system = prepared()
    refusing, sinks = receivers("structured"), system.folder / "sinks.toml"
    sinks.write_text(table("structured", refusing.url) + table("lago", f"http://127.0.0.1:{free_port()}"))
    models = (ROOT / "config/models.toml").read_text()
    assert 'usd_per_image = "0.07"' in models
    (system.folder / "models.toml").write_text(models.replace('usd_per_image = "0.07"', 'most_usd_per_image = "0.01"'))
    system.environment |= {"GHUB_MODELS": str(system.folder / "models.toml"), "GHUB_SINKS": str(sinks)}
    watched = Watched(tmp_path / "prometheus", SCALE, SCRAPE_MS)
    store = SupabaseProcess(tmp_path)
    store.start()
    month = previous_month(period_at(unix_us_at(utc_now())).month)
    second = prepared(month=month, GHUB_FX_GRACE_H="800", GHUB_SPOOL_MB="64", **storing_in(store))
    system.valkey.start()
    system.start("simulator", "simulate", "--port", str(system.simulator_port), "--latency-scale", "0")
    causes = Causes(system, watched, refusing.mode)
    try:
        causes.start()
        watched.prometheus.start(2)
        causes.peace()
        time.sleep(4 * SCRAPE_MS / 1000)
        assert watched.prometheus.fired() == set()
        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(store_of_its_own, second, watched, store)
            timed(causes.leave_journal)
            for cause in (causes.counters, causes.crowd, causes.ledger_away, causes.redis):
                timed(cause)
            timed(causes.overload)
            timed(beside.result)
        for cause in (causes.disk, causes.background, causes.restored, causes.sinks, causes.orphaned):
            timed(cause)
        timed(causes.config)
        timed(causes.restarts)
        assert watched.prometheus.fired() == {alert.name for alert in ALERTS}
    finally:
        watched.prometheus.stop()
        store.kill()


def timed(cause: Callable[[], Any]) -> None:
    """Make one cause, and say how long it took."""
    began_s = time.monotonic()
    cause()
    print(f"{getattr(cause, '__name__', cause)}: {time.monotonic() - began_s:.1f} s")
