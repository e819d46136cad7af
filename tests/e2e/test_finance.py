"""A month of finance over HTTP, through the real gateway: entered, approved, closed and exported by several people."""

import asyncio
import base64
import json
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from metering.clock import month_start_us, period_at, previous_month, unix_us_at, utc_at, utc_now
from metering.ports import Act, NewCredit
from proxy.api.admin.minting import Issuer, mint
from proxy.backends import Backends
from tests.conftest import run
from tests.kits.system import FLUX, System, assert_no_key, bearer, prepare

SECRET = "only for these tests: a secret of finance's tokens"
RIGHTS = "enter,approve_fx,approve_adjustment,close"


@pytest.fixture(scope="module")
def office() -> Iterator[System]:
    """A system with tokens by a shared secret, and a key that seals months."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        signing = base64.b64encode(bytes(range(32))).decode()
        system = prepare(Path(folder), GHUB_JWT_SECRET=SECRET, GHUB_MONTH_SIGNING_KEY=signing)
        system.start_all()
        yield system
        system.stop_all()
        assert_no_key(system.keys, system.folder)
        assert_no_key([SECRET, signing], system.folder)


def token(system: System, who: str, *more: str) -> str:
    done = system.ghub("token", "create", "--role", "finance", "--subject", who, "--json", *more)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["token"])


def ask(system: System, bearing: str, method: str, path: str, body: Any = None) -> httpx2.Response:
    url = f"http://127.0.0.1:{system.port}/finance/v1{path}"
    return httpx2.request(method, url, json=body, headers=bearer(bearing), trust_env=False, timeout=30)


def done(system: System, bearing: str, method: str, path: str, body: Any = None) -> dict[str, Any]:
    reply = ask(system, bearing, method, path, body)
    assert reply.status_code in (200, 201), reply.text
    row: dict[str, Any] = reply.json()
    return row


def ordered(system: System, org_id: str, key: str) -> str:
    """One picture, which is booked; its id."""
    body = {"model": FLUX, "prompt": "x"}
    url = f"{system.url}/images/generations"
    reply = httpx2.post(url, headers=bearer(key), json=body, trust_env=False, timeout=60)
    assert reply.status_code == 200, reply.text
    system.events(org_id, 1)
    return str(reply.json()["id"])


def refused(reply: httpx2.Response, status: int, code: str) -> str:
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), reply.text
    assert reply.headers["x-should-retry"] == "false"
    return str(reply.json()["error"]["message"])


def test_a_month_of_finance(office: System, tmp_path: Path) -> None:
    """A rate and an adjustment by two people each, a close by another, and an export that is verified."""
    this = period_at(unix_us_at(utc_now())).month
    last = previous_month(this)
    org_id, key = office.customer("finance", "0.00")

    async def before(back: Backends) -> None:
        at = utc_at(month_start_us(last) + 1_000_000)
        act = Act("cli:test", "credit.add", "first", org_id)
        await back.ledger.add_credit(NewCredit("first", org_id, "bonus", 5_000_000), at, act)

    office.back(before)
    assert office.ghub("wallet", "rebuild", "finance").returncode == 0
    ana, eva, leo = (token(office, who, "--rights", RIGHTS) for who in ("ana", "eva", "leo"))
    order = ordered(office, org_id, key)

    usage = done(office, eva, "GET", "/usage?group_by=org,model&org=finance")
    assert usage["total"] == {"orders": 1, "images": 1, "cost_mxn": "0.84"}
    entered = done(office, ana, "POST", "/fx", {"month": last, "mxn_per_usd": "20.00", "source": "DOF"})
    assert "entered by jwt:ana" in refused(
        ask(office, ana, "POST", f"/fx/{entered['id']}/approve"), 403, "second_person_required"
    )
    assert done(office, eva, "POST", f"/fx/{entered['id']}/approve")["approved_by"] == "jwt:eva"

    body = {"org": "finance", "mxn": "-1.00", "reason": "a mistake", "corrects": order}
    proposed = done(office, ana, "POST", "/adjustments", body)
    refused(ask(office, ana, "POST", f"/adjustments/{proposed['id']}/approve"), 403, "second_person_required")
    assert office.cut(org_id).available_micro_mxn == 4_160_000
    done(office, leo, "POST", f"/adjustments/{proposed['id']}/approve")
    assert office.cut(org_id).available_micro_mxn == 3_160_000, "the gateway knows at once"
    (credit,) = done(office, leo, "GET", "/credits?type=adjustment")["data"]
    assert (credit["corrects"], credit["by"]) == (f"order:{order}", "jwt:leo")

    refused(ask(office, eva, "POST", f"/months/{last}/close"), 403, "second_person_required")
    closed = done(office, leo, "POST", f"/months/{last}/close")
    assert (closed["closed_by"], closed["sealed"], closed["closing_mxn"]) == ("jwt:leo", True, "5.00")
    assert "is not over" in refused(ask(office, leo, "POST", f"/months/{this}/close"), 400, "invalid_request_error")
    export = ask(office, leo, "GET", f"/months/{last}/exports/csv")
    assert export.status_code == 200 and export.headers["x-geekhub-complete"] == "true"
    (tmp_path / "month.csv").write_bytes(export.content)
    manifest = ask(office, leo, "GET", f"/months/{last}/manifest").content
    (tmp_path / "month.csv.manifest.json").write_bytes(manifest)
    assert office.ghub("month", "verify", str(tmp_path / "month.csv")).returncode == 0
    log = office.back(lambda back: back.ledger.audits(None, 2**53, 100))
    told = [(row.actor, row.action) for row in reversed(log) if row.actor.startswith("jwt:")]
    assert told == [
        ("jwt:ana", "fx.set"),
        ("jwt:eva", "fx.approve"),
        ("jwt:ana", "adjustment.propose"),
        ("jwt:leo", "adjustment.approve"),
        ("jwt:leo", "month.close"),
    ]


def test_who_may_not_is_told_so(office: System) -> None:
    """Another role, no right, an expired token, none; and what is written on `ghub token` is checked there."""
    admin = office.ghub("token", "create", "--role", "admin").stdout.strip()
    reader = token(office, "eva")
    rate = {"month": "2041-03", "mxn_per_usd": "20.00", "source": "DOF"}
    for method, path, body in (("GET", "/fx", None), ("POST", "/fx", rate), ("GET", "/months", None)):
        refused(ask(office, admin, method, path, body), 403, "not_allowed")
        issuer = Issuer("authenticated", None)
        late = mint(SECRET, issuer, "eva", "finance", utc_now(), timedelta(minutes=-1), ["enter"])
        assert "expired" in refused(ask(office, late, method, path, body), 401, "invalid_token")
        refused(ask(office, "x", method, path, body), 401, "invalid_token")
    assert "has enter in its" in refused(ask(office, reader, "POST", "/fx", rate), 403, "not_allowed")
    assert ask(office, reader, "GET", "/fx").status_code == 200
    url = f"http://127.0.0.1:{office.port}/admin/v1/orgs"
    assert httpx2.get(url, headers=bearer(reader), trust_env=False).status_code == 403
    for wrong in (("--role", "finance", "--rights", "root"), ("--role", "admin", "--rights", "close")):
        told = office.ghub("token", "create", *wrong)
        assert told.returncode == 2 and "--rights" in told.stderr


def test_one_person_at_one_moment_uses_one_right(office: System) -> None:
    """Twenty requests on connections of their own, half of them to enter and half to approve: one half is refused."""
    office.customer("race", "5.00")
    ana, eva = token(office, "race-a", "--rights", RIGHTS), token(office, "race-e", "--rights", RIGHTS)
    body = {"org": "race", "mxn": "0.01", "reason": "x"}
    made = [done(office, ana, "POST", "/adjustments", body)["id"] for _ in range(10)]

    async def storm() -> list[int]:
        url = f"http://127.0.0.1:{office.port}/finance/v1/adjustments"
        async with httpx2.AsyncClient(headers=bearer(eva), trust_env=False, timeout=30) as client:
            both = [
                request
                for number in made
                for request in (client.post(f"{url}/{number}/approve"), client.post(url, json=body))
            ]
            return [reply.status_code for reply in await asyncio.gather(*both)]

    codes = run(storm())
    assert sorted([set(codes[::2]) == {403}, set(codes[1::2]) == {403}]) == [False, True], codes
    assert set(codes) in ({200, 403}, {201, 403})


def test_a_months_rate_is_corrected_by_a_command(office: System) -> None:
    """It says what it will give, gives it once, and that a command proves no second person."""
    org_id, key = office.customer("corrected", "5.00")
    order = ordered(office, org_id, key)
    month = period_at(unix_us_at(utc_now())).month
    command = ("fx", "correct", month, "10.00", "--reason", "a typo", "--as", "ana")
    trial = office.ghub(*command, "--dry-run", "--json")
    assert trial.returncode == 0 and "nothing was given" in trial.stderr, trial.stderr
    rows = {row["organization"]: row for row in json.loads(trial.stdout)["organizations"]}
    told = {"charged_mxn": "0.84", "should_be_mxn": "0.42", "before_mxn": "0.00", "adjustment_mxn": "0.42"}
    assert rows["corrected"] == {"organization": "corrected", **told}
    assert office.cut(org_id).available_micro_mxn == 4_160_000
    given = office.ghub(*command)
    assert given.returncode == 0 and "proves no second one" in given.stderr, given.stderr
    assert "is not over" in given.stderr and max(map(len, given.stdout.splitlines())) <= 80
    assert office.cut(org_id).available_micro_mxn == 4_580_000
    again = json.loads(office.ghub(*command, "--json").stdout)
    assert again["adjustment_mxn"] == "0.00" and again["before_mxn"] == json.loads(trial.stdout)["adjustment_mxn"]
    listed = json.loads(office.ghub("credit", "list", "corrected", "--type", "adjustment", "--json").stdout)["data"]
    assert [(row["corrects"], row["mxn"], row["by"]) for row in listed] == [(f"fx:{month}", "0.42", "cli:ana")]
    added = office.ghub(
        "credit", "add", "corrected", "--type", "adjustment", "--mxn", "0.01", "--id", "by-hand", "--corrects",
        order, "--json",
    )  # fmt: skip
    assert json.loads(added.stdout)["corrects"] == f"order:{order}", added.stderr
    wrong = office.ghub("fx", "correct", "2020-01", "10.00", "--reason", "x")
    assert wrong.returncode == 1 and wrong.stderr.startswith("ghub: MONTH: no rate of 2020-01"), wrong.stderr
    assert office.ghub("fx", "correct", "2020", "10.00", "--reason", "x").returncode == 2
    assert office.ghub("verify", "--no-images").returncode == 0
