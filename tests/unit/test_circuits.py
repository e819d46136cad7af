"""When a route's circuit opens, who tries it, and when it closes, by a set clock."""

from dataclasses import dataclass

import pytest

from config.catalogue import read_catalogue
from config.settings import CIRCUIT_FAILURES, CIRCUIT_MAX_OPEN_S, CIRCUIT_OPEN_S, CIRCUIT_WINDOW_S
from proxy.orders.circuits import AWAY, CIRCUIT, OPENED, Circuits
from proxy.outcomes import Outcome

MODELS = read_catalogue(None).models
FLUX, GPT = MODELS["fal/flux-1.1-pro"], MODELS["openai/gpt-image-1"]


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


def opened(clock: Clock) -> Circuits:
    """Circuits of which Flux's has just opened."""
    circuits = Circuits(clock)
    for _ in range(CIRCUIT_FAILURES):
        assert circuits.wait_s(FLUX) == 0
        circuits.note(FLUX, Outcome.BUSY)
    return circuits


def state() -> list[str]:
    samples = [sample for family in CIRCUIT.collect() for sample in family.samples]
    mine = {"provider": FLUX.provider, "upstream": FLUX.upstream}
    return [s.labels["state"] for s in samples if mine.items() <= s.labels.items() and s.value == 1]


def test_it_opens_after_failures_in_a_row_and_only_for_its_route() -> None:
    """And says so: in its metrics, and how long it stays open."""
    before = OPENED.labels(FLUX.provider, FLUX.upstream)._value.get()
    circuits = opened(Clock())
    assert circuits.wait_s(FLUX) == CIRCUIT_OPEN_S and circuits.wait_s(GPT) == 0
    assert state() == ["open"]
    assert OPENED.labels(FLUX.provider, FLUX.upstream)._value.get() == before + 1
    with circuits.passing(FLUX) as passes:
        assert not passes
    with circuits.passing(GPT) as passes:
        assert passes


@pytest.mark.parametrize("outcome", [one for one in Outcome if one not in AWAY and one is not Outcome.CIRCUIT_OPEN])
def test_what_is_an_answer_never_opens_it(outcome: Outcome) -> None:
    """A refused prompt, a reply that is wrong, or a fault of ours is no provider that is away."""
    circuits = Circuits(Clock())
    for _ in range(3 * CIRCUIT_FAILURES):
        circuits.note(FLUX, outcome)
    assert circuits.wait_s(FLUX) == 0


def test_an_answer_among_failures_begins_the_row_anew_and_so_does_time() -> None:
    """Failures count in a row, and within the window; a fault of ours neither counts nor breaks the row."""
    clock = Clock()
    circuits = Circuits(clock)
    for _ in range(CIRCUIT_FAILURES - 1):
        circuits.note(FLUX, Outcome.NO_ANSWER)
    circuits.note(FLUX, Outcome.CONTENT_POLICY)
    for _ in range(CIRCUIT_FAILURES - 1):
        circuits.note(FLUX, Outcome.NO_ANSWER)
    clock.now_s += CIRCUIT_WINDOW_S + 1
    circuits.note(FLUX, Outcome.NO_ANSWER)
    assert circuits.wait_s(FLUX) == 0
    for _ in range(CIRCUIT_FAILURES - 2):
        circuits.note(FLUX, Outcome.NO_ANSWER)
    circuits.note(FLUX, Outcome.FAULT)
    assert circuits.wait_s(FLUX) == 0
    circuits.note(FLUX, Outcome.NO_ANSWER)
    assert circuits.wait_s(FLUX) > 0


def test_one_order_at_a_time_tries_it_and_each_failure_doubles_the_pause() -> None:
    """Others do not pass while it tries; the pause has an end that it never passes."""
    clock = Clock()
    circuits = opened(clock)
    pauses = []
    for _ in range(6):
        clock.now_s += circuits.wait_s(FLUX)
        with circuits.passing(FLUX) as first, circuits.passing(FLUX) as second:
            assert (first, second) == (True, False) and state() == ["half_open"] and circuits.wait_s(FLUX) > 0
            circuits.note(FLUX, Outcome.DEADLINE)
        pauses.append(circuits.wait_s(FLUX))
    assert pauses == [10.0, 20.0, 40.0, CIRCUIT_MAX_OPEN_S, CIRCUIT_MAX_OPEN_S, CIRCUIT_MAX_OPEN_S]
    clock.now_s += circuits.wait_s(FLUX)
    with circuits.passing(FLUX) as passes:
        assert passes
        circuits.note(FLUX, None)
        with circuits.passing(FLUX) as another:
            assert another
    assert state() == ["closed"] and circuits.wait_s(FLUX) == 0


def test_an_order_that_says_nothing_leaves_the_try_to_the_next_one() -> None:
    """It was cut off by us: the circuit stays open, and the next order tries."""
    clock = Clock()
    circuits = opened(clock)
    clock.now_s += CIRCUIT_OPEN_S
    with circuits.passing(FLUX) as passes:
        assert passes
        circuits.note(FLUX, Outcome.FAULT)
    assert state() == ["open"] and circuits.wait_s(FLUX) == 0
    with circuits.passing(FLUX) as passes:
        assert passes


def test_calls_from_before_change_nothing_but_a_picture_closes_it() -> None:
    """What was under way when it opened does not prolong it; what it brings shows that the provider works."""
    clock = Clock()
    circuits = opened(clock)
    clock.now_s += 1
    circuits.note(FLUX, Outcome.BUSY, retry_after_s=50)
    assert circuits.wait_s(FLUX) == CIRCUIT_OPEN_S - 1
    circuits.note(FLUX, None)
    assert circuits.wait_s(FLUX) == 0


@pytest.mark.parametrize(("asked_s", "wait_s"), [(1.0, CIRCUIT_OPEN_S), (30.0, 30.0), (3600.0, CIRCUIT_MAX_OPEN_S)])
def test_a_provider_says_how_long_within_bounds(asked_s: float, wait_s: float) -> None:
    """Its `retry-after` is kept, up to the longest pause: a number of a stranger's is not obeyed blindly."""
    circuits = Circuits(Clock())
    for _ in range(CIRCUIT_FAILURES):
        circuits.note(FLUX, Outcome.RATE_LIMITED, asked_s)
    assert circuits.wait_s(FLUX) == wait_s
