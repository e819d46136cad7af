"""What an organisation, or one of its keys, may use: per minute, at once, per day, per month. A kind is one row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, create_model

from metering.money import MAX_MICRO_MXN, format_mxn

ModelT = TypeVar("ModelT", bound=BaseModel)

NONE = 0
"""The value of an organisation's own limit that lifts its plan's quota."""

MAX_PER_MINUTE = 1_000_000
"""The most that a rate may be: above it, a minute is not divided finely enough."""

MAX_IMAGES = 1_000_000_000
"""The most that a quota of images may be: above every quota that makes sense."""


@dataclass(frozen=True, slots=True)
class LimitKind:
    """What is particular to one kind of limit. `max` is the most that anybody may set.

    `required`: every plan has it, and nobody can lift it. `money`: people write MXN, and it is micro-MXN inside.
    `noticed`: its thresholds send a notice. `column` is its field of `Limits`, and its column in the ledger.
    """

    max: int
    required: bool = False
    money: bool = False
    noticed: bool = False
    column: str = ""

    @property
    def name(self) -> str:
        """The name that people read in plans, commands, the admin API and notices; also the field in Redis."""
        return self.column.removeprefix("micro_") if self.money else self.column


@dataclass(frozen=True, slots=True)
class Limits:
    """The table of all kinds, and a value for each: a whole number above zero.

    None: no limit; in an organisation's own limits it means that the plan's limit holds.
    """

    requests_per_minute: Annotated[int | None, LimitKind(MAX_PER_MINUTE, required=True)] = None
    images_per_minute: Annotated[int | None, LimitKind(MAX_PER_MINUTE, required=True)] = None
    in_flight: Annotated[int | None, LimitKind(MAX_IMAGES)] = None
    images_per_day: Annotated[int | None, LimitKind(MAX_IMAGES, noticed=True)] = None
    images_per_month: Annotated[int | None, LimitKind(MAX_IMAGES, noticed=True)] = None
    micro_mxn_per_month: Annotated[int | None, LimitKind(MAX_MICRO_MXN, money=True, noticed=True)] = None

    def over(self, plan: "Limits") -> "Limits":
        """Return these limits; each that is None is taken from the plan."""
        of_plan = plan.values()
        chosen = {column: of_plan[column] if limit is None else limit for column, limit in self.values().items()}
        return Limits(**{column: limit or None for column, limit in chosen.items()})

    def changed(self, changes: Mapping[str, int | None]) -> "Limits":
        """Return a copy in which some of them are replaced."""
        return Limits(**{**self.values(), **changes})

    def values(self) -> dict[str, int | None]:
        """Return the values by column."""
        return {column: getattr(self, column) for column in LIMITS}


LIMITS: Mapping[str, LimitKind] = {row.name: replace(get_args(row.type)[1], column=row.name) for row in fields(Limits)}
"""Every kind of limit by column, in the table's order."""


def limit_fields(base: type[ModelT], field: Callable[[LimitKind], Any]) -> type[ModelT]:
    """Add a field for each kind of limit to `base`, for a model to derive from; `field` is as `create_model` takes it.

    mypy does not accept a call as a base class, hence `type: ignore[misc]` there; the derived class is like any other.
    """
    of_each: dict[str, Any] = {kind.name: field(kind) for kind in LIMITS.values()}
    return create_model(base.__name__, __base__=base, **of_each)


def plan_of(plans: Mapping[str, Limits], name: str) -> Limits:
    """Return a plan's limits, or the default plan's if no plan has this name any more."""
    return plans.get(name) or plans.get("default") or Limits()


def in_force(own: Limits, plan: Limits) -> dict[str, dict[str, int | str]]:
    """Return the limits that hold for an organisation, as people read them, each with whose limit it is."""
    effective = as_text({column: limit or NONE for column, limit in own.over(plan).values().items()})
    given = as_text(own.values())
    return {
        name: {"limit": limit, "of": "plan" if given[name] is None else "organisation"}
        for name, limit in effective.items()
        if limit is not None
    }


def as_text(limits: Mapping[str, int | None]) -> dict[str, int | str | None]:
    """Return limits by column, as people read them: MXN as a decimal string, and "none" for a quota that is lifted."""
    values: dict[str, int | str | None] = {}
    for column, limit in limits.items():
        kind = LIMITS[column]
        shown = format_mxn(limit) if kind.money and limit is not None else limit
        values[kind.name] = "none" if limit == NONE else shown
    return values
