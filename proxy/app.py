"""The HTTP surface: routes from the endpoints' rows, and the form of errors."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp

from metering.tracing import OFF, Tracer
from proxy.api.addresses import nothing_at
from proxy.api.cors import CorsMiddleware, Origins
from proxy.api.health import NotReady, ProbesEndpoint, Versions, probe_routes
from proxy.api.middleware import RequestMiddleware, context_of
from proxy.api.openapi import HEADERS, OpenApiEndpoint
from proxy.api.operation import Endpoint, routes
from proxy.api.requests import language_of
from proxy.errors import ApiError, Kind
from proxy.messages import FAULT, MANY_CONNECTIONS, METHODS, OTHER_METHODS
from proxy.orders.capacity import BUSY_RETRY_S
from proxy.server.unread import UnreadBody

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def build_app(
    endpoints: Iterable[Endpoint],
    origins: Origins,
    not_ready: NotReady,
    lifespan: Lifespan,
    versions: Versions = dict,
    tracer: Tracer = OFF,
) -> ASGIApp:
    """Build the gateway's ASGI application: these endpoints, the probes, and the document of all of them."""
    operations = [row for one in (*endpoints, ProbesEndpoint(not_ready, versions)) for row in one.operations()]
    operations += OpenApiEndpoint(operations).operations()
    app = Starlette(
        routes=routes(operations),
        lifespan=lifespan,
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _fault},
    )
    app.router.redirect_slashes = False
    return UnreadBody(RequestMiddleware(CorsMiddleware(app, origins, HEADERS), tracer))


def build_full_app(not_ready: NotReady) -> ASGIApp:
    """Build the application for connections above the maximum: probes as always, 503 for everything else."""
    return RequestMiddleware(Starlette(routes=probe_routes(not_ready), exception_handlers={HTTPException: _full}))


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    context = context_of(request.scope)
    error = context.ending.as_answered(error, context.public_id)
    context.facts |= {"code": error.kind.value.code, "reason": error.reason}
    language = language_of(request.headers)
    return Response(
        error.body(context.public_id, language),
        status_code=error.kind.value.status,
        headers=error.reply_headers(language),
        media_type="application/json",
    )


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer what the router itself refuses."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
        ours = ApiError(Kind.METHOD, METHODS.of(allowed=allowed or OTHER_METHODS), headers={"allow": allowed})
    else:
        ours = ApiError(Kind.NOT_FOUND, nothing_at(request.scope["path"], partial(_is_there, request.app.routes)))
    return await _api_error(request, ours)


def _is_there(routes: Sequence[BaseRoute], path: str) -> bool:
    scope = {"type": "http", "method": "GET", "path": path}
    return any(route.matches(scope)[0] is not Match.NONE for route in routes)


async def _full(request: Request, error: Exception) -> Response:
    return await _api_error(request, ApiError(Kind.UNAVAILABLE, MANY_CONNECTIONS, retry_after_s=BUSY_RETRY_S))


async def _fault(request: Request, error: Exception) -> Response:
    """Answer an unexpected error without any of its text. A read has started no job, so it may be retried."""
    reads = request.method in ("GET", "HEAD")
    ours = ApiError(Kind.INTERNAL, FAULT, retry=reads)
    return await _api_error(request, ours)
