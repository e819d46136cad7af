"""The HTTP surface: routes, the errors' envelope, and where local images are served."""

import mimetypes
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.api.addresses import nothing_at
from proxy.api.admin.endpoint import AdminEndpoint
from proxy.api.admin.schemas import ACTIONS
from proxy.api.catalogue import ModelsEndpoint
from proxy.api.cors import ANY_PAGE, CorsMiddleware, Origins
from proxy.api.credits import CreditsEndpoint
from proxy.api.deliveries import HistoryEndpoint
from proxy.api.health import NotReady, probe_routes
from proxy.api.images import ImagesEndpoint
from proxy.api.middleware import RequestMiddleware, context_of
from proxy.api.openapi import HEADERS, IMAGE_PATH, IMAGES, OPENAPI_PATH, OPERATIONS, OpenApiEndpoint
from proxy.api.requests import language_of
from proxy.api.usage import UsageEndpoint
from proxy.errors import ApiError, Kind
from proxy.media.formats import FORMATS
from proxy.messages import FAULT, MANY_CONNECTIONS, METHODS, OTHER_METHODS
from proxy.orders.capacity import BUSY_RETRY_S
from proxy.server.unread import UnreadBody

for kind in FORMATS:  # Python 3.11 does not know all of them by itself
    mimetypes.add_type(kind.content_type, f".{kind.extension}")

STORAGE_PATH = IMAGE_PATH.partition("/{")[0]
"""Where the gateway itself serves images that lie in a local folder; the path is Supabase's."""

KEPT_FOR_EVER = "public, max-age=31536000, immutable"

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def build_app(
    images: ImagesEndpoint,
    models: ModelsEndpoint,
    credits_: CreditsEndpoint,
    history: HistoryEndpoint,
    usage: UsageEndpoint,
    admin: AdminEndpoint | None,
    origins: Origins,
    not_ready: NotReady,
    lifespan: Lifespan,
    image_folder: Path | None,
) -> ASGIApp:
    """The gateway as an ASGI application. `image_folder` is served where the store is a local folder.

    Without `admin` nothing is at `/admin/v1`.
    """
    routes: list[BaseRoute] = [
        Route("/v1/images/generations", images.create, methods=["POST"]),
        Route("/v1/images/generations", history.list, methods=["GET"]),
        Route("/v1/images/generations/{id}", history.one, methods=["GET"]),
        Route("/v1/models", models.list, methods=["GET"]),
        Route("/v1/models/{model_id:path}", models.one, methods=["GET"]),
        Route("/v1/credits", credits_.read, methods=["GET"]),
        Route("/v1/usage", usage.read, methods=["GET"]),
        *probe_routes(not_ready),
    ]
    operations = [*OPERATIONS]
    if admin is not None:
        routes += admin.routes()
        operations += [action.operation for action in ACTIONS]
    if image_folder is not None:
        image_folder.mkdir(parents=True, exist_ok=True)
        routes.append(Mount(STORAGE_PATH, _ImageFiles(image_folder)))
        operations.append(IMAGES)
    routes.append(Route(OPENAPI_PATH, OpenApiEndpoint(operations).read, methods=["GET"]))
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _fault},
    )
    app.router.redirect_slashes = False
    return UnreadBody(RequestMiddleware(CorsMiddleware(app, origins, HEADERS)))


def build_full_app(not_ready: NotReady) -> ASGIApp:
    """What answers where there are as many connections as there may be: probes as always, and 503 to everybody else."""
    return RequestMiddleware(Starlette(routes=probe_routes(not_ready), exception_handlers={HTTPException: _full}))


class _ImageFiles:
    """Published images of a local folder, for any page, and to be kept by whoever fetched them; they never change."""

    def __init__(self, folder: Path) -> None:
        self._files = StaticFiles(directory=folder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_cacheable(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = MutableHeaders(scope=message)
                told.update(ANY_PAGE)
                if message["status"] == 200:
                    told.update({"cache-control": KEPT_FOR_EVER, "x-content-type-options": "nosniff"})
            await send(message)

        await self._files(scope, receive, send_cacheable)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    context = context_of(request.scope)
    error = context.ending.as_told(error, context.public_id)
    context.facts["code"] = error.kind.value.code
    language = language_of(request.headers)
    return Response(
        error.body(context.public_id, language),
        status_code=error.kind.value.status,
        headers=error.reply_headers(language),
        media_type="application/json",
    )


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = _allowed(request) or (error.headers or {}).get("Allow", "")
        ours = ApiError(Kind.METHOD, METHODS.of(allowed=allowed or OTHER_METHODS), headers={"allow": allowed})
    else:
        ours = ApiError(Kind.NOT_FOUND, nothing_at(request.scope["path"], partial(_is_there, request.app.routes)))
    return await _api_error(request, ours)


def _is_there(routes: Sequence[BaseRoute], path: str) -> bool:
    scope = {"type": "http", "method": "GET", "path": path}
    return any(route.matches(scope)[0] is not Match.NONE for route in routes if isinstance(route, Route))


async def _full(request: Request, error: Exception) -> Response:
    return await _api_error(request, ApiError(Kind.UNAVAILABLE, MANY_CONNECTIONS, retry_after_s=BUSY_RETRY_S))


def _allowed(request: Request) -> str:
    """The methods of all routes at this address; the router names those of the first."""
    at_it = (route for route in request.app.routes if isinstance(route, Route))
    methods = {
        method for route in at_it if route.matches(request.scope)[0] is not Match.NONE for method in route.methods or ()
    }
    return ", ".join(sorted(methods))


async def _fault(request: Request, error: Exception) -> Response:
    """What nobody foresaw: no word of it leaves the house. What only reads has begun no job, and may be tried again."""
    reads = request.method in ("GET", "HEAD")
    ours = ApiError(Kind.INTERNAL, FAULT, retry=reads)
    return await _api_error(request, ours)
