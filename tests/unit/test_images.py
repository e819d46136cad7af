"""The hot path's wait for an order that was placed before."""

import asyncio
import time
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from metering.wallet.connection import open_redis
from metering.wallet.long_orders import NOBODY
from metering.wallet.values import Caller, OrderIdentity, OrderStatus, WalletLimits
from metering.wallet.wallet import Wallet
from proxy.api.images import joined
from proxy.errors import ApiError
from proxy.orders.admission import Duplicate
from proxy.orders.context import RequestContext
from proxy.orders.replay import Replay
from tests.conftest import run


class Open(Wallet):
    """One order, made by a gateway that lives and never ends it."""

    def __init__(self) -> None:
        super().__init__(
            open_redis("redis://nowhere", connections=1, call_timeout_s=1.0), WalletLimits(0.1, 1, 1, 1, 1)
        )
        self.left: list[tuple[str, str | None]] = []

    async def is_alive(self, org_id: str, owner: str) -> bool:
        return True

    async def client_gone(
        self, caller: Caller, order_id: str, identity: OrderIdentity, *, asked_by: str | None = None
    ) -> None:
        self.left.append((order_id, asked_by))

    async def status_of(self, org_id: str, order_id: str) -> OrderStatus:
        return OrderStatus(order_id, "open", "", 0, "owner")


class Dead(Open):
    """Its gateway is gone."""

    async def is_alive(self, org_id: str, owner: str) -> bool:
        return False


class LetGo(Dead):
    """Nobody has the order at this moment, and another gateway is about to take it over."""

    async def is_alive(self, org_id: str, owner: str) -> bool:
        raise AssertionError("an order that was let go has no owner to ask for")

    async def status_of(self, org_id: str, order_id: str) -> OrderStatus:
        return OrderStatus(order_id, "open", "", 0, NOBODY, long=True)


NOTHING: Any = None


def duplicate(deadline_s: float) -> Duplicate:
    """Duplicate of an order that is being made, due in this many seconds."""
    status = OrderStatus("r", "open", "", 0, NOBODY)
    return Duplicate(Caller("org", "key"), OrderIdentity("f"), "asker", status, 0, time.monotonic() + deadline_s, {})


def test_an_order_that_is_joined_in_vain_is_answered_within_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """After it nobody listens."""
    monkeypatch.setattr("proxy.orders.replay.JOIN_POLL_S", 0.01)
    began_s = time.monotonic()
    with pytest.raises(ApiError, match="placed before"):
        run(Replay(Open(), NOTHING).of(duplicate(0.2)))
    assert 0.19 < time.monotonic() - began_s < 1.0


@pytest.mark.rule(38)
@pytest.mark.parametrize(("wallet", "left"), [(Open(), True), (Dead(), False), (LetGo(), True)])
def test_who_joins_in_vain_leaves_the_order_to_the_next(
    wallet: Open, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is made, by whichever gateway; if that is dead, the next client need not wait for it (38)."""
    monkeypatch.setattr("proxy.orders.replay.JOIN_POLL_S", 0.01)

    async def silent() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("nothing comes")

    async def join() -> None:
        request = Request({"type": "http", "ghub": RequestContext()}, silent)
        await joined(Replay(wallet, NOTHING), request, duplicate(0.2))

    with pytest.raises(ApiError, match="placed before"):
        run(join())
    assert wallet.left == ([("r", "asker")] if left else [])
