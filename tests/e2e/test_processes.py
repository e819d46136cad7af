"""`ghub serve --processes N`: one port, one drain and one page of metrics, whatever happens to one of the processes."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from metering.journal.folders import folder_of
from proxy.server import supervisor
from tests.conftest import LOOPBACK, run
from tests.e2e.conftest import Prepared
from tests.kits.load import Shot, order, shoot
from tests.kits.ports import free_port
from tests.kits.processes import Forked
from tests.kits.system import FLUX, System, wait_until

ORDERS = 24


class Gateway:
    """A gateway of `count` processes, running and ready."""

    def __init__(self, system: System, count: int) -> None:
        self.system = system
        self.count = count
        self.metrics_port = free_port()
        began = len(self.events("serving"))
        options = ["--processes", str(count)]
        system.start("gateway", "serve", *options, GHUB_METRICS_PORT=str(self.metrics_port))
        self.pid = system.processes["gateway"].pid
        wait_until(lambda: len(self.events("serving")) == began + count, "all processes serve")
        wait_until(lambda: self.probe("/readyz") == (200, "ready"), "the whole is ready")
        wait_until(system.projected, "Redis is projected")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Lines of the log with this event, of all gateways so far."""
        if not (self.system.folder / "gateway.log").exists():
            return []
        lines = [json.loads(one) for one in self.system.log().splitlines(keepends=True) if one.endswith("}\n")]
        return [line for line in lines if line["event"] == name]

    def probe(self, path: str) -> tuple[int, str]:
        """The answer of a probe; 0 if nobody listens."""
        try:
            reply = httpx2.get(f"http://127.0.0.1:{self.metrics_port}{path}", **LOOPBACK)
        except httpx2.TransportError:
            return 0, ""
        if path == "/readyz":  # its further lines are versions
            return reply.status_code, reply.text.splitlines()[0]
        return reply.status_code, reply.text.strip()

    def sample(self, name: str) -> dict[str | None, float]:
        """The sum of a metric's samples by process; None is the supervisor."""
        found: dict[str | None, float] = {}
        for family in text_string_to_metric_families(self.probe("/metrics")[1] + "\n"):
            for one in family.samples:
                if one.name == name:
                    process = one.labels.get("process")
                    found[process] = found.get(process, 0) + one.value
        return found

    def children(self) -> dict[int, int]:
        """The processes' ids, by their numbers."""
        return children_of(self.pid)

    def kill_all(self) -> None:
        """Kill all of it with −9, as with its machine."""
        pids = [self.pid, *self.children().values()]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.system.processes.pop("gateway").wait(timeout=10)
        wait_until(lambda: all(map(is_gone, pids)), "all of it is gone")

    def burst(self, key: str, first: int, count: int = ORDERS) -> list[Shot]:
        """Place so many orders at one moment."""
        return run(place(self.system.port, [order(key, first + turn) for turn in range(count)]))


def children_of(parent: int) -> dict[int, int]:
    """The ids of the processes of a supervisor, by their numbers."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            status = (place / "status").read_text()
            words = (place / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue  # it ended meanwhile
        if f"\nPPid:\t{parent}\n" in status and "--inherited" in words:
            found[int(words[words.index("--inherited") + 1].split(":")[0])] = int(place.name)
    return found


def begin(prepared: Prepared, *, consumer: bool = True) -> tuple[System, str, str]:
    """Everything but the gateway; and a customer: its organisation and its key."""
    system = prepared()
    system.valkey.start()
    system.start("simulator", "simulate", "--port", str(system.simulator_port), "--latency-scale", "0")
    if consumer:
        system.start("consumer", "consume")
    wait_until(lambda: system._answers(f"{system.simulator}/_sim/jobs"), "the simulator is ready")
    return system, *system.customer("acme", "500.00", requests_per_minute=10_000, images_per_minute=10_000)


def clean(system: System) -> bool:
    return system.ghub("verify").returncode == 0


def open_journals(system: System) -> int:
    """Incarnations that the ledger does not know to be over."""
    return len(system.back(lambda back: back.ledger.open_incarnations()))


def is_gone(pid: int) -> bool:
    """True if it has ended, whether somebody has asked for its exit code or not."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


async def place(port: int, orders: list[bytes]) -> list[Shot]:
    """Place all orders at one moment; again those for which Redis had not its 100 ms, on a machine full of tests."""

    async def one(request: bytes) -> Shot:
        for _ in range(20):
            if (shot := await shoot(port, request)).status != 503:
                break
            await asyncio.sleep(0.1)
        return shot

    return await asyncio.gather(*map(one, orders))


async def meanwhile(orders: list[bytes], port: int, ready: Callable[[], bool], act: Callable[[], None]) -> list[Shot]:
    """Place orders, `act` as soon as it is `ready` for that, and wait for their ends."""
    placed = asyncio.create_task(place(port, orders))
    await asyncio.to_thread(wait_until, ready, "all orders are being made")
    await asyncio.to_thread(act)
    return await placed


@pytest.mark.parametrize("count", [1, 2])
def test_a_drain_finishes_what_is_in_flight_and_leaves_nothing_behind(prepared: Prepared, count: int) -> None:
    """Not ready at once, no new connection, 200 for every order under way, exit 0, no journal (also of two)."""
    system, _, key = begin(prepared)
    gateway = Gateway(system, count)
    assert [shot.status for shot in gateway.burst(key, 0)] == [200] * ORDERS
    delivered = gateway.sample("ghub_orders_total")
    if count == 1:
        assert delivered == {None: ORDERS}
    else:
        assert delivered.keys() <= {"0", "1"} and sum(delivered.values()) == ORDERS
        assert gateway.sample("ghub_processes") == {None: 2}
        assert gateway.sample("ghub_process_restarts_total") == {None: 0}
        assert gateway.sample("ghub_ready") == gateway.sample("ghub_build_info") == {None: 1, "0": 1, "1": 1}
    system.behave(FLUX, "slow", times=None, seconds=2.0)
    seen: list[object] = []

    def stop() -> None:
        system.processes["gateway"].send_signal(signal.SIGTERM)
        wait_until(lambda: gateway.probe("/readyz")[0] != 200, "it is not ready", within_s=1.0)
        wait_until(lambda: is_free(system.port), "no new connection is accepted", within_s=1.0)
        seen.extend([gateway.probe("/readyz"), gateway.probe("/healthz"), sum(in_flight(gateway).values())])

    shots = run(
        meanwhile(
            [order(key, 100 + turn) for turn in range(ORDERS)],
            system.port,
            lambda: sum(in_flight(gateway).values()) == ORDERS,
            stop,
        )
    )
    assert seen == [(503, "not ready: stopping"), (200, "ok"), ORDERS]
    assert [shot.status for shot in shots] == [200] * ORDERS
    assert system.processes.pop("gateway").wait(timeout=30) == 0
    assert gateway.probe("/healthz")[0] == 0
    assert open_journals(system) == 0 and clean(system)


def in_flight(gateway: Gateway) -> dict[str | None, float]:
    return gateway.sample("ghub_generations_in_flight")


def test_of_a_process_that_is_killed_only_its_own_requests_fail(prepared: Prepared) -> None:
    """Its successor replays its journal; the other one, the port and the probes never notice."""
    system, _, key = begin(prepared)
    gateway = Gateway(system, 2)
    gateway.burst(key, 0)
    system.behave(FLUX, "slow", times=None, seconds=2.0)
    its_own: list[float] = []
    victims: list[int] = []

    def kill() -> None:
        busier, orders = max(in_flight(gateway).items(), key=lambda one: one[1])
        its_own.append(orders)
        victims.append(int(busier or 0))
        os.kill(gateway.children()[victims[0]], signal.SIGKILL)
        wait_until(lambda: gateway.events("process_ended") != [], "its end is noticed")
        assert gateway.probe("/readyz") == (200, "ready") and gateway.probe("/healthz") == (200, "ok")

    shots = run(
        meanwhile(
            [order(key, 100 + turn) for turn in range(ORDERS)],
            system.port,
            lambda: sum(in_flight(gateway).values()) == ORDERS,
            kill,
        )
    )
    assert its_own[0] > 0
    assert [shot.status for shot in shots].count(0) == its_own[0]
    assert [shot.status for shot in shots].count(200) == ORDERS - its_own[0]
    (ended,) = gateway.events("process_ended")
    assert (ended["process"], ended["why"]) == (victims[0], "SIGKILL")
    wait_until(lambda: len(gateway.events("serving")) == 3, "its successor serves")
    wait_until(lambda: gateway.events("journal_replayed") != [], "its journal is replayed")
    assert [line["process"] for line in gateway.events("journal_replayed")] == victims
    assert gateway.sample("ghub_process_restarts_total") == {None: 1}
    system.behave(FLUX, "slow", times=None, seconds=0.0)
    assert [shot.status for shot in gateway.burst(key, 200)] == [200] * ORDERS
    assert system.stop("gateway") == 0
    wait_until(lambda: clean(system), "the books are right")
    assert open_journals(system) == 0


def test_another_number_of_processes_loses_no_journal(prepared: Prepared) -> None:
    """One, two, one, the first ones killed with all that belongs to them: every answered order is charged, once."""
    system, org_id, key = begin(prepared, consumer=False)
    for turn, count in enumerate((1, 2)):
        gateway = Gateway(system, count)
        assert [shot.status for shot in gateway.burst(key, turn * 100)] == [200] * ORDERS
        gateway.kill_all()
    with Redis.from_url(system.valkey.url) as redis:
        redis.flushall()  # now only the journals know that they were charged
    system.start("consumer", "consume")
    gateway = Gateway(system, 1)
    wait_until(lambda: len(gateway.events("journal_replayed")) == 3, "every journal is replayed")
    assert len({event.event_id for event in system.events(org_id, 2 * ORDERS)}) == 2 * ORDERS
    wait_until(lambda: clean(system), "the books are right")
    assert system.stop("gateway") == 0 and open_journals(system) == 0


def test_the_journals_of_all_processes_are_replayed_by_one_command(prepared: Prepared) -> None:
    """A volume whose gateway does not come back: `inspect` shows every folder of it, `replay` charges all of them."""
    system, org_id, key = begin(prepared, consumer=False)
    gateway = Gateway(system, 2)
    assert [shot.status for shot in gateway.burst(key, 0)] == [200] * ORDERS
    journal = str(system.folder / "journal")
    refused = system.ghub("journal", "replay", journal)
    assert refused.returncode == 1 and "another process uses the journal" in refused.stderr
    gateway.kill_all()
    system.start("consumer", "consume")
    seen = json.loads(system.ghub("journal", "inspect", journal, "--json").stdout)
    orders = [order for one in (seen, *seen["processes"]) for of in one["incarnations"] for order in of["orders"]]
    assert len(seen["processes"]) == 1 and len(orders) == ORDERS
    done = system.ghub("journal", "replay", journal, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) | {"charged_now": 0} == {"incarnations": 2, "orders": ORDERS, "charged_now": 0}
    assert open_journals(system) == 0 and clean(system) and len(system.events(org_id, ORDERS)) == ORDERS


@pytest.mark.parametrize("of", [0, 1])
def test_a_start_that_fails_ends_all_of_it_with_one_sentence(prepared: Prepared, of: int) -> None:
    """Whichever process it is; nothing is tried again, and nothing is left running."""
    system, _, _ = begin(prepared)
    folder = folder_of(system.folder / "journal", of)
    folder.mkdir(parents=True)
    (folder / "notes.journal").write_text("nothing that a gateway wrote")
    system.start("gateway", "serve", "--processes", "3")
    pid = system.processes["gateway"].pid
    assert system.processes.pop("gateway").wait(timeout=60) == 1
    said = [line for line in system.log().splitlines() if not line.startswith("{")]
    assert said == ["ghub: notes.journal in the journal's folder is no file of a journal"]
    assert "process_ended" not in system.log() and children_of(pid) == {} and is_free(system.port)


def test_a_spool_that_is_too_small_for_all_is_told_once(prepared: Prepared) -> None:
    """GHUB_SPOOL_MB is the disk of all processes together."""
    system, _, _ = begin(prepared, consumer=False)
    system.start("gateway", "serve", "--processes", "2", GHUB_SPOOL_MB="100")
    assert system.processes.pop("gateway").wait(timeout=60) == 1
    said = [line for line in system.log().splitlines() if not line.startswith("{")]
    assert said == ["ghub: GHUB_SPOOL_MB: 100 MB are shared by 2 processes, and each needs 64: give it 128 or more"]


def test_a_successor_that_cannot_start_is_tried_again_while_another_process_serves(prepared: Prepared) -> None:
    """If none serves any more, all of it ends with 1, for the platform to begin it anew."""
    system, _, key = begin(prepared)
    gateway = Gateway(system, 2)
    children = gateway.children()
    folders = [folder_of(system.folder / "journal", number) for number in (0, 1)]
    (folders[1] / "notes.journal").write_text("nothing that a gateway wrote")
    os.kill(children[1], signal.SIGKILL)
    wait_until(lambda: len(gateway.events("process_ended")) >= 2, "its successor has failed")
    assert [line["why"] for line in gateway.events("process_ended")][:2] == ["SIGKILL", "exit 1"]
    assert gateway.probe("/readyz") == (200, "ready") and gateway.sample("ghub_processes") == {None: 1}
    assert [shot.status for shot in gateway.burst(key, 0)] == [200] * ORDERS
    (folders[0] / "notes.journal").write_text("nothing that a gateway wrote")
    os.kill(children[0], signal.SIGKILL)
    assert system.processes.pop("gateway").wait(timeout=60) == 1
    assert children_of(gateway.pid) == {} and is_free(system.port)


def soon_frozen() -> None:
    """Called in the supervisor: it takes a silent process for frozen after some seconds."""
    supervisor.FROZEN_S = 5.0


def test_a_frozen_process_is_killed_and_replaced(prepared: Prepared) -> None:
    """Meanwhile the other one takes every order."""
    system, _, key = begin(prepared)
    system.begin = partial(Forked, before=soon_frozen)
    gateway = Gateway(system, 2)
    os.kill(gateway.children()[0], signal.SIGSTOP)
    assert gateway.sample("ghub_build_info") == {None: 1, "1": 1}  # the page does without the frozen one's
    assert [shot.status for shot in gateway.burst(key, 0)] == [200] * ORDERS
    wait_until(lambda: gateway.events("process_frozen") != [], "it is noticed")
    assert [line["process"] for line in gateway.events("process_frozen")] == [0]
    assert gateway.probe("/readyz") == (200, "ready")
    wait_until(lambda: len(gateway.events("serving")) == 3, "its successor serves")
    assert system.stop("gateway") == 0 and clean(system)


def test_processes_whose_supervisor_is_killed_finish_their_work_and_go(prepared: Prepared) -> None:
    """Every order under way is answered; then nobody has the port or a journal."""
    system, _, key = begin(prepared)
    gateway = Gateway(system, 2)
    system.behave(FLUX, "slow", times=None, seconds=2.0)
    pids = gateway.children().values()
    shots = run(
        meanwhile(
            [order(key, turn) for turn in range(ORDERS)],
            system.port,
            lambda: sum(in_flight(gateway).values()) == ORDERS,
            lambda: os.kill(gateway.pid, signal.SIGKILL),
        )
    )
    assert [shot.status for shot in shots] == [200] * ORDERS
    system.processes.pop("gateway").wait(timeout=10)
    wait_until(lambda: all(map(is_gone, pids)), "they have ended", within_s=20)
    assert is_free(system.port) and open_journals(system) == 0 and clean(system)


FAULTY = """
import sys
from pathlib import Path
if "--inherited" in sys.orig_argv:
    from prometheus_client import REGISTRY
    class Faulty:
        def describe(self):
            return []
        def collect(self):
            if Path({0!r}).exists():
                raise RuntimeError("a collector's fault")
            return []
    REGISTRY.register(Faulty())
"""
"""Loaded by Python itself in each process: a collector that is at fault while a file is there."""


def test_a_fault_in_the_metrics_costs_no_order(prepared: Prepared, tmp_path: Path) -> None:
    """The page lacks that process; nobody is taken for frozen, although orders last longer than a frozen one may."""
    system, _, key = begin(prepared)
    system.begin = partial(Forked, before=soon_frozen)
    mark = tmp_path / "faulty"
    (tmp_path / "sitecustomize.py").write_text(FAULTY.format(str(mark)))
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    system.environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    gateway = Gateway(system, 2)
    system.behave(FLUX, "slow", times=None, seconds=10.0)

    def fault() -> None:
        mark.touch()
        assert gateway.sample("ghub_build_info") == {None: 1}
        mark.unlink()
        assert gateway.sample("ghub_build_info") == {None: 1, "0": 1, "1": 1}

    shots = run(
        meanwhile(
            [order(key, turn) for turn in range(ORDERS)],
            system.port,
            lambda: sum(in_flight(gateway).values()) == ORDERS,
            fault,
        )
    )
    assert [shot.status for shot in shots] == [200] * ORDERS
    assert gateway.events("process_frozen") == [] and gateway.events("process_ended") == []
    assert {(line["process"], line["question"]) for line in gateway.events("answer_failed")} == {
        (0, "metrics"),
        (1, "metrics"),
    }


@pytest.mark.parametrize("count", [1, 2])
def test_sighup_changes_nothing(prepared: Prepared, count: int) -> None:
    """To a gateway, each process of one, its supervisor, and a consumer: files are followed without it."""
    system, _, key = begin(prepared)
    gateway = Gateway(system, count)
    system.behave(FLUX, "slow", times=None, seconds=2.0)
    children = gateway.children()
    pids = [gateway.pid, *children.values(), system.processes["consumer"].pid]
    assert len(pids) == (2 if count == 1 else 4)

    def hang_up() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGHUP)

    shots = run(
        meanwhile(
            [order(key, turn) for turn in range(ORDERS)],
            system.port,
            lambda: sum(in_flight(gateway).values()) == ORDERS,
            hang_up,
        )
    )
    assert [shot.status for shot in shots] == [200] * ORDERS
    assert gateway.probe("/readyz") == (200, "ready") and gateway.children() == children
    assert system.stop("gateway") == 0
    wait_until(lambda: clean(system), "the consumer has booked them")
    assert system.stop("consumer") == 0
