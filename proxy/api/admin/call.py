"""A request to the admin API, read and checked: what a client may send, and the errors it gets."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from metering.accounts import KEY
from metering.ports import IdempotentWrite, NotThere
from proxy.api.admin.tokens import Actor
from proxy.api.operation import Operation
from proxy.api.requests import RequestLimits, idempotency_key, read_body
from proxy.errors import ApiError, Kind

_REF = re.compile(r"[\w .@-]{1,64}")
"""The form of an id or a name of an organisation or a key; nothing else is looked up."""

_NO_BODY = (b"", b"{}")


@dataclass(frozen=True, slots=True)
class Call:
    """One request, read and checked; `at` are the parts of its path. `body` and `query` are the operation's models."""

    actor: Actor
    operation: Operation
    at: dict[str, str]
    body: Any
    query: Any
    once: IdempotentWrite | None

    @property
    def ref(self) -> str:
        """Read the organisation, key or order in its path. Raises NotThere for text that can be no id and no name."""
        (ref,) = self.at.values()
        return checked_ref(ref)

    @property
    def credit_id(self) -> str:
        """Read the credit in its path: the id that somebody else gave a payment. Raises NotThere for an API key."""
        if KEY.search(self.at["credit"]):
            raise NotThere("an API key stands where the id of a credit belongs")
        return self.at["credit"]


async def read_call(request: Request, row: Operation, actor: Actor, limits: RequestLimits) -> Call:
    """Read a request and check it. Raises ApiError 400 or 413."""
    at = {name: str(value) for name, value in request.path_params.items()}
    body = query = once = None
    if row.query is not None:
        query = _parsed(row.query, lambda model: model.model_validate(dict(request.query_params)))
    if row.writes:
        key = idempotency_key(request.headers)
        sent = await read_body(request, limits)
        if row.body is not None:
            body = _parsed(row.body, lambda model: model.model_validate_json(sent))
        elif sent.strip() not in _NO_BODY:
            raise ApiError(Kind.INVALID_REQUEST, "This address takes no body.")
        if key is not None:
            once = IdempotentWrite(key, _fingerprint(row, at, body))
    return Call(actor, row, at, body, query, once)


def checked_ref(ref: str) -> str:
    """Check a reference. Raises NotThere for text that can be no id and no name."""
    if KEY.search(ref):
        raise NotThere("an API key stands where an id or a name belongs; the id of a key begins with key_")
    if not _REF.fullmatch(ref):
        raise NotThere("there is nothing of this id or name")
    return ref


def _parsed(model: type[BaseModel], parse: Callable[[type[BaseModel]], BaseModel]) -> BaseModel:
    """Parse a model. An error's message is the field's own description: it has no text of the parser or the client."""
    try:
        return parse(model)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    kind, path = first["type"], first["loc"]
    name = str(path[0]) if path else None
    if name is None:
        raise ApiError(Kind.INVALID_REQUEST, "The body must be one JSON object.")
    fields = {one.alias or python: one for python, one in model.model_fields.items()}
    if name not in fields:
        takes = ", ".join(fields)
        raise ApiError(Kind.INVALID_REQUEST, f"There is no such field here; there are: {takes}.", param=name[:64])
    must = fields[name].description
    missing = "is missing; it " if kind == "missing" else ""
    raise ApiError(Kind.INVALID_REQUEST, f"`{name}` {missing}must be {must}.", param=name)


def _fingerprint(row: Operation, at: dict[str, str], body: BaseModel | None) -> str:
    """Compute the fingerprint of a request; it does not depend on how its JSON is written."""
    fields = body.model_dump(mode="json", exclude_unset=True) if body is not None else None
    text = orjson.dumps([row.id, at, fields], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()
