"""The next behaviour of the upstreams, if a client has set one."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import orjson

# Scenarios that every provider has. Each provider's module adds its own.
SCENARIOS = {
    "ok": "Answers as it should. With times null this clears what is pending.",
    "slow": "Takes `seconds` for the generation, then answers as it should.",
    "http_500": "Accepts the job, fails at it and answers 500. Not billed.",
    "http_503": "Answers 503 at once. Not accepted, so not a job.",
    "busy_503": "Answers 503 with retry-after (`retry_after`, 1 by default) at once. Not accepted, so not a job.",
    "busy_503_then_ok": "In turn busy_503 and ok.",
    "rate_limited_429": (
        "Answers 429 with retry-after (`retry_after`, else `seconds`, else 1; Google only if `retry_after` is given). "
        "Not accepted, so not a job."
    ),
    "one_of_eight_429": "Every eighth request as rate_limited_429, the others ok.",
    "unauthorized_401": "Refuses the provider key with 401. Not accepted, so not a job.",
    "reset": "Generates, for `seconds` if given, which is billed, then resets the connection without an answer.",
    "close_without_answer": "Generates, which is billed, then closes the connection without an answer.",
    "truncated_body": "Generates, which is billed, then closes in the middle of the answer's body.",
    "silent": "Generates, which is billed, and never answers; waits until the client goes.",
    "garbage": "Generates, which is billed, then writes bytes that are not HTTP and closes.",
    "wrong_json": "Generates, which is billed, then answers 200 with JSON of another shape.",
    "retired": "The model is shut down, and its provider says so in its own way. Not accepted, so not a job.",
    "secret_in_error": "Accepts the job, fails at it and answers 400 with the provider key and an internal URL.",
    "secret_in_headers": "Answers as it should, with the provider key and an internal URL in headers. Billed.",
    "secret_in_redirect": "Answers 307 to an internal URL with the provider key in it. Not accepted, so not a job.",
}
# Scenarios that alternate: the scenario of each request, by its position.
TURNS = {
    "busy_503_then_ok": ("busy_503", "ok"),
    "one_of_eight_429": ("ok",) * 7 + ("rate_limited_429",),
}

LONG_PROMPT = "longer_prompt"
LONG_PROMPT_SCENARIO = {
    LONG_PROMPT: "Every revised_prompt has 4,000 characters of four bytes each, or `bytes` divided by four. Billed.",
}
LONG_PROMPT_CHARS = 4_000

TIMES_MAX = 1_000_000
SECONDS_MAX = 3_600
BYTES_MAX = 64 * 2**20
SEQUENCE_MAX = 10_000
FORMS = ("nested", "coded", "bare")  # of an xAI error


class BehaviourError(ValueError):
    """The request to set a behaviour is invalid; the text is a sentence for its sender."""


def is_number(value: object, least: float, most: float, kind: type[int | float] = int) -> bool:
    return isinstance(value, (int, kind)) and not isinstance(value, bool) and least <= value <= most


# Fields of a scenario besides its name.
FIELDS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "times": (lambda value: is_number(value, 1, TIMES_MAX), f"a whole number from 1 to {TIMES_MAX}, or null"),
    "seconds": (lambda value: is_number(value, 0, SECONDS_MAX, float), f"a number from 0 to {SECONDS_MAX}"),
    "retry_after": (lambda value: is_number(value, 0, SECONDS_MAX, float), f"a number from 0 to {SECONDS_MAX}"),
    "all": (lambda value: isinstance(value, bool), "true or false"),
    "last": (lambda value: is_number(value, 1, 10), "a whole number from 1 to 10"),
    "bytes": (lambda value: is_number(value, 0, BYTES_MAX), f"a whole number from 0 to {BYTES_MAX}"),
    "same": (lambda value: isinstance(value, bool), "true or false"),
    "form": (lambda value: value in FORMS, f"one of {', '.join(FORMS)}"),
}


@dataclass(frozen=True, slots=True)
class Play:
    """One entry of the next behaviours: `scenario` for `times` requests, or until changed if that is None."""

    scenario: str = "ok"
    times: int | None = None
    seconds: float | None = None  # the generation's time instead of the published latency
    retry_after: float | None = None  # seconds in a refusal's retry-after
    all: bool = False  # a scenario about images changes the last one of a reply, or every one
    last: int = 1  # or this many of the last ones
    bytes: int | None = None  # pictures are padded to about this size
    same: bool = False  # one picture, drawn once and reused
    form: str | None = None  # one of FORMS
    turn: int = 0  # number of requests that this entry has had

    def __post_init__(self) -> None:
        if self.scenario == "slow" and self.seconds is None:
            raise BehaviourError("The scenario slow needs seconds.")

    def strikes(self, index: int, count: int) -> bool:
        """True if the scenario concerns image `index` of `count`."""
        return self.all or index >= count - self.last

    def spared(self, count: int) -> int:
        """Count the images, of `count`, that the scenario does not concern."""
        return sum(not self.strikes(index, count) for index in range(count))

    def revised(self, prompt: str) -> str:
        """Build the revised prompt of the model."""
        if self.scenario != LONG_PROMPT:
            return prompt
        return "🌵" * (LONG_PROMPT_CHARS if self.bytes is None else self.bytes // 4)

    @property
    def retry_after_s(self) -> str:
        wait = self.seconds or 1 if self.retry_after is None else self.retry_after
        return f"{wait:g}"

    def taken(self) -> "Play":
        """Choose the behaviour for this entry's next request."""
        row = TURNS.get(self.scenario)
        return self if row is None else replace(self, scenario=row[self.turn % len(row)])

    def left(self) -> "Play | None":
        """Return the entry after one more request; None if it is used up."""
        if self.times == 1:
            return None
        return replace(self, turn=self.turn + 1, times=None if self.times is None else self.times - 1)


class Behaviour:
    def __init__(self, scenarios: Mapping[str, Mapping[str, str]]) -> None:
        """`scenarios`: for each model's public id, the scenarios that it can play, each with a sentence."""
        self._scenarios = scenarios
        self._pending: dict[str, deque[Play]] = {model: deque() for model in scenarios}
        self._standing = {model: Play() for model in scenarios}

    def set(self, body: bytes) -> None:
        """Add to a model's next behaviours. BehaviourError and no change if `body` is invalid."""
        model, plays = self._parse(body)
        pending = self._pending[model]
        if plays[0].scenario == "ok" and plays[0].times is None:
            pending.clear()
            self._standing[model] = plays[0]
            return
        if pending and pending[-1].times is None:
            pending.pop()
        pending.extend(plays)

    def next(self, model: str) -> Play:
        """Choose the behaviour for this request, which is counted."""
        pending = self._pending[model]
        if not pending:
            return self._standing[model]
        play = pending.popleft()
        left = play.left()
        if left is not None:
            pending.appendleft(left)
        return play.taken()

    def clear(self) -> None:
        """Clear everything pending: every model answers normally."""
        for model, pending in self._pending.items():
            pending.clear()
            self._standing[model] = Play()

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

    def _parse(self, body: bytes) -> tuple[str, list[Play]]:
        try:
            wish = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise BehaviourError("The body is not JSON.") from None
        if not isinstance(wish, dict):
            raise BehaviourError("The body is not a JSON object.")
        model = wish.pop("model", None)
        if not isinstance(model, str) or model not in self._scenarios:
            raise BehaviourError(f"Unknown model {model!r}; known are {', '.join(self._scenarios)}.")
        if "sequence" not in wish:
            return model, [self._play(model, wish)]
        sequence = wish.pop("sequence")
        if not isinstance(sequence, list) or not 1 <= len(sequence) <= SEQUENCE_MAX:
            raise BehaviourError(f"sequence must be a list of 1 to {SEQUENCE_MAX} scenarios.")
        if {"scenario", "times"} & set(wish):
            raise BehaviourError("A sequence has its own scenarios, each for one request: no scenario and no times.")
        plays = []
        for step in sequence:
            if not isinstance(step, (str, dict)):
                raise BehaviourError("A sequence holds names of scenarios, or objects with scenario and its fields.")
            own = {"scenario": step} if isinstance(step, str) else step
            if "times" in own:
                raise BehaviourError("A step of a sequence is for one request: no times.")
            plays.append(self._play(model, {**wish, **own, "times": 1}))
        return model, plays

    def _play(self, model: str, wish: dict[str, Any]) -> Play:
        scenario = wish.pop("scenario", "ok")
        if not isinstance(scenario, str) or scenario not in self._scenarios[model]:
            known = ", ".join(self._scenarios[model])
            raise BehaviourError(f"Unknown scenario {scenario!r} for {model}; known are {known}.")
        fields = {name: value for name, value in wish.items() if value is not None}
        for name, value in fields.items():
            if name not in FIELDS:
                known = ", ".join(FIELDS)
                raise BehaviourError(f"Unknown field {name!r}; known are model, scenario, sequence, {known}.")
            holds, rule = FIELDS[name]
            if not holds(value):
                raise BehaviourError(f"{name} must be {rule}.")
        return Play(scenario, **fields)
