"""The interfaces of the edge: what a generation needs from a provider and from a store."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol

from config.catalogue import Model

Chunks = AsyncIterator[bytes]
"""An image's bytes as they arrive, in pieces of at most 64 KiB."""


@dataclass(frozen=True, slots=True)
class Order:
    """A validated request. `size` is one of the model's; `quality` and `fields` are in the upstream's words.

    `quality` is None if the model has none; `response_format` is `url` or `b64_json`. `user` and `safety_identifier`
    are the customer's own user, whether or not the model receives it: orders for two users are not identical. `tags`
    (a JSON list of texts) and `metadata` (a JSON object of texts) only sort orders; `webhook` is called at its end.
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
    safety_identifier: str | None = None
    tags: str | None = None
    metadata: str | None = None
    webhook: str | None = None

    @property
    def labels_bytes(self) -> int:
        """Bound of what its labels add to the order's entry in the journal, where tags and metadata are JSON three
        deep.
        """
        labels = (self.tags, self.metadata, self.webhook)
        return 4 * sum(len(text.encode()) for text in labels if text is not None)


@dataclass(slots=True)
class Report:
    """What an upstream says about a call besides its pictures. It is filled while the reply is read.

    `numbers` maps a picture's index in the reply's list to its number in the order. `revised_prompts` and `refused` use
    that number; a refused picture is not delivered, even if it was stored. `usd` is the provider's own figure for the
    call, `served` the model that it reports, `ids` are what it calls its requests.
    """

    numbers: dict[int, int] = field(default_factory=dict)
    revised_prompts: dict[int, str] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    usage: dict[str, Any] | None = None
    echo: dict[str, str] = field(default_factory=dict)
    usd: Decimal | None = None
    served: str | None = None
    ids: list[str] = field(default_factory=list)


class LetGo(Exception):
    """Another process goes on with the order, or it has ended: here nothing of it is to be made, settled or voided."""

    span_code = "let_go"


class Parts(Protocol):
    """How the parts of an order stand at its provider, kept outside of this process until the order has ended.

    Each method may raise LetGo.
    """

    @property
    def leaving(self) -> bool:
        """True if this process is about to end, and another can go on with every part: then raise LetGo."""
        ...

    @property
    def patient(self) -> bool:
        """True if no client waits: a provider that is away for a while is a reason to wait, until the deadline."""
        ...

    @property
    def known(self) -> Collection[int]:
        """The parts that a provider has or may have, by their first images."""
        ...

    async def begin(self, call: "Call") -> None:
        """Note that a part is about to be given to its provider. Raises Failure if the order is cancelled."""
        ...

    async def note(self, call: "Call", handle: str) -> None:
        """Note the provider's own data for going on with the job of a part, or for cancelling it."""
        ...

    async def untaken(self, call: "Call") -> None:
        """Note that the provider has certainly not taken a part."""
        ...


class Unkept:
    """Parts of an order that nobody could go on with."""

    leaving = patient = False
    known: Collection[int] = ()

    async def begin(self, call: "Call") -> None: ...

    async def note(self, call: "Call", handle: str) -> None: ...

    async def untaken(self, call: "Call") -> None: ...


UNKEPT = Unkept()


@dataclass(frozen=True, slots=True)
class Call:
    """A part of an order that one upstream call makes: `images` of them, numbered from `first`.

    With a `handle` its provider has the job already, from another process, and its pictures may be in the store.
    """

    order: Order
    first: int
    images: int
    parts: Parts = UNKEPT
    handle: str = ""
    report: Report = field(default_factory=Report)


@dataclass(frozen=True, slots=True)
class Source:
    """One image's bytes, to be read once. `size_bytes` is the announced size, None if there was none."""

    chunks: Chunks
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """One image from the upstream, numbered within its order.

    An `inline` picture is a part of the upstream's reply: it is opened once, and read before the next one. Any other
    has its own URL: it is read concurrently with others, and may be opened again.

    An inline picture may be a draft of one that follows. Then `counts` waits until the upstream has said so, and until
    then nothing of it is published.
    """

    index: int
    open: Callable[[], AbstractAsyncContextManager[Source]]
    inline: bool
    counts: Callable[[], Awaitable[bool]] | None = None


class Provider(Protocol):
    """One upstream. Raises `outcomes.Failure` if the call, or the rest of it, brings no pictures."""

    def generate(self, call: Call) -> AsyncGenerator[Picture]: ...


class Cancels(Protocol):
    """An upstream whose jobs go on without us."""

    async def cancel_job(self, handle: str) -> None:
        """Ask for a job's cancellation. It never raises: cancelling is best effort by its nature."""
        ...

    def job_id(self, handle: str) -> str | None:
        """Read what the upstream calls the job; None if the handle does not say."""
        ...


class Resumes(Provider, Cancels, Protocol):
    """An upstream that lets another process go on with a job, by its handle."""

    def resume(self, call: Call) -> AsyncGenerator[Picture]:
        """Yield the pictures of the job that the call's handle names. Raises `outcomes.Failure`."""
        ...


class StoreFailed(Exception):
    """The store did not do what it should; `again` tells whether a retry may help.

    Nothing is published, unless the answer was lost: then the object may be there.
    """

    span_code = "store_failed"

    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(message)
        self.again = again


class PictureLost(StoreFailed):
    """Not the store's fault: the picture does not have its announced length, or the spool gave it up."""

    def __init__(self, message: str) -> None:
        super().__init__(message, again=False)


class StoreMisconfigured(Exception):
    """The store answers, but would not accept our images. The message is a sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in a store's listing. `modified_at` is by the store's clock, aware, UTC."""

    path: str
    size_bytes: int
    modified_at: datetime


class Uploads(Protocol):
    """Learns from uploads whether the store works. A fault of the source or the picture is not reported."""

    def stored(self) -> None:
        """Report an image in the store."""
        ...

    def failing(self) -> None:
        """Report an upload that the store failed and that will be repeated."""
        ...

    def failed(self) -> None:
        """Report an upload that the store failed for good, or that was stuck until the deadline."""
        ...


class ImageStore(Protocol):
    """A store of images. A path is written once, by the request that owns it: `<org>/<request>/<i>.<ext>`.

    Every method raises StoreFailed within a few seconds if the store is away, refuses, or sends an invalid answer.
    """

    @property
    def needs_length(self) -> bool:
        """True if `put` needs `size_bytes`."""
        ...

    async def check(self) -> None:
        """Check that it would accept our images and publish them, as far as it says. Raises StoreMisconfigured."""
        ...

    def unwritable(self, refused: StoreFailed) -> str:
        """Say what to do if a probe was refused for good; the sentence names the setting."""
        ...

    async def put(
        self, path: str, chunks: Chunks, content_type: str, *, size_bytes: int | None = None, again: bool = False
    ) -> None:
        """Publish all of `chunks` at a free path, or nothing if it raises; it also raises errors of `chunks`.

        `again`: an earlier try of this request may have published it, and is replaced. `chunks` are never empty.
        """
        ...

    def read(self, path: str) -> Chunks:
        """Read a published image from its beginning."""
        ...

    async def delete(self, path: str) -> None:
        """Remove a published image. A missing one is no error."""
        ...

    async def exists(self, path: str) -> bool:
        """True if it is published."""
        ...

    def objects(self) -> AsyncIterator[StoredObject]:
        """Yield everything in the store, in any order, from whatever source."""
        ...
