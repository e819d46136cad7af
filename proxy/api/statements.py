"""GET /v1/statements/{month}: an organisation's statement as HTML, JSON or PDF, in Spanish or English."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from metering.clock import is_month, utc_at
from metering.money import format_mxn
from metering.ports import Credit, Ledger, LedgerAway, NotThere, WrongField
from metering.statement import AppliedRate, Line, Lines, Statement, read_statement
from metering.wallet.wallet import Wallet
from proxy.api.auth import Authenticator
from proxy.api.balances import tax_fields
from proxy.api.credits import checked
from proxy.api.operation import Operation, Tag
from proxy.api.reads import Read, ReadRates, Reports, SentReport
from proxy.api.requests import language_of, weighed
from proxy.api.schemas import Document, Month, Mxn
from proxy.errors import ApiError, Kind, wallet_away
from proxy.messages import (
    MONTH_LIKE,
    NO_PDF,
    NO_STATEMENT,
    NOT_BEGUN,
    STATEMENT_KEY,
    STATEMENT_LANGUAGE,
    TWICE,
    UNKNOWN_PARAMETER,
    Language,
)
from proxy.orders.result import public_id
from proxy.statements.page import POLICY, page_of
from proxy.statements.pdf import is_installed, pdf_of
from proxy.statements.sheet import sheet_of

Media = Literal["text/html", "application/json", "application/pdf"]

ENDINGS: dict[Media, str] = {"text/html": "html", "application/json": "json", "application/pdf": "pdf"}
"""Ends of file names, by form."""


class StatementQuery(BaseModel):
    """In which language."""

    model_config = ConfigDict(extra="forbid")

    lang: Annotated[Language | None, Field(description="Before `Accept-Language`; without both, Spanish.")] = None


class StatementLine(Document):
    """What was charged for one day, model, key, tag or earlier month."""

    name: Annotated[str, Field(description="Of a key what it is called, as at the month's close.")]
    id: Annotated[str, Field(description="A key's own; empty for all else.")]
    orders: int
    images: int
    cost_mxn: Mxn


class StatementLines(Document):
    """The most expensive, and how many more there are, with their sum. Tags overlap, so theirs is null."""

    data: list[StatementLine]
    others: int
    rest: StatementLine | None


class StatementRate(Document):
    """A rate at which orders were charged, with its source."""

    month: Month
    mxn_per_usd: str
    source: str
    series: str | None
    printed: str | None
    orders: int
    cost_mxn: Mxn


class StatementCredit(Document):
    """A credit with what was paid for it."""

    id: str
    type: str
    mxn: Mxn
    at: str
    order: str | None
    recharge: str | None
    reason: str | None
    base_mxn: Mxn | None
    iva_rate: str | None
    iva_mxn: Mxn | None
    total_mxn: Mxn | None


class StatementReply(Document):
    """A month: opening + credits - charges = closing. `late` are charges of earlier months, booked in this one.

    `days`, `models` and `keys` each add up to the charges together with `late`. An order counts for each of its tags.
    """

    object: Literal["statement"]
    currency: Literal["MXN"]
    month: Month
    organization: str
    provisional: Annotated[bool, Field(description="The month is not closed, and may change.")]
    closed_at: str | None
    opening_mxn: Mxn
    recharges_mxn: Mxn
    bonuses_mxn: Mxn
    refunds_mxn: Mxn
    adjustments_mxn: Mxn
    chargebacks_mxn: Mxn
    charges_mxn: Mxn
    closing_mxn: Mxn
    orders: int
    images: int
    days: list[StatementLine]
    models: StatementLines
    keys: StatementLines
    tags: StatementLines
    untagged: StatementLine
    late: list[StatementLine]
    rates: list[StatementRate]
    credits: Annotated[list[StatementCredit], Field(description="The latest of the month, oldest first.")]
    credits_in_all: int


class StatementsEndpoint:
    """A statement is the whole organisation's money: keys that read only their own orders, and test keys, get none."""

    def __init__(
        self, authenticator: Authenticator, wallet: Wallet, ledger: Ledger, rates: ReadRates, reports: Reports
    ) -> None:
        self._authenticator = authenticator
        self._wallet = wallet
        self._ledger = ledger
        self._rates = rates
        self._reports = reports

    def operations(self) -> Sequence[Operation]:
        """Return the operation of the statement."""
        return [
            Operation(
                id="get_statement",
                tag=Tag.ACCOUNT,
                method="GET",
                path="/v1/statements/{month}",
                handler=self.read,
                summary="The account statement of a month",
                description="HTML that prints well; JSON or PDF if `Accept` prefers it. That of a closed month never"
                " changes; while a month is open, it says that it is provisional.",
                reply=StatementReply,
                media=get_args(Media),
                query=StatementQuery,
                examples={"month": "2026-11"},
                reply_headers=("content-disposition", "content-language", "content-security-policy", "vary"),
                errors=(Kind.INVALID_REQUEST, Kind.NOT_ALLOWED, Kind.NOT_ACCEPTABLE, Kind.RATE_LIMIT),
            )
        ]

    async def read(self, request: Request) -> Response:
        """Answer GET /v1/statements/{month}."""
        caller, cut = await checked(request, self._authenticator, self._wallet, self._rates, Read.STATEMENTS)
        language = _language(request)
        media = media_of(request.headers.get("accept", ""))
        month = request.path_params["month"]
        if not is_month(month):
            raise ApiError(Kind.INVALID_REQUEST, MONTH_LIKE.of(name="month"), param="month")
        if caller.test or caller.reads is not None:
            raise ApiError(Kind.NOT_ALLOWED, STATEMENT_KEY)
        if media == "application/pdf" and not is_installed():
            raise ApiError(Kind.NOT_ACCEPTABLE, NO_PDF)
        org_id = caller.org_id
        # The turn ends when the reply is sent, as that of a report of usage.
        await self._reports.begin(org_id)
        try:
            async with self._reports.making(org_id):
                statement = await read_statement(self._ledger, org_id, month, utc_at(cut.now_us))
                content = await asyncio.to_thread(drawn, statement, media, language)
        except BaseException as error:
            self._reports.end(org_id)
            match error:
                case LedgerAway():
                    raise wallet_away() from None
                case NotThere():
                    raise ApiError(Kind.NOT_FOUND, NO_STATEMENT.of(month=month), param="month") from None
                case WrongField():
                    raise ApiError(Kind.NOT_FOUND, NOT_BEGUN.of(month=month), param="month") from None
                case _:
                    raise
        headers = headers_of(month, media, language)
        return SentReport([content], media, headers, partial(self._reports.end, org_id))


def headers_of(month: str, media: Media, language: Language) -> dict[str, str]:
    """Return the headers of a statement."""
    return {
        "vary": "accept, accept-language",
        "content-language": language,
        "content-disposition": f'inline; filename="{file_name(month, language, ENDINGS[media])}"',
        "content-security-policy": f"{POLICY}; frame-ancestors 'none'",
    }


def file_name(month: str, language: Language, ending: str) -> str:
    """Name the file of a statement."""
    return f"{'estado-de-cuenta' if language == 'es' else 'statement'}-{month}.{ending}"


def drawn(statement: Statement, media: Media, language: Language) -> bytes:
    """Draw a statement in a form, in a language. It may take a second: call it in a thread."""
    match media:
        case "application/json":
            return orjson.dumps(document(statement))
        case "application/pdf":
            return pdf_of(sheet_of(statement, language), statement.month)
        case "text/html":
            return page_of(sheet_of(statement, language))


def _language(request: Request) -> Language:
    """Read `lang`, or choose by `Accept-Language`. Raises ApiError 400 for any other parameter."""
    given = request.query_params.multi_items()
    for place, (name, value) in enumerate(given):
        if name != "lang":
            raise ApiError(Kind.INVALID_REQUEST, UNKNOWN_PARAMETER.of(name=name[:64], known="`lang`"), param=name[:64])
        if place:
            raise ApiError(Kind.INVALID_REQUEST, TWICE.of(name=name), param=name)
        if value not in get_args(Language):
            raise ApiError(Kind.INVALID_REQUEST, STATEMENT_LANGUAGE.of(name=name), param=name)
    if given:
        return "en" if given[0][1] == "en" else "es"
    return language_of(request.headers, "es")


def media_of(accept: str) -> Media:
    """Choose the form with the highest weight in `Accept`; HTML if none of ours is named."""
    best, chosen = 0.0, "text/html"
    for kind, weight in weighed(accept):
        if kind in get_args(Media) and weight > best:
            best, chosen = weight, kind
    return next(media for media in ENDINGS if media == chosen)


def document(statement: Statement) -> dict[str, Any]:
    """Write a statement for programs, as `StatementReply` describes it."""
    sums = statement.sums
    kinds = ("opening", "recharges", "bonuses", "refunds", "adjustments", "chargebacks", "charges", "closing")
    return {
        "object": "statement",
        "currency": "MXN",
        "month": statement.month,
        "organization": statement.org,
        "provisional": statement.provisional,
        "closed_at": statement.closed_at,
        **{f"{kind}_mxn": format_mxn(getattr(sums, f"{kind}_micro_mxn")) for kind in kinds},
        "orders": sums.orders,
        "images": sums.images,
        "days": [_line(line) for line in statement.days],
        "models": _lines(statement.models),
        "keys": _lines(statement.keys),
        "tags": _lines(statement.tags),
        "untagged": _line(statement.untagged),
        "late": [_line(line) for line in statement.late],
        "rates": [_rate(rate) for rate in statement.rates],
        "credits": [_credit(credit) for credit in statement.credits],
        "credits_in_all": statement.credits_in_all,
    }


def _line(line: Line) -> dict[str, Any]:
    return {
        "name": line.name,
        "id": line.id,
        "orders": line.orders,
        "images": line.images,
        "cost_mxn": format_mxn(line.amount_micro_mxn),
    }


def _lines(lines: Lines) -> dict[str, Any]:
    return {
        "data": [_line(line) for line in lines.shown],
        "others": lines.others,
        "rest": None if lines.rest is None else _line(lines.rest),
    }


def _rate(rate: AppliedRate) -> dict[str, Any]:
    return {
        "month": rate.month,
        "mxn_per_usd": rate.mxn_per_usd,
        "source": rate.source,
        "series": rate.series,
        "printed": rate.printed,
        "orders": rate.orders,
        "cost_mxn": format_mxn(rate.amount_micro_mxn),
    }


def _credit(credit: Credit) -> dict[str, Any]:
    new = credit.new
    return {
        "id": new.credit_id,
        "type": new.type,
        "mxn": format_mxn(new.amount_micro_mxn),
        "at": credit.at,
        "order": None if new.order_id is None else public_id(new.order_id),
        "recharge": new.recharge_id,
        "reason": new.reason,
        **tax_fields(new.tax),
    }
