"""The catalogue, the plans and the seed rates: TOML files, read once at start and checked to the last field."""

import hashlib
import tomllib
from collections.abc import Mapping
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from config.settings import LONGEST_DEADLINE_S

HERE = Path(__file__).parent


class CatalogueError(Exception):
    """A data file is missing or wrong; the message names the variable, the file and the field."""


def _decimal(value: object) -> Decimal:
    """Takes a string only: TOML's own numbers are floats, and a price must not pass through one."""
    if not isinstance(value, str):
        raise ValueError("must be a decimal in quotes")
    try:
        number = Decimal(value)
    except InvalidOperation:
        raise ValueError("must be a decimal in quotes") from None
    if not number.is_finite() or number <= 0:
        raise ValueError("must be a decimal above zero")
    return number


PositiveDecimal = Annotated[Decimal, BeforeValidator(_decimal)]
Month = Annotated[str, Field(pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])$")]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(_Row):
    """One row of the catalogue. `usd_per_image` absent means: not for sale, refused."""

    name: str
    provider: str
    upstream: str
    images_per_call: Annotated[int, Field(ge=1, le=10)]
    created: date
    sizes: Annotated[Mapping[str, str], Field(min_length=1)]
    qualities: Mapping[str, str] = {}
    usd_per_image: PositiveDecimal | None = None
    deadline_s: Annotated[float, Field(ge=1, le=LONGEST_DEADLINE_S)] | None = None


class Catalogue(_Row):
    """All models, with the price book that they stand in."""

    price_book: Annotated[str, Field(min_length=1, max_length=40)]
    markup: PositiveDecimal
    models: Mapping[str, Model]

    @property
    def price_book_version(self) -> str:
        """The book's name and a digest of every price and the markup: two different books never share a version."""
        prices = sorted((name, str(model.usd_per_image)) for name, model in self.models.items() if model.usd_per_image)
        digest = hashlib.sha256(repr((str(self.markup), prices)).encode()).hexdigest()
        return f"{self.price_book}+{digest[:8]}"


class Plan(_Row):
    """Limits per organisation: requests and images per minute, both whole numbers above zero."""

    requests_per_minute: Annotated[int, Field(ge=1, le=1_000_000)]
    images_per_minute: Annotated[int, Field(ge=1, le=1_000_000)]


class Plans(_Row):
    plans: Mapping[str, Plan]


class SeedRate(_Row):
    """MXN for one USD in one calendar month."""

    month: Month
    mxn_per_usd: PositiveDecimal
    source: Annotated[str, Field(min_length=1)]


class SeedRates(_Row):
    rates: tuple[SeedRate, ...] = ()


RowT = TypeVar("RowT", bound=_Row)


def _read(kind: type[RowT], variable: str, given: Path | None, shipped: str) -> RowT:
    path = given or HERE / shipped
    try:
        return _parse(kind, path)
    except CatalogueError as error:
        raise CatalogueError(f"{variable}: {error}") from None


def _parse(kind: type[RowT], path: Path) -> RowT:
    try:
        return kind.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CatalogueError(f"{path}: cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise CatalogueError(f"{path}: is not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise CatalogueError(f"{path}: {field}: {first['msg']}") from None


def read_catalogue(path: Path | None) -> Catalogue:
    """The catalogue in `path`, or the one that ships. Raises CatalogueError."""
    return _read(Catalogue, "GHUB_MODELS", path, "models.toml")


def read_plans(path: Path | None) -> Mapping[str, Plan]:
    """The plans in `path`, or those that ship. Raises CatalogueError; a plan named `default` must be there."""
    plans = _read(Plans, "GHUB_PLANS", path, "plans.toml").plans
    if "default" not in plans:
        raise CatalogueError(f"GHUB_PLANS: {path}: plans.default: is missing")
    return plans


def read_seed_rates(path: Path | None) -> tuple[SeedRate, ...]:
    """The rates that seed an empty table. Raises CatalogueError."""
    return _read(SeedRates, "GHUB_FX", path, "fx.toml").rates
