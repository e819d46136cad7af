"""Steps 5 and 6 of a request: an order's pictures from its provider into the store, as they arrive."""

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import structlog
from prometheus_client import Counter

from metering.events import StoredImage
from metering.tracing import Kind, step
from proxy.media.formats import NotAnImage
from proxy.orders.spans import OPERATION, note_answer, note_call
from proxy.orders.upload import Uploader
from proxy.outcomes import Failure, Outcome
from proxy.ports import Call, Note, Order, Picture, Provider, Report, StoreFailed, note_nothing

log = structlog.get_logger(__name__)

MAX_TRIES = 3
"""Maximum tries of one call, the first included."""

FIRST_PAUSE_S = 0.5
"""Pause before the second try, doubled for the third.

The real pause is 0.75 to 1.25 of it, or the upstream's `retry-after` plus up to half of it, so that not all clients
return at the same time.
"""

AGAIN = Counter("ghub_upstream_tries_again_total", "Calls made again, as the upstream had not taken them", ["model"])


@dataclass(slots=True)
class Progress:
    """State of an order so far: stored images by number, failures, and each call's report."""

    stored: dict[int, StoredImage] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)

    def take_refused(self) -> list[StoredImage]:
        """Take out pictures that the upstream refused after it had sent them: they are stored, but belong to nobody."""
        refused = {number for report in self.reports for number in report.refused}
        return [self.stored.pop(number) for number in sorted(refused & self.stored.keys())]


class UpstreamCalls:
    """Calls the providers and fills the store. `folder` is the folder of an order's images: `<org>/<request>`."""

    def __init__(self, uploader: Uploader, providers: Mapping[str, Provider]) -> None:
        self._uploader = uploader
        self._providers = providers

    async def make(
        self, order: Order, folder: str, until_s: float, progress: Progress, note: Note = note_nothing
    ) -> None:
        """Fill `progress` until all is done or until `until_s` of `time.monotonic`.

        Whatever is stored by then counts.
        """
        try:
            async with asyncio.timeout(until_s - time.monotonic()), asyncio.TaskGroup() as calls:
                await asyncio.sleep(0)  # a deadline in the past ends it here, before anything is bought
                for call in split(order, note):
                    calls.create_task(self._call(call, folder, until_s, progress))
        except TimeoutError:
            progress.failures.append(Failure(Outcome.DEADLINE))
        except Exception as error:  # noqa: BLE001  # raised while an adapter is closed: the order still needs its end
            progress.failures.append(fault(order, error))

    async def remove(self, images: list[StoredImage]) -> None:
        """Delete what this order stored without a charge."""
        for image in images:
            await self._uploader.remove(image.path)

    async def _call(self, call: Call, folder: str, until_s: float, progress: Progress) -> None:
        """Make one upstream call. It is repeated only if the upstream has certainly not accepted it."""
        for tries in range(1, MAX_TRIES + 1):
            with step(f"{OPERATION} {call.order.model.upstream}", Kind.CLIENT) as span:
                note_call(span, call, tries)
                failure = await self._try(call, folder, until_s, progress)
                note_answer(span, call, failure)
            if failure is None:
                return
            pause_s = _pause_s(failure, tries)
            if pause_s is None or pause_s > (until_s - time.monotonic()) / 2:
                progress.failures.append(failure)
                return
            AGAIN.labels(call.order.model_id).inc()
            await asyncio.sleep(pause_s)
            call = replace(call, report=Report())

    async def _try(self, call: Call, folder: str, until_s: float, progress: Progress) -> Failure | None:
        """Store every picture of one call; returns the failure if the call, or a part of it, brought none."""
        failure: Failure | None = None
        brought = 0
        progress.reports.append(
            call.report
        )  # at once: a deadline may cut the call off, and what it said by then counts
        pictures = self._providers[call.order.model.provider].generate(call)
        async with contextlib.aclosing(pictures), asyncio.TaskGroup() as beside:
            try:
                async for picture in pictures:
                    brought += 1
                    read = asyncio.Event()
                    beside.create_task(self._keep(call.order, picture, folder, until_s, progress, read))
                    if picture.inline:
                        await read.wait()
                if brought < call.images:
                    failure = Failure(Outcome.NO_IMAGE, f"{brought} of {call.images}")
            except Failure as known:
                failure = known
            except Exception as error:  # noqa: BLE001  # the whole error is logged; the order must still end as a void
                failure = fault(call.order, error)
        return failure

    async def _keep(
        self, order: Order, picture: Picture, folder: str, until_s: float, progress: Progress, read: asyncio.Event
    ) -> None:
        """Store one picture. `read` is set when the upstream may send the next one."""

        def publish(image: StoredImage) -> None:
            progress.stored[picture.index] = image

        try:
            await self._uploader.upload(picture, folder, until_s, publish, read.set)
        except NotAnImage as error:
            progress.failures.append(Failure(Outcome.BAD_IMAGE, str(error)))
        except StoreFailed as error:
            place = f"{folder}/{picture.index}"
            log.error("store_failed", request_id=folder.rpartition("/")[2], path=place, error=str(error))
            progress.failures.append(Failure(Outcome.STORE_FAILED))
        except Failure as failure:
            progress.failures.append(failure)
        except Exception as error:  # noqa: BLE001  # as above
            progress.failures.append(fault(order, error))


def _pause_s(failure: Failure, tries: int) -> float | None:
    """Choose the seconds until the call may be repeated; None if it must not be."""
    if failure.outcome.value.accepted or not failure.outcome.value.again or tries == MAX_TRIES:
        return None
    backoff_s = FIRST_PAUSE_S * 2 ** (tries - 1)
    asked_s = max(backoff_s * 0.75, failure.retry_after_s or 0.0)
    return float(asked_s + backoff_s * random.uniform(0.0, 0.5))  # noqa: S311  # jitter, no secret


def fault(order: Order, error: Exception) -> Failure:
    """Turn an unexpected error into a failure: the order ends without a charge, and the log has the trace."""
    log.error("fault_in_generation", model=order.model_id, exc_info=error)
    return Failure(Outcome.FAULT, type(error).__name__)


def split(order: Order, note: Note = note_nothing) -> list[Call]:
    """Split an order into upstream calls, each within the model's maximum."""
    most = order.model.images_per_call
    return [Call(order, first, min(most, order.n - first), note) for first in range(0, order.n, most)]
