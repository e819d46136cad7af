"""What every adapter does with an upstream's reply: read it within bounds, and say what a broken one means."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx2
import orjson
import structlog

from metering.answered import PROMPT_CHARS, USAGE_BYTES
from proxy.media.inline import BadDocument, JsonPictures, inline_pictures
from proxy.outcomes import Failure, Outcome
from proxy.ports import Call, Chunks, Picture, Report, Source

log = structlog.get_logger(__name__)

WORD_CHARS = 128
"""Of what an upstream echoes, and of the name of a model; a real one has 40."""

UNPACKED = {"accept-encoding": "identity"}
"""Replies are read as they come, and pictures in them do not get smaller by packing."""


Refusal = Callable[[httpx2.Response, bytes], Failure]
"""What an answer other than 200 means: each provider has words of its own."""


async def post_for_pictures(
    client: httpx2.AsyncClient,
    url: str,
    headers: Mapping[str, str],
    body: Any,
    call: Call,
    document: JsonPictures,
    refusal: Refusal,
) -> AsyncGenerator[Picture]:
    """The pictures inside a JSON reply, one after the other, while it arrives. Raises Failure.

    When they are through, `rest_of(document)` is the rest of the reply.
    """
    try:
        async with client.stream("POST", url, headers={**headers, **UNPACKED}, json=body) as response:
            if response.status_code != 200:
                raise refusal(response, await read_document(response, document.max_document_bytes))
            async for place, chunks in inline_pictures(response.aiter_raw(), document):
                brought = len(call.report.numbers)
                if brought < call.images:
                    call.report.numbers[place] = call.first + brought
                    yield Picture(call.first + brought, _opener(chunks), inline=True)
    except BadDocument as error:
        raise Failure(Outcome.BAD_REPLY, str(error)) from error
    except httpx2.HTTPError as error:
        raise broken_off(error) from error


def rest_of(document: JsonPictures) -> dict[str, Any]:
    """A reply without its pictures, as an object. Raises Failure."""
    try:
        rest = document.finish()
    except BadDocument as error:
        raise Failure(Outcome.BAD_REPLY, str(error)) from error
    if not isinstance(rest, dict):
        raise Failure(Outcome.BAD_REPLY, "no object")
    return rest


def _opener(chunks: Chunks) -> Callable[[], AbstractAsyncContextManager[Source]]:
    @asynccontextmanager
    async def open_() -> AsyncIterator[Source]:
        try:
            yield Source(chunks)
        except BadDocument as error:
            raise Failure(Outcome.BAD_REPLY, str(error)) from error
        except httpx2.HTTPError as error:
            raise broken_off(error) from error

    return open_


def items_of(rest: dict[str, Any], name: str) -> list[tuple[int, dict[str, Any]]]:
    """(place, item) of a reply's list, as far as its items are objects."""
    items = rest.get(name)
    return [
        (place, item) for place, item in enumerate(items if isinstance(items, list) else []) if isinstance(item, dict)
    ]


def note_prompt(report: Report, number: int, prompt: Any) -> None:
    """A prompt as the upstream has rewritten it, as far as it is text; a longer one than any model's is cut."""
    if not isinstance(prompt, str):
        return
    if len(prompt) > PROMPT_CHARS:
        log.warning("revised_prompt_cut", characters=len(prompt))
    report.revised_prompts[number] = prompt[:PROMPT_CHARS]


def note_usage(report: Report, usage: Any) -> None:
    """What the upstream has counted, as far as it is an object; one that is out of all bounds is left out."""
    if not isinstance(usage, dict):
        return
    if (size_bytes := len(orjson.dumps(usage))) > USAGE_BYTES:
        log.warning("usage_left_out", size_bytes=size_bytes)
        return
    report.usage = usage


def short(text: Any) -> str | None:
    """An upstream's word for a model or a size, as far as it is text."""
    return text[:WORD_CHARS] if isinstance(text, str) else None


async def read_document(response: httpx2.Response, max_bytes: int) -> bytes:
    """A reply that holds no pictures, whole. Raises Failure past `max_bytes`."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise Failure(Outcome.BAD_REPLY, "the reply is too large")
    return bytes(body)


def broken_off(error: httpx2.HTTPError) -> Failure:
    """Only a connection that never came about is certain not to have bought an image."""
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout):
        return Failure(Outcome.REFUSED_CONNECTION, type(error).__name__)
    return Failure(Outcome.NO_ANSWER, type(error).__name__)


def by_status(response: httpx2.Response) -> Failure:
    """What a status means where the provider's own words say no more. 429 and 503 were not taken on."""
    match response.status_code:
        case 401 | 403:
            return Failure(Outcome.NOT_AUTHORISED, f"status {response.status_code}")
        case 429:
            return Failure(Outcome.RATE_LIMITED, retry_after_s=retry_after_s(response))
        case 503:
            return Failure(Outcome.BUSY, retry_after_s=retry_after_s(response))
        case status if status >= 500:
            return Failure(Outcome.OVERLOADED, f"status {status}")
        case status:
            return Failure(Outcome.REJECTED, f"status {status}")


def retry_after_s(response: httpx2.Response) -> float | None:
    """The upstream's wish in seconds; a date or nonsense is passed over."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() and len(value) < 10 else None
