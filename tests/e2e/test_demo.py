"""`ghub demo` as a newcomer meets it: ready in seconds, the README's own snippet works, nothing is left behind."""

import io
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from redis import Redis

from config.catalogue import read_catalogue
from tests.conftest import LOOPBACK
from tests.kits.metrics import scrape
from tests.kits.ports import free_port
from tests.kits.processes import Begin, Forked, Process, executed, finished
from tests.kits.system import FLUX, bearer, wait_until

ROOT = Path(__file__).parents[2]
WORK_S = 12.0
"""CPU time of five processes, from start to end: some seven seconds, most of them for importing libraries."""

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("GHUB_")}


@dataclass
class Demo:
    """A running `ghub demo`."""

    folder: Path
    port: int
    process: Process

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that it wrote when it was ready."""
        facts: dict[str, Any] = json.loads((self.folder / "demo.json").read_text())
        return facts

    def wait_ready(self) -> None:
        """Until demo.json is there."""
        wait_until((self.folder / "demo.json").exists, "the demo is ready")

    def members(self) -> set[int]:
        """The processes that belong to it: itself, and its children's command lines name the folder or its python."""
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        return {int(pid) for pid in children.stdout.split()}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A data folder with a short path."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as name:
        yield Path(name)


def start(folder: Path, port: int, begin: Begin = Forked) -> Demo:
    """Start it; its own output goes to a file next to its data. Its parts are processes that it executes itself."""
    arguments = ["demo", "--port", str(port), "--data", str(folder / "data")]
    return Demo(folder / "data", port, begin(arguments, CLEAN, folder / "out.txt", folder / "out.txt"))


@contextmanager
def running_in(folder: Path) -> Iterator[Demo]:
    """A demo that is ready, and ends here unless it has."""
    running = start(folder, free_port())
    running.wait_ready()
    yield running
    running.process.send_signal(signal.SIGTERM)
    running.process.wait(timeout=30)


@pytest.fixture
def demo(folder: Path) -> Iterator[Demo]:
    """A demo of a test's own."""
    with running_in(folder) as running:
        yield running


@pytest.fixture(scope="module")
def shared() -> Iterator[Demo]:
    """A demo for the tests that do it no harm."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as name, running_in(Path(name)) as running:
        yield running


def alive(pids: set[int]) -> set[int]:
    """Those of `pids` that still run; a zombie does not."""
    running = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            running.add(pid)
    return running


def test_a_start_takes_little_work_and_says_what_it_is_doing(folder: Path) -> None:
    """The second start, with state to find again, as well as the first; key and balance are the same.

    Its processor time counts, and not the clock's: other tests have the machine's cores at the same time.
    """
    seen: list[tuple[str, str, Decimal]] = []
    steps = ("Valkey", "upstreams", "ledger", "gateway", "ready")
    (folder / "a").mkdir()
    for _ in range(2):
        before_s, port = work_of_children_s(), free_port()
        running = start(folder / "a", port, executed)
        running.wait_ready()
        seen.append((running.facts["api_key"], running.facts["org"], available(running)))
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(timeout=30) == 0
        took_s = work_of_children_s() - before_s
        assert took_s < WORK_S, took_s
    assert seen[0] == seen[1] and seen[0][2] == Decimal("50.00")
    said = (folder / "a" / "out.txt").read_text()
    assert sorted(steps, key=said.index) == list(steps)


def work_of_children_s() -> float:
    """Processor time of all processes that have ended and belonged to this one, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_all_that_it_leaves_is_its_owners_alone(folder: Path) -> None:
    """Ledger, journal, AOF, logs and images hold hashes, money and pictures: what an earlier version left, too."""
    (folder / "data").mkdir(mode=0o755)
    (folder / "data/images").mkdir(mode=0o755)
    (folder / "data/ledger.db").touch(0o644)
    with running_in(folder) as running:
        headers = bearer(running.facts["api_key"])
        order = {"model": FLUX, "prompt": "Un axolotl"}
        made = httpx2.post(f"{running.facts['base_url']}/images/generations", json=order, headers=headers, **LOOPBACK)
        assert httpx2.get(made.json()["data"][0]["url"], **LOOPBACK).status_code == 200
        found = [path for path in running.folder.rglob("*") if not path.is_socket()]
        assert {"appendonlydir", "ledger.db", "gateway.log", "0.jpg"} <= {path.name for path in found}
        assert [str(path) for path in found if path.stat().st_mode & 0o077] == []


def test_a_folder_that_it_makes_is_its_owners_alone(shared: Demo) -> None:
    """Other users of the machine find nothing in it."""
    assert shared.folder.stat().st_mode & 0o777 == 0o700


def test_the_readme_snippet_prints_a_url_that_loads(shared: Demo) -> None:
    """README's Python, letter by letter, with this demo's port and folder."""
    readme = (ROOT / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    snippet = snippet.replace(".ghub/demo.json", str(shared.folder / "demo.json"))
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=True, timeout=60)
    url = done.stdout.split()[-1]
    with Image.open(io.BytesIO(httpx2.get(url, **LOOPBACK).content)) as image:
        image.load()
        assert image.size == (1024, 1024)


def test_every_model_that_is_listed_makes_an_image(shared: Demo) -> None:
    """Everything offered to a newcomer works: no model in the list gives a 404 or a provider's failure."""
    facts = shared.facts
    with httpx2.Client(base_url=facts["base_url"], headers=bearer(facts["api_key"]), **LOOPBACK, timeout=60) as client:
        listed = [model["id"] for model in client.get("/models").json()["data"]]
        assert listed == list(read_catalogue(None).models)

        def make(name: str) -> httpx2.Response:
            return client.post("/images/generations", json={"model": name, "prompt": "un faro"})

        with ThreadPoolExecutor(4) as customers:
            made = dict(zip(listed, customers.map(make, listed), strict=True))
        assert {name: reply.status_code for name, reply in made.items()} == dict.fromkeys(listed, 200)
        for reply in made.values():
            assert client.get(reply.json()["data"][0]["url"]).headers["content-type"].startswith("image/")


def test_the_metrics_of_gateway_and_consumer_are_there(shared: Demo) -> None:
    """Each on a free port of its own, which demo.json names; an order is seen on both."""
    facts = shared.facts
    gateway, consumer = (httpx2.URL(facts[name]).port or 0 for name in ("metrics_url", "consumer_metrics_url"))
    assert gateway != consumer
    delivered, booked = f"ghub_orders_total{{model={FLUX},reason=delivered}}", "ghub_events_booked_total"
    before = scrape(gateway)[delivered], scrape(consumer)[booked]
    order = {"model": FLUX, "prompt": "un cenote"}
    url, headers = f"{facts['base_url']}/images/generations", bearer(facts["api_key"])
    assert httpx2.post(url, json=order, headers=headers, **LOOPBACK, timeout=60).status_code == 200
    assert scrape(gateway)[delivered] == before[0] + 1
    wait_until(lambda: scrape(consumer)[booked] > before[1], "the consumer has counted it")


def test_the_env_file_makes_other_commands_work(shared: Demo) -> None:
    """`. DIR/env`, then `ghub`: balance, verify, and what demo.json promises."""
    assert set(shared.facts) == {
        "base_url",
        "api_key",
        "org",
        "admin_token",
        "metrics_url",
        "consumer_metrics_url",
        "redis_url",
        "ledger_url",
        "simulator_url",
    }
    assert (shared.folder / "demo.json").stat().st_mode & 0o077 == 0
    assert (shared.folder / "jwt_secret").stat().st_mode & 0o077 == 0
    listed = httpx2.get(
        f"http://127.0.0.1:{shared.port}/admin/v1/orgs", headers=bearer(shared.facts["admin_token"]), **LOOPBACK
    )
    assert [org["name"] for org in listed.json()["data"]] == ["demo"]
    ghub = f"{sys.executable} -m proxy.cli"
    wait_until(lambda: verify(shared) == 0, "what other tests have ordered is in the ledger")
    script = f'. "{shared.folder}/env" && {ghub} balance demo --json && {ghub} verify'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert Decimal(json.loads(done.stdout.splitlines()[0])["balance_mxn"]) == available(shared)


def test_a_wiped_redis_then_ghub_serve_goes_on(shared: Demo) -> None:
    """FLUSHALL on the demo's Redis: the same key, limits and balance are back within seconds."""
    before = available(shared)
    assert order(shared) == 200
    wait_until(lambda: verify(shared) == 0, "the event is in the ledger")
    with Redis.from_url(shared.facts["redis_url"]) as redis:
        redis.flushall()
    wait_until(lambda: order(shared) == 200, "orders are taken again")
    assert available(shared) == before - 2 * Decimal("0.84")
    wait_until(lambda: verify(shared) == 0, "the books are right")


def test_who_has_spent_the_bonus_is_told_how_to_get_more(demo: Demo) -> None:
    """The command of the 402 stands in the banner, too; pasted into a second shell it works."""
    body = {"model": "openai/gpt-image-1", "prompt": "x", "n": 8}  # 31.92 MXN
    with httpx2.Client(base_url=demo.facts["base_url"], headers=bearer(demo.facts["api_key"]), **LOOPBACK) as client:
        assert client.post("/images/generations", json=body, timeout=60).status_code == 200
        refused = client.post("/images/generations", json=body, timeout=60)
        assert refused.status_code == 402
        (command,) = re.findall(r"Top up with `(.+)`\.$", refused.json()["error"]["message"])
        assert command.startswith("ghub credit add demo ")
        assert f".venv/bin/{command}" in (demo.folder.parent / "out.txt").read_text()
        script = f'. "{demo.folder}/env" && {sys.executable} -m proxy.cli {command.removeprefix("ghub ")}'
        subprocess.run(["sh", "-c", script], capture_output=True, check=True, cwd=ROOT)
        wait_until(lambda: available(demo) == Decimal("68.08"), "the credit is there")
        assert client.post("/images/generations", json=body, timeout=60).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_leaves_no_process(demo: Demo, number: int) -> None:
    """Ctrl-C and SIGTERM: exit 0, every child gone."""
    children = demo.members()
    assert len(children) == 4
    demo.process.send_signal(number)
    assert demo.process.wait(timeout=30) == 0
    assert alive(children) == set()


def test_a_kill_leaves_no_process(demo: Demo) -> None:
    """kill −9 of the demo itself: the parts notice and end by themselves."""
    children = demo.members()
    demo.process.kill()
    demo.process.wait(timeout=5)
    wait_until(lambda: alive(children) == set(), "the children are gone")


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_the_crash_of_one_part_ends_all(demo: Demo, place: int) -> None:
    """Exit 1 with a sentence that names the part; no other part stays."""
    children = sorted(demo.members())
    os.kill(children[place], signal.SIGKILL)
    assert demo.process.wait(timeout=30) == 1
    assert alive(set(children)) == set()
    part = ("valkey", "simulator", "consumer", "gateway")[place]
    assert f"ghub: the {part} ended by itself" in (demo.folder.parent / "out.txt").read_text()


def test_a_busy_port_is_one_sentence(folder: Path) -> None:
    """It names the port, starts nothing, and ends with 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        running = start(folder, port, executed)
        assert running.process.wait(timeout=30) == 1
    said = (folder / "out.txt").read_text()
    assert said.count("\n") == 1 and str(port) in said and "Choose another port" in said


def test_a_second_demo_in_the_same_folder_is_refused(shared: Demo) -> None:
    """One sentence; the first goes on."""
    second = start(shared.folder.parent, free_port())
    assert second.process.wait(timeout=30) == 1
    assert "another demo" in (shared.folder.parent / "out.txt").read_text()
    assert order(shared) == 200


def order(demo: Demo) -> int:
    """One picture."""
    facts, body = demo.facts, {"model": FLUX, "prompt": "x"}
    headers = bearer(facts["api_key"])
    return httpx2.post(
        f"{facts['base_url']}/images/generations", headers=headers, json=body, **LOOPBACK, timeout=60
    ).status_code


def available(demo: Demo) -> Decimal:
    """Money that the demo's organisation may spend. A busy machine may miss the 100 ms of a decision: then retry."""
    url, key = demo.facts["base_url"], demo.facts["api_key"]
    replies: list[httpx2.Response] = []

    def told() -> bool:
        replies.append(httpx2.get(f"{url}/credits", headers=bearer(key), **LOOPBACK))
        return replies[-1].status_code != 503

    wait_until(told, "the gateway can decide")
    return Decimal(replies[-1].json()["available_mxn"])


def verify(demo: Demo) -> int:
    """`ghub verify` in the demo's environment."""
    script = f'. "{demo.folder}/env" && env -0'
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, env=CLEAN).stdout
    environment = dict(line.split("=", 1) for line in said.split("\0") if line)
    return finished(Forked, ["verify"], environment, within_s=60).returncode
