"""Background work of a gateway or a consumer that fails unforeseen: nobody is served by halves."""

import functools
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from metering import background, consumer
from metering.fx import FxTable
from metering.journal.open_orders import OpenOrders
from metering.journal.recovery import Recovery
from metering.price_table import PriceTable
from metering.wallet.login import Login
from metering.wallet.pressure import Pressure
from metering.wallet.projection import Projector
from proxy.api.cors import Origins
from proxy.orders.orphans import Orphans
from proxy.reload import ConfigFiles
from proxy.storage.watch import StoreWatch
from tests.conftest import LOOPBACK
from tests.e2e.conftest import Prepared
from tests.kits.ports import free_port
from tests.kits.processes import Forked
from tests.kits.system import FLUX, bearer, wait_until

SWITCH = "fault"
"""A file in the system's folder: while it is there, the work fails."""


def fault() -> None:
    """A bug that no `run` lists."""
    if (Path(os.environ["GHUB_SPOOL_DIR"]).parent / SWITCH).exists():
        raise KeyError("nobody listed this")


def faulty_projection() -> None:
    """Called in the new process: its projection fails by the switch, and a second makes it steady again."""
    look = Projector.round

    async def round_(self: Projector) -> None:
        fault()
        await look(self)

    Projector.round = round_  # type: ignore[method-assign]
    background.STEADY_S = 1.0
    background.LONGEST_PAUSE_S = 1.0


def faulty_consumer() -> None:
    """The same of the consumer."""
    look = consumer._Lane.round

    async def round_(self: consumer._Lane) -> int:
        fault()
        return await look(self)

    consumer._Lane.round = round_  # type: ignore[method-assign]
    background.LONGEST_PAUSE_S = 0.1


PARTS: dict[str, Any] = {
    "projection": Projector,
    "rates": FxTable,
    "prices": PriceTable,
    "files": ConfigFiles,
    "pressure": Pressure,
    "login": Login,
    "store watch": StoreWatch,
    "answers": OpenOrders,
    "origins": Origins,
    "orphans": Orphans,
    "recovery": Recovery,
}
"""Parts of a gateway, and the class whose `run` each of them is."""


def faulty_parts() -> None:
    """The same of every part of a gateway, as soon as it begins."""

    def failing(run: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def run_(self: Any, *given: Any) -> None:
            fault()
            await run(self, *given)

        return run_

    for part in PARTS.values():
        part.run = failing(part.run)
    background.STEADY_S = 1.0
    background.LONGEST_PAUSE_S = 1.0


def ready(port: int) -> tuple[int, str]:
    """Status and first line of `/readyz`; 0 if nobody listens."""
    try:
        reply = httpx2.get(f"http://127.0.0.1:{port}/readyz", **LOOPBACK)
    except httpx2.TransportError:
        return 0, ""
    return reply.status_code, reply.text.splitlines()[0]


@pytest.mark.rule(2)
def test_a_gateway_whose_projection_fails_takes_no_order_until_it_runs_again(prepared: Prepared) -> None:
    """Not ready, 503 with a true sentence, a trace in the log, a count; and ready when the fault is gone (rule 2)."""
    system = prepared()
    switch, metrics = system.folder / SWITCH, free_port()
    system.begin = functools.partial(Forked, before=faulty_projection)
    system.environment["GHUB_METRICS_PORT"] = str(metrics)
    system.valkey.start()
    system.start_gateway()
    _, key = system.customer("background", "50.00")
    switch.touch()
    wait_until(lambda: ready(system.port) == (503, "not ready: projection fails"), "the gateway is not ready")
    assert ready(metrics)[0] == 503
    body = {"model": FLUX, "prompt": "x"}
    refused = httpx2.post(f"{system.url}/images/generations", json=body, headers=bearer(key), **LOOPBACK)
    assert (refused.status_code, refused.headers["x-should-retry"]) == (503, "true")
    assert refused.json()["error"]["message"] == "The gateway does not work as it should; nothing was charged."
    assert '"event":"background_fault"' in system.log() and "nobody listed this" in system.log()
    counted = httpx2.get(f"http://127.0.0.1:{metrics}/metrics", **LOOPBACK).text
    assert 'ghub_background_faults_total{part="projection"}' in counted
    switch.unlink()
    wait_until(lambda: ready(system.port) == (200, "ready"), "the gateway is ready again")
    assert system.stop("gateway") == 0


@pytest.mark.rule(2)
def test_no_part_of_a_gateway_ends_in_silence(prepared: Prepared) -> None:
    """Whichever fails: the log names it, and it is restarted, so that the gateway is ready in the end (rule 2)."""
    system = prepared()
    switch = system.folder / SWITCH
    switch.touch()
    system.begin = functools.partial(Forked, before=faulty_parts)
    system.valkey.start()
    system.start("gateway", "serve")
    wait_until(lambda: (system.folder / "gateway.log").exists(), "the gateway has begun")

    def failed() -> set[str]:
        lines = [json.loads(line) for line in system.log().splitlines(keepends=True) if line.endswith("}\n")]
        return {line["part"] for line in lines if line["event"] == "background_fault"}

    wait_until(lambda: failed() == PARTS.keys(), "every part has failed, and said so")
    switch.unlink()
    wait_until(lambda: ready(system.port) == (200, "ready"), "the gateway is ready")
    assert system.stop("gateway") == 0


@pytest.mark.parametrize(
    ("command", "part", "before"),
    [("gateway", "projection", faulty_projection), ("consumer", "consumer", faulty_consumer)],
)
def test_a_process_whose_work_cannot_go_on_ends_for_the_platform_to_begin_another(
    prepared: Prepared, command: str, part: str, before: Callable[[], None]
) -> None:
    """Exit code 1 after a graceful stop, with one sentence that names the part; the books are as they were."""
    system = prepared()
    switch = system.folder / SWITCH
    system.valkey.start()
    system.begin = functools.partial(Forked, before=before)
    if command == "gateway":
        system.start_gateway()
        switch.touch()
    else:
        switch.touch()
        system.start("consumer", "consume")
    assert system.processes.pop(command).wait(timeout=60) == 1
    *_, stopped, last = system.log(command).splitlines()
    assert '"event":"stopped"' in stopped
    assert last.startswith(f"ghub: {part} failed {background.MAX_FAULTS} times in a row")
    switch.unlink()
    system.start("consumer", "consume")
    system.start_gateway()
    assert system.ghub("verify").returncode == 0
    assert system.stop("gateway") == 0
