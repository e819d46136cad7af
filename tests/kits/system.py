"""The whole system as real processes, as small as a test needs it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from config.catalogue import read_catalogue
from config.settings import Settings
from metering.accounts import IssuedKey
from metering.clock import period_at, unix_us_at, utc_now
from metering.events import Event
from metering.money import parse_mxn
from metering.pricing import FxRate
from metering.wallet.connection import WalletAway
from metering.wallet.values import WalletSnapshot
from proxy.backends import Backends, open_back
from proxy.cli.demo import simulated_upstreams
from tests.conftest import LOOPBACK, ValkeyServer, run
from tests.kits.ports import free_port
from tests.kits.processes import Begin, Forked, Process, finished

T = TypeVar("T")

FLUX = "fal/flux-1.1-pro"
FLUX_MXN = "0.84"
GPT = "openai/gpt-image-1"
NINE = {
    GPT,
    "openai/dall-e-3",
    "google/imagen-4",
    "xai/grok-2-image",
    FLUX,
    "fal/flux-1.1-pro-ultra",
    "fal/recraft-v3",
    "fal/ideogram-v2",
    "fal/sd-3.5-large",
}

SUCCESSORS = {name for name, model in read_catalogue(None).models.items() if model.priced} - NINE

WAIT_S = 60.0
"""Maximum time that a test waits for something that must happen: long, because six tests share two cores."""


def wait_until(true: Callable[[], bool], what: str, within_s: float = WAIT_S) -> None:
    """Poll until `true()`, or fail and say what did not happen. A long wait polls seldom, because polling costs CPU."""
    began = time.monotonic()
    while not true():
        waited_s = time.monotonic() - began
        assert waited_s < within_s, f"not within {within_s} s: {what}"
        time.sleep(min(max(0.02, waited_s / 20), 0.2))


@dataclass
class System:
    """Valkey, simulator, consumer and gateway in one folder. Every issued key is remembered for the search."""

    folder: Path
    valkey: ValkeyServer
    environment: dict[str, str]
    port: int
    simulator_port: int
    begin: Begin = Forked
    processes: dict[str, Process] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The gateway's base URL for OpenAI's clients."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def simulator(self) -> str:
        """The simulator's base URL."""
        return f"http://127.0.0.1:{self.simulator_port}"

    # --- processes ---

    def start(self, name: str, *arguments: str, **more: str) -> None:
        """Start a `ghub` command as a process, its output in a log of its name."""
        log = self.folder / f"{name}.log"
        self.processes[name] = self.begin(arguments, {**os.environ, **self.environment, **more}, log, log)

    def start_gateway(self, name: str = "gateway", **more: str) -> None:
        """Start the gateway and wait until it accepts work."""
        self.start(name, "serve", **more)
        wait_until(lambda: self._answers(f"http://127.0.0.1:{self.port}/readyz"), "the gateway is ready")
        wait_until(self.projected, "Redis is projected")

    def start_all(self, latency_scale: str = "0") -> None:
        """Start everything, in order."""
        self.valkey.start()
        self.start("simulator", "simulate", "--port", str(self.simulator_port), "--latency-scale", latency_scale)
        self.start("consumer", "consume")
        self.start_gateway()
        wait_until(lambda: self._answers(f"{self.simulator}/_sim/jobs"), "the simulator is ready")

    def start_all_but_ready(self) -> None:
        """Start everything if the gateway will not be ready: wait until it answers at all."""
        self.valkey.start()
        self.start("simulator", "simulate", "--port", str(self.simulator_port), "--latency-scale", "0")
        self.start("consumer", "consume")
        self.start("gateway", "serve")
        wait_until(lambda: self._answers(f"http://127.0.0.1:{self.port}/healthz"), "the gateway answers")
        wait_until(self.projected, "Redis is projected")
        wait_until(lambda: self._answers(f"{self.simulator}/_sim/jobs"), "the simulator is ready")

    def stop(self, name: str, number: int = signal.SIGTERM) -> int:
        """Signal a process and wait for its end; returns its exit code."""
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(timeout=120)

    def stop_all(self) -> None:
        """End everything at once."""
        for name in list(self.processes):
            self.stop(name, signal.SIGKILL)
        self.valkey.stop()

    def log(self, name: str = "gateway") -> str:
        """Read the log of a process so far."""
        return (self.folder / f"{name}.log").read_text()

    def _answers(self, url: str) -> bool:
        for name, process in self.processes.items():
            assert process.poll() is None, f"{name} ended: {self.log(name)[-2000:]}"
        try:
            return httpx2.get(url, **LOOPBACK).status_code == 200
        except httpx2.TransportError:
            return False

    # --- accounts, as the commands do it ---

    def settings(self) -> Settings:
        """The settings that the processes run with."""
        ours = {name: value for name, value in self.environment.items() if name.startswith("GHUB_")}
        return Settings.model_validate({name.removeprefix("GHUB_").lower(): value for name, value in ours.items()})

    def back(self, work: Callable[[Backends], Coroutine[Any, Any, T]]) -> T:
        """Do `work` with ledger and Redis, in this process."""

        async def opened() -> T:
            async with open_back(self.settings()) as back:
                return await work(back)

        return run(opened())

    def customer(self, name: str, mxn: str = "0.00", **limits: int) -> tuple[str, str]:
        """A new organisation with credit and a key; returns (org id, key)."""

        async def make(back: Backends) -> tuple[str, IssuedKey]:
            org = await back.accounts.create_org(name, "default")
            if parse_mxn(mxn):
                await back.accounts.add_credit(org.org_id, f"pay-{org.org_id}", "recharge", parse_mxn(mxn))
            if limits:
                await back.accounts.set_limits(org.org_id, limits)
            return org.org_id, await back.accounts.create_key(org.org_id, "test")

        org_id, key = self.back(make)
        self.keys.append(key.secret)
        return org_id, key.secret

    def cut(self, org_id: str) -> WalletSnapshot:
        """Read the wallet now. A busy machine may miss the 100 ms that a customer would wait: then retry."""

        async def read(back: Backends) -> WalletSnapshot:
            for _ in range(20):
                with suppress(WalletAway):
                    return await back.wallet().read(org_id)
            raise WalletAway("not in twenty tries")

        return self.back(read)

    def projected(self) -> bool:
        """True if Redis has everything in SQL."""
        with httpx2.Client(**LOOPBACK) as client:
            reply = client.get(f"{self.url}/credits", headers=bearer("ghub_sk_live_" + "0" * 32))
        return reply.status_code == 401

    def events(self, org_id: str, count: int) -> list[Event]:
        """Wait until the ledger has `count` events of an organisation, and read them; more are a failure."""

        async def read(back: Backends) -> list[Event]:
            return [event async for event in back.ledger.events(org_id=org_id)]

        wait_until(lambda: len(self.back(read)) >= count, f"{count} events in the ledger")
        found = self.back(read)
        assert len(found) == count
        return found

    def ghub(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command in this system's environment."""
        return finished(self.begin, arguments, {**os.environ, **self.environment}, within_s=60)

    # --- the customer's and the simulator's side ---

    def client(self, key: str | None, **options: Any) -> httpx2.AsyncClient:
        """A plain HTTP client of this customer that retries nothing."""
        headers = bearer(key) if key else {}
        limits = httpx2.Limits(max_connections=None)
        return httpx2.AsyncClient(base_url=self.url, headers=headers, **LOOPBACK, timeout=90, limits=limits, **options)

    def behave(self, model: str, scenario: str, times: int | None = 1, **more: Any) -> None:
        """Set the simulator's next behaviour for a model."""
        body = {"model": model, "scenario": scenario, "times": times, **more}
        reply = httpx2.put(f"{self.simulator}/_sim/behaviour", json=body, **LOOPBACK)
        assert reply.status_code == 200, reply.text

    def jobs(self, model: str | None = None) -> list[dict[str, Any]]:
        """List every generation that a provider would have billed."""
        params = {"model": model} if model else {}
        jobs: list[dict[str, Any]] = httpx2.get(f"{self.simulator}/_sim/jobs", params=params, **LOOPBACK).json()
        return jobs

    def images(self) -> set[str]:
        """List the paths of all files in the store, unpublished ones too."""
        root = self.folder / "images"
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"authorization": f"Bearer {key}"}


def prepare(folder: Path, month: str | None = None, **more: str) -> System:
    """A system in an empty folder, with a migrated ledger and FX 20 for a month (this one), not yet started."""
    port, simulator_port = free_port(), free_port()
    valkey = ValkeyServer(folder, "--appendonly", "yes", "--appendfsync", "everysec")
    environment = {
        "GHUB_HOST": "127.0.0.1",
        "GHUB_PORT": str(port),
        "GHUB_METRICS_PORT": "0",
        "GHUB_REDIS_URL": valkey.url,
        "GHUB_LEDGER_URL": f"sqlite:///{folder / 'ledger.db'}",
        "GHUB_STORAGE_URL": f"file://{folder / 'images'}",
        "GHUB_JOURNAL_DIR": f"{folder / 'journal'}",
        "GHUB_SPOOL_DIR": f"{folder / 'spool'}",
        **simulated_upstreams(f"127.0.0.1:{simulator_port}"),
        "GHUB_TOPUP_URL": "https://geekhub.mx/topup",
        **more,
    }
    system = System(folder, valkey, environment, port, simulator_port)
    month = month or period_at(unix_us_at(utc_now())).month

    async def set_up(back: Backends) -> None:
        await back.ledger.migrate()
        await back.ledger.add_rate(FxRate(month, Decimal(20), "test"), utc_now())

    system.back(set_up)
    return system


def assert_no_key(keys: Iterable[str], folder: Path) -> None:
    """Check that no issued key is in any file below `folder`, or in a command line of this machine."""
    needles = [key.encode() for key in keys]
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(needle in content for needle in needles), f"a key stands in {path.name}"
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes()
        except OSError:
            continue  # it ended meanwhile
        assert not any(needle in line for needle in needles), "a key stands in a process list"
