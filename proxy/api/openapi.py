"""GET /openapi.json: the whole HTTP surface, from the models that check requests and describe replies."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema
from pydantic_core import core_schema
from starlette.requests import Request
from starlette.responses import Response

from proxy.api.cors import ANY_PAGE
from proxy.api.middleware import MAX_CLIENT_ID_CHARACTERS
from proxy.api.operation import REQUEST_RATES, Operation, Tag
from proxy.api.schemas import Error, OpenApi
from proxy.api.sending import Sending
from proxy.errors import Kind
from proxy.messages import DOCUMENTS_AT_ONCE, LANGUAGES

VERSION = "1"
"""Version of the API, which is in its paths."""

OPENAPI_PATH = "/openapi.json"

MAX_DOCUMENTS = 64
"""Maximum documents being sent at a time, to all together: no other large reply works without a key."""

KEPT = "public, max-age=300"
"""Cache header. A client asks again after five minutes; if nothing has changed, the ETag says so."""

_COMMON = {
    "key": (
        Kind.MISSING_KEY,
        Kind.INVALID_KEY,
        Kind.KEY_REVOKED,
        Kind.KEY_EXPIRED,
        Kind.ORIGIN_NOT_ALLOWED,
        Kind.UNAVAILABLE,
    ),
    "admin": (),
    "finance": (),
    "none": (),
}
"""Errors that any operation of a security may give."""

_SECURITY: dict[str, list[dict[str, list[str]]]] = {
    "key": [{"ghub_sk": []}],
    "admin": [{"admin": []}],
    "finance": [{"finance": []}],
    "none": [],
}

_TEXTS: dict[str, str] = {"type": "string"}
_NUMBER: dict[str, Any] = {"type": "integer", "minimum": 0}
_AMOUNT: dict[str, str] = {"type": "string", "pattern": r"^-?[0-9]+\.[0-9]{2,6}$"}
_WAIT: dict[str, str] = {"type": "string", "pattern": "^([0-9]+m)?[0-9]+m?s$"}

HEADERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "x-request-id": ("Of this request; on a replay it is not the order's", {"pattern": "^req_[0-9a-f]{32}$"} | _TEXTS),
    "x-should-retry": ("What the official SDKs obey", {"type": "string", "enum": ["true", "false"]}),
    "retry-after": ("Seconds", _NUMBER),
    "retry-after-ms": ("Milliseconds", _NUMBER),
    "x-geekhub-balance-mxn": ("What the organisation can spend now; absent where Redis is away", _AMOUNT),
    "x-geekhub-cost-mxn": ("What this request was charged", _AMOUNT),
    "x-geekhub-held-mxn": ("What is held for the order: the most that it can cost", _AMOUNT),
    "location": ("Where the order's result will be", _TEXTS),
    "preference-applied": ("RFC 7240: the client does not wait", {"const": "respond-async"} | _TEXTS),
    "x-ratelimit-limit-requests": ("Per minute", _NUMBER),
    "x-ratelimit-remaining-requests": ("At this moment", _NUMBER),
    "x-ratelimit-reset-requests": ("Until all of them are there again, as `20ms`, `1s`, `6m0s`", _WAIT),
    "x-ratelimit-limit-images": ("Per minute", _NUMBER),
    "x-ratelimit-remaining-images": ("At this moment", _NUMBER),
    "x-ratelimit-reset-images": ("Until all of them are there again", _WAIT),
    "x-client-request-id": (
        "The request's own `X-Request-ID`, where it sent one of at most 128 visible ASCII characters",
        {"maxLength": MAX_CLIENT_ID_CHARACTERS} | _TEXTS,
    ),
    "content-language": (
        "Of the message or the statement, as `Accept-Language` prefers",
        {"enum": list(LANGUAGES)} | _TEXTS,
    ),
    "accept-encoding": ("How a body may be compressed", _TEXTS),
    "idempotent-replayed": ("It was done before; nothing was done or charged again", {"const": "true"} | _TEXTS),
    "deprecation": ("RFC 9745: the model has a day to end", _TEXTS),
    "sunset": ("RFC 8594: that day", _TEXTS),
    "link": ("The model's successor", _TEXTS),
    "allow": ("The methods of this address", _TEXTS),
    "etag": ("Of this version", _TEXTS),
    "cache-control": ("How long it may be kept", _TEXTS),
    "vary": ("What the form of the answer depends on", _TEXTS),
    "content-disposition": ("A name for the file", _TEXTS),
    "content-security-policy": ("Of a page: it runs nothing and loads nothing", _TEXTS),
    "x-geekhub-complete": (
        "Whether everything is known that belongs in it; a closed month's always is",
        {"type": "string", "enum": ["true", "false"]},
    ),
    "www-authenticate": ("How to send a token", _TEXTS),
}
"""All headers of a reply that a page's script may read, besides HTTP's own."""

_ALWAYS = frozenset(
    {
        "x-request-id",
        "x-should-retry",
        "x-geekhub-cost-mxn",
        "allow",
        "accept-encoding",
        "etag",
        "cache-control",
        "vary",
        "www-authenticate",
    }
)
"""Headers that are always present in a reply that may have them."""


class _Schemas(GenerateJsonSchema):
    """Omits titles that repeat a field's name, and `default: null` if a field may be absent."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> dict[str, Any]:
        made = super().default_schema(schema)
        if made.get("default", ...) is None:
            del made["default"]
        return made


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """Build the OpenAPI 3.1 document of these operations."""
    rows = list(operations)
    schemas, references = _components(rows)
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        paths.setdefault(row.documented_path, {})[row.method.lower()] = _operation(row, references)
    tags = [tag.value for tag in Tag if any(row.tag is tag for row in rows)]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "GeekHub image gateway",
            "version": VERSION,
            "description": "OpenAI's Images API for many providers' models, charged in MXN. Any other address is 404"
            " `not_found`, and names the one that is meant where that can be seen; any other method of an address"
            " here is 405; both in the form of `Error`. Every GET is also a HEAD, which is answered with the headers of"
            " the GET alone. Messages to customers are Spanish where `Accept-Language`"
            " prefers it. A body may be compressed: `Content-Encoding` gzip, deflate, br or zstd. `X-Request-ID` is"
            " logged and given back as `x-client-request-id`.",
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": description} for name, description in tags],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "headers": {name: _header(name) for name in HEADERS},
            "securitySchemes": {
                "ghub_sk": {"type": "http", "scheme": "bearer", "description": "An API key: `ghub_sk_live_…`"},
                "admin": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "finance": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
            },
        },
    }


_References = dict[tuple[Any, JsonSchemaMode], dict[str, Any]]
"""Place of a model's schema, by model and purpose (checks or describes). For parameters it is the schema itself."""


def _components(rows: Sequence[Operation]) -> tuple[dict[str, Any], _References]:
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [(Error, "serialization")]
    replies = [reply for row in rows for reply in (row.reply, row.accepted)]
    wanted += [(reply, "serialization") for reply in replies if reply is not None]
    wanted += [(model, "validation") for row in rows for model in (row.body, row.query, row.headers) if model]
    references, made = models_json_schema(
        list(dict.fromkeys(wanted)), ref_template="#/components/schemas/{model}", schema_generator=_Schemas
    )
    schemas: dict[str, Any] = made.get("$defs", {})
    parameters = {model for row in rows for model in (row.query, row.headers) if model}
    found: _References = {}
    for (model, mode), reference in references.items():
        name = reference.get("$ref", "").rpartition("/")[2]
        found[model, mode] = schemas.pop(name) if model in parameters else reference
    return schemas, found


def _operation(row: Operation, references: _References) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": row.id, "tags": [row.tag.value[0]], "summary": row.summary}
    if row.description is not None:
        operation["description"] = row.description
    operation["security"] = _SECURITY[row.security]
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": _in_path(row.examples.get(name))}
        for name in _names(row)
    ]
    for place, model in (("query", row.query), ("header", row.headers)):
        if model is not None:
            parameters += _parameters(place, references[model, "validation"])
    if parameters:
        operation["parameters"] = parameters
    if row.body is not None:
        content = {"application/json": {"schema": references[row.body, "validation"]}}
        operation["requestBody"] = {"required": True, "content": content}
    answers = {str(row.status): _answer(row, row.reply, row.reply_headers, references)}
    if row.accepted is not None:
        answers["202"] = _answer(row, row.accepted, row.accepted_headers, references)
    operation["responses"] = answers | _errors(row)
    return operation


def _names(row: Operation) -> list[str]:
    return [part[1:-1] for part in row.documented_path.split("/") if part.startswith("{")]


def _in_path(example: str | None) -> dict[str, Any]:
    return {"type": "string", "minLength": 1} | ({} if example is None else {"examples": [example]})


def _parameters(place: str, schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Turn a model's fields into parameters. An unset one is not sent, so null is not one of its values."""
    parameters = []
    for name, field in schema["properties"].items():
        rest = {key: value for key, value in field.items() if key not in ("anyOf", "description")}
        kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
        rest |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {}
        parameter = {"name": name, "in": place, "required": name in schema.get("required", ()), "schema": rest}
        parameters.append(parameter | {key: field[key] for key in ("description",) if key in field})
    return parameters


def _answer(
    row: Operation, reply: type[BaseModel] | None, headers: Sequence[str], references: _References
) -> dict[str, Any]:
    schema = references[reply, "serialization"] if reply is not None else None
    answer: dict[str, Any] = {
        "description": (reply.__doc__ if reply is not None else None) or row.summary,
        "headers": _references("x-request-id", "x-client-request-id", *headers),
    }
    if reply is not None or row.media != ("application/json",):
        answer["content"] = {media: _content(row, media, schema) for media in row.media}
    return answer


def _content(row: Operation, media: str, schema: dict[str, Any] | None) -> dict[str, Any]:
    """Describe a reply's content: the model describes JSON, or the only medium. As CSV, the same reply is text."""
    if schema is None:
        return {}
    return {"schema": schema if media == "application/json" or len(row.media) == 1 else {"type": "string"}}


def _errors(row: Operation) -> dict[str, Any]:
    kinds = {*row.errors, *_COMMON[row.security], Kind.METHOD, Kind.INTERNAL}
    if _names(row):
        kinds.add(Kind.NOT_FOUND)
    if row.body is not None:
        kinds |= {Kind.INVALID_REQUEST, Kind.TOO_LARGE, Kind.ENCODING}
    answers: dict[str, Any] = {}
    for status in sorted({kind.value.status for kind in kinds}):
        of_status = [kind.value for kind in Kind if kind in kinds and kind.value.status == status]
        names = ["x-request-id", "x-client-request-id", "x-should-retry", "content-language", "vary"]
        names += ["allow"] if status == Kind.METHOD.value.status else []
        names += ["accept-encoding"] if status == Kind.ENCODING.value.status else []
        names += ["www-authenticate"] if Kind.INVALID_TOKEN in kinds and status == 401 else []
        names += ["retry-after", "retry-after-ms"] if status in (402, 429, 502, 503) else []
        names += REQUEST_RATES if status == Kind.RATE_LIMIT.value.status else ()
        names += row.error_headers.get(status, ())
        codes = {
            "type": {"enum": list(dict.fromkeys(one.type for one in of_status))},
            "code": {"enum": [one.code for one in of_status]},
        }
        schema = {
            "allOf": [{"$ref": "#/components/schemas/Error"}],
            "properties": {"error": {"properties": codes}},
        }
        answers[str(status)] = {
            "description": "; ".join(f"`{one.code}`: {one.when}" for one in of_status),
            "headers": _references(*names),
            "content": {"application/json": {"schema": schema}},
        }
    for status, answer in row.answers.items():
        answers[str(status)] = {**answer, "headers": _references("x-request-id", "x-client-request-id")}
    return dict(sorted(answers.items()))


def _references(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _header(name: str) -> dict[str, Any]:
    description, schema = HEADERS[name]
    return {"description": description, "required": name in _ALWAYS, "schema": dict(schema)}


class OpenApiEndpoint:
    """The document of these operations and its own, made once."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._body = orjson.dumps(document([*operations, *self.operations()]))
        self._headers = {"etag": f'"{hashlib.sha256(self._body).hexdigest()[:32]}"', "cache-control": KEPT}
        self._headers |= ANY_PAGE
        self._documents = Sending(MAX_DOCUMENTS, DOCUMENTS_AT_ONCE)

    def operations(self) -> Sequence[Operation]:
        return [
            Operation(
                id="get_openapi",
                tag=Tag.SERVICE,
                method="GET",
                path=OPENAPI_PATH,
                handler=self.read,
                summary="This document",
                reply=OpenApi,
                security="none",
                reply_headers=("etag", "cache-control"),
                errors=(Kind.RATE_LIMIT,),
                answers={304: {"description": "unchanged: `If-None-Match` names its ETag"}},
            )
        ]

    async def read(self, request: Request) -> Response:
        """Send the document; no key is needed. Raises ApiError 429 above MAX_DOCUMENTS."""
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if known & {self._headers["etag"], "*"}:
            return Response(status_code=304, headers=self._headers)
        reply = Response(self._body, media_type="application/json", headers=self._headers)
        return self._documents.bounded("everybody", reply)
