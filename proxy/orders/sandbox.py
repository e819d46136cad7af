"""Orders with a test key: delivered like a live order, with a picture that is drawn here.
Only Redis and the store are used: no provider, no exchange rate, no hold, no journal, no event.
"""

import asyncio
import time
from functools import partial

import structlog

from config.settings import reply_margin_s
from metering.events import StoredImage
from metering.wallet.values import Admission, Caller, OrderIdentity, Rehearsal, Verdict
from metering.wallet.wallet import Wallet
from proxy.errors import ApiError, Kind
from proxy.messages import IMAGES, REQUESTS, SANDBOX_NOT_STORED
from proxy.orders.context import RequestContext
from proxy.orders.places import Places
from proxy.orders.refusals import balance_header, key_refused, rate_headers, rate_limited, with_headers
from proxy.orders.result import Delivery, Result
from proxy.orders.upload import Uploader
from proxy.ports import Order, StoreFailed
from proxy.providers.sandbox import SERVED, pictures

log = structlog.get_logger(__name__)


class Sandbox:
    """Serves sandbox orders. `deadline_s` is the deadline of models that have none of their own."""

    def __init__(self, wallet: Wallet, places: Places, uploader: Uploader, deadline_s: float) -> None:
        self._wallet = wallet
        self._places = places
        self._uploader = uploader
        self._deadline_s = deadline_s

    async def deliver(self, context: RequestContext, caller: Caller, order: Order, identity: OrderIdentity) -> Delivery:
        """Answer one order. Raises ApiError, or WalletAway if Redis gave no verdict.

        A duplicate is drawn again: it is the same picture at the same URL.
        """
        with await self._places.take(caller.org_id, order.n):
            rehearsal = await self._wallet.admit_test(caller, order.model_id, order.n, identity, context.order_id)
            admission = rehearsal.admission
            headers = rate_headers(admission)
            if admission.verdict not in (Verdict.ADMITTED, Verdict.DUPLICATE):
                denial = _denial(admission, order, headers | balance_header(0))
                denial.reason = admission.verdict.name.lower()
                raise denial
            deadline_s = order.model.deadline_s or self._deadline_s
            until_s = context.started_s + deadline_s - reply_margin_s(deadline_s)
            with with_headers(headers):
                images = await self._keep(order, f"{caller.org_id}/{rehearsal.order_id}", until_s)
        replayed = admission.verdict is Verdict.DUPLICATE
        # A test key sees no balance except the sandbox's own.
        return Delivery(_result(rehearsal, order, images), 0, headers, replayed)

    async def _keep(self, order: Order, folder: str, until_s: float) -> tuple[StoredImage, ...]:
        stored: dict[int, StoredImage] = {}
        keeping = (
            self._uploader.upload(
                picture, folder, until_s, partial(stored.__setitem__, picture.index), lambda: None, again=True
            )
            for picture in pictures(order)
        )
        try:
            async with asyncio.timeout(until_s - time.monotonic()):
                await asyncio.gather(*keeping)
        except (StoreFailed, TimeoutError) as error:
            log.error("sandbox_store_failed", request_id=folder.rpartition("/")[2], path=folder, error=str(error))
            raise ApiError(Kind.PROVIDER, SANDBOX_NOT_STORED) from None
        return tuple(stored[number] for number in sorted(stored))


def _denial(admission: Admission, order: Order, headers: dict[str, str]) -> ApiError:
    if refused := key_refused(admission.verdict, order.model_id):
        return refused
    if admission.verdict is Verdict.REQUESTS:
        return rate_limited(REQUESTS, admission, admission.requests, 1, headers)
    assert admission.verdict is Verdict.IMAGES, "the script knows no other verdict"
    return rate_limited(IMAGES, admission, admission.images, order.n, headers)


def _result(rehearsal: Rehearsal, order: Order, images: tuple[StoredImage, ...]) -> Result:
    return Result(
        order_id=rehearsal.order_id,
        created_s=rehearsal.admitted_s,
        model_id=order.model_id,
        served=SERVED,
        echo={},
        usage=None,
        prompts=(None,) * len(images),
        cost_micro_mxn=0,
        images=images,
    )
