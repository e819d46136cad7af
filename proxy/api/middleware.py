"""Middleware for every request: its id, its one log line, its metrics, its span. Plain ASGI."""

import time

import structlog
from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from metering.tracing import OFF, Span, Tracer, within
from proxy.api.addresses import origin_form
from proxy.api.senders import sender_of
from proxy.orders.context import RequestContext

log = structlog.get_logger("request")

REQUESTS = Counter("ghub_requests_total", "HTTP requests", ["route", "status"])
SECONDS = Histogram(
    "ghub_request_seconds", "Time to the reply's end", ["route"], buckets=(0.01, 0.1, 1, 5, 10, 20, 40, 60)
)

ORDER_S = Histogram(
    "ghub_order_seconds",
    "An order, from its request's first byte to its reply's; those with a test key are left out",
    ["provider", "model", "outcome"],
    # A refusal takes milliseconds, a picture 2 to 60 s, and the deadline is at most 75 s.
    buckets=(0.01, 0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 75.0),
)

DELIVERED, REPLAYED, NO_REPLY = "delivered", "replayed", "no_reply"
"""Outcomes of an order besides the codes of errors. The last: a stop of this process has cut it off."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that are logged and traced by their name. A client may send any word, even a key."""

MAX_CLIENT_ID_CHARACTERS = 128
"""Maximum characters of a client's `X-Request-ID`: a UUID has 36, a trace with its parent 55."""

PROBES = frozenset({"/healthz", "/readyz"})
"""Paths that the platform requests every few seconds: counted, not logged, not traced."""


def context_of(scope: Scope) -> RequestContext:
    """Find the context that the middleware put into this request's scope."""
    context: RequestContext = scope["ghub"]
    return context


def _client_request_id(headers: Headers) -> str | None:
    """Read the id that the client, or a proxy, gave this request. An invalid one is ignored."""
    sent = headers.get("x-request-id", "")
    return sent if is_request_id(sent) else None


def is_request_id(sent: str) -> bool:
    """Check whether a client's id can be logged and sent back."""
    return 0 < len(sent) <= MAX_CLIENT_ID_CHARACTERS and sent.isascii() and sent.isprintable()


def _outcome(context: RequestContext, status: int) -> str:
    """Name what its customer was told of an order."""
    if status == 0:
        return NO_REPLY
    code: str | None = context.facts.get("code")
    return code or (REPLAYED if "replay_of" in context.facts else DELIVERED)


class RequestMiddleware:
    """The outermost layer, except for reading unread bodies."""

    def __init__(self, app: ASGIApp, tracer: Tracer = OFF) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin_form(scope)
        scope["ghub"] = context = RequestContext()
        span = None if scope["path"] in PROBES else self._tracer.request(scope["method"], scope["headers"])
        if span is None:
            await self._serve(scope, receive, send, context, None)
            return
        context.trace = span.traceparent
        with within(span), bound_contextvars(trace_id=span.trace_id):
            await self._serve(scope, receive, send, context, span)

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, context: RequestContext, span: Span | None
    ) -> None:
        """Answer one request; `span` is its own if it is traced."""
        reply: Span | None = None
        headers = Headers(scope=scope)
        theirs = _client_request_id(headers)
        if theirs is not None:
            context.facts["client_request_id"] = theirs
        status, begun_s = 0, 0.0

        async def send_with_id(message: Message) -> None:
            nonlocal status, begun_s, reply
            if message["type"] == "http.response.start":
                status, begun_s = message["status"], time.monotonic()
                reply = span.child("reply") if span is not None else None
                ours = MutableHeaders(scope=message)
                ours["x-request-id"] = context.public_id
                if theirs is not None:
                    ours["x-client-request-id"] = theirs
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            # Starlette has answered with our error envelope, and raises it again for the server's log.
            log.exception("fault", request_id=context.public_id)
        finally:
            ended_s = time.monotonic()
            elapsed_s = ended_s - context.started_s
            route = getattr(scope.get("route"), "path", "other")
            if reply is not None:
                reply.end()
            if span is not None:
                _describe(span, scope["method"], route, status, context)
            REQUESTS.labels(route, str(status)).inc()
            SECONDS.labels(route).observe(elapsed_s)
            if context.sold is not None:
                outcome = _outcome(context, status)
                ORDER_S.labels(*context.sold, outcome).observe((begun_s or ended_s) - context.started_s)
            if route not in PROBES:
                log.info(
                    "request",
                    request_id=context.public_id,
                    method=scope["method"] if scope["method"] in METHODS else "other",
                    route=route,
                    status=status,
                    elapsed_ms=round(elapsed_s * 1000),
                    client=sender_of(headers.get("user-agent", "")),
                    **{"client_gone": False, **context.facts},
                )


def _describe(span: Span, method: str, route: str, status: int, context: RequestContext) -> None:
    """Say in a request's span what its log line says. Only a fault of ours, or of those behind us, is an error."""
    method = method if method in METHODS else "_OTHER"
    span.rename(f"{method} {route}")
    span.set("http.request.method", method)
    span.set("http.route", route)
    span.set("http.response.status_code", status)
    span.set("ghub.request_id", context.public_id)
    for name, fact in context.facts.items():
        if isinstance(fact, str | int | float):
            span.set(f"ghub.{name}", fact)
    if status >= 500 or status == 0:
        span.fail(context.facts.get("code", NO_REPLY))
