"""An upstream's reply, for every adapter: reading it within limits, and the meaning of a broken one."""

import re
from asyncio import Event
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx2
import orjson
import structlog

from metering.answered import PROMPT_CHARS, USAGE_BYTES
from proxy.media.inline import BadDocument, JsonPictures, inline_pictures
from proxy.outbound.clients import MAKING
from proxy.outcomes import Failure, Outcome
from proxy.ports import Call, Chunks, Picture, Report, Source

log = structlog.get_logger(__name__)

WORD_CHARS = 128
"""Maximum characters of an upstream's echo, model name or id; a real one has 40."""

MAX_IDS = 4
"""Maximum ids of one call: that of its request, a job's, and one more of each."""

_ID = re.compile(rf"[!#-\[\]-~]{{1,{WORD_CHARS}}}")
"""Visible, and without what JSON escapes: the size of an order's entry in the journal is known ahead."""

_ID_HEADERS = ("x-request-id", "x-goog-request-id", "x-fal-request-id")

UNPACKED = {"accept-encoding": "identity"}
"""Replies are read as they come; compression does not make pictures smaller."""


Refusal = Callable[[httpx2.Response, bytes], Failure]
"""Meaning of an answer other than 200. Each provider has its own error codes."""

Verdict = Callable[[dict[str, Any], bool], None]
"""Judges a reply without its pictures, and whether it has one that counts. Raises Failure if that is not delivered."""


async def post_for_pictures(
    client: httpx2.AsyncClient,
    url: str,
    headers: Mapping[str, str],
    body: Any,
    call: Call,
    document: JsonPictures,
    refusal: Refusal,
) -> AsyncGenerator[Picture]:
    """Yield the pictures inside a JSON reply, one after the other, while it arrives. Raises Failure.

    After the last one, `rest_of(document)` gives the rest of the reply.
    """
    async with _answered(client, url, headers, body, call, document, refusal) as response:
        async for place, chunks in inline_pictures(response.aiter_raw(), document):
            brought = len(call.report.numbers)
            if brought < call.images:
                call.report.numbers[place] = call.first + brought
                yield Picture(call.first + brought, _opener(chunks), inline=True)


class _Candidate:
    """A picture of which the rest of the reply says whether it is the one that counts."""

    def __init__(self, place: int) -> None:
        self.place = place
        self._counts = False
        self._decided = Event()

    def decide(self, counts: bool) -> None:
        """Decide it; the first decision holds."""
        if not self._decided.is_set():
            self._counts = counts
            self._decided.set()

    async def counts(self) -> bool:
        await self._decided.wait()
        return self._counts


async def post_for_last_picture(
    client: httpx2.AsyncClient,
    url: str,
    headers: Mapping[str, str],
    body: Any,
    call: Call,
    document: JsonPictures,
    refusal: Refusal,
    verdict: Verdict,
) -> AsyncGenerator[Picture]:
    """Yield the pictures inside a JSON reply, of which the last counts that is no thought. Raises Failure.

    At most two are kept at a time: the last one so far, and the one that arrives. `verdict` judges the whole reply.
    """
    last: _Candidate | None = None
    newest: _Candidate | None = None
    try:
        async with _answered(client, url, headers, body, call, document, refusal) as response:
            async for place, chunks in inline_pictures(response.aiter_raw(), document):
                last = _later(last, newest, document)
                newest = _Candidate(place)
                yield Picture(call.first, _opener(chunks), inline=True, counts=newest.counts)
        rest = rest_of(document)
        last, newest = _later(last, newest, document), None
        verdict(rest, last is not None)
        if last is not None:
            call.report.numbers[last.place] = call.first
            last.decide(True)
    finally:
        for candidate in (last, newest):
            if candidate is not None:
                candidate.decide(False)


def _later(last: _Candidate | None, newest: _Candidate | None, document: JsonPictures) -> _Candidate | None:
    """Choose between the last picture and the newest, whose item is closed; the other one is given up."""
    if newest is None:
        return last
    thought = document.item(newest.place).get("thought") is True
    dropped, kept = (newest, last) if thought else (last, newest)
    if dropped is not None:
        dropped.decide(False)
    return kept


@asynccontextmanager
async def _answered(
    client: httpx2.AsyncClient,
    url: str,
    headers: Mapping[str, str],
    body: Any,
    call: Call,
    document: JsonPictures,
    refusal: Refusal,
) -> AsyncIterator[httpx2.Response]:
    """Post, and open the reply if it is a 200. Raises Failure, also for what breaks while it is read."""
    try:
        asked = {**headers, **UNPACKED}
        async with client.stream("POST", url, headers=asked, json=body, timeout=MAKING) as response:
            note_ids(call.report, response)
            if response.status_code != 200:
                raise refusal(response, await read_document(response, document.max_document_bytes))
            yield response
    except BadDocument as error:
        raise Failure(Outcome.BAD_REPLY, str(error)) from error
    except httpx2.HTTPError as error:
        raise broken_off(error) from error


def rest_of(document: JsonPictures) -> dict[str, Any]:
    """Parse a reply without its pictures, as an object. Raises Failure."""
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
    """List (index, item) of a reply's list; items that are not objects are left out."""
    items = rest.get(name)
    return [
        (place, item) for place, item in enumerate(items if isinstance(items, list) else []) if isinstance(item, dict)
    ]


def note_prompt(report: Report, number: int, prompt: Any) -> None:
    """Note a prompt that the upstream rewrote, if it is text. One longer than any model's is cut."""
    if not isinstance(prompt, str):
        return
    if len(prompt) > PROMPT_CHARS:
        log.warning("revised_prompt_cut", characters=len(prompt))
    report.revised_prompts[number] = prompt[:PROMPT_CHARS]


def note_usage(report: Report, usage: Any) -> None:
    """Note the upstream's usage, if it is an object. One that is far too large is left out."""
    if not isinstance(usage, dict):
        return
    if (size_bytes := len(orjson.dumps(usage))) > USAGE_BYTES:
        log.warning("usage_left_out", size_bytes=size_bytes)
        return
    report.usage = usage


def note_ids(report: Report, response: httpx2.Response) -> None:
    """Note what the upstream calls its request, as its headers say."""
    for name in _ID_HEADERS:
        note_id(report, response.headers.get(name))


def note_id(report: Report, name: Any) -> None:
    """Note what the upstream calls its request or job, if that is printable ASCII and not too long; each once."""
    if isinstance(name, str) and _ID.fullmatch(name) and name not in report.ids and len(report.ids) < MAX_IDS:
        report.ids.append(name)


def short(text: Any) -> str | None:
    """Shorten an upstream's word for a model or a size; None if it is not text."""
    return text[:WORD_CHARS] if isinstance(text, str) else None


async def read_document(response: httpx2.Response, max_bytes: int) -> bytes:
    """Read a whole reply without pictures. Raises Failure above `max_bytes`."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise Failure(Outcome.BAD_REPLY, "the reply is too large")
    return bytes(body)


def broken_off(error: httpx2.HTTPError) -> Failure:
    """Classify a transport error: only if no connection was made is it certain that no image was bought."""
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout):
        return Failure(Outcome.REFUSED_CONNECTION, type(error).__name__)
    return Failure(Outcome.NO_ANSWER, type(error).__name__)


def by_status(response: httpx2.Response) -> Failure:
    """Classify a status about which the provider says no more. 429 and 503 mean that the call was not accepted."""
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
    """Read `retry-after` in seconds; a date or an invalid value is ignored."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() and len(value) < 10 else None
