"""Web pages: which may call at all, which may use which key, what any page may read. Raw requests, as of browsers."""

from functools import partial
from typing import Any

import httpx2
import pytest

from config.settings import SettingsError, read_settings
from metering.accounts import IssuedKey
from proxy.backends import Backends
from tests.conftest import LOOPBACK
from tests.e2e.conftest import Prepared
from tests.kits.system import FLUX, System, bearer, wait_until

OURS, APP, OTHER = "https://console.example.mx", "https://app.example.mx", "http://localhost:3000"
STRANGER = "https://evil.example"
ORDER = {"model": FLUX, "prompt": "Un faro, de noche"}
PATHS = ("/images/generations", "/models", "/credits", "/usage", "/images/generations/req_" + "0" * 32)


def issue(system: System, org_id: str, *origins: str) -> IssuedKey:
    async def make(back: Backends) -> IssuedKey:
        return await back.accounts.create_key(org_id, "page", origins=origins)

    issued = system.back(make)
    system.keys.append(issued.secret)
    return issued


def preflight(system: System, origin: str, path: str = "/images/generations", **headers: str) -> httpx2.Response:
    """Send the request that a browser sends before a key and JSON."""
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    return httpx2.options(f"{system.url}{path}", headers={"origin": origin, **asked, **headers}, **LOOPBACK)


def answered(reply: httpx2.Response, origin: str) -> bool:
    told = reply.headers
    if reply.status_code != 204:
        assert not [name for name in told if name.startswith("access-control-")]
        return False
    assert told["access-control-allow-origin"] == origin and "origin" in told["vary"].lower()
    assert {"GET", "POST"} <= set(told["access-control-allow-methods"].split(", "))
    assert {"authorization", "*"} <= set(told["access-control-allow-headers"].split(", "))
    assert "access-control-allow-credentials" not in told and reply.content == b""
    return True


def may_ask(system: System, origin: str) -> bool:
    return answered(preflight(system, origin), origin)


def send(system: System, key: str | None, origin: str | None, path: str = "/credits", **more: Any) -> httpx2.Response:
    headers = (bearer(key) if key else {}) | ({"origin": origin} if origin else {})
    method = "POST" if "json" in more else "GET"
    return httpx2.request(method, f"{system.url}{path}", headers=headers, timeout=60, **more, **LOOPBACK)


def refused(reply: httpx2.Response) -> bool:
    error = reply.json().get("error", {})
    return (reply.status_code, error.get("code"), error.get("type")) == (403, "origin_not_allowed", "permission_error")


def test_it_is_off_where_nobody_named_a_page(prepared: Prepared) -> None:
    """A preflight is the 405 that it always was, without a word of CORS; a page's request with a good key is 403."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("off", "50.00")
    for path in PATHS:
        reply = preflight(system, APP, path)
        assert (reply.status_code, reply.json()["error"]["code"]) == (405, "method_not_allowed")
        assert not answered(reply, APP)
    for origin in (APP, "null", STRANGER):
        told = send(system, key, origin)
        assert refused(told) and "access-control-allow-origin" not in told.headers
    assert refused(send(system, key, APP, "/images/generations", json=ORDER))
    assert send(system, key, None).json()["available_mxn"] == "50.00"
    assert not system.jobs() and system.cut(org_id).held_micro_mxn == 0


def test_a_page_uses_the_keys_that_name_it_and_ghub_cors_origins_any(prepared: Prepared) -> None:
    """Preflights for all of them; requests by key; errors are read, too; the page of a revoked key is forgotten."""
    system = prepared(GHUB_CORS_ORIGINS=f"{OURS}, http://127.0.0.1:5173")
    system.start_all()
    org_id, plain = system.customer("pages", "50.00")
    app, other = issue(system, org_id, APP), issue(system, org_id, OTHER, APP + ":8443")
    assert may_ask(system, OURS)
    for origin in (APP, OTHER, APP + ":8443"):
        wait_until(partial(may_ask, system, origin), f"a preflight for {origin}")
        for path in PATHS:
            assert answered(preflight(system, origin, path), origin)
    for origin in (STRANGER, APP.upper(), APP + "/", APP + ".evil.example", "null"):
        assert not may_ask(system, origin)
    admin = httpx2.options(
        system.url.removesuffix("/v1") + "/admin/v1/orgs",
        headers={"origin": OURS, "access-control-request-method": "GET"},
        **LOOPBACK,
    )
    assert not answered(admin, OURS)

    made = send(system, app.secret, APP, "/images/generations", json=ORDER)
    assert (made.status_code, made.headers["access-control-allow-origin"]) == (200, APP)
    exposed = {name.strip() for name in made.headers["access-control-expose-headers"].split(",")}
    ours = {name for name in made.headers if name.startswith(("x-", "retry-after", "idempotent"))}
    assert ours <= exposed
    assert {"x-request-id", "x-geekhub-cost-mxn", "retry-after", "retry-after-ms", "x-should-retry"} <= exposed
    for key in (plain, app.secret, other.secret):
        assert send(system, key, OURS).status_code == 200 and send(system, key, None).status_code == 200
    assert send(system, other.secret, OTHER).status_code == 200
    for key, origin in ((plain, APP), (app.secret, OTHER), (other.secret, APP)):
        told = send(system, key, origin)
        assert refused(told) and told.headers["access-control-allow-origin"] == origin
        assert refused(send(system, key, origin, "/images/generations", json=ORDER))
    assert refused(send(system, app.secret, STRANGER))
    unknown = send(system, "ghub_sk_live_" + "0" * 32, APP)
    assert (unknown.status_code, unknown.headers["access-control-allow-origin"]) == (401, APP)
    wrong = send(system, app.secret, APP, "/images/generations", json={"model": FLUX})
    assert (wrong.status_code, wrong.headers["access-control-allow-origin"]) == (400, APP)
    assert len(system.events(org_id, 1)) == 1

    assert system.ghub("key", "revoke", other.key_id).returncode == 0
    wait_until(lambda: not may_ask(system, OTHER), "its page is forgotten")
    assert may_ask(system, APP)


def test_a_preflight_asks_neither_ledger_nor_redis(prepared: Prepared) -> None:
    """Both are away, and a page is answered as before."""
    system = prepared()
    system.valkey.start()
    org_id, _ = system.customer("away")
    issue(system, org_id, APP)
    system.start("simulator", "simulate", "--port", str(system.simulator_port), "--latency-scale", "0")
    system.start_gateway()
    assert may_ask(system, APP)
    system.valkey.stop()
    (system.folder / "ledger.db").rename(system.folder / "ledger.gone")
    for _ in range(200):
        assert may_ask(system, APP)


def test_the_document_and_local_images_are_for_any_page(system: System) -> None:
    """`*` for every origin, also if a client has them cached; neither needs a key."""
    _, key = system.customer("public", "50.00")
    url = send(system, key, None, "/images/generations", json=ORDER).json()["data"][0]["url"]
    for address in (system.url.removesuffix("/v1") + "/openapi.json", url):
        first = httpx2.get(address, headers={"origin": STRANGER}, **LOOPBACK)
        assert (first.status_code, first.headers["access-control-allow-origin"]) == (200, "*")
        kept = httpx2.get(address, headers={"if-none-match": first.headers["etag"]}, **LOOPBACK)
        assert (kept.status_code, kept.headers["access-control-allow-origin"]) == (304, "*")


@pytest.mark.parametrize(
    "origin", ["*", "null", "app.example.mx", f"{APP}/", f"{APP}/x", APP.upper(), f"{APP}:443", "https://a b.mx"]
)
def test_an_origin_that_no_browser_sends_is_refused_with_a_sentence(
    system: System, origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command that makes a key, and by the setting at the start."""
    done = system.ghub("key", "create", "nobody", "--name", "x", "--origins", origin)
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.startswith("ghub: --origins: ")
    monkeypatch.setenv("GHUB_CORS_ORIGINS", f"{OTHER},{origin}")
    with pytest.raises(SettingsError, match=r"^GHUB_CORS_ORIGINS: '"):
        read_settings()
