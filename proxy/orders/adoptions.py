"""Long orders whose gateway has died, or has let them go: any living gateway goes on with them (rule 35)."""

import time
from collections.abc import Callable, Collection
from dataclasses import replace

import structlog
from prometheus_client import Counter
from redis.exceptions import RedisError

from config.settings import HOLD_MARGIN_S, settle_s
from metering.background import every
from metering.clock import boottime_s
from metering.events import ADMISSION_UNREAD, EventError, Opened, decode_opened, quote_of
from metering.journal.file import JournalFailed
from metering.journal.open_orders import OpenOrders
from metering.pricing import Quote
from metering.wallet.connection import WalletAway
from metering.wallet.long_orders import Adopted, Left, LongOrders
from metering.wallet.values import Caller, OrderIdentity
from metering.wallet.wallet import Wallet
from proxy.errors import ApiError
from proxy.offer import Offer
from proxy.orders.admitted import AdmittedOrder
from proxy.orders.calls import Progress, split
from proxy.orders.document import Unreadable, decode
from proxy.orders.generations import Generations
from proxy.orders.places import Place, Places
from proxy.orders.quotes import as_quoted
from proxy.orders.routes import Routes
from proxy.outcomes import Failure, Outcome
from proxy.ports import Call, Order

log = structlog.get_logger(__name__)

LOOK_S = 2.0
"""Interval between two searches. An order that was let go waits for one of them, and no longer."""

MAX_TIMES = 8
"""Hand-overs of one order, after which it is lost: one that ends every gateway that makes it must not end them all. A
roll-out of three gateways hands an order over three times at most.
"""

ADOPTED = Counter("ghub_orders_adopted_total", "Long orders that this process has taken over from another one")


class Adoptions:
    """Takes long orders over, and goes on with them. `kept_by` are the providers whose jobs can be gone on with."""

    def __init__(
        self,
        orders: LongOrders,
        wallet: Wallet,
        open_orders: OpenOrders,
        places: Places,
        generations: Generations,
        routes: Routes,
        offer: Offer,
        kept_by: Collection[str],
        stopping: Callable[[], bool],
    ) -> None:
        self._orders = orders
        self._wallet = wallet
        self._open_orders = open_orders
        self._places = places
        self._generations = generations
        self._routes = routes
        self._offer = offer
        self._kept_by = kept_by
        self._stopping = stopping
        self._beyond: set[str] = set()

    async def run(self, every_s: float) -> None:
        """Search until cancelled."""
        away = (RedisError, WalletAway, JournalFailed, OSError, TimeoutError)
        await every(every_s, self.look, away=away, name="adoptions_wait")

    async def look(self) -> None:
        """Take over what has no living owner, as far as there is room for it here."""
        left = await self._orders.left(self._generations.made)
        self._beyond &= {one.order_id for one in left}
        for one in left:
            if self._stopping():
                return
            if one.order_id not in self._beyond and not await self._take(one):
                return

    async def _take(self, left: Left) -> bool:
        """Take one over, if it can be read here. False if there is no room for it, and so for none."""
        try:
            kept = await self._orders.read(left)
            if kept is None:
                return True
            order, identity, measured_by = decode(kept.document, self._offer.catalogue)
            opened = decode_opened(kept.opened)
            if (order.model.provider, order.model.upstream) != (opened.provider, opened.upstream):
                raise Unreadable("its model is made by another upstream now")
        except (Unreadable, EventError, ValueError) as error:
            self._beyond.add(left.order_id)
            log.warning("order_not_adopted", request_id=left.order_id, why=str(error))
            return True
        order = replace(order, tags=opened.tags, metadata=opened.metadata, webhook=opened.webhook)
        try:
            place = await self._places.take(left.org_id, order.n, order.labels_bytes)
        except ApiError as full:
            log.warning("order_not_adopted", request_id=left.order_id, why=str(full))
            return False
        with place:
            await self._go_on(left, order, identity, opened, measured_by, place)
        return True

    async def _go_on(
        self, left: Left, order: Order, identity: OrderIdentity, opened: Opened, measured_by: str | None, place: Place
    ) -> None:
        """Take an order over, unless another was first, and go on with it under a number of this journal.

        One that no gateway has ever begun is void: its customer may have been told that it was not placed.
        """
        number = await self._open_orders.take_over(left.order_id)
        adopted = None
        try:
            adopted = await self._orders.adopt(left, self._open_orders.incarnation, number)
        finally:
            if adopted is None:  # if Redis has given it to us and its answer was lost, the next looks find it again
                self._open_orders.let_go(number)
        if adopted is None:
            return
        if not adopted.taken:
            self._open_orders.let_go(number)
            await self._wallet.void(left.org_id, left.order_id, ADMISSION_UNREAD, owner=self._orders.owner)
            return
        ADOPTED.inc()
        log.warning("order_adopted", request_id=left.order_id, org=left.org_id, owner=left.owner, number=number)
        admitted = self._admitted(
            adopted, order, identity, quote_of(opened, adopted.admitted_us, measured_by), place.hand_over()
        )
        calls, progress = self._calls(admitted, adopted)
        if adopted.times > MAX_TIMES:
            calls, progress = [], Progress(failures=[Failure(Outcome.LOST, f"handed over {adopted.times} times")])
        going_on = self._generations.go_on(admitted, calls, progress)
        going_on.add_done_callback(lambda _: self._open_orders.let_go(number))

    def _admitted(
        self, adopted: Adopted, order: Order, identity: OrderIdentity, quote: Quote, place: Place
    ) -> AdmittedOrder:
        """Build the order as it was admitted, with a place here."""
        now_us, now_s = self._wallet.now_us(adopted.org_id), time.monotonic()
        hold_s = (adopted.ends_us - adopted.admitted_us) / 1_000_000
        until_s = now_s + (adopted.until_us - now_us) / 1_000_000
        return AdmittedOrder(
            order_id=adopted.order_id,
            caller=Caller(adopted.org_id, adopted.key_id),
            order=as_quoted(order, quote),
            identity=identity,
            quote=quote,
            generate_until_s=until_s,
            reply_until_s=until_s + settle_s(hold_s - HOLD_MARGIN_S),
            hold_ends_us=adopted.ends_us,
            hold_ends_boot_s=boottime_s() + (adopted.ends_us - now_us) / 1_000_000,
            admitted_us=adopted.admitted_us,
            opened=adopted.opened,
            place=place,
            long=True,
            trace=adopted.trace,
        )

    def _calls(self, admitted: AdmittedOrder, adopted: Adopted) -> tuple[list[Call], Progress]:
        """List the jobs that go on, and the parts that have not begun; the others are lost. Nothing if none has begun.

        All go by the route of those that have begun. If Redis may have forgotten that one has begun, it has (rule 21).
        """
        parts, progress = {part.first: part for part in adopted.parts}, Progress()
        if not parts and adopted.whole:
            return [], progress
        began = {(part.provider, part.upstream) for part in adopted.parts}
        routes = self._routes.of(admitted.order)
        route = next((one for one in routes if (one.model.provider, one.model.upstream) in began), admitted.order)
        progress.second = None if route is admitted.order else route
        known = {call.first for call in split(route) if call.first in parts or not adopted.whole}
        calls = []
        for call in split(route, self._generations.parts_of(admitted, known)):
            part = parts.get(call.first)
            if part is not None and part.handle and part.provider in self._kept_by:
                calls.append(replace(call, handle=part.handle))
            elif call.first not in known:
                calls.append(call)
            else:
                progress.failures.append(Failure(Outcome.LOST))
        return calls, progress
