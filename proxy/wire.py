"""OpenAI's Images API in both directions. Pure: bytes → order, result → bytes."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from config.catalogue import Catalogue, Model
from metering.ports import ResponseFormat
from proxy.errors import ApiError, Kind
from proxy.ports import Order
from proxy.results import Result

PROMPT_CHARACTERS = 4000
MAX_IMAGES = 8
DEFAULT_SIZE = "1024x1024"

_ENDS: dict[str, str] = {
    "string_type": "must be a string.",
    "int_type": "must be an integer.",
    "bool_type": "must be true or false.",
    "missing": "is required.",
    "string_too_short": "is empty.",
}
"""What is said of a field that breaks its model, by pydantic's word for it."""


class OrderBody(BaseModel):
    """An order. Sizes, qualities and the fields after `stream` are each model's own; null is the same as unset."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        json_schema_extra={
            "examples": [{"model": "fal/flux-1.1-pro", "prompt": "Un axolotl en Xochimilco al amanecer", "n": 1}]
        },
    )

    model: Annotated[str, Field(description="An id of GET /v1/models.")]
    prompt: Annotated[
        str,
        Field(min_length=1, max_length=PROMPT_CHARACTERS, description="Not white space alone. Some models take less."),
    ]
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES, description="Images; each is charged. 1 if unset.")] | None = None
    size: Annotated[str, Field(description="One of the model's sizes, or `auto`: 1024x1024.")] | None = None
    quality: Annotated[str, Field(description="One of the model's qualities; passed over without any.")] | None = None
    response_format: Annotated[ResponseFormat, Field(description="If unset, the key's own, or `url`.")] | None = None
    stream: Annotated[bool, Field(json_schema_extra={"const": False})] | None = None
    output_format: str | None = None
    output_compression: int | None = None
    background: str | None = None
    moderation: str | None = None
    style: str | None = None
    user: str | None = None


_KNOWN = frozenset(OrderBody.model_fields)

_BY_MODEL = ("output_format", "output_compression", "background", "moderation", "style", "user")
"""Fields that some models take: mapped as the catalogue says, or refused by name, never dropped in silence."""


def parse_order(body: bytes, catalogue: Catalogue, response_format: str = "url") -> Order:
    """The request's body as an order. Raises ApiError that names the field; JSON null is the same as unset.

    `response_format` holds where the body has none.
    """
    asked = _asked(body)
    if not asked.prompt.strip():
        raise _wrong("prompt", "`prompt` is empty.")
    if asked.stream:
        raise _wrong("stream", "`stream` must be false: partial images are not offered.")
    return _against_catalogue(asked, catalogue, response_format)


def _too_long(prompt: str, most: int, words: str) -> ApiError:
    return _wrong("prompt", f"`prompt` has {len(prompt)} characters; at most {most} {words}.")


def _asked(body: bytes) -> OrderBody:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _wrong(None, "The body is not valid JSON.") from None
    if not isinstance(document, dict):
        raise _wrong(None, "The body must be a JSON object.")
    fields = {name: value for name, value in document.items() if value is not None}
    for name in fields:  # the first alone: a body may hold ten thousand, and the model would collect them all
        if name not in _KNOWN:
            raise _wrong(name[:64], f"`{name[:64]}` is not a field that this gateway takes.")
    try:
        return OrderBody.model_validate(fields)
    except ValidationError as error:
        raise _broken(error.errors(include_url=False)[0]) from None


def _broken(rule: ErrorDetails) -> ApiError:
    """The first rule of the model that a body breaks, as the customer is told it."""
    name, value = str(rule["loc"][0]), rule["input"]
    match rule["type"]:
        case "string_too_long":
            return _too_long(value, PROMPT_CHARACTERS, "are allowed")
        case "greater_than_equal" | "less_than_equal":
            said = f"is {value}; it must be from 1 to {MAX_IMAGES}."
        case "literal_error":
            said = "must be `url` or `b64_json`."
        case broken:
            said = _ENDS[broken]
    return _wrong(name, f"`{name}` {said}")


def _against_catalogue(asked: OrderBody, catalogue: Catalogue, response_format: str) -> Order:
    model_id = asked.model
    model = catalogue.models.get(model_id)
    if model is None:
        raise ApiError(Kind.MODEL_NOT_FOUND, f"There is no model `{model_id[:64]}`. See GET /v1/models.", param="model")
    if not model.priced:
        raise ApiError(Kind.MODEL_NOT_FOUND, f"`{model_id}` has no price yet, so it is not offered.", param="model")
    if len(asked.prompt) > model.prompt_characters:
        raise _too_long(asked.prompt, model.prompt_characters, f"are allowed for `{model_id}`")
    size = asked.size
    if size is None or size == "auto":
        size = DEFAULT_SIZE
    if size not in model.sizes:
        raise _wrong("size", f"`size` for `{model_id}` must be one of: {', '.join(model.sizes)}.")
    quality = asked.quality
    if model.qualities and quality is not None:
        if quality not in model.qualities:
            raise _wrong("quality", f"`quality` for `{model_id}` must be one of: {', '.join(model.qualities)}.")
        quality = model.qualities[quality]
    return Order(
        model_id=model_id,
        model=model,
        prompt=asked.prompt,
        n=1 if asked.n is None else asked.n,
        size=size,
        quality=quality if model.qualities else None,
        fields=_mapped(asked, model_id, model),
        response_format=asked.response_format or response_format,
    )


def _mapped(asked: OrderBody, model_id: str, model: Model) -> dict[str, str | int]:
    """The fields of `_BY_MODEL` as the upstream is sent them."""
    mapped: dict[str, str | int] = {}
    for name in _BY_MODEL:
        value = getattr(asked, name)
        if value is None:
            continue
        rule = model.fields.get(name)
        if rule is None:
            raise _wrong(name, f"`{model_id}` takes no `{name}`.")
        if rule.values is not None:
            if value not in rule.values:
                raise _wrong(name, f"`{name}` for `{model_id}` must be one of: {', '.join(rule.values)}.")
            value = rule.values[value]
        elif rule.most is not None and not 0 <= value <= rule.most:
            raise _wrong(name, f"`{name}` is {value}; it must be from 0 to {rule.most}.")
        elif rule.characters is not None and len(value) > rule.characters:
            raise _wrong(name, f"`{name}` has {len(value)} characters; at most {rule.characters} are allowed.")
        mapped[name] = value
    file = asked.output_format or "png"
    if asked.background == "transparent" and file == "jpeg":
        raise _wrong("background", "`background` can be `transparent` with `output_format` png or webp only.")
    if "output_compression" in mapped and file == "png":
        raise _wrong("output_compression", "`output_compression` needs an `output_format` of jpeg or webp.")
    return mapped


def _wrong(param: str | None, message: str) -> ApiError:
    return ApiError(Kind.INVALID_REQUEST, message, param=param)


def fingerprint(order: Order) -> str:
    """The same for two orders exactly where they ask for the same: a hex digest."""
    canonical = (
        order.model_id,
        order.prompt,
        order.n,
        order.size,
        order.quality,
        sorted(order.fields.items()),
        order.response_format,
    )
    return hashlib.sha256(orjson.dumps(canonical)).hexdigest()


def key_hash(key: str, scope: str = "") -> str:
    """By which an `Idempotency-Key` is known: the same key in another scope is another. No scope has a NUL in it."""
    return hashlib.sha256(f"{scope}\0{key}".encode() if scope else key.encode()).hexdigest()


def result_document(result: Result, items: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The 200 of POST /v1/images/generations; an item has `url` or `b64_json`, and perhaps `revised_prompt`."""
    return {
        "id": result.public_id,
        "object": "list",
        "created": result.created_s,
        "model": result.model_id,
        "served_model": result.served,
        "data": items,
        **result.echo,
        **({"usage": result.usage} if result.usage is not None else {}),
    }


def result_reply(result: Result, items: Sequence[Mapping[str, str]]) -> bytes:
    """The same as JSON."""
    return orjson.dumps(result_document(result, items))
