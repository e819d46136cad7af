"""A system of real processes whose metrics a real Prometheus reads, with the alerts that production has."""

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import httpx2

from docs.alerts import CONSUMERS, GATEWAYS, duration
from docs.prometheusrule import groups
from tests.conftest import LOOPBACK
from tests.kits.metrics import scrape
from tests.kits.ports import free_port
from tests.kits.processes import Begin, executed
from tests.kits.prometheus import Prometheus, Target
from tests.kits.system import System, bearer, wait_until

JOBS = {"gateway": GATEWAYS.removeprefix("(.+-)?"), "consumer": CONSUMERS.removeprefix("(.+-)?")}
"""As the Services are called."""


class Watched:
    """Processes of one or more systems, and the server that reads them. `scale` shortens windows, ages and waits."""

    def __init__(self, folder: Path, scale: float = 1.0, scrape_ms: int = 250) -> None:
        self.prometheus = Prometheus(folder, groups(scale), scrape_ms)
        self._targets: dict[str, Target] = {}

    def start(self, system: System, name: str, kind: str, begin: Begin = executed, **more: str) -> None:
        """Start a gateway or a consumer with its metrics on, and read them.

        A consumer is executed, because the forked ones have the metrics of every part at 0.
        """
        port = self._targets[name].port if name in self._targets else free_port()
        usual, system.begin = system.begin, begin
        try:
            if kind == "gateway":
                system.start_gateway(name, GHUB_METRICS_PORT=str(port), **more)
            else:
                system.start(name, "consume", GHUB_METRICS_PORT=str(port), **more)
        finally:
            system.begin = usual
        wait_until(lambda: answers(port), f"{name} has metrics")
        self._targets[name] = Target(name, port, JOBS[kind])
        self.prometheus.scrape(*self._targets.values())

    def forget(self, name: str) -> None:
        """Read it no more: its pod is gone."""
        del self._targets[name]
        self.prometheus.scrape(*self._targets.values())

    def until_fired(self, *names: str, within_s: float = 60.0, keep_on: Callable[[], object] | None = None) -> None:
        """Wait until these alerts have fired; `keep_on` is called again and again meanwhile."""

        began_s = time.monotonic()
        while left := set(names) - self.prometheus.fired():
            assert time.monotonic() - began_s < within_s, f"not within {within_s} s: {sorted(left)}"
            if keep_on is not None:
                keep_on()
            time.sleep(0.1)
        assert self.prometheus.broken_rules() == []


def plain(expr: str, rate_s: float) -> str:
    """A query of the dashboard as Grafana sends it: everything chosen, and rates over so many seconds."""
    for name in ("namespace", "pod", "model", "provider"):
        expr = expr.replace(f"${name}", ".*")
    return expr.replace("$__rate_interval", duration(rate_s))


def answers(port: int) -> bool:
    """True if metrics are there."""
    try:
        return bool(scrape(port))
    except httpx2.TransportError:
        return False


PROMPTS = count()


def order(system: System, key: str, model: str, **more: object) -> httpx2.Response:
    """One order, which no other is the same as."""
    body = {"model": model, "prompt": f"order {next(PROMPTS)}", **more}
    url = f"{system.url}/images/generations"
    return httpx2.post(url, headers=bearer(key), json=body, **LOOPBACK, timeout=90)
