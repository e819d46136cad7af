"""`ghub serve --processes N`: one port, one drain and one page of metrics, whatever happens to one of the processes."""

import json
import os
import signal
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import LOOPBACK
from tests.e2e.conftest import Prepared
from tests.kits.ports import free_port
from tests.kits.system import FLUX, System, bearer, wait_until


def children(system: System, name: str = "gateway") -> dict[int, int]:
    """The process ids of a gateway's processes, by their numbers."""
    parent, found = system.processes[name].pid, {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            status = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines() if ":\t" in line)
            words = (place / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue  # it ended meanwhile
        if int(status["PPid"]) == parent and "--inherited" in words:
            found[int(words[words.index("--inherited") + 1].split(":")[0])] = int(place.name)
    return found


def start(system: System, count: int = 2) -> str:
    """Start a gateway of so many processes, and wait for all of them; returns its metrics' address."""
    metrics = f"http://127.0.0.1:{free_port()}"
    system.start("gateway", "serve", "--processes", str(count), GHUB_METRICS_PORT=metrics.rpartition(":")[2])
    wait_until(lambda: serving(system) == count, "all processes serve")
    wait_until(lambda: system._answers(f"{metrics}/readyz"), "the whole is ready")
    wait_until(system.projected, "Redis is projected")
    return metrics


def serving(system: System) -> int:
    """How often a process has begun to serve."""
    return system.log().count('"event":"serving"') if (system.folder / "gateway.log").exists() else 0


def test_smoke(prepared: Prepared) -> None:
    system = prepared()
    system.valkey.start()
    system.start("simulator", "simulate", "--port", str(system.simulator_port), "--latency-scale", "0")
    system.start("consumer", "consume")
    metrics = start(system)
    org, key = system.customer("two", "50.00")
    for turn in range(8):
        reply = httpx2.post(f"{system.url}/images/generations", json={"model": FLUX, "prompt": f"x{turn}"}, headers=bearer(key), **LOOPBACK, timeout=30)
        assert reply.status_code == 200, reply.text
    page = httpx2.get(f"{metrics}/metrics", **LOOPBACK).text
    print(page)
    print(children(system))
    assert system.stop("gateway") == 0
    print(system.log())
    assert system.ghub("verify").returncode == 0
