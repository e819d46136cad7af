"""`ghub demo` as a newcomer meets it: ready in seconds, the README's own snippet works, nothing is left behind."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from redis import Redis

from tests.e2e.kit import FLUX, bearer, free_port, wait_until

ROOT = Path(__file__).parents[2]
READY_S = 5.0


@dataclass
class Demo:
    """A running `ghub demo`."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def facts(self) -> dict[str, Any]:
        """What it wrote when it was ready."""
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


def start(folder: Path, port: int) -> Demo:
    """Start it; its own output goes to a file beside its data."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GHUB_")}
    with (folder / "out.txt").open("wb") as out:
        command = [sys.executable, "-m", "proxy.cli", "demo", "--port", str(port), "--data", str(folder / "data")]
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    return Demo(folder / "data", port, process)


@pytest.fixture
def demo(folder: Path) -> Iterator[Demo]:
    """A demo that is ready."""
    running = start(folder, free_port())
    running.wait_ready()
    yield running
    if running.process.poll() is None:
        running.process.terminate()
    running.process.wait(timeout=30)


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


def test_start_to_ready_takes_under_five_seconds(folder: Path) -> None:
    """The second start, with state to find again, as well as the first; key and balance are the same."""
    port = free_port()
    seen = []
    for _ in range(2):
        began = time.monotonic()
        running = start(folder, port)
        running.wait_ready()
        assert time.monotonic() - began < READY_S
        balance = httpx2.get(
            f"{running.facts['base_url']}/credits", headers=bearer(running.facts["api_key"]), trust_env=False
        )
        seen.append((running.facts["api_key"], running.facts["org"], balance.json()["available_mxn"]))
        running.process.terminate()
        assert running.process.wait(timeout=30) == 0
    assert seen[0] == seen[1] and seen[0][2] == "50.00"


def test_the_readme_snippet_prints_a_url_that_loads(demo: Demo) -> None:
    """README's Python, letter by letter, with this demo's port and folder."""
    readme = (ROOT / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    snippet = snippet.replace(".ghub/demo.json", str(demo.folder / "demo.json"))
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=True, timeout=60)
    url = done.stdout.split()[-1]
    with Image.open(io.BytesIO(httpx2.get(url, trust_env=False).content)) as image:
        image.load()
        assert image.size == (1024, 1024)


def test_the_env_file_makes_other_commands_work(demo: Demo) -> None:
    """`. DIR/env`, then `ghub`: balance, verify, and what demo.json promises."""
    assert set(demo.facts) == {
        "base_url",
        "api_key",
        "org",
        "admin_token",
        "redis_url",
        "ledger_url",
        "simulator_url",
    }
    assert (demo.folder / "demo.json").stat().st_mode & 0o077 == 0
    assert (demo.folder / "jwt_secret").stat().st_mode & 0o077 == 0
    listed = httpx2.get(
        f"http://127.0.0.1:{demo.port}/admin/v1/orgs", headers=bearer(demo.facts["admin_token"]), trust_env=False
    )
    assert [org["name"] for org in listed.json()["data"]] == ["demo"]
    ghub = f"{sys.executable} -m proxy.cli"
    script = f'. "{demo.folder}/env" && {ghub} balance demo --json && {ghub} verify'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout.splitlines()[0])["balance_mxn"] == "50.00"


def test_a_wiped_redis_then_ghub_serve_goes_on(demo: Demo) -> None:
    """FLUSHALL on the demo's Redis: the same key, limits and balance are back within seconds."""
    assert order(demo) == 200
    wait_until(lambda: verify(demo) == 0, "the event is in the ledger")
    with Redis.from_url(demo.facts["redis_url"]) as redis:
        redis.flushall()
    wait_until(lambda: order(demo) == 200, "orders are taken again")
    reply = httpx2.get(f"{demo.facts['base_url']}/credits", headers=bearer(demo.facts["api_key"]), trust_env=False)
    assert reply.json()["available_mxn"] == "48.32"
    wait_until(lambda: verify(demo) == 0, "the books are right")


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
        running = start(folder, port)
        assert running.process.wait(timeout=30) == 1
    said = (folder / "out.txt").read_text()
    assert said.count("\n") == 1 and str(port) in said and "Choose another port" in said


def test_a_second_demo_in_the_same_folder_is_refused(demo: Demo) -> None:
    """One sentence; the first goes on."""
    second = start(demo.folder.parent, free_port())
    assert second.process.wait(timeout=30) == 1
    assert "another demo" in (demo.folder.parent / "out.txt").read_text()
    assert order(demo) == 200


def order(demo: Demo) -> int:
    """One picture."""
    facts, body = demo.facts, {"model": FLUX, "prompt": "x"}
    headers = bearer(facts["api_key"])
    return httpx2.post(
        f"{facts['base_url']}/images/generations", headers=headers, json=body, trust_env=False, timeout=60
    ).status_code


def verify(demo: Demo) -> int:
    """`ghub verify` in the demo's environment."""
    script = f'. "{demo.folder}/env" && {sys.executable} -m proxy.cli verify'
    return subprocess.run(["sh", "-c", script], capture_output=True, check=False, cwd=ROOT).returncode
