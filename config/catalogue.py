"""The catalogue and the seed rates: TOML files, checked to the last field."""

import hashlib
import json
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic import Field as PydanticField

from config.settings import LONGEST_DEADLINE_S, LONGEST_LONG_DEADLINE_S
from config.tokens import TokenUsage

HERE = Path(__file__).parent

MAX_FILE_BYTES = 1_000_000
"""Maximum size of a data file, a hundred times what ships: a wrong file must not fill the memory of every process."""


class CatalogueError(Exception):
    """A data file is missing or wrong; the message names the variable, the file and the field."""


def _decimal(value: object) -> Decimal:
    """Parse a string. TOML's own numbers are floats, and a price must not pass through one."""
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
_PIXELS = re.compile(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}")
Month = Annotated[str, PydanticField(pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])$")]


class Row(BaseModel):
    """A table of a file: nothing in it that is not named here."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Field(Row):
    """An optional field of OpenAI's API that a model takes: one of `values`, a number up to `most`, or a text."""

    values: Mapping[str, str] | None = None
    most: Annotated[int, PydanticField(ge=1)] | None = None
    characters: Annotated[int, PydanticField(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(kind is not None for kind in (self.values, self.most, self.characters)) != 1:
            raise ValueError("needs exactly one of values, most, characters")
        return self


_RATES = ("text_input", "cached_text_input", "image_input", "cached_image_input", "image_output", "text_output")

REPORTED = "reported"
"""`measured_by` of a price that follows the provider's own figure."""


class TokenPrices(Row):
    """USD per million tokens, and the most that one image takes: output by `quality/size`, of which either may be `*`.

    What is left out: cached input costs as if it were not, image input as text, and text output, which thoughts are
    too, as image output.
    """

    text_input: PositiveDecimal
    cached_text_input: PositiveDecimal | None = None
    image_input: PositiveDecimal | None = None
    cached_image_input: PositiveDecimal | None = None
    image_output: PositiveDecimal
    text_output: PositiveDecimal | None = None
    most_input_tokens: Annotated[int, PydanticField(ge=1)]
    most_output_tokens: Annotated[Mapping[str, Annotated[int, PydanticField(ge=1)]], PydanticField(min_length=1)]
    most_text_output_tokens: Annotated[int, PydanticField(ge=0)] = 0

    @property
    def rates(self) -> dict[str, Decimal]:
        """The prices that are given, by their names."""
        given = {name: getattr(self, name) for name in _RATES}
        return {name: usd for name, usd in given.items() if usd is not None}

    def most_usd(self, image_output_tokens: int) -> Decimal:
        """Compute the most that one image costs which takes this many tokens itself. Orders bring text only."""
        most = TokenUsage(
            text_input=self.most_input_tokens,
            image_output=image_output_tokens,
            text_output=self.most_text_output_tokens,
        )
        return self.usd_of(most)

    def usd_of(self, used: TokenUsage) -> Decimal:
        """Compute the cost of what was used."""
        image_input = self.image_input or self.text_input
        usd = (
            self.text_input * used.text_input
            + (self.cached_text_input or self.text_input) * used.cached_text_input
            + image_input * used.image_input
            + (self.cached_image_input or image_input) * used.cached_image_input
            + self.image_output * used.image_output
            + (self.text_output or self.image_output) * used.text_output
        )
        return usd / 1_000_000


@dataclass(frozen=True, slots=True)
class Listed:
    """The list price of one image: its maximum cost. `measured`: the provider's own figure may make it less."""

    usd_per_image: Decimal
    variant: str
    measured: bool


_PRICES = (
    "usd_per_image",
    "usd_per_image_by",
    "usd_per_megapixel",
    "usd_per_million_tokens",
    "most_usd_per_image",
)

_OF_THE_MODEL = (
    "name",
    "created",
    "deadline_s",
    "long_deadline_s",
    "takes_s",
    "shutdown_date",
    "successor",
    "served_by",
)
"""Fields of a model that its second route does not have: they are not about a way to make it."""


class Model(Row):
    """One row of the catalogue. A model without any price is not for sale: refused, never free.

    `second` is another way to the same pictures, for orders that the first one certainly did not take. What it does not
    say about prices is as in the first; its `always`, `fields`, `url` and the like are its own.

    `served_by`: another row, by which its orders are made and priced. In a catalogue, such a row is that other one,
    under its own name and with its own dates.
    """

    name: str
    provider: str
    upstream: str
    created: date
    images_per_call: Annotated[int, PydanticField(ge=1, le=10)]
    sizes: Annotated[Mapping[str, str], PydanticField(min_length=1)]
    qualities: Mapping[str, str] = {}
    default_quality: str | None = None
    fields: Mapping[str, Field] = {}
    always: Mapping[str, str | int | bool | Mapping[str, str | int | bool]] = {}
    prompt_characters: Annotated[int, PydanticField(ge=1, le=4000)] = 4000
    deadline_s: Annotated[float, PydanticField(ge=1, le=LONGEST_DEADLINE_S)] | None = None
    long_deadline_s: Annotated[float, PydanticField(ge=1, le=LONGEST_LONG_DEADLINE_S)] | None = None
    takes_s: Mapping[str, Annotated[int, PydanticField(ge=1, le=LONGEST_LONG_DEADLINE_S)]] = {}
    url: str | None = None
    shutdown_date: date | None = None
    successor: str | None = None
    second: "Model | None" = None
    served_by: str | None = None

    usd_per_image: PositiveDecimal | None = None
    usd_per_image_by: Mapping[str, PositiveDecimal] | None = None
    usd_per_megapixel: PositiveDecimal | None = None
    usd_per_million_tokens: TokenPrices | None = None
    most_usd_per_image: PositiveDecimal | None = None

    @model_validator(mode="before")
    @classmethod
    def _second_is_of_the_same_model(cls, given: object) -> object:
        """Fill in the prices, if a second route has none of its own, and what is the model's and no route's."""
        if not isinstance(given, dict) or not isinstance(second := given.get("second"), dict):
            return given
        if foreign := [name for name in (*_OF_THE_MODEL, "second") if name in second]:
            raise ValueError(f"second: {foreign[0]} is the model's, and no route has its own")
        priced = any("usd_per_" in name for name in second)
        shared = {
            name: value
            for name, value in given.items()
            if name in ("name", "created") or ("usd_per_" in name and not priced)
        }
        return given | {"second": shared | second}

    @model_validator(mode="after")
    def _second_covers_the_same(self) -> Self:
        """Refuse a second route that lacks what a customer may ask of the first one."""
        second = self.second
        if second is None:
            return self
        if (second.provider, second.upstream) == (self.provider, self.upstream):
            raise ValueError("second: is the same as the first")
        for what, ours, theirs in (
            ("sizes", self.sizes, second.sizes),
            ("qualities", self.qualities, second.qualities),
        ):
            if missing := ours.keys() - theirs.keys():
                raise ValueError(f"second: {what} lack {', '.join(sorted(missing))}")
        for word, sent in self.qualities.items():
            if second.qualities[word] != self._in_second(sent):
                raise ValueError(f"second: quality {word} is another word for {sent}, and here it differs")
        if self.priced != second.priced:
            raise ValueError("second: one route has a price, and the other has none")
        return self

    def _in_second(self, quality: str | None) -> str | None:
        """Translate a quality from the words of the first route's upstream to those of the second's."""
        assert self.second is not None, "only its translation is asked for"
        return next((self.second.qualities[word] for word, ours in self.qualities.items() if ours == quality), None)

    def by_second(self, quality: str | None) -> "tuple[Model, str | None] | None":
        """Return the second route as a model of its own, and an order's quality in its upstream's words.

        None if there is none.
        """
        return None if self.second is None else (self.second, self._in_second(quality))

    @model_validator(mode="after")
    def _one_price(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in _PRICES) > 1:
            raise ValueError("has more than one kind of price")
        if self.default_quality is not None and self.default_quality not in self.qualities:
            raise ValueError(f"default_quality: {self.default_quality} is none of its qualities")
        tokens = self.usd_per_million_tokens
        for name in (*(self.usd_per_image_by or ()), *(tokens.most_output_tokens if tokens else ())):
            if not self._has(name):
                raise ValueError(f"has a price for {name}, which is no quality/size of its own")
        if self.usd_per_megapixel is not None and not all(_PIXELS.fullmatch(size) for size in self.sizes):
            raise ValueError("has a price per megapixel, and a size that is not WIDTHxHEIGHT")
        for size in self.sizes:
            for quality in {*self.qualities.values(), None}:
                if self.priced and self.listed(size, quality) is None:
                    raise ValueError(f"has no price for size {size}, quality {quality or 'unset'}")
        return self

    @model_validator(mode="after")
    def _times(self) -> Self:
        for name, seconds in self.takes_s.items():
            if not self._has(name):
                raise ValueError(f"has takes_s for {name}, which is no quality/size of its own")
            if self.long_deadline_s is not None and seconds > self.long_deadline_s:
                raise ValueError(f"has takes_s for {name} above its long_deadline_s")
        return self

    def _has(self, variant: str) -> bool:
        """True if `variant` is a `quality/size` of this model, either of which may be `*`."""
        quality, _, size = variant.partition("/")
        return quality in {"*", *self.qualities.values()} and size in {"*", *self.sizes}

    def takes_s_of(self, size: str, quality: str | None) -> int | None:
        """Find how many seconds a customer must allow for an image; None if the usual deadline is enough.

        `size` in customers' words, `quality` in the upstream's; without it the usual one, or the longest if there is
        none.
        """
        return _by_variant(self.takes_s, self.usual_quality if quality is None else quality, size)

    @property
    def usual_quality(self) -> str | None:
        """The quality of an order that names none, in the upstream's words; None if the upstream chooses it."""
        return self.qualities[self.default_quality] if self.default_quality is not None else None

    @property
    def priced(self) -> bool:
        """True if it is for sale."""
        return any(getattr(self, kind) is not None for kind in _PRICES)

    def listed(self, size: str, quality: str | None) -> Listed | None:
        """Find the list price of one image of this size (in customers' words) and quality (in the upstream's words).

        A variant says by which model an order is served, if by another: mapped on to it, a model has prices that it
        never had, and not changed ones, which would need notice.
        """
        own = self._listed(size, quality)
        if own is None or self.served_by is None:
            return own
        return replace(own, variant=f"{self.served_by} {own.variant}".rstrip())

    def shown(self, variant: str) -> str:
        """Return the size and quality of a variant; empty if the price depends on neither."""
        return variant.removeprefix(self.served_by or "").lstrip()

    def _listed(self, size: str, quality: str | None) -> Listed | None:
        quality = self.usual_quality if quality is None else quality
        if self.usd_per_image is not None:
            return Listed(self.usd_per_image, "", measured=False)
        if self.most_usd_per_image is not None:
            return Listed(self.most_usd_per_image, "", measured=True)
        variant = f"{quality or '*'}/{size}"
        if self.usd_per_image_by is not None:
            usd = _by_variant(self.usd_per_image_by, quality, size)
            return Listed(usd, variant, measured=False) if usd is not None else None
        if self.usd_per_megapixel is not None:
            width, _, height = size.partition("x")
            # A started megapixel counts as a whole one: providers do the same, and this is never less than they charge.
            begun = -(-int(width) * int(height) // 1_000_000)
            return Listed(self.usd_per_megapixel * begun, variant, measured=False)
        if self.usd_per_million_tokens is not None:
            return self._listed_by_tokens(self.usd_per_million_tokens, variant, quality, size)
        return None

    def quoted(self, size: str, quality: str | None) -> Listed | None:
        """Find the price by which an order is quoted: the list price of the dearer route.

        `measured`: what is charged may be less, also because the cheaper route may serve it.
        """
        first, second = self.listed(size, quality), self.by_second(quality)
        if first is None or second is None:
            return first
        route, its_quality = second
        other = route.listed(size, its_quality)
        assert other is not None, "a route without a price is refused"
        either = first.variant or (f"{quality or '*'}/{size}" if other.variant else "")
        differ = first.usd_per_image != other.usd_per_image
        dearer = max(first.usd_per_image, other.usd_per_image)
        return Listed(dearer, either, measured=differ or first.measured or other.measured)

    @staticmethod
    def _listed_by_tokens(prices: TokenPrices, variant: str, quality: str | None, size: str) -> Listed | None:
        most = _by_variant(prices.most_output_tokens, quality, size)
        return Listed(prices.most_usd(most), variant, measured=True) if most is not None else None

    @property
    def measured_by(self) -> str:
        """How the provider's report is priced, as lists of prices say it: empty if it is not.

        What is measured of a second route stands behind a `|`.
        """
        own = REPORTED if self.most_usd_per_image is not None else ""
        if self.usd_per_million_tokens is not None:
            rates = sorted(self.usd_per_million_tokens.rates.items())
            own = json.dumps({name: format(usd.normalize(), "f") for name, usd in rates})
        second = self.second.measured_by if self.second is not None else ""
        return f"{own}|{second}" if second else own

    def as_listed(self, measured_by: str | None, usd_per_image: Decimal) -> "Model":
        """Return the model as an order is charged that was quoted by a list, whatever this file says by now.

        `measured_by` is None if the list does not say it: then this file does.
        """
        if measured_by is None or measured_by == self.measured_by:
            return self
        own, _, of_second = measured_by.partition("|")
        listed: dict[str, object] = {"usd_per_image": usd_per_image}
        if own == REPORTED:
            listed = {"most_usd_per_image": usd_per_image}
        elif own:
            bounds = {"most_input_tokens": 1, "most_output_tokens": {"*/*": 1}}
            if self.usd_per_million_tokens is not None:
                bounds = self.usd_per_million_tokens.model_dump(exclude=set(_RATES))
            listed = {"usd_per_million_tokens": TokenPrices.model_validate({**bounds, **json.loads(own)})}
        second = self.second.as_listed(of_second, usd_per_image) if self.second is not None else None
        return self.model_copy(update={**dict.fromkeys(_PRICES), **listed, "second": second})

    def most_tokens(self, size: str, quality: str | None) -> tuple[int, int] | None:
        """Return the most tokens of one image, in and out, by which it is quoted; None if it is not sold by tokens."""
        prices = self.usd_per_million_tokens
        most = _by_variant(prices.most_output_tokens, quality, size) if prices is not None else None
        return (prices.most_input_tokens, most) if prices is not None and most is not None else None

    def usd_of(self, used: TokenUsage) -> Decimal | None:
        """Compute the cost of a reported usage at the model's token prices; None if it has none."""
        prices = self.usd_per_million_tokens
        return prices.usd_of(used) if prices is not None else None

    def prices(self) -> dict[str, Decimal]:
        """List every price that a quote of this model can name, by variant."""
        listed = [self.quoted(size, quality) for size in self.sizes for quality in (*self.qualities.values(), None)]
        return {row.variant: row.usd_per_image for row in listed if row is not None}


ValueT = TypeVar("ValueT", int, Decimal)


def _by_variant(table: Mapping[str, ValueT], quality: str | None, size: str) -> ValueT | None:
    """Find the row of `quality/size`, in which either may be `*`.

    If the upstream chooses the quality, the highest price.
    """
    named = {name.partition("/")[0] for name in table}
    wanted = named if quality is None or (quality == "auto" and "auto" not in named) else {quality}
    rows = [_row(table, one, size) for one in wanted]
    return max((row for row in rows if row is not None), default=None)


def _row(table: Mapping[str, ValueT], quality: str, size: str) -> ValueT | None:
    names = (f"{quality}/{size}", f"{quality}/*", f"*/{size}", "*/*")
    return next((table[name] for name in names if name in table), None)


class Catalogue(Row):
    """All models, with the price book that they stand in.

    What this file changes about the price of a model that was sold before holds from `effective_from` on.
    """

    price_book: Annotated[str, PydanticField(min_length=1, max_length=40)]
    effective_from: AwareDatetime | None = None
    markup: PositiveDecimal
    models: Mapping[str, Model]

    @field_validator("models")
    @classmethod
    def _served(cls, models: Mapping[str, Model]) -> Mapping[str, Model]:
        """Put into the place of a row that another one serves that other row, under the first one's name and dates."""
        return {name: _by_its_server(name, models) for name in models}

    def prices(self) -> list[tuple[str, str, Decimal]]:
        """List every price that a quote can name: model, variant, USD per image."""
        models = self.models.items()
        return [(name, variant, usd) for name, model in models for variant, usd in model.prices().items()]

    @property
    def price_book_version(self) -> str:
        """The book's name and a digest of the markup, every price and how it is measured: no two books share one."""
        measured = {name: (model.measured_by,) if model.measured_by else () for name, model in self.models.items()}
        prices = sorted((name, variant, str(usd), *measured[name]) for name, variant, usd in self.prices())
        digest = hashlib.sha256(repr((str(self.markup), prices)).encode()).hexdigest()
        return f"{self.price_book}+{digest[:8]}"


def _by_its_server(name: str, models: Mapping[str, Model]) -> Model:
    """Follow a row to the one that serves it. Raises ValueError if that is none of the file's, or comes back to it."""
    row, serving, passed = models[name], models[name].served_by, {name}
    if serving is None:
        return row
    while (further := _served_by(name, serving, models)) is not None:
        passed.add(serving)
        serving = further
        if serving in passed:
            raise ValueError(f"{name}: served_by comes back to {serving}")
    own = {"name": row.name, "created": row.created, "shutdown_date": row.shutdown_date, "successor": row.successor}
    return models[serving].model_copy(update={**own, "served_by": serving})


def _served_by(name: str, serving: str, models: Mapping[str, Model]) -> str | None:
    if serving not in models:
        raise ValueError(f"{name}: served_by names {serving}, which is no model of this file")
    return models[serving].served_by


class SeedRate(Row):
    """MXN for one USD in one calendar month."""

    month: Month
    mxn_per_usd: PositiveDecimal
    source: Annotated[str, PydanticField(min_length=1)]


class SeedRates(Row):
    rates: tuple[SeedRate, ...] = ()


RowT = TypeVar("RowT", bound=Row)


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file: the one that `variable` names, or the one that ships."""

    variable: str
    path: Path

    def read(self) -> bytes:
        """Read it whole. Raises CatalogueError, also for a folder, a pipe, and more than MAX_FILE_BYTES."""
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise self.wrong("is no file")
            with self.path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise self.wrong(f"cannot be read: {error.strerror}") from None
        if len(content) > MAX_FILE_BYTES:
            raise self.wrong(f"is larger than {MAX_FILE_BYTES} bytes")
        return content

    def parse(self, kind: type[RowT], content: bytes) -> RowT:
        """Check a content to the last field. Raises CatalogueError, which names the field."""
        try:
            return kind.model_validate(tomllib.loads(content.decode("utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise self.wrong(f"is not TOML: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise self.wrong(f"{field}: {first['msg']}") from None

    def wrong(self, why: str) -> CatalogueError:
        """Build the error that says what is wrong with this file."""
        return CatalogueError(f"{self.variable}: {self.path}: {why}")


def version_of(content: bytes) -> str:
    """Name a content: the first characters of its SHA-256, as `sha256sum` prints it."""
    return hashlib.sha256(content).hexdigest()[:12]


def models_file(given: Path | None) -> DataFile:
    """Name the file of the catalogue: `given`, or the one that ships."""
    return DataFile("GHUB_MODELS", given or HERE / "models.toml")


def demo_models() -> bytes:
    """The catalogue that ships, with the prices of simulated upstreams for models that ship without one."""
    return (HERE / "models.toml").read_bytes() + b"\n" + (HERE / "demo_prices.toml").read_bytes()


def read_rows(kind: type[RowT], variable: str, given: Path | None, shipped: str) -> RowT:
    """A file that `variable` names, or the one that ships. Raises CatalogueError, which names the field."""
    file = DataFile(variable, given or HERE / shipped)
    return file.parse(kind, file.read())


def read_catalogue(path: Path | None) -> Catalogue:
    """The catalogue in `path`, or the one that ships. Raises CatalogueError."""
    file = models_file(path)
    return file.parse(Catalogue, file.read())


def read_seed_rates(path: Path | None) -> tuple[SeedRate, ...]:
    """The rates that seed an empty table. Raises CatalogueError."""
    return read_rows(SeedRates, "GHUB_FX", path, "fx.toml").rates
