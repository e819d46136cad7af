"""One operation of the HTTP surface: its route and its place in the OpenAPI document come from the same row."""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, BeforeValidator
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.errors import Kind

MAX_KEY_CHARACTERS = 255
"""Maximum characters of an `Idempotency-Key`."""

TEXT: Mapping[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
"""Content of an answer that is a sentence."""

ORDER_EXAMPLE = "req_7d2f1f0e0c5b4a35a1f8f6f1f0b1c2d3"
"""Example of an order's id."""

BALANCE = ("x-geekhub-balance-mxn",)
REQUEST_RATES = tuple(f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset"))
IMAGE_RATES = tuple(f"x-ratelimit-{what}-images" for what in ("limit", "remaining", "reset"))
"""Names of headers that several operations send."""


def _digits(value: object) -> object:
    """Accept a whole number only as plain digits: no sign, point or space."""
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise ValueError("no whole number")
    return value


WholeNumber = Annotated[int, BeforeValidator(_digits)]
"""Whole number in a query."""

Handler = Callable[[Request], Awaitable[Response]]


class Tag(Enum):
    """Groups of operations, with the document's text about each. Generated clients are split by them."""

    IMAGES = "images", "Orders and what they delivered"
    MODELS = "models", "What can be ordered"
    ACCOUNT = "account", "What the organisation has and used"
    SERVICE = "service", "The gateway itself; no key is needed"
    ADMIN = "admin", "What operators do, with an administrator's token"
    FINANCE = "finance", "What finance does, with a token of its own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A method on a path: its handler, and the models that check its request and describe its reply.

    `id` is unique and never changes, because generated clients name their functions after it. `path` is in Starlette's
    form, `{org}` or `{model_id:path}`. A GET is also answered as HEAD. `status` is that of success, and `reply` its
    model. `errors` are its own; the document adds those that every operation of its `security` may give.
    """

    id: str
    tag: Tag
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    handler: Handler
    summary: str
    description: str | None = None
    reply: type[BaseModel] | None
    status: int = 200
    media: tuple[str, ...] = ("application/json",)
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    headers: type[BaseModel] | None = None
    errors: tuple[Kind, ...] = ()
    security: Literal["key", "admin", "finance", "none"] = "key"
    examples: Mapping[str, str] = field(default_factory=dict)
    """Examples of the values in its path, by name."""
    reply_headers: tuple[str, ...] = ()
    """Headers of a success, besides the ids that every answer has."""
    accepted: type[BaseModel] | None = None
    """Model of a 202, if the client may prefer not to wait; `accepted_headers` are its headers."""
    accepted_headers: tuple[str, ...] = ()
    error_headers: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Headers of an error, by status, besides those that every such error has."""
    answers: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Answers that are neither its success nor an error of the table, by status."""

    @property
    def writes(self) -> bool:
        """True if it may change something."""
        return self.method != "GET"

    @property
    def documented_path(self) -> str:
        """Path in OpenAPI's form."""
        return re.sub(r":\w+}", "}", self.path)


class Endpoint(Protocol):
    """An object that answers some operations, and lists them."""

    def operations(self) -> Sequence[Operation]:
        """List its rows, each with the method of this object that answers it."""
        ...


def routes(operations: Iterable[Operation]) -> list[Route]:
    """Build one route for each path, with all its methods, so that a 405 names them all."""
    by_path: dict[str, dict[str, Handler]] = {}
    for one in operations:
        handlers = by_path.setdefault(one.path, {})
        assert one.method not in handlers, f"two operations are {one.method} {one.path}"
        handlers[one.method] = one.handler
    return [Route(path, _handler(handlers), methods=list(handlers)) for path, handlers in by_path.items()]


def _handler(handlers: Mapping[str, Handler]) -> Handler:
    if len(handlers) == 1:
        return next(iter(handlers.values()))

    async def one_of(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return one_of
