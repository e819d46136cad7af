"""One operation of the HTTP surface, as the OpenAPI document tells it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator

from proxy.errors import Kind

MAX_KEY_CHARACTERS = 255
"""Of an `Idempotency-Key`."""


def _digits(value: object) -> object:
    """As an address writes a whole number: no sign, point or space."""
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise ValueError("no whole number")
    return value


WholeNumber = Annotated[int, BeforeValidator(_digits)]
"""Of a query."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A method on a path (OpenAPI style, `{org}`): the models that check what it takes and describe what it answers.

    `errors` are its own; what every operation of its `security` may answer is added by the document.
    """

    method: str
    path: str
    summary: str
    reply: type[BaseModel] | None
    status: int = 200
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    headers: type[BaseModel] | None = None
    errors: tuple[Kind, ...] = ()
    security: Literal["key", "admin", "none"] = "key"
    media: tuple[str, ...] = ("application/json",)
