"""The line of a request: what an operator asks for, and nothing that must not be in a log."""

import http.client
import json
import re
from pathlib import Path
from typing import Any

from tests.e2e.conftest import Prepared
from tests.kits.system import FLUX, GPT, System, wait_until

ROOT = Path(__file__).parents[2]
PATH = "/v1/images/generations"
JWT_SECRET = "a-secret-of-forty-bytes-that-is-only-for-tests"
MAX_LINE_BYTES = 1_500

NEEDLE = "hush"
"""Stands in everything that a client, a provider or an operator keeps secret here."""

HEADERS = {
    "user-agent": f"{NEEDLE}-agent/1.0",
    "cookie": f"session={NEEDLE}-cookie",
    "referer": f"https://{NEEDLE}.example.mx/?token={NEEDLE}",
    "x-api-key": f"{NEEDLE}-api-key",
    "api-key": f"{NEEDLE}-api-key",
    "proxy-authorization": f"Basic {NEEDLE}",
    "x-forwarded-for": f"{NEEDLE}-address",
    "x-forwarded-host": f"{NEEDLE}.example.mx",
    "forwarded": f"for={NEEDLE}",
    "accept-language": f"{NEEDLE}, es;q=0.5",
    "accept": f"application/{NEEDLE}",
    "idempotency-key": f"{NEEDLE}-idempotency",
    "openai-organization": f"{NEEDLE}-org",
    "openai-project": f"{NEEDLE}-project",
    "x-stainless-lang": f"{NEEDLE}-lang",
    "x-stainless-retry-count": f"{NEEDLE}",
    "x-ghub-tags": f"{NEEDLE}-tag",
    "traceparent": f"00-{NEEDLE}-01",
    "tracestate": f"vendor={NEEDLE}",
    "baggage": f"user={NEEDLE}",
    "prefer": f"{NEEDLE}",
    "content-type": f"application/json; charset={NEEDLE}",
    f"x-{NEEDLE}": f"{NEEDLE}",
}
BODY = {
    "model": FLUX,
    "prompt": f"{NEEDLE} prompt",
    "user": f"{NEEDLE}-user",
    "safety_identifier": f"{NEEDLE}-safety",
    "metadata": {f"{NEEDLE}-name": f"{NEEDLE}-value"},
}


class Client:
    """A client that sends what it is told to, well formed or not."""

    def __init__(self, system: System, key: str) -> None:
        self._port, self._key = system.port, key
        self.sent = 0

    def send(
        self, body: Any, *, method: str = "POST", path: str = PATH, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Send one request on its own connection, with every planted header; returns status and body."""
        self.sent += 1
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"authorization": f"Bearer {self._key}", **HEADERS, **(headers or {})}
        connection.request(method, path, content, {name: value for name, value in sent.items() if value})
        reply = connection.getresponse()
        found = reply.status, reply.read()
        connection.close()
        return found


def requests(system: System) -> list[dict[str, Any]]:
    """The lines of requests in the gateway's log, without those of the test's own preparation."""
    lines = [json.loads(line) for line in system.log().splitlines()]
    return [line for line in lines if line["event"] == "request" and line["route"] != "/v1/credits"]


def documented() -> set[str]:
    """The fields that docs/operations.md names."""
    page = (ROOT / "docs" / "operations.md").read_text()
    (section,) = re.findall(r"(?ms)^### The line of a request$(.*?)^#", page)
    cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_no_secret_of_a_request_reaches_a_log(prepared: Prepared) -> None:
    """Planted in every header and field, in paths, queries and methods, and in what providers answer."""
    system = prepared(GHUB_JWT_SECRET=JWT_SECRET, GHUB_REGION="mx-central")
    system.start_all()
    org_id, key = system.customer("acme", "100.00")
    client = Client(system, key)
    statuses = [
        client.send(BODY)[0],
        client.send(BODY)[0],  # its replay
        client.send(BODY | {"prompt": f"{NEEDLE} again"})[0],  # the same idempotency key
        client.send(BODY | {"model": f"{NEEDLE}/model"}, headers={"idempotency-key": ""})[0],
        client.send(BODY | {NEEDLE: NEEDLE})[0],
        client.send(BODY | {"n": NEEDLE})[0],
        client.send(f'{{"prompt": "{NEEDLE}'.encode())[0],
        client.send(BODY, headers={"content-encoding": NEEDLE})[0],
        client.send(BODY, headers={"authorization": f"Bearer ghub_sk_live_{NEEDLE}{'0' * 28}"})[0],
        client.send(BODY, headers={"authorization": f"Basic {NEEDLE}"})[0],
        client.send(BODY, headers={"origin": f"https://{NEEDLE}.example.mx"})[0],
        client.send(BODY, path=f"/{NEEDLE}?token={NEEDLE}")[0],
        client.send(b"", method="GET", path=f"{PATH}/{NEEDLE}")[0],
        client.send(b"", method="GET", path=f"{PATH}?idempotency_key={NEEDLE}&after={NEEDLE}")[0],
        client.send(b"", method=NEEDLE.upper())[0],
        client.send(BODY, headers={"x-request-id": f"Bearer {key}"})[0],
    ]
    assert statuses == [200, 200, 422, 404, 400, 400, 400, 415, 401, 401, 403, 404, 404, 404, 405, 200]
    for model, scenario in ((FLUX, "secret_in_error"), (FLUX, "image_redirect_secret"), (GPT, "secret_in_error")):
        system.behave(model, scenario)
        status, told = client.send(BODY | {"model": model}, headers={"idempotency-key": f"{NEEDLE}-{scenario}-{model}"})
        assert (status >= 400) and NEEDLE.encode() not in told, (status, told)

    ids = {"x-request-id": "trace-1", "user-agent": "OpenAI/Python 2.8.1", "x-stainless-retry-count": "1"}
    assert client.send(BODY, headers=ids | {"idempotency-key": ""})[0] == 200
    token = json.loads(system.ghub("token", "create", "--role", "admin", "--ttl", "1h", "--json").stdout)["token"]
    admin = {"authorization": f"Bearer {token}"}
    assert client.send({"name": "other"}, path="/admin/v1/orgs", headers=admin)[0] == 201
    wait_until(lambda: len(requests(system)) == client.sent, "every request has its line")

    lines = requests(system)
    for log in (*system.folder.glob("*.log"),):
        text = log.read_text()
        assert NEEDLE not in text.lower(), [line for line in text.splitlines() if NEEDLE in line.lower()][:3]
        assert token not in text and key not in text and "sk-" not in text, log
    assert {name for line in lines for name in line} - {"event", "level", "timestamp"} == documented()
    assert max(len(json.dumps(line)) for line in lines) < MAX_LINE_BYTES
    assert {line["region"] for line in lines} == {"mx-central"}
    methods = {line["method"] for line in lines}
    assert methods == {"POST", "GET", "other"}
    last = next(line for line in lines if line.get("client_request_id") == "trace-1")
    assert (last["client"], last["sdk_retry"], last["keyed"]) == ("OpenAI/Python 2.8.1", 1, False)
    first, replay = lines[0], lines[1]
    assert (first["org"], first["model"], first["provider"], first["n"]) == (org_id, FLUX, "fal", 1)
    assert (first["images"], first["cost_mxn"], first["client"], first["client_gone"]) == (1, "0.84", "other", False)
    assert (first["upstream_calls"], first["keyed"], first["sandbox"]) == (1, True, False)
    assert 0 < first["upstream_ms"] <= first["elapsed_ms"] and first["bytes"] > 1_000
    assert (replay["replay_of"], replay["cost_mxn"], replay["images"]) == (first["request_id"], "0.00", 1)
    assert "upstream_ms" not in replay
