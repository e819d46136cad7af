"""A circuit for each route: one that fails call after call is left alone for a while, and then tried by one order."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

import structlog
from prometheus_client import Counter, Gauge

from config.catalogue import Model
from config.settings import CIRCUIT_FAILURES, CIRCUIT_MAX_OPEN_S, CIRCUIT_OPEN_S, CIRCUIT_WINDOW_S
from proxy.outcomes import Outcome

log = structlog.get_logger(__name__)

AWAY = frozenset(
    {
        Outcome.REFUSED_CONNECTION,
        Outcome.RATE_LIMITED,
        Outcome.BUSY,
        Outcome.OVERLOADED,
        Outcome.NO_ANSWER,
        Outcome.NOT_AUTHORISED,
        Outcome.DEADLINE,
    }
)
"""Ends of a call that its provider did not take, or did not answer. Any other is an answer, also one that refuses a
prompt; only `FAULT` says nothing about the provider.
"""


class State(Enum):
    """Closed: calls go through. Open: none does. Half-open: one order tries it."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


CIRCUIT = Gauge("ghub_circuit", "1 for the state in which a route's circuit is", ["provider", "upstream", "state"])
OPENED = Counter("ghub_circuit_opened_total", "How often a route's circuit opened", ["provider", "upstream"])


@dataclass(slots=True)
class _Circuit:
    """Times are of the clock; `failed_s` are those of the last failures in a row."""

    state: State = State.CLOSED
    failed_s: deque[float] = field(default_factory=lambda: deque(maxlen=CIRCUIT_FAILURES))
    open_until_s: float = 0.0
    pause_s: float = CIRCUIT_OPEN_S


class Circuits:
    """The circuits of this process, by provider and its name of the model. `clock_s` is `time.monotonic`, or a test's.

    Processes do not tell each other: each finds out for itself, so no error of one closes a route for all.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._circuits: dict[tuple[str, str], _Circuit] = {}

    def wait_s(self, model: Model) -> float:
        """Return how long its route takes no order, in seconds; 0 if it takes one now."""
        circuit = self._of(model)
        if circuit.state is State.CLOSED:
            return 0.0
        if circuit.state is State.HALF_OPEN:
            return CIRCUIT_OPEN_S
        return max(0.0, circuit.open_until_s - self._clock_s())

    @contextmanager
    def passing(self, model: Model) -> Iterator[bool]:
        """Let an order pass, or not. While a circuit is half-open, only the order that tries it passes."""
        circuit = self._of(model)
        if self.wait_s(model) > 0:
            yield False
            return
        tries = circuit.state is State.OPEN
        if tries:
            self._become(circuit, model, State.HALF_OPEN)
        try:
            yield True
        finally:
            if tries and circuit.state is State.HALF_OPEN:  # it ended without a word about the provider
                self._become(circuit, model, State.OPEN)

    def note(self, model: Model, outcome: Outcome | None, retry_after_s: float | None = None) -> None:
        """Note the end of a call; None: it brought its pictures."""
        circuit = self._of(model)
        if outcome in (Outcome.FAULT, Outcome.CANCELLED):  # ours, or the customer's
            return
        if outcome not in AWAY:
            circuit.failed_s.clear()
            circuit.pause_s = CIRCUIT_OPEN_S
            if circuit.state is not State.CLOSED:
                self._become(circuit, model, State.CLOSED)
            return
        now_s = self._clock_s()
        if circuit.state is State.OPEN:
            return  # a call from before
        if circuit.state is State.HALF_OPEN:
            circuit.pause_s = min(2 * circuit.pause_s, CIRCUIT_MAX_OPEN_S)
        else:
            circuit.failed_s.append(now_s)
            if len(circuit.failed_s) < CIRCUIT_FAILURES or now_s - circuit.failed_s[0] > CIRCUIT_WINDOW_S:
                return
            OPENED.labels(model.provider, model.upstream).inc()
        circuit.open_until_s = now_s + max(circuit.pause_s, min(retry_after_s or 0.0, CIRCUIT_MAX_OPEN_S))
        self._become(circuit, model, State.OPEN)

    def _of(self, model: Model) -> _Circuit:
        name = (model.provider, model.upstream)
        if name not in self._circuits:
            self._circuits[name] = _Circuit()
            self._show(model, State.CLOSED)
        return self._circuits[name]

    def _become(self, circuit: _Circuit, model: Model, state: State) -> None:
        circuit.state = state
        self._show(model, state)
        log.warning("circuit", provider=model.provider, upstream=model.upstream, state=state.value)

    @staticmethod
    def _show(model: Model, now: State) -> None:
        for state in State:
            CIRCUIT.labels(model.provider, model.upstream, state.value).set(state is now)
