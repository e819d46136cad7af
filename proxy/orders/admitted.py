"""An order that was let in: what it asks for, what it may cost, and until when."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from metering.clock import boottime_s
from metering.pricing import Quote
from metering.wallet.values import Caller, OrderIdentity
from proxy.orders.ending import Ending
from proxy.orders.places import Place
from proxy.ports import Order


@dataclass(frozen=True, slots=True)
class AdmittedOrder:
    """The admission's half of its event is in `opened`; `place` is what it takes up until its end.

    `…_s` are seconds of `time.monotonic`, `hold_ends_boot_s` of `boottime_s`; `…_us` are Unix µs by Redis. `headers`
    tell its client what is left of its rates.
    """

    request_id: UUID
    caller: Caller
    order: Order
    identity: OrderIdentity
    quote: Quote
    generate_until_s: float
    reply_until_s: float
    hold_ends_us: int
    hold_ends_boot_s: float
    admitted_us: int
    opened: bytes
    place: Place
    ending: Ending = field(default_factory=Ending)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def order_id(self) -> str:
        """The request's id as the wallet, the event and the storage path carry it."""
        return str(self.request_id)

    @property
    def folder(self) -> str:
        """Where its images go."""
        return f"{self.caller.org_id}/{self.order_id}"

    def hold_is_open(self) -> bool:
        """By this machine's own clock, whatever Redis says or does not say."""
        return boottime_s() < self.hold_ends_boot_s
