"""What a person waits for before a command's own work begins, and what an idle gateway costs.

Everything is compared with a process that only imports the same libraries: a command by CPU time, in turn with it, in
an empty system with one organisation. The libraries of a command are those that our modules import which it loads.
"""

import ast
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.figures import Figure, number, ratios
from bench.processes import resident_bytes
from proxy.cli.root import commands
from tests.kits.ports import free_port
from tests.kits.processes import executed
from tests.kits.system import System, prepare

ROUNDS = 3
IDLE_S = 10.0
SETTLE_S = 5.0
"""What a gateway that has just started still does, such as its first looks at store and ledger, is over by then."""

MAX_OF_HELP = 2.5
MAX_OF_LIBRARIES = 1.3
MAX_READY_S = 0.5
MAX_IDLE_MIB = 25.0
MAX_IDLE_PERCENT = 0.5

OURS = frozenset({"proxy", "metering", "config", "simulator"})

GHUB = "from proxy.cli.root import main; main()"
"""The entry point, as its script calls it."""

TYPER = """
import rich, typer
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
@app.command()
def hello(name: str = "you") -> None:
    "Say hello."
app(["--help"])
"""
"""The least that any program with a help by typer and rich needs."""

LOADED = """
import atexit, json, sys
def tell():
    with open({path!r}, "w") as file:
        json.dump({{name: getattr(module, "__file__", None) for name, module in sys.modules.items()}}, file)
atexit.register(tell)
"""
"""Comes before `GHUB` in the one run that tells which modules were loaded."""

IMPORTS = "import gc; gc.disable(); import proxy.cli.serve"
"""What the gateway imports, loaded as it loads it."""

RESIDENT = """
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmRSS")))
"""

ORG = "acme"
WORDS = {
    "name": "p1-1-1",
    "key_id": "key_nobody",
    "overlap": "1h",
    "mxn": "1.00",
    "kind": "bonus",
    "credit_id": "pay-1",
    "reason": "a benchmark",
    "order": "req_" + "0" * 32,
    "month": "2031-01",
    "rate": "18.4512",
    "source": "a benchmark",
    "out": "-",
    "incarnation": str(UUID(int=1)),
    "role": "admin",
    "plan": "default",
}
"""A value for each parameter that must be given, by its name; for any other, the organisation's name."""

MORE: Mapping[tuple[str, ...], Sequence[str]] = {
    ("org", "limits"): ("--images-per-day", "7"),
    ("key", "limits"): ("--images-per-day", "7"),
    ("journal", "close"): ("--lost",),
    ("demo",): ("--data", "/dev/null/demo"),
}
"""Options without which a command would end before its work begins, or, if it runs until it is stopped, would not."""


@dataclass
class Timed:
    """CPU seconds of a command and of its libraries alone, round by round."""

    name: str
    arguments: Sequence[str]
    libraries: str = ""
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return statistics.median(ratios(self.ours, self.theirs))


def measure() -> list[Figure]:
    with (
        tempfile.TemporaryDirectory(prefix="ghub-") as folder,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        of_commands = _commands(Path(folder), progress)
        of_gateway = _gateway(Path(folder), progress)
    return of_commands + of_gateway


# --- commands ---


def _commands(folder: Path, progress: Progress) -> list[Figure]:
    place = folder / "commands"
    place.mkdir()
    system = prepare(place, GHUB_JWT_SECRET="x" * 40)
    system.valkey.start()
    system.customer(ORG)
    (place / "journal").mkdir()
    try:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            return _timed(system, taken.getsockname()[1], progress)
    finally:
        system.stop_all()


def _timed(system: System, taken_port: int, progress: Progress) -> list[Figure]:
    environment = _without_ours(os.environ) | system.environment
    helps = [
        Timed("ghub --help", ["--help"]),
        Timed("ghub --version", ["--version"]),
        Timed("ghub with a wrong command", ["nonsense"]),
        Timed("ghub with a wrong option", ["--nonsense"]),
        Timed("ghub org create without a name", ["org", "create"]),
    ]
    heaviest = Timed("ghub serve with a wrong option", ["serve", "--nonsense"], TYPER)
    for one in helps:
        one.libraries = TYPER
    others = [
        Timed(" ".join(words), [*words, *_arguments(command.params, system, taken_port), *MORE.get(words, ())])
        for words, command in commands()
    ]
    task = progress.add_task("commands", total=(ROUNDS + 1) * (len(helps) + 1 + len(others)))
    for one in others:
        one.libraries = _imports(_loaded(one.arguments, _environment(one, environment, system), system.folder))
    for number_of_round in range(ROUNDS + 1):  # the first one fills caches, and does not count
        for one in (*helps, heaviest, *others):
            ours = _cpu_s([sys.executable, "-c", GHUB, *one.arguments], _environment(one, environment, system))
            theirs = _cpu_s([sys.executable, "-c", one.libraries], environment)
            if number_of_round:
                one.ours.append(ours)
                one.theirs.append(theirs)
            progress.advance(task)
    _tell(helps, others)
    return [
        *(Figure(one.name, "× typer and rich", ratios(one.ours, one.theirs), most=MAX_OF_HELP) for one in helps),
        Figure(heaviest.name, "× typer and rich", ratios(heaviest.ours, heaviest.theirs)),
        _worst(others),
        Figure("a command, median", "× its libraries", _medians(others)),
    ]


def _worst(timed: Sequence[Timed]) -> Figure:
    worst = max(timed, key=lambda one: one.ratio)
    return Figure(
        f"the worst: ghub {worst.name}", "× its libraries", ratios(worst.ours, worst.theirs), most=MAX_OF_LIBRARIES
    )


def _medians(timed: Sequence[Timed]) -> list[float]:
    """Return the median of all commands, in each round."""
    return [statistics.median(rows) for rows in zip(*(ratios(one.ours, one.theirs) for one in timed), strict=True)]


def _tell(helps: Sequence[Timed], others: Sequence[Timed]) -> None:
    """Print every command on standard error, the worst first."""
    table = Table("command", "CPU, ms", "compared with, ms", "ratio", "")
    for one in (*helps, *sorted(others, key=lambda one: -one.ratio)):
        most = MAX_OF_HELP if one in helps else MAX_OF_LIBRARIES
        table.add_row(
            one.name.removeprefix("ghub "),
            f"{statistics.median(one.ours) * 1000:.0f}",
            f"{statistics.median(one.theirs) * 1000:.0f}",
            number(one.ratio),
            "" if one.ratio <= most else "[red]above the goal",
        )
    Console(stderr=True, width=None if sys.stderr.isatty() else 120).print(table)


def _arguments(params: Iterable[Any], system: System, taken_port: int) -> Iterator[str]:
    """Yield a value for each parameter that a command cannot do without; a port is one that is taken."""
    values = WORDS | {"folder": str(system.folder / "journal"), "port": str(taken_port)}
    for param in params:
        if param.required:
            if param.param_type_name == "option":
                yield param.opts[0]
            yield values.get(param.name, ORG)


def _environment(one: Timed, environment: Mapping[str, str], system: System) -> dict[str, str]:
    """Return a command's environment. A process that would run until it is stopped finds a ledger without tables."""
    endless = one.name in ("serve", "consume")
    return {**environment, **({"GHUB_LEDGER_URL": f"sqlite:///{system.folder / 'empty.db'}"} if endless else {})}


def _without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith("GHUB_")}


def _cpu_s(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Run a command to its end; returns its CPU seconds, its children's included."""
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode in (0, 1, 2, 3), command
    return usage.ru_utime + usage.ru_stime


# --- which libraries a command uses ---


def _loaded(arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> dict[str, str | None]:
    """Run a command once; returns the modules that it loaded, with their files."""
    path = folder / "loaded.json"
    subprocess.run(
        [sys.executable, "-c", LOADED.format(path=str(path)) + GHUB, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    found: dict[str, str | None] = json.loads(path.read_text())
    path.unlink()
    return found


def _imports(loaded: Mapping[str, str | None]) -> str:
    """Return the statement that imports what our modules among these import from libraries."""
    names: dict[str, None] = {}
    for module, file in loaded.items():
        if module.partition(".")[0] in OURS and file is not None:
            names |= dict.fromkeys(name for name in _named(Path(file)) if name in loaded and _is_library(name))
    return f"import {', '.join(names)}" if names else ""


def _is_library(name: str) -> bool:
    top = name.partition(".")[0]
    return top not in OURS and top not in sys.stdlib_module_names


def _named(file: Path) -> Iterator[str]:
    """Yield every module that a file names in an import; of `from a import b` both `a` and `a.b`, which may be one."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            yield node.module
            yield from (f"{node.module}.{one.name}" for one in node.names)


# --- the gateway ---


def _gateway(folder: Path, progress: Progress) -> list[Figure]:
    """Start a gateway with everything that it may have, again and again, with a process that only imports in turn."""
    ready_s: list[float] = []
    cpu_s: list[float] = []
    mib: list[float] = []
    percent: list[float] = []
    task = progress.add_task("the gateway, idle", total=ROUNDS + 1)
    for number_of_round in range(ROUNDS + 1):  # the first one fills caches, and does not count
        with _running(folder / f"serve-{number_of_round}") as system:
            imports = _cpu_wall_and_rss(IMPORTS)
            began_s = time.monotonic()
            system.start("gateway", "serve")
            pid = system.processes["gateway"].pid
            _until_ready(system.port)
            took_s, took_cpu_s = time.monotonic() - began_s, process_cpu_s(pid)
            progress.advance(task)
            if not number_of_round:
                continue
            time.sleep(SETTLE_S)
            before_s = process_cpu_s(pid)
            time.sleep(IDLE_S)
            percent.append((process_cpu_s(pid) - before_s) / IDLE_S * 100)
            mib.append((resident_bytes(pid, "VmRSS") - imports.resident_bytes) / 2**20)
            ready_s.append(took_s - imports.wall_s)
            cpu_s.append(took_cpu_s - imports.cpu_s)
    return [
        Figure("serve ready, above its imports", "s", ready_s, most=MAX_READY_S),
        Figure("… its CPU until then", "s", cpu_s),
        Figure("serve idle, above its imports", "MiB resident", mib, most=MAX_IDLE_MIB),
        Figure("serve idle", "% of a core", percent, most=MAX_IDLE_PERCENT),
    ]


@contextmanager
def _running(place: Path) -> Iterator[System]:
    """Make a system of which everything but the gateway runs. Its gateway has a metrics port and the admin API."""
    place.mkdir()
    system = prepare(place, GHUB_METRICS_PORT=str(free_port()), GHUB_JWT_SECRET="x" * 40)
    system.begin = executed  # with memory that it shares with nobody
    try:
        system.valkey.start()
        system.start("simulator", "simulate", "--port", str(system.simulator_port))
        system.start("consumer", "consume", GHUB_METRICS_PORT="0")
        system.customer(ORG)
        time.sleep(3)  # their own starts are over
        yield system
    finally:
        system.stop_all()


@dataclass(frozen=True, slots=True)
class Imported:
    """What a process needs that only imports."""

    wall_s: float
    cpu_s: float
    resident_bytes: int


def _cpu_wall_and_rss(imports: str) -> Imported:
    began_s = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", imports + RESIDENT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        kib = int(process.stdout.read())
        wall_s = time.monotonic() - began_s
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return Imported(wall_s, usage.ru_utime + usage.ru_stime, kib * 1024)


def process_cpu_s(pid: int) -> float:
    """Read the CPU seconds of a process, to the microsecond; /proc/PID/stat has hundredths."""
    return time.clock_gettime((~pid << 3) | 2)  # the kernel's own way to name another process' clock


def _until_ready(port: int) -> None:
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as client:
                client.sendall(b"GET /readyz HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")
                if client.recv(64).startswith(b"HTTP/1.1 200"):
                    return
        except OSError:
            pass
        time.sleep(0.005)
    raise AssertionError("the gateway is not ready")
