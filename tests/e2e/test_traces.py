"""Traces as an operator has them: a collector, a gateway, a consumer."""

import re
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx2
import pytest

from proxy.cli.demo import simulated_upstreams
from tests.conftest import LOOPBACK
from tests.e2e.conftest import Prepared
from tests.kits.otlp import Collector, Mode, Span, collecting, tapped
from tests.kits.system import FLUX, GPT, System, bearer, wait_until
from tests.stores.running import KEY, SupabaseProcess

PROMPT = "a wish that nobody may read"
CLIENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
STEPS = ["authenticate", "parse", "quote", "hold", "image_generation", "settle", "journal", "reply"]
"""Steps of an order in its span, in their order."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector that takes all spans."""
    with collecting() as one:
        yield one


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SupabaseProcess]:
    """A store that works."""
    one = SupabaseProcess(tmp_path)
    one.start()
    yield one
    one.kill()


def order(system: System, key: str, model: str = FLUX, n: int = 1, **headers: str) -> httpx2.Response:
    """Order pictures."""
    body = {"model": model, "prompt": PROMPT, "n": n, "user": "ana@example.mx"}
    head = bearer(key) | {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.post(f"{system.url}/images/generations", headers=head, json=body, **LOOPBACK, timeout=60)


def root_of(collector: Collector, reply: httpx2.Response) -> Span:
    """Wait for the span of a request."""

    def found() -> list[Span]:
        return [one for one in collector.spans if one.facts.get("ghub.request_id") == reply.headers["x-request-id"]]

    wait_until(lambda: bool(found()), "the request's span")
    return found()[0]


def trace_of(collector: Collector, root: Span) -> dict[str, list[Span]]:
    """The spans of a trace by the first word of their names, in the order in which they began."""
    spans = sorted((one for one in collector.spans if one.trace_id == root.trace_id), key=lambda one: one.began_ns)
    named: dict[str, list[Span]] = {}
    for one in spans:
        named.setdefault(one.name.partition(" ")[0], []).append(one)
    return named


@pytest.mark.parametrize("model", [FLUX, GPT])
def test_one_orders_trace_has_all_its_steps_and_its_booking(
    prepared: Prepared, collector: Collector, store: SupabaseProcess, model: str
) -> None:
    """Each step has its span, with plausible times; upstream and store are told the trace; nothing secret is in it."""
    system = prepared()
    system.environment |= collector.environment()
    with tapped(system.simulator_port) as upstream, tapped(store.port) as stored:
        system.environment |= simulated_upstreams(f"127.0.0.1:{upstream.port}")
        system.environment |= {
            "GHUB_STORAGE_URL": f"supabase+http://127.0.0.1:{stored.port}/storage/v1?bucket=generated-images",
            "GHUB_STORAGE_KEY": KEY,
        }
        system.start_all("0.02")
        org_id, key = system.customer("acme", "50.00")
        began_ns = time.time_ns()
        reply = order(system, key, model, n=2)
        assert reply.status_code == 200, reply.text
        root = root_of(collector, reply)
        wait_until(lambda: "book" in trace_of(collector, root), "the booking's span")
        (event,) = system.events(org_id, 1)
        assert f"req_{event.opened.request_id.replace('-', '')}" == reply.json()["id"]
        sent_upstream, sent_to_store = bytes(upstream.passed), bytes(stored.passed)

    trace = trace_of(collector, root)
    assert (root.name, root.kind, root.parent_id) == ("POST /v1/images/generations", "server", "")
    assert (root.service, root.error) == ("ghub-gateway", None)
    assert began_ns < root.began_ns < root.ended_ns < time.time_ns()
    calls, uploads, (book,) = trace["image_generation"], trace["upload"], trace["book"]
    assert len(calls) == 1 and len(uploads) == 2
    within = {root.span_id: root} | {one.span_id: one for one in calls}
    for step in STEPS:
        for one in trace[step]:
            assert one.parent_id == root.span_id and root.began_ns <= one.began_ns <= one.ended_ns <= root.ended_ns
    for one in uploads:
        call = within[one.parent_id]
        assert call in calls and call.began_ns <= one.began_ns <= one.ended_ns <= call.ended_ns
        assert one.facts["ghub.size_bytes"] > 100
    for first, second in pairwise(STEPS):
        assert max(one.ended_ns for one in trace[first]) <= min(one.began_ns for one in trace[second]), (first, second)
    assert all(one.error is None for spans in trace.values() for one in spans)
    assert sorted(trace) == sorted([*STEPS, "POST", "upload", "book"])

    assert root.facts["http.route"] == "/v1/images/generations" and root.facts["http.response.status_code"] == 200
    assert (root.facts["ghub.org"], root.facts["ghub.model"], root.facts["ghub.n"]) == (org_id, model, 2)
    assert trace["hold"][0].facts["ghub.verdict"] == "admitted"
    assert trace["settle"][0].facts["ghub.amount_micro_mxn"] == event.amount_micro_mxn
    said = calls[0].facts
    assert calls[0].kind == "client" and said["gen_ai.operation.name"] == "image_generation"
    assert (said["gen_ai.output.type"], said["gen_ai.provider.name"]) == ("image", model.partition("/")[0])
    assert said["gen_ai.request.choice.count"] == 2
    assert said["gen_ai.request.model"] == event.opened.upstream and said["ghub.model"] == model
    if model == GPT:
        assert said["gen_ai.usage.output_tokens"] > 0 and said["gen_ai.usage.input_tokens"] > 0

    assert (book.service, book.kind, book.parent_id) == ("ghub-consumer", "consumer", root.span_id)
    assert trace["settle"][0].began_ns <= book.began_ns <= book.ended_ns

    told = {
        where: set(re.findall(rb"traceparent: 00-([0-9a-f]{32})-([0-9a-f]{16})-0[13]\r\n", sent))
        for where, sent in (("upstream", sent_upstream), ("store", sent_to_store))
    }
    assert {trace_id.decode() for one in told.values() for trace_id, _ in one} == {root.trace_id}
    assert {span_id.decode() for _, span_id in told["upstream"]} >= {one.span_id for one in calls}
    assert {span_id.decode() for _, span_id in told["store"]} == {one.span_id for one in uploads}
    assert b"tracestate" not in sent_upstream + sent_to_store

    everything = b"".join(collector.bodies)
    assert PROMPT.encode() in sent_upstream, "the search would find it"
    for secret in (PROMPT, key, "simulated", KEY, "ana@example.mx", "http://", "/storage/v1"):
        assert secret.encode() not in everything, secret
    lines = [line for line in system.log().splitlines() if root.trace_id in line]
    assert any('"event":"request"' in line and f'"trace_id":"{root.trace_id}"' in line for line in lines)


def test_a_client_decides_nothing_about_traces_unless_it_may(prepared: Prepared, collector: Collector) -> None:
    """Its trace is linked, not joined; what is no `traceparent` is passed over; with `continue` it is joined."""
    system = prepared()
    system.environment |= collector.environment()
    system.start_all()
    _, key = system.customer("acme", "50.00")
    linked = root_of(collector, order(system, key, traceparent=CLIENT, tracestate="acme=1"))
    assert linked.links == ("4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",)
    assert (linked.parent_id, linked.state) == ("", "") and not CLIENT.startswith(f"00-{linked.trace_id}")
    hostile = [
        "",
        "00",
        CLIENT.upper(),
        CLIENT.replace("00-4", "ff-4"),
        f"{CLIENT}-more",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
        "00-" + "4" * 30_000,
        "' OR 1=1; --",
    ]
    for text in hostile:
        reply = order(system, key, traceparent=text, tracestate="=,;" * 100)
        assert reply.status_code == 200, text[:80]
        assert root_of(collector, reply).links == (), text[:80]
    twice = httpx2.post(
        f"{system.url}/images/generations",
        headers=[*bearer(key).items(), ("traceparent", CLIENT), ("traceparent", CLIENT)],
        json={"model": FLUX, "prompt": PROMPT},
        **LOOPBACK,
        timeout=60,
    )
    assert root_of(collector, twice).links == ()

    system.stop("gateway")
    system.start_gateway(GHUB_TRACE_CONTEXT="continue")
    joined = root_of(collector, order(system, key, traceparent=CLIENT, tracestate="acme=1"))
    assert (joined.trace_id, joined.parent_id, joined.state) == (CLIENT[3:35], CLIENT[36:52], "acme=1")
    unsampled = order(system, key, traceparent=CLIENT[:-1] + "0")
    assert unsampled.status_code == 200
    last = root_of(collector, order(system, key))
    assert last.parent_id == "" and len(collector.named("POST /v1/images/generations")) == len(hostile) + 4


def test_a_key_in_a_clients_id_is_hidden_from_the_collector(prepared: Prepared, collector: Collector) -> None:
    """As it is from the log."""
    system = prepared()
    system.environment |= collector.environment()
    system.start_all()
    _, key = system.customer("acme", "50.00")
    told = root_of(collector, order(system, key, x_request_id=f"of {key}, once"))
    assert told.facts["ghub.client_request_id"] == "of ghub_sk_[hidden], once"
    assert system.stop("gateway") == 0  # it has sent all that it had
    assert key.encode() not in b"".join(collector.bodies) and key not in system.log()


def test_what_fails_is_told_by_our_own_code(prepared: Prepared, collector: Collector) -> None:
    """A refused key, a denial and an upstream that fails: the code is ours, and a client's mistake is no error."""
    system = prepared()
    system.environment |= collector.environment(OTEL_EXPORTER_OTLP_COMPRESSION="gzip")
    system.environment |= {"OTEL_SERVICE_NAME": "images", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test"}
    system.environment |= {"OTEL_EXPORTER_OTLP_HEADERS": "x-collector-key=abc"}
    system.start_all()
    _, poor = system.customer("poor")
    _, rich = system.customer("rich", "50.00")
    root = root_of(collector, order(system, poor))
    assert (root.error, root.facts["ghub.code"], root.service) == (None, "insufficient_balance", "images")
    assert trace_of(collector, root)["hold"][0].facts["ghub.verdict"] == "balance"
    nobody = root_of(collector, order(system, "ghub_sk_live_" + "0" * 32))
    assert trace_of(collector, nobody)["authenticate"][0].error == "invalid_api_key"
    system.behave(FLUX, "content_policy_422")
    refused = root_of(collector, order(system, rich))
    trace = trace_of(collector, refused)
    assert trace["image_generation"][0].error == "content_policy" and refused.error is None
    assert trace["void"][0].facts["ghub.reason"] == "content_policy"
    wait_until(lambda: "book" in trace_of(collector, refused), "a void is booked, too")
    lost = httpx2.request("BREW", f"{system.url}/pot/of/{rich[-8:]}", **LOOPBACK)
    assert root_of(collector, lost).name == "_OTHER other"
    assert collector.heads[0]["x-collector-key"] == "abc" and collector.heads[0]["content-encoding"] == "gzip"
    assert rich[-8:].encode() not in b"".join(collector.bodies)


@pytest.mark.parametrize("mode", [None, "hang", "refuse", "endless", "redirect"])
def test_a_collector_holds_nobody_up(prepared: Prepared, collector: Collector, mode: Mode | None) -> None:
    """Down, frozen, refusing or lying: orders are as fast as ever, and the stop waits for it a second at most."""
    system = prepared()
    system.environment |= collector.environment()
    if mode is None:
        system.environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    else:
        collector.mode = mode
    system.start_all()
    org_id, key = system.customer("acme", "50.00")
    took_s = []
    for _ in range(5):
        began_s = time.monotonic()
        assert order(system, key).status_code == 200
        took_s.append(time.monotonic() - began_s)
    assert mode is None or collector.asked.wait(10)
    system.events(org_id, 5)
    assert min(took_s) < 1.0
    for name in ("gateway", "consumer"):
        began_s = time.monotonic()
        assert system.stop(name, signal.SIGTERM) == 0
        assert time.monotonic() - began_s < 8.0, name
    if mode in (None, "hang", "refuse"):
        assert '"event":"traces_not_sent"' in system.log()
