"""OpenAI's Images API: one POST, the pictures as base64 inside the JSON of the reply."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx2
import orjson

from config.settings import RESULT_DOCUMENT_BYTES, Settings
from config.tokens import TokenUsage, token_count
from proxy.media.inline import JsonPictures
from proxy.outbound.clients import Outbound
from proxy.outcomes import Failure, Outcome
from proxy.ports import Call, Picture, Provider
from proxy.upstream import by_status, items_of, note_prompt, note_usage, post_for_pictures, rest_of, short

_UNPAID = ("insufficient_quota", "billing_hard_limit_reached")
"""429s that no pause helps: our account is empty."""

_MODERATED = ("moderation_blocked", "content_policy_violation")
_ECHOED = ("size", "quality", "background", "output_format")


NAME = "openai"


class OpenAI:
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
        _read(call, rest_of(document))


def _body(call: Call) -> dict[str, Any]:
    order = call.order
    body: dict[str, Any] = {
        "model": order.model.upstream,
        "prompt": order.prompt,
        "n": call.images,
        "size": order.model.sizes[order.size],
        **order.model.always,
        **order.fields,
    }
    if order.quality is not None:
        body["quality"] = order.quality
    return body


def _read(call: Call, rest: dict[str, Any]) -> None:
    """Read what the reply says besides its pictures."""
    report = call.report
    for place, item in items_of(rest, "data"):
        if place in report.numbers:
            note_prompt(report, report.numbers[place], item.get("revised_prompt"))
    report.echo = {name: word for name in _ECHOED if (word := short(rest.get(name))) is not None}
    usage = rest.get("usage")
    note_usage(report, usage)
    if (used := _used(_object(usage))) is not None:
        report.usd = call.order.model.usd_of(used)


def _used(usage: dict[str, Any]) -> TokenUsage | None:
    """Sort a usage by what each kind costs; None if it has no sums.

    What its details leave open is text that was not cached, and picture.
    """
    tokens_in, tokens_out = token_count(usage.get("input_tokens")), token_count(usage.get("output_tokens"))
    if tokens_in is None or tokens_out is None:
        return None
    details = _object(usage.get("input_tokens_details"))
    image_in = min(token_count(details.get("image_tokens")) or 0, tokens_in)
    text_in = tokens_in - image_in
    kinds = _object(details.get("cached_tokens_details")) or {"text_tokens": details.get("cached_tokens")}
    cached_image = min(token_count(kinds.get("image_tokens")) or 0, image_in)
    cached_text = min(token_count(kinds.get("text_tokens")) or 0, text_in)
    text_out = min(token_count(_object(usage.get("output_tokens_details")).get("text_tokens")) or 0, tokens_out)
    return TokenUsage(
        text_input=text_in - cached_text,
        cached_text_input=cached_text,
        image_input=image_in - cached_image,
        cached_image_input=cached_image,
        image_output=tokens_out - text_out,
        text_output=text_out,
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _refusal(response: httpx2.Response, body: bytes) -> Failure:
    try:
        code = orjson.loads(body)["error"]["code"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        code = None
    if response.status_code == 400 and code in _MODERATED:
        return Failure(Outcome.CONTENT_POLICY)
    if response.status_code == 429 and code in _UNPAID:
        return Failure(Outcome.NOT_AUTHORISED, code)
    if response.status_code == 404:
        return Failure(Outcome.RETIRED)
    return by_status(response)


def from_settings(settings: Settings, outbound: Outbound) -> Provider | None:
    """Build the adapter; None if its key is not set."""
    if settings.openai_key is None:
        return None
    key = settings.openai_key.get_secret_value()
    return OpenAI(outbound.client, settings.openai_url, key, RESULT_DOCUMENT_BYTES)
