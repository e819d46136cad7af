"""Google like the Gemini API and Vertex AI, with Vertex's OAuth tokens: Imagen 4 by POST …/{model}:predict, and its
successors by :generateContent.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from simulator import google_content, inline
from simulator.answers import Streamed, redirect, spoil
from simulator.behaviour import Play, is_number
from simulator.client import Client
from simulator.google_rpc import RefusalError, choice, fail, flag, not_found, refuse, text, whole
from simulator.jobs import Job
from simulator.vertex import ServiceAccount
from simulator.world import World

NAME = "google"
ADDRESSES = {"url": "/google/v1beta"}
IMAGEN_4 = "google/imagen-4"
UPSTREAM = {"imagen-4.0-generate-001": IMAGEN_4}
SCENARIOS = {
    IMAGEN_4: {
        "rai_filtered": (
            "The last image, or `last`, or with `all` every one, is kept back and not billed: fewer predictions, with "
            "includeRaiReason one more element that says why, without it {} if nothing is left."
        ),
        "rai_filtered_silently": "As rai_filtered, but no element says why even with includeRaiReason.",
        "prompt_blocked": "The prompt is refused: 400 INVALID_ARGUMENT with a support code. Not billed.",
        "api_key_invalid_400": "The key is refused with 400 and reason API_KEY_INVALID. Not accepted, so not a job.",
        **inline.SCENARIOS,
    },
    **google_content.SCENARIOS,
}
# Seconds, (P50, P95). A successor without figures of its own has its predecessor's.
LATENCY_S = dict.fromkeys(SCENARIOS, (6.0, 18.0))

VERBS = ("predict", "generateContent")

# The 1K sizes; 2K doubles both sides.
SIZES = {
    "1:1": (1024, 1024),
    "4:3": (1280, 896),
    "3:4": (896, 1280),
    "16:9": (1408, 768),
    "9:16": (768, 1408),
}
FORMATS = {"image/png": "png", "image/jpeg": "jpeg"}
PERSONS = ("allow_adult", "dont_allow", "allow_all")
SAFETY = ("block_medium_and_above", "block_low_and_above", "block_only_high", "block_none")
VERTEX_ONLY = ("seed", "negativePrompt", "addWatermark", "enhancePrompt", "storageUri")
RAI_REASON = (
    "Unable to show generated images: some were filtered for violating usage guidelines. "
    "You will not be charged for blocked images. Support codes: 29310472"
)


@dataclass(frozen=True, slots=True)
class Order:
    model: str  # public id
    prompt: str
    count: int
    width: int
    height: int
    mime_type: str
    compression: int
    with_reason: bool
    seed: int | None
    storage_uri: str | None
    enhanced: bool


def routes(world: World) -> list[Route]:
    account = ServiceAccount()
    api = Google(world, account)
    vertex = "/vertex/v1/{path:path}publishers/google/models/{model}"
    return [
        *(Route(f"/google/v1beta/models/{{model}}:{verb}", api.gemini, methods=["POST"]) for verb in VERBS),
        *account.routes(),
        *(Route(f"{vertex}:{verb}", api.vertex, methods=["POST"]) for verb in VERBS),
        Route("/google/{path:path}", unknown, methods=["GET", "POST", "PUT", "DELETE"]),
        Route("/vertex/{path:path}", unknown, methods=["GET", "POST", "PUT", "DELETE"]),
    ]


class Google:
    def __init__(self, world: World, account: ServiceAccount) -> None:
        self._world = world
        self._account = account
        self._content = google_content.Content(world)

    async def gemini(self, request: Request, *, on_vertex: bool = False) -> ASGIApp:
        """Serve the Gemini API, with an API key."""
        key = request.headers.get("x-goog-api-key", "").strip()
        return await self._answer(request, key, self._gemini_entrance, on_vertex=on_vertex)

    async def vertex(self, request: Request) -> ASGIApp:
        """Serve Vertex AI: a project and a location with a bearer token, or neither with an API key (express mode)."""
        parts = request.path_params["path"].split("/")
        if parts == [""]:
            return await self.gemini(request, on_vertex=True)
        if len(parts) != 5 or parts[0] != "projects" or parts[2] != "locations" or not all(parts[:4]):
            return await unknown(request)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else ""
        return await self._answer(request, key, self._vertex_entrance, on_vertex=True)

    @staticmethod
    def _gemini_entrance(key: str) -> None:
        if not key:
            raise RefusalError(403, "Method doesn't allow unregistered callers. Please use an API key.")

    def _vertex_entrance(self, token: str) -> None:
        if not self._account.knows(token):
            raise RefusalError(401, "Request had invalid authentication credentials. Expected OAuth 2 access token.")

    async def _answer(self, request: Request, key: str, entrance: Callable[[str], None], *, on_vertex: bool) -> ASGIApp:
        try:
            entrance(key)
        except RefusalError as error:
            return error.answer()
        if request.url.path.endswith(VERBS[1]):
            return await self._content.generate(request, key)
        return await self._predict(request, key, on_vertex=on_vertex)

    async def _predict(self, request: Request, key: str, *, on_vertex: bool) -> ASGIApp:
        upstream = request.path_params["model"]
        try:
            order = parse(upstream, await request.body(), on_vertex)
            play = self._world.behaviour.next(order.model)
            if play.scenario == "secret_in_redirect":
                return redirect(key)
            refuse(play, upstream)
        except RefusalError as error:
            return error.answer()

        job = self._world.jobs.accept(Job("google", order.model, request.url.path, uuid4().hex, order.count))
        Client.of(request.scope).on_leave(job.lose_client)
        await asyncio.sleep(self._world.work_s(order.model, play))
        try:
            fail(play, key)
        except RefusalError as error:
            job.fail()
            return error.answer()
        filtered = play.scenario.startswith("rai_filtered")
        count = play.spared(order.count) if filtered else order.count
        predictions = [await self._prediction(order, index, play) for index in range(count)]
        job.finish(count)
        if count < order.count and order.with_reason and play.scenario == "rai_filtered":
            predictions.append([orjson.dumps({"raiFilteredReason": RAI_REASON})])
        reply = Streamed(body(predictions), {"content-type": "application/json; charset=UTF-8"})
        return spoil(play.scenario, reply, key)

    async def _prediction(self, order: Order, index: int, play: Play) -> list[bytes]:
        """Build one element of `predictions` as pieces of JSON. Base64 needs no escaping, so it is not copied."""
        facts = {"mimeType": order.mime_type}
        if order.enhanced:
            facts["prompt"] = f"In more detail: {order.prompt}"
        if order.storage_uri is not None:
            uri = f"{order.storage_uri.rstrip('/')}/{uuid4().hex}/sample_{index}.{FORMATS[order.mime_type]}"
            return [orjson.dumps(facts | {"gcsUri": uri})]
        picture = self._world.picture(
            play,
            model=order.model,
            prompt=order.prompt,
            width=order.width,
            height=order.height,
            format=FORMATS[order.mime_type],
            index=index,
            seed=self._world.random.randrange(2**32) if order.seed is None else order.seed,
            compression=order.compression,
        )
        image = await inline.encoded(self._world, play, play.strikes(index, order.count), picture)
        return [orjson.dumps(facts)[:-1], b',"bytesBase64Encoded":"', image, b'"}']


def body(predictions: list[list[bytes]]) -> list[bytes]:
    """Build the reply as pieces of JSON. An empty list of predictions is left out, like in protobuf's JSON."""
    if not predictions:
        return [b"{}"]
    pieces = [b'{"predictions":[']
    for place, prediction in enumerate(predictions):
        pieces += [b",", *prediction] if place else prediction
    return [*pieces, b"]}"]


async def unknown(request: Request) -> Response:
    return RefusalError(404, f"There is no {request.method} {request.url.path}.").answer()


def parse(upstream: str, raw: bytes, on_vertex: bool) -> Order:
    """Parse the order in a request's body. RefusalError as in the real API."""
    if upstream not in UPSTREAM:
        raise not_found(upstream)
    try:
        given = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise RefusalError(400, "Invalid JSON payload received. Unexpected token.") from None
    if not isinstance(given, dict):
        raise RefusalError(400, "Invalid JSON payload received. An object is expected.")
    instances, parameters = given.pop("instances", None), given.pop("parameters", None) or {}
    if on_vertex and not isinstance(given.pop("labels", None) or {}, dict):
        raise RefusalError(400, "labels must be an object.")
    for name in given:
        raise RefusalError(400, f'Invalid JSON payload received. Unknown name "{name}".')
    if not isinstance(instances, list) or len(instances) != 1 or not isinstance(instances[0], dict):
        raise RefusalError(400, "instances must be a list of one object.")
    prompt = instances[0].get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise RefusalError(400, "The prompt of the instance must be a text that is not empty.")
    if not isinstance(parameters, dict):
        raise RefusalError(400, "parameters must be an object.")
    return read(upstream, prompt, {name: value for name, value in parameters.items() if value is not None}, on_vertex)


def read(upstream: str, prompt: str, given: dict[str, Any], on_vertex: bool) -> Order:
    persons, safety = (PERSONS, SAFETY) if on_vertex else (PERSONS[:-1], SAFETY[:-1])
    for name in VERTEX_ONLY if not on_vertex else ():
        if name in given:
            raise RefusalError(400, f"{name} is not supported in the Gemini API.")
    output = given.pop("outputOptions", {})
    if not isinstance(output, dict):
        raise RefusalError(400, "outputOptions must be an object.")
    width, height = SIZES[choice(given, "aspectRatio", tuple(SIZES))]
    scale = 2 if choice(given, "sampleImageSize", ("1K", "2K")) == "2K" else 1
    seed = whole(given, "seed", 0, 2**32 - 1, 0) if "seed" in given else None
    if flag(given, "addWatermark", True) and seed is not None:
        raise RefusalError(400, "seed is not supported when addWatermark is enabled.")
    if not is_number(given.pop("guidanceScale", 1), 0, 500, float):
        raise RefusalError(400, "guidanceScale must be a number from 0 to 500.")
    choice(given, "safetySetting", safety)
    choice(given, "personGeneration", persons)
    flag(given, "includeSafetyAttributes", False)
    text(given, "language")
    text(given, "negativePrompt")
    order = Order(
        model=UPSTREAM[upstream],
        prompt=prompt,
        count=whole(given, "sampleCount", 1, 4, 4),
        width=width * scale,
        height=height * scale,
        mime_type=choice(output, "mimeType", tuple(FORMATS)),
        compression=whole(output, "compressionQuality", 0, 100, 75),
        with_reason=flag(given, "includeRaiReason", False),
        seed=seed,
        storage_uri=text(given, "storageUri"),
        enhanced=flag(given, "enhancePrompt", False),
    )
    for name in (*given, *output):
        raise RefusalError(400, f"Unknown parameter {name}.")
    return order
