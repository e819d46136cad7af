"""What an organisation, or one of its keys, may use: per minute, at once, per day, per month."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from metering.money import format_mxn

NONE = 0
"""An organisation's own word that a quota of its plan does not hold for it."""

MAX_PER_MINUTE = 1_000_000
"""Above it a minute is not divided finely enough."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Whole numbers above zero. None: no limit; of an organisation's own limits, as its plan says."""

    requests_per_minute: int | None = None
    images_per_minute: int | None = None
    in_flight: int | None = None
    images_per_day: int | None = None
    images_per_month: int | None = None
    micro_mxn_per_month: int | None = None

    def over(self, plan: "Limits") -> "Limits":
        """These, and where they are silent the plan's."""
        chosen = {
            name: given if (given := getattr(self, name)) is not None else getattr(plan, name) for name in LIMIT_NAMES
        }
        return Limits(**{name: value or None for name, value in chosen.items()})

    def changed(self, changes: Mapping[str, int | None]) -> "Limits":
        """With some of them set anew."""
        return Limits(**{**self.values(), **changes})

    def values(self) -> dict[str, Any]:
        """By name."""
        return {name: getattr(self, name) for name in LIMIT_NAMES}


def plan_of(plans: Mapping[str, Limits], name: str) -> Limits:
    """A plan's limits; the default's where there is none of this name any more."""
    return plans.get(name) or plans.get("default") or Limits()


def in_force(own: Limits, plan: Limits) -> dict[str, dict[str, int | str]]:
    """What holds of an organisation, as people read it: each limit, and whose it is."""
    effective = told({name: limit or NONE for name, limit in own.over(plan).values().items()})
    given = told(own.values())
    return {
        name: {"limit": limit, "of": "plan" if given[name] is None else "organisation"}
        for name, limit in effective.items()
        if limit is not None
    }


def told(limits: Mapping[str, int | None]) -> dict[str, int | str | None]:
    """Limits by name, as people read them: MXN as a decimal string, and "none" for a quota that is lifted."""
    values: dict[str, int | str | None] = {}
    for name, limit in limits.items():
        money = name == "micro_mxn_per_month"
        shown = format_mxn(limit) if money and limit is not None else limit
        values["mxn_per_month" if money else name] = "none" if limit == NONE else shown
    return values


LIMIT_NAMES = tuple(field.name for field in fields(Limits))

PER_MINUTE = ("requests_per_minute", "images_per_minute")
"""Every organisation has these; none can be lifted."""
