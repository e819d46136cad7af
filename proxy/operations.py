"""One operation of the HTTP surface, as the OpenAPI document tells it."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from proxy.errors import Kind


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
