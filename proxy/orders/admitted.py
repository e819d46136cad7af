"""An admitted order: its content, its maximum cost, and its deadlines."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metering.clock import boottime_s
from metering.pricing import Quote
from metering.wallet.values import Caller, OrderIdentity
from proxy.orders.ending import Ending
from proxy.orders.places import Place
from proxy.ports import Order


@dataclass(frozen=True, slots=True)
class AdmittedOrder:
    """An admitted order. `opened` is the event's half from the admission; `place` is what it occupies until its end.

    `…_s` are seconds of `time.monotonic`, `hold_ends_boot_s` of `boottime_s`; `…_us` are Unix µs by Redis. `headers`
    are its rate-limit headers, `facts` what its request's log line will say, `trace` is its request's. `long`: nobody
    waits for it. `available_micro_mxn` is what its organisation could spend after the hold.
    """

    order_id: str
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
    available_micro_mxn: int = 0
    ending: Ending = field(default_factory=Ending)
    long: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    trace: str = ""

    @property
    def folder(self) -> str:
        """Folder of its images."""
        return f"{self.caller.org_id}/{self.order_id}"

    def hold_is_open(self) -> bool:
        """True if the hold still lives by this machine's own clock, whatever Redis says or does not say."""
        return boottime_s() < self.hold_ends_boot_s
