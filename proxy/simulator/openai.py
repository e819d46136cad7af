"""OpenAI's Images API: POST /openai/v1/images/generations, for gpt-image-1."""

import asyncio
import base64
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from proxy.simulator.answers import Streamed, json_answer, spoil
from proxy.simulator.behaviour import Play
from proxy.simulator.client import Client
from proxy.simulator.files import HTML
from proxy.simulator.jobs import Job
from proxy.simulator.world import World

MODELS = ("openai/gpt-image-1",)
SCENARIOS = {
    "moderation_blocked": "Accepts the job, then refuses it with 400 moderation_blocked. Not billed.",
    "fewer_images": "Answers with one image less than asked for; only those are billed.",
    "bad_base64": "The last image, or with `all` every one, is no base64. Billed.",
    "empty_image": "The last image, or with `all` every one, is an empty string. Billed.",
    "html_as_image": "The last image, or with `all` every one, is a page of HTML in base64. Billed.",
}

SIZES = ("1024x1024", "1536x1024", "1024x1536")
# Output tokens of one image, by quality, in the order of SIZES.
OUTPUT_TOKENS = {"low": (272, 408, 400), "medium": (1056, 1584, 1568), "high": (4160, 6240, 6208)}
PROMPT_CHARS_MAX = 32_000
USER_CHARS_MAX = 1_000
INTERNAL_URL = "http://10.0.7.31:8500/internal/render?trace=1"


class RefusalError(Exception):
    """The request is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None,
        param: str | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.headers = headers
        self.status = status
        self.code = code
        self.param = param


@dataclass(frozen=True, slots=True)
class Order:
    model: str  # public id
    prompt: str
    n: int
    size: str
    quality: str
    output_format: str
    background: str


def routes(world: World) -> list[Route]:
    api = OpenAI(world)
    return [
        Route("/openai/v1/images/generations", api.generate, methods=["POST"]),
        Route("/openai/{path:path}", api.unknown, methods=["GET", "POST", "PUT", "DELETE"]),
    ]


class OpenAI:
    def __init__(self, world: World) -> None:
        self._world = world

    async def generate(self, request: Request) -> ASGIApp:
        """The endpoint: refuse, or accept and then answer in the way that the current scenario wants."""
        request_id = f"req_{uuid4().hex}"
        started = time.monotonic()
        try:
            key = bearer(request)
            order = parse(await request.body())
            play = self._world.behaviour.next(order.model)
            refuse(play)
        except RefusalError as error:
            return failure(error, {"x-request-id": request_id})

        job = self._world.jobs.accept(Job("openai", order.model, request.url.path, request_id, order.n))
        client = Client.of(request.scope)
        client.on_leave(job.lose_client)
        await asyncio.sleep(self._world.work_s(order.model, play))
        headers = {
            "x-request-id": request_id,
            "openai-version": "2020-10-01",
            "openai-processing-ms": f"{(time.monotonic() - started) * 1000:.0f}",
        }
        try:
            fail(play, request_id, key)
        except RefusalError as error:
            job.fail()
            return failure(error, headers)
        images = [await self._image(order, index, play) for index in range(order.n)]
        if play.scenario == "fewer_images":
            images.pop()
        job.finish(len(images))
        return spoil(play.scenario, Streamed(body(order, images), headers | {"content-type": "application/json"}))

    async def unknown(self, request: Request) -> Response:
        message = f"Invalid URL ({request.method} {request.url.path.removeprefix('/openai')})"
        return failure(RefusalError(404, message, None), {"x-request-id": f"req_{uuid4().hex}"})

    async def _image(self, order: Order, index: int, play: Play) -> bytes:
        if play.strikes(index, order.n):
            match play.scenario:
                case "bad_base64":
                    return b"@@@@ this is no base64 @@@@"
                case "empty_image":
                    return b""
                case "html_as_image":
                    return base64.b64encode(HTML)
        width, height = map(int, order.size.split("x"))
        picture = self._world.picture(
            play,
            model=order.model,
            prompt=order.prompt,
            width=width,
            height=height,
            format=order.output_format,
            index=index,
            seed=self._world.seed,
        )
        return (await self._world.studio.draw(picture, keep=play.same)).base64


def body(order: Order, images: list[bytes]) -> list[bytes]:
    """The reply as pieces of JSON. Base64 needs no escaping, so the images go in without a copy."""
    text_tokens = math.ceil(len(order.prompt) / 4)
    output_tokens = len(images) * OUTPUT_TOKENS[order.quality][SIZES.index(order.size)]
    echo = {
        "output_format": order.output_format,
        "quality": order.quality,
        "size": order.size,
        "usage": {
            "input_tokens": text_tokens,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": text_tokens},
            "output_tokens": output_tokens,
            "output_tokens_details": {"image_tokens": output_tokens, "text_tokens": 0},
            "total_tokens": text_tokens + output_tokens,
        },
    }
    head = orjson.dumps({"created": int(time.time()), "background": order.background})
    pieces = [head[:-1], b',"data":[']
    for index, image in enumerate(images):
        pieces += [b',{"b64_json":"' if index else b'{"b64_json":"', image, b'"}']
    return [*pieces, b"],", orjson.dumps(echo)[1:]]


def failure(error: RefusalError, headers: dict[str, str]) -> Response:
    match error.status, error.code:
        case _, "moderation_blocked":
            error_type = "image_generation_user_error"
        case 429, _:
            error_type = "requests"
        case status, _ if status >= 500:
            error_type = "server_error"
        case _:
            error_type = "invalid_request_error"
    envelope = {"message": str(error), "type": error_type, "param": error.param, "code": error.code}
    return json_answer({"error": envelope}, error.status, {**headers, **error.headers})


def refuse(play: Play) -> None:
    """RefusalError if the scenario keeps the job from being accepted."""
    match play.scenario:
        case "http_503":
            raise RefusalError(503, "The engine is overloaded, try again later.", None)
        case "rate_limited_429":
            message = "Rate limit exceeded for images per minute. Limit: 5/1min. Try again later."
            retry = {"retry-after": f"{play.seconds or 1:g}"}
            raise RefusalError(429, message, "rate_limit_exceeded", headers=retry)
        case "unauthorized_401":
            raise RefusalError(401, "Incorrect API key provided.", "invalid_api_key")


def fail(play: Play, request_id: str, key: str) -> None:
    """RefusalError if the scenario lets the accepted job fail."""
    match play.scenario:
        case "http_500":
            raise RefusalError(500, f"The server had an error, request ID {request_id}.", None)
        case "moderation_blocked":
            message = (
                "Your request was rejected by the safety system, "
                f"request ID {request_id}. safety_violations=[violence]."
            )
            raise RefusalError(400, message, "moderation_blocked")
        case "secret_in_error":
            message = f"Upstream call to {INTERNAL_URL} with key {key} was refused."
            raise RefusalError(400, message, "invalid_value")


def bearer(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise RefusalError(401, "You didn't provide an API key in an Authorization header with Bearer auth.", None)
    return key.strip()


def parse(raw: bytes) -> Order:
    """The order in a request's body. RefusalError as the real API gives it."""
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise RefusalError(400, "The JSON body of the request could not be parsed.", None) from None
    if not isinstance(fields, dict):
        raise RefusalError(400, "The JSON body of the request must be an object.", None)
    given = {name: value for name, value in fields.items() if value is not None}

    model = given.pop("model", "dall-e-2")
    if model != "gpt-image-1":
        raise RefusalError(404, f"The model '{model}' does not exist.", "model_not_found", "model")
    if "prompt" not in given:
        raise RefusalError(400, "Missing required parameter: 'prompt'.", "missing_required_parameter", "prompt")
    prompt = text(given, "prompt", PROMPT_CHARS_MAX)
    n = whole(given, "n", 1, 10, 1)
    size = choice(given, "size", (*SIZES, "auto"))
    quality = choice(given, "quality", (*OUTPUT_TOKENS, "auto"))
    background = choice(given, "background", ("transparent", "opaque", "auto"))
    output_format = choice(given, "output_format", ("png", "jpeg", "webp"), "png")
    choice(given, "moderation", ("low", "auto"))
    text(given, "user", USER_CHARS_MAX)
    whole(given, "partial_images", 0, 3, 0)
    if given.pop("stream", False) is not False:
        raise RefusalError(400, "Streaming is not simulated.", "unsupported_value", "stream")
    if whole(given, "output_compression", 0, 100, 100) < 100 and output_format == "png":
        message = "Compression below 100 is not supported for the output format png."
        raise RefusalError(400, message, "invalid_png_output_compression", "output_compression")
    if background == "transparent" and output_format == "jpeg":
        message = "A transparent background is not supported for the output format jpeg."
        raise RefusalError(400, message, "invalid_value", "background")
    for name in given:
        raise RefusalError(400, f"Unknown parameter: '{name}'.", "unknown_parameter", name)
    return Order(
        model=MODELS[0],
        prompt=prompt,
        n=n,
        size=SIZES[0] if size == "auto" else size,
        quality="high" if quality == "auto" else quality,
        output_format=output_format,
        background="opaque" if background == "auto" else background,
    )


def text(given: dict[str, Any], name: str, chars_max: int) -> str:
    value = given.pop(name, "")
    if not isinstance(value, str):
        raise RefusalError(400, f"Invalid type for '{name}': expected a string.", "invalid_type", name)
    if len(value) > chars_max:
        message = f"Invalid '{name}': string too long. Expected a maximum length of {chars_max}."
        raise RefusalError(400, message, "string_above_max_length", name)
    return value


def whole(given: dict[str, Any], name: str, least: int, most: int, default: int) -> int:
    value = given.pop(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise RefusalError(400, f"Invalid type for '{name}': expected an integer.", "invalid_type", name)
    if value < least:
        message = f"Invalid '{name}': expected a value of at least {least}, got {value}."
        raise RefusalError(400, message, "integer_below_min_value", name)
    if value > most:
        message = f"Invalid '{name}': expected a value of at most {most}, got {value}."
        raise RefusalError(400, message, "integer_above_max_value", name)
    return value


def choice(given: dict[str, Any], name: str, options: tuple[str, ...], default: str = "auto") -> str:
    value = given.pop(name, default)
    if not isinstance(value, str) or value not in options:
        known = ", ".join(f"'{option}'" for option in options)
        message = f"Invalid value: {value!r}. Supported values are: {known}."
        raise RefusalError(400, message, "invalid_value", name)
    return value
