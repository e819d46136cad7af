"""The state of one HTTP request, from its head to its last byte."""

import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from proxy.orders.ending import Ending
from proxy.orders.result import public_id


@dataclass(slots=True)
class RequestContext:
    """State of a request. `started_s` is `time.monotonic` when its head was read; `facts` go into its log line.

    `order_id` is the id of the order that it places: the request's own. `ending` is what is known of that order's
    charge. `trace` is the `traceparent` of its span, empty if it is not traced.
    """

    order_id: str = field(default_factory=lambda: str(uuid4()))
    started_s: float = field(default_factory=time.monotonic)
    facts: dict[str, Any] = field(default_factory=dict)
    ending: Ending = field(default_factory=Ending)
    trace: str = ""

    @property
    def public_id(self) -> str:
        """The id that customers see."""
        return public_id(self.order_id)
