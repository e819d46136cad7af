"""fal: a queue (submit, poll, result, cancel) or one direct call; the pictures come as URLs."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx2
import orjson

from config.settings import RESULT_DOCUMENT_BYTES, Settings
from metering.pauses import Pauses
from proxy.outbound.clients import MAKING, ImageFetchFailed, Outbound
from proxy.outbound.hosts import HostNotAllowed
from proxy.outcomes import Failure, Outcome
from proxy.ports import Call, LetGo, Picture, Provider, Report, Source
from proxy.upstream import UNPACKED, broken_off, by_status, note_id, note_ids, read_document

FIRST_POLL_S = 0.25
POLL_GROWTH = 1.3
LONGEST_POLL_S = 1.5
"""The longest pause between polls. The median job takes 7 s: about ten polls, and the result is at most 1.5 s late."""

CANCEL_S = 0.5
"""At the deadline the job is cancelled; the reply waits no longer than this for the cancellation."""

MAX_POLL_FAILURES = 5
"""Polling is free and safe to repeat; after this many failures in a row a job is given up. That of a long order only
after as many answers about the job itself: an outage of some seconds costs nobody its pictures.
"""

MAX_RESULT_TRIES = 3

_JOB = re.compile(r"/requests/([\w-]{1,128})/cancel\"?(?:,|}|$)", re.ASCII)

_MODERATED = "content_policy_violation"
_CANCELLED = "client_cancelled"

_NOT_STARTED = ("runner_scheduling_failure", "runner_connection_timeout", "runner_connection_refused")
"""503s in which no runner had the job. If a runner was lost (`runner_disconnected`), nobody knows what it did."""

_UNREAD = (Outcome.OVERLOADED, Outcome.RATE_LIMITED, Outcome.NOT_AUTHORISED)
"""Answers to a request for a state or a result that say nothing about its job, which was accepted long ago."""


NAME = "fal"


class Fal:
    """The adapter. With `queue_url`, a job survives a lost connection; without it, the direct call is used."""

    def __init__(self, outbound: Outbound, *, url: str, queue_url: str | None, key: str, document_bytes: int) -> None:
        self._outbound = outbound
        self._client = outbound.client
        self._url = url
        self._queue_url = queue_url
        self._headers = {"authorization": f"Key {key}", "x-fal-no-retry": "1"} | UNPACKED
        self._document_bytes = document_bytes

    @property
    def keeps_jobs(self) -> bool:
        """True if another process can go on with a job: a direct call is lost with its connection."""
        return self._queue_url is not None

    async def generate(self, call: Call) -> AsyncGenerator[Picture]:
        """Yield the call's pictures, each to be fetched from its URL. Raises Failure."""
        try:
            result = await (self._queued(call) if self._queue_url else self._direct(call))
        except httpx2.HTTPError as error:
            raise broken_off(error) from error
        async for picture in self._pictures(call, result):
            yield picture

    async def _pictures(self, call: Call, result: Any) -> AsyncGenerator[Picture]:
        images, flagged = _images(result)
        for place, image_url in enumerate(images[: call.images]):
            if not flagged[place]:
                yield Picture(call.first + place, self._opener(image_url), inline=False)
        if any(flagged):
            raise Failure(Outcome.CONTENT_POLICY, "flagged by the safety checker")

    async def _direct(self, call: Call) -> Any:
        model = call.order.model
        url = f"{model.url or self._url}/{model.upstream}"
        return await self._ask("POST", url, _body(call), call.report, timeout=MAKING)

    async def resume(self, call: Call) -> AsyncGenerator[Picture]:
        """Yield the pictures of the job that the call's handle names. Raises Failure."""
        try:
            job = _read_handle(call.handle, self._queue_of(call))
        except Failure as elsewhere:  # the queue has another address now: nobody knows what becomes of the job
            raise Failure(Outcome.LOST, elsewhere.detail) from None
        try:
            result = await self._finished(job, call)
        except httpx2.HTTPError as error:
            raise broken_off(error) from error
        async for picture in self._pictures(call, result):
            yield picture

    async def _queued(self, call: Call) -> Any:
        queue_url = self._queue_of(call)
        job = _job(await self._submitted(call, queue_url), queue_url)
        try:
            await call.parts.note(call, job.handle)
        except (asyncio.CancelledError, Failure):
            await self._cancel(job.cancel_url)
            raise
        return await self._finished(job, call)

    async def _finished(self, job: "_Job", call: Call) -> Any:
        """Wait for a job, and read its result."""
        note_id(call.report, self.job_id(job.cancel_url))
        try:
            await self._wait(job.status_url, call)
        except (asyncio.CancelledError, Failure):
            await self._cancel(job.cancel_url)
            raise
        return await self._result(job.result_url)

    def _queue_of(self, call: Call) -> str:
        return call.order.model.url or self._queue_url or ""

    async def _submitted(self, call: Call, queue_url: str) -> Any:
        """Submit a job; returns the queue's answer. After the deadline, wait a moment for it, to cancel the job."""
        url = f"{queue_url}/{call.order.model.upstream}"
        asking = asyncio.ensure_future(self._ask("POST", url, _body(call), call.report))
        try:
            job = await asyncio.shield(asking)
            note_id(call.report, job.get("request_id") if isinstance(job, dict) else None)
            return job
        except asyncio.CancelledError:
            await asyncio.wait({asking}, timeout=CANCEL_S)
            if asking.done() and not asking.cancelled() and asking.exception() is None:
                await self._cancel(_pinned(asking.result(), "cancel_url", queue_url))
            asking.cancel()
            raise

    async def _wait(self, status_url: str, call: Call) -> None:
        """Wait until the job is completed, with success or not.

        Raises Failure if that cannot be known, or if it was cancelled; LetGo if another process is to go on with it.
        """
        failures = 0
        await asyncio.sleep(FIRST_POLL_S)
        async for _ in Pauses(FIRST_POLL_S * POLL_GROWTH, LONGEST_POLL_S, growth=POLL_GROWTH):
            if call.parts.leaving:
                raise LetGo
            try:
                status = await self._ask("GET", status_url)
                failures = 0
                if isinstance(status, dict) and status.get("status") == "COMPLETED":
                    return
            except (httpx2.HTTPError, Failure) as error:
                if call.parts.patient and (isinstance(error, httpx2.HTTPError) or error.outcome in _UNREAD):
                    continue
                failures += 1
                if failures == MAX_POLL_FAILURES:
                    raise Failure(Outcome.NO_ANSWER, "status unknown") from error

    async def _result(self, result_url: str) -> Any:
        """Read a finished job's result. The job is paid: a read is safe to repeat, never a reason to buy again."""
        failure = Failure(Outcome.NO_ANSWER)
        for tries in range(MAX_RESULT_TRIES):
            await asyncio.sleep(FIRST_POLL_S if tries else 0)
            try:
                return await self._ask("GET", result_url)
            except httpx2.HTTPError as error:
                failure = Failure(Outcome.NO_ANSWER, f"result: {type(error).__name__}")
            except Failure as answer:
                if answer.outcome not in _UNREAD:
                    raise
                failure = answer if answer.outcome.value.accepted else Failure(Outcome.NO_ANSWER, f"result: {answer}")
        raise failure

    async def cancel_job(self, handle: str) -> None:
        """Ask for the cancellation of a job by its handle."""
        with suppress(Failure):
            await self._cancel(_read_handle(handle, self._queue_url or "").cancel_url)

    async def _cancel(self, cancel_url: str) -> None:
        try:
            async with asyncio.timeout(CANCEL_S):
                await self._ask("PUT", cancel_url)
        except (httpx2.HTTPError, Failure, TimeoutError):
            return  # only a best effort: the order is void in any case, and fal may have finished

    def job_id(self, handle: str) -> str | None:
        """Read the request's id from its handle, or from the URL that cancels it."""
        found = _JOB.search(handle)
        return found[1] if found else None

    async def _ask(
        self,
        method: str,
        url: str,
        body: Any = None,
        report: Report | None = None,
        timeout: Any = httpx2.USE_CLIENT_DEFAULT,
    ) -> Any:
        """Ask for a document. The request's id is noted in `report`, if the request may make pictures."""
        async with self._client.stream(method, url, headers=self._headers, json=body, timeout=timeout) as response:
            if report is not None:
                note_ids(report, response)
            text = await read_document(response, self._document_bytes)
        try:
            document = orjson.loads(text)
        except orjson.JSONDecodeError:
            document = None
        if response.status_code not in (200, 202):
            raise _refusal(response, document)
        if document is None:
            raise Failure(Outcome.BAD_REPLY, "not JSON")
        return document

    def _opener(self, image_url: str) -> Any:
        @asynccontextmanager
        async def open_() -> AsyncIterator[Source]:
            try:
                async with self._outbound.fetch_image(image_url) as image:
                    yield Source(image.chunks, image.size_bytes)
            except HostNotAllowed as error:
                raise Failure(Outcome.FETCH_FAILED, "host not allowed") from error
            except ImageFetchFailed as error:
                raise Failure(Outcome.FETCH_FAILED, f"status {error.status}") from error
            except httpx2.HTTPError as error:
                raise Failure(Outcome.FETCH_FAILED, type(error).__name__) from error

        return open_


@dataclass(frozen=True, slots=True)
class _Job:
    """A job by the URLs that fal gave for it, each of which leads to the host that we called."""

    status_url: str
    result_url: str
    cancel_url: str

    @property
    def handle(self) -> str:
        """Encode it for another process."""
        urls = {"status_url": self.status_url, "response_url": self.result_url, "cancel_url": self.cancel_url}
        return orjson.dumps(urls).decode()


def _job(told: Any, queue_url: str) -> _Job:
    """Read a job from the queue's answer, or from a handle. Raises Failure if one of its URLs leads elsewhere."""
    return _Job(*(_pinned(told, f"{name}_url", queue_url) for name in ("status", "response", "cancel")))


def _read_handle(handle: str, queue_url: str) -> _Job:
    """Decode a handle. Raises Failure. One of the version before is the URL that cancels the job, and no more."""
    if not handle.startswith("{"):
        cancel_url = _pinned({"cancel_url": handle}, "cancel_url", queue_url)
        return _Job(cancel_url, cancel_url, cancel_url)
    try:
        return _job(orjson.loads(handle), queue_url)
    except orjson.JSONDecodeError:
        raise Failure(Outcome.BAD_REPLY, "a handle that cannot be read") from None


def _pinned(job: Any, name: str, queue_url: str) -> str:
    """Return the job's URL if it leads to the host that we called, because our key is sent to it."""
    url = job.get(name) if isinstance(job, dict) else None
    with suppress(httpx2.InvalidURL, ValueError):
        if isinstance(url, str) and _origin(url) == _origin(queue_url):
            return url
    raise Failure(Outcome.BAD_REPLY, f"{name} leads elsewhere")


def _origin(url: str) -> tuple[str, bytes, bytes]:
    """Return where a request goes, as the HTTP client reads the URL."""
    parsed = httpx2.URL(url)
    return parsed.scheme, parsed.userinfo, parsed.netloc


def _body(call: Call) -> dict[str, Any]:
    """Build the body. `16:9` is a ratio, `1440x960` is pixels, any other size a preset. A model that makes one image
    has no `num_images`."""
    order = call.order
    body: dict[str, Any] = {"prompt": order.prompt, **order.model.always, **order.fields}
    if order.model.images_per_call > 1:
        body["num_images"] = call.images
    size = order.model.sizes[order.size]
    if ":" in size:
        body["aspect_ratio"] = size
    elif size[:1].isdigit():
        width, _, height = size.partition("x")
        body["image_size"] = {"width": int(width), "height": int(height)}
    else:
        body["image_size"] = size
    return body


def _images(result: Any) -> tuple[list[str], list[bool]]:
    """Read the URLs, and which of them are black pictures in place of a refused one."""
    try:
        urls = [image["url"] for image in result["images"]]
        flags = [bool(flag) for flag in result.get("has_nsfw_concepts") or []]
    except (KeyError, TypeError, AttributeError):
        raise Failure(Outcome.BAD_REPLY, "no list of images") from None
    if not all(isinstance(url, str) for url in urls):
        raise Failure(Outcome.BAD_REPLY, "an image without URL")
    return urls, (flags + [False] * len(urls))[: len(urls)]


def _refusal(response: httpx2.Response, document: Any) -> Failure:
    detail = document.get("detail") if isinstance(document, dict) else None
    types = [item.get("type") for item in detail if isinstance(item, dict)] if isinstance(detail, list) else []
    match response.status_code:
        case 404 if isinstance(detail, str) and detail.startswith("Path"):
            return Failure(Outcome.RETIRED)
        case 404:
            return Failure(Outcome.NO_ANSWER, "the job is not known")
        case 499 if isinstance(document, dict) and document.get("error_type") == _CANCELLED:
            return Failure(Outcome.CANCELLED)
        case 422 if _MODERATED in types:
            return Failure(Outcome.CONTENT_POLICY)
        case 504 if response.headers.get("x-fal-request-timeout-type") == "user":
            return Failure(Outcome.BUSY, "not started in time")
        case 503 if not isinstance(document, dict) or document.get("error_type") not in _NOT_STARTED:
            return Failure(Outcome.OVERLOADED, "status 503")
        case _:
            return by_status(response)


def from_settings(settings: Settings, outbound: Outbound) -> Provider | None:
    """Build the adapter; None if its key is not set."""
    if settings.fal_key is None:
        return None
    return Fal(
        outbound,
        url=settings.fal_url,
        queue_url=settings.fal_queue_url if settings.fal_mode == "queue" else None,
        key=settings.fal_key.get_secret_value(),
        document_bytes=RESULT_DOCUMENT_BYTES,
    )
