"""The whole job against the floor: CPU for each image, everything on, over http and over TLS on both sides.

The store is an HTTP server, as Supabase is. Each server has the same core in turn; load, upstreams, store, Valkey and
consumer share the others. What to read is the ratio: the machine's noise is in both of its terms.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import trustme
from rich.console import Console
from rich.progress import Progress

from bench.figures import Figure, ratios
from bench.processes import apart, cpu_s, listens, pin
from tests.conftest import run
from tests.kits.ports import free_port
from tests.kits.processes import executed
from tests.kits.system import FLUX, GPT, System, bearer, prepare, wait_until
from tests.stores.running import BUCKET, KEY, SupabaseProcess

IN_FLIGHT = int(os.environ.get("IN_FLIGHT", "64"))
ROUNDS = int(os.environ.get("ROUNDS", "5"))
LEG_S = float(os.environ.get("LEG_S", "2.5"))
WARM_UP_S = min(1.0, LEG_S)

SIZES = {"16 KB": 16_000, "1.6 MB": 1_600_000}
WAYS = {"URL": FLUX, "base64": GPT}
SCHEMES = os.environ.get("SCHEMES", "http https").split()
FLOORS = ("hypercorn", "granian")

MOST = {"16 KB": 2.0, "1.6 MB": 1.7}
"""Goal: at most this multiple of a floor's CPU."""

MOST_BASE64 = 1.3


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is measured."""

    pid: int
    url: str
    headers: Mapping[str, str]


async def cpu_ms(server: Server, model: str, seconds: float) -> float:
    """Run `IN_FLIGHT` clients, each of which orders again as soon as it is answered; milliseconds of CPU an order."""
    orders, until_s = 0, time.monotonic() + seconds
    body = {"model": model, "prompt": "banco"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client() -> None:
            nonlocal orders
            while time.monotonic() < until_s:
                async with session.post(server.url, headers=server.headers, json=body) as reply:
                    text = await reply.read()
                    assert reply.status == 200, text[:500]
                orders += 1

        before_s = cpu_s(server.pid)
        async with asyncio.TaskGroup() as clients:
            for _ in range(IN_FLIGHT):
                clients.create_task(client())
        return (cpu_s(server.pid) - before_s) / orders * 1000


class World:
    """The upstreams, the two stores and all servers, each as a process."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._core = apart()
        self._certify()
        self._ports = {"http": free_port(), "https": free_port()}
        tls = [str(folder / "certificate.pem"), str(folder / "key.pem")]
        self._begin("bench.upstreams", str(self._ports["http"]), str(self._ports["https"]), *tls)
        wait_until(lambda: all(map(listens, self._ports.values())), "the upstreams listen")
        self._stores = {scheme: self._store(scheme, tls) for scheme in SCHEMES}
        self.system = self._system("http")
        self.servers = {("gateway", "http"): self._gateway(self.system)}
        if "https" in SCHEMES:
            secure = self._system("https", GHUB_REDIS_URL=self.system.valkey.url, GHUB_LEDGER_URL=self._ledger_url)
            self.servers["gateway", "https"] = self._gateway(secure)
        _, key = self.system.customer("bench", "1000000.00", requests_per_minute=10**6, images_per_minute=10**6)
        self.servers = {
            name: Server(one.pid, one.url, bearer(key)) if name[0] == "gateway" else one
            for name, one in self.servers.items()
        }
        for kind in FLOORS:
            for scheme in SCHEMES:
                self.servers[kind, scheme] = self._floor(kind, scheme)

    @property
    def _ledger_url(self) -> str:
        return self.system.environment["GHUB_LEDGER_URL"]

    def play(self, model: str, size_bytes: int) -> None:
        """Set what the upstreams send from now on."""
        self.system.behave(model, "ok", None, bytes=size_bytes, same=True)

    def take(self, process: subprocess.Popen[bytes], url: str, headers: Mapping[str, str]) -> Server:
        """Measure one more server, which ends with the others."""
        self._stack.callback(_end, process)
        port = int(url.split(":")[2].partition("/")[0])
        wait_until(lambda: listens(port), "it listens")
        pin(process.pid, self._core)
        return Server(process.pid, url, headers)

    @property
    def simulator(self) -> str:
        """The upstreams' address."""
        return self._address("http")

    def _address(self, scheme: str) -> str:
        return f"{scheme}://127.0.0.1:{self._ports[scheme]}"

    def _certify(self) -> None:
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        certificate.cert_chain_pems[0].write_to_path(self._folder / "certificate.pem")
        certificate.private_key_pem.write_to_path(self._folder / "key.pem")
        authority.cert_pem.write_to_path(self._folder / "trust.pem")
        os.environ["SSL_CERT_FILE"] = str(self._folder / "trust.pem")
        self._stack.callback(os.environ.pop, "SSL_CERT_FILE")

    def _begin(self, *arguments: str) -> int:
        process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.DEVNULL)
        self._stack.callback(_end, process)
        return process.pid

    def _store(self, scheme: str, tls: list[str]) -> str:
        folder = self._folder / f"store-{scheme}"
        folder.mkdir()
        store = SupabaseProcess(folder, *(["--tls", *tls] if scheme == "https" else []))
        store.start()
        self._stack.callback(store.kill)
        return store.url.replace("http:", f"{scheme}:")

    def _system(self, scheme: str, **more: str) -> System:
        folder = self._folder / scheme
        folder.mkdir()
        upstreams = {
            f"GHUB_{name}": value.replace("http:", f"{scheme}:")
            for name, value in {
                "FAL_URL": f"{self._address(scheme)}/fal/run",
                "OPENAI_URL": f"{self._address(scheme)}/openai/v1",
            }.items()
        }
        system = prepare(
            folder,
            GHUB_FAL_MODE="direct",
            GHUB_LOG_LEVEL="info",
            GHUB_IMAGE_HOSTS=f"127.0.0.1:{self._ports[scheme]}",
            GHUB_STORAGE_URL=f"supabase+{self._stores[scheme]}?bucket={BUCKET}",
            GHUB_STORAGE_KEY=KEY,
            **upstreams,
            **more,
        )
        system.begin = executed  # with memory that it shares with nobody
        system.simulator_port = self._ports["http"]
        self._stack.callback(system.stop_all)
        return system

    def _gateway(self, system: System) -> Server:
        if system.environment["GHUB_REDIS_URL"] == system.valkey.url:
            system.valkey.start()
            system.start("consumer", "consume")
        system.start_gateway()
        pid = system.processes["gateway"].pid
        pin(pid, self._core)
        return Server(pid, f"{system.url}/images/generations", {})

    def _floor(self, kind: str, scheme: str) -> Server:
        port = free_port()
        store = f"{self._stores[scheme]}/object/{BUCKET}"
        pid = self._begin("bench.floor", kind, str(port), self.system.valkey.url, self._address(scheme), store, KEY)
        wait_until(lambda: listens(port), "the bare script listens")
        pin(pid, self._core)
        return Server(pid, f"http://127.0.0.1:{port}/v1/images/generations", {})


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def measure() -> list[Figure]:
    """Measure all cases in rounds, every server once in each of them."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as name, ExitStack() as stack:
        world = World(Path(name), stack)
        figures: list[Figure] = []
        by_case: dict[tuple[str, str, str], dict[str, list[float]]] = {}
        with Progress(console=Console(stderr=True), transient=True) as progress:
            legs = len(SCHEMES) * len(SIZES) * len(WAYS) * (1 + len(FLOORS)) * (ROUNDS + 1)
            task = progress.add_task("the whole job", total=legs)
            for size, size_bytes in SIZES.items():
                for way, model in WAYS.items():
                    world.play(model, size_bytes)
                    for turn in range(ROUNDS + 1):
                        for (server, scheme), where in world.servers.items():
                            took_ms = run(cpu_ms(where, model, LEG_S if turn else WARM_UP_S))
                            if turn:
                                by_case.setdefault((size, way, scheme), {}).setdefault(server, []).append(took_ms)
                            progress.advance(task)
        for (size, way, scheme), of in by_case.items():
            case = f"{size} by {way}, {scheme}"
            figures += [Figure(f"{case}: {server}", "ms of CPU an image", took) for server, took in of.items()]
            figures += [
                Figure(f"{case}: gateway / {floor}", "×", ratios(of["gateway"], of[floor]), most=MOST[size])
                for floor in FLOORS
            ]
        for size in SIZES:
            for scheme in SCHEMES:
                url, base64 = (by_case[size, way, scheme]["gateway"] for way in WAYS)
                figures.append(
                    Figure(f"{size}, {scheme}: base64 / own URL path", "×", ratios(base64, url), most=MOST_BASE64)
                )
        return figures
