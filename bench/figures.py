"""What a benchmark reports: figures, each with its rounds, and the goal that it must reach."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: its value in each round of one run, and its goal, if it has one.

    `most` or `least` is the goal; a figure without either stands in the table to be compared with others.
    """

    name: str
    unit: str
    rounds: Sequence[float]
    most: float | None = None
    least: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def reached(self) -> bool:
        """True if the median reaches the goal, or if there is none."""
        return (self.most is None or self.median <= self.most) and (self.least is None or self.median >= self.least)

    @property
    def goal(self) -> str:
        """The goal as text, empty without one."""
        if self.most is not None:
            return f"≤ {number(self.most)}"
        return "" if self.least is None else f"≥ {number(self.least)}"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "rounds": list(self.rounds), "median": self.median, "reached": self.reached}


def number(value: float) -> str:
    """Write a figure with three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Divide round by round: both were measured one after the other, with the same noise."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]
