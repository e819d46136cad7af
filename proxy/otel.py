"""Spans → OpenTelemetry, as its own variables say. The only file that knows it; the extra `[otel]`.

Spans wait in a queue of OpenTelemetry's, and a thread of its own sends them. So a collector that is down, slow or
frozen costs spans and nothing else: the queue is bounded (`OTEL_BSP_MAX_QUEUE_SIZE`), and a stop waits for
`TRACES_STOP_S`.
"""

import asyncio
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import requests
import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from opentelemetry.trace import Span as TheirSpan
from opentelemetry.trace import Tracer as TheirTracer
from prometheus_client import Counter

from config.logs import without_keys
from config.settings import TRACES_STOP_S
from metering.tracing import Kind, Parent, parent_of

log = structlog.get_logger(__name__)

RECORDED = Counter("ghub_spans_recorded_total", "Spans that were recorded, to be sent to the collector")
SENT = Counter("ghub_spans_sent_total", "Spans that the collector has taken")

_UNNAMED = "unknown_service"
"""What OpenTelemetry calls a service that no variable names."""

_NOWHERE = Context()
_KINDS = {kind: SpanKind[kind.name] for kind in Kind}


class OtelSpan:
    """A span that is sent to the collector, if its parent is."""

    __slots__ = ("_span", "_tracer")
    recorded = True

    def __init__(self, tracer: TheirTracer, span: TheirSpan) -> None:
        self._tracer = tracer
        self._span = span
        RECORDED.inc()

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    @property
    def traceparent(self) -> str:
        ours = self._span.get_span_context()
        return f"00-{ours.trace_id:032x}-{ours.span_id:016x}-{ours.trace_flags:02x}"

    def child(self, name: str, kind: Kind = Kind.INTERNAL) -> "OtelSpan":
        parent = set_span_in_context(self._span, _NOWHERE)
        return OtelSpan(self._tracer, self._tracer.start_span(name, parent, _KINDS[kind]))

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set(self, name: str, value: str | int | float) -> None:
        self._span.set_attribute(name, without_keys(value) if isinstance(value, str) else value)

    def fail(self, code: str) -> None:
        self._span.set_attribute("error.type", code)
        self._span.set_status(Status(StatusCode.ERROR, code))

    def end(self) -> None:
        self._span.end()


class OtelTracer:
    """Begins spans. `theirs` is what becomes of the trace of a request's client.

    `link`: the request has a trace of its own, which links to it by ids alone. So no client decides what is sampled, or
    writes into the trace of another. `continue`: the request belongs to it.
    """

    def __init__(self, provider: TracerProvider, theirs: Literal["link", "continue"]) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("ghub")
        self._continues = theirs == "continue"

    def request(self, name: str, headers: Iterable[tuple[bytes, bytes]]) -> OtelSpan | None:
        """Begin the span of an HTTP request; None if it is not sampled."""
        parent, context, links = parent_of(headers), _NOWHERE, []
        if parent is not None and self._continues:
            context = set_span_in_context(NonRecordingSpan(_remote(parent)), _NOWHERE)
        elif parent is not None:
            links.append(Link(_remote(replace(parent, state=""))))
        return self._recorded(self._tracer.start_span(name, context, SpanKind.SERVER, links=links))

    def follow(self, name: str, parent: Parent, began_ns: int) -> OtelSpan | None:
        """Begin a consumer's span in the trace of a message; None if that is not sampled."""
        context = set_span_in_context(NonRecordingSpan(_remote(parent)), _NOWHERE)
        return self._recorded(self._tracer.start_span(name, context, SpanKind.CONSUMER, start_time=began_ns))

    def _recorded(self, span: TheirSpan) -> OtelSpan | None:
        return OtelSpan(self._tracer, span) if span.get_span_context().trace_flags.sampled else None

    async def aclose(self) -> None:
        """Send what waits, for `TRACES_STOP_S` at most. A thread that is still sending does not outlive the process."""
        sending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, TRACES_STOP_S)
        if sending.is_alive():
            log.warning("traces_not_sent", why="the collector did not take the last spans in time")


def open_tracer(service: str, region: str, theirs: Literal["link", "continue"]) -> OtelTracer:
    """Build the tracer of a process. Raises ValueError if OpenTelemetry refuses one of its variables."""
    resource = Resource.create({"ghub.region": region})
    if str(resource.attributes[SERVICE_NAME]).startswith(_UNNAMED):
        resource = resource.merge(Resource({SERVICE_NAME: service}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_Exporter(session=_Session())))
    return OtelTracer(provider, theirs)


def _remote(parent: Parent) -> SpanContext:
    state = TraceState.from_header([parent.state]) if parent.state else None
    flags = TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)
    return SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags, trace_state=state)


class _Session(requests.Session):
    """A session that reads no answer beyond its head: a collector's may have no end, and nobody looks at it."""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        answer = super().send(request, **options | {"stream": True})
        answer.close()
        return answer


class _Exporter(OTLPSpanExporter):
    """The exporter, which counts what was taken, and says once that nothing is and once that it is again."""

    _failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        failed = result is not SpanExportResult.SUCCESS
        if not failed:
            SENT.inc(len(spans))
        if failed and not self._failing:
            log.warning("traces_not_sent", why="the collector does not take spans")
        elif self._failing and not failed:
            log.info("traces_sent_again")
        self._failing = failed
        return result
