"""Probes and metrics. Liveness is the loop's alone; while Redis is away a pod stays ready and answers 503 itself."""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

Ready = Callable[[], bool]


def probe_routes(ready: Ready) -> list[Route]:
    """`/healthz`: this process turns its loop. `/readyz`: it wants work, which it does not while it drains."""

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        return PlainTextResponse("ready\n") if ready() else PlainTextResponse("not ready\n", status_code=503)

    return [Route("/healthz", healthz), Route("/readyz", readyz)]


def metrics_app(ready: Ready) -> Starlette:
    """What listens on the metrics port: `/metrics` and the probes."""

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/metrics", metrics), *probe_routes(ready)])
