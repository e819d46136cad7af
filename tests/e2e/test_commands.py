"""The commands as an operator uses them: JSON, exit codes, sentences; and the ports besides the gateway's."""

import csv
import json
import os
import re
from typing import Any

import httpx2
import pytest
from redis import Redis

from metering.wallet import keys
from tests.conftest import LOOPBACK
from tests.e2e.conftest import Prepared
from tests.kits.books import SCHEMA
from tests.kits.ports import free_port
from tests.kits.processes import Forked, executed, finished
from tests.kits.system import FLUX, System, bearer, wait_until


def test_an_operator_opens_an_organisation_and_runs_its_account(prepared: Prepared) -> None:
    """Every command's JSON, with no gateway running: what is written to SQL is projected by the command itself."""
    system = prepared()
    system.valkey.start()

    def ghub(*arguments: str, code: int = 0) -> Any:
        done = system.ghub(*arguments, "--json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    org = ghub("org", "create", "Taller Ñandú")
    assert isinstance(org, dict) and set(org) == {"org", "name"} and org["name"] == "Taller Ñandú"
    key = ghub("key", "create", org["org"], "--name", "prod-web")
    assert isinstance(key, dict) and set(key) == {"key_id", "key"}
    assert re.fullmatch(r"ghub_sk_live_[A-Za-z0-9]{32}", key["key"]) and len(key["key"]) == 45
    system.keys.append(key["key"])
    (row,) = ghub("key", "list", "Taller Ñandú")
    assert (row["key_id"], row["name"], row["state"]) == (key["key_id"], "prod-web", "active")
    paid = ("credit", "add", org["org"], "--mxn", "500", "--type", "recharge", "--id", "spei-1")
    spei = {"id": "spei-1", "mxn": "500.00", "type": "recharge", "iva_mxn": "80.00", "total_mxn": "580.00"}
    assert ghub(*paid).items() >= {**spei, "added": True}.items()
    assert ghub(*paid).items() >= {**spei, "added": False}.items()
    facts = ("--rfc", "XAXX010101000", "--forma-pago", "03", "--cfdi", "5f0c7a39-1f5e-4a43-9b6e-7c1de7a9a001")
    assert ghub("credit", "complete", "spei-1", *facts)["changed"] is True
    listed = ghub("credit", "list", "Taller Ñandú")
    assert [(row["id"], row["balance_mxn"], row["facts"]["rfc"]) for row in listed["data"]] == [
        ("spei-1", "500.00", "XAXX010101000")
    ]
    assert ghub("credit", "list", "--month", "2031-01") == {"data": [], "next_cursor": None}
    owed = ghub("credit", "liability")
    assert owed["liability_mxn"] == "0.00", "yesterday nobody had paid yet"
    limits = ghub("org", "limits", org["org"], "--requests-per-minute", "7", "--in-flight", "none")
    assert isinstance(limits, dict) and (limits["requests_per_minute"], limits["images_per_minute"]) == (7, None)
    assert limits["in_flight"] == "none", "a zero would read as a stop"
    assert ghub("org", "show", org["org"]) == limits
    assert ghub("org", "list") == [limits]
    revoked = ghub("key", "revoke", key["key_id"])
    assert isinstance(revoked, dict) and revoked["state"] == "revoked"
    entered = ghub("fx", "set", "2031-01", "18.4512", "--source", "DOF")
    assert entered["was"].startswith("20.00 (20") and entered["added"] is True
    typo = system.ghub("fx", "set", "2031-02", "184.512", "--source", "DOF")
    assert typo.returncode == 1 and "→ 184.512 is +822.6 %" in typo.stderr
    waiting = ghub("fx", "list")[-1]
    assert (waiting["month"], waiting["source"], waiting["approved_by"]) == ("2031-01", "DOF", None)
    assert ghub("fx", "approve", "2031-01", "18.4512")["approved_by"] == waiting["entered_by"]
    assert ghub("migrate") == {"schema": SCHEMA}
    system.start_gateway()
    told = {"available_mxn": "500.00", "held_mxn": "0.00", "balance_mxn": "500.00", "unpaid_mxn": "0.00"}
    assert ghub("balance", org["org"]) == told
    assert ghub("verify") == {"ok": True, "differences": []}


@pytest.mark.rule(33)
def test_an_order_is_shown_refunded_and_exported(prepared: Prepared) -> None:
    """(rule 33) By its commands; the books are right after it, and the month's sum is charges less refunds."""
    system = prepared(GHUB_PUBLIC_URL="https://images.geekhub.mx")
    system.start_all()
    org_id, key = system.customer("acme", "50.00")
    made = [ordered(system, key) for _ in range(2)]
    month = system.events(org_id, 2)[0].opened.month
    out = system.folder / "month.csv"

    def ghub(*arguments: str, code: int = 0) -> Any:
        done = system.ghub(*arguments, "--json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    shown = ghub("order", "show", made[0])
    assert (shown["id"], shown["org"], shown["status"]) == (made[0], org_id, "charged")
    assert shown["images"][0]["url"] == f"https://images.geekhub.mx/{shown['images'][0]['path']}"
    assert ghub("order", "show", shown["order"]) == shown
    first = ghub("order", "refund", made[0], "--reason", "blurred", "--mxn", "0.5")
    assert (first["mxn"], first["refundable_mxn"], first["charged_mxn"]) == ("0.50", "0.34", "0.84")
    assert ghub("balance", "acme")["available_mxn"] == "48.82"
    assert ghub("order", "refund", made[0], "--reason", "all of it")["mxn"] == "0.34"
    assert "refunded whole already" in system.ghub("order", "refund", made[0], "--reason", "again").stderr
    by_credit = ("credit", "add", "acme", "--type", "refund", "--id", "r1", "--order", made[1], "--reason", "blurred")
    assert ghub(*by_credit, "--mxn", "0.84")["added"] is True
    assert ghub(*by_credit, "--mxn", "0.84")["added"] is False
    said = system.ghub("order", "show", made[0])
    assert said.returncode == 0 and f"path          {shown['images'][0]['path']}\n" in said.stdout
    export = ("usage", "export", "--month", month, "--out", str(out))
    sums = {"rows": 5, "charged_mxn": "1.68", "refunded_mxn": "1.68", "amount_mxn": "0.00"}
    assert ghub(*export) == {"month": month, "out": str(out), **sums, "complete": True, "why": []}
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["amount_mxn"] for row in rows] == ["0.84", "0.84", "-0.50", "-0.34", "-0.84"]
    assert [row["kind"] for row in rows] == ["charge"] * 2 + ["refund"] * 3
    assert ghub("verify") == {"ok": True, "differences": []}


@pytest.mark.rule(37)
def test_an_export_while_the_consumer_is_away_exits_with_3(prepared: Prepared) -> None:
    """It writes what the ledger has, and says what is missing; without Redis, that it cannot know (rule 37)."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("acme", "50.00")
    ordered(system, key)
    month = system.events(org_id, 1)[0].opened.month
    system.stop("consumer")
    ordered(system, key)
    with Redis.from_url(system.valkey.url) as redis:  # as if it had ended a minute ago: nobody waits for that here
        stream = keys.OrgKeys(org_id).events
        last: Any = redis.xrevrange(stream, count=1)
        ((entry_id, fields),) = last
        redis.xadd(stream, fields | {b"ended_us": str(int(fields[b"ended_us"]) - 60_000_000)})
        redis.xdel(stream, entry_id)
    out = system.folder / "month.csv"
    export = ("usage", "export", "--month", month, "--out", str(out))
    done = system.ghub(*export)
    assert done.returncode == 3 and "1 events of" in done.stderr and "0.84 MXN in all" in done.stderr
    assert "complete" in done.stdout and len(out.read_text().splitlines()) == 2
    told = json.loads(system.ghub(*export, "--json").stdout)
    assert (told["complete"], told["rows"], len(told["why"])) == (False, 1, 1)
    out.unlink()
    system.environment |= {"GHUB_REDIS_URL": ""}
    done = system.ghub(*export)
    assert done.returncode == 3 and "nobody can say" in done.stderr and len(out.read_text().splitlines()) == 2
    system.environment |= {"GHUB_REDIS_URL": system.valkey.url}
    system.start("consumer", "consume")
    system.events(org_id, 2)
    done = system.ghub(*export)
    assert (done.returncode, done.stderr) == (0, "") and len(out.read_text().splitlines()) == 3


def ordered(system: System, key: str) -> str:
    """One picture; its order's id."""
    body = {"model": FLUX, "prompt": "x"}
    reply = httpx2.post(f"{system.url}/images/generations", headers=bearer(key), json=body, **LOOPBACK, timeout=60)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["id"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("org", "show", "nobody"), 1, "there is no organisation 'nobody'"),
        (("org", "create", "shared twice"), 1, "exists already"),
        (("org", "create", "x", "--plan", "gold"), 1, "there is no plan 'gold'"),
        (("org", "limits", "x"), 2, "--requests-per-minute"),
        (("key", "revoke", "key_none"), 1, "there is no key 'key_none'"),
        (("credit", "add", "shared twice", "--mxn", "1e3", "--type", "bonus", "--id", "a"), 2, "--mxn"),
        (("credit", "add", "shared twice", "--mxn", "-1", "--type", "bonus", "--id", "a"), 1, "only an adjustment"),
        (("credit", "add", "shared twice", "--mxn", "1", "--type", "consumption", "--id", "a"), 1, "--type"),
        (("credit", "add", "shared twice", "--mxn", "1", "--type", "refund", "--id", "a"), 1, "`ghub order refund ID"),
        (("order", "show", "x"), 1, "an order's id is req_ and 32 hex digits"),
        (("order", "show", f"req_{'0' * 32}"), 1, "neither the ledger nor Redis knows order 00000000-"),
        (("order", "refund", f"req_{'0' * 32}", "--reason", "x"), 1, "the ledger has no order"),
        (("order", "refund", f"req_{'0' * 32}", "--reason", "x", "--mxn", "1e3"), 2, "--mxn"),
        (("order", "refund", f"req_{'0' * 32}", "--reason", " "), 1, "--reason"),
        (("order", "refund", f"req_{'0' * 32}"), 2, "--reason"),
        (("fx", "set", "2026-13", "20", "--source", "x"), 2, "2026-13"),
        (("fx", "set", "2031-02", "-1", "--source", "x"), 2, "RATE"),
        (("usage", "export", "--month", "november", "--out", "x.csv"), 2, "--month"),
        (("usage", "export", "--month", "2026-11", "--out", "/nowhere/x.csv"), 2, "--out"),
        (("verify", "--since", "yesterday"), 2, "--since"),
        (("verify", "--since", "2026-11-22T08:00:00"), 2, "no zone"),
        (("verify", "--org", "nobody"), 1, "there is no organisation 'nobody'"),
        (("wallet", "accept", "nobody", "--reason", "x"), 1, "there is no organisation 'nobody'"),
        (("wallet", "accept", "shared twice"), 2, "--reason"),
        (("nonsense",), 2, "nonsense"),
    ],
)
def test_wrong_use_and_failure_are_one_sentence(
    system: System, arguments: tuple[str, ...], code: int, words: str
) -> None:
    """1 for what failed, 2 for what was asked wrongly; the sentence is on standard error, and no traceback."""
    system.ghub("org", "create", "shared twice")  # there once, whichever case comes first
    done = system.ghub(*arguments)
    assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"GHUB_REDIS_URL": ""}, "GHUB_REDIS_URL is not set"),
        ({"GHUB_REDIS_URL": "http://x"}, "GHUB_REDIS_URL: must start with redis://"),
        ({"GHUB_STORAGE_URL": ""}, "GHUB_STORAGE_URL is not set"),
        ({"GHUB_DEADLINE_S": "76"}, "GHUB_DEADLINE_S: Input should be less than or equal to 75"),
        ({"GHUB_MODELS": "/none.toml"}, "GHUB_MODELS: /none.toml: cannot be read"),
        ({"GHUB_IMAGE_HOSTS": "a/b"}, "GHUB_IMAGE_HOSTS: not host or host:port"),
        ({"GHUB_PORT": "port"}, "GHUB_PORT: Input should be a valid integer"),
        ({"GHUB_LEDGER_URL": "sqlite:////proc/none/x.db"}, "GHUB_LEDGER_URL: /proc/none/x.db cannot be used"),
        ({"GHUB_LEDGER_URL": "sqlite:///empty.db"}, "run `ghub migrate`"),
    ],
)
def test_a_wrong_setting_ends_the_start_with_a_sentence_that_names_it(
    system: System, changes: dict[str, str], words: str
) -> None:
    """`ghub serve` exits with 1 before it listens."""
    changes = {name: value.replace("empty.db", f"/{system.folder}/empty.db") for name, value in changes.items()}
    system.start("wrong", "serve", **{"GHUB_PORT": str(free_port()), **changes})
    assert system.processes.pop("wrong").wait(timeout=20) == 1
    assert words in system.log("wrong").splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "code"), [(("org", "list"), 0), (("org", "show", "nobody"), 1), (("nonsense",), 2)]
)
def test_a_process_loaded_anew_says_the_same(system: System, arguments: tuple[str, ...], code: int) -> None:
    """It compares `python -m proxy.cli`, as an operator starts it, with the forked processes of all other tests."""
    environment = {**os.environ, **system.environment}
    anew, forked = (finished(begin, arguments, environment, within_s=60) for begin in (executed, Forked))
    assert anew.returncode == forked.returncode == code
    assert anew.stdout == forked.stdout and bool(anew.stdout) == (code == 0)
    assert anew.stderr.replace("python -m proxy.cli", "ghub") == forked.stderr and "Traceback" not in forked.stderr


def test_redis_that_evicts_money_is_refused_at_start(prepared: Prepared) -> None:
    """Rule 28: any `maxmemory-policy` but noeviction."""
    system = prepared()
    system.valkey.start("--maxmemory-policy", "allkeys-lru")
    system.start("gateway", "serve")
    assert system.processes.pop("gateway").wait(timeout=20) == 1
    assert "noeviction" in system.log().splitlines()[-1]


def test_metrics_and_probes_listen_on_their_own_port(prepared: Prepared) -> None:
    """/metrics, /healthz and /readyz of gateway and consumer; the gateway's own port has no /metrics."""
    system = prepared()
    system.begin = executed  # here once as in production, each loaded anew
    system.valkey.start()
    ports = {"gateway": free_port(), "consumer": free_port()}
    system.start("consumer", "consume", GHUB_METRICS_PORT=str(ports["consumer"]))
    system.start_gateway(GHUB_METRICS_PORT=str(ports["gateway"]))
    for name, port in ports.items():
        wait_until(lambda at=port: _status(at, "/readyz") == 200, f"the {name} is ready")  # type: ignore[misc]
        assert _status(port, "/healthz") == 200
        metrics = httpx2.get(f"http://127.0.0.1:{port}/metrics", **LOOPBACK)
        assert metrics.headers["content-type"].startswith("text/plain") and "ghub_" in metrics.text
    assert _status(system.port, "/metrics") == 404


def _status(port: int, path: str) -> int:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}{path}", **LOOPBACK).status_code
    except httpx2.TransportError:
        return 0
