"""OpenAI's Images API: one POST, the pictures as base64 inside the JSON of the reply."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import orjson

from proxy.media import BadDocument, JsonPictures, inline_pictures
from proxy.outcomes import Failure, Outcome
from proxy.ports import Call, Chunks, Picture
from proxy.providers.replies import broken_off, read_document, retry_after_s

_MODERATED = frozenset({"moderation_blocked", "content_policy_violation"})


class OpenAI:
    """The adapter. `document_bytes` bounds a reply's JSON without its pictures."""

    def __init__(self, client: httpx2.AsyncClient, url: str, key: str, document_bytes: int) -> None:
        self._client = client
        self._url = f"{url}/images/generations"
        self._headers = {"authorization": f"Bearer {key}"}
        self._document_bytes = document_bytes

    async def generate(self, call: Call) -> AsyncGenerator[Picture]:
        """The call's pictures, one after the other, while the reply arrives. Raises Failure."""
        document = JsonPictures("data", "b64_json", self._document_bytes)
        try:
            async with self._client.stream("POST", self._url, headers=self._headers, json=_body(call)) as response:
                if response.status_code != 200:
                    raise _refusal(response, await read_document(response, self._document_bytes))
                async for place, chunks in inline_pictures(response.aiter_raw(), document):
                    if place < call.images:
                        yield Picture(call.first + place, _opener(chunks), concurrent=False)
            document.finish()
        except BadDocument as error:
            raise Failure(Outcome.BAD_REPLY, str(error)) from error
        except httpx2.HTTPError as error:
            raise broken_off(error) from error


def _opener(chunks: Chunks) -> Any:
    @asynccontextmanager
    async def open_() -> AsyncIterator[Chunks]:
        try:
            yield chunks
        except BadDocument as error:
            raise Failure(Outcome.BAD_REPLY, str(error)) from error
        except httpx2.HTTPError as error:
            raise broken_off(error) from error

    return open_


def _body(call: Call) -> dict[str, Any]:
    order = call.order
    body: dict[str, Any] = {
        "model": order.model.upstream,
        "prompt": order.prompt,
        "n": call.images,
        "size": order.model.sizes[order.size],
    }
    if order.quality is not None:
        body["quality"] = order.quality
    if order.user is not None:
        body["user"] = order.user
    return body


def _refusal(response: httpx2.Response, body: bytes) -> Failure:
    try:
        code = orjson.loads(body)["error"]["code"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        code = None
    match response.status_code:
        case 400 if code in _MODERATED:
            return Failure(Outcome.CONTENT_POLICY)
        case 401 | 403:
            return Failure(Outcome.NOT_AUTHORISED, f"status {response.status_code}")
        case 404:
            return Failure(Outcome.RETIRED)
        case 429:
            return Failure(Outcome.RATE_LIMITED, retry_after_s=retry_after_s(response))
        case status if status >= 500:
            return Failure(Outcome.OVERLOADED, f"status {status}")
        case status:
            return Failure(Outcome.REJECTED, f"status {status}")
