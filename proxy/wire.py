"""OpenAI's Images API in both directions. Pure: bytes → order, result → bytes."""

from collections.abc import Sequence
from typing import Any

import orjson

from config.catalogue import Catalogue
from proxy.errors import ApiError, Kind
from proxy.ports import Order

PROMPT_CHARACTERS = 4000
MAX_IMAGES = 8
DEFAULT_SIZE = "1024x1024"
USER_CHARACTERS = 256

_TYPES: dict[str, tuple[type, str]] = {
    "model": (str, "a string"),
    "prompt": (str, "a string"),
    "n": (int, "an integer"),
    "size": (str, "a string"),
    "quality": (str, "a string"),
    "response_format": (str, "a string"),
    "stream": (bool, "true or false"),
    "user": (str, "a string"),
}


def parse_order(body: bytes, catalogue: Catalogue) -> Order:
    """The request's body as an order. Raises ApiError that names the field; JSON null is the same as unset."""
    fields = _fields(body)
    for name in ("model", "prompt"):
        if name not in fields:
            raise _wrong(name, f"`{name}` is required.")
    prompt = fields["prompt"]
    if not prompt.strip():
        raise _wrong("prompt", "`prompt` is empty.")
    if len(prompt) > PROMPT_CHARACTERS:
        raise _wrong("prompt", f"`prompt` has {len(prompt)} characters; at most {PROMPT_CHARACTERS} are allowed.")
    n = fields.get("n", 1)
    if not 1 <= n <= MAX_IMAGES:
        raise _wrong("n", f"`n` is {n}; it must be from 1 to {MAX_IMAGES}.")
    if fields.get("response_format", "url") != "url":
        raise _wrong("response_format", "`response_format` must be `url`: the images stay in storage.")
    if fields.get("stream", False):
        raise _wrong("stream", "`stream` must be false: partial images are not offered.")
    if len(fields.get("user", "")) > USER_CHARACTERS:
        raise _wrong("user", f"`user` has more than {USER_CHARACTERS} characters.")
    return _against_catalogue(fields, prompt, n, catalogue)


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
    if model.usd_per_image is None:
        raise ApiError(Kind.MODEL_NOT_FOUND, f"`{model_id}` has no price yet, so it is not offered.", param="model")
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
        user=fields.get("user"),
    )


def _wrong(param: str | None, message: str) -> ApiError:
    return ApiError(Kind.INVALID_REQUEST, message, param=param)


def images_reply(request_id: str, created_s: int, model_id: str, urls: Sequence[str]) -> bytes:
    """The 200 of POST /v1/images/generations."""
    return orjson.dumps(
        {
            "id": request_id,
            "object": "list",
            "created": created_s,
            "model": model_id,
            "data": [{"url": url} for url in urls],
        }
    )
