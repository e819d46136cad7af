"""The state of one HTTP request, from its head to its last byte."""

import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from proxy.orders.ending import Ending
from proxy.orders.result import public_id
from proxy.ports import Order


@dataclass(slots=True)
class RequestContext:
    """State of a request. `started_s` is `time.monotonic` when its head was read; `facts` go into its log line.

    `sold` is the provider and the model of its order, once they are known; None for any other request, and for an order
    with a test key. `order_id` is the id of the order that it places: the request's own. `ending` is what is known of
    that order's charge. `trace` is the `traceparent` of its span, empty if it is not traced.
    """

    order_id: str = field(default_factory=lambda: str(uuid4()))
    started_s: float = field(default_factory=time.monotonic)
    facts: dict[str, Any] = field(default_factory=dict)
    ending: Ending = field(default_factory=Ending)
    trace: str = ""
    sold: tuple[str, str] | None = None

    def wait(self, waited_s: float) -> None:
        """Add the seconds that its order has waited for a turn."""
        self.facts["admission_wait_ms"] = self.facts.get("admission_wait_ms", 0) + round(waited_s * 1000)

    def of(self, order: Order, *, sandbox: bool) -> None:
        """Take down what the request orders."""
        self.facts |= {"order": self.order_id, "model": order.model_id, "provider": order.model.provider, "n": order.n}
        self.facts["sandbox"] = sandbox
        if not sandbox:
            self.sold = order.model.provider, order.model_id

    def told(self, *, keyed: bool, tries: int | None) -> None:
        """Take down whether its client gave it a key, and how often the SDK says that it has tried before."""
        self.facts["keyed"] = keyed
        if tries is not None:
            self.facts["sdk_retry"] = tries

    @property
    def public_id(self) -> str:
        """The id that customers see."""
        return public_id(self.order_id)
