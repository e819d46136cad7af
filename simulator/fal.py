"""fal.ai: POST /fal/run/{model id} holds the connection, /fal/queue/{model id} accepts the job and is polled.
In the queue, a scenario that breaks an answer in transit breaks that of the submit. One that fails a job shows in its
result.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from simulator import files
from simulator.answers import INTERNAL_URL, json_answer, redirect, secrets, silent, spoil
from simulator.behaviour import Play, is_number
from simulator.client import Client
from simulator.files import File
from simulator.jobs import Job, State
from simulator.world import World

NAME = "fal"
ADDRESSES = {"url": "/fal/run", "queue_url": "/fal/queue"}
EVERY = {
    "content_policy_422": "The model refuses the prompt: 422 content_policy_violation. Not billed.",
    "no_media_422": "The model made nothing: 422 no_media_generated. Not billed.",
    "downstream_400": "A service behind the model refuses: 400 with an array, downstream_service_error. Not billed.",
    "downstream_500": "A service behind the model is away: 500 with an array. Not billed.",
    "generation_timeout_504": "The model took too long: 504 with an array, generation_timeout. Not billed.",
    "completed_with_error": "The status says COMPLETED with error and error_type; the result is 500. Not billed.",
    "fail_submit_500": "The queue answers the submit with 500. Not a job.",
    "status_500_once": "The first status request of the job is answered 500. Billed.",
    "result_500": "The status says COMPLETED, the result is 500. Not billed.",
    "stuck_in_queue": "The job stays in the queue until it is cancelled. Not billed.",
    "time_to_start": "No runner in time: 504 with X-Fal-Request-Timeout-Type: user. Not billed.",
    "stops_when_cancelled": "A cancel stops a job that runs, too; any other runs to its end. Not billed if it was.",
    "locked_403": "The account's balance is used up: 403. Not accepted, so not a job.",
    **files.SCENARIOS,
}
CHECKED = {
    "nsfw": "The last image, or with `all` every one, is black, and has_nsfw_concepts says so. Billed, not delivered.",
    **EVERY,
}
SCENARIOS = {
    "fal/flux-1.1-pro": CHECKED,
    "fal/flux-1.1-pro-ultra": CHECKED,
    "fal/flux-2-pro": CHECKED,
    "fal/recraft-v3": {"svg_with_script": "The picture is an SVG with a script in it. Billed.", **EVERY},
    "fal/recraft-v4.1": EVERY,
    "fal/recraft-v4.1-pro": EVERY,
    "fal/ideogram-v2": EVERY,
    "fal/ideogram-v4": CHECKED,
    "fal/sd-3.5-large": CHECKED,
}
# Seconds, (P50, P95). A successor without figures of its own has its predecessor's.
LATENCY_S = {
    "fal/flux-1.1-pro": (7.0, 25.0),
    "fal/flux-1.1-pro-ultra": (12.0, 40.0),
    "fal/flux-2-pro": (12.0, 40.0),
    "fal/recraft-v3": (8.0, 28.0),
    "fal/recraft-v4.1": (8.0, 28.0),
    "fal/recraft-v4.1-pro": (8.0, 28.0),
    "fal/ideogram-v2": (12.0, 35.0),
    "fal/ideogram-v4": (12.0, 35.0),
    "fal/sd-3.5-large": (10.0, 30.0),
}
# Errors of a model's own, which come as an array whatever their status.
MODEL_FAILURES = {
    "no_media_422": (422, "no_media_generated", "No media was generated"),
    "downstream_400": (400, "downstream_service_error", "A downstream service refused the request"),
    "downstream_500": (500, "downstream_service_unavailable", "A downstream service is unavailable"),
    "generation_timeout_504": (504, "generation_timeout", "The generation took too long"),
}

PRESETS = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
# Width and height in pixels of flux-pro/v1.1-ultra's ratios; the others have a similar area.
ULTRA_SIZES = {
    "1:1": (2048, 2048),
    "16:9": (2752, 1536),
    "4:3": (2368, 1792),
    "3:2": (2496, 1664),
    "21:9": (3136, 1344),
}
ULTRA_PIXELS = 2048 * 2048
RECRAFT_WIDE = ((1536, 1024), (1365, 1024), (1280, 1024), (1820, 1024), (1434, 1024), (1707, 1024), (2048, 1024))
RECRAFT_SIZES = {(1024, 1024), *RECRAFT_WIDE, *((height, width) for width, height in RECRAFT_WIDE)}
RECRAFT_PRESETS = {
    "square_hd": (1024, 1024),
    "square": (1024, 1024),
    "portrait_4_3": (1024, 1365),
    "portrait_16_9": (1024, 1820),
    "landscape_4_3": (1365, 1024),
    "landscape_16_9": (1820, 1024),
}
RECRAFT_STYLE = re.compile(r"any|(realistic_image|digital_illustration|vector_illustration)(/[a-z0-9_]+)?")
RECRAFT_PROMPT_CHARS_MAX = 1_000
IDEOGRAM_RATIOS = ("1:1", "10:16", "16:10", "9:16", "16:9", "4:3", "3:4", "1:3", "3:1", "3:2", "2:3")
IDEOGRAM_PIXELS = 1024 * 1024
QUEUE_SHARE = 0.2  # part of a job's time that is spent waiting for a runner
TICKETS_MAX = 20_000  # the oldest result is forgotten


@dataclass(frozen=True, slots=True)
class Result:
    """Answer to a request for images; `error` is in the queue's status."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)
    images: int = 0
    billed: int = 0
    error: Mapping[str, str] = field(default_factory=dict)

    def answer(self, request_id: str) -> Response:
        return json_answer(self.body, self.status, {"x-fal-request-id": request_id, **self.headers})


class RefusedError(Exception):
    """The model does not exist, or its input is wrong."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.body)
        self.result = result


@dataclass(frozen=True, slots=True)
class Order:
    prompt: str
    count: int
    width: int
    height: int
    image_format: str
    seed: int | None = None
    inline: bool = False
    checked: bool = True  # by the safety checker


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One model: its public id, how it reads its input, and what its reply contains."""

    model: str
    parse: Callable[[dict[str, Any]], Order]
    tells_all: bool = True  # sizes, flags of the safety checker, timings and prompt; if False, only the file's facts
    tells_seed: bool = True


@dataclass(slots=True)
class Ticket:
    """One request in the queue."""

    app: str  # owner/name without the sub-path: there are status and result
    job: Job
    urls: Mapping[str, str]
    position: int = 0
    result: Result | None = None
    status_fails: bool = False
    stops: bool = False  # when it is cancelled, although it runs
    inference_s: float = 0.0
    runner: asyncio.Task[None] | None = None


def routes(world: World) -> list[Route]:
    api = Fal(world)
    request = "/fal/queue/{owner}/{name}/requests/{request_id}"
    return [
        Route("/fal/run/{path:path}", api.run, methods=["POST"]),
        Route(f"{request}/status", api.status, methods=["GET"]),
        Route(f"{request}/cancel", api.cancel, methods=["PUT"]),
        Route(request, api.result, methods=["GET"]),
        Route("/fal/queue/{path:path}", api.submit, methods=["POST"]),
    ]


class Fal:
    def __init__(self, world: World) -> None:
        self._world = world
        self._tickets: OrderedDict[str, Ticket] = OrderedDict()
        self._waiting: set[str] = set()

    async def run(self, request: Request) -> ASGIApp:
        """Run a model directly: one connection, held until the model has answered."""
        request_id, key = str(uuid4()), api_key(request)
        try:
            given = fields(key, await request.body())
            endpoint, order = read(request.path_params["path"], given)
            play = self._world.behaviour.next(endpoint.model)
            if play.scenario == "secret_in_redirect":
                return redirect(key or "")
            refuse(play, request.path_params["path"])
        except RefusedError as error:
            return error.result.answer(request_id)

        job = self._world.jobs.accept(Job("fal", endpoint.model, request.url.path, request_id, order.count))
        client = Client.of(request.scope)
        client.on_leave(job.lose_client)
        if play.scenario == "stuck_in_queue":
            job.state = State.QUEUED
            await client.gone.wait()
            job.cancel()
            return silent
        seconds = self._world.work_s(endpoint.model, play)
        await asyncio.sleep(seconds)
        result = await self._generate(endpoint, order, play, key or "", str(request.base_url), seconds)
        close(job, result)
        return spoil(play.scenario, result.answer(request_id), key or "")

    async def submit(self, request: Request) -> ASGIApp:
        """Accept any JSON for an existing application: the model reads it later, so its 404 and 422 are results."""
        request_id, key, path = str(uuid4()), api_key(request), request.path_params["path"]
        app = app_of(path)
        try:
            given = fields(key, await request.body())
            if app not in map(app_of, ENDPOINTS):
                raise RefusedError(not_found(path))
        except RefusedError as error:
            return error.result.answer(request_id)
        try:
            endpoint, order = read(path, given)
        except RefusedError as error:
            job = self._world.jobs.accept(Job("fal", public_id(path), request.url.path, request_id, 0))
            close(job, error.result)
            ticket = self._ticket(request, app, job)
            ticket.result = error.result
            return submitted(ticket)
        play = self._world.behaviour.next(endpoint.model)
        if play.scenario == "secret_in_redirect":
            return redirect(key or "")
        try:
            refuse(play, path)
        except RefusedError as error:
            return error.result.answer(request_id)

        job = Job("fal", endpoint.model, request.url.path, request_id, order.count, State.QUEUED)
        self._world.jobs.accept(job)
        Client.of(request.scope).on_leave(job.lose_client)
        ticket = self._ticket(request, app, job)
        ticket.status_fails = play.scenario == "status_500_once"
        ticket.stops = play.scenario == "stops_when_cancelled"
        ticket.position = len(self._waiting)
        self._waiting.add(request_id)
        if play.scenario != "stuck_in_queue":
            work = self._run(ticket, endpoint, order, play, key or "", str(request.base_url))
            ticket.runner = self._world.spawn(work)
        return spoil(play.scenario, submitted(ticket), key or "")

    async def status(self, request: Request) -> ASGIApp:
        ticket = self._find(request)
        if isinstance(ticket, Result):
            return ticket.answer(request.path_params["request_id"])
        if ticket.status_fails:
            ticket.status_fails = False
            return infra(500, "internal_error", "Internal server error").answer(ticket.job.request_id)
        with_logs = request.query_params.get("logs", "").lower() in ("1", "true")
        state: dict[str, Any] = {"request_id": ticket.job.request_id, **ticket.urls}
        if ticket.result is not None:
            metrics = {"inference_time": ticket.inference_s}
            state |= {"status": "COMPLETED", "metrics": metrics, **ticket.result.error}
        elif ticket.job.state is State.QUEUED:
            position = min(ticket.position, len(self._waiting) - 1)
            return json_answer({**state, "status": "IN_QUEUE", "queue_position": position}, 202)
        else:
            state["status"] = "IN_PROGRESS"
        state["logs"] = [] if with_logs else None
        return json_answer(state, 202 if ticket.result is None else 200)

    async def result(self, request: Request) -> ASGIApp:
        """Send the model's own status, headers and body."""
        ticket = self._find(request)
        result = ticket if isinstance(ticket, Result) else ticket.result
        if result is None:
            result = Result(400, {"detail": "Request is still in progress"})
        return result.answer(request.path_params["request_id"])

    async def cancel(self, request: Request) -> ASGIApp:
        """Cancel a job. A queued one never runs; a running one stops if its model heeds the signal."""
        ticket = self._find(request)
        if isinstance(ticket, Result):
            return json_answer({"status": "NOT_FOUND"} if ticket.status == 404 else ticket.body, ticket.status)
        if ticket.result is not None:
            return json_answer({"status": "ALREADY_COMPLETED"}, 400)
        if ticket.job.state is State.QUEUED or ticket.stops:
            if ticket.runner is not None:
                ticket.runner.cancel()
            self._waiting.discard(ticket.job.request_id)
            ticket.job.cancel()
            ticket.result = infra(499, "client_cancelled", "Request was cancelled by the client")
        return json_answer({"status": "CANCELLATION_REQUESTED"}, 202)

    def _ticket(self, request: Request, app: str, job: Job) -> Ticket:
        url = f"{request.base_url}fal/queue/{app}/requests/{job.request_id}"
        urls = {"response_url": url, "status_url": f"{url}/status", "cancel_url": f"{url}/cancel"}
        ticket = self._tickets[job.request_id] = Ticket(app, job, urls)
        while len(self._tickets) > TICKETS_MAX:
            oldest, _ = self._tickets.popitem(last=False)
            self._waiting.discard(oldest)
        return ticket

    def _find(self, request: Request) -> Ticket | Result:
        """Find the request's ticket, or the reason why there is none."""
        if api_key(request) is None:
            return UNAUTHORIZED
        ticket = self._tickets.get(request.path_params["request_id"])
        if ticket is None or ticket.app != "{owner}/{name}".format_map(request.path_params):
            return Result(404, {"detail": "Request not found"})
        return ticket

    async def _run(self, ticket: Ticket, endpoint: Endpoint, order: Order, play: Play, key: str, base_url: str) -> None:
        seconds = self._world.work_s(endpoint.model, play)
        await asyncio.sleep(seconds * QUEUE_SHARE)
        self._waiting.discard(ticket.job.request_id)
        ticket.job.start()
        ticket.inference_s = seconds * (1 - QUEUE_SHARE)
        await asyncio.sleep(ticket.inference_s)
        ticket.result = await self._generate(endpoint, order, play, key, base_url, ticket.inference_s)
        close(ticket.job, ticket.result)

    async def _generate(
        self, endpoint: Endpoint, order: Order, play: Play, key: str, base_url: str, seconds: float
    ) -> Result:
        """Make the model's answer. Result URLs begin with `base_url`, the address that the client used."""
        match play.scenario:
            case "http_500" | "completed_with_error":
                return infra(500, "runner_server_error", "The runner failed with an internal error")
            case "result_500":
                return Result(500, {"detail": "Internal Server Error"})
            case "time_to_start":
                timeout = infra(504, "request_timeout", "No runner became available in time")
                return replace(timeout, headers={**timeout.headers, "x-fal-request-timeout-type": "user"})
            case "secret_in_error":
                bad = infra(400, "bad_request", f"Call to {INTERNAL_URL} with key {key} was refused")
                return replace(bad, headers={**bad.headers, **secrets(key)})
            case "content_policy_422":
                msg = "The prompt was flagged by the content checker"
                return wrong(["prompt"], "content_policy_violation", msg, order.prompt, units=None)
        if play.scenario in MODEL_FAILURES:
            status, kind, msg = MODEL_FAILURES[play.scenario]
            return replace(wrong([], kind, msg, {}, units=None), status=status)
        seed = self._world.random.randrange(2**32) if order.seed is None else order.seed
        flags: list[bool] = []
        images: list[dict[str, Any]] = []
        for index in range(order.count):
            struck = play.strikes(index, order.count)
            flags.append(struck and play.scenario == "nsfw" and order.checked)
            picture = self._world.picture(
                play,
                model=endpoint.model,
                prompt=order.prompt,
                width=order.width,
                height=order.height,
                format="svg" if play.scenario == "svg_with_script" else order.image_format,
                index=index,
                seed=seed,
                black=flags[-1],
                script=play.scenario == "svg_with_script",
            )
            if order.inline:
                data = (await self._world.studio.draw(picture, keep=play.same)).base64.decode()
                url = f"data:{picture.content_type};base64,{data}"
            else:
                file = File(picture, play.same, play.scenario if struck else "ok", key)
                url = self._world.files.add(file, base_url)
            item = {"url": url, "content_type": picture.content_type}
            if endpoint.tells_all:
                images.append(item | {"width": picture.width, "height": picture.height})
            else:
                drawing = await self._world.studio.draw(picture, keep=play.same)
                name = f"image.{picture.format}"
                images.append(item | {"file_name": name, "file_size": len(drawing.data), "file_data": None})
        body: dict[str, Any] = {"images": images}
        if endpoint.tells_seed:
            body["seed"] = seed
        if endpoint.tells_all:
            body |= {"timings": {"inference": seconds}, "has_nsfw_concepts": flags, "prompt": order.prompt}
        headers = {"x-fal-billable-units": str(order.count)}
        return Result(200, body, headers, images=flags.count(False), billed=order.count)


def submitted(ticket: Ticket) -> Response:
    request_id = ticket.job.request_id
    ids = {"request_id": request_id, "gateway_request_id": request_id}
    place = {"status": "IN_QUEUE", "queue_position": ticket.position}
    return json_answer({**place, **ids, **ticket.urls}, headers={"x-fal-request-id": request_id})


def close(job: Job, result: Result) -> None:
    if result.status == 200:
        job.finish(result.images, result.billed)
    else:
        job.fail()


def infra(status: int, error_type: str, text: str) -> Result:
    """Build an error of fal itself, not of the model."""
    headers = {"x-fal-error-type": error_type, "x-fal-retryable": str(status in (503, 504)).lower()}
    error = {"error": text, "error_type": error_type}
    return Result(status, {"detail": text, "error_type": error_type}, headers, error=error)


def wrong(loc: list[str], kind: str, msg: str, value: object, units: int | None = 0, **ctx: object) -> Result:
    """Build an error of the model: 422 with an array. Without `units` it does not say whether it is billed."""
    detail: dict[str, Any] = {"loc": ["body", *loc], "msg": msg, "type": kind, "input": value}
    if ctx:
        detail["ctx"] = ctx
    headers = {} if units is None else {"x-fal-billable-units": str(units)}
    return Result(422, {"detail": [detail]}, headers)


def not_found(path: str) -> Result:
    return Result(404, {"detail": f"Path /{path} not found"}, {"x-fal-billable-units": "0"})


def refuse(play: Play, path: str) -> None:
    """Raise RefusedError if the scenario does not accept the job."""
    retry = {"retry-after": play.retry_after_s}
    busy = infra(503, "runner_scheduling_failure", "No runner could be scheduled")
    match play.scenario:
        case "http_503":
            raise RefusedError(busy)
        case "busy_503":
            raise RefusedError(replace(busy, headers={**busy.headers, **retry}))
        case "rate_limited_429":
            raise RefusedError(Result(429, {"detail": "Too many concurrent requests"}, retry))
        case "unauthorized_401":
            raise RefusedError(UNAUTHORIZED)
        case "locked_403":
            raise RefusedError(Result(403, {"detail": "The account is locked: its balance is used up"}))
        case "retired":
            raise RefusedError(not_found(path))
        case "fail_submit_500":
            raise RefusedError(infra(500, "internal_error", "The request could not be enqueued"))


def api_key(request: Request) -> str | None:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() or None if scheme.lower() == "key" else None


def fields(key: str | None, raw: bytes) -> dict[str, Any]:
    """Parse the request's JSON object. RefusedError without a key, or without an object."""
    if key is None:
        raise RefusedError(UNAUTHORIZED)
    try:
        given = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RefusedError(wrong([], "json_invalid", f"JSON decode error: {error.msg}", {})) from None
    if not isinstance(given, dict):
        raise RefusedError(wrong([], "dict_type", "Input should be a valid dictionary", given))
    return given


def read(path: str, given: dict[str, Any]) -> tuple[Endpoint, Order]:
    """Find the model at `path` and parse its order. RefusedError in the model's words."""
    if path not in ENDPOINTS:
        raise RefusedError(not_found(path))
    endpoint = ENDPOINTS[path]
    return endpoint, endpoint.parse(given)


def app_of(path: str) -> str:
    return "/".join(path.split("/")[:2])


def public_id(path: str) -> str:
    return ENDPOINTS[path].model if path in ENDPOINTS else path


# The models' inputs. As in the real API, unknown fields are ignored.


def flux_pro(given: dict[str, Any]) -> Order:
    """Parse the input of flux-pro/v1.1."""
    prompt = needed_prompt(given)
    width, height = image_size(given, 256, 1440, 32)
    return flux(given, prompt, width, height)


def flux_pro_ultra(given: dict[str, Any]) -> Order:
    """Parse the input of flux-pro/v1.1-ultra: by ratio, any W:H."""
    prompt = needed_prompt(given)
    value = given.get("aspect_ratio", "16:9")
    if not isinstance(value, str) or not re.fullmatch(r"[1-9]\d?:[1-9]\d?", value):
        msg = "Input should be a ratio of two whole numbers"
        raise RefusedError(wrong(["aspect_ratio"], "value_error", msg, value))
    flag(given, "raw", False)
    optional_string(given, "image_url")
    number(given, "image_prompt_strength", 0, 1, 0.1)
    mirror = ULTRA_SIZES.get(":".join(reversed(value.split(":"))))
    if value in ULTRA_SIZES:
        width, height = ULTRA_SIZES[value]
    elif mirror is not None:
        height, width = mirror
    else:
        width, height = ratio_size(value, ULTRA_PIXELS)
    return flux(given, prompt, width, height)


def flux_2_pro(given: dict[str, Any]) -> Order:
    """Parse the input of flux-2-pro: one picture of up to four megapixels."""
    prompt = needed_prompt(given)
    width, height = image_size(given, 256, 2048, 16)
    return flux({**given, "num_images": 1}, prompt, width, height)


def usual(given: dict[str, Any], prompt: str, width: int, height: int) -> Order:
    """Parse the fields that most models have besides their prompt and size."""
    return Order(
        prompt=prompt,
        count=whole(given, "num_images", 1, 4, 1),
        width=width,
        height=height,
        image_format=one_of(given, "output_format", ("jpeg", "png")),
        seed=seed_of(given),
        inline=flag(given, "sync_mode", False),
        checked=flag(given, "enable_safety_checker", True),
    )


def flux(given: dict[str, Any], prompt: str, width: int, height: int) -> Order:
    one_of(given, "safety_tolerance", ("2", "1", "3", "4", "5", "6"))
    flag(given, "enhance_prompt", False)
    return usual(given, prompt, width, height)


def recraft(given: dict[str, Any]) -> Order:
    """Parse recraft/v3/text-to-image: one WebP, or an SVG in a vector style, only in listed sizes."""
    prompt = needed_prompt(given)
    if len(prompt) > RECRAFT_PROMPT_CHARS_MAX:
        msg = f"String should have at most {RECRAFT_PROMPT_CHARS_MAX} characters"
        too_long = wrong(["prompt"], "string_too_long", msg, prompt, max_length=RECRAFT_PROMPT_CHARS_MAX)
        raise RefusedError(too_long)
    style = given.get("style", "realistic_image")
    if not isinstance(style, str) or not RECRAFT_STYLE.fullmatch(style):
        raise RefusedError(wrong(["style"], "literal_error", "Input should be a style of Recraft", style))
    optional_string(given, "style_id")
    listed(given, "colors")
    flag(given, "enable_safety_checker", False)
    value = given.get("image_size", "square_hd")
    if isinstance(value, dict):
        size = image_size(given, 1, 14142)
        if size not in RECRAFT_SIZES:
            raise RefusedError(wrong(["image_size"], "value_error", "Input should be a size of Recraft", value))
    else:
        size = RECRAFT_PRESETS[one_of(given, "image_size", ("square_hd", *RECRAFT_PRESETS))]
    return Order(prompt, 1, *size, image_format="svg" if style.startswith("vector") else "webp")


def ideogram(given: dict[str, Any]) -> Order:
    """Parse ideogram/v2: one PNG by ratio."""
    prompt = needed_prompt(given)
    width, height = ratio_size(one_of(given, "aspect_ratio", IDEOGRAM_RATIOS), IDEOGRAM_PIXELS)
    one_of(given, "style", ("auto", "general", "realistic", "design", "render_3D", "anime"))
    optional_string(given, "negative_prompt")
    flag(given, "expand_prompt", True)
    return Order(prompt, 1, width, height, "png", seed_of(given), flag(given, "sync_mode", False))


def recraft_v4(given: dict[str, Any]) -> Order:
    """Parse recraft/v4.1/text-to-image and its pro version: one WebP, without styles."""
    prompt = needed_prompt(given)
    listed(given, "colors")
    flag(given, "enable_safety_checker", True)
    return Order(prompt, 1, *image_size(given, 256, 4096), image_format="webp")


def ideogram_v4(given: dict[str, Any]) -> Order:
    """Parse ideogram/v4: by width and height, at a speed that decides its price."""
    prompt = needed_prompt(given)
    width, height = image_size(given, 256, 2048)
    one_of(given, "rendering_speed", ("BALANCED", "TURBO", "QUALITY"))
    optional_string(given, "expansion_model")
    return usual(given, prompt, width, height)


def stable_diffusion(given: dict[str, Any]) -> Order:
    """Parse stable-diffusion-v35-large."""
    prompt = needed_prompt(given)
    width, height = image_size(given, 64, 2048)
    optional_string(given, "negative_prompt")
    whole(given, "num_inference_steps", 1, 50, 28)
    number(given, "guidance_scale", 0, 20, 3.5)
    listed(given, "loras")
    return usual(given, prompt, width, height)


def needed_prompt(given: dict[str, Any]) -> str:
    if "prompt" not in given:
        raise RefusedError(wrong(["prompt"], "missing", "Field required", given))
    return string(given, "prompt")


def seed_of(given: dict[str, Any]) -> int | None:
    return None if given.get("seed") is None else whole(given, "seed", 0, 2**32 - 1, 0)


def ratio_size(ratio: str, pixels: int) -> tuple[int, int]:
    """Compute sides for about this many pixels, in steps of 32."""
    across, down = map(int, ratio.split(":"))
    scale = (pixels / (across * down)) ** 0.5
    return max(32, round(across * scale / 32) * 32), max(32, round(down * scale / 32) * 32)


def image_size(given: dict[str, Any], least: int, most: int, step: int = 1) -> tuple[int, int]:
    value = given.get("image_size", "landscape_4_3")
    if isinstance(value, dict):
        width, height = (whole(value, side, least, most, 512, "image_size") for side in ("width", "height"))
        for side, pixels in (("width", width), ("height", height)):
            if pixels % step:
                msg = f"Input should be a multiple of {step}"
                raise RefusedError(wrong(["image_size", side], "multiple_of", msg, pixels, multiple_of=step))
        return width, height
    return PRESETS[one_of(given, "image_size", ("landscape_4_3", *PRESETS))]


def listed(given: dict[str, Any], name: str) -> None:
    value = given.get(name, [])
    if not isinstance(value, list):
        raise RefusedError(wrong([name], "list_type", "Input should be a valid list", value))


def optional_string(given: dict[str, Any], name: str) -> None:
    if given.get(name) is not None:
        string(given, name)


def number(given: dict[str, Any], name: str, least: float, most: float, default: float) -> None:
    value = given.get(name, default)
    if not is_number(value, least, most, float):
        msg = f"Input should be a number from {least} to {most}"
        raise RefusedError(wrong([name], "value_error", msg, value, ge=least, le=most))


def string(given: dict[str, Any], name: str) -> str:
    value = given[name]
    if not isinstance(value, str):
        raise RefusedError(wrong([name], "string_type", "Input should be a valid string", value))
    return value


def flag(given: dict[str, Any], name: str, default: bool) -> bool:
    value = given.get(name, default)
    if not isinstance(value, bool):
        raise RefusedError(wrong([name], "bool_type", "Input should be a valid boolean", value))
    return value


def whole(given: dict[str, Any], name: str, least: int, most: int, default: int, *within: str) -> int:
    value, loc = given.get(name, default), [*within, name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise RefusedError(wrong(loc, "int_type", "Input should be a valid integer", value))
    if value < least:
        msg = f"Input should be greater than or equal to {least}"
        raise RefusedError(wrong(loc, "greater_than_equal", msg, value, ge=least))
    if value > most:
        msg = f"Input should be less than or equal to {most}"
        raise RefusedError(wrong(loc, "less_than_equal", msg, value, le=most))
    return value


def one_of(given: dict[str, Any], name: str, options: tuple[str, ...]) -> str:
    """Read a field that has one of these options; the first one is the default."""
    value = given.get(name, options[0])
    if not isinstance(value, str) or value not in options:
        expected = ", ".join(f"'{option}'" for option in dict.fromkeys(options))
        msg = f"Input should be one of {expected}"
        raise RefusedError(wrong([name], "literal_error", msg, value, expected=expected))
    return value


UNAUTHORIZED = Result(401, {"detail": "Authentication is required: Authorization: Key <key>"})
ENDPOINTS = {
    "fal-ai/flux-pro/v1.1": Endpoint("fal/flux-1.1-pro", flux_pro),
    "fal-ai/flux-pro/v1.1-ultra": Endpoint("fal/flux-1.1-pro-ultra", flux_pro_ultra),
    "fal-ai/flux-2-pro": Endpoint("fal/flux-2-pro", flux_2_pro),
    "fal-ai/recraft/v3/text-to-image": Endpoint("fal/recraft-v3", recraft, tells_all=False, tells_seed=False),
    "fal-ai/recraft/v4.1/text-to-image": Endpoint("fal/recraft-v4.1", recraft_v4, tells_all=False, tells_seed=False),
    "fal-ai/recraft/v4.1/pro/text-to-image": Endpoint(
        "fal/recraft-v4.1-pro", recraft_v4, tells_all=False, tells_seed=False
    ),
    "ideogram/v4": Endpoint("fal/ideogram-v4", ideogram_v4),
    "fal-ai/ideogram/v2": Endpoint("fal/ideogram-v2", ideogram, tells_all=False),
    "fal-ai/stable-diffusion-v35-large": Endpoint("fal/sd-3.5-large", stable_diffusion),
}
