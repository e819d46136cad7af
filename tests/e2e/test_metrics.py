"""The metrics of real processes say what happened: no more, no less, and nothing twice."""

import json
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from metering.events import Event
from metering.money import parse_mxn
from tests.conftest import LOOPBACK
from tests.e2e.conftest import Prepared
from tests.kits.metrics import Samples, counted, scrape
from tests.kits.ports import free_port
from tests.kits.system import FLUX, FLUX_MXN, GPT, System, bearer, wait_until

GATEWAY, CONSUMER = "gateway", "consumer"

TIMED = ("ghub_loop_late_seconds", "ghub_redis_", "ghub_journal_commit_seconds")
"""Metrics whose number of observations depends on time, and on what a process keeps in memory."""

BACKGROUND = {
    f"ghub_wallet_script_seconds_count{{script={name}}}"
    for name in ("mark", "project", "fence", "expire", "tell_prices")
}
"""Scripts that are called at intervals."""


class Watched:
    """A system whose gateway and consumer have their metrics on."""

    def __init__(self, system: System) -> None:
        self.system = system
        self._ports = {GATEWAY: free_port(), CONSUMER: free_port()}
        system.valkey.start()
        system.start("simulator", "simulate", "--port", str(system.simulator_port), "--latency-scale", "0")
        self.start_consumer()
        system.start_gateway(GHUB_METRICS_PORT=str(self._ports[GATEWAY]))
        wait_until(lambda: _answers(f"{system.simulator}/_sim/jobs"), "the simulator is ready")

    def start_consumer(self) -> None:
        port = self._ports[CONSUMER]
        self.system.start(CONSUMER, "consume", GHUB_METRICS_PORT=str(port))
        wait_until(lambda: _answers(f"http://127.0.0.1:{port}/readyz"), "the consumer is ready")

    def read(self, process: str = GATEWAY) -> Samples:
        """Scrape a process."""
        return scrape(self._ports[process])

    def counts(self, before: Samples, process: str = GATEWAY) -> dict[str, float]:
        """What it has counted since, without what depends on time."""
        found = counted(before, self.read(process))
        return {name: value for name, value in found.items() if not name.startswith(TIMED) and name not in BACKGROUND}

    def order(self, key: str, model: str = FLUX, *, key_header: str | None = None, **body: Any) -> httpx2.Response:
        """Place one order, and wait for its answer."""
        headers = bearer(key) | ({} if key_header is None else {"idempotency-key": key_header})
        order = {"model": model, "prompt": "x", **body}
        return httpx2.post(f"{self.system.url}/images/generations", json=order, headers=headers, **LOOPBACK, timeout=90)

    def settled(self) -> bool:
        """Whether the ledger has everything."""
        ours, theirs = self.read(), self.read(CONSUMER)
        return not (ours["ghub_journal_open_orders"] or theirs["ghub_events_waiting"])


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, **LOOPBACK).status_code == 200
    except httpx2.TransportError:
        return False


def of(model: str, outcome: str) -> str:
    """The labels of a model and an outcome, with its provider."""
    return f"{{model={model},outcome={outcome},provider={model.partition('/')[0]}}}"


@contextmanager
def busy(system: System) -> Iterator[None]:
    """Nobody can write to the ledger."""
    lock = sqlite3.connect(system.folder / "ledger.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        lock.execute("ROLLBACK")
        lock.close()


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Do it at the same time as the block."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def stored(system: System, reply: httpx2.Response) -> int:
    """The bytes of an order's images on the disk."""
    (folder,) = {image["url"].rpartition("/")[0].partition("generated-images/")[2] for image in reply.json()["data"]}
    return sum(path.stat().st_size for path in (system.folder / "images" / folder).iterdir())


def booked(system: System, org_id: str) -> list[Event]:
    """The events that the ledger has."""

    async def read(back: Any) -> list[Event]:
        return [event async for event in back.ledger.events(org_id=org_id)]

    return system.back(read)


def test_a_mixed_load_is_counted_exactly(prepared: Prepared) -> None:
    """Delivered, replayed, refused for each kind of reason, failed upstream and in the store: a row for each."""
    system = prepared()
    watched = Watched(system)
    org_id, key = system.customer("acme", "100.00")
    _, poor = system.customer("poor")
    _, limited = system.customer("limited", "100.00", requests_per_minute=1)
    lost_org, lost = system.customer("lost", "100.00")
    (system.folder / "images" / lost_org).write_bytes(b"")  # no folder can be made for its images
    made = system.ghub("key", "create", "acme", "--name", "t", "--test", "--json")
    test_key = json.loads(made.stdout)["key"]
    before, consumed = watched.read(), watched.read(CONSUMER)

    delivered = [watched.order(key), watched.order(key), watched.order(key, n=2), watched.order(key, GPT)]
    delivered.append(watched.order(key, key_header="once", prompt="y"))
    statuses = [watched.order(key, key_header="once", prompt="y").status_code]  # 200, replayed
    system.behave(FLUX, "http_500")
    statuses.append(watched.order(key).status_code)  # 502
    system.behave(GPT, "busy_503", retry_after=0)
    delivered.append(watched.order(key, GPT))  # at the second try
    statuses.append(watched.order(lost).status_code)  # 502
    statuses.append(watched.order(poor).status_code)  # 402
    delivered.append(watched.order(limited))
    statuses.append(watched.order(limited).status_code)  # 429
    statuses.append(watched.order(key, n=99).status_code)  # 400
    statuses.append(watched.order(key, "nobody/none").status_code)  # 404
    statuses.append(watched.order("ghub_sk_live_" + "0" * 32).status_code)  # 401
    statuses.append(watched.order(test_key).status_code)  # 200
    assert [reply.status_code for reply in delivered] == [200] * 7
    assert statuses == [200, 502, 502, 402, 429, 400, 404, 401, 200]
    wait_until(watched.settled, "the ledger has everything")

    gpt_micro_mxn = sum(parse_mxn(delivered[place].headers["x-geekhub-cost-mxn"]) for place in (3, 5))
    stored_bytes = {
        model: sum(stored(system, reply) for reply in delivered if reply.json()["model"] == model)
        for model in (FLUX, GPT)
    }
    route = "/v1/images/generations"
    assert watched.counts(before) == {
        **{f"ghub_requests_total{{route={route},status={status}}}": 1 for status in (400, 401, 402, 404, 429)},
        f"ghub_requests_total{{route={route},status=200}}": 9,
        f"ghub_requests_total{{route={route},status=502}}": 2,
        f"ghub_request_seconds_count{{route={route}}}": 16,
        f"ghub_order_seconds_count{of(FLUX, 'delivered')}": 5,
        f"ghub_order_seconds_count{of(FLUX, 'replayed')}": 1,
        f"ghub_order_seconds_count{of(FLUX, 'insufficient_balance')}": 1,
        f"ghub_order_seconds_count{of(FLUX, 'rate_limit_exceeded')}": 1,
        f"ghub_order_seconds_count{of(FLUX, 'provider_unavailable')}": 2,
        f"ghub_order_seconds_count{of(GPT, 'delivered')}": 2,
        f"ghub_orders_total{{model={FLUX},reason=delivered}}": 5,
        f"ghub_orders_total{{model={FLUX},reason=overloaded}}": 1,
        f"ghub_orders_total{{model={FLUX},reason=store_failed}}": 1,
        f"ghub_orders_total{{model={GPT},reason=delivered}}": 2,
        **{
            f"ghub_denials_total{{reason={reason}}}": 1
            for reason in ("balance", "requests", "invalid_request_error", "model_not_found", "invalid_api_key")
        },
        f"ghub_charged_micro_mxn_total{{model={FLUX}}}": 6 * parse_mxn(FLUX_MXN),
        f"ghub_charged_micro_mxn_total{{model={GPT}}}": gpt_micro_mxn,
        f"ghub_images_charged_total{{model={FLUX}}}": 6,
        f"ghub_images_charged_total{{model={GPT}}}": 2,
        f"ghub_stored_bytes_total{{model={FLUX}}}": stored_bytes[FLUX],
        f"ghub_stored_bytes_total{{model={GPT}}}": stored_bytes[GPT],
        f"ghub_upstream_seconds_count{of(FLUX, 'ok')}": 6,
        f"ghub_upstream_seconds_count{of(FLUX, 'overloaded')}": 1,
        f"ghub_upstream_seconds_count{of(GPT, 'ok')}": 2,
        f"ghub_upstream_seconds_count{of(GPT, 'busy')}": 1,
        f"ghub_upstream_tries_again_total{{model={GPT}}}": 1,
        "ghub_store_seconds_count{outcome=stored}": 9,  # one of them is the test key's
        "ghub_store_seconds_count{outcome=failed}": 1,
        "ghub_wallet_script_seconds_count{script=admit}": 12,
        "ghub_wallet_script_seconds_count{script=settle}": 7,
        "ghub_wallet_script_seconds_count{script=void}": 2,
        "ghub_wallet_script_seconds_count{script=note}": 7,  # fal's jobs
        "ghub_wallet_script_seconds_count{script=sandbox}": 1,
        "ghub_journal_entries_total": 7,
    }
    now, theirs = watched.read(), watched.read(CONSUMER)
    assert theirs["ghub_events_booked_total"] - consumed["ghub_events_booked_total"] == 9
    idle = ("holds_open", "generations_in_flight", "journal_open_orders", "journal_oldest_seconds", "orders_waiting")
    assert {name: now[f"ghub_{name}"] for name in idle} == dict.fromkeys(idle, 0)
    assert (theirs["ghub_events_waiting"], theirs["ghub_events_oldest_seconds"]) == (0, 0)
    for one in (now, theirs):
        assert (one["ghub_ready"], one["ghub_journal_writable"]) == (1, 1)
        assert [name for name in one if name.startswith("ghub_build_info{version=")] != []
        assert [name for name in one if name.startswith("ghub_") and "_created" in name] == []
    charged = sum(event.amount_micro_mxn for event in booked(system, org_id))
    assert charged + parse_mxn(FLUX_MXN) == 6 * parse_mxn(FLUX_MXN) + gpt_micro_mxn  # the one is `limited`'s


def test_what_is_under_way_and_what_waits_rise_and_fall(prepared: Prepared) -> None:
    """While an order is made; while the ledger is away; and after the consumer's death: each event is booked once."""
    system = prepared()
    watched = Watched(system)
    org_id, key = system.customer("acme", "100.00")
    system.behave(FLUX, "slow", seconds=3)
    with beside(lambda: watched.order(key)):
        wait_until(lambda: watched.read()["ghub_holds_open"] == 1, "the hold is counted")
        assert watched.read()["ghub_generations_in_flight"] == 1
    wait_until(lambda: watched.read()["ghub_holds_open"] == 0, "it is closed")
    wait_until(watched.settled, "the ledger has it")

    with busy(system):
        assert [watched.order(key).status_code for _ in range(3)] == [200] * 3
        wait_until(lambda: watched.read(CONSUMER)["ghub_events_waiting"] == 3, "the events wait")
        wait_until(lambda: watched.read(CONSUMER)["ghub_events_oldest_seconds"] > 3, "they grow older")
        ours = watched.read()
        assert (ours["ghub_journal_open_orders"], ours["ghub_holds_open"]) == (3, 0)
        assert ours["ghub_journal_oldest_seconds"] > 3
    wait_until(watched.settled, "they are booked")
    assert watched.read(CONSUMER)["ghub_events_oldest_seconds"] == 0
    assert watched.read()["ghub_journal_oldest_seconds"] == 0
    assert watched.read(CONSUMER)["ghub_events_booked_total"] == 4

    with busy(system):
        assert [watched.order(key).status_code for _ in range(2)] == [200] * 2
        wait_until(lambda: watched.read(CONSUMER)["ghub_events_waiting"] == 2, "the events wait")
        system.stop(CONSUMER, signal.SIGKILL)
    watched.start_consumer()
    wait_until(watched.settled, "they are booked")
    assert watched.read(CONSUMER)["ghub_events_booked_total"] == 2
    assert len(booked(system, org_id)) == 6
    assert json.loads(system.ghub("verify", "--json").stdout)["ok"]
    assert watched.read()[f"ghub_charged_micro_mxn_total{{model={FLUX}}}"] == 6 * parse_mxn(FLUX_MXN)
