"""Replies that cost nothing and that nobody reads: a few at a time are enough."""

import httpx2

from proxy.api.openapi import MAX_DOCUMENTS
from proxy.api.replies import MAX_REPLAYS
from tests.conftest import LOOPBACK, run
from tests.doors.test_storms import LARGE_BYTES
from tests.e2e.conftest import Prepared
from tests.e2e.test_hostile import descriptors
from tests.kits.crowds import Crowd, openings, place_large, replay, replayed
from tests.kits.system import System, wait_until


def open_images(system: System) -> int:
    """Stored images that the gateway is reading."""
    found = descriptors(system.processes["gateway"].pid)
    return sum(count for path, count in found.items() if "/images/" in path)


def test_replays_that_nobody_reads_are_bounded_for_their_organisation_alone(prepared: Prepared) -> None:
    """Above the bound 429, to be asked again; another organisation has its own; when they are read there is room."""
    system = prepared()
    system.start_all()
    (_, key), (_, other) = system.customer("replays", "50.00"), system.customer("other", "50.00")
    for one in (key, other):
        run(place_large(system, one, LARGE_BYTES))
    with Crowd(system.port, replay(key), 2 * MAX_REPLAYS):
        wait_until(lambda: open_images(system) == MAX_REPLAYS, "as many as may be are being sent")
        refused = run(replayed(system, key))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert refused.headers["x-should-retry"] == "true" and int(refused.headers["retry-after"]) == 1
        assert f"{MAX_REPLAYS} earlier orders" in refused.json()["error"]["message"]
        assert run(replayed(system, other)).status_code == 200
        assert open_images(system) <= MAX_REPLAYS
    wait_until(lambda: open_images(system) == 0, "they are gone")
    reply = run(replayed(system, key))
    assert reply.status_code == 200 and reply.headers["idempotent-replayed"] == "true"
    assert len(reply.content) > LARGE_BYTES


def test_descriptions_that_nobody_reads_are_bounded(prepared: Prepared) -> None:
    """Nobody needs a key for them. Above the bound 429, to be asked again; all else is answered; then there is room."""
    system = prepared()
    system.start_all()
    address = system.url.removesuffix("/v1") + "/openapi.json"

    def status() -> int:
        return httpx2.get(address, **LOOPBACK).status_code

    assert status() == 200
    with Crowd(system.port, openings("")["pipelined"], 2 * MAX_DOCUMENTS):
        wait_until(lambda: status() == 429, "as many as may be are being sent")
        refused = httpx2.get(address, **LOOPBACK)
        assert refused.json()["error"]["code"] == "rate_limit_exceeded" and refused.headers["retry-after"] == "1"
        assert httpx2.get(f"{system.url}/credits", **LOOPBACK).status_code == 401
    wait_until(lambda: status() == 200, "there is room again")
