"""Middleware for every request: its id, its one log line, its metrics. Plain ASGI."""

import time

import structlog
from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.api.addresses import origin_form
from proxy.orders.context import RequestContext

log = structlog.get_logger("request")

REQUESTS = Counter("ghub_requests_total", "HTTP requests", ["route", "status"])
SECONDS = Histogram(
    "ghub_request_seconds", "Time to the reply's end", ["route"], buckets=(0.01, 0.1, 1, 5, 10, 20, 40, 60)
)

MAX_CLIENT_ID_CHARACTERS = 128
"""Maximum characters of a client's `X-Request-ID`: a UUID has 36, a trace with its parent 55."""

PROBES = frozenset({"/healthz", "/readyz"})
"""Paths that the platform requests every few seconds: counted, not logged."""


def context_of(scope: Scope) -> RequestContext:
    """Find the context that the middleware put into this request's scope."""
    context: RequestContext = scope["ghub"]
    return context


def _client_request_id(scope: Scope) -> str | None:
    """Read the id that the client, or a proxy, gave this request. An invalid one is ignored."""
    sent = Headers(scope=scope).get("x-request-id", "")
    return sent if is_request_id(sent) else None


def is_request_id(sent: str) -> bool:
    """Check whether a client's id can be logged and sent back."""
    return 0 < len(sent) <= MAX_CLIENT_ID_CHARACTERS and sent.isascii() and sent.isprintable()


class RequestMiddleware:
    """The outermost layer, except for reading unread bodies."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin_form(scope)
        context = RequestContext()
        scope["ghub"] = context
        theirs = _client_request_id(scope)
        if theirs is not None:
            context.facts["client_request_id"] = theirs
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = context.public_id
                if theirs is not None:
                    headers["x-client-request-id"] = theirs
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            # Starlette has answered with our error envelope, and raises it again for the server's log.
            log.exception("fault", request_id=context.public_id)
        finally:
            elapsed_s = time.monotonic() - context.started_s
            route = getattr(scope.get("route"), "path", "other")
            REQUESTS.labels(route, str(status)).inc()
            SECONDS.labels(route).observe(elapsed_s)
            if route not in PROBES:
                log.info(
                    "request",
                    request_id=context.public_id,
                    method=scope["method"],
                    route=route,
                    status=status,
                    elapsed_ms=round(elapsed_s * 1000),
                    **context.facts,
                )
