"""xAI's Images API: POST /xai/v1/images/generations, for grok-2-image and its successors grok-imagine-image."""

import asyncio
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

from simulator import files, inline
from simulator.answers import INTERNAL_URL, Streamed, json_answer, redirect, secrets, spoil
from simulator.behaviour import LONG_PROMPT_SCENARIO, Play
from simulator.client import Client
from simulator.files import File
from simulator.jobs import Job
from simulator.world import World

NAME = "xai"
ADDRESSES = {"url": "/xai/v1"}
GROK_2, GROK_IMAGINE, IMAGINE_2 = "xai/grok-2-image", "xai/grok-imagine-image", "xai/grok-imagine-image-2.0"
EVERY = {
    "moderated_items": (
        "The last image, or `last`, or with `all` every one, has respect_moderation false, and no url or b64_json. "
        "Not billed for those."
    ),
    "empty_data": "Answers 200 with an empty data and a block_reason. Not billed.",
    "moderation_400": "Accepts the job, then refuses it with 400 that speaks of content moderation. Not billed.",
    "data_uri": "The b64_json of every image begins with data:image/jpeg;base64. Billed.",
    "png_label": "Every mime_type, and the b64_json's data: prefix, says PNG; the bytes are JPEG. Billed.",
    "retired_400": "The model is shut down: 400 Model not found. Not accepted, so not a job.",
    "served_by_another": "Another model, which the reply names, serves the job at another price. Billed.",
    **LONG_PROMPT_SCENARIO,
    **inline.SCENARIOS,
    **files.SCENARIOS,
}
SCENARIOS = {GROK_2: EVERY, GROK_IMAGINE: EVERY, IMAGINE_2: EVERY}
# Seconds, (P50, P95). A successor without figures of its own has its predecessor's.
LATENCY_S = dict.fromkeys(SCENARIOS, (10.0, 30.0))
UPSTREAM = {
    "grok-2-image": GROK_2,
    "grok-2-image-1212": GROK_2,
    "grok-2-image-latest": GROK_2,
    "grok-imagine-image": GROK_IMAGINE,
    "grok-imagine-image-2.0": IMAGINE_2,
}
SERVED = {GROK_2: "grok-2-image-1212", GROK_IMAGINE: "grok-imagine-image", IMAGINE_2: "grok-imagine-image-2.0"}
TICKS = {GROK_2: 700_000_000, GROK_IMAGINE: 200_000_000}  # for one image; 1e10 are one dollar
IMAGINE_2_TICKS = {
    ("low", "1k"): 400_000_000,
    ("medium", "1k"): 600_000_000,
    ("low", "2k"): 600_000_000,
    ("medium", "2k"): 800_000_000,
}
ANOTHER, ANOTHER_TICKS = "grok-imagine-image-2.0", 400_000_000

GROK_2_SIZE = (1024, 768)  # whatever size is requested
RATIOS = (
    *("auto", "1:1", "3:4", "4:3", "9:16", "16:9", "2:3", "3:2"),
    *("9:19.5", "19.5:9", "9:20", "20:9", "1:2", "2:1"),
)
IMAGINE_2_RATIOS = (*RATIOS, "21:9", "5:2")
PIXELS = {"1k": 1024 * 1024, "2k": 2048 * 2048}
PROMPT_CHARS_MAX = 8_000
ARGUMENT = "Client specified an invalid argument"


class RefusalError(Exception):
    """The request is answered with an error, in one of three forms."""

    def __init__(
        self, status: int, message: str, form: str = "coded", headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        super().__init__(message)
        self.status = status
        self.form = form
        self.headers = headers

    def answer(self, form: str | None, request_id: str) -> Response:
        """Build the answer, in `form` instead of the error's own form if it is not None."""
        body: dict[str, Any]
        match form or self.form:
            case "nested":
                kind = "invalid_request_error" if self.status < 500 else "server_error"
                body = {"error": {"message": str(self), "type": kind, "param": None, "code": None}}
            case "coded":
                body = {"code": ARGUMENT if self.status < 500 else "Internal error", "error": str(self)}
            case _:
                body = {"error": str(self)}
        return json_answer(body, self.status, {"x-request-id": request_id, **self.headers})


@dataclass(frozen=True, slots=True)
class Order:
    model: str  # public id
    prompt: str
    n: int
    width: int
    height: int
    as_url: bool
    ticks: int  # for one image


def routes(world: World) -> list[Route]:
    api = XAI(world)
    return [
        Route("/xai/v1/images/generations", api.generate, methods=["POST"]),
        Route("/xai/{path:path}", unknown, methods=["GET", "POST", "PUT", "DELETE"]),
    ]


async def unknown(request: Request) -> Response:
    return RefusalError(404, f"There is no {request.method} {request.url.path}.", "bare").answer(None, str(uuid4()))


class XAI:
    def __init__(self, world: World) -> None:
        self._world = world

    async def generate(self, request: Request) -> ASGIApp:
        """Serve the endpoint: refuse, or accept and then answer as the current scenario says."""
        request_id, form = str(uuid4()), None
        try:
            key = bearer(request)
            upstream, order = parse(await request.body())
            play = self._world.behaviour.next(order.model)
            form = play.form
            if play.scenario == "secret_in_redirect":
                return redirect(key)
            refuse(play, upstream)
        except RefusalError as error:
            return error.answer(form, request_id)

        job = self._world.jobs.accept(Job("xai", order.model, request.url.path, request_id, order.n))
        Client.of(request.scope).on_leave(job.lose_client)
        await asyncio.sleep(self._world.work_s(order.model, play))
        try:
            fail(play, key)
        except RefusalError as error:
            job.fail()
            return error.answer(form, request_id)
        good, items = 0, []
        for index in range(0 if play.scenario == "empty_data" else order.n):
            struck = play.strikes(index, order.n)
            good += not (struck and play.scenario == "moderated_items")
            items.append(await self._item(order, index, struck, play, key, str(request.base_url)))
        job.finish(good)
        reply = Streamed(
            body(order, items, good, play), {"x-request-id": request_id, "content-type": "application/json"}
        )
        return spoil(play.scenario, reply, key)

    async def _item(self, order: Order, index: int, struck: bool, play: Play, key: str, base_url: str) -> list[bytes]:
        """Build one element of `data` as pieces of JSON. Base64 needs no escaping, so the image is not copied."""
        mime_type = "image/png" if play.scenario == "png_label" else "image/jpeg"
        facts: dict[str, Any] = {"mime_type": mime_type}
        if order.model == GROK_2:
            facts["revised_prompt"] = play.revised(f"A picture, told in more detail: {order.prompt}")
        else:
            facts["respect_moderation"] = True
        if struck and play.scenario == "moderated_items":
            return [orjson.dumps(facts | {"respect_moderation": False, "url": None, "b64_json": None})]
        picture = self._world.picture(
            play,
            model=order.model,
            prompt=order.prompt,
            width=order.width,
            height=order.height,
            format="jpeg",
            index=index,
            seed=self._world.seed,
        )
        if order.as_url:
            file = File(picture, play.same, play.scenario if struck else "ok", key)
            return [orjson.dumps(facts | {"url": self._world.files.add(file, base_url)})]
        prefix = f"data:{mime_type};base64," if play.scenario in ("data_uri", "png_label") else ""
        head = orjson.dumps(facts)[:-1] + f',"b64_json":"{prefix}'.encode()
        return [head, await inline.encoded(self._world, play, struck, picture), b'"}']


def body(order: Order, items: list[list[bytes]], good: int, play: Play) -> list[bytes]:
    """Build the reply as pieces of JSON. It has no creation time."""
    model, ticks = SERVED[order.model], order.ticks
    if play.scenario == "served_by_another":
        model, ticks = ANOTHER, ANOTHER_TICKS
    rest: dict[str, Any] = {"model": model, "usage": {"cost_in_usd_ticks": good * ticks}}
    if play.scenario == "empty_data":
        rest["block_reason"] = "The request was blocked by content moderation."
    pieces = [b'{"data":[']
    for place, item in enumerate(items):
        pieces += [b",", *item] if place else item
    return [*pieces, b"],", orjson.dumps(rest)[1:]]


def refuse(play: Play, upstream: str) -> None:
    """Raise RefusalError if the scenario does not accept the job."""
    retry = {"retry-after": play.retry_after_s}
    match play.scenario:
        case "http_503":
            raise RefusalError(503, "The service is at capacity, try again later.", "bare")
        case "busy_503":
            raise RefusalError(503, "The service is at capacity, try again later.", "bare", retry)
        case "rate_limited_429":
            raise RefusalError(429, "Too many requests per second for this team and model.", "bare", retry)
        case "unauthorized_401":
            raise RefusalError(401, "The API key is not known.", "nested")
        case "retired":
            message = f"The model {upstream} is fully deprecated and no longer served, please use grok-imagine-image."
            raise RefusalError(500, message)
        case "retired_400":
            raise RefusalError(400, f"Model not found: {upstream}")


def fail(play: Play, key: str) -> None:
    """Raise RefusalError if the scenario fails the accepted job."""
    match play.scenario:
        case "http_500":
            raise RefusalError(500, "An internal error occurred.", "bare")
        case "moderation_400":
            raise RefusalError(400, "The generated image was rejected by content moderation.")
        case "secret_in_error":
            message = f"Upstream call to {INTERNAL_URL} with key {key} was refused."
            raise RefusalError(400, message, headers=secrets(key))


def bearer(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise RefusalError(401, "No credentials in an Authorization header with Bearer auth.", "nested")
    return key.strip()


def parse(raw: bytes) -> tuple[str, Order]:
    """Parse the requested slug and the order in a request's body. RefusalError as in the real API."""
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise RefusalError(400, "The body of the request is not JSON.", "bare") from None
    if not isinstance(fields, dict):
        raise RefusalError(400, "The body of the request is not a JSON object.", "bare")
    given = {name: value for name, value in fields.items() if value is not None}

    upstream = given.pop("model", None)
    if not isinstance(upstream, str) or upstream not in UPSTREAM:
        raise RefusalError(400, f"Model not found: {upstream}")
    model, prompt, n = UPSTREAM[upstream], given.pop("prompt", None), given.pop("n", 1)
    if not isinstance(prompt, str) or not 1 <= len(prompt) <= PROMPT_CHARS_MAX:
        raise RefusalError(400, f"prompt must be a text of 1 to {PROMPT_CHARS_MAX} characters.")
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= 10:
        raise RefusalError(400, f"n must be a whole number from 1 to 10, got {n}.")
    as_url = choice(given, "response_format", ("url", "b64_json")) == "url"
    if not isinstance(given.pop("user", ""), str):
        raise RefusalError(400, "user must be a text.")
    (width, height), ticks = GROK_2_SIZE, TICKS.get(model, 0)
    if model != GROK_2:
        ratio = choice(given, "aspect_ratio", IMAGINE_2_RATIOS if model == IMAGINE_2 else RATIOS)
        resolution = choice(given, "resolution", tuple(PIXELS))
        width, height = ratio_size(ratio, PIXELS[resolution])
    if model == IMAGINE_2:
        ticks = IMAGINE_2_TICKS[choice(given, "quality", ("medium", "low")), resolution]
    for name in given:
        raise RefusalError(400, f"Argument not supported: {name}")
    return upstream, Order(model, prompt, n, width, height, as_url, ticks)


def ratio_size(ratio: str, pixels: int) -> tuple[int, int]:
    """Compute sides for about this many pixels, in steps of 16."""
    across, down = map(float, (ratio if ratio != "auto" else "1:1").split(":"))
    scale = (pixels / (across * down)) ** 0.5
    return round(across * scale / 16) * 16, round(down * scale / 16) * 16


def choice(given: dict[str, Any], name: str, options: tuple[str, ...]) -> str:
    """Read a field that has one of these options; the first one is the default."""
    value = given.pop(name, options[0])
    if not isinstance(value, str) or value not in options:
        raise RefusalError(400, f"{name} must be one of {', '.join(options)}, got {value!r}.")
    return value
