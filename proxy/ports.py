"""The seams of the edge: what a generation asks of a provider and of a store."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

from config.catalogue import Model

Chunks = AsyncIterator[bytes]
"""An image's bytes as they come, in pieces of at most 64 KiB."""


@dataclass(frozen=True, slots=True)
class Order:
    """A validated request. `size` is one of the model's; `quality` and `fields` are in the upstream's words.

    `quality` is None where the model has none; `response_format` is `url` or `b64_json`.
    """

    model_id: str
    model: Model
    prompt: str
    n: int
    size: str
    quality: str | None
    fields: Mapping[str, str | int] = field(default_factory=dict)
    response_format: str = "url"


@dataclass(slots=True)
class Report:
    """What an upstream says about a call beside its pictures, filled in while its reply is read.

    `numbers` tells the number of the picture at each place of the reply's list. `revised_prompts` and `refused` go by
    that number; a refused picture is not delivered, whatever was stored of it. `usd` is the provider's own figure for
    the call, `served` the model that it says it used.
    """

    numbers: dict[int, int] = field(default_factory=dict)
    revised_prompts: dict[int, str] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    usage: dict[str, Any] | None = None
    echo: dict[str, str] = field(default_factory=dict)
    usd: Decimal | None = None
    served: str | None = None


Note = Callable[[str], Awaitable[None]]
"""Keeps what it takes to call a job off, durable outside this process, until its order has ended."""


async def note_nothing(handle: str) -> None:
    """Where there is nobody to keep it."""


@dataclass(frozen=True, slots=True)
class Call:
    """A part of an order that one upstream call makes: `images` of them, numbered from `first`."""

    order: Order
    first: int
    images: int
    note: Note = note_nothing
    report: Report = field(default_factory=Report)


@dataclass(frozen=True, slots=True)
class Picture:
    """One image as the upstream gives it, numbered within its order.

    A picture that is not `concurrent` is a part of one reply: it is read before the next one is asked for.
    """

    index: int
    open: Callable[[], AbstractAsyncContextManager[Chunks]]
    concurrent: bool


class Provider(Protocol):
    """One upstream. Raises `outcomes.Failure` where the call, or the rest of it, brings no pictures."""

    def generate(self, call: Call) -> AsyncGenerator[Picture]: ...


class CallsOff(Protocol):
    """An upstream whose jobs go on without us. Never raises: calling off is best effort by its nature."""

    async def call_off(self, handle: str) -> None: ...


class StoreFailed(Exception):
    """The store did not take the image; nothing of it is published."""


class ImageStore(Protocol):
    """Where images stay. A path is written once, by the request that owns it."""

    async def put(self, path: str, chunks: Chunks, content_type: str) -> None:
        """Publish all of `chunks`, or nothing where it raises: StoreFailed, or whatever `chunks` raised."""
        ...

    def read(self, path: str) -> Chunks: ...

    async def delete(self, path: str) -> None: ...

    async def exists(self, path: str) -> bool: ...
