"""Problems of newcomers: what is loaded, cannot be written, is mistyped, or is empty."""

import csv
import io
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from config.settings import CONSUMER_METRICS_PORT, GATEWAY_METRICS_PORT, Settings
from metering.clock import period_at, unix_us_at, utc_now
from proxy.cli.process import bind_metrics
from proxy.cli.root import ENTRIES
from tests.kits.ports import free_port
from tests.kits.processes import Forked, finished
from tests.kits.system import System

ROOT = Path(__file__).parents[2]
BARE = {name: value for name, value in os.environ.items() if not name.startswith("GHUB_")}

HEAVY = {
    "httptools",
    "cryptography",
    "google",
    "hypercorn",
    "hypothesis",
    "jwt",
    "psycopg",
    "pydantic",
    "redis",
    "starlette",
    "structlog",
    "uvloop",
}
"""Each takes from 20 to 400 ms of CPU to load."""

SERVERS = {"httptools", "google", "hypercorn", "hypothesis", "jwt", "psycopg"}
"""What only those need that serve, that look at the store, or that sign."""

LARGE = {"demo", "gateway", "consume", "simulate", "token", "storage", "verify", "order", "reconcile"}
"""Modules of commands that do."""


def loaded_by(*arguments: str, cwd: Path | None = None) -> set[str]:
    """The packages that `ghub` has loaded when it ends, in a new process."""
    program = (
        "import sys, runpy, atexit\n"
        "atexit.register(lambda: print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr))\n"
        f"sys.argv = ['ghub', *{arguments!r}]\n"
        "runpy.run_module('proxy.cli', run_name='__main__')\n"
    )
    environment = {**BARE, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=cwd, capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stderr, done.stderr
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ()])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    """It checks what is loaded, not how long it takes, which depends on the machine: none of the large libraries."""
    assert loaded_by(*arguments) & HEAVY == set()


def test_small_commands_load_no_server() -> None:
    """Those that read and write ledger and Redis load neither the gateway, nor an HTTP client, nor psycopg."""
    small = sorted({f"proxy.cli.{entry.module}" for entry in ENTRIES.values() if entry.module not in LARGE})
    assert len(small) >= 8
    program = f"import sys, {', '.join(small)}\nprint(*sys.modules)"
    environment = {**BARE, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & SERVERS == set()


def test_the_list_needs_no_server_either(tmp_path: Path) -> None:
    """Also when it runs, and not for its help alone; and without settings it leaves no database behind."""
    assert loaded_by("org", "list", cwd=tmp_path) & SERVERS == set()
    assert list(tmp_path.iterdir()) == []


def test_version() -> None:
    """The package's version."""
    done = finished(Forked, ["--version"], BARE, within_s=60)
    assert (done.returncode, done.stdout) == (0, "ghub 0.1.0\n")


def test_without_settings_a_command_says_what_is_missing(tmp_path: Path) -> None:
    """`ghub org list` in an empty folder: one sentence, exit 1, and the folder stays empty."""
    environment = {**BARE, "GHUB_LEDGER_URL": f"sqlite:///{tmp_path / 'ghub.db'}"}
    done = finished(Forked, ["org", "list"], environment, within_s=60)
    assert done.returncode == 1 and "run `ghub migrate`" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def unwritable(tmp_path: Path) -> dict[str, Path]:
    """A file, something below it, and a folder in which nobody may make anything, root included."""
    (tmp_path / "file").write_text("x")
    return {"file": tmp_path / "file", "below": tmp_path / "file" / "x", "kernel": Path("/proc/self")}


@pytest.mark.parametrize("place", ["file", "below", "kernel"])
def test_a_data_folder_that_cannot_be_used_is_one_sentence(unwritable: dict[str, Path], place: str) -> None:
    """It names the option, the folder and the reason, and leaves nothing."""
    arguments = ["demo", "--port", str(free_port()), "--data", str(unwritable[place])]
    done = finished(Forked, arguments, BARE, within_s=60)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"ghub: --data: '{unwritable[place]}' cannot be used: ")
    assert len(done.stderr.splitlines()) == 1


def test_an_export_that_cannot_be_written_is_one_sentence(system: System) -> None:
    """It names the option and the file."""
    done = system.ghub("usage", "export", "--out", "/proc/self/month.csv")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("ghub: --out: '/proc/self/month.csv' cannot be written: ")


def test_an_export_goes_to_standard_output_and_says_that_it_is_empty(system: System) -> None:
    """`--out -` is a pipe's: rows alone there, the report on standard error; the month is Mexico City's present one."""
    org_id, _ = system.customer("quiet")
    month = period_at(unix_us_at(utc_now())).month
    done = system.ghub("usage", "export", "--out", "-", "--org", org_id)
    assert done.returncode == 0 and not Path("-").exists()
    (head,) = csv.reader(io.StringIO(done.stdout))
    assert head[0] == "event_id"
    assert f"month         {month}\n" in done.stderr
    assert f"ghub: warning: nothing was charged or refunded in {month}: the export has no rows\n" in done.stderr


def test_a_mistyped_setting_is_told(system: System) -> None:
    """By every command, and by the gateway in its log: the name, and the one that it may be meant for."""
    wrong = {"GHUB_LEDGER_ULR": "x", "GHUB_COLOUR": "blue"}
    done = finished(Forked, ["org", "list"], {**os.environ, **system.environment, **wrong}, within_s=60)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "ghub: warning: GHUB_COLOUR is no setting; it changes nothing.",
        "ghub: warning: GHUB_LEDGER_ULR is no setting; did you mean GHUB_LEDGER_URL?",
    ]
    assert system.ghub("org", "list").stderr == ""
    system.start("mistyped", "serve", GHUB_REDIS_URL="", GHUB_PORT=str(free_port()), GHUB_TOPUP_ULR="x")
    system.processes.pop("mistyped").wait(timeout=20)
    line = json.loads(system.log("mistyped").splitlines()[0])
    facts = {name: line[name] for name in ("event", "name", "did_you_mean")}
    assert facts == {"event": "no_such_setting", "name": "GHUB_TOPUP_ULR", "did_you_mean": "GHUB_TOPUP_URL"}


def test_wrong_names_are_called_as_the_usage_calls_them(system: System) -> None:
    """An argument is no option: NAME, and not --name."""
    system.ghub("org", "create", "shared twice")
    assert "ghub: NAME: an organisation named" in system.ghub("org", "create", "shared twice").stderr
    assert "ghub: PLAN: there is no plan 'gold'" in system.ghub("org", "plan", "shared twice", "gold").stderr
    assert "ghub: --plan: there is no plan 'gold'" in system.ghub("org", "create", "x", "--plan", "gold").stderr


def test_a_rebuild_and_a_proof_say_what_a_person_expects(system: System) -> None:
    """No log line, no journal of the gateway that runs, no empty list; `verify` counts what it looked at."""
    system.customer("calm", "1.00")
    done = system.ghub("wallet", "rebuild", "calm")
    assert (done.returncode, done.stdout, done.stderr) == (0, "rebuilt  calm\n", "")
    done = system.ghub("verify", "--org", "calm")
    assert (done.returncode, done.stderr) == (0, "")
    said = dict(line.split() for line in done.stdout.splitlines())
    assert said == {"ok": "yes", "organisations": "1", "orders": "0", "images": "0"}


def test_gateway_and_consumer_have_a_metrics_port_each() -> None:
    """So that both start on one machine with nothing set; what is set holds for either, and 0 is off."""
    assert (GATEWAY_METRICS_PORT, CONSUMER_METRICS_PORT) == (9090, 9091)
    usual, given = free_port(), free_port()
    for port, bound in ((None, usual), (given, given), (0, None)):
        with bind_metrics(Settings(metrics_port=port), usual) or nullcontext() as listener:
            assert (listener and listener.getsockname()[1]) == bound
