"""The whole system as real processes, each of which may be killed, frozen, restarted and cut off."""

import asyncio
import base64
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import psycopg
from psycopg.errors import ObjectInUse
from redis import Redis
from redis.exceptions import RedisError

from config.settings import Settings, hold_life_s
from metering.clock import period_at, unix_us_at, utc_now
from metering.journal.frames import survey
from metering.journal.salvage import read_orders
from metering.money import parse_mxn
from metering.pricing import FxRate
from metering.wallet import keys
from metering.webhooks.calls import TYPES
from proxy.backends import Backends, open_back
from proxy.cli.demo import simulated_upstreams
from tests.chaos.ghub import prepare
from tests.chaos.receivers import Receivers
from tests.conftest import LOOPBACK, ValkeyServer
from tests.kits.ports import free_port
from tests.kits.postgres import FAST, PostgresServer
from tests.kits.processes import Forked, Process, finished
from tests.kits.system import FLUX, GPT, bearer
from tests.stores.running import BUCKET, KEY, SupabaseProcess

GROK = "xai/grok-2-image"
MODELS = (FLUX, GPT, GROK)
"""A queue with a URL, one with the picture inline, and one call with a URL."""

ULTRA, GPT_2 = "fal/flux-1.1-pro-ultra", "openai/gpt-image-2"
LONG_MODELS = (ULTRA, GPT_2)
"""Of long orders: jobs of a queue, which another gateway goes on with, and calls, which nobody can."""

LONG_DEADLINE_S = 40.0
"""Of a long order: a dead gateway's is found after 12 to 15 s, and must be made within what is left."""

GATEWAYS = ("gateway 1", "gateway 2", "gateway 3")
DISKS = ("disk 1", "disk 2", "disk 3")
"""Each gateway's own, for its journal."""

CONSUMERS = ("consumer 1", "consumer 2")
ENDS = tuple(one for one in TYPES if one.startswith("image.generation."))
CREDIT_MXN = "100000.00"
ADMIN_TRIES = 50
"""0.1 s apart."""

ASKS = 20
"""How often a gateway may say that it cannot decide now: its Valkey has only just come back."""

ALIVE_S = 90.0
"""Maximum time until a part is back, also on a machine that others use."""

LAST_WORDS = 600
"""Characters of each log that are told of a part that did not come."""

FAILURES = ("http_500", "close_without_answer")
"""Occasional failures of the upstreams. The gateway must not retry after either of them."""

STEPS = 5_000
"""Generations whose lengths the seed decides; those beyond take the published latencies."""


@dataclass(frozen=True)
class Customer:
    """An organisation with one key, which may be `revoked` by the end."""

    org_id: str
    key: str
    place: int = 0
    revoked: bool = False


@dataclass
class World:
    """Three gateways behind one address, two consumers, Valkey, PostgreSQL, a Supabase store and the upstreams."""

    folder: Path
    deadline_s: float
    without: str | None = None
    long_deadline_s: float = LONG_DEADLINE_S
    processes: dict[str, Process] = field(default_factory=dict)
    wanted: set[str] = field(default_factory=set)
    ended_alone: Counter[str] = field(default_factory=Counter)
    customers: list[Customer] = field(default_factory=list)
    _copies: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.ports = {name: free_port() for name in (*GATEWAYS, "balancer", "valkey", "postgres", "store", "upstreams")}
        self.metrics_ports = {name: free_port() for name in GATEWAYS}
        self.lost_orders: set[str] = set()
        self.wiped_us: list[int] = []
        self.lost_journals: set[str] = set()
        self.simulator_port = free_port()
        places = {name: self.folder / name for name in ("valkey", "postgres", "store", "spool")}
        for place in places.values():
            place.mkdir(parents=True)
        self.folder.chmod(0o755)  # PostgreSQL runs as another user where we are root
        self.valkey = ValkeyServer(places["valkey"], "--appendonly", "yes", "--appendfsync", "everysec")
        self.postgres = PostgresServer(places["postgres"], *FAST)
        self.store = SupabaseProcess(places["store"])
        self.database = "ledger"
        self.receivers = Receivers()
        self.relays: subprocess.Popen[bytes] | None = None
        self._line = asyncio.Lock()
        local = f"http://127.0.0.1:{self.ports['store']}/storage/v1"
        self.environment = {
            "GHUB_HOST": "127.0.0.1",
            "GHUB_METRICS_PORT": "0",
            "GHUB_REDIS_URL": f"redis://127.0.0.1:{self.ports['valkey']}",
            "GHUB_LEDGER_URL": f"postgresql://ghub@127.0.0.1:{self.ports['postgres']}/{self.database}",
            "GHUB_STORAGE_URL": f"supabase+{local}?bucket={BUCKET}",
            "GHUB_STORAGE_KEY": KEY,
            "GHUB_SPOOL_DIR": str(places["spool"]),
            "GHUB_DEADLINE_S": f"{self.deadline_s:g}",
            "GHUB_LONG_DEADLINE_S": f"{self.long_deadline_s:g}",
            "GHUB_SECRETS_KEY": base64.b64encode(b"k" * 32).decode(),
            "GHUB_WEBHOOK_HOSTS": "127.0.0.1",
            **simulated_upstreams(f"127.0.0.1:{self.ports['upstreams']}"),
        }

    @property
    def url(self) -> str:
        """URL of the load balancer, for OpenAI's clients."""
        return f"http://127.0.0.1:{self.ports['balancer']}/v1"

    @property
    def hold_life_s(self) -> float:
        """After so long every hold of an order that is waited for has ended."""
        return hold_life_s(self.deadline_s)

    @property
    def long_hold_life_s(self) -> float:
        """After so long every hold has ended."""
        return hold_life_s(self.long_deadline_s)

    # --- everything ---

    async def start(self, steps: random.Random | None = None, latency_scale: float = 0.2) -> None:
        """Start all of it; returns when orders are taken. `steps` decides how long generations take, and which fail."""
        await asyncio.gather(*(asyncio.to_thread(part.start) for part in (self.valkey, self.postgres, self.store)))
        self._admin(f"CREATE DATABASE {self.database}")
        await self.receivers.start()
        self._start_relays()
        assert await self._answer() is True
        simulate = ["simulate", "--port", str(self.simulator_port), "--latency-scale", str(latency_scale)]
        self._spawn("simulator", simulate)
        await self.back(self._migrate)
        if self.without == "unique":
            with psycopg.connect(self.postgres.url(self.database), autocommit=True) as connection:
                connection.execute("DROP INDEX events_by_id; DROP INDEX consumption_by_event")
        for name in (*CONSUMERS, *GATEWAYS):
            self.start_process(name)
        await self.until(self._all_ready, "all gateways are ready")
        await self.until(lambda: self._answers(f"http://127.0.0.1:{self.simulator_port}/_sim/jobs"), "the simulator")
        if steps is not None:
            await self._decide(steps)

    async def heal(self) -> None:
        """Everything runs again, thawed and connected, and journals that were lost are given up."""
        self.receivers.peace = True
        for name in GATEWAYS:
            self.control(name).unlink(missing_ok=True)
        for name in ("valkey", "postgres", "store", "upstreams", "balancer"):
            await self.tell("hold", name, [])
        if self.postgres.process is None:
            await asyncio.to_thread(self.postgres.start)
        self.postgres.thaw()
        if self.valkey.process is None:
            await asyncio.to_thread(self.valkey.start)
        if self.store.process is None:
            await asyncio.to_thread(self.store.start)
        for process in (self.valkey.process, self.store.process, *self.processes.values()):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGCONT)
        for name in (*GATEWAYS, *CONSUMERS):
            if name not in self.processes or self.processes[name].poll() is not None:
                self.start_process(name)
        await self.until(self._all_ready, "all gateways are ready again")
        await self._give_up()

    def stop(self) -> None:
        """End all of it at once."""
        self.wanted.clear()
        self.receivers.stop()
        for process in self.processes.values():
            process.kill()
            process.wait()
        if self.relays is not None:
            self.relays.kill()
            self.relays.communicate()
        self.valkey.stop()
        self.store.kill()
        self.postgres.kill()

    async def supervise(self) -> None:
        """Start again, as the platform would, every gateway and consumer that has ended by itself."""
        while True:
            await asyncio.sleep(0.3)
            for name in list(self.wanted):
                if self.processes[name].poll() is not None:
                    self.ended_alone[name] += 1
                    self.start_process(name)

    # --- gateways and consumers ---

    def start_process(self, name: str) -> None:
        """A gateway on its own journal, or a consumer."""
        if name in GATEWAYS:
            more = {
                "GHUB_PORT": str(self.ports[name]),
                "GHUB_METRICS_PORT": str(self.metrics_ports[name]),
                "GHUB_JOURNAL_DIR": str(self.journal(name)),
            }
            self._spawn(name, ["serve"], more, partial(prepare, self.without, self.control(name)))
        else:
            self._spawn(name, ["consume"], before=partial(prepare, self.without))
        self.wanted.add(name)

    def signal(self, name: str, number: int) -> None:
        """Send it to a gateway or a consumer; to one that is not there, nothing."""
        if self.processes[name].poll() is None:
            self.processes[name].send_signal(number)

    async def end(self, name: str, number: int) -> None:
        """Signal it, and wait until it is gone."""
        self.wanted.discard(name)
        self.signal(name, number)
        await asyncio.to_thread(self.processes[name].wait)

    def journal(self, name: str) -> Path:
        """The folder of a gateway's journal."""
        return self.folder / f"journal {name[-1]}"

    def control(self, name: str) -> Path:
        """The disk fault of a gateway's journal."""
        return self.folder / f"disk of {name}"

    @contextmanager
    def taken(self, name: str) -> Iterator[None]:
        """Somebody else listens at a gateway's metrics port."""
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", self.metrics_ports[name]))
            other.listen()
            yield

    @asynccontextmanager
    async def busy_ledger(self, seconds: float) -> AsyncIterator[None]:
        """For so long nobody gets a turn to write to the ledger; events are booked all the same."""
        until_s, connection = time.monotonic() + seconds, None
        with suppress(psycopg.OperationalError, TimeoutError):  # it has a fault of its own at this moment
            async with asyncio.timeout(seconds):
                connection = await psycopg.AsyncConnection.connect(self.postgres.url(self.database), autocommit=True)
                await connection.execute("SELECT pg_advisory_lock(1734899042)")
        yield
        await asyncio.sleep(max(0.0, until_s - time.monotonic()))
        if connection is not None:
            await connection.close()

    async def lose_volume(self, name: str) -> None:
        """The folder of a gateway's journal is gone. What only that has is not charged: its orders are remembered."""

        def lose() -> None:
            for past in survey(self.journal(name)).incarnations:
                self.lost_journals.add(str(past.incarnation))
                self.lost_orders |= {one.order.order_id for one in read_orders(past)[0] if not one.withdrawn}
            shutil.rmtree(self.journal(name))

        await asyncio.to_thread(lose)

    def back_up(self) -> str:
        """Copy the ledger as it is now; returns the copy's name. Its users are disconnected for a moment."""
        copy = f"copy_{next(self._copies)}"
        with self._ledger_closed():
            self._admin(f"CREATE DATABASE {copy} TEMPLATE {self.database}")
        return copy

    def restore(self, copy: str) -> None:
        """The ledger is what it was."""
        with self._ledger_closed():
            self._admin(f"DROP DATABASE {self.database} WITH (FORCE)")
            self._admin(f"ALTER DATABASE {copy} RENAME TO {self.database}")

    @contextmanager
    def _ledger_closed(self) -> Iterator[None]:
        """Nobody is connected to it, nor can be."""
        self._admin(f"ALTER DATABASE {self.database} WITH ALLOW_CONNECTIONS false")
        try:
            self._admin(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.database}'")
            yield
        finally:
            self._admin(f"ALTER DATABASE {self.database} WITH ALLOW_CONNECTIONS true")

    def _admin(self, statement: str) -> None:
        """Run an SQL statement; retry for a while if a disconnected user is still connected."""
        with psycopg.connect(self.postgres.url("postgres"), autocommit=True) as connection:
            for _ in range(ADMIN_TRIES):
                with suppress(ObjectInUse):
                    connection.execute(statement.encode())
                    return
                time.sleep(0.1)
            connection.execute(statement.encode())

    async def _give_up(self) -> None:
        """Close a journal whose volume is lost, as an operator does."""

        async def given_up() -> bool:
            open_ = {str(one) for one in await self.back(lambda back: back.ledger.open_incarnations())}
            for incarnation in open_ & self.lost_journals:
                done = await self.ghub("journal", "close", incarnation, "--lost", "--reason", "the volume is lost")
                if done.returncode:  # its gateway has died just now, and may still be there for all that is known
                    return False
            return True

        await self.until(given_up, "journals that are lost are given up", 30.0)

    def log(self, name: str) -> str:
        """Read the log of a process so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    # --- what lies between and beneath ---

    async def tell(self, *command: object) -> Any:
        """A command for the relays, and their answer."""
        assert self.relays is not None and self.relays.stdin is not None
        pipe = self.relays.stdin
        async with self._line:
            pipe.write(json.dumps(command).encode() + b"\n")
            pipe.flush()
            return await self._answer()

    def redis(self) -> Redis:
        """Valkey itself, past the relay."""
        return Redis.from_url(self.valkey.url, socket_timeout=5.0)

    async def wipe(self) -> None:
        """FLUSHALL."""
        self.wiped_us.append(time.time_ns() // 1000)

        def flush() -> None:
            with self.redis() as redis, suppress(RedisError):
                redis.flushall()

        await asyncio.to_thread(flush)

    async def empty_valkey(self) -> None:
        """kill −9, and its folder is lost."""
        self.wiped_us.append(time.time_ns() // 1000)
        await asyncio.to_thread(self.valkey.stop)
        shutil.rmtree(self.folder / "valkey" / "appendonlydir", ignore_errors=True)

    def streams(self) -> int:
        """Events that are not booked and trimmed yet."""
        with self.redis() as redis:
            return sum(int(redis.xlen(keys.events(partition))) for partition in range(keys.PARTITIONS))

    async def behave(self, model: str, seconds: float) -> None:
        """How long a model's generations take from now on."""
        await self.play({"model": model, "scenario": "slow", "seconds": seconds, "times": None})

    async def open_orders(self) -> int:
        """Orders that a gateway has answered 200, and whose charge the ledger does not have yet."""
        async with httpx2.AsyncClient(**LOOPBACK, timeout=30) as client:
            told = [(await client.get(f"http://127.0.0.1:{port}/metrics")).text for port in self.metrics_ports.values()]
        lines = [line.split() for text in told for line in text.splitlines()]
        return sum(int(float(words[1])) for words in lines if words[:1] == ["ghub_journal_open_orders"])

    def told(self, event: str) -> int:
        """How often the gateways have logged this."""
        return sum(self.log(name).count(f'"{event}"') for name in GATEWAYS)

    async def jobs(self) -> list[dict[str, Any]]:
        """Every generation that a provider has accepted."""
        async with httpx2.AsyncClient(**LOOPBACK, timeout=30) as client:
            found: list[dict[str, Any]] = (await client.get(f"http://127.0.0.1:{self.simulator_port}/_sim/jobs")).json()
        return found

    async def in_flight(self) -> int:
        """Generations that an upstream works on at this moment."""
        return sum(job["state"] in ("queued", "running") for job in await self.jobs())

    # --- accounts, books and commands ---

    def settings(self) -> Settings:
        """Those of every process."""
        return Settings.model_validate(
            {name.removeprefix("GHUB_").lower(): value for name, value in self.environment.items()}
        )

    async def back(self, work: Callable[[Backends], Awaitable[Any]]) -> Any:
        """Do something with ledger and Redis in this process."""
        async with open_back(self.settings()) as back:
            return await work(back)

    async def customer(self, name: str) -> Customer:
        """A new one with a lot of credit, whom no rate limit holds up."""

        async def make(back: Backends) -> Customer:
            org = await back.accounts.create_org(name, "default")
            await back.accounts.add_credit(org.org_id, f"pay-{org.org_id}", "recharge", parse_mxn(CREDIT_MXN))
            await back.accounts.set_limits(org.org_id, {"requests_per_minute": 100_000, "images_per_minute": 100_000})
            place = len(self.customers)
            url = self.receivers.url(place, org.org_id, "org")
            added = await back.accounts.webhooks.add(org.org_id, url, ENDS)
            assert added.secret is not None
            self.receivers.secrets[org.org_id] = added.secret
            return Customer(org.org_id, (await back.accounts.create_key(org.org_id, "chaos")).secret, place)

        made: Customer = await self.back(make)
        self.customers.append(made)
        return made

    async def ghub(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command, with every protection that the product has."""
        return await asyncio.to_thread(finished, Forked, arguments, {**os.environ, **self.environment}, within_s=120)

    async def get(self, client: httpx2.AsyncClient, url: str, customer: Customer) -> httpx2.Response:
        """The answer; a gateway that cannot decide now, or was asked too often, is asked again as it wishes."""
        for _ in range(ASKS):
            reply = await client.get(url, headers=bearer(customer.key))
            if reply.status_code not in (429, 503):
                break
            await asyncio.sleep(max(0.5, float(reply.headers.get("retry-after", 0))))
        return reply

    def object(self, path: str) -> Path:
        """Path of an object's bytes in the store."""
        return self.folder / "store" / "objects" / path

    async def until(self, true: Callable[[], Awaitable[bool]], what: str, within_s: float = ALIVE_S) -> None:
        """Ask until it is so. Raises TimeoutError saying what did not come about, and what the processes said last."""
        end_s = time.monotonic() + within_s
        while not await true():
            if time.monotonic() > end_s:
                ends = {name: process.poll() for name, process in self.processes.items()}
                said = "".join(f"\n{name}, exit {end}: {self.log(name)[-LAST_WORDS:]}" for name, end in ends.items())
                raise TimeoutError(f"not within {within_s:g} s: {what}{said}")
            await asyncio.sleep(0.05)

    # --- parts of the above ---

    def _wires(self) -> dict[str, dict[str, Any]]:
        sockets = {"valkey": str(self.valkey.socket), "postgres": str(self.folder / "postgres" / ".s.PGSQL.5432")}
        places = {**sockets, "store": str(self.store.port), "upstreams": str(self.simulator_port)}
        targets = {name: [place] for name, place in places.items()}
        targets["balancer"] = [str(self.ports[name]) for name in GATEWAYS]
        return {name: {"port": self.ports[name], "targets": targets[name]} for name in targets}

    def _start_relays(self) -> None:
        command = [sys.executable, "-m", "tests.chaos.relays", json.dumps(self._wires())]
        with (self.folder / "relays.log").open("ab") as log:
            self.relays = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)

    def _spawn(
        self,
        name: str,
        arguments: Sequence[str],
        more: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        environment = {**os.environ, **self.environment, **(more or {})}
        log = self.folder / f"{name}.log"
        self.processes[name] = Forked(arguments, environment, log, log, before)

    async def _answer(self) -> Any:
        assert self.relays is not None and self.relays.stdout is not None
        return json.loads(await asyncio.to_thread(self.relays.stdout.readline))

    async def _migrate(self, back: Backends) -> None:
        await back.ledger.migrate()
        await back.ledger.add_rate(FxRate(period_at(unix_us_at(utc_now())).month, Decimal(20), "test"), utc_now())

    async def _decide(self, random_: random.Random) -> None:
        for model in (*MODELS, *LONG_MODELS):
            steps = [self._step(model, random_) for _ in range(STEPS)]
            await self.play({"model": model, "sequence": steps, "same": True})

    def _step(self, model: str, random_: random.Random) -> str | dict[str, Any]:
        if random_.random() < 0.04:
            return random_.choice(FAILURES)
        if model in MODELS:
            return {"scenario": "slow", "seconds": round(random_.uniform(1, 5) / 8 * self.deadline_s, 2)}
        stops = model == ULTRA and random_.random() < 0.3
        seconds = round(random_.uniform(0.05, 0.5) * self.long_deadline_s, 2)
        return {"scenario": "stops_when_cancelled" if stops else "slow", "seconds": seconds}

    async def play(self, behaviour: dict[str, Any]) -> None:
        """Tell the upstreams what to do next."""
        async with httpx2.AsyncClient(**LOOPBACK, timeout=30) as client:
            reply = await client.put(f"http://127.0.0.1:{self.simulator_port}/_sim/behaviour", json=behaviour)
            assert reply.status_code == 200, reply.text

    async def _all_ready(self) -> bool:
        urls = [f"http://127.0.0.1:{self.ports[name]}/readyz" for name in GATEWAYS]
        return all(await asyncio.gather(*map(self._answers, urls)))

    async def _answers(self, url: str) -> bool:
        try:
            async with httpx2.AsyncClient(**LOOPBACK, timeout=5) as client:
                return (await client.get(url)).status_code == 200
        except httpx2.TransportError:
            return False
