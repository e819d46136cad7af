"""OpenAI's Images API: POST /openai/v1/images/generations, for dall-e-3, gpt-image-1 and its successors."""

import asyncio
import base64
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from simulator import files, inline
from simulator.answers import INTERNAL_URL, Streamed, json_answer, redirect, secrets, spoil
from simulator.behaviour import LONG_PROMPT_SCENARIO, Play
from simulator.client import Client
from simulator.files import File
from simulator.jobs import Job
from simulator.world import World

NAME = "openai"
ADDRESSES = {"url": "/openai/v1"}
GPT_IMAGE_1, DALL_E_3, GPT_IMAGE_2 = "openai/gpt-image-1", "openai/dall-e-3", "openai/gpt-image-2"
SUCCESSORS = (
    GPT_IMAGE_2,
    *(f"openai/gpt-image-{version}-{kind}" for version in ("2.5", "2.6") for kind in ("flare", "sunburst")),
)
BOTH = {
    "fewer_images": "Answers with one image less than asked for, or `last` less; only the others are billed.",
    "insufficient_quota_429": "The account has nothing left: 429 insufficient_quota. Not accepted, so not a job.",
    **inline.SCENARIOS,
}
GPT = {
    "moderation_blocked": "Accepts the job, then refuses it with 400 moderation_blocked. Not billed.",
    "moderation_blocked_output": "As moderation_blocked, but found in the picture; names stage and categories.",
    "unverified_403": "The organisation is not verified: 403. Not accepted, so not a job.",
    "many_tokens": "The usage is ten times that of the size and quality. Billed.",
    "cached_tokens": "Half of the prompt's tokens were cached, and the usage says so. Billed.",
    **BOTH,
}
SCENARIOS = {
    GPT_IMAGE_1: GPT,
    DALL_E_3: {
        "content_policy_violation": "Accepts the job, then refuses it with 400 content_policy_violation. Not billed.",
        **BOTH,
        **LONG_PROMPT_SCENARIO,
        **files.SCENARIOS,
    },
    **dict.fromkeys(SUCCESSORS, GPT),
}
# Seconds, (P50, P95). A successor without figures of its own has its predecessor's; 126 s were measured for one.
LATENCY_S = {
    GPT_IMAGE_1: (15.0, 45.0),
    DALL_E_3: (8.0, 20.0),
    **dict.fromkeys(SUCCESSORS, (15.0, 45.0)),
    f"{GPT_IMAGE_2}/high": (126.0, 190.0),
}

SIZES = ("1024x1024", "1536x1024", "1024x1536")
DALL_E_SIZES = ("1024x1024", "1792x1024", "1024x1792")
# Output tokens of one image, by quality, in the order of SIZES.
OUTPUT_TOKENS = {"low": (272, 408, 400), "medium": (1056, 1584, 1568), "high": (4160, 6240, 6208)}
QUALITY_FACTORS = {"low": 16, "medium": 48, "high": 96}  # of gpt-image-2's output tokens
SUCCESSOR_PIXELS = (655_360, 8_294_400)
SUCCESSOR_EDGE_MAX, SUCCESSOR_EDGE_STEP, SUCCESSOR_RATIO_MAX = 3_840, 16, 3
PROMPT_CHARS_MAX = 32_000
DALL_E_PROMPT_CHARS_MAX = 4_000
USER_CHARS_MAX = 1_000


class RefusalError(Exception):
    """The request is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None,
        param: str | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.more = more
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
    output_format: str = "png"
    background: str | None = None
    compression: int = 100
    as_url: bool = False
    revised: str | None = None  # the prompt as the model understood it


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
        """Serve the endpoint: refuse, or accept and then answer as the current scenario says."""
        request_id = f"req_{uuid4().hex}"
        started = time.monotonic()
        try:
            key = bearer(request)
            order = parse(await request.body())
            play = self._world.behaviour.next(order.model)
            if play.scenario == "secret_in_redirect":
                return redirect(key)
            refuse(play, order.model)
        except RefusalError as error:
            return failure(error, {"x-request-id": request_id})

        job = self._world.jobs.accept(Job("openai", order.model, request.url.path, request_id, order.n))
        client = Client.of(request.scope)
        client.on_leave(job.lose_client)
        await asyncio.sleep(self._world.work_s(order.model, play, order.quality))
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
        count = play.spared(order.n) if play.scenario == "fewer_images" else order.n
        items = [await self._item(order, index, play, key, str(request.base_url)) for index in range(count)]
        job.finish(count)
        reply = Streamed(body(order, items, play), headers | {"content-type": "application/json"})
        return spoil(play.scenario, reply, key)

    async def unknown(self, request: Request) -> Response:
        message = f"Invalid URL ({request.method} {request.url.path.removeprefix('/openai')})"
        return failure(RefusalError(404, message, None), {"x-request-id": f"req_{uuid4().hex}"})

    async def _item(self, order: Order, index: int, play: Play, key: str, base_url: str) -> list[bytes]:
        """Build one element of `data` as pieces of JSON. Base64 needs no escaping, so the image is not copied."""
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
            compression=order.compression,
            transparent=order.background == "transparent",
        )
        struck = play.strikes(index, order.n)
        revised = {} if order.revised is None else {"revised_prompt": play.revised(order.revised)}
        if order.as_url:
            signature = base64.b64encode(self._world.random.randbytes(32)).decode()
            file = File(picture, play.same, play.scenario if struck else "ok", key, signature)
            return [orjson.dumps(revised | {"url": self._world.files.add(file, base_url)})]
        head = orjson.dumps(revised)[:-1] + (b"," if revised else b"")
        return [head + b'"b64_json":"', await inline.encoded(self._world, play, struck, picture), b'"}']


def body(order: Order, items: list[list[bytes]], play: Play) -> list[bytes]:
    """Build the reply as pieces of JSON."""
    head: dict[str, Any] = {"created": int(time.time())}
    if order.background is not None:
        head["background"] = order.background
    pieces = [orjson.dumps(head)[:-1], b',"data":[']
    for place, item in enumerate(items):
        pieces += [b",", *item] if place else item
    if order.model == DALL_E_3:
        return [*pieces, b"]}"]
    text_tokens = math.ceil(len(order.prompt) / 4)
    output_tokens = len(items) * output_tokens_of(order) * (10 if play.scenario == "many_tokens" else 1)
    details: dict[str, Any] = {"image_tokens": 0, "text_tokens": text_tokens}
    if play.scenario == "cached_tokens":
        cached = {"image_tokens": 0, "text_tokens": text_tokens // 2}
        details |= {"cached_tokens": text_tokens // 2, "cached_tokens_details": cached}
    echo = {
        "output_format": order.output_format,
        "quality": order.quality,
        "size": order.size,
        "usage": {
            "input_tokens": text_tokens,
            "input_tokens_details": details,
            "output_tokens": output_tokens,
            "output_tokens_details": {"image_tokens": output_tokens, "text_tokens": 0},
            "total_tokens": text_tokens + output_tokens,
        },
    }
    return [*pieces, b"],", orjson.dumps(echo)[1:]]


def output_tokens_of(order: Order) -> int:
    """Count the tokens of one image."""
    if order.model == GPT_IMAGE_1:
        return OUTPUT_TOKENS[order.quality][SIZES.index(order.size)]
    width, height = map(int, order.size.split("x"))
    factor = QUALITY_FACTORS[order.quality]
    cells = factor * round(factor * min(width, height) / max(width, height))
    return math.ceil(cells * (2_000_000 + width * height) / 4_000_000)


def failure(error: RefusalError, headers: dict[str, str]) -> Response:
    match error.status, error.code:
        case _, "moderation_blocked":
            error_type = "image_generation_user_error"
        case _, "insufficient_quota":
            error_type = "insufficient_quota"
        case 429, _:
            error_type = "requests"
        case status, _ if status >= 500:
            error_type = "server_error"
        case _:
            error_type = "invalid_request_error"
    envelope: dict[str, Any] = {"message": str(error), "type": error_type, "param": error.param, "code": error.code}
    envelope |= error.more
    return json_answer({"error": envelope}, error.status, {**headers, **error.headers})


def refuse(play: Play, model: str) -> None:
    """Raise RefusalError if the scenario does not accept the job."""
    retry = {"retry-after": play.retry_after_s}
    match play.scenario:
        case "http_503":
            raise RefusalError(503, "The engine is overloaded, try again later.", None)
        case "busy_503":
            raise RefusalError(503, "The engine is overloaded, try again later.", None, headers=retry)
        case "rate_limited_429":
            message = "Rate limit exceeded for images per minute. Limit: 5/1min. Try again later."
            raise RefusalError(429, message, "rate_limit_exceeded", headers=retry)
        case "insufficient_quota_429":
            raise RefusalError(429, "Your account has no quota left; see its billing.", "insufficient_quota")
        case "unauthorized_401":
            raise RefusalError(401, "Incorrect API key provided.", "invalid_api_key")
        case "unverified_403":
            raise RefusalError(403, "Your organization must be verified to use this model.", None)
        case "retired":
            name = model.partition("/")[2]
            raise RefusalError(
                404, f"The model `{name}` has been deprecated and is no longer served.", "model_not_found"
            )


def fail(play: Play, request_id: str, key: str) -> None:
    """Raise RefusalError if the scenario fails the accepted job."""
    match play.scenario:
        case "http_500":
            raise RefusalError(500, f"The server had an error, request ID {request_id}.", None)
        case "moderation_blocked" | "moderation_blocked_output":
            message = (
                "Your request was rejected by the safety system, "
                f"request ID {request_id}. safety_violations=[violence]."
            )
            late = play.scenario == "moderation_blocked_output"
            more = {"moderation_stage": "output", "categories": ["violence"]} if late else {}
            raise RefusalError(400, message, "moderation_blocked", more=more)
        case "content_policy_violation":
            message = "The safety system refused the prompt or what was drawn from it; another wording may succeed."
            raise RefusalError(400, message, "content_policy_violation")
        case "secret_in_error":
            message = f"Upstream call to {INTERNAL_URL} with key {key} was refused."
            raise RefusalError(400, message, "invalid_value", headers=secrets(key))


def bearer(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise RefusalError(401, "You didn't provide an API key in an Authorization header with Bearer auth.", None)
    return key.strip()


def parse(raw: bytes) -> Order:
    """Parse the order in a request's body. RefusalError as in the real API."""
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise RefusalError(400, "The JSON body of the request could not be parsed.", None) from None
    if not isinstance(fields, dict):
        raise RefusalError(400, "The JSON body of the request must be an object.", None)
    given = {name: value for name, value in fields.items() if value is not None}

    model = given.pop("model", "dall-e-2")
    read = PARSERS.get(model) if isinstance(model, str) else None
    if read is None:
        raise RefusalError(404, f"The model '{model}' does not exist.", "model_not_found", "model")
    if "prompt" not in given:
        raise RefusalError(400, "Missing required parameter: 'prompt'.", "missing_required_parameter", "prompt")
    order = read(given)
    for name in given:
        raise RefusalError(400, f"Unknown parameter: '{name}'.", "unknown_parameter", name)
    return order


def gpt_image_1(given: dict[str, Any]) -> Order:
    """Parse the fields that gpt-image-1 knows, and remove them from `given`."""
    return gpt_image(given, GPT_IMAGE_1, choice(given, "size", (*SIZES, "auto")))


def successor(model: str) -> Callable[[dict[str, Any]], Order]:
    """Make the parser of a successor of gpt-image-1, which draws any size within its bounds."""

    def parse_fields(given: dict[str, Any]) -> Order:
        return gpt_image(given, model, free_size(given))

    return parse_fields


def free_size(given: dict[str, Any]) -> str:
    size = text(given, "size", 20) or "auto"
    if size == "auto":
        return size
    sides = [int(side) for side in size.split("x") if side.isascii() and side.isdigit()]
    least, most = SUCCESSOR_PIXELS
    if (
        len(sides) != 2
        or any(side % SUCCESSOR_EDGE_STEP or not 0 < side <= SUCCESSOR_EDGE_MAX for side in sides)
        or not least <= sides[0] * sides[1] <= most
        or max(sides) > SUCCESSOR_RATIO_MAX * min(sides)
    ):
        raise RefusalError(400, f"Invalid size '{size}'.", "invalid_value", "size")
    return size


def gpt_image(given: dict[str, Any], model: str, size: str) -> Order:
    """Parse what all of them know, and remove it from `given`."""
    prompt = text(given, "prompt", PROMPT_CHARS_MAX)
    n = whole(given, "n", 1, 10, 1)
    quality = choice(given, "quality", (*OUTPUT_TOKENS, "auto"))
    background = choice(given, "background", ("transparent", "opaque", "auto"))
    output_format = choice(given, "output_format", ("png", "jpeg", "webp"), "png")
    choice(given, "moderation", ("low", "auto"))
    text(given, "user", USER_CHARS_MAX)
    whole(given, "partial_images", 0, 3, 0)
    if given.pop("stream", False) is not False:
        raise RefusalError(400, "Streaming is not simulated.", "unsupported_value", "stream")
    compression = whole(given, "output_compression", 0, 100, 100)
    if compression < 100 and output_format == "png":
        message = "Compression below 100 is not supported for the output format png."
        raise RefusalError(400, message, "invalid_png_output_compression", "output_compression")
    if background == "transparent" and output_format == "jpeg":
        message = "A transparent background is not supported for the output format jpeg."
        raise RefusalError(400, message, "invalid_value", "background")
    return Order(
        model=model,
        prompt=prompt,
        n=n,
        size=SIZES[0] if size == "auto" else size,
        quality="high" if quality == "auto" else quality,
        output_format=output_format,
        background="opaque" if background == "auto" else background,
        compression=compression,
    )


def dall_e(given: dict[str, Any]) -> Order:
    """Parse the fields that dall-e-3 knows, and remove them from `given`.

    Its reply echoes nothing and has no token count.
    """
    prompt = text(given, "prompt", DALL_E_PROMPT_CHARS_MAX)
    style = choice(given, "style", ("vivid", "natural"), "vivid")
    order = Order(
        model=DALL_E_3,
        prompt=prompt,
        n=whole(given, "n", 1, 1, 1),
        size=choice(given, "size", DALL_E_SIZES, DALL_E_SIZES[0]),
        quality=choice(given, "quality", ("standard", "hd", "auto"), "standard"),
        as_url=choice(given, "response_format", ("url", "b64_json"), "url") == "url",
        revised=f"A {style} picture, told in more detail: {prompt}",
    )
    text(given, "user", USER_CHARS_MAX)
    return order


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


PARSERS: dict[str, Callable[[dict[str, Any]], Order]] = {
    "gpt-image-1": gpt_image_1,
    "dall-e-3": dall_e,
    **{model.partition("/")[2]: successor(model) for model in SUCCESSORS},
}
