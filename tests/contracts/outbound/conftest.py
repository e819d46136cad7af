"""The loops and transports that every test of outgoing calls runs on, and certificates."""

import asyncio
import gc
import ssl
from collections.abc import Coroutine
from typing import Any

import httpx2
import pytest
import trustme
import uvloop

from tests.conftest import TRUST
from tests.kits.outbound import PATIENCE_S, MakeClient, Run, our_client

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def their_client(verify: ssl.SSLContext | None = TRUST, **timeouts_s: float) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        transport=httpx2.AsyncHTTPTransport(verify=verify or ssl.create_default_context()),
        timeout=httpx2.Timeout(PATIENCE_S, **timeouts_s),
        trust_env=False,
    )


def runner(loop: str) -> Run:
    def run(main: Coroutine[Any, Any, None]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(3 * PATIENCE_S):
                await main

        with asyncio.Runner(loop_factory=LOOPS[loop]) as loop_runner:
            loop_runner.run(bounded())
        gc.collect()  # an unclosed socket warns here, inside the test that left it

    return run


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Run:
    return runner(request.param)


@pytest.fixture(params=["ours-asyncio", "ours-uvloop", "httpx2-asyncio"])
def subject(request: pytest.FixtureRequest) -> tuple[Run, MakeClient]:
    whose, loop = request.param.split("-")
    return runner(loop), {"ours": our_client, "httpx2": their_client}[whose]


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_tls(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1", "cdn.example").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def trust(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context
