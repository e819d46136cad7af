"""Imagen's successors: POST …/{model}:generateContent, one picture a reply, after drafts and thoughts."""

import asyncio
import math
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import orjson
from starlette.requests import Request
from starlette.types import ASGIApp

from simulator import inline
from simulator.answers import Streamed, redirect, spoil
from simulator.behaviour import Play
from simulator.client import Client
from simulator.google_rpc import RefusalError, choice, fail, not_found, refuse, whole
from simulator.jobs import Job
from simulator.world import World

BANANA, PRO = "google/gemini-nano-banana-2.1", "google/gemini-3-pro-image"
UPSTREAM = {model.partition("/")[2]: model for model in (BANANA, PRO)}
EVERY = {
    "drafts": "A thought with a picture and two drafts come before the picture. The drafts are billed as its tokens.",
    "thought_last": "A thought with a picture comes after the picture. Billed.",
    "thoughts_only": "The only picture is a thought. Not billed.",
    "text_only": "The answer is a text without a picture. Not billed.",
    "image_safety": "A draft comes, then the answer stops with IMAGE_SAFETY. Not billed.",
    "prompt_feedback": "The prompt is blocked: 200 with promptFeedback and no candidates. Not billed.",
    "many_tokens": "The usage has 100,000 tokens of thoughts. Billed.",
    "long_signature": "Beside the picture is a thoughtSignature of two million characters. Billed.",
    "api_key_invalid_400": "The key is refused with 400 and reason API_KEY_INVALID. Not accepted, so not a job.",
    **inline.SCENARIOS,
}
SCENARIOS = {BANANA: EVERY, PRO: EVERY}
SIDES = {"1K": 1024, "2K": 2048, "4K": 4096}
TOKENS = {BANANA: {"1K": 1120, "2K": 1680, "4K": 3780}, PRO: {"1K": 1120, "2K": 1120, "4K": 2000}}
THOUGHTS = 64
RATIOS = (
    *("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9"),
    *("1:4", "4:1", "1:8", "8:1"),
)
LEVELS = ("minimal", "medium", "high")
SIGNATURE_CHARS = 2_000_000
NOT_BILLED = ("thoughts_only", "text_only", "image_safety", "prompt_feedback")


@dataclass(frozen=True, slots=True)
class Order:
    model: str  # public id
    prompt: str
    ratio: str
    resolution: str

    @property
    def size(self) -> tuple[int, int]:
        """About the resolution's pixels, in steps of 16."""
        across, down = map(int, self.ratio.split(":"))
        scale = SIDES[self.resolution] / math.sqrt(across * down)
        return round(across * scale / 16) * 16, round(down * scale / 16) * 16


class Content:
    def __init__(self, world: World) -> None:
        self._world = world

    async def generate(self, request: Request, key: str) -> ASGIApp:
        """Serve the endpoint to the owner of `key`, by the Gemini API or Vertex AI."""
        upstream = request.path_params["model"]
        try:
            order = parse(upstream, await request.body())
            play = self._world.behaviour.next(order.model)
            if play.scenario == "secret_in_redirect":
                return redirect(key)
            refuse(play, upstream)
        except RefusalError as error:
            return error.answer()
        response_id = uuid4().hex
        job = self._world.jobs.accept(Job("google", order.model, request.url.path, response_id, 1))
        Client.of(request.scope).on_leave(job.lose_client)
        await asyncio.sleep(self._world.work_s(order.model, play))
        try:
            fail(play, key)
        except RefusalError as error:
            job.fail()
            return error.answer()
        parts = await self._parts(order, play)
        job.finish(0 if play.scenario in NOT_BILLED else 1)
        reply = Streamed(body(order, play, parts, response_id), {"content-type": "application/json; charset=UTF-8"})
        return spoil(play.scenario, reply, key)

    async def _parts(self, order: Order, play: Play) -> list[list[bytes]]:
        """Make the answer's parts as pieces of JSON, in the order in which the scenario wants them."""
        words = [orjson.dumps({"text": f"Here is {order.prompt}."})]
        match play.scenario:
            case "text_only":
                return [words]
            case "thoughts_only":
                return [await self._part(order, play, 1, thought=True)]
            case "image_safety":
                return [await self._part(order, play, 1)]
            case "drafts":
                thought = await self._part(order, play, 1, thought=True)
                return [thought, await self._part(order, play, 2), words, await self._part(order, play, 3)] + [
                    await self._part(order, play, 0)
                ]
            case "thought_last":
                return [await self._part(order, play, 0), await self._part(order, play, 1, thought=True)]
        return [words, await self._part(order, play, 0)]

    async def _part(self, order: Order, play: Play, number: int, *, thought: bool = False) -> list[bytes]:
        """Make one part with a picture: 0 is the final one, any other number a draft. A thought says so last."""
        width, height = order.size
        picture = self._world.picture(
            play,
            model=order.model,
            prompt=order.prompt,
            width=width,
            height=height,
            format="png",
            index=number,
            seed=self._world.random.randrange(2**32),
        )
        image = await inline.encoded(self._world, play, number == 0, picture)
        after: dict[str, Any] = {"thought": True} if thought else {}
        if play.scenario == "long_signature":
            after["thoughtSignature"] = "A" * SIGNATURE_CHARS
        rest = orjson.dumps(after)[1:-1]
        head = b'{"inlineData":{"mimeType":"image/png","data":"'
        return [head, image, b'"}', b"," + rest if rest else b"", b"}"]


def body(order: Order, play: Play, parts: list[list[bytes]], response_id: str) -> list[bytes]:
    """Build the reply as pieces of JSON. Base64 needs no escaping, so the pictures are not copied."""
    text_tokens = math.ceil(len(order.prompt) / 4)
    images = {"drafts": 3, "text_only": 0, "thoughts_only": 0}.get(play.scenario, 1)
    image_tokens = images * TOKENS[order.model][order.resolution]
    thoughts = 100_000 if play.scenario == "many_tokens" else THOUGHTS
    rest: dict[str, Any] = {
        "usageMetadata": {
            "promptTokenCount": text_tokens,
            "candidatesTokenCount": image_tokens,
            "totalTokenCount": text_tokens + image_tokens + thoughts,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": text_tokens}],
            "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": image_tokens}],
            "thoughtsTokenCount": thoughts,
        },
        "modelVersion": order.model.partition("/")[2],
        "responseId": response_id,
    }
    if play.scenario == "prompt_feedback":
        rest["usageMetadata"] = {"promptTokenCount": text_tokens, "totalTokenCount": text_tokens}
        return [orjson.dumps({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, **rest})]
    reason = "IMAGE_SAFETY" if play.scenario == "image_safety" else "STOP"
    pieces = [b'{"candidates":[{"content":{"parts":[']
    for place, part in enumerate(parts):
        pieces += [b",", *part] if place else part
    return [*pieces, b'],"role":"model"},"finishReason":"', reason.encode(), b'","index":0}],', orjson.dumps(rest)[1:]]


def parse(upstream: str, raw: bytes) -> Order:
    """Parse the order in a request's body. RefusalError as in the real API."""
    if upstream not in UPSTREAM:
        raise not_found(upstream)
    try:
        given = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise RefusalError(400, "Invalid JSON payload received. Unexpected token.") from None
    if not isinstance(given, dict):
        raise RefusalError(400, "Invalid JSON payload received. An object is expected.")
    contents, config = given.pop("contents", None), given.pop("generationConfig", None) or {}
    for name in given:
        raise RefusalError(400, f'Invalid JSON payload received. Unknown name "{name}".')
    try:
        (turn,) = contents
        prompt = "".join(part["text"] for part in turn["parts"])
    except (TypeError, ValueError, KeyError):
        raise RefusalError(400, "contents must be one turn with parts of text.") from None
    if not prompt:
        raise RefusalError(400, "contents must not be empty.")
    if not isinstance(config, dict):
        raise RefusalError(400, "generationConfig must be an object.")
    return Order(UPSTREAM[upstream], prompt, *read(UPSTREAM[upstream], dict(config)))


def read(model: str, given: dict[str, Any]) -> tuple[str, str]:
    """Parse the ratio and the resolution of a `generationConfig`."""
    modalities = given.pop("responseModalities", ["TEXT", "IMAGE"])
    if not isinstance(modalities, list) or "IMAGE" not in modalities or {*modalities} - {"TEXT", "IMAGE"}:
        raise RefusalError(400, "responseModalities must name IMAGE.")
    whole(given, "candidateCount", 1, 1, 1)
    image, thinking = given.pop("imageConfig", None) or {}, given.pop("thinkingConfig", None) or {}
    if not isinstance(image, dict) or not isinstance(thinking, dict):
        raise RefusalError(400, "imageConfig and thinkingConfig must be objects.")
    image, thinking = dict(image), dict(thinking)
    if "thinkingLevel" in thinking:
        if model == PRO:
            raise RefusalError(400, "Thinking level is not supported for this model.")
        choice(thinking, "thinkingLevel", LEVELS)
    ratio, resolution = choice(image, "aspectRatio", RATIOS), choice(image, "imageSize", tuple(SIDES))
    for name in (*given, *image, *thinking):
        raise RefusalError(400, f'Invalid JSON payload received. Unknown name "{name}".')
    return ratio, resolution
