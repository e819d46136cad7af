"""The routes of an order: the ways by which its pictures can be made, and which of them may be taken now."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

from metering.events import Route
from metering.money import format_rate
from proxy.errors import ApiError
from proxy.orders.circuits import Circuits
from proxy.outcomes import Failure, Outcome
from proxy.ports import Order

UNTRANSLATED = frozenset({"user"})
"""Fields that a second route may leave out: no picture depends on them."""


class Routes:
    """Knows the routes of every order. `providers` are those whose keys are set."""

    def __init__(self, circuits: Circuits, providers: Collection[str]) -> None:
        self._circuits = circuits
        self._providers = providers

    def of(self, order: Order) -> list[Order]:
        """List the order as each of its routes is asked for it: the first one, and the second, if that can make it."""
        second = second_of(order)
        return [order] if second is None or second.model.provider not in self._providers else [order, second]

    def refusal(self, order: Order) -> ApiError | None:
        """Build the error for an order that no route would take now: all circuits are open. None if one would."""
        wait_s = min(self._circuits.wait_s(one.model) for one in self.of(order))
        return closed(wait_s).as_error() if wait_s > 0 else None

    @contextmanager
    def passing(self, routed: Order) -> Iterator[Failure | None]:
        """Pass through the circuit of this route; yields the failure if it is open."""
        with self._circuits.passing(routed.model) as passes:
            yield None if passes else closed(self._circuits.wait_s(routed.model))

    def note(self, routed: Order, outcome: Outcome | None, retry_after_s: float | None = None) -> None:
        """Note the end of a call of this route; None: it brought its pictures."""
        self._circuits.note(routed.model, outcome, retry_after_s)


def closed(wait_s: float) -> Failure:
    """Build the failure of a route whose circuit is open for so long."""
    return Failure(Outcome.CIRCUIT_OPEN, retry_after_s=wait_s)


def second_of(order: Order) -> Order | None:
    """Put the order into the words of its model's second route; None if there is none, or it cannot say all of it."""
    found = order.model.by_second(order.quality)
    if found is None:
        return None
    second, quality = found
    if len(order.prompt) > second.prompt_characters:
        return None
    fields: dict[str, str | int] = {}
    for name, value in order.fields.items():
        ours, theirs = order.model.fields[name], second.fields.get(name)
        if theirs is None:
            if name in UNTRANSLATED:
                continue
            return None
        if ours.values is None:
            within = theirs.most is None or (isinstance(value, int) and value <= theirs.most)
            within &= theirs.characters is None or len(str(value)) <= theirs.characters
            if theirs.values is not None or not within:
                return None
            fields[name] = value
            continue
        word = next(word for word, theirs_of in ours.values.items() if theirs_of == value)
        if theirs.values is None or word not in theirs.values:
            return None
        fields[name] = theirs.values[word]
    return replace(order, model=second, quality=quality, fields=fields)


def as_route(second: Order) -> Route:
    """Return what an order's event says of the second route by which it went."""
    listed = second.model.listed(second.size, second.quality)
    assert listed is not None, "a route without a price is refused"
    return Route(second.model.provider, second.model.upstream, format_rate(listed.usd_per_image))
