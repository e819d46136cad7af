"""Webhooks as an operator has them: commands, a consumer, a receiver; and what is said without a key."""

import base64
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
from standardwebhooks.webhooks import Webhook as Judge

from tests.conftest import LOOPBACK
from tests.e2e.conftest import Prepared
from tests.kits.ports import free_port
from tests.kits.system import FLUX, bearer, wait_until

KEY = base64.b64encode(b"k" * 32).decode()


@contextmanager
def receiving() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A receiver that takes everything: its address, and what has come."""
    taken: list[tuple[dict[str, str], bytes]] = []

    class Taking(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the library's name
            body = self.rfile.read(int(self.headers["content-length"]))
            taken.append((dict(self.headers.items()), body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the library's name
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Taking) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/in", taken
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.rule(36)
def test_a_low_balance_is_told_by_a_consumer(prepared: Prepared) -> None:
    """(rule 36) From the order to the receiver: signed right, listed, counted; no log and no list has the secret."""
    system = prepared()
    with receiving() as (url, taken):
        port, host = free_port(), url.split("/")[2]
        system.environment |= {"GHUB_SECRETS_KEY": KEY, "GHUB_WEBHOOK_HOSTS": host}
        system.start_all()
        system.stop("consumer")
        system.start("consumer", "consume", GHUB_METRICS_PORT=str(port))
        org_id, key = system.customer("acme", "20.50")
        done = system.ghub("webhook", "add", "acme", url, "--events", "balance.low", "--as", "ana", "--json")
        added = json.loads(done.stdout)
        assert (added["org"], added["url"], added["events"], added["state"]) == (org_id, url, "balance.low", "active")
        order = {"model": FLUX, "prompt": "a secret wish"}
        httpx2.post(f"{system.url}/images/generations", headers=bearer(key), json=order, **LOOPBACK, timeout=60)
        wait_until(lambda: bool(taken), "the receiver has it")
        headers, body = taken[0]
        told = Judge(added["secret"]).verify(body, headers)
        assert told["type"] == "balance.low"
        assert (told["data"]["limit"], told["data"]["used"]) == ("20.00", "19.66")
        where = f"http://127.0.0.1:{port}/metrics"
        wait_until(
            lambda: 'ghub_webhook_deliveries_total{outcome="delivered"} 1.0' in httpx2.get(where, **LOOPBACK).text,
            "it is counted",
        )
        (row,) = json.loads(system.ghub("webhook", "deliveries", "acme", "--json").stdout)
        assert (row["state"], row["attempts"], row["webhook"]) == ("delivered", 1, added["id"])
        assert json.loads(system.ghub("webhook", "replay", row["id"], "--json").stdout)["state"] == "waiting"
        wait_until(lambda: len(taken) == 2, "it came again")
        assert {one.get("webhook-id") for one, _ in taken} == {row["id"]} and taken[1][1] == body
        (listed,) = json.loads(system.ghub("webhook", "list", "acme", "--json").stdout)
        assert "secret" not in listed
        assert system.stop("consumer", signal.SIGTERM) == 0
        assert added["secret"] not in system.log("consumer") + system.log()


def test_without_a_key_no_webhook_is_added_and_no_order_names_one(prepared: Prepared) -> None:
    """One sentence says what to set; and one names a setting that is wrong. An order is refused before it is held."""
    system = prepared()
    system.start_all()
    _, key = system.customer("acme", "1.00")
    order = {"model": FLUX, "prompt": "un faro", "webhook": "https://example.mx/"}
    headers = bearer(key) | {"prefer": "respond-async"}
    refused = httpx2.post(f"{system.url}/images/generations", headers=headers, json=order, **LOOPBACK, timeout=60)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "webhook")
    assert "calls no webhooks" in refused.json()["error"]["message"]
    add = ("webhook", "add", "acme", "https://example.mx/", "--events", "balance.low")
    for more, says in (
        ({}, "GHUB_SECRETS_KEY is not set"),
        ({"GHUB_SECRETS_KEY": "short"}, "GHUB_SECRETS_KEY: must be 32 bytes in base64"),
        ({"GHUB_SECRETS_KEY": KEY, "GHUB_WEBHOOK_HOSTS": "http://x"}, "GHUB_WEBHOOK_HOSTS: not host or host:port"),
        ({"GHUB_SECRETS_KEY": KEY}, ""),
    ):
        system.environment |= more
        done = system.ghub(*add)
        assert (done.returncode == 0) is (says == "") and says in done.stderr, (done.stdout, done.stderr)
        for name in more:
            del system.environment[name]
    system.environment["GHUB_SECRETS_KEY"] = KEY
    done = system.ghub("webhook", "add", "acme", "https://10.0.0.1/", "--events", "balance.low")
    assert done.returncode == 1 and "not on the public internet" in done.stderr
