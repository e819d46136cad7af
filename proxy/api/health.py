"""Probes and metrics. Liveness is only the event loop. While Redis is away a pod stays ready and answers 503 itself."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata as packages

from prometheus_client import CONTENT_TYPE_LATEST, Gauge, disable_created_metrics, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from metering.background import Background
from proxy.api.operation import TEXT, Operation, Tag, routes
from proxy.api.schemas import Alive, Ready
from proxy.messages import FAULTY

TASKS = Gauge("ghub_tasks", "asyncio tasks of this process, counted when the metrics are read")


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition for accepting work. `refusal` gives None while it holds, else a sentence for customers.

    `name` is what `/readyz` shows to anyone while it does not hold. If it is not `for_ready`, only orders are refused,
    and the process stays ready.
    """

    name: str
    refusal: Callable[[], str | None]
    for_ready: bool = True


def when(broken: Callable[[], bool], refusal: str) -> Callable[[], str | None]:
    """Give this sentence while `broken` is true."""
    return lambda: refusal if broken() else None


def running(background: Background) -> list[Condition]:
    """Build the conditions that the parts which orders need are running."""
    return [Condition(f"{name} fails", when(partial(background.fails, name), FAULTY)) for name in background.needed]


class Conditions:
    """All conditions, in the order in which they are reported."""

    def __init__(self, conditions: Sequence[Condition]) -> None:
        self._conditions = conditions

    def refusal(self) -> str | None:
        """Find the reason why no order is accepted now, for customers; None while orders are accepted."""
        return next((why for one in self._conditions if (why := one.refusal()) is not None), None)

    def not_ready(self) -> str | None:
        """Name of the first condition that keeps this process from being ready; None if there is none."""
        return next((one.name for one in self._conditions if one.for_ready and one.refusal() is not None), None)


READY = Gauge("ghub_ready", "1 while this process takes work, 0 while `/readyz` says why not")
BUILD = Gauge("ghub_build_info", "1, with the version of this process", ["version"])

NotReady = Callable[[], str | None]
"""Reason why a process is not ready, in a few words; None if it is ready."""


class ProbesEndpoint:
    """`/healthz`: this process' event loop runs. `/readyz`: it can and wants to work; else the reason."""

    def __init__(self, not_ready: NotReady) -> None:
        self._not_ready = not_ready

    def operations(self) -> Sequence[Operation]:
        return [
            Operation(
                id="get_healthz",
                tag=Tag.SERVICE,
                method="GET",
                path="/healthz",
                handler=self.healthz,
                summary="Is the process alive?",
                reply=Alive,
                security="none",
                media=("text/plain",),
            ),
            Operation(
                id="get_readyz",
                tag=Tag.SERVICE,
                method="GET",
                path="/readyz",
                handler=self.readyz,
                summary="Does the process take work?",
                reply=Ready,
                security="none",
                media=("text/plain",),
                answers={503: {"description": "it drains, starts, or cannot work: the text says why", "content": TEXT}},
            ),
        ]

    async def healthz(self, request: Request) -> Response:
        """Answer 200, always."""
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        """Answer 200, or 503 with the first condition that does not hold."""
        why = self._not_ready()
        return PlainTextResponse("ready\n" if why is None else f"not ready: {why}\n", 200 if why is None else 503)


def probe_routes(not_ready: NotReady) -> list[Route]:
    """Build the routes of the probes alone."""
    return routes(ProbesEndpoint(not_ready).operations())


def measure(not_ready: NotReady) -> None:
    """Have this process' metrics say whether it is ready, and which version it is."""
    # When each was made is a time series more for each counter, which nobody asks for.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    READY.set_function(lambda: not_ready() is None)
    BUILD.labels(packages.version("geekhub-gateway")).set(1)


def metrics_app(not_ready: NotReady) -> Starlette:
    """Build the application of the metrics port: `/metrics` and the probes."""
    measure(not_ready)

    async def metrics(request: Request) -> Response:
        TASKS.set(len(asyncio.all_tasks()))
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/metrics", metrics), *probe_routes(not_ready)])


def union_app(not_ready: NotReady, dead: NotReady, read: Callable[[], Awaitable[str]]) -> Starlette:
    """Build the same for several processes: `dead` is why `/healthz` is 503, and `read` reads the metrics of all."""
    measure(not_ready)
    probes = ProbesEndpoint(not_ready)

    async def metrics(request: Request) -> Response:
        return Response(await read(), media_type=CONTENT_TYPE_LATEST)

    async def healthz(request: Request) -> Response:
        why = dead()
        return PlainTextResponse("ok\n" if why is None else f"{why}\n", 200 if why is None else 503)

    return Starlette(routes=[Route("/metrics", metrics), Route("/healthz", healthz), Route("/readyz", probes.readyz)])
