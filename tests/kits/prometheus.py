"""A real Prometheus over real metrics ports, and its answers."""

import json
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.conftest import LOOPBACK
from tests.kits.ports import free_port
from tests.kits.programs import program
from tests.kits.system import wait_until

SCRAPE_MS = 250
"""How often a test's server reads the metrics, and judges its rules: as often as the shortest window has room for."""

Series = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """One metrics port, with the labels that a ServiceMonitor would give it."""

    pod: str
    port: int
    job: str


class Prometheus:
    """One server, its storage in a folder that outlives it."""

    def __init__(self, folder: Path, rules: Mapping[str, Any] | None = None, scrape_ms: int = SCRAPE_MS) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        every = f"{scrape_ms}ms"
        self._rules = rules or {"groups": []}
        (folder / "rules.json").write_text(json.dumps({"groups": []}))
        (folder / "targets.json").write_text("[]")
        configuration = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "rule_files": ["rules.json"],
            "scrape_configs": [
                {"job_name": "all", "file_sd_configs": [{"files": ["targets.json"], "refresh_interval": "1s"}]}
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(configuration))

    def scrape(self, *targets: Target) -> None:
        """Say what is read from now on."""
        found = [
            {"targets": [f"127.0.0.1:{one.port}"], "labels": {"pod": one.pod, "job": one.job, "instance": one.pod}}
            for one in targets
        ]
        whole = self._folder / "targets.part"
        whole.write_text(json.dumps(found))
        whole.replace(self._folder / "targets.json")

    def start(self, targets: int = 0) -> None:
        """Start, and return when it reads so many targets. Only then it judges: nothing is absent that was not read."""
        command = [
            program("prometheus"),
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
            "--log.level=warn",
        ]
        with (self._folder / "prometheus.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._ready, f"Prometheus is ready: {self._folder}/prometheus.log")
        wait_until(lambda: len(self.query("up == 1")) >= targets, f"{targets} targets are read")
        (self._folder / "rules.json").write_text(json.dumps(self._rules))
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """End it as an operator would, so that its storage is whole."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def query(self, expr: str) -> list[Series]:
        """Evaluate it now."""
        found: list[Series] = self._get("query", query=expr)["result"]
        return found

    def query_range(self, expr: str, start_s: float, end_s: float, step_s: float) -> list[Series]:
        """Evaluate it over a time."""
        found: list[Series] = self._get("query_range", query=expr, start=start_s, end=end_s, step=step_s)["result"]
        return found

    def fired(self) -> set[str]:
        """Names of the alerts that have fired at any moment so far."""
        seen = self.query('count by (alertname) (count_over_time(ALERTS{alertstate="firing"}[1h]))')
        return {one["metric"]["alertname"] for one in seen}

    def broken_rules(self) -> list[str]:
        """Rules that could not be evaluated, and alerts whose text could not be made."""
        found = []
        for group in self._get("rules")["groups"]:
            for rule in group["rules"]:
                texts = " ".join(text for alert in rule["alerts"] for text in alert["annotations"].values())
                if rule["health"] != "ok" or "<error" in texts or "<no value>" in texts:
                    found.append(f"{rule['name']}: {rule.get('lastError', texts)}")
        return found

    def _get(self, what: str, **params: Any) -> Any:
        reply = httpx2.get(f"http://127.0.0.1:{self._port}/api/v1/{what}", params=params, **LOOPBACK, timeout=30)
        answer = reply.json()
        assert answer["status"] == "success", f"{params}: {answer.get('error')}"
        return answer["data"]

    def _ready(self) -> bool:
        assert self._process is not None and self._process.poll() is None, "Prometheus ended"
        try:
            return httpx2.get(f"http://127.0.0.1:{self._port}/-/ready", **LOOPBACK).status_code == 200
        except httpx2.TransportError:
            return False
