"""How long an order may take: an answer that is waited for, or a long order that goes on without its client. Pure."""

from collections.abc import Collection
from dataclasses import dataclass

from config.settings import LONGEST_STAY_S
from proxy.ports import Order


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Deadlines in seconds, from the request's first byte.

    `awaited_s` is that of models that have none of their own; no order takes longer than `long_s`. `kept_by` are the
    providers whose jobs another process can go on with; a stop waits for all others, also if they are the second route.
    """

    awaited_s: float
    long_s: float
    kept_by: Collection[str] = ()

    def of(self, order: Order, *, long: bool) -> float:
        """Choose an order's deadline."""
        if not long:
            return order.model.deadline_s or self.awaited_s
        routes = (order.model,) if order.model.second is None else (order.model, order.model.second)
        kept = all(model.provider in self.kept_by for model in routes)
        most_s = self.long_s if kept else self.stay_s
        return min(order.model.long_deadline_s or most_s, most_s)

    @property
    def stay_s(self) -> float:
        """The longest deadline of a long order that a stop waits for."""
        return min(self.long_s, LONGEST_STAY_S)

    def too_slow(self, order: Order) -> int | None:
        """Find how many seconds the order may need, if that is more than its client would wait; else None."""
        takes_s = order.model.takes_s_of(order.size, order.quality)
        return takes_s if takes_s is not None and takes_s > self.of(order, long=False) else None
