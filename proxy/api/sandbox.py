"""POST /v1/images/generations by a test key: the reply of a live order, about a picture that is drawn here.

Redis and the store are asked, nobody else: no provider, no exchange rate, no hold, no journal, no event.
"""

import asyncio
import time
from functools import partial
from uuid import UUID

import structlog
from starlette.responses import Response

from config.settings import reply_margin_s
from metering.events import StoredImage
from metering.money import format_mxn
from metering.wallet.wallet import Admission, Caller, Placed, Rehearsal, Verdict, Wallet
from proxy.api.middleware import RequestContext
from proxy.api.replies import Replies
from proxy.errors import ApiError, Kind
from proxy.messages import IMAGES, REQUESTS, SANDBOX_NOT_STORED
from proxy.orders.lifecycle import lifecycle_headers
from proxy.orders.refusals import balance_header, key_refused, rate_headers, rate_limited, telling_rates
from proxy.orders.result import Result
from proxy.orders.upload import Keeper
from proxy.ports import Order, StoreFailed
from proxy.providers.sandbox import SERVED, pictures

log = structlog.get_logger(__name__)


class Sandbox:
    """`deadline_s` is a request's, where its model has none of its own."""

    def __init__(self, wallet: Wallet, keeper: Keeper, replies: Replies, deadline_s: float) -> None:
        self._wallet = wallet
        self._keeper = keeper
        self._replies = replies
        self._deadline_s = deadline_s

    async def create(self, context: RequestContext, caller: Caller, order: Order, placed: Placed) -> Response:
        """Answer one order. Raises ApiError, or WalletAway where Redis gave no verdict.

        An order that is placed again is drawn again: it is the same picture at the same address.
        """
        request_id = str(context.request_id)
        rehearsal = await self._wallet.admit_test(caller, order.model_id, order.n, placed, request_id)
        admission = rehearsal.admission
        headers = rate_headers(admission) | balance_header(0)  # the sandbox's own: a test key is told of no other
        if admission.verdict not in (Verdict.ADMITTED, Verdict.EARLIER):
            raise _denial(admission, order, headers)
        deadline_s = order.model.deadline_s or self._deadline_s
        until_s = context.started_s + deadline_s - reply_margin_s(deadline_s)
        with telling_rates(admission):
            images = await self._keep(order, f"{caller.org_id}/{rehearsal.request_id}", until_s)
        result = _result(rehearsal, order, images)
        context.facts |= {"images": order.n, "cost_mxn": format_mxn(0)}
        headers |= lifecycle_headers(order.model_id, order.model) | {"x-geekhub-cost-mxn": format_mxn(0)}
        if admission.verdict is Verdict.EARLIER:
            headers |= {"idempotent-replayed": "true"}
        if order.response_format == "b64_json":
            return self._replies.with_images(result, headers, until_s)
        return self._replies.with_urls(result, headers)

    async def _keep(self, order: Order, folder: str, until_s: float) -> tuple[StoredImage, ...]:
        stored: dict[int, StoredImage] = {}
        keeping = (
            self._keeper.keep(
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
        request_id=UUID(rehearsal.request_id),
        created_s=rehearsal.admitted_s,
        model_id=order.model_id,
        served=SERVED,
        echo={},
        usage=None,
        prompts=(None,) * len(images),
        cost_micro_mxn=0,
        images=images,
    )
