"""What an organisation used: GET /v1/usage, by day of Mexico City, model and key, as JSON or CSV."""

import asyncio
import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from itertools import permutations
from typing import Annotated, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from starlette.requests import Request
from starlette.responses import Response

from metering.clock import next_month, period_at
from metering.export import text_cell
from metering.money import format_mxn
from metering.ports import ApiKey, Ledger, LedgerAway, UsageRow
from metering.wallet.wallet import Wallet
from proxy.account import checked
from proxy.auth import Authenticator
from proxy.documents import absent
from proxy.errors import ApiError, Kind, wallet_away
from proxy.messages import (
    BEFORE_FROM,
    BOTH_DAYS,
    GROUP_TWICE,
    NO_DAY,
    NO_GROUP,
    TOO_MANY_DAYS,
    TWICE,
    UNKNOWN_PARAMETER,
    Text,
)
from proxy.requests import weighed

MOST_DAYS = 366
"""A leap year, at once: with nine models and ten keys some 33,000 rows, 5 MB."""

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

Group = Literal["day", "model", "key"]
GROUPINGS = [",".join(names) for count in range(4) for names in permutations(get_args(Group), count)]
"""As they are written in an address."""

_FIELDS: Mapping[Group, str] = {"day": "day", "model": "model", "key": "key_id"}


class UsageQuery(BaseModel):
    """The query of GET /v1/usage. Without dates it is this month of Mexico City."""

    model_config = ConfigDict(
        extra="forbid",
        populate_by_name=True,
        json_schema_extra=lambda schema: schema.pop("required"),  # `read_query` fills in what is absent
    )

    first: date = Field(alias="from", description="The first day, of Mexico City, YYYY-MM-DD")
    last: date = Field(alias="to", description="The last day, included")
    group_by: Annotated[tuple[Group, ...], WithJsonSchema({"type": "string", "enum": GROUPINGS})] = Field(
        ("day",),
        description="Any of day, model and key, with commas between them; empty for one sum",
        json_schema_extra={"default": "day"},
    )

    @field_validator("first", "last", mode="before")
    @classmethod
    def _a_day(cls, value: object) -> object:
        if isinstance(value, date) or (isinstance(value, str) and _DAY.fullmatch(value)):
            return value
        raise ValueError("must be a day as YYYY-MM-DD")

    @field_validator("group_by", mode="before")
    @classmethod
    def _a_list(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        names = tuple(value.split(",")) if value else ()
        if bad := [name for name in names if name not in get_args(Group)]:
            raise ValueError(NO_GROUP.of(name="group_by", value=repr(bad[0][:32])))
        if len(set(names)) < len(names):
            raise ValueError(GROUP_TWICE.of(name="group_by"))
        return names

    @model_validator(mode="after")
    def _a_span(self) -> "UsageQuery":
        if self.last < self.first:
            raise ValueError(BEFORE_FROM.of(name="to"))
        if (self.last - self.first).days >= MOST_DAYS:
            raise ValueError(TOO_MANY_DAYS.of(name="to", most=MOST_DAYS))
        return self


class UsageTotal(BaseModel):
    """Charged orders, the images that they delivered, and their price in MXN as a decimal string."""

    orders: int
    images: int
    cost_mxn: str


class UsageItem(UsageTotal):
    """One group; of `day`, `model` and `key` those are there by which it was grouped."""

    day: Annotated[str, Field(description="Of Mexico City, YYYY-MM-DD")] = absent()
    model: str = absent()
    key_id: str = absent()
    key_name: str = absent()


class UsageReply(BaseModel):
    """The reply of GET /v1/usage; the total is the sum of all groups."""

    object: Literal["usage"] = "usage"
    currency: Literal["MXN"] = "MXN"
    first: date = Field(serialization_alias="from")
    last: date = Field(serialization_alias="to")
    group_by: tuple[Group, ...]
    data: list[UsageItem]
    total: UsageTotal


class UsageEndpoint:
    """Only what the caller's key may read; it is checked at this moment."""

    def __init__(self, authenticator: Authenticator, wallet: Wallet, ledger: Ledger) -> None:
        self._authenticator = authenticator
        self._wallet = wallet
        self._ledger = ledger
        self._turn = asyncio.Semaphore()

    async def read(self, request: Request) -> Response:
        """GET /v1/usage."""
        caller, cut = await checked(request, self._authenticator, self._wallet)
        query = read_query(request.query_params.multi_items(), cut.now_us)
        days = query.first.isoformat(), query.last.isoformat()
        try:
            rows = await self._ledger.usage(caller.org_id, *days, query.group_by, caller.reads)
            names = await self._names(caller.org_id) if "key" in query.group_by else {}
        except LedgerAway:
            raise wallet_away() from None
        as_table = _wants_csv(request.headers.get("accept", ""))
        # The largest takes a second, in which others are to be served; one at a time, for they need threads, too.
        async with self._turn:
            document = await asyncio.to_thread(_written, query, rows, names, as_table)
        headers = {"vary": "accept"}
        if as_table:
            name = f"usage-{query.first}-{query.last}.csv"
            headers["content-disposition"] = f'attachment; filename="{name}"'
        return Response(document, media_type="text/csv" if as_table else "application/json", headers=headers)

    async def _names(self, org_id: str) -> dict[str, str]:
        names: dict[str, str] = {}
        page = await self._ledger.keys(org_id)
        while page:
            names |= {key.key_id: key.name for key in page}
            last: ApiKey = page[-1]
            page = await self._ledger.keys(org_id, after=last)
        return names


def read_query(items: Sequence[tuple[str, str]], now_us: int) -> UsageQuery:
    """From a URL. Raises ApiError 400 that names the parameter."""
    month = period_at(now_us).month
    begins, ends = date.fromisoformat(f"{month}-01"), date.fromisoformat(f"{next_month(month)}-01") - timedelta(days=1)
    given = dict(items)
    if len(given) < len(items):
        twice = next(name for i, (name, _) in enumerate(items) if name in dict(items[:i]))
        raise _bad(twice, TWICE.of(name=twice[:64]))
    if "from" in given or "to" in given:
        for name in ("from", "to"):
            if name not in given:
                raise _bad(name, BOTH_DAYS.of(name=name))
    try:
        return UsageQuery.model_validate({"from": begins, "to": ends, **given})
    except ValidationError as error:
        (first, *_) = error.errors()
        name = str(first["loc"][0]) if first["loc"] else "to"
        raise _bad(name, _why(first, name[:64])) from None


def _why(rule: ErrorDetails, name: str) -> Text:
    """The rule of the model that a query breaks, as the customer is told it."""
    match rule["type"]:
        case "extra_forbidden":
            return UNKNOWN_PARAMETER.of(name=name, known="`from`, `to`, `group_by`")
        case "value_error" if isinstance(why := rule["ctx"]["error"].args[0], Text):
            return why
        case _:
            return NO_DAY.of(name=name)


def _bad(name: str, message: Text) -> ApiError:
    return ApiError(Kind.INVALID_REQUEST, message, param=name[:64])


def _written(query: UsageQuery, rows: Sequence[UsageRow], names: Mapping[str, str], as_table: bool) -> str:
    reply = UsageReply(
        first=query.first,
        last=query.last,
        group_by=query.group_by,
        data=_items(rows, query.group_by, names),
        total=UsageTotal(
            orders=sum(row.orders for row in rows),
            images=sum(row.images for row in rows),
            cost_mxn=format_mxn(sum(row.amount_micro_mxn for row in rows)),
        ),
    )
    return as_csv(reply) if as_table else reply.model_dump_json(by_alias=True, exclude_none=True)


def _items(rows: Iterable[UsageRow], by: Sequence[Group], names: Mapping[str, str]) -> list[UsageItem]:
    """In the order of what they are grouped by."""
    items = []
    for row in sorted(rows, key=lambda row: [getattr(row, _FIELDS[name]) for name in by]):
        group = {_FIELDS[name]: getattr(row, _FIELDS[name]) for name in by}
        if "key" in by:
            group["key_name"] = names.get(row.key_id, "")
        cost_mxn = format_mxn(row.amount_micro_mxn)
        items.append(UsageItem(orders=row.orders, images=row.images, cost_mxn=cost_mxn, **group))
    return items


def as_csv(reply: UsageReply) -> str:
    """RFC 4180 with a header row; a name that begins like a formula is made text. The total is no row of it."""
    groups = [column for name in reply.group_by for column in (("key_id", "key_name") if name == "key" else (name,))]
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow([*groups, "orders", "images", "cost_mxn"])
    for item in reply.data:
        named = [text_cell(str(getattr(item, column))) for column in groups]
        writer.writerow([*named, item.orders, item.images, item.cost_mxn])
    return file.getvalue()


def _wants_csv(accept: str) -> bool:
    """Of CSV and JSON, is CSV named with the higher weight, or first with the same?"""
    best, chosen = 0.0, ""
    for kind, weight in weighed(accept):
        if kind in ("text/csv", "application/json") and weight > best:
            best, chosen = weight, kind
    return chosen == "text/csv"
