"""OpenAI's Images API in both directions. Pure: bytes → order, result → bytes."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from config.catalogue import Catalogue, Model
from proxy.errors import ApiError, Kind
from proxy.ports import Order
from proxy.results import Result

PROMPT_CHARACTERS = 4000
MAX_IMAGES = 8
DEFAULT_SIZE = "1024x1024"

_TYPES: dict[str, tuple[type, str]] = {
    "model": (str, "a string"),
    "prompt": (str, "a string"),
    "n": (int, "an integer"),
    "size": (str, "a string"),
    "quality": (str, "a string"),
    "response_format": (str, "a string"),
    "stream": (bool, "true or false"),
    "output_format": (str, "a string"),
    "output_compression": (int, "an integer"),
    "background": (str, "a string"),
    "moderation": (str, "a string"),
    "style": (str, "a string"),
    "user": (str, "a string"),
}
_BY_MODEL = ("output_format", "output_compression", "background", "moderation", "style", "user")
"""Fields that some models take: mapped as the catalogue says, or refused by name, never dropped in silence."""


def parse_order(body: bytes, catalogue: Catalogue) -> Order:
    """The request's body as an order. Raises ApiError that names the field; JSON null is the same as unset."""
    fields = _fields(body)
    for name in ("model", "prompt"):
        if name not in fields:
            raise _wrong(name, f"`{name}` is required.")
    prompt = fields["prompt"]
    if not prompt.strip():
        raise _wrong("prompt", "`prompt` is empty.")
    _check_length(prompt, PROMPT_CHARACTERS, "are allowed")
    n = fields.get("n", 1)
    if not 1 <= n <= MAX_IMAGES:
        raise _wrong("n", f"`n` is {n}; it must be from 1 to {MAX_IMAGES}.")
    if fields.get("response_format", "url") not in ("url", "b64_json"):
        raise _wrong("response_format", "`response_format` must be `url` or `b64_json`.")
    if fields.get("stream", False):
        raise _wrong("stream", "`stream` must be false: partial images are not offered.")
    return _against_catalogue(fields, prompt, n, catalogue)


def _check_length(prompt: str, most: int, words: str) -> None:
    if len(prompt) > most:
        raise _wrong("prompt", f"`prompt` has {len(prompt)} characters; at most {most} {words}.")


def _fields(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _wrong(None, "The body is not valid JSON.") from None
    if not isinstance(document, dict):
        raise _wrong(None, "The body must be a JSON object.")
    fields = {name: value for name, value in document.items() if value is not None}
    for name, value in fields.items():
        if name not in _TYPES:
            raise _wrong(name[:64], f"`{name[:64]}` is not a field that this gateway takes.")
        wanted, text = _TYPES[name]
        if type(value) is not wanted:
            raise _wrong(name, f"`{name}` must be {text}.")
    return fields


def _against_catalogue(fields: dict[str, Any], prompt: str, n: int, catalogue: Catalogue) -> Order:
    model_id = fields["model"]
    model = catalogue.models.get(model_id)
    if model is None:
        raise ApiError(Kind.MODEL_NOT_FOUND, f"There is no model `{model_id[:64]}`. See GET /v1/models.", param="model")
    if not model.priced:
        raise ApiError(Kind.MODEL_NOT_FOUND, f"`{model_id}` has no price yet, so it is not offered.", param="model")
    _check_length(prompt, model.prompt_characters, f"are allowed for `{model_id}`")
    size = fields.get("size", "auto")
    if size == "auto":
        size = DEFAULT_SIZE
    if size not in model.sizes:
        raise _wrong("size", f"`size` for `{model_id}` must be one of: {', '.join(model.sizes)}.")
    quality = fields.get("quality")
    if model.qualities and quality is not None:
        if quality not in model.qualities:
            raise _wrong("quality", f"`quality` for `{model_id}` must be one of: {', '.join(model.qualities)}.")
        quality = model.qualities[quality]
    return Order(
        model_id=model_id,
        model=model,
        prompt=prompt,
        n=n,
        size=size,
        quality=quality if model.qualities else None,
        fields=_mapped(fields, model_id, model),
        response_format=fields.get("response_format", "url"),
    )


def _mapped(fields: dict[str, Any], model_id: str, model: Model) -> dict[str, str | int]:
    """The fields of `_BY_MODEL` as the upstream is sent them."""
    mapped: dict[str, str | int] = {}
    for name in _BY_MODEL:
        if name not in fields:
            continue
        rule, value = model.fields.get(name), fields[name]
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
    asked = fields.get("output_format", "png")
    if fields.get("background") == "transparent" and asked == "jpeg":
        raise _wrong("background", "`background` can be `transparent` with `output_format` png or webp only.")
    if "output_compression" in mapped and asked == "png":
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
