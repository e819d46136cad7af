"""Open files: the limit is raised, some are reserved for us, and with too few there is no start."""

import functools
import json
import resource
import socket

import httpx2

from proxy.server.descriptors import FILES_EACH, LEAST_FILES, RESERVED_FILES
from tests.conftest import LOOPBACK, run
from tests.e2e.conftest import Prepared
from tests.kits.crowds import connections, ordered
from tests.kits.ports import free_port
from tests.kits.processes import Forked
from tests.kits.system import wait_until

SILENT = 1_100
"""So many switched a gateway off that could open 1,024 files."""

SOFT = 1_024


def limited(hard: int) -> None:
    """Called in the new process: what shells and older container runtimes give."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(SOFT, hard), hard))


def test_silent_connections_above_all_files_of_a_shell_switch_nothing_off(prepared: Prepared) -> None:
    """Probes are answered while they hold every place, and orders when there is one again; the store is never away."""
    system = prepared(GHUB_METRICS_PORT=str(free_port()))
    system.valkey.start()
    system.start("simulator", "simulate", "--port", str(system.simulator_port), "--latency-scale", "0")
    system.start("consumer", "consume", GHUB_METRICS_PORT="0")
    system.begin = functools.partial(Forked, before=functools.partial(limited, LEAST_FILES))
    system.start_gateway()
    _, key = system.customer("honest", "10.00")
    files = next(line for line in map(json.loads, system.log().splitlines()) if line["event"] == "files")
    most = (LEAST_FILES - RESERVED_FILES) // FILES_EACH
    assert (files["before"], files["now"], files["connections"]) == (SOFT, LEAST_FILES, most)

    crowd = [socket.create_connection(("127.0.0.1", system.port)) for _ in range(SILENT)]
    wait_until(lambda: "connections_cut" in system.log(), "every place is taken")
    for path in ("healthz", "readyz"):
        probed = httpx2.get(f"http://127.0.0.1:{system.environment['GHUB_METRICS_PORT']}/{path}", **LOOPBACK)
        assert probed.status_code == 200

    async def order() -> int:
        async with system.client(key) as client:
            return (await ordered(client)).status_code

    for one in crowd:
        one.close()
    wait_until(lambda: len(connections(system.port)) < most, "they are gone")
    assert run(order()) == 200
    assert "store" not in {line["event"].partition("_")[0] for line in map(json.loads, system.log().splitlines())}


def test_too_few_files_are_told_in_one_sentence(prepared: Prepared) -> None:
    """It says how many there are, how many are needed and how to raise the limit; nothing is opened."""
    system = prepared()
    system.valkey.start()
    system.begin = functools.partial(Forked, before=functools.partial(limited, LEAST_FILES - 1))
    system.start("gateway", "serve")
    assert system.processes.pop("gateway").wait(timeout=20) == 1
    assert system.log() == (
        f"ghub: this process may open {LEAST_FILES - 1} files, and a gateway needs {LEAST_FILES}: raise the hard limit"
        " (ulimit -Hn, LimitNOFILE of systemd) to 11392 or more.\n"
    )
    assert not (system.folder / "journal").exists()
