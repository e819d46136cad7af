"""What an organisation used: GET /v1/usage, by day of Mexico City, model, key and what orders carry, as JSON or CSV."""

import asyncio
import csv
import io
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date, timedelta
from functools import partial
from typing import Annotated, Any, Literal, cast, get_args

import orjson
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

from config.settings import REPORT_ROWS
from metering.clock import next_month, period_at
from metering.exports.rows import text_cell
from metering.money import format_mxn
from metering.pages import pages
from metering.ports import Label, Ledger, LedgerAway, UsageRow
from metering.wallet.values import Caller
from metering.wallet.wallet import Wallet
from proxy.api.auth import Authenticator
from proxy.api.credits import checked
from proxy.api.operation import Operation, Tag
from proxy.api.reads import Read, ReadRates, Reports, SentReport
from proxy.api.requests import weighed
from proxy.api.schemas import absent
from proxy.errors import ApiError, Kind, wallet_away
from proxy.messages import (
    BEFORE_FROM,
    BOTH_DAYS,
    GROUP_TWICE,
    NO_DAY,
    NO_GROUP,
    ONE_LABEL,
    TOO_MANY_DAYS,
    TOO_MANY_ROWS,
    TWICE,
    UNKNOWN_PARAMETER,
    Text,
)
from proxy.orders.order import METADATA_KEY_CHARACTERS

MAX_DAYS = 366
"""The most days of one report, a leap year: with nine models and ten keys about 33,000 rows, 5 MB."""

PIECE_BYTES = 64 * 1024
"""The size of the pieces in which a reply is sent."""

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

Group = Literal["day", "model", "key", "user", "safety_identifier", "tag"]

METADATA = "metadata."
"""Before a key of the metadata, as a group: `metadata.team`."""

_ONE = rf"({'|'.join(get_args(Group))}|metadata\.[^,=\u0000]{{1,{METADATA_KEY_CHARACTERS}}})"
GROUPINGS = rf"^({_ONE}(,{_ONE}){{0,3}})?$"
"""All groupings, as they are written in a URL; of those that orders carry there may be one."""

_DIMENSIONS: Mapping[str, str] = {"day": "day", "model": "model", "key": "key_id"}


class UsageQuery(BaseModel):
    """The query of GET /v1/usage. Without dates it is this month of Mexico City."""

    model_config = ConfigDict(
        extra="forbid",
        populate_by_name=True,
        json_schema_extra=lambda schema: schema.pop("required"),  # `read_query` sets the fields that are absent
    )

    first: date = Field(alias="from", description="The first day, of Mexico City, YYYY-MM-DD")
    last: date = Field(alias="to", description="The last day, included")
    group_by: Annotated[tuple[str, ...], WithJsonSchema({"type": "string", "pattern": GROUPINGS})] = Field(
        ("day",),
        description="Any of day, model and key, and one of user, safety_identifier, tag and metadata.KEY, with commas"
        " between them; empty for one sum",
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
        if bad := [name for name in names if not re.fullmatch(_ONE, name)]:
            raise ValueError(NO_GROUP.of(name="group_by", value=repr(bad[0][:32])))
        if len(set(names)) < len(names):
            raise ValueError(GROUP_TWICE.of(name="group_by"))
        if len(set(names) - _DIMENSIONS.keys()) > 1:
            raise ValueError(ONE_LABEL.of(name="group_by"))
        return names

    @model_validator(mode="after")
    def _a_span(self) -> "UsageQuery":
        if self.last < self.first:
            raise ValueError(BEFORE_FROM.of(name="to"))
        if (self.last - self.first).days >= MAX_DAYS:
            raise ValueError(TOO_MANY_DAYS.of(name="to", most=MAX_DAYS))
        return self


class UsageTotal(BaseModel):
    """Charged orders, the images that they delivered, and their price in MXN as a decimal string."""

    orders: int
    images: int
    cost_mxn: str


class UsageItem(UsageTotal):
    """One group; those fields are there by which it was grouped.

    Of `user` to `metadata`, which orders carry, the field is empty for orders that carry none. An end user whose clear
    name was erased is its pseudonym.
    """

    day: Annotated[str, Field(description="Of Mexico City, YYYY-MM-DD")] = absent()
    model: str = absent()
    key_id: str = absent()
    key_name: str = absent()
    user: str = absent()
    safety_identifier: str = absent()
    tag: str = absent()
    metadata: Annotated[str, Field(description="The value of the key by which it was grouped")] = absent()


class UsageReply(BaseModel):
    """The reply of GET /v1/usage; the total is that of all orders. An order counts in the group of each of its tags."""

    object: Literal["usage"] = "usage"
    currency: Literal["MXN"] = "MXN"
    first: date = Field(serialization_alias="from")
    last: date = Field(serialization_alias="to")
    group_by: tuple[str, ...]
    data: list[UsageItem]
    total: UsageTotal


class UsageEndpoint:
    """Reports only what the caller's key may read; the key is checked at each request."""

    def __init__(
        self, authenticator: Authenticator, wallet: Wallet, ledger: Ledger, rates: ReadRates, reports: Reports
    ) -> None:
        self._authenticator = authenticator
        self._wallet = wallet
        self._ledger = ledger
        self._rates = rates
        self._reports = reports

    def operations(self) -> Sequence[Operation]:
        """Return the operation of the report."""
        return [
            Operation(
                id="get_usage",
                tag=Tag.ACCOUNT,
                method="GET",
                path="/v1/usage",
                handler=self.read,
                summary="What was charged, by day, model, key, and what orders carry",
                description="As CSV if `Accept` prefers `text/csv`.",
                reply=UsageReply,
                media=("application/json", "text/csv"),
                query=UsageQuery,
                reply_headers=("content-disposition", "vary"),
                errors=(Kind.INVALID_REQUEST, Kind.RATE_LIMIT),
            )
        ]

    async def read(self, request: Request) -> Response:
        """Answer GET /v1/usage."""
        caller, cut = await checked(request, self._authenticator, self._wallet, self._rates, Read.USAGE)
        query = read_query(request.query_params.multi_items(), cut.now_us)
        as_table = _wants_csv(request.headers.get("accept", ""))
        # A report waits for its turn before it reads rows: while it waits, none are in memory. The turn ends when the
        # reply is sent.
        org_id = caller.org_id
        await self._reports.begin(org_id)
        try:
            async with self._reports.making(org_id):
                pieces = await self._document(caller, query, as_table)
        except LedgerAway:
            self._reports.end(org_id)
            raise wallet_away() from None
        except BaseException:
            self._reports.end(org_id)
            raise
        headers = {"vary": "accept"}
        if as_table:
            name = f"usage-{query.first}-{query.last}.csv"
            headers["content-disposition"] = f'attachment; filename="{name}"'
        media = "text/csv" if as_table else "application/json"
        return SentReport(pieces, media, headers, partial(self._reports.end, org_id))

    async def _document(self, caller: Caller, query: UsageQuery, as_table: bool) -> list[bytes]:
        days = query.first.isoformat(), query.last.isoformat()
        asked = caller.org_id, *days, query.group_by
        if (label := _label(query.group_by)) is None:
            rows, total = await self._ledger.usage(*asked, REPORT_ROWS + 1, caller.reads), None
        else:
            rows, total = await self._ledger.usage_by(*asked, *label, REPORT_ROWS + 1, caller.reads)
        if len(rows) > REPORT_ROWS:
            raise _bad("group_by", TOO_MANY_ROWS.of(name="group_by", most=REPORT_ROWS))
        names = await self._names(caller.org_id) if "key" in query.group_by else {}
        return await asyncio.to_thread(_written, query, rows, total or _sum(rows), names, as_table)

    async def _names(self, org_id: str) -> dict[str, str]:
        return {key.key_id: key.name async for page in pages(partial(self._ledger.keys, org_id)) for key in page}


def read_query(items: Sequence[tuple[str, str]], now_us: int) -> UsageQuery:
    """Read the query from a URL. Raises ApiError 400 that names the parameter."""
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
    """Return the customer's message for the rule of the model that a query breaks."""
    match rule["type"]:
        case "extra_forbidden":
            return UNKNOWN_PARAMETER.of(name=name, known="`from`, `to`, `group_by`")
        case "value_error" if isinstance(why := rule["ctx"]["error"].args[0], Text):
            return why
        case _:
            return NO_DAY.of(name=name)


def _bad(name: str, message: Text) -> ApiError:
    return ApiError(Kind.INVALID_REQUEST, message, param=name[:64])


def _label(by: Sequence[str]) -> tuple[Label, str] | None:
    """Find by which of what orders carry it is grouped, and how the ledger's names of it begin; None for none."""
    for name in by:
        if name.startswith(METADATA):
            return "metadata", f"{name.removeprefix(METADATA)}="
        if name not in _DIMENSIONS:
            return cast(Label, name), ""
    return None


def _sum(rows: Collection[UsageRow]) -> UsageRow:
    return UsageRow(
        day="",
        model="",
        key_id="",
        orders=sum(row.orders for row in rows),
        images=sum(row.images for row in rows),
        amount_micro_mxn=sum(row.amount_micro_mxn for row in rows),
    )


def _column(name: str) -> str:
    """Return the name of a group's field."""
    return "metadata" if name.startswith(METADATA) else _DIMENSIONS.get(name, name)


def _written(
    query: UsageQuery, rows: list[UsageRow], total: UsageRow, names: Mapping[str, str], as_table: bool
) -> list[bytes]:
    attributes = [_DIMENSIONS.get(name, "name") for name in query.group_by]
    rows.sort(key=lambda row: [getattr(row, name) for name in attributes])
    items = _items(rows, query.group_by, names)
    if as_table:
        return _pieces(line.encode() for line in csv_lines(query.group_by, items))
    reply = UsageReply(
        first=query.first,
        last=query.last,
        group_by=query.group_by,
        data=[],
        total=UsageTotal(orders=total.orders, images=total.images, cost_mxn=format_mxn(total.amount_micro_mxn)),
    )
    return _pieces(_json(reply, items))


def _pieces(parts: Iterable[bytes]) -> list[bytes]:
    """Join the same bytes into pieces of about 64 KiB: the whole document is never copied."""
    pieces, piece = [], bytearray()
    for part in parts:
        piece += part
        if len(piece) >= PIECE_BYTES:
            pieces.append(bytes(piece))
            piece.clear()
    return [*pieces, bytes(piece)]


def _json(reply: UsageReply, items: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """Write the reply with these items: one model for each of tens of thousands would take ten times the memory."""
    before, empty, after = reply.model_dump_json(by_alias=True).partition('"data":[]')
    assert empty, "the reply was made without items"
    yield before.encode() + b'"data":['
    for place, item in enumerate(items):
        yield (b"," if place else b"") + orjson.dumps(item)
    yield b"]" + after.encode()


def _items(rows: Iterable[UsageRow], by: Sequence[str], names: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield items as `UsageItem` describes them."""
    for row in rows:
        group = {_column(name): getattr(row, _DIMENSIONS.get(name, "name")) for name in by}
        if "key" in by:
            group["key_name"] = names.get(row.key_id, "")
        yield group | {"orders": row.orders, "images": row.images, "cost_mxn": format_mxn(row.amount_micro_mxn)}


def csv_lines(by: Sequence[str], items: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Write RFC 4180 with a header row; a name that begins like a formula is made text. The total has no row."""
    groups = [column for name in by for column in (("key_id", "key_name") if name == "key" else (_column(name),))]
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow([*groups, "orders", "images", "cost_mxn"])
    for item in items:
        yield file.getvalue()
        file.seek(0)
        file.truncate()
        named = [text_cell(str(item[column])) for column in groups]
        writer.writerow([*named, item["orders"], item["images"], item["cost_mxn"]])
    yield file.getvalue()


def _wants_csv(accept: str) -> bool:
    """Check whether CSV has a higher weight than JSON, or the same weight and is named first."""
    best, chosen = 0.0, ""
    for kind, weight in weighed(accept):
        if kind in ("text/csv", "application/json") and weight > best:
            best, chosen = weight, kind
    return chosen == "text/csv"
