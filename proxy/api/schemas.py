"""Models of the gateway's replies: the OpenAPI document is made from them, and tests check real replies with them.

Replies are not built with them: on the hot path that would cost time for something that only the document needs. For
the same reason their validators are made when they are first used, and not at every start.
"""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel

PublicId = Annotated[str, Field(pattern="^req_[0-9a-f]{32}$", description="Of one request, for support and logs.")]
Mxn = Annotated[str, Field(pattern=r"^-?[0-9]+\.[0-9]{2,6}$", description="MXN, a decimal string.")]
FxRate = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?$", description="A decimal string.")]
UnixSeconds = Annotated[int, Field(ge=0, description="Unix time in seconds.")]
Month = Annotated[str, Field(pattern="^[0-9]{4}-(0[1-9]|1[0-2])$", description="A month of Mexico City.")]


def absent() -> Any:
    """Default of a field that may be absent from a reply, and is never null."""
    return Field(default=None)


class Document(BaseModel):
    """A reply has these fields and no other."""

    model_config = ConfigDict(strict=True, extra="forbid", defer_build=True)


class ErrorDetail(Document):
    """What went wrong, for people (`message`) and for programs (`code`)."""

    message: Annotated[str, Field(min_length=1)]
    type: str
    code: str
    param: Annotated[str | None, Field(description="The field that the message names.")]
    request_id: PublicId


class Error(Document):
    """Every error has this form."""

    error: ErrorDetail


class Image(Document):
    """One image: its address, which does not expire, or itself."""

    url: Annotated[str, Field(json_schema_extra={"format": "uri"})] = absent()
    b64_json: Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})] = absent()
    revised_prompt: str = absent()


class Delivered(Document):
    """An order that was delivered and charged, in OpenAI's form; what follows `data` is said by some models."""

    id: PublicId
    object: Literal["list"]
    created: UnixSeconds
    model: str
    served_model: Annotated[str, Field(description="The upstream's own name of what made the images.")]
    cost_mxn: Annotated[Mxn, Field(description="What the order was charged, also where it is told again.")]
    data: Annotated[list[Image], Field(min_length=1, max_length=8)]
    size: str = absent()
    quality: str = absent()
    background: str = absent()
    output_format: str = absent()
    usage: dict[str, Any] = absent()


class Refusal(Document):
    """The error that an order would get."""

    code: str
    message: str


class MostTokens(Document):
    """Tokens of one image, at most."""

    input: Annotated[int, Field(ge=0)]
    output: Annotated[int, Field(ge=0)]


class RateLeft(Document):
    """A limit per minute, and what is left of it before the order."""

    limit: Annotated[int, Field(ge=0)]
    remaining: Annotated[int, Field(ge=0)]


class RatesLeft(Document):
    """The limits per minute that are nearest, of the organisation or of the key."""

    requests: RateLeft
    images: RateLeft


class DryRun(Document):
    """What an order would cost at most; nothing was ordered."""

    object: Literal["dry_run"]
    model: str
    n: Annotated[int, Field(ge=1)]
    size: str
    quality: Annotated[str | None, Field(description="As the upstream is asked; null if it is not asked for one.")]
    cost_mxn: Annotated[Mxn, Field(description="The most that the order can cost.")]
    cost_mxn_per_image: Annotated[Mxn, Field(description="The most that one image can cost.")]
    at_most: Annotated[bool, Field(description="True if it may cost less: by what the provider reports, or its route.")]
    tokens: Annotated[MostTokens | None, Field(description="Null if the model is not sold by tokens.")]
    deadline_s: Annotated[float, Field(gt=0, description="How long the order may take, in seconds.")]
    admitted: Annotated[bool, Field(description="True if the order would be taken on at this moment.")]
    refusal: Annotated[Refusal | None, Field(description="Null if it would be taken on.")]
    limits: Annotated[RatesLeft | None, Field(description="Null for a test key.")]
    available_mxn: Annotated[Mxn | None, Field(description="What can be spent now; null for a test key.")]


class Made(RootModel[Delivered | DryRun]):
    """What was delivered; or, for a dry run, what it would cost at most."""


class Completed(Delivered):
    """A delivered order, fetched again."""

    status: Literal["completed"]


class Undelivered(Document):
    """An order without images."""

    id: PublicId
    object: Literal["image.generation"]
    data: Annotated[list[Image], Field(max_length=0)]


class InProgress(Undelivered):
    """An order that is being made. `held_mxn` is the most that it can cost; what it costs is known at its end."""

    status: Literal["in_progress"]
    created: UnixSeconds
    model: str
    held_mxn: Mxn


class Queued(InProgress):
    """A long order that no provider has begun."""

    status: Literal["queued"]  # type: ignore[assignment]    # same fields, another value


class Failed(Undelivered):
    """An order that brought no image and cost nothing, with the error that an awaited one would have had."""

    status: Literal["failed"]
    error: ErrorDetail


class Expired(Failed):
    """An order whose gateway died, and that ran out."""

    status: Literal["expired"]  # type: ignore[assignment]    # same fields, another value


class Cancelled(Undelivered):
    """An order that was cancelled, and cost nothing."""

    status: Literal["cancelled"]


class Generation(
    RootModel[Annotated[Completed | Queued | InProgress | Failed | Cancelled | Expired, Field(discriminator="status")]]
):
    """How an order stands."""


class Generations(Document):
    """What was delivered, the latest first, a page of it; `next_cursor` asks for the next one as `after`."""

    object: Literal["list"]
    data: list[Completed]
    has_more: bool
    next_cursor: Annotated[str | None, Field(description="Null after the last.")]


class Found(RootModel[Generations | Generation]):
    """What was delivered; or, asked by an idempotency key, how its one order stands."""


class PriceParts(Document):
    """Of one image: USD × markup × rate; without a rate for this month there is no price in MXN."""

    usd_per_image: FxRate
    markup: FxRate
    mxn_per_usd: FxRate | None
    fx_month: Month | None
    mxn_per_image: Mxn | None


class UpcomingPrice(PriceParts):
    """A price that is announced."""

    effective_from: UnixSeconds


class Price(PriceParts):
    """What an image costs now, and the price that follows, if one is announced."""

    upcoming: UpcomingPrice | None


class ListedPrice(Price):
    """The price of an order that names neither size nor quality; `at_most` where it is measured afterwards."""

    at_most: bool


def _day(text: str) -> str:
    date.fromisoformat(text)
    return text


class Model(Document):
    """What can be ordered."""

    id: str
    object: Literal["model"]
    created: UnixSeconds
    owned_by: str
    name: str
    price: ListedPrice
    prices: Annotated[dict[str, Price], Field(description="By size, quality or both, where they differ.")]
    sizes: list[str]
    qualities: list[str]
    takes_s: Annotated[
        dict[str, int],
        Field(
            description="Seconds to allow for an order, by `quality/size`, where it is known to take long. Above the"
            " deadline of an order that is waited for, it is taken with `Prefer: respond-async` only."
        ),
    ]
    long_deadline_s: Annotated[
        float | None, Field(description="The model's own deadline of a long order, in seconds; null: that of all.")
    ]
    status: Annotated[
        Literal["live", "deprecated", "retired"],
        Field(description="`deprecated`: its last day is announced; `retired`: that day has come."),
    ]
    shutdown_date: Annotated[str, AfterValidator(_day), Field(json_schema_extra={"format": "date"})] | None
    successor: Annotated[
        str | None, Field(description="What to order instead: offered, and not at its own end; else null.")
    ]
    served_by: Annotated[
        str | None, Field(description="The model that makes its images, at that model's price; null: it does itself.")
    ]


class Models(Document):
    """The catalogue."""

    object: Literal["list"]
    data: list[Model]


class Credits(Document):
    """The prepaid balance: what can be spent, what open orders hold, and their sum."""

    object: Literal["credits"]
    currency: Literal["MXN"]
    available_mxn: Mxn
    held_mxn: Mxn
    balance_mxn: Mxn


class Transaction(Document):
    """Money in or out other than by orders. `mxn` is what entered the balance, without IVA."""

    id: str
    object: Literal["credit_transaction"]
    type: Literal["bonus", "recharge", "refund", "adjustment", "chargeback"]
    mxn: Mxn
    created: UnixSeconds
    order: Annotated[PublicId | None, Field(description="The order that a refund gave back.")]
    recharge: Annotated[str | None, Field(description="The recharge that a chargeback took back.")]
    corrects: Annotated[
        str | None,
        Field(description="What an adjustment corrects: `order:ID`, `credit:ID`, or a rate, `fx:YYYY-MM`."),
    ]
    reason: str | None
    base_mxn: Annotated[Mxn | None, Field(description="What was paid without IVA; null where nothing was paid.")]
    iva_rate: FxRate | None
    iva_mxn: Mxn | None
    total_mxn: Annotated[Mxn | None, Field(description="What was paid.")]
    balance_mxn: Annotated[Mxn | None, Field(description="Credits less charges after it.")]
    cfdi: Annotated[str | None, Field(description="UUID of its CFDI.")]


class Transactions(Document):
    """Money in and out, the latest first, a page of it; `next_cursor` asks for the next one as `after`."""

    object: Literal["list"]
    currency: Literal["MXN"]
    data: list[Transaction]
    has_more: bool
    next_cursor: Annotated[str | None, Field(description="Null after the last.")]


class Alive(RootModel[Literal["ok\n"]]):
    """This process turns its loop."""


class Ready(RootModel[Annotated[str, Field(pattern=r"^ready\n([a-z]+ [0-9a-f]{12}\n)*$")]]):
    """This process takes work; then a line for each of its files, with the version in force."""


class OpenApi(BaseModel):
    """This document."""

    openapi: Literal["3.1.0"]
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]
