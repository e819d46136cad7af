"""What the middleware counts of an order: its outcome as its customer sees it, and the time until its reply begins."""

import asyncio

import pytest
from prometheus_client import REGISTRY
from prometheus_client.samples import Sample
from starlette.types import Message, Receive, Scope, Send

from proxy.api.middleware import RequestMiddleware, context_of

SENDING_S = 0.5
SCOPE = {"type": "http", "method": "POST", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []}
LABELS = {"provider": "test", "model": "test/middleware"}


def value(name: str, outcome: str) -> float:
    return REGISTRY.get_sample_value(f"ghub_order_seconds_{name}", {**LABELS, "outcome": outcome}) or 0.0


def orders() -> list[Sample]:
    """Everything that is known of orders."""
    samples = [sample for metric in REGISTRY.collect() for sample in metric.samples]
    return [sample for sample in samples if sample.name.startswith("ghub_order_seconds")]


async def nothing() -> Message:
    return {"type": "http.disconnect"}


async def swallow(message: Message) -> None:
    pass


async def test_an_order_that_gets_no_reply_is_counted_as_such() -> None:
    """A stop that takes too long cuts its work off."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        context_of(scope).sold = LABELS["provider"], LABELS["model"]
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await RequestMiddleware(app)(dict(SCOPE), nothing, swallow)
    assert value("count", "no_reply") == 1


async def test_the_time_of_an_order_ends_where_its_reply_begins() -> None:
    """A client that reads slowly does not make us slow; one that is told an error counts by its code."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        context = context_of(scope)
        context.sold = LABELS["provider"], LABELS["model"]
        context.facts |= {"code": "deadline_exceeded", "reason": "deadline"}
        await send({"type": "http.response.start", "status": 504, "headers": []})
        await asyncio.sleep(SENDING_S)
        await send({"type": "http.response.body", "body": b""})

    await RequestMiddleware(app)(dict(SCOPE), nothing, swallow)
    assert value("count", "deadline_exceeded") == 1
    assert value("sum", "deadline_exceeded") < SENDING_S


async def test_what_is_no_order_is_none() -> None:
    """Nor is an order with a test key."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    before = orders()
    await RequestMiddleware(app)(dict(SCOPE), nothing, swallow)
    assert orders() == before
