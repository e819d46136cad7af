"""xAI: OpenAI's format with exceptions. A refusal can be a 200, a retired model is a 500, the price is in the reply.

A size is sent as a ratio, `16:9`, and perhaps a resolution after it, `16:9 2k`.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from decimal import Decimal
from typing import Any

import httpx2
import orjson

from config.settings import RESULT_DOCUMENT_BYTES, Settings
from proxy.media.inline import JsonPictures
from proxy.outbound.clients import Outbound
from proxy.outcomes import Failure, Outcome
from proxy.ports import Call, Picture, Provider
from proxy.upstream import by_status, items_of, note_id, note_prompt, post_for_pictures, rest_of, short

TICKS_PER_USD = 10_000_000_000

_FINAL = (400, 410, 500)
_RETIRED = ("deprecated", "model not found", "does not exist")
_MODERATED = ("moderation", "content policy", "safety", "usage guidelines")


NAME = "xai"


class XAI:
    """The adapter. `document_bytes` bounds a reply's JSON without its pictures."""

    def __init__(self, client: httpx2.AsyncClient, url: str, key: str, document_bytes: int) -> None:
        self._client = client
        self._url = url
        self._headers = {"authorization": f"Bearer {key}"}
        self._document_bytes = document_bytes

    async def generate(self, call: Call) -> AsyncGenerator[Picture]:
        """Yield the call's pictures, one after the other, while the reply arrives. Raises Failure."""
        url = f"{call.order.model.url or self._url}/images/generations"
        document = JsonPictures("data", "b64_json", self._document_bytes)
        pictures = post_for_pictures(self._client, url, self._headers, _body(call), call, document, _refusal)
        async with aclosing(pictures):
            async for picture in pictures:
                yield picture
        rest = rest_of(document)
        flagged = _read(call, rest)
        if flagged or rest.get("data") == [] or _blocked(rest):
            raise Failure(Outcome.CONTENT_POLICY, f"{flagged} flagged")


def _body(call: Call) -> dict[str, Any]:
    order = call.order
    body: dict[str, Any] = {
        "model": order.model.upstream,
        "prompt": order.prompt,
        "n": call.images,
        "response_format": "b64_json",
        **order.model.always,
        **order.fields,
    }
    ratio, _, resolution = order.model.sizes[order.size].partition(" ")
    if ratio:
        body["aspect_ratio"] = ratio
    if resolution:
        body["resolution"] = resolution
    if order.quality is not None:
        body["quality"] = order.quality
    return body


def _blocked(rest: dict[str, Any]) -> bool:
    """True if the reply says why it has no pictures: in a text beside them, whose name is not documented."""
    return any("block" in name and isinstance(said, str) and said for name, said in rest.items())


def _read(call: Call, rest: dict[str, Any]) -> int:
    """Read what the reply says besides its pictures; returns how many of them are flagged."""
    report, flagged = call.report, 0
    for place, item in items_of(rest, "data"):
        number = report.numbers.get(place)
        if item.get("respect_moderation") is False:
            flagged += 1
            report.refused |= {number} if number is not None else set()
        if number is not None:
            note_prompt(report, number, item.get("revised_prompt"))
    usage, served = rest.get("usage"), rest.get("model")
    ticks = usage.get("cost_in_usd_ticks") if isinstance(usage, dict) else None
    if type(ticks) is int and ticks >= 0:
        report.usd = Decimal(ticks) / TICKS_PER_USD
    report.served = short(served)
    note_id(report, rest.get("id"))
    return flagged


def _refusal(response: httpx2.Response, body: bytes) -> Failure:
    """Classify an error of three formats, or in prose: a retired model is a 500 that must not be retried."""
    text = _message(body).lower()
    if response.status_code == 404 or (response.status_code in _FINAL and any(words in text for words in _RETIRED)):
        return Failure(Outcome.RETIRED)
    if response.status_code == 400 and any(words in text for words in _MODERATED):
        return Failure(Outcome.CONTENT_POLICY)
    return by_status(response)


def _message(body: bytes) -> str:
    try:
        error = orjson.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""


def from_settings(settings: Settings, outbound: Outbound) -> Provider | None:
    """Build the adapter; None if its key is not set."""
    if settings.xai_key is None:
        return None
    key = settings.xai_key.get_secret_value()
    return XAI(outbound.client, settings.xai_url, key, RESULT_DOCUMENT_BYTES)
