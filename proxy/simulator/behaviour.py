"""What the upstreams do next, when somebody asked for it."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import orjson

# What any provider can do. Each provider's module adds its own.
SCENARIOS = {
    "ok": "Answers as it should. With times null this clears what is pending.",
    "slow": "Takes `seconds` for the generation, then answers as it should.",
    "http_500": "Accepts the job, fails at it and answers 500. Not billed.",
    "http_503": "Answers 503 at once. Not accepted, so not a job.",
    "rate_limited_429": "Answers 429 with retry-after (`seconds`, 1 by default). Not accepted, so not a job.",
    "unauthorized_401": "Refuses the provider key with 401. Not accepted, so not a job.",
    "reset": "Generates, which is billed, then resets the connection without an answer.",
    "close_without_answer": "Generates, which is billed, then closes the connection without an answer.",
    "truncated_body": "Generates, which is billed, then closes in the middle of the answer's body.",
    "silent": "Generates, which is billed, and never answers; waits until the client goes.",
    "garbage": "Generates, which is billed, then writes bytes that are not HTTP and closes.",
    "wrong_json": "Generates, which is billed, then answers 200 with JSON of another shape.",
    "secret_in_error": "Accepts the job, fails at it and answers 400 with the provider key and an internal URL.",
}

TIMES_MAX = 1_000_000
SECONDS_MAX = 3_600
BYTES_MAX = 64 * 2**20


class BehaviourError(ValueError):
    """The request to behave is not understood; the text is a sentence for the one who sent it."""


def is_number(value: object, least: float, most: float, kind: type[int | float] = int) -> bool:
    return isinstance(value, (int, kind)) and not isinstance(value, bool) and least <= value <= most


# What may be said of a scenario, beside its name.
FIELDS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "times": (lambda value: is_number(value, 1, TIMES_MAX), f"a whole number from 1 to {TIMES_MAX}, or null"),
    "seconds": (lambda value: is_number(value, 0, SECONDS_MAX, float), f"a number from 0 to {SECONDS_MAX}"),
    "all": (lambda value: isinstance(value, bool), "true or false"),
    "bytes": (lambda value: is_number(value, 0, BYTES_MAX), f"a whole number from 0 to {BYTES_MAX}"),
    "same": (lambda value: isinstance(value, bool), "true or false"),
}


@dataclass(frozen=True, slots=True)
class Play:
    """One entry of what happens next: `scenario` for `times` requests, or until changed if that is None."""

    scenario: str = "ok"
    times: int | None = None
    seconds: float | None = None  # the generation's length instead of the published latency
    all: bool = False  # a scenario about images strikes the last one of a reply, or every one
    bytes: int | None = None  # pictures are padded to about this size
    same: bool = False  # one picture, drawn once and used again

    def __post_init__(self) -> None:
        if self.scenario == "slow" and self.seconds is None:
            raise BehaviourError("The scenario slow needs seconds.")

    def strikes(self, index: int, count: int) -> bool:
        """Whether the scenario concerns image `index` of `count`."""
        return self.all or index == count - 1


class Behaviour:
    def __init__(self, scenarios: Mapping[str, Mapping[str, str]]) -> None:
        """`scenarios`: for each model's public id, the scenarios that it can play, each with a sentence."""
        self._scenarios = scenarios
        self._pending: dict[str, deque[Play]] = {model: deque() for model in scenarios}
        self._standing = {model: Play() for model in scenarios}

    def set(self, body: bytes) -> None:
        """Append to what happens next to a model. BehaviourError and no change if `body` makes no sense."""
        model, play = self._parse(body)
        pending = self._pending[model]
        if play.scenario == "ok" and play.times is None:
            pending.clear()
            self._standing[model] = play
            return
        if pending and pending[-1].times is None:
            pending.pop()
        pending.append(play)

    def next(self, model: str) -> Play:
        """What happens to this request; counted as happened."""
        pending = self._pending[model]
        if not pending:
            return self._standing[model]
        play = pending[0]
        if play.times is not None:
            pending.popleft()
            if play.times > 1:
                pending.appendleft(replace(play, times=play.times - 1))
        return play

    def listing(self) -> dict[str, Any]:
        return {
            "models": {
                model: {
                    "pending": [asdict(play) for play in self._pending[model]],
                    "then": asdict(self._standing[model]),
                    "scenarios": dict(scenarios),
                }
                for model, scenarios in self._scenarios.items()
            }
        }

    def _parse(self, body: bytes) -> tuple[str, Play]:
        try:
            wish = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise BehaviourError("The body is not JSON.") from None
        if not isinstance(wish, dict):
            raise BehaviourError("The body is not a JSON object.")
        model = wish.pop("model", None)
        if not isinstance(model, str) or model not in self._scenarios:
            raise BehaviourError(f"Unknown model {model!r}; known are {', '.join(self._scenarios)}.")
        scenario = wish.pop("scenario", "ok")
        if not isinstance(scenario, str) or scenario not in self._scenarios[model]:
            known = ", ".join(self._scenarios[model])
            raise BehaviourError(f"Unknown scenario {scenario!r} for {model}; known are {known}.")
        fields = {name: value for name, value in wish.items() if value is not None}
        for name, value in fields.items():
            if name not in FIELDS:
                raise BehaviourError(f"Unknown field {name!r}; known are model, scenario, {', '.join(FIELDS)}.")
            holds, rule = FIELDS[name]
            if not holds(value):
                raise BehaviourError(f"{name} must be {rule}.")
        return model, Play(scenario, **fields)
