"""The hot path's wait for an order that was placed before."""

import time
from typing import Any

import pytest
from redis.asyncio import Redis

from metering.wallet.wallet import Admission, Caller, RateState, Stands, Verdict, Wallet, WalletLimits
from proxy.errors import ApiError
from proxy.images import ImagesEndpoint
from proxy.messages import TOP_UP
from proxy.middleware import RequestContext
from proxy.requests import RequestLimits
from tests.conftest import run
from tests.contracts.models_kit import FLUX, order


class Open(Wallet):
    """One order, made by a gateway that lives and never ends it."""

    def __init__(self) -> None:
        super().__init__(Redis(), WalletLimits(0.1, 1, 1, 1))

    async def lives(self, org_id: str, owner: str) -> bool:
        return True

    async def stands(self, org_id: str, request_id: str) -> Stands:
        return Stands(request_id, "open", "", 0, "owner")


def test_an_order_that_is_joined_in_vain_is_answered_within_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the margin in which every other answer is sent; after the deadline nobody listens."""
    monkeypatch.setattr("proxy.images.JOIN_POLL_S", 0.01)
    limits = RequestLimits(body_bytes=100, body_s=5.0, deadline_s=1.0)
    nothing: Any = None
    endpoint = ImagesEndpoint(*(nothing,) * 3, Open(), *(nothing,) * 6, limits, price_book="", region="", top_up=TOP_UP)
    rate = RateState(1, 0, 0)
    earlier = Admission(Verdict.EARLIER, 0, 0, rate, rate, 0, Stands("r", "open", "", 0, "owner"))
    context = RequestContext()
    with pytest.raises(ApiError, match="placed before"):
        run(endpoint._earlier(context, order(FLUX), earlier, Caller("org", "key"), keyed=True))
    assert time.monotonic() - context.started_s < limits.deadline_s
