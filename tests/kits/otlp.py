"""A collector: it takes spans as OTLP over HTTP, reads them by OpenTelemetry's own protobuf, and misbehaves as told.

And a wire that notes what passes it, to see what servers are told.
"""

import gzip
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.kits.ports import free_port

Mode = Literal["take", "hang", "refuse", "endless", "redirect"]

PIECE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Span:
    """A span as it was received; ids are hex, times are Unix ns."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    began_ns: int
    ended_ns: int
    facts: dict[str, Any]
    error: str | None
    links: tuple[str, ...]
    state: str


@dataclass
class Collector:
    """What was received, and what is done with the next request."""

    port: int
    mode: Mode = "take"
    spans: list[Span] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)
    freed: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """What OTEL_EXPORTER_OTLP_ENDPOINT says."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self, **more: str) -> dict[str, str]:
        """The variables of processes that send here, every span within a moment."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_BSP_SCHEDULE_DELAY": "50", **more}

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector."""
    collector = Collector(free_port())

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.asked.set()
            match collector.mode:
                case "hang":
                    collector.freed.wait()
                case "refuse":
                    self._answer(503, b"no")
                case "redirect":
                    self.send_response(307)
                    self.send_header("location", f"{collector.url}/elsewhere")
                    self.send_header("content-length", "0")
                    self.end_headers()
                case "endless":
                    self.send_response(200)
                    self.end_headers()
                    with suppress(OSError):
                        while True:
                            self.wfile.write(b"\0" * PIECE_BYTES)
                case "take":
                    collector.heads.append({name.lower(): value for name, value in self.headers.items()})
                    plain = gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body
                    assert self.path == "/v1/traces", self.path
                    collector.bodies.append(plain)
                    collector.spans += read(plain)
                    self._answer(200, b"")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", collector.port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield collector
    finally:
        collector.freed.set()
        server.shutdown()
        server.server_close()


def read(body: bytes) -> list[Span]:
    """Read a request's spans."""
    request = ExportTraceServiceRequest.FromString(body)
    return [
        Span(
            service=_facts(resource.resource.attributes)["service.name"],
            name=span.name,
            kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            began_ns=span.start_time_unix_nano,
            ended_ns=span.end_time_unix_nano,
            facts=_facts(span.attributes),
            error=span.status.message if span.status.code == trace_pb2.Status.STATUS_CODE_ERROR else None,
            links=tuple(f"{link.trace_id.hex()}-{link.span_id.hex()}" for link in span.links),
            state=span.trace_state,
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _facts(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@dataclass
class Tap:
    """A wire to a server: `passed` is what clients have sent."""

    port: int
    passed: bytearray = field(default_factory=bytearray)


@contextmanager
def tapped(target: int) -> Iterator[Tap]:
    """Relay connections to a port of this machine, and note what goes there."""
    tap = Tap(free_port())
    listener = socket.create_server(("127.0.0.1", tap.port))

    def pump(source: socket.socket, sink: socket.socket, noted: bytearray) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE_BYTES):
                noted += piece
                sink.sendall(piece)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def relay(client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", target)) as server:
            back = threading.Thread(target=pump, args=(server, client, bytearray()), daemon=True)
            back.start()
            pump(client, server, tap.passed)
            back.join()

    def take() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=relay, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=take, daemon=True).start()
    try:
        yield tap
    finally:
        listener.close()
