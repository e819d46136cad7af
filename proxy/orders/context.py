"""What belongs to one HTTP request, from its head to its last byte."""

import time
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from proxy.orders.ending import Ending


@dataclass(slots=True)
class RequestContext:
    """`started_s` is `time.monotonic` when the request's head was read; `facts` go into its line of the log.

    `ending` is what is known of the charge of the order that it places.
    """

    request_id: UUID = field(default_factory=uuid4)
    started_s: float = field(default_factory=time.monotonic)
    facts: dict[str, Any] = field(default_factory=dict)
    ending: Ending = field(default_factory=Ending)

    @property
    def public_id(self) -> str:
        """As customers see it."""
        return f"req_{self.request_id.hex}"
