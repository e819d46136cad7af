"""OpenAI's Images API in both directions. Pure: bytes → order, result → bytes."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from config.catalogue import Catalogue, Model
from metering.money import format_mxn
from metering.ports import ResponseFormat
from proxy.errors import ApiError, Kind
from proxy.messages import (
    COMPRESSION,
    DID_YOU_MEAN,
    EMPTY,
    HOLDS_NUL,
    METADATA_KEY,
    METADATA_LARGE,
    METADATA_PAIRS,
    MISSING,
    NO_BOOLEAN,
    NO_INTEGER,
    NO_MAPPING,
    NO_MODEL,
    NO_OBJECT,
    NO_PARTIAL_IMAGES,
    NO_PRICE,
    NO_STREAM,
    NO_STRING,
    NO_TARGET,
    NOT_JSON,
    NOT_TAKEN,
    NOT_WITHIN,
    ONE_OF,
    ONE_OF_MODEL,
    SEE_MODELS,
    TAG,
    TAGS,
    TOO_LONG,
    TOO_LONG_FOR,
    TRANSPARENT,
    UNKNOWN_FIELD,
    Text,
)
from proxy.orders.result import Result, public_id
from proxy.ports import Order

PROMPT_CHARACTERS = 4000
MAX_IMAGES = 8
DEFAULT_SIZE = "1024x1024"

END_USER_CHARACTERS = 512
"""Of `user` and `safety_identifier`: an id, an address, or a hash of either. OpenAI names 64 for the latter."""

MAX_METADATA_PAIRS, METADATA_KEY_CHARACTERS, METADATA_VALUE_CHARACTERS = 16, 64, 512
"""OpenAI's own limits."""

METADATA_BYTES = 12 * 1024
"""Of all pairs as JSON: the most that OpenAI allows, in ASCII. They lie in Redis, the journal and the event."""

WEBHOOK_CHARACTERS = 2_048

GENERATION = "image.generation"
"""`object` of an order that has no images yet, or none at all. With them it is a `list`, as OpenAI has it."""

MAX_TAGS, TAG_CHARACTERS = 16, 64
TAGS_HEADER = "x-ghub-tags"

_BROKEN: Mapping[str, Text] = {
    "string_type": NO_STRING,
    "int_type": NO_INTEGER,
    "bool_type": NO_BOOLEAN,
    "dict_type": NO_MAPPING,
    "missing": MISSING,
    "string_too_short": EMPTY,
}
"""Message for a field that breaks its model's rule, by pydantic's name of the rule."""


EndUser = Annotated[str, Field(max_length=END_USER_CHARACTERS, pattern=r"^[^\u0000]*$")]
MetadataKey = Annotated[str, Field(min_length=1, max_length=METADATA_KEY_CHARACTERS, pattern=r"^[^,=\u0000]*$")]
MetadataValue = Annotated[str, Field(max_length=METADATA_VALUE_CHARACTERS, pattern=r"^[^\u0000]*$")]


class OrderBody(BaseModel):
    """An order. Sizes, qualities and the fields after `partial_images` are each model's own; null is the same as unset.

    So are `auto`, `default` and OpenAI's own defaults where a model knows no such word.
    """

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
    user: Annotated[EndUser, Field(description="Whose image it is; told to models that take it.")] | None = None
    safety_identifier: Annotated[EndUser, Field(description="Whose image it is; told to no model.")] | None = None
    metadata: (
        Annotated[
            dict[MetadataKey, MetadataValue],
            Field(
                max_length=MAX_METADATA_PAIRS,
                description=f"Groups of GET /v1/usage; at most {METADATA_BYTES} bytes as JSON. No part of the order.",
            ),
        ]
        | None
    ) = None
    response_format: Annotated[ResponseFormat, Field(description="If unset, the key's own, or `url`.")] | None = None
    webhook: (
        Annotated[
            str,
            Field(
                max_length=WEBHOOK_CHARACTERS,
                pattern=r"^[\x21-\x7e]*$",
                description="With `Prefer: respond-async`: the https address that is called at the order's end, signed"
                " with the organisation's secret. No part of the order.",
            ),
        ]
        | None
    ) = None
    stream: Annotated[bool, Field(description="Not offered.", json_schema_extra={"const": False})] | None = None
    partial_images: Annotated[int, Field(description="Not offered.", json_schema_extra={"const": 0})] | None = None
    output_format: str | None = None
    output_compression: int | None = None
    background: str | None = None
    moderation: str | None = None
    style: str | None = None


_KNOWN = frozenset(OrderBody.model_fields)

_BY_MODEL = ("output_format", "output_compression", "background", "moderation", "style", "user")
"""Fields that some models accept.

They are mapped as the catalogue says, or refused by name. A field that would change the picture is never dropped
silently.
"""

_USUAL: Mapping[str, frozenset[str]] = {
    "size": frozenset({"auto", "default"}),
    "quality": frozenset({"auto", "default", "standard"}),
    "output_format": frozenset({"auto", "default"}),
    "background": frozenset({"auto", "default"}),
    "moderation": frozenset({"auto", "default"}),
    "style": frozenset({"auto", "default", "vivid"}),
}
"""Words for the default result, which clients send with every order.

They are the same as unset if the model has no such word of its own.
"""

_NEAR = 0.65
"""Minimum similarity of two models' names, from 0 to 1, for a suggestion. dall-e-2 and dall-e-3 have 0.875,
flux-pro-1.1 and flux-1.1-pro 0.67, gpt-4o and gpt-image-1 0.47.
"""


def parse_order(body: bytes, catalogue: Catalogue, response_format: str = "url", tags: Sequence[str] = ()) -> Order:
    """Parse the request's body as an order. Raises ApiError that names the field. JSON null is the same as unset.

    `response_format` holds if the body has none. `tags` are those of the request's header.
    """
    request = _read(body)
    if not request.prompt.strip():
        raise _wrong("prompt", EMPTY.of(name="prompt"))
    if request.stream:
        raise _wrong("stream", NO_STREAM)
    if request.partial_images:
        raise _wrong("partial_images", NO_PARTIAL_IMAGES)
    return _against_catalogue(request, catalogue, response_format, _tags(tags), _metadata(request))


def _tags(named: Sequence[str]) -> str | None:
    """Encode tags as JSON, each once, in their order. Raises ApiError; None if there are none."""
    tags = [*dict.fromkeys(tag for one in named if (tag := one.strip(" \t")))]
    if len(tags) > MAX_TAGS:
        raise _wrong(TAGS_HEADER, TAGS.of(count=len(tags), most=MAX_TAGS))
    for tag in tags:
        if len(tag) > TAG_CHARACTERS or not tag.isprintable():
            raise _wrong(TAGS_HEADER, TAG.of(tag=_printable(tag), most=TAG_CHARACTERS))
    return orjson.dumps(tags).decode() if tags else None


def _metadata(request: OrderBody) -> str | None:
    """Encode metadata as JSON. Raises ApiError; None if there are none."""
    if not request.metadata:
        return None
    encoded = orjson.dumps(request.metadata)
    if len(encoded) > METADATA_BYTES:
        raise _wrong("metadata", METADATA_LARGE.of(count=len(encoded), most=METADATA_BYTES))
    return encoded.decode()


def _printable(text: str) -> str:
    """Return the beginning of what a customer sent, for a message."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text[:64])


def _read(body: bytes) -> OrderBody:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _wrong(None, NOT_JSON) from None
    if not isinstance(document, dict):
        raise _wrong(None, NO_OBJECT)
    fields = {name: value for name, value in document.items() if value is not None}
    for name in fields:  # only the first: a body may have ten thousand, and the model would collect them all
        if name not in _KNOWN:
            raise _wrong(name[:64], UNKNOWN_FIELD.of(name=name[:64]))
    try:
        return OrderBody.model_validate(fields)
    except ValidationError as error:
        raise _broken(error.errors(include_url=False)[0]) from None


def _broken(rule: ErrorDetails) -> ApiError:
    """Build the customer's error for the first rule of the model that a body breaks."""
    name, *inside = map(str, rule["loc"])
    value = rule["input"]
    if inside[1:]:
        return _wrong(name, METADATA_KEY.of(key=_printable(inside[0]), most=METADATA_KEY_CHARACTERS))
    field = ".".join([name, *map(_printable, inside)])
    match rule["type"]:
        case "string_too_long":
            said = TOO_LONG.of(name=field, count=len(value), most=rule["ctx"]["max_length"])
        case "too_long":
            said = METADATA_PAIRS.of(count=len(value), most=MAX_METADATA_PAIRS)
        case "string_pattern_mismatch" if name == "webhook":
            said = NO_TARGET.of(name=name)
        case "string_pattern_mismatch":
            said = HOLDS_NUL.of(name=field)
        case "greater_than_equal" | "less_than_equal":
            said = NOT_WITHIN.of(name=name, value=value, least=1, most=MAX_IMAGES)
        case "literal_error":
            said = ONE_OF.of(name=name, values="url, b64_json")
        case broken:
            said = _BROKEN[broken].of(name=field)
    return _wrong(name, said)


def _against_catalogue(
    request: OrderBody, catalogue: Catalogue, response_format: str, tags: str | None, metadata: str | None
) -> Order:
    model_id = request.model
    model = catalogue.models.get(model_id)
    if model is None:
        raise no_model(model_id, catalogue)
    if not model.priced:
        raise ApiError(Kind.MODEL_NOT_FOUND, NO_PRICE.of(model=model_id), param="model")
    if (count := len(request.prompt)) > (most := model.prompt_characters):
        raise _wrong("prompt", TOO_LONG_FOR.of(name="prompt", count=count, most=most, model=model_id))
    size = _unless_usual("size", request.size, model.sizes)
    size = DEFAULT_SIZE if size is None else size
    if size not in model.sizes:
        raise _wrong("size", _one_of("size", model_id, model.sizes))
    quality = _unless_usual("quality", request.quality, model.qualities)
    if model.qualities and quality is not None:
        if quality not in model.qualities:
            raise _wrong("quality", _one_of("quality", model_id, model.qualities))
        quality = model.qualities[quality]
    elif model.qualities:
        quality = model.usual_quality
    return Order(
        model_id=model_id,
        model=model,
        prompt=request.prompt,
        n=1 if request.n is None else request.n,
        size=size,
        quality=quality if model.qualities else None,
        fields=_mapped(request, model_id, model),
        response_format=request.response_format or response_format,
        user=request.user,
        safety_identifier=request.safety_identifier,
        tags=tags,
        metadata=metadata,
        webhook=request.webhook,
    )


def no_model(model_id: str, catalogue: Catalogue) -> ApiError:
    """Build the 404 for an unknown model, with the name that was probably meant, if there is one."""
    meant = _meant(model_id[:64].strip().lower(), [name for name, model in catalogue.models.items() if model.priced])
    hint = SEE_MODELS if meant is None else DID_YOU_MEAN.of(it=meant).then(SEE_MODELS)
    return ApiError(Kind.MODEL_NOT_FOUND, NO_MODEL.of(model=model_id[:64]).then(hint), param="model")


def _meant(name: str, offered: Iterable[str]) -> str | None:
    """Find the offered model with the nearest name, ignoring the provider before it."""
    names = {model.rpartition("/")[2]: model for model in offered}
    near = get_close_matches(name.rpartition("/")[2], names, n=1, cutoff=_NEAR)
    return names[near[0]] if near else None


def _unless_usual(name: str, value: str | None, words: Collection[str]) -> str | None:
    """Return the field's value, or None if it only asks for the default."""
    return None if value in _USUAL[name] and value not in words else value


def _one_of(name: str, model_id: str, words: Iterable[str]) -> Text:
    return ONE_OF_MODEL.of(name=name, model=model_id, values=", ".join(words))


def _mapped(request: OrderBody, model_id: str, model: Model) -> dict[str, str | int]:
    """Map the fields of `_BY_MODEL` to what the upstream receives."""
    mapped: dict[str, str | int] = {}
    for name in _BY_MODEL:
        value, rule = getattr(request, name), model.fields.get(name)
        if name in _USUAL:
            value = _unless_usual(name, value, (rule.values or ()) if rule is not None else ())
        if value is None or (rule is None and name == "user"):
            continue
        if rule is None:
            raise _wrong(name, NOT_TAKEN.of(model=model_id, name=name))
        if rule.values is not None:
            if value not in rule.values:
                raise _wrong(name, _one_of(name, model_id, rule.values))
            value = rule.values[value]
        elif rule.most is not None and not 0 <= value <= rule.most:
            raise _wrong(name, NOT_WITHIN.of(name=name, value=value, least=0, most=rule.most))
        elif rule.characters is not None and len(value) > rule.characters:
            raise _wrong(name, TOO_LONG.of(name=name, count=len(value), most=rule.characters))
        mapped[name] = value
    file = _unless_usual("output_format", request.output_format, ()) or "png"
    if request.background == "transparent" and file == "jpeg":
        raise _wrong("background", TRANSPARENT)
    if "output_compression" in mapped and file == "png":
        raise _wrong("output_compression", COMPRESSION)
    return mapped


def _wrong(param: str | None, message: Text) -> ApiError:
    return ApiError(Kind.INVALID_REQUEST, message, param=param)


def fingerprint(order: Order) -> str:
    """Compute a hex digest that is equal for two orders exactly if they ask for the same, for the same end user.

    Tags, metadata and webhook are no part of it: a retry may carry others. Nor is whether its client waits.
    """
    end_user = {"user": order.user, "safety_identifier": order.safety_identifier}
    fields = {**order.fields, **{name: value for name, value in end_user.items() if value is not None}}
    canonical = (
        order.model_id,
        order.prompt,
        order.n,
        order.size,
        order.quality,
        sorted(fields.items()),
        order.response_format,
    )
    return hashlib.sha256(orjson.dumps(canonical)).hexdigest()


def key_hash(key: str, scope: str = "") -> str:
    """Hash an `Idempotency-Key`. The same key in another scope has another hash. No scope contains a NUL."""
    return hashlib.sha256(f"{scope}\0{key}".encode() if scope else key.encode()).hexdigest()


def result_document(result: Result, items: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Build the 200 of POST /v1/images/generations. An item has `url` or `b64_json`, and perhaps `revised_prompt`.

    The cost is that of the order, also in a replay.
    """
    return {
        "id": result.public_id,
        "object": "list",
        "created": result.created_s,
        "model": result.model_id,
        "served_model": result.served,
        "cost_mxn": format_mxn(result.cost_micro_mxn),
        "data": items,
        **result.echo,
        **({"usage": result.usage} if result.usage is not None else {}),
    }


def result_reply(result: Result, items: Sequence[Mapping[str, str]]) -> bytes:
    """Encode `result_document` as JSON."""
    return orjson.dumps(result_document(result, items))


def open_document(order_id: str, model_id: str, status: str, created_s: int, held_micro_mxn: int) -> dict[str, Any]:
    """Build what is said of an order that is not delivered yet: what is held for it, and not what it is charged."""
    return {
        "id": public_id(order_id),
        "object": GENERATION,
        "created": created_s,
        "model": model_id,
        "status": status,
        "held_mxn": format_mxn(held_micro_mxn),
        "data": [],
    }
