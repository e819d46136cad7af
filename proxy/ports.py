"""The seams of the edge: what a generation asks of a provider and of a store."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from config.catalogue import Model

Chunks = AsyncIterator[bytes]
"""An image's bytes as they come, in pieces of at most 64 KiB."""


@dataclass(frozen=True, slots=True)
class Order:
    """A validated request. `size` is one of the model's; `quality` is the upstream's word, None where it has none."""

    model_id: str
    model: Model
    prompt: str
    n: int
    size: str
    quality: str | None
    user: str | None


@dataclass(frozen=True, slots=True)
class Call:
    """A part of an order that one upstream call makes: `images` of them, numbered from `first`."""

    order: Order
    first: int
    images: int


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


class StoreFailed(Exception):
    """The store did not take the image; nothing of it is published."""


class ImageStore(Protocol):
    """Where images stay. A path is written once, by the request that owns it."""

    async def put(self, path: str, chunks: Chunks, content_type: str) -> None:
        """Publish all of `chunks`, or nothing where it raises: StoreFailed, or whatever `chunks` raised."""
        ...

    async def delete(self, path: str) -> None: ...

    async def exists(self, path: str) -> bool: ...
