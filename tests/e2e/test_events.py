"""`ghub event` and `ghub wallet rebuild` as an operator uses them on a poisoned event: broken, named, repaired."""

import json
import sqlite3
from contextlib import closing
from typing import Any

from redis import Redis

from metering.wallet import keys
from metering.wallet.values import Caller
from tests.e2e.conftest import Prepared
from tests.kits.consumer import entry_of
from tests.kits.system import System, wait_until


def ghub(system: System, *arguments: str, code: int = 0) -> tuple[Any, str]:
    """Run a command; returns its JSON and its other output."""
    done = system.ghub(*arguments, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout), done.stderr


def database(system: System, statement: str) -> None:
    """Straight at the ledger, past all of our code."""
    path = system.environment["GHUB_LEDGER_URL"].removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, timeout=10)) as db, db:
        db.execute(statement)


def test_an_operator_repairs_a_poisoned_event(prepared: Prepared) -> None:
    """The database refuses a charge: list, show, rebuild and retry name it and its amount; then it is booked once."""
    system = prepared()
    system.valkey.start()
    org_id, _ = system.customer("acme", "100.00")
    stream = keys.OrgKeys(org_id).events
    database(
        system,
        "CREATE TRIGGER poison BEFORE INSERT ON events WHEN NEW.quantity = 2 BEGIN SELECT RAISE(ABORT, 'poison'); END",
    )
    system.start("consumer", "consume")
    with Redis.from_url(system.valkey.url) as redis:
        wait_until(lambda: bool(redis.exists(keys.OrgKeys(org_id).mark)), "Redis is projected")
        for number, images in ((1, 1), (2, 2), (3, 1)):
            redis.xadd(stream, entry_of(Caller(org_id, "key_1"), number, images))
        redis.xadd(stream, {b"opened": b"\xff\x00"})
        wait_until(lambda: not redis.xlen(stream), "the consumer has taken them")

    rows, _ = ghub(system, "event", "list")
    (poisoned,) = [row for row in rows if row["amount_mxn"]]
    (damaged,) = [row for row in rows if not row["amount_mxn"]]
    assert (poisoned["org"], poisoned["amount_mxn"], poisoned["end"]) == (org_id, "1.68", "charge")
    assert "poison" in poisoned["error"]
    shown, _ = ghub(system, "event", "show", poisoned["id"])
    assert (shown["fields"]["quantity"], shown["fed_at"]) == ("2", None)
    assert ghub(system, "event", "show", damaged["id"])[0]["fields"] == {"opened": "\ufffd\0"}

    rebuilt, warning = ghub(system, "wallet", "rebuild", "acme")
    assert {row["event"]: row["amount_mxn"] for row in rebuilt["rebuilt_without"]} == {
        poisoned["id"]: "1.68",
        damaged["id"]: None,
    }
    assert poisoned["id"] in warning and "1.68 MXN" in warning
    assert ghub(system, "balance", "acme")[0]["available_mxn"] == "98.32"

    refused, why = ghub(system, "event", "retry", poisoned["id"], code=1)
    assert refused["outcome"] == "set aside again"
    assert refused["fed_as"] in why
    database(system, "DROP TRIGGER poison")
    fed, _ = ghub(system, "event", "retry", refused["fed_as"])
    assert (fed["outcome"], fed["amount_mxn"], fed["wallet_rebuilt"]) == ("booked", "1.68", True)
    assert ghub(system, "balance", "acme")[0]["available_mxn"] == "96.64"
    assert [row["id"] for row in ghub(system, "event", "list")[0]] == [damaged["id"]]
    done = system.ghub("event", "retry", poisoned["id"])
    assert (done.returncode, "was put back" in done.stderr) == (1, True)
    assert system.ghub("event", "show", "p99-1-1").returncode == 2
    assert "no event p3-1-1 was set aside" in system.ghub("event", "show", "p3-1-1").stderr
