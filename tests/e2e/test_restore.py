"""A ledger is restored from a backup while gateway, consumer and Redis go on (rule 34)."""

import json
from typing import Any

import httpx2
import pytest

from metering.money import parse_mxn
from tests.conftest import LOOPBACK
from tests.e2e.conftest import Prepared
from tests.kits.backups import backup, restore
from tests.kits.system import FLUX, System, bearer, wait_until

UNIT = parse_mxn("0.84")


def order(system: System, key: str) -> int:
    """The status of one order."""
    body = {"model": FLUX, "prompt": "x"}
    reply = httpx2.post(f"{system.url}/images/generations", json=body, headers=bearer(key), **LOOPBACK, timeout=60)
    return reply.status_code


def ghub(system: System, *arguments: str, code: int = 0) -> Any:
    """A command's JSON."""
    done = system.ghub(*arguments, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_a_restored_ledger_is_projected_and_what_it_lost_is_named(
    prepared: Prepared, database: str, request: pytest.FixtureRequest
) -> None:
    """A key revoked after the restore is refused within seconds, a credit is applied once, a key issued after the
    backup is none, and what is lost is named with its amounts until an operator accepts it."""
    more = {"GHUB_LEDGER_URL": request.getfixturevalue("postgres_url")} if database == "postgres" else {}
    system = prepared(GHUB_KEEP_H="0", **more)  # nothing is kept that the ledger could be fed with again
    url = system.environment["GHUB_LEDGER_URL"]
    system.start_all()
    org_id, kept = system.customer("acme", "8.40")
    revoked = ghub(system, "key", "create", "acme", "--name", "revoked later")
    system.keys.append(revoked["key"])
    assert order(system, kept) == order(system, revoked["key"]) == 200
    system.events(org_id, 2)
    copy = backup(url)
    for number in range(8):
        ghub(system, "org", "limits", "acme", "--images-per-minute", str(500 + number))
    late = ghub(system, "key", "create", "acme", "--name", "late")
    system.keys.append(late["key"])
    ghub(system, "credit", "add", "acme", "--mxn", "4.20", "--type", "bonus", "--id", "lost")
    assert [order(system, late["key"]) for _ in range(3)] == [200] * 3
    system.events(org_id, 5)

    restore(copy, url)
    ghub(system, "key", "revoke", revoked["key_id"])
    statuses: list[int] = []

    def refused() -> bool:
        statuses.append(order(system, revoked["key"]))
        return statuses[-1] == 401

    wait_until(refused, "the revoked key is refused", within_s=5)
    assert order(system, late["key"]) == 401
    ghub(system, "credit", "add", "acme", "--mxn", "0.84", "--type", "recharge", "--id", "after")
    wait_until(lambda: order(system, kept) == 200, "the others go on")
    charged = 3 + statuses.count(200)
    system.events(org_id, charged)
    # 8.40 before and 0.84 after, less the orders that the ledger knows.
    wait_until(lambda: system.cut(org_id).available_micro_mxn == (11 - charged) * UNIT, "the credit is applied once")

    found = ghub(system, "verify", code=1)
    named = {row["what"]: (row["org"], row["found"], row["kind"], row["detail"]) for row in found["differences"]}
    assert named == {
        "charges that the ledger lost": ("acme", "2.52", "lost", "the ledger has no events 3 to 5"),
        "credits that the ledger lost": ("acme", "4.20", "lost", ""),
    }
    accepted = ghub(system, "wallet", "accept", "acme", "--reason", "the backup of this morning")
    assert accepted == {"org": "acme", "charged_mxn": "2.52", "credits_mxn": "4.20"}
    assert ghub(system, "verify") == {"ok": True, "differences": []}
    assert ghub(system, "verify", "--org", "acme", "--since", "2026-01-01", "--no-images") == {
        "ok": True,
        "differences": [],
    }
    assert "ledger_restored" in system.log() + system.log("consumer")
