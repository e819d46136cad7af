"""The hot path's wait for an order that was placed before."""

import asyncio
import time
from typing import Any

import pytest
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.types import Message

from metering.wallet.wallet import Admission, Caller, Placed, RateState, Stands, Verdict, Wallet, WalletLimits
from proxy.api.images import ImagesEndpoint
from proxy.api.middleware import RequestContext
from proxy.api.requests import RequestLimits
from proxy.errors import ApiError
from proxy.messages import TOP_UP
from tests.conftest import run
from tests.contracts.models_kit import FLUX, order


class Open(Wallet):
    """One order, made by a gateway that lives and never ends it."""

    def __init__(self) -> None:
        super().__init__(Redis(), WalletLimits(0.1, 1, 1, 1))
        self.left: list[tuple[str, str | None]] = []

    async def lives(self, org_id: str, owner: str) -> bool:
        return True

    async def client_gone(
        self, caller: Caller, request_id: str, placed: Placed, *, asked_by: str | None = None
    ) -> None:
        self.left.append((request_id, asked_by))

    async def stands(self, org_id: str, request_id: str) -> Stands:
        return Stands(request_id, "open", "", 0, "owner")


class Dead(Open):
    """Its gateway is gone."""

    async def lives(self, org_id: str, owner: str) -> bool:
        return False


def endpoint_over(wallet: Wallet, limits: RequestLimits) -> ImagesEndpoint:
    """An endpoint that does nothing but wait."""
    nothing: Any = None
    return ImagesEndpoint(*(nothing,) * 3, wallet, *(nothing,) * 6, limits, price_book="", region="", top_up=TOP_UP)


RATE = RateState(1, 0, 0)
EARLIER = Admission(Verdict.EARLIER, 0, 0, RATE, RATE, 0, Stands("r", "open", "", 0, "owner"))


def test_an_order_that_is_joined_in_vain_is_answered_within_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the margin in which every other answer is sent; after the deadline nobody listens."""
    monkeypatch.setattr("proxy.api.images.JOIN_POLL_S", 0.01)
    limits = RequestLimits(body_bytes=100, body_s=5.0, deadline_s=1.0)
    context = RequestContext()
    with pytest.raises(ApiError, match="placed before"):
        run(endpoint_over(Open(), limits)._earlier(context, order(FLUX), EARLIER, Caller("org", "key"), keyed=True))
    assert time.monotonic() - context.started_s < limits.deadline_s


@pytest.mark.parametrize(("wallet", "left"), [(Open(), True), (Dead(), False)])
def test_who_joins_in_vain_leaves_the_order_to_the_next(
    wallet: Open, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is made; where its gateway is gone, the next need not wait for it (38)."""
    monkeypatch.setattr("proxy.api.images.JOIN_POLL_S", 0.01)
    context = RequestContext()

    async def silent() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("nothing comes")

    async def join() -> None:
        request = Request({"type": "http", "ghub": context}, silent)
        limits = RequestLimits(body_bytes=100, body_s=5.0, deadline_s=0.2)
        placed = Placed("f")
        await endpoint_over(wallet, limits)._join(request, order(FLUX), EARLIER, Caller("org", "key"), placed)

    with pytest.raises(ApiError, match="placed before"):
        run(join())
    assert wallet.left == ([("r", str(context.request_id))] if left else [])
