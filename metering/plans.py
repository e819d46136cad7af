"""Plans: limits by a name, from a TOML file that is checked to the last field."""

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from config.catalogue import HERE, DataFile, PositiveDecimal, Row
from metering.limits import LIMITS, LimitKind, Limits, limit_fields
from metering.money import MICRO


def _of_plan(kind: LimitKind) -> tuple[Any, Any]:
    value: Any = Annotated[int, Field(ge=1, le=kind.max)]
    if kind.money:
        value = Annotated[PositiveDecimal, Field(decimal_places=6, le=Decimal(kind.max) / MICRO)]
    return (value, ...) if kind.required else (value | None, None)


class Plan(limit_fields(Row, _of_plan)):  # type: ignore[misc]  # its fields are the rows of `Limits`
    """Limits of an organisation: whole numbers above zero, MXN as a decimal string. What is absent is not limited."""

    def limits(self) -> Limits:
        """In micro-MXN."""
        given = {column: getattr(self, kind.name) for column, kind in LIMITS.items()}
        micro = {column: int(given[column] * MICRO) for column, kind in LIMITS.items() if kind.money and given[column]}
        return Limits(**given | micro)


class Plans(Row):
    plans: Mapping[str, Plan]


def plans_file(given: Path | None) -> DataFile:
    """Name the file of the plans: `given`, or the one that ships."""
    return DataFile("GHUB_PLANS", given or HERE / "plans.toml")


def parse_plans(file: DataFile, content: bytes) -> dict[str, Limits]:
    """Check the content of a file of plans. Raises CatalogueError; a plan named `default` must be there."""
    plans = file.parse(Plans, content).plans
    if "default" not in plans:
        raise file.wrong("plans.default: is missing")
    return {name: plan.limits() for name, plan in plans.items()}


def read_plans(path: Path | None) -> dict[str, Limits]:
    """The plans in `path`, or those that ship. Raises CatalogueError; a plan named `default` must be there."""
    file = plans_file(path)
    return parse_plans(file, file.read())
