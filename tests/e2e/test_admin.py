"""An operator's day over HTTP, through the real gateway: what is done holds at once, and who did it is written down."""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from proxy.errors import Kind
from tests.conftest import run
from tests.e2e.conftest import Prepared
from tests.kits.system import FLUX, System, assert_no_key, bearer, prepare, wait_until

SECRET = "only for these tests: an administrator's secret"


@pytest.fixture(scope="module")
def office() -> Iterator[System]:
    """A system whose administrators have tokens by a shared secret."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        system = prepare(Path(folder), GHUB_JWT_SECRET=SECRET, GHUB_JWT_ISSUER="https://x.supabase.co/auth/v1")
        system.start_all()
        yield system
        system.stop_all()
        assert_no_key(system.keys, system.folder)
        assert_no_key([SECRET], system.folder)


def token(system: System, role: str = "admin", *more: str) -> str:
    done = system.ghub("token", "create", "--role", role, "--json", *more)
    assert done.returncode == 0, done.stderr
    issued = json.loads(done.stdout)
    assert set(issued) == {"token", "expires_at"}
    return str(issued["token"])


class Admin:
    """A client of /admin/v1; every key that it is shown is remembered for the grep."""

    def __init__(self, system: System, bearer_token: str) -> None:
        self.system = system
        self.url = f"http://127.0.0.1:{system.port}/admin/v1"
        self.token = bearer_token

    def ask(self, method: str, path: str, body: Any = None, idempotency_key: str | None = None) -> httpx2.Response:
        headers = bearer(self.token)
        if idempotency_key is not None:
            headers["idempotency-key"] = idempotency_key
        reply = httpx2.request(method, self.url + path, json=body, headers=headers, trust_env=False, timeout=30)
        if reply.status_code < 400 and reply.json().get("key"):
            self.system.keys.append(reply.json()["key"])
        return reply

    def done(self, method: str, path: str, body: Any = None, idempotency_key: str | None = None) -> dict[str, Any]:
        reply = self.ask(method, path, body, idempotency_key)
        assert reply.status_code in (200, 201), reply.text
        assert reply.headers["cache-control"] == "no-store"
        row: dict[str, Any] = reply.json()
        return row


@pytest.fixture(scope="module")
def admin(office: System) -> Admin:
    return Admin(office, token(office, "admin", "--subject", "ana"))


def order(system: System, key: str) -> tuple[int, str]:
    """One picture: the status, and the code of what refused it."""
    body = {"model": FLUX, "prompt": "x"}
    reply = httpx2.post(f"{system.url}/images/generations", headers=bearer(key), json=body, trust_env=False, timeout=60)
    return reply.status_code, reply.json().get("error", {}).get("code", "")


def test_an_operators_day(office: System, admin: Admin) -> None:
    """Organisation, credit, key, limits, rotation, revocation: each holds from the next request on, and is audited."""
    org = admin.done("POST", "/orgs", {"name": "Taller Ñandú"})
    assert (org["name"], org["plan"], org["images_per_day"]) == ("Taller Ñandú", "default", None)
    assert admin.done("GET", "/orgs/Taller Ñandú") == admin.done("GET", f"/orgs/{org['org']}") == org
    here = f"/orgs/{org['org']}"
    first = admin.done("POST", f"{here}/keys", {"name": "prod-web", "expires": "2199-01-31T00:00:00-06:00"})
    assert (first["state"], first["expires_at"], first["test"]) == ("active", "2199-01-31T06:00:00+00:00", False)
    assert order(office, first["key"]) == (402, "insufficient_balance")
    credit = {"id": "spei-1", "type": "recharge", "mxn": "50.00"}
    told = {**credit, "org": org["org"], "order": None, "reason": None, "added": True, "total_mxn": "58.00"}
    assert admin.done("POST", f"{here}/credits", credit).items() >= told.items()
    assert admin.done("POST", f"{here}/credits", credit)["added"] is False
    assert order(office, first["key"]) == (200, "")
    assert admin.done("GET", f"{here}/balance") == {
        "org": org["org"],
        "currency": "MXN",
        "available_mxn": "49.16",
        "held_mxn": "0.00",
        "balance_mxn": "49.16",
        "unpaid_mxn": "0.00",
    }
    limited = admin.done("PATCH", f"{here}/limits", {"images_per_day": 1, "in_flight": "none"})
    assert (limited["images_per_day"], limited["in_flight"]) == (1, "none")
    assert order(office, first["key"]) == (429, "quota_exceeded")
    assert admin.done("PATCH", f"{here}/limits", {"images_per_day": None})["images_per_day"] is None
    assert order(office, first["key"]) == (200, "")
    assert admin.done("PATCH", f"{here}/limits", {"mxn_per_month": "2.00"})["mxn_per_month"] == "2.00"
    assert order(office, first["key"]) == (402, "budget_exceeded")
    assert admin.done("PATCH", f"{here}/limits", {"mxn_per_month": "none"})["mxn_per_month"] == "none"
    second = admin.done("POST", f"/keys/{first['key_id']}/rotate", {"overlap_h": 24})
    assert second["key"] != first["key"] and second["name"] == "prod-web"
    assert order(office, second["key"]) == order(office, first["key"]) == (200, "")
    only = admin.done("PATCH", f"/keys/{first['key_id']}/limits", {"images_per_day": 1})
    assert (only["key_id"], only["images_per_day"]) == (first["key_id"], 1) and only["last_used_at"] is not None
    assert order(office, first["key"]) == (429, "quota_exceeded")
    assert admin.done("POST", f"/keys/{first['key_id']}/revoke")["state"] == "revoked"
    assert order(office, first["key"]) == (401, "key_revoked")
    assert order(office, second["key"]) == (200, "")
    cut = admin.done("POST", f"/keys/{second['key_id']}/rotate", {"overlap_h": 0})
    assert order(office, second["key"]) == (401, "key_expired")
    assert order(office, cut["key"]) == (200, "")
    other = admin.done("POST", f"{here}/keys", {"name": "ci", "models": ["openai/gpt-image-1"]})
    assert order(office, other["key"]) == (403, "model_not_allowed")
    states = {row["key_id"]: row["state"] for row in admin.done("GET", f"{here}/keys")["data"]}
    assert states == {
        first["key_id"]: "revoked",
        second["key_id"]: "expired",
        cut["key_id"]: "active",
        other["key_id"]: "active",
    }
    rate = {"month": "2031-01", "mxn_per_usd": "18.4512", "source": "DOF"}
    entered = admin.done("POST", "/fx", rate)
    assert entered.items() >= {**rate, "added": True, "entered_by": "jwt:ana", "approved_by": None}.items()
    assert admin.done("GET", "/fx")["data"][-1].items() >= rate.items()
    log = admin.done("GET", "/audit?org=Taller Ñandú&limit=100")["data"]
    assert {row["actor"] for row in log} == {"jwt:ana"} and {row["org"] for row in log} == {org["org"]}
    expected = [
        ("org.create", org["org"]),
        ("key.create", first["key_id"]),
        ("credit.add", "spei-1"),
        ("org.limits", org["org"]),
        ("org.limits", org["org"]),
        ("org.limits", org["org"]),
        ("org.limits", org["org"]),
        ("key.rotate", second["key_id"]),
        ("key.limits", first["key_id"]),
        ("key.revoke", first["key_id"]),
        ("key.rotate", cut["key_id"]),
        ("key.create", other["key_id"]),
    ]
    assert [(row["action"], row["target"]) for row in reversed(log)] == expected
    said = json.dumps(admin.done("GET", "/audit?limit=100"))
    assert not any(key in said for key in office.keys)
    whole = admin.done("GET", "/audit?limit=100")["data"]
    assert [row["target"] for row in whole if row["action"] == "fx.set"] == ["2031-01"]


@pytest.mark.rule(33)
def test_an_order_is_shown_and_refunded(office: System, admin: Admin) -> None:
    """(rule 33) Through the gateway: with the address of its image; what is given back can be spent at once."""
    org_id, key = office.customer("refunds", "0.84")
    assert order(office, key) == (200, "")
    (event,) = office.events(org_id, 1)
    shown = admin.done("GET", f"/orders/{event.event_id}")
    assert (shown["status"], shown["booked"], shown["refundable_mxn"]) == ("charged", True, "0.84")
    assert httpx2.get(shown["images"][0]["url"], trust_env=False).status_code == 200
    assert order(office, key) == (402, "insufficient_balance")
    refund = admin.done("POST", f"/orders/{shown['id']}/refund", {"reason": "blurred"}, "case-7")
    assert (refund["mxn"], refund["refundable_mxn"]) == ("0.84", "0.00")
    assert admin.done("POST", f"/orders/{shown['id']}/refund", {"reason": "blurred"}, "case-7") == refund
    assert admin.ask("POST", f"/orders/{shown['id']}/refund", {"reason": "blurred"}).status_code == 400
    assert order(office, key) == (200, "")
    (row,) = [row for row in admin.done("GET", "/audit?org=refunds")["data"] if row["action"] == "order.refund"]
    assert row["target"] == refund["id"]
    assert row["details"] == {"order": event.event_id, "reason": "blurred", "mxn": "0.84"}


def test_pages_follow_each_other_while_organisations_are_opened(admin: Admin) -> None:
    """Each is shown once, in the order in which they came."""
    names = [admin.done("POST", "/orgs", {"name": f"page {number}"})["name"] for number in range(5)]
    found: list[str] = []
    path = "/orgs?limit=2"
    for number in range(100):
        page = admin.done("GET", path)
        found += [row["name"] for row in page["data"]]
        if page["next_cursor"] is None:
            break
        path = f"/orgs?limit=2&cursor={page['next_cursor']}"
        if number < 3:
            names.append(admin.done("POST", "/orgs", {"name": f"late {number}"})["name"])
    assert [name for name in found if name in names] == names and len(found) == len(set(found))


def test_the_same_key_twenty_times_at_once_makes_one_organisation(office: System, admin: Admin) -> None:
    """Through the gateway, on connections of their own: one write, twenty times the same answer."""

    async def storm() -> list[httpx2.Response]:
        headers = {**bearer(admin.token), "idempotency-key": "storm"}
        async with httpx2.AsyncClient(base_url=admin.url, headers=headers, trust_env=False) as client:
            return await asyncio.gather(*(client.post("/orgs", json={"name": "storm"}) for _ in range(20)))

    replies = run(storm())
    assert {reply.status_code for reply in replies} == {201}
    assert len({reply.text for reply in replies}) == 1
    assert sum("idempotent-replayed" not in reply.headers for reply in replies) == 1
    again = admin.ask("POST", "/orgs", {"name": "storm"}, idempotency_key="storm")
    assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")


def test_a_key_that_is_issued_again_is_not_shown_again(admin: Admin) -> None:
    """The record has its hash only; `key` is null, and the row is the key's as it stands now."""
    org = admin.done("POST", "/orgs", {"name": "once"})
    issued = admin.done("POST", "/orgs/once/keys", {"name": "a"}, idempotency_key="k")
    admin.done("POST", f"/keys/{issued['key_id']}/revoke")
    again = admin.ask("POST", "/orgs/once/keys", {"name": "a"}, idempotency_key="k")
    assert again.status_code == 201 and again.headers["idempotent-replayed"] == "true"
    assert again.json()["key"] is None and again.json()["state"] == "revoked"
    assert [row["key_id"] for row in admin.done("GET", f"/orgs/{org['org']}/keys")["data"]] == [issued["key_id"]]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "param"),
    [
        ("GET", "/orgs/nobody", None, 404, "not_found", None),
        ("GET", "/orgs/a%00b", None, 404, "not_found", None),
        ("GET", "/orgs/nobody/keys", None, 404, "not_found", None),
        ("GET", "/audit?org=nobody", None, 404, "not_found", None),
        ("POST", "/keys/key_none/revoke", None, 404, "not_found", None),
        ("POST", "/keys/key_none/rotate", {"overlap_h": 1}, 404, "not_found", None),
        ("GET", "/nothing", None, 404, "not_found", None),
        ("DELETE", "/orgs", None, 405, "method_not_allowed", None),
        ("GET", "/keys/key_x/revoke", None, 405, "method_not_allowed", None),
        ("POST", "/orgs", {"name": "x" * 70_000}, 413, "request_too_large", None),
        ("POST", "/orgs", {}, 400, "invalid_request_error", "name"),
        ("POST", "/orgs", {"name": 7}, 400, "invalid_request_error", "name"),
        ("POST", "/orgs", {"name": "a/b"}, 400, "invalid_request_error", "name"),
        ("POST", "/orgs", {"name": "a", "plan": "gold"}, 400, "invalid_request_error", "plan"),
        ("POST", "/orgs", {"name": "a", "color": "red"}, 400, "invalid_request_error", "color"),
        ("POST", "/orgs", ["a"], 400, "invalid_request_error", None),
        ("POST", "/orgs", None, 400, "invalid_request_error", None),
        ("GET", "/orgs?limit=0", None, 400, "invalid_request_error", "limit"),
        ("GET", "/orgs?limit=101", None, 400, "invalid_request_error", "limit"),
        ("GET", "/orgs?limit=1_0", None, 400, "invalid_request_error", "limit"),
        ("GET", "/orgs?limit=%2B5", None, 400, "invalid_request_error", "limit"),
        ("GET", "/orgs?cursor=none", None, 400, "invalid_request_error", "cursor"),
        ("GET", "/orgs?page=2", None, 400, "invalid_request_error", "page"),
        ("PATCH", "/orgs/wrong/limits", {}, 400, "invalid_request_error", None),
        ("PATCH", "/orgs/wrong/limits", {"images_per_day": 0}, 400, "invalid_request_error", "images_per_day"),
        ("PATCH", "/orgs/wrong/limits", {"images_per_day": 1.5}, 400, "invalid_request_error", "images_per_day"),
        ("PATCH", "/orgs/wrong/limits", {"images_per_day": "5"}, 400, "invalid_request_error", "images_per_day"),
        (
            "PATCH",
            "/orgs/wrong/limits",
            {"images_per_minute": "none"},
            400,
            "invalid_request_error",
            "images_per_minute",
        ),
        ("PATCH", "/orgs/wrong/limits", {"mxn_per_month": 500}, 400, "invalid_request_error", "mxn_per_month"),
        ("PATCH", "/orgs/wrong/limits", {"mxn_per_month": "0.00"}, 400, "invalid_request_error", "mxn_per_month"),
        ("PATCH", "/orgs/wrong/limits", {"mxn_per_month": "9999999999"}, 400, "invalid_request_error", "mxn_per_month"),
        (
            "POST",
            "/orgs/wrong/keys",
            {"name": "a", "expires": "2020-01-01T00:00:00Z"},
            400,
            "invalid_request_error",
            "expires",
        ),
        (
            "POST",
            "/orgs/wrong/keys",
            {"name": "a", "expires": "2027-01-01T00:00:00"},
            400,
            "invalid_request_error",
            "expires",
        ),
        (
            "POST",
            "/orgs/wrong/keys",
            {"name": "a", "expires": "9999-12-31T23:59:59-06:00"},
            400,
            "invalid_request_error",
            "expires",
        ),
        ("POST", "/orgs/wrong/keys", {"name": "a", "expires": "1893456000"}, 400, "invalid_request_error", "expires"),
        (
            "POST",
            "/orgs/wrong/keys",
            {"name": "a", "models": ["fal/flux-1"]},
            400,
            "invalid_request_error",
            "models",
        ),
        ("POST", "/keys/key_none/rotate", {"overlap_h": 2161}, 400, "invalid_request_error", "overlap_h"),
        ("POST", "/keys/key_none/revoke", {"why": "x"}, 400, "invalid_request_error", None),
        (
            "POST",
            "/orgs/wrong/credits",
            {"id": "p", "type": "consumption", "mxn": "1"},
            400,
            "invalid_request_error",
            "type",
        ),
        (
            "POST",
            "/orgs/wrong/credits",
            {"id": "p", "type": "bonus", "mxn": "1e3"},
            400,
            "invalid_request_error",
            "mxn",
        ),
        ("POST", "/orgs/wrong/credits", {"id": "p", "type": "bonus", "mxn": "-1"}, 400, "invalid_request_error", "mxn"),
        ("POST", "/orgs/wrong/credits", {"id": "a b", "type": "bonus", "mxn": "1"}, 400, "invalid_request_error", "id"),
        (
            "POST",
            "/fx",
            {"month": "2031-13", "mxn_per_usd": "18", "source": "x"},
            400,
            "invalid_request_error",
            "month",
        ),
        (
            "POST",
            "/fx",
            {"month": "2031-12", "mxn_per_usd": "0", "source": "x"},
            400,
            "invalid_request_error",
            "mxn_per_usd",
        ),
        (
            "POST",
            "/fx",
            {"month": "2031-12", "mxn_per_usd": "18", "source": " "},
            400,
            "invalid_request_error",
            "source",
        ),
    ],
)
def test_what_is_refused_names_the_field(
    admin: Admin, method: str, path: str, body: Any, status: int, code: str, param: str | None
) -> None:
    """In the envelope of all other errors, with no dashes of a command and no word of a library in it."""
    admin.ask("POST", "/orgs", {"name": "wrong"})  # there once, whichever case comes first
    error = refused(admin.ask(method, path, body), status, code)
    assert error["param"] == param
    assert "--" not in error["message"] and "Input should" not in error["message"]
    if param is not None and code == "invalid_request_error" and param not in ("color", "page"):
        assert error["message"].startswith(f"`{param}`")


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_an_idempotency_key_has_bounds(admin: Admin, key: str) -> None:
    """The bounds are those of images: 1 to 255 characters."""
    refused(admin.ask("POST", "/orgs", {"name": "bounds"}, idempotency_key=key), 400, "invalid_request_error")
    assert admin.ask("GET", "/orgs/bounds").status_code == 404


def test_who_may_not_is_told_so(office: System, admin: Admin) -> None:
    """401 without a token, with a customer's key, and before anything of the body; 403 for another role."""
    _, key = office.customer("customer of the admin tests")
    for wrong in ("x", key, "e30.e30.", token(office)[:-3]):
        error = refused(Admin(office, wrong).ask("POST", "/orgs", {"color": "red"}), 401, "invalid_token")
        assert key not in error["message"]
    nobody = httpx2.get(f"{admin.url}/orgs", trust_env=False)
    refused(nobody, 401, "invalid_token")
    assert nobody.headers["www-authenticate"] == "Bearer"
    finance = Admin(office, token(office, "finance", "--ttl", "30m"))
    refused(finance.ask("GET", "/orgs"), 403, "not_allowed")
    refused(finance.ask("POST", "/orgs", {"name": "finance"}), 403, "not_allowed")
    assert admin.ask("GET", "/orgs/finance").status_code == 404


def test_the_log_says_who_and_never_by_what(office: System, admin: Admin) -> None:
    """The line of a request has the actor and the target; a token is in no log."""
    org = admin.done("POST", "/orgs", {"name": "logged"})

    def told() -> bool:
        lines = [json.loads(line) for line in office.log().splitlines() if org["org"] in line]
        return any(line.get("actor") == "jwt:ana" and line.get("target") == org["org"] for line in lines)

    wait_until(told, "the line is in the log, which is written after the reply")
    assert admin.token.rpartition(".")[2] not in office.log()


def test_a_token_has_bounds(office: System) -> None:
    """The command gives none for longer than a month, none for no time, none for a name or a role that cannot be."""
    for wrong in (("--ttl", "31d"), ("--ttl", "0h"), ("--ttl", "soon"), ("--subject", "Ana María"), ("--role", "root")):
        done = office.ghub("token", "create", "--role", "admin", *wrong)
        assert done.returncode == 2 and wrong[0] in done.stderr and "Traceback" not in done.stderr


def test_without_a_secret_there_is_no_admin_api(prepared: Prepared) -> None:
    """404, as for any address that is none; and `ghub token` says which variable is missing."""
    system = prepared()
    system.valkey.start()
    system.start("consumer", "consume")
    system.start_gateway()
    reply = httpx2.get(f"http://127.0.0.1:{system.port}/admin/v1/orgs", trust_env=False)
    refused(reply, 404, "not_found")
    done = system.ghub("token", "create", "--role", "admin")
    assert done.returncode == 1 and "GHUB_JWT_SECRET is not set" in done.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"GHUB_JWT_SECRET": "short"}, "GHUB_JWT_SECRET: must have at least 32 bytes"),
        ({"GHUB_JWKS_URL": "https://x/jwks.json"}, "GHUB_JWKS_URL: set this or GHUB_JWT_SECRET, not both"),
        ({"GHUB_JWT_SECRET": "", "GHUB_JWKS_URL": "x.supabase.co"}, "GHUB_JWKS_URL: must start with http"),
    ],
)
def test_a_wrong_setting_ends_the_start(office: System, changes: dict[str, str], words: str) -> None:
    """With a sentence that names it and does not repeat a secret."""
    office.start("wrong", "serve", **changes)
    assert office.processes.pop("wrong").wait(timeout=20) == 1
    last = office.log("wrong").splitlines()[-1]
    assert words in last and "short" not in last


def refused(reply: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The envelope, whole."""
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), reply.text
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "code", "param", "request_id"} and error["message"]
    assert error["type"] == next(kind.value.type for kind in Kind if kind.value.code == code)
    assert reply.headers["x-request-id"] == error["request_id"] and reply.headers["x-should-retry"] == "false"
    return error
