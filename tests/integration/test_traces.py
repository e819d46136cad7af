"""Traces: through Redis and the journal into the consumer, and out to a collector that may do anything."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from config.settings import TRACES_STOP_S, Settings
from metering.answered import decode as decode_entry
from metering.answered import encode as encode_entry
from metering.consumer import Consumer
from metering.events import decode, encode_opened
from metering.tracing import OFF, step, within
from metering.wallet import keys
from metering.wallet.values import Caller, OrderIdentity, Replay, Verdict
from proxy.cli.tracing import open_tracer
from proxy.otel import open_tracer as open_otel
from tests.integration.test_replay import answered
from tests.kits.books import (
    FACTS,
    LIFE_S,
    LIMITS,
    NOW_US,
    SECOND_US,
    Books,
    expire,
    make_groups,
    open_books,
    pinned,
)
from tests.kits.otlp import Collector, Mode, collecting

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector to which this process sends."""
    with collecting() as one:
        for name, value in one.environment().items():
            monkeypatch.setenv(name, value)
        yield one


async def admit(books: Books, caller: Caller, order_id: str, trace: str = PARENT, life_s: float = LIFE_S) -> None:
    """Admit a traced order of one image."""
    price = pinned(now_us=books.wallet.now_us())
    opened = encode_opened(order_id, caller.org_id, caller.key_id, price, FACTS)
    identity = OrderIdentity(order_id)
    admission = await books.wallet.admit(
        caller, order_id, price, opened, identity, life_s=life_s, owner="test", trace=trace
    )
    assert admission.verdict is Verdict.ADMITTED


async def entries(books: Books, caller: Caller) -> list[dict[bytes, bytes]]:
    """The stream's entries, oldest first."""
    found: Any = await books.redis.xrange(keys.OrgKeys(caller.org_id).events)
    return [fields for _, fields in found if b"notice" not in fields]


@pytest.mark.parametrize("end", ["charge", "void", "expiry", "expiry-by-another", "replay", "replay-of-a-lost-hold"])
async def test_an_order_keeps_its_trace_until_its_event_however_it_ends(
    redis_url: str, tmp_path: Path, end: str
) -> None:
    """Beside the event, of which it is no part: who does not know it reads the same event."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="50.00")
        order = replace(answered(caller, images=1), trace=PARENT)
        if end != "replay-of-a-lost-hold":
            await admit(books, caller, "r", life_s=1.0)
        match end:
            case "charge":
                await books.settle(caller, "r")
            case "void":
                await books.wallet.void(caller.org_id, "r", "test")
            case "expiry":
                assert await expire(books.redis, caller.org_id, NOW_US + 2 * SECOND_US) == 1
            case "expiry-by-another":
                books.wallet.at(NOW_US + 2 * SECOND_US)
                await admit(books, caller, "other", trace="")
            case _:
                assert await books.wallet.replay(order) is Replay.NOW
        (entry,) = await entries(books, caller)
        assert entry[b"trace"] == PARENT.encode()
        former = {name: value for name, value in entry.items() if name != b"trace"}
        assert decode(entry) == decode(former)


async def test_an_order_that_is_not_traced_has_no_trace_anywhere(redis_url: str, tmp_path: Path) -> None:
    """Neither in its hold nor in its event: what is off costs nothing there."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="50.00")
        await admit(books, caller, "r", trace="")
        assert not await books.redis.hexists(keys.OrgKeys(caller.org_id).hold("r"), "trace")
        await books.settle(caller, "r")
        (entry,) = await entries(books, caller)
        assert b"trace" not in entry


def test_the_version_before_reads_a_journal_with_a_trace_and_the_other_way_round() -> None:
    """It stands beside the order, which is the same with it and without."""
    plain = answered(Caller("11111111-1111-4111-8111-111111111111", "key"))
    traced = replace(plain, trace=PARENT)
    entry, former = orjson.loads(encode_entry(traced)), orjson.loads(encode_entry(plain))
    assert entry["answered"] == former["answered"] and former.keys() == {"v", "answered"}
    assert decode_entry(encode_entry(traced)) == traced
    assert decode_entry(orjson.dumps(former)) == plain


async def test_a_booking_belongs_to_the_trace_of_its_order(
    redis_url: str, tmp_path: Path, collector: Collector
) -> None:
    """Also of an event that is set aside; one whose trace is damaged, or that has none, is booked like any other."""
    tracer = open_otel("ghub-consumer", "test", "link")
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="50.00")
        consumer = Consumer(books.redis, books.ledger, "c", LIMITS.remember_s, tracer=tracer)
        await make_groups(books.redis)
        stream = keys.OrgKeys(caller.org_id).events
        for order_id, trace in (("r1", PARENT), ("r2", ""), ("r3", "00-damaged"), ("r4", PARENT[:-1] + "0")):
            await admit(books, caller, order_id, trace=trace)
            await books.settle(caller, order_id)
        poisoned = (await entries(books, caller))[0] | {b"amount": b"1"}
        await books.redis.xadd(stream, poisoned)  # type: ignore[arg-type]  # bytes are fine
        before_ns = time.time_ns()
        await consumer.round()
        assert (await books.ledger.charged_up_to(caller.org_id)).events == 4
        await tracer.aclose()
    good, bad = sorted(collector.spans, key=lambda span: span.error or "")
    assert (good.error, bad.error) == (None, "event_set_aside")
    for span in (good, bad):
        assert (span.name, span.kind, span.service) == ("book", "consumer", "ghub-consumer")
        assert (span.trace_id, span.parent_id) == (TRACE, SPAN)
        assert before_ns < span.began_ns <= span.ended_ns


@pytest.mark.parametrize("mode", ["hang", "refuse", "endless"])
async def test_what_a_collector_does_not_take_is_lost_and_not_kept(collector: Collector, mode: Mode) -> None:
    """The memory that waiting spans use is bounded, a span is as fast as ever, and a stop takes a second at most."""
    collector.mode = mode
    tracer = open_otel("ghub-gateway", "test", "link")

    def orders(count: int) -> float:
        began_s = time.process_time()
        for _ in range(count):
            span = tracer.request("POST", [])
            assert span is not None
            with within(span):
                for name in ("parse", "quote", "hold"):
                    with step(name) as one:
                        one.set("ghub.text", name * 100)
        return time.process_time() - began_s

    orders(2_000)
    assert await asyncio.to_thread(collector.asked.wait, 20)
    before = resident_bytes()
    took_s = min(orders(2_000) for _ in range(5))
    assert resident_bytes() - before < 16 * 1024 * 1024, "40,000 spans of over a kilobyte"
    assert took_s < 4.0, "half a millisecond for each of 8,000 spans"
    began_s = time.monotonic()
    await tracer.aclose()
    assert time.monotonic() - began_s < TRACES_STOP_S + 1.0


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "TRUE"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"}, None),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"},
            "OTEL_EXPORTER_OTLP_ENDPOINT: must start with http:// or https://",
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "ftp://127.0.0.1",
            },
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: must start with",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL: is not http/protobuf",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_MAX_QUEUE_SIZE": "1"},
            "OpenTelemetry refuses one of its variables: ",
        ),
    ],
)
async def test_a_wrong_variable_ends_no_start(
    environment: dict[str, str], why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are a platform's, for all of its programs. Nothing is traced, and the log says why."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with capture_logs() as logs:
        async with open_tracer(Settings(), environment, "ghub-gateway") as tracer:
            assert tracer is OFF
    assert [line["event"] for line in logs] == ([] if why is None else ["tracing_off"])
    assert why is None or logs[0]["why"].startswith(why)


async def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log says what to install; the process works."""
    monkeypatch.setitem(sys.modules, "proxy.otel", None)
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    with capture_logs() as logs:
        async with open_tracer(Settings(), environment, "ghub-gateway") as tracer:
            assert tracer is OFF
    (line,) = logs
    assert line["event"] == "tracing_off"
    assert line["why"].endswith("is not installed; install it with: pip install 'geekhub-gateway[otel]'")


def test_who_wants_no_traces_loads_nothing_for_them() -> None:
    """All commands, gateway and consumer included, without a module of OpenTelemetry or of what it needs."""
    program = (
        "import asyncio, sys\n"
        "from config.settings import Settings\n"
        "from proxy.cli.root import commands\n"
        "from proxy.cli.tracing import open_tracer\n"
        "everything = list(commands())\n"
        "async def work():\n"
        "    async with open_tracer(Settings(), {}, 'ghub-gateway'): pass\n"
        "asyncio.run(work())\n"
        "assert 'redis.asyncio' in sys.modules and 'httpx2' in sys.modules\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('opentelemetry', 'requests')])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.usefixtures("collector")
async def test_a_link_has_ids_and_no_text_of_the_client() -> None:
    """A trace that is joined keeps its `tracestate`: that client is trusted."""
    headers = [(b"traceparent", PARENT.encode()), (b"tracestate", b"acme=1")]
    kept = {}
    for theirs in ("link", "continue"):
        tracer = open_otel("ghub-gateway", "local", theirs)
        span = tracer.request("GET", headers)
        assert span is not None
        recorded: Any = span._span
        links = [(f"{one.context.trace_id:032x}", dict(one.context.trace_state)) for one in recorded.links]
        kept[theirs] = links, dict(recorded.get_span_context().trace_state)
        span.end()
        await tracer.aclose()
    assert kept == {"link": ([(TRACE, {})], {}), "continue": ([], {"acme": "1"})}
