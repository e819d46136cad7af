"""Whose image was it: from OpenAI's own client to the ledger, the report of use, and the erasure of a clear name."""

import json
import sqlite3
from contextlib import closing
from typing import Any

import httpx2
import openai
import pytest
from redis import Redis

from tests.conftest import LOOPBACK
from tests.e2e.conftest import Prepared
from tests.kits.ports import free_port
from tests.kits.system import FLUX, System, bearer, wait_until

GROK = "xai/grok-2-image"
ANA, SAFE = "ana.núñez@example.com", "sha256:0a1b2c"


@pytest.fixture
def system(prepared: Prepared) -> System:
    system = prepared()
    system.start_all()
    return system


def usage(system: System, key: str, group_by: str) -> dict[str, Any]:
    reply = httpx2.get(f"{system.url}/usage", params={"group_by": group_by}, headers=bearer(key), **LOOPBACK)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def shown(system: System, *arguments: str) -> dict[str, Any]:
    done = system.ghub("enduser", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_an_order_is_found_by_its_end_user_tags_and_metadata(system: System) -> None:
    """By OpenAI's client. The clear name is in the ledger's table alone: no log, no metric, no Redis and no journal."""
    metrics_port = free_port()
    system.stop("gateway")
    system.start_gateway(GHUB_METRICS_PORT=str(metrics_port))
    org_id, key = system.customer("acme", "50.00")
    tags = {"x-ghub-tags": "web, spring ,web"}
    with openai.OpenAI(base_url=system.url, api_key=key, max_retries=0) as client:
        client.images.generate(
            model=FLUX,
            prompt="un faro",
            n=2,
            user=ANA,
            extra_body={"metadata": {"team": "shop", "campaign": "ñandú"}, "safety_identifier": SAFE},
            extra_headers=tags,
        )
        client.images.generate(model=FLUX, prompt="un faro", extra_headers={"x-ghub-tags": "web"})
        client.images.generate(model=FLUX, prompt="un faro", extra_body={"metadata": {"team": ""}})
    events = system.events(org_id, 3)
    first = events[0].opened
    name = shown(system, "show", "acme", ANA)["pseudonym"]
    assert (first.end_user, first.safety_id) == (name, shown(system, "show", "acme", SAFE)["pseudonym"])
    assert (first.tags, first.metadata) == ('["web","spring"]', '{"team":"shop","campaign":"ñandú"}')
    assert {(one.opened.end_user, one.opened.metadata) for one in events[1:]} == {(None, None), (None, '{"team":""}')}
    total = {"orders": 3, "images": 4, "cost_mxn": "3.36"}
    mine, others = {"orders": 1, "images": 2}, {"orders": 2, "images": 2}
    wait_until(lambda: shown(system, "show", "acme", SAFE)["name"] == SAFE, "the clear names are told")
    for group, field, rows in (
        ("user", "user", {"": others, ANA: mine}),
        ("safety_identifier", "safety_identifier", {"": others, SAFE: mine}),
        ("tag", "tag", {"spring": mine, "web": {"orders": 2, "images": 3}}),
        ("metadata.team", "metadata", {"": others, "shop": mine}),
        ("metadata.campaign", "metadata", {"": others, "ñandú": mine}),
    ):
        document = usage(system, key, group)
        found = {row[field]: {"orders": row["orders"], "images": row["images"]} for row in document["data"]}
        assert found == rows, group
        assert document["total"] == total
    metrics = httpx2.get(f"http://127.0.0.1:{metrics_port}/metrics", **LOOPBACK).content
    files = [file for file in system.folder.rglob("*") if file.is_file() and "ledger.db" not in file.name]
    everywhere = {str(file): file.read_bytes() for file in files} | {"metrics": metrics}
    for text in (ANA.encode(), "núñez".encode(), rb"n\u00fa", SAFE.encode()):
        assert [place for place, held in everywhere.items() if text in held] == []
    for kind in (".journal", ".aof"):
        assert any(name.encode() in held for place, held in everywhere.items() if place.endswith(kind)), kind


def test_a_clear_name_is_erased_and_a_later_order_tells_it_again(system: System) -> None:
    """The use stays under the pseudonym, the audit log has no name; another organisation's end user is another one."""
    org_id, key = system.customer("acme", "50.00")
    _, other_key = system.customer("other", "50.00")
    for one in (key, other_key):
        body = {"model": FLUX, "prompt": "un faro", "user": ANA}
        assert httpx2.post(f"{system.url}/images/generations", json=body, headers=bearer(one), **LOOPBACK).is_success
    system.events(org_id, 1)
    wait_until(lambda: shown(system, "show", "acme", ANA)["name"] == ANA, "the name is told")
    erased = shown(system, "erase", "acme", ANA, "--as", "dpo")
    assert erased == {"pseudonym": shown(system, "show", "acme", ANA)["pseudonym"], "erased": True}
    assert not shown(system, "erase", "acme", erased["pseudonym"], "--pseudonym")["erased"]
    found = shown(system, "show", "acme", ANA)
    assert found["name"] is None and found["used"][0]["orders"] == 1
    assert [row["user"] for row in usage(system, key, "user")["data"]] == [erased["pseudonym"]]
    wait_until(lambda: [row["user"] for row in usage(system, other_key, "user")["data"]] == [ANA], "the other's stays")
    audit = system.ghub("audit", "--json")
    assert "enduser.erase" in audit.stdout and erased["pseudonym"] in audit.stdout
    assert "ana.n" not in audit.stdout
    system.stop("gateway")
    system.start_gateway()
    assert shown(system, "show", "acme", ANA)["name"] is None, "a start tells nobody"
    assert httpx2.post(
        f"{system.url}/images/generations", json={**body, "prompt": "otro"}, headers=bearer(key), **LOOPBACK
    ).is_success
    wait_until(lambda: shown(system, "show", "acme", ANA)["name"] == ANA, "the name is told again")
    for arguments in (("show", "acme", ""), ("show", "acme", ANA, "--pseudonym")):
        wrong = system.ghub("enduser", *arguments)
        assert wrong.returncode == 1 and "USER" in wrong.stderr


def test_no_order_waits_for_the_record_of_its_end_user(system: System) -> None:
    """While nobody can write to the ledger orders go on; a graceful stop writes down what waits."""
    _, key = system.customer("acme", "50.00")
    with httpx2.Client(base_url=system.url, headers=bearer(key), **LOOPBACK, timeout=60) as client:

        def order(user: str) -> None:
            reply = client.post("/images/generations", json={"model": FLUX, "prompt": "un faro", "user": user})
            assert reply.status_code == 200, reply.text

        with closing(sqlite3.connect(system.folder / "ledger.db", isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            for number in range(3):
                order(f"user {number}")
            wait_until(lambda: '"end_users_wait"' in system.log(), "the ledger was asked in vain")
            order(ANA)
            assert db.execute("SELECT count(*) FROM end_users").fetchall() == [(0,)]
            db.execute("ROLLBACK")
        wait_until(lambda: shown(system, "show", "acme", ANA)["name"] == ANA, "the names are told")
        for number in range(3):
            assert shown(system, "show", "acme", f"user {number}")["name"] == f"user {number}"
        order("the last")
        assert system.stop("gateway") == 0
    assert shown(system, "show", "acme", "the last")["name"] == "the last"
    assert ANA not in system.log() and "user 1" not in system.log()


@pytest.mark.rule(38)
@pytest.mark.parametrize("field", ["user", "safety_identifier"])
def test_an_order_that_was_left_is_given_to_no_other_end_user(system: System, field: str) -> None:
    """Only the same end user gets it for nothing; tags and metadata make no other order of it."""
    _, key = system.customer("acme", "50.00")
    system.behave(FLUX, "slow", seconds=2)
    order = {"model": FLUX, "prompt": "un faro", field: "ana"}
    with httpx2.Client(base_url=system.url, headers=bearer(key), **LOOPBACK, timeout=60) as client:
        with pytest.raises(httpx2.ReadTimeout):
            client.post("/images/generations", json={**order, "metadata": {"try": "1"}}, timeout=0.5)
        with Redis.from_url(system.valkey.url) as redis:
            wait_until(lambda: any(redis.scan_iter("*:gone:*")), "the client is seen to leave")
        other = client.post("/images/generations", json={**order, field: "ben"})
        nobody = client.post("/images/generations", json={"model": FLUX, "prompt": "un faro"})
        same = client.post("/images/generations", json=order, headers={"x-ghub-tags": "again"})
    assert [one.headers.get("idempotent-replayed") for one in (other, nobody, same)] == [None, None, "true"]
    assert len({one.json()["id"] for one in (other, nobody, same)}) == 3


def test_labels_that_are_too_long_are_refused_before_anything_is_held(system: System) -> None:
    """400 names the field or the header, in the language that was asked for."""
    _, key = system.customer("acme", "50.00")
    with httpx2.Client(base_url=system.url, headers=bearer(key), **LOOPBACK) as client:
        for fields, headers, param in (
            ({"user": "u" * 513}, {}, "user"),
            ({"metadata": {"team": 5}}, {}, "metadata"),
            ({}, {"x-ghub-tags": "t" * 65}, "x-ghub-tags"),
            ({}, {"x-ghub-tags": ",".join(map(str, range(17)))}, "x-ghub-tags"),
        ):
            body = {"model": FLUX, "prompt": "x", **fields}
            reply = client.post("/images/generations", json=body, headers={**headers, "accept-language": "es"})
            error = reply.json()["error"]
            assert (reply.status_code, error["param"]) == (400, param)
            assert (f"`{param}" in error["message"] and "máximo" in error["message"]) or "debe ser" in error["message"]
    assert system.jobs() == []


def test_what_the_provider_told_is_in_the_ledger_of_charged_and_void_orders(system: System) -> None:
    """Its own ids and its own figure, by `ghub order show`."""
    org_id, key = system.customer("acme", "50.00")
    system.behave(GROK, "empty_image")
    with httpx2.Client(base_url=system.url, headers=bearer(key), **LOOPBACK, timeout=60) as client:
        body = {"model": GROK, "prompt": "un faro", "user": ANA, "metadata": {"team": "shop"}}
        void = client.post("/images/generations", json=body, headers={"x-ghub-tags": "web"})
        charged = client.post("/images/generations", json=body)
    assert (void.status_code, charged.status_code) == (502, 200)
    assert [one.end for one in system.events(org_id, 2)] == ["void", "charge"]
    billed = {job["request_id"] for job in system.jobs(GROK)}
    found = []
    for reply in (void, charged):
        done = system.ghub("order", "show", reply.headers["x-request-id"], "--json")
        order = json.loads(done.stdout)
        assert order["end_user"] == shown(system, "show", "acme", ANA)["pseudonym"]
        assert (order["metadata"], order["tags"]) == ({"team": "shop"}, ["web"] if reply is void else [])
        (end,) = order["ends"]
        assert end["upstream_usd"] == "0.07"
        found += end["upstream_ids"]
    assert len(found) == 2 and set(found) == billed
