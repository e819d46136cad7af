"""The seams of the edge: what a generation asks of a provider and of a store."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol

from config.catalogue import Model

Chunks = AsyncIterator[bytes]
"""An image's bytes as they come, in pieces of at most 64 KiB."""


@dataclass(frozen=True, slots=True)
class Order:
    """A validated request. `size` is one of the model's; `quality` and `fields` are in the upstream's words.

    `quality` is None where the model has none; `response_format` is `url` or `b64_json`. `user` is whom the customer
    orders for, whether or not the model is told: orders for two of them are not the same.
    """

    model_id: str
    model: Model
    prompt: str
    n: int
    size: str
    quality: str | None
    fields: Mapping[str, str | int] = field(default_factory=dict)
    response_format: str = "url"
    user: str | None = None


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
class Source:
    """One image's bytes, to be read once. `size_bytes` is what the sender announced, None where it did not."""

    chunks: Chunks
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """One image as the upstream gives it, numbered within its order.

    An `inline` picture is a part of the upstream's reply: it is opened once, and read before the next one is asked
    for. Any other lies at a URL of its own: it is read beside the others, and may be opened again.
    """

    index: int
    open: Callable[[], AbstractAsyncContextManager[Source]]
    inline: bool


class Provider(Protocol):
    """One upstream. Raises `outcomes.Failure` where the call, or the rest of it, brings no pictures."""

    def generate(self, call: Call) -> AsyncGenerator[Picture]: ...


class Cancels(Protocol):
    """An upstream whose jobs go on without us. Never raises: calling off is best effort by its nature."""

    async def cancel_job(self, handle: str) -> None: ...


class StoreFailed(Exception):
    """The store did not do what it was asked; `again` tells whether that may help.

    Nothing is published, unless the answer was lost: then the object may be there.
    """

    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(message)
        self.again = again


class PictureLost(StoreFailed):
    """It was not the store: the picture is not as long as was announced, or the spool gave it up."""

    def __init__(self, message: str) -> None:
        super().__init__(message, again=False)


class StoreMisconfigured(Exception):
    """The store answers, and would not take our images; the message is a sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What a store lists. `modified_at` is the store's clock, aware, UTC."""

    path: str
    size_bytes: int
    modified_at: datetime


class Uploads(Protocol):
    """Learns how uploads go, from whoever makes them. What is the source's fault, or the picture's, is not told."""

    def stored(self) -> None:
        """One is in the store."""
        ...

    def failing(self) -> None:
        """The store failed one, which will be made again."""
        ...

    def failed(self) -> None:
        """The store failed one for good, or stood still until the deadline cut it off."""
        ...


class ImageStore(Protocol):
    """Where images stay. A path is written once, by the request that owns it: `<org>/<request>/<i>.<ext>`.

    Every method raises StoreFailed where the store is away, refuses, or answers nonsense, within a few seconds.
    """

    @property
    def needs_length(self) -> bool:
        """Whether `put` must be told `size_bytes`."""
        ...

    async def check(self) -> None:
        """Would it take our images, and show them to everybody, as far as it says? Raises StoreMisconfigured."""
        ...

    def unwritable(self, refused: StoreFailed) -> str:
        """Where a probe was refused for good: the sentence that names the variable and says what to do."""
        ...

    async def put(
        self, path: str, chunks: Chunks, content_type: str, *, size_bytes: int | None = None, again: bool = False
    ) -> None:
        """Publish all of `chunks` where nothing is yet, or nothing where it raises: also whatever `chunks` raised.

        `again`: an earlier try of this request may have published it, and is replaced. `chunks` are never empty.
        """
        ...

    def read(self, path: str) -> Chunks:
        """A published image, from its beginning."""
        ...

    async def delete(self, path: str) -> None:
        """Remove a published image; one that is not there is no error."""
        ...

    async def exists(self, path: str) -> bool:
        """Is it published?"""
        ...

    def objects(self) -> AsyncIterator[StoredObject]:
        """Everything in the store, in any order, whoever put it there."""
        ...
