"""What all sinks have in common: their table in GHUB_SINKS, and what an answer means."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, ClassVar, Protocol

from pydantic import Field

from config.catalogue import Row
from metering.ports import ToSend

SOURCE = "urn:geekhub:image-gateway"
"""CloudEvents' `source`, unless a sink has its own. Receivers tell repeats by it and the id, so it never changes."""

MAX_BATCH = 1_000
"""Maximum items in one request: about 1 MB."""

MAX_AT_ONCE = 32
"""Maximum requests to one sink at a time."""

LATER = frozenset({401, 403, 407, 408, 409, 425, 429})
"""Refusals that say nothing about the item: a token that has expired, a receiver that is busy. It is sent again.

All other 4xx are for good.
"""

HttpUrl = Annotated[str, Field(pattern=r"^https?://[^\s?#@]+$")]
"""Without a user, a password or a parameter: an address stands in logs, and a token does not."""


@dataclass(frozen=True, slots=True)
class Message:
    """One request, or one publication. `target` is a URL or a subject; `headers` do not contain the token."""

    target: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a receiver answered, as HTTP says it. `body` is cut, and has no token in it."""

    status: int
    body: bytes = b""
    retry_after_s: float = 0.0


class SinkAway(Exception):
    """The receiver gave no answer that counts; the message says why, in words for a log, without a token."""


class CannotBeSent(Exception):
    """There is no message for these items; the message is a sentence for an operator."""


class Sender(Protocol):
    """The connection to a receiver, with its token."""

    async def send(self, message: Message) -> Reply:
        """Send a message once. Raises SinkAway."""

    async def aclose(self) -> None: ...


class Verdict(Enum):
    """What an answer means for the items of its request."""

    DELIVERED = "delivered"
    LATER = "later"
    REFUSED = "refused"
    SPLIT = "split"
    """One of several may be refused: they are sent in halves, down to that one."""


class Sink(Row):
    """A table of GHUB_SINKS. `token_env` names the variable of the environment that holds the token."""

    REPEATS: ClassVar[str]
    """Until when the receiver recognises a repeat, and what becomes of one that comes later."""

    PATH: ClassVar[str] = ""
    """What follows the `url` of the file."""

    NEEDS_TOKEN: ClassVar[bool] = False

    profile: str
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
    url: str
    token_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    source: Annotated[str, Field(pattern=r"^[!-~]{1,200}$")] = SOURCE
    at_once: Annotated[int, Field(ge=1, le=MAX_AT_ONCE)] = 4

    @property
    def per_request(self) -> int:
        """Maximum items in one message."""
        return 1

    @abstractmethod
    def message(self, items: Sequence[ToSend]) -> Message:
        """Build the message of these items, at most `per_request`. Raises CannotBeSent."""

    def has_it(self, reply: Reply) -> bool:
        """True if this refusal of one item says that the receiver has it already."""
        return False

    def verdict(self, reply: Reply, count: int) -> Verdict:
        """Judge the answer to a request of `count` items. A redirect is not followed: nobody has taken anything."""
        if 200 <= reply.status < 300:
            return Verdict.DELIVERED
        if not 400 <= reply.status < 500 or reply.status in LATER:
            return Verdict.LATER
        if count > 1:
            return Verdict.SPLIT
        return Verdict.DELIVERED if self.has_it(reply) else Verdict.REFUSED

    @property
    def address(self) -> str:
        """Where requests go."""
        return self.url.rstrip("/") + self.PATH
