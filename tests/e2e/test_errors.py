"""Every row of the public table of errors, over HTTP, with what the official SDKs are told to do about it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from redis import Redis

from metering.accounts import hash_key
from metering.wallet.keys import key_record
from proxy.errors import Kind
from tests.conftest import LOOPBACK
from tests.e2e.conftest import Prepared
from tests.kits.system import FLUX, GPT, System, bearer, wait_until

ORDER = {"model": FLUX, "prompt": "x"}


@dataclass(frozen=True)
class Case:
    """A body (or raw bytes), and the row that answers it."""

    name: str
    body: Any
    status: int
    code: str
    param: str | None
    words: tuple[str, ...] = field(default=())


def bad(name: str, changes: dict[str, Any], param: str | None, *words: str) -> Case:
    """A 400 for an order with these changes; the message holds `words`."""
    return Case(name, {**ORDER, **changes}, 400, "invalid_request_error", param, words)


BODIES = [
    bad("prompt too long", {"prompt": "x" * 4001}, "prompt", "prompt", "4001", "4000"),
    bad("prompt empty", {"prompt": " "}, "prompt", "empty"),
    bad("prompt null", {"prompt": None}, "prompt", "required"),
    bad("prompt a number", {"prompt": 5}, "prompt", "a string"),
    bad("n too small", {"n": 0}, "n", "1 to 8"),
    bad("n too large", {"n": 9}, "n", "1 to 8"),
    bad("n a string", {"n": "2"}, "n", "an integer"),
    bad("n a boolean", {"n": True}, "n", "an integer"),
    bad("n a float", {"n": 2.0}, "n", "an integer"),
    bad("n enormous", {"n": 10**30}, "n", "an integer"),
    bad("model null", {"model": None}, "model", "required"),
    bad("model a list", {"model": [FLUX]}, "model", "a string"),
    bad("size unknown", {"size": "1792x1024"}, "size", "1024x1024", "1024x768", FLUX),
    bad("size of another model", {"model": GPT, "size": "1024x768"}, "size", "1536x1024", GPT),
    bad("quality unknown", {"model": GPT, "quality": "best"}, "quality", "standard", "hd"),
    bad("quality a number, for a model without", {"quality": 5}, "quality", "a string"),
    bad("streaming", {"stream": True}, "stream", "stream"),
    bad("another format wanted", {"response_format": "png"}, "response_format", "url", "b64_json"),
    bad("a field that this model has not", {"background": "opaque"}, "background", FLUX),
    bad("a field that nobody knows", {"negative_prompt": "y"}, "negative_prompt", "negative_prompt"),
    Case("not JSON", b'{"model": ', 400, "invalid_request_error", None, ("JSON",)),
    Case("nothing", b"", 400, "invalid_request_error", None, ("JSON",)),
    Case("a list", [ORDER], 400, "invalid_request_error", None, ("object",)),
    Case("not UTF-8", b'{"prompt": "\xff"}', 400, "invalid_request_error", None, ("JSON",)),
    Case("a lone surrogate", b'{"model": "fal/flux-1.1-pro", "prompt": "\\ud800"}', 400, "invalid_request_error", None),
    Case("NaN", b'{"model": "fal/flux-1.1-pro", "prompt": "x", "n": NaN}', 400, "invalid_request_error", None),
    Case("unknown model", {**ORDER, "model": "fal/none"}, 404, "model_not_found", "model", ("fal/none", "/v1/models")),
    Case("too large", {**ORDER, "prompt": "x" * 70_000}, 413, "request_too_large", None, ("65536",)),
]


@pytest.fixture(scope="module")
def customer(system: System) -> tuple[str, str]:
    """An organisation with plenty of credit, whose balance no error may change."""
    return system.customer("errors", "1000.00")


@pytest.mark.parametrize("case", BODIES, ids=lambda case: case.name)
def test_a_wrong_body_is_named_and_costs_nothing(system: System, customer: tuple[str, str], case: Case) -> None:
    """400, 404 and 413 name the field and the fix; nothing is held or charged."""
    org_id, key = customer
    content = case.body if isinstance(case.body, bytes) else json.dumps(case.body)
    reply = post(system, key, content=content)
    assert_error(reply, case.status, case.code, retry=False, param=case.param)
    for word in case.words:
        assert word in reply.json()["error"]["message"]
    cut = system.cut(org_id)
    assert (cut.available_micro_mxn, cut.number) == (1_000_000_000, 0)


def test_json_null_is_the_same_as_unset(system: System) -> None:
    """Every optional field may be null."""
    _, key = system.customer("nulls", "5.00")
    fields = ("n", "size", "quality", "response_format", "stream", "user")
    reply = post(system, key, json={**ORDER, **dict.fromkeys(fields), "background": None})
    assert (reply.status_code, len(reply.json()["data"])) == (200, 1)


def test_a_body_in_pieces_without_length_is_capped_too(system: System, customer: tuple[str, str]) -> None:
    """413 does not need a content-length."""
    reply = post(system, customer[1], content=iter([b"x" * 40_000] * 3))
    assert_error(reply, 413, "request_too_large", retry=False)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "missing_api_key"),
        ("", "missing_api_key"),
        ("Bearer", "missing_api_key"),
        ("Basic dXNlcjpwYXNz", "missing_api_key"),
        ("Bearer sk-wrong", "invalid_api_key"),
        ("Bearer ghub_sk_live_" + "0" * 32, "invalid_api_key"),
        ("Bearer ghub_sk_live_" + "é" * 32, "invalid_api_key"),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/images/generations"), ("GET", "/models"), ("GET", "/credits")])
def test_a_missing_or_unknown_key_is_401(system: System, header: str | None, code: str, method: str, path: str) -> None:
    """On every path, and before the body is looked at."""
    headers = [] if header is None else [(b"authorization", header.encode())]
    with httpx2.Client(base_url=system.url, **LOOPBACK) as client:
        reply = client.request(method, path, headers=headers, content=b"{")
    assert_error(reply, 401, code, retry=False)


def test_a_revoked_key_is_401_from_the_next_request_on(system: System) -> None:
    """On writing and reading paths, although the process knows the key; a wrong body still comes first."""
    _, key = system.customer("revoked", "50.00")
    assert post(system, key, json=ORDER).status_code == 200
    (row,) = json.loads(system.ghub("key", "list", "revoked", "--json").stdout)
    assert system.ghub("key", "revoke", row["key_id"]).returncode == 0
    assert_error(post(system, key, json=ORDER), 401, "key_revoked", retry=False)
    assert_error(post(system, key, json={}), 400, "invalid_request_error", retry=False, param="model")
    for path in ("/models", "/credits"):
        assert_error(httpx2.get(system.url + path, headers=bearer(key), **LOOPBACK), 401, "key_revoked", retry=False)


def test_an_order_above_the_balance_is_402(system: System) -> None:
    """The message says what it may cost, what is there, and where to top up."""
    _, key = system.customer("poor", "0.83")
    reply = post(system, key, json=ORDER)
    assert_error(reply, 402, "insufficient_balance", retry=False)
    assert reply.headers["x-geekhub-balance-mxn"] == "0.83"
    for word in ("0.84", "0.83", "https://geekhub.mx/topup"):
        assert word in reply.json()["error"]["message"]


def test_rates_are_429_with_a_true_wait(system: System) -> None:
    """Requests and images per minute; a wait over 60 s, or one that never ends, is not to be retried."""
    _, key = system.customer("fast", "50.00", requests_per_minute=2, images_per_minute=100)
    assert [post(system, key, json=ORDER).status_code for _ in range(2)] == [200, 200]
    reply = post(system, key, json=ORDER)
    assert_error(reply, 429, "rate_limit_exceeded", retry=True)
    assert 0 < int(reply.headers["retry-after-ms"]) <= 30_000 and 0 < int(reply.headers["retry-after"]) <= 30
    assert (reply.headers["x-ratelimit-limit-requests"], reply.headers["x-ratelimit-remaining-requests"]) == ("2", "0")
    assert int(reply.headers["x-ratelimit-remaining-images"]) in range(98, 101)

    _, key = system.customer("many", "50.00", images_per_minute=4)
    reply = post(system, key, json={**ORDER, "n": 5})
    assert_error(reply, 429, "rate_limit_exceeded", retry=False)
    assert "retry-after" not in reply.headers and "4 images per minute" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("DELETE", "/images/generations", 405, "method_not_allowed"),
        ("DELETE", "/models", 405, "method_not_allowed"),
        ("POST", "/credits", 405, "method_not_allowed"),
        ("GET", "/models/fal%2Fnone", 404, "model_not_found"),
    ],
)
def test_wrong_addresses_and_methods(
    system: System, customer: tuple[str, str], method: str, path: str, status: int, code: str
) -> None:
    """404 and 405 in the same envelope."""
    reply = httpx2.request(method, system.url + path, headers=bearer(customer[1]), **LOOPBACK)
    assert_error(reply, status, code, retry=False, param="model" if code == "model_not_found" else None)


@pytest.mark.parametrize(
    ("model", "scenario", "status", "code", "retry", "reason"),
    [
        (GPT, "moderation_blocked", 400, "content_policy_violation", False, "content_policy"),
        (FLUX, "content_policy_422", 400, "content_policy_violation", False, "content_policy"),
        (FLUX, "nsfw", 400, "content_policy_violation", False, "content_policy"),
        (GPT, "rate_limited_429", 502, "provider_unavailable", True, "rate_limited"),
        (FLUX, "rate_limited_429", 502, "provider_unavailable", True, "rate_limited"),
        (GPT, "http_500", 502, "provider_unavailable", False, "overloaded"),
        (FLUX, "http_500", 502, "provider_unavailable", False, "overloaded"),
        (GPT, "unauthorized_401", 502, "provider_unavailable", True, "not_authorised"),
        (GPT, "reset", 502, "provider_unavailable", False, "no_answer"),
        (FLUX, "reset", 502, "provider_unavailable", False, "no_answer"),
        (GPT, "close_without_answer", 502, "provider_unavailable", False, "no_answer"),
        (GPT, "garbage", 502, "provider_unavailable", False, "no_answer"),
        (GPT, "truncated_body", 502, "provider_unavailable", False, None),
        (GPT, "wrong_json", 502, "provider_unavailable", False, "no_image"),
        (GPT, "bad_base64", 502, "provider_unavailable", False, "bad_reply"),
        (GPT, "empty_image", 502, "provider_unavailable", False, "bad_image"),
        (GPT, "html_as_image", 502, "provider_unavailable", False, "bad_image"),
        (FLUX, "completed_with_error", 502, "provider_unavailable", False, None),
        (FLUX, "image_404", 502, "provider_unavailable", False, "fetch_failed"),
        (FLUX, "image_redirect_metadata", 502, "provider_unavailable", False, "fetch_failed"),
        (FLUX, "image_other_host", 502, "provider_unavailable", False, "fetch_failed"),
        (FLUX, "image_html", 502, "provider_unavailable", False, "bad_image"),
        (FLUX, "image_truncated", 502, "provider_unavailable", False, "fetch_failed"),
        (GPT, "secret_in_error", 502, "provider_unavailable", False, "rejected"),
    ],
)
def test_a_failing_upstream_is_void_and_told_apart(
    system: System, model: str, scenario: str, status: int, code: str, retry: bool, reason: str | None
) -> None:
    """Nothing is charged or left in the store; the event says why; only what was surely not accepted may be retried."""
    org_id, key = system.customer(f"upstream {model.partition('/')[0]} {scenario}", "50.00")
    system.behave(model, scenario, times=3 if reason == "rate_limited" else 1)  # the gateway asks three times
    reply = post(system, key, json={"model": model, "prompt": "x"})
    assert_error(reply, status, code, retry=retry)
    limit, left = (int(reply.headers[f"x-ratelimit-{name}-images"]) for name in ("limit", "remaining"))
    assert left == limit - 1
    assert "simulated" not in reply.text and "127.0.0.1" not in reply.text
    (event,) = system.events(org_id, 1)
    assert (event.end, event.quantity, event.amount_micro_mxn) == ("void", 0, 0)
    assert reason is None or event.reason == reason
    assert system.cut(org_id).available_micro_mxn == 50_000_000
    assert not [path for path in system.images() if path.startswith(org_id)]
    assert "simulated" not in system.log()


def test_the_deadline_is_504_and_void(prepared: Prepared) -> None:
    """An upstream that takes longer than the deadline costs nothing; its queued job is called off."""
    system = prepared(GHUB_DEADLINE_S="2")
    system.start_all()
    org_id, key = system.customer("late", "50.00")
    system.behave(FLUX, "stuck_in_queue")
    reply = post(system, key, json=ORDER)
    assert_error(reply, 504, "deadline_exceeded", retry=False)
    assert 1.5 < reply.elapsed.total_seconds() < 2.1
    (event,) = system.events(org_id, 1)
    assert (event.end, event.reason, event.amount_micro_mxn) == ("void", "deadline", 0)
    assert [job["state"] for job in system.jobs(FLUX)] == ["cancelled"]
    system.behave(GPT, "silent")
    assert_error(post(system, key, json={"model": GPT, "prompt": "x"}), 504, "deadline_exceeded", retry=False)


def test_a_provider_that_is_down_is_502_and_may_be_retried(prepared: Prepared) -> None:
    """A refused connection is certain not to have bought anything."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("down", "50.00")
    system.stop("simulator")
    for model in (FLUX, GPT):
        assert_error(post(system, key, json={"model": model, "prompt": "x"}), 502, "provider_unavailable", retry=True)
    assert {event.reason for event in system.events(org_id, 2)} == {"refused_connection"}


def test_redis_away_is_503_within_100_ms(prepared: Prepared) -> None:
    """Down or frozen: a clear answer at once on every path, and the same key works again afterwards."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("away", "50.00")
    assert post(system, key, json=ORDER).status_code == 200
    assert system.valkey.process is not None
    system.valkey.process.send_signal(19)  # SIGSTOP
    for path in ("/images/generations", "/credits", "/models"):
        reply = post(system, key, json=ORDER) if "images" in path else get(system, key, path)
        assert_error(reply, 503, "temporarily_unavailable", retry=True)
        assert reply.headers["retry-after"] == "1" and reply.elapsed.total_seconds() < 0.25
    assert httpx2.get(f"http://127.0.0.1:{system.port}/readyz", **LOOPBACK).status_code == 200
    system.valkey.process.send_signal(18)  # SIGCONT
    wait_until(lambda: post(system, key, json=ORDER).status_code == 200, "it works again")
    wait_until(lambda: system.cut(org_id).held_micro_mxn == 0, "no hold is left of the admission that was not read")
    system.valkey.stop()
    reply = post(system, key, json=ORDER)
    assert_error(reply, 503, "temporarily_unavailable", retry=True)
    assert reply.elapsed.total_seconds() < 0.25


def test_a_month_without_a_rate_is_503_and_not_to_be_retried(prepared: Prepared) -> None:
    """Rule 25: no rate, no price, no order."""
    system = prepared()
    fx = system.folder / "fx.toml"
    fx.write_text('[[rates]]\nmonth = "2020-01"\nmxn_per_usd = "18.00"\nsource = "old"\n')
    system.environment |= {"GHUB_FX": str(fx), "GHUB_LEDGER_URL": f"sqlite:///{system.folder / 'other.db'}"}
    assert system.ghub("migrate").returncode == 0
    system.start_all()
    _, key = system.customer("no rate", "50.00")
    assert_error(post(system, key, json=ORDER), 503, "fx_rate_missing", retry=False)
    assert get(system, key, "/models").json()["data"][0]["price"]["mxn_per_image"] is None


def test_the_official_sdk_raises_its_own_errors(system: System) -> None:
    """Types, codes and request ids are where SDK users look for them."""
    _, key = system.customer("sdk errors", "0.10")
    with openai.OpenAI(base_url=system.url, api_key=key) as client:
        with pytest.raises(openai.BadRequestError) as bad_request:
            client.images.generate(model=FLUX, prompt="x", n=9)
        with pytest.raises(openai.NotFoundError):
            client.images.generate(model="fal/none", prompt="x")
        with pytest.raises(openai.APIStatusError) as poor:
            client.images.generate(model=FLUX, prompt="x")
    assert bad_request.value.param == "n" and bad_request.value.request_id is not None
    assert (poor.value.status_code, poor.value.code) == (402, "insufficient_balance")
    assert bad_request.value.request_id.startswith("req_")


def test_a_store_that_fails_is_502_and_void(prepared: Prepared) -> None:
    """Nothing can be published if a file has the folder's name."""
    system = prepared()
    (system.folder / "images").mkdir()
    system.start_all()
    org_id, key = system.customer("store", "50.00")
    (system.folder / "images" / org_id).write_text("in the way")
    for model in (FLUX, GPT):
        assert_error(post(system, key, json={"model": model, "prompt": "x"}), 502, "provider_unavailable", retry=False)
    assert {(event.end, event.reason) for event in system.events(org_id, 2)} == {("void", "store_failed")}


def test_a_fault_of_ours_is_500_in_the_same_envelope(prepared: Prepared) -> None:
    """A key's damaged record: no traceback, no charge, and the log has the error.

    A job can have begun only if an order was placed.
    """
    system = prepared()
    system.start_all()
    _, key = system.customer("fault", "50.00")
    with Redis.from_url(system.valkey.url) as redis:
        redis.set(key_record(hash_key(key))[1], "damaged")
    reply = post(system, key, json=ORDER)
    assert_error(reply, 500, "internal_error", retry=False)
    assert "Error" not in reply.text
    assert_error(get(system, key, "/models"), 500, "internal_error", retry=True)
    wait_until(lambda: '"event":"fault"' in system.log(), "the fault is in the log, which is written after the reply")


def test_a_suspended_organisation_places_no_order_and_reads_on(system: System) -> None:
    """By command, within seconds; resumed, it orders again."""
    org_id, key = system.customer("suspended", "50.00")
    assert system.ghub("org", "suspend", org_id, "--reason", "a chargeback").returncode == 0
    wait_until(lambda: post(system, key, json=ORDER).status_code == 403, "it is suspended")
    assert_error(post(system, key, json=ORDER), 403, "organization_suspended", retry=False)
    assert get(system, key, "/credits").status_code == 200
    assert system.ghub("org", "resume", org_id).returncode == 0
    wait_until(lambda: post(system, key, json=ORDER).status_code == 200, "it is resumed")


def test_every_row_of_the_table_has_a_test() -> None:
    """The codes of `proxy.errors.Kind`, and those that the tests of this folder name."""
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [kind.name for kind in Kind if f'"{kind.value.code}"' not in source] == []


def post(system: System, key: str, **body: Any) -> httpx2.Response:
    """One order, no retry; what came back is kept for the grep for keys."""
    reply = httpx2.post(f"{system.url}/images/generations", headers=bearer(key), **LOOPBACK, timeout=90, **body)
    system.bodies.append(reply.content)
    return reply


def get(system: System, key: str, path: str) -> httpx2.Response:
    """One read."""
    return httpx2.get(system.url + path, headers=bearer(key), **LOOPBACK)


def assert_error(reply: httpx2.Response, status: int, code: str, *, retry: bool, param: str | None = None) -> None:
    """The envelope, whole, and the headers that go with it."""
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), reply.text
    error = reply.json()["error"]
    assert set(reply.json()) == {"error"} and set(error) == {"message", "type", "code", "param", "request_id"}
    assert error["param"] == param and error["message"]
    row = next(kind.value for kind in Kind if kind.value.code == code and kind.value.status == status)
    assert error["type"] == row.type
    assert reply.headers["x-request-id"] == error["request_id"]
    assert reply.headers["x-should-retry"] == ("true" if retry else "false")
    assert reply.headers["content-type"] == "application/json"
