"""Steps 5 and 6 of a request: an order's pictures from its provider into the store, as they arrive."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import cast

import structlog
from prometheus_client import Counter, Histogram

from metering.events import StoredImage
from metering.tracing import Kind, step
from proxy.media.formats import NotAnImage
from proxy.orders.routes import Routes
from proxy.orders.spans import OPERATION, note_answer, note_call
from proxy.orders.upload import Uploader
from proxy.outcomes import Failure, Outcome
from proxy.ports import UNKEPT, Call, LetGo, Order, Parts, Picture, Provider, Report, Resumes, StoreFailed

log = structlog.get_logger(__name__)

MAX_TRIES = 3
"""Maximum tries of one call, the first included."""

PATIENT_TRIES = 60
"""The same of a long order: nobody waits for it, so a provider that is full may be so for minutes."""

LONGEST_PAUSE_S = 20.0
"""Maximum pause between two tries."""

FIRST_PAUSE_S = 0.5
"""Pause before the second try, doubled for each further one up to `LONGEST_PAUSE_S`.

The real pause is 0.75 to 1.25 of it, or the upstream's `retry-after` plus up to half of it, so that not all clients
return at the same time.
"""

AGAIN = Counter("ghub_upstream_tries_again_total", "Calls made again, as the upstream had not taken them", ["model"])
SECOND = Counter("ghub_second_route_total", "Orders given to their model's second route", ["model", "provider"])
UPSTREAM_S = Histogram(
    "ghub_upstream_seconds",
    "An upstream call, from its first byte until its reply is read; repeated ones each",
    ["provider", "model", "outcome"],
    # A refusal takes 0.1 s, a picture 2 to 60 s: a quarter more from one to the next where most are, and the deadlines.
    # A long order takes minutes.
    buckets=(
        *(0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 75.0),
        *(150.0, 300.0, 900.0),
    ),
)
STORED_BYTES = Counter("ghub_stored_bytes_total", "Bytes of images that are in the store", ["model"])

OK = "ok"
"""Outcome of a call that brought all its pictures; any other is the reason of an `Outcome`."""


@dataclass(slots=True)
class Progress:
    """State of an order so far: stored images by number, failures, and each call's report.

    `let_go`: another process goes on with it, or it has ended elsewhere. `second` is the order as its model's second
    route is asked for it, as soon as it goes by that.

    `upstream_s` is the time from `began_s` (of `time.monotonic`) until the last reply of its upstream was read,
    `store_s` how long the store took for the picture for which it took longest.
    """

    stored: dict[int, StoredImage] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    let_go: bool = False
    second: Order | None = None
    began_s: float = field(default_factory=time.monotonic)
    upstream_s: float = 0.0
    store_s: float = 0.0

    def take_refused(self) -> list[StoredImage]:
        """Take out pictures that the upstream refused after it had sent them: they are stored, but belong to nobody."""
        refused = {number for report in self.reports for number in report.refused}
        return [self.stored.pop(number) for number in sorted(refused & self.stored.keys())]

    @property
    def facts(self) -> dict[str, int]:
        """What the request's log line says of it."""
        return {
            "upstream_calls": len(self.reports),
            "upstream_ms": round(self.upstream_s * 1000),
            "store_ms": round(self.store_s * 1000),
        }


class UpstreamCalls:
    """Calls the providers and fills the store. `folder` is the folder of an order's images: `<org>/<request>`."""

    def __init__(self, uploader: Uploader, providers: Mapping[str, Provider], routes: Routes) -> None:
        self._uploader = uploader
        self._providers = providers
        self._routes = routes

    async def make(
        self,
        order: Order,
        folder: str,
        until_s: float,
        progress: Progress,
        parts: Parts = UNKEPT,
    ) -> None:
        """Fill `progress` until all is done or until `until_s` of `time.monotonic`.

        Whatever is stored by then counts. A second route gets the order only if the first has certainly taken none of
        it, so that nobody makes it twice. If its parts are patient, what was not taken is brought again for long.
        """
        most_tries = PATIENT_TRIES if parts.patient else MAX_TRIES

        async def by_routes() -> None:
            first, *rest = self._routes.of(order)
            taken = await self._by(first, folder, until_s, progress, parts, 1 if rest else most_tries)
            for second in () if taken else rest:
                reasons = sorted({failure.outcome.reason for failure in progress.failures})
                log.warning("second_route", model=order.model_id, provider=second.model.provider, why=reasons)
                SECOND.labels(order.model_id, second.model.provider).inc()
                progress.failures.clear()
                progress.second = second
                await self._by(second, folder, until_s, progress, parts, most_tries)

        await self._within(until_s, progress, order, by_routes())

    async def go_on(self, calls: Sequence[Call], folder: str, until_s: float, progress: Progress) -> None:
        """Do as `make` for the calls of an order that another process has begun, by the route that it went."""
        making = self._all(calls, folder, until_s, progress, PATIENT_TRIES)
        await self._within(until_s, progress, calls[0].order, making)

    async def _within(
        self, until_s: float, progress: Progress, order: Order, making: Coroutine[None, None, None]
    ) -> None:
        try:
            async with asyncio.timeout(until_s - time.monotonic()):
                await asyncio.sleep(0)  # a deadline in the past ends it here, before anything is bought
                await making
        except TimeoutError:
            progress.failures.append(Failure(Outcome.DEADLINE))
        except Exception as error:  # noqa: BLE001  # raised while an adapter is closed: the order still needs its end
            progress.failures.append(fault(order, error))
        finally:
            making.close()

    async def remove(self, images: list[StoredImage]) -> None:
        """Delete what this order stored without a charge."""
        for image in images:
            await self._uploader.remove(image.path)

    async def _by(
        self, order: Order, folder: str, until_s: float, progress: Progress, parts: Parts, most_tries: int
    ) -> bool:
        """Make an order by one route. Returns False if that has certainly taken none of it.

        Where another route follows, a single call is not repeated. Of several, one may have been taken: so they are.
        """
        with self._routes.passing(order) as shut:
            if shut is not None:
                progress.failures.append(shut)
                return False
            calls = split(order, parts)
            await self._all(
                calls, folder, until_s, progress, most_tries if len(calls) == 1 else max(most_tries, MAX_TRIES)
            )
        accepted = any(failure.outcome.value.accepted for failure in progress.failures)
        return accepted or progress.let_go or bool(progress.stored) or len(progress.failures) < len(calls)

    async def _all(
        self, calls: Sequence[Call], folder: str, until_s: float, progress: Progress, most_tries: int
    ) -> None:
        async with asyncio.TaskGroup() as making:
            for call in calls:
                making.create_task(self._call(call, folder, until_s, progress, most_tries))

    async def _call(self, call: Call, folder: str, until_s: float, progress: Progress, most_tries: int) -> None:
        """Make one upstream call. It is repeated only if the upstream has certainly not accepted it."""
        for tries in range(1, most_tries + 1):
            with step(f"{OPERATION} {call.order.model.upstream}", Kind.CLIENT) as span:
                note_call(span, call, tries)
                failure = await self._try(call, folder, until_s, progress)
                note_answer(span, call, failure)
            if failure is None:
                return
            if not failure.outcome.value.accepted:
                with suppress(LetGo):  # then the next try is told
                    await call.parts.untaken(call)
            pause_s = _pause_s(failure, tries)
            if pause_s is None or tries == most_tries or pause_s > (until_s - time.monotonic()) / 2:
                progress.failures.append(failure)
                return
            AGAIN.labels(call.order.model_id).inc()
            await asyncio.sleep(pause_s)
            call = replace(call, handle="", report=Report())

    async def _try(self, call: Call, folder: str, until_s: float, progress: Progress) -> Failure | None:
        """Store every picture of one call; returns the failure if the call, or a part of it, brought none."""
        failure: Failure | None = None
        brought = 0
        began_s = time.monotonic()
        ended: Outcome | None = Outcome.DEADLINE  # if it is cut off
        progress.reports.append(
            call.report
        )  # at once: a deadline may cut the call off, and what it said by then counts
        pictures = self._pictures(call)
        async with contextlib.aclosing(pictures), asyncio.TaskGroup() as beside:
            try:
                if not call.handle:
                    await call.parts.begin(call)
                async for picture in pictures:
                    brought += 1
                    read = asyncio.Event()
                    beside.create_task(self._keep(call, picture, folder, until_s, progress, read))
                    if picture.inline:
                        await read.wait()
                if brought < call.images:
                    failure = Failure(Outcome.NO_IMAGE, f"{brought} of {call.images}")
                ended = None if failure is None else failure.outcome
            except Failure as known:
                failure, ended = known, known.outcome
            except LetGo:
                progress.let_go = True
            except Exception as error:  # noqa: BLE001  # the whole error is logged; the order must still end as a void
                failure, ended = fault(call.order, error), Outcome.FAULT
            finally:
                ended_s = time.monotonic()
                progress.upstream_s = ended_s - progress.began_s
                provider, model_id = call.order.model.provider, call.order.model_id
                outcome = LetGo.span_code if progress.let_go else OK if ended is None else ended.reason
                UPSTREAM_S.labels(provider, model_id, outcome).observe(ended_s - began_s)
                if ended is Outcome.DEADLINE and ended_s < until_s:
                    ended = Outcome.FAULT  # it was cut off by us, which says nothing about the provider
                retry_after_s = failure.retry_after_s if failure is not None else None
                if not progress.let_go:
                    self._routes.note(call.order, None if brought else ended, retry_after_s)
        return failure

    def _pictures(self, call: Call) -> AsyncGenerator[Picture]:
        """Begin one call: a new job, or one that its provider has already."""
        provider = self._providers[call.order.model.provider]
        return cast(Resumes, provider).resume(call) if call.handle else provider.generate(call)

    async def _keep(
        self, call: Call, picture: Picture, folder: str, until_s: float, progress: Progress, read: asyncio.Event
    ) -> None:
        """Store one picture. `read` is set when the upstream may send the next one."""

        def publish(image: StoredImage) -> None:
            progress.stored[picture.index] = image
            STORED_BYTES.labels(call.order.model_id).inc(image.size_bytes)

        try:
            again = bool(call.handle)  # its first process may have stored the same picture
            took_s = await self._uploader.upload(picture, folder, until_s, publish, read.set, again=again)
            progress.store_s = max(progress.store_s, took_s)
            return
        except NotAnImage as error:
            failure = Failure(Outcome.BAD_IMAGE, str(error))
        except StoreFailed as error:
            place = f"{folder}/{picture.index}"
            log.error("store_failed", request_id=folder.rpartition("/")[2], path=place, error=str(error))
            failure = Failure(Outcome.STORE_FAILED)
        except Failure as known:  # the reply itself broke
            progress.failures.append(known)
            return
        except Exception as error:  # noqa: BLE001  # as above
            failure = fault(call.order, error)
        if picture.counts is None or await picture.counts():
            progress.failures.append(failure)


def _pause_s(failure: Failure, tries: int) -> float | None:
    """Choose the seconds until the call may be repeated after so many tries; None if it must not be."""
    if failure.outcome.value.accepted or not failure.outcome.value.again:
        return None
    backoff_s = min(FIRST_PAUSE_S * 2 ** (tries - 1), LONGEST_PAUSE_S)
    asked_s = max(backoff_s * 0.75, failure.retry_after_s or 0.0)
    return float(asked_s + backoff_s * random.uniform(0.0, 0.5))  # noqa: S311  # jitter, no secret


def fault(order: Order, error: Exception) -> Failure:
    """Turn an unexpected error into a failure: the order ends without a charge, and the log has the trace."""
    log.error("fault_in_generation", model=order.model_id, exc_info=error)
    return Failure(Outcome.FAULT, type(error).__name__)


def split(order: Order, parts: Parts = UNKEPT) -> list[Call]:
    """Split an order into upstream calls, each within the model's maximum."""
    most = order.model.images_per_call
    return [Call(order, first, min(most, order.n - first), parts) for first in range(0, order.n, most)]
