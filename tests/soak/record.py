"""What a soak has measured, as JSON in its folder, so that it can be judged and drawn again."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

FILE = "soak.json"

Points = list[tuple[float, float]]
"""Seconds since the load began, and a value."""


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a panel."""

    legend: str
    points: Points


@dataclass(frozen=True, slots=True)
class Record:
    """One run. `series` is what the verdict is about; `panels` are the dashboard's, by title."""

    seconds: float
    orders_per_s: float
    answers: dict[str, int]
    series: dict[str, Points]
    panels: dict[str, list[Line]]
    verify: str

    @property
    def orders(self) -> int:
        """How many were placed."""
        return sum(self.answers.values())

    def save(self, folder: Path) -> None:
        """Write it."""
        (folder / FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read it back."""
        kept = json.loads((folder / FILE).read_text())
        panels = {title: [Line(**line) for line in lines] for title, lines in kept.pop("panels").items()}
        return cls(**kept, panels=panels)
