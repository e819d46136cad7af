"""The finance API: what finance reads and does, for people and programs with a token of the role `finance`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import get_args

from redis.asyncio import Redis
from starlette.requests import Request
from starlette.responses import Response

from metering.ports import IdempotentWrite, Ledger, NotThere
from proxy.api.admin.call import Call
from proxy.api.admin.desk import Desk, Writing
from proxy.api.admin.schemas import CreditRow, NewRate, NewRateRow, Page, PageQuery, RateRow
from proxy.api.admin.tokens import Tokens
from proxy.api.finance import writes
from proxy.api.finance.exports import FILES, Exports
from proxy.api.finance.reads import FinanceReads, month_in
from proxy.api.finance.schemas import (
    AdjustmentRow,
    ClosedMonthRow,
    CreditsQuery,
    ExportQuery,
    FinanceUsage,
    MonthRow,
    MonthSheet,
    NewAdjustment,
    ReconciliationRow,
    ReconciliationSheet,
    ReconciliationsQuery,
    Signed,
    StatementQuery,
    UsageQuery,
)
from proxy.api.finance.statements import Statements
from proxy.api.finance.usage import UsageReports
from proxy.api.finance.writes import Deeds
from proxy.api.operation import Operation, Tag
from proxy.api.requests import RequestLimits
from proxy.api.statements import Media, StatementReply
from proxy.errors import Kind

FINANCE = "/finance/v1"
MONTHS = f"{FINANCE}/months"
MONTH = f"{MONTHS}/{{month}}"
RATES = f"{FINANCE}/fx"
ADJUSTMENTS = f"{FINANCE}/adjustments"
RECONCILIATIONS = f"{FINANCE}/reconciliations"

DeedsOf = Callable[[str, IdempotentWrite | None], Deeds]


class FinanceEndpoint(Desk[FinanceReads, Deeds]):
    """`deeds_of` gives what an actor may do. Redis tells whether a month is complete."""

    ROLE = "finance"
    TAG = Tag.FINANCE

    def __init__(
        self, tokens: Tokens, ledger: Ledger, redis: Redis | None, deeds_of: DeedsOf, limits: RequestLimits
    ) -> None:
        super().__init__(tokens, ledger, FinanceReads(ledger), deeds_of, limits)
        self._exports, self._reports, self._statements = Exports(redis), UsageReports(), Statements()

    def operations(self) -> Sequence[Operation]:
        """Return all operations."""
        read, write, file = self._read_row, self._write_row, self._file_row
        rate = partial(Writing, show=FinanceReads.show_rate)
        adjustment = partial(Writing, show=FinanceReads.show_adjustment)
        return [
            file(
                "get_finance_usage",
                f"{FINANCE}/usage",
                "What all organisations used, or one of them",
                ("application/json", "text/csv"),
                self._usage,
                reply=FinanceUsage,
                query=UsageQuery,
                headers=("content-disposition", "vary"),
                more=(Kind.NOT_FOUND,),
            ),
            read(
                "list_finance_credits",
                f"{FINANCE}/credits",
                "Money in and out, latest first",
                Page[CreditRow],
                FinanceReads.credits,
                CreditsQuery,
                more=(Kind.NOT_FOUND,),
            ),
            read("list_months", MONTHS, "Closed months, oldest first", Page[MonthRow], FinanceReads.months, PageQuery),
            read("get_month", MONTH, "A month, and its organisations' sums", MonthSheet, FinanceReads.month, PageQuery),
            file(
                "get_manifest",
                f"{MONTH}/manifest",
                "A closed month's manifest, as it was signed",
                ("application/json",),
                _send_manifest,
                reply=Signed,
            ),
            write(
                "close_month",
                "POST",
                f"{MONTH}/close",
                "Close a month for good, and seal it",
                ClosedMonthRow,
                Writing(writes.close, FinanceReads.show_month, right="close", once_by_itself=True),
            ),
            file(
                "get_export",
                f"{MONTH}/exports/{{format}}",
                "A month's export",
                tuple(dict.fromkeys(media for media, _ in FILES.values())),
                self._export,
                query=ExportQuery,
                headers=("content-disposition", "x-geekhub-complete"),
                more=(Kind.RATE_LIMIT,),
            ),
            read(
                "list_finance_rates", RATES, "Every rate that was entered", Page[RateRow], FinanceReads.rates, PageQuery
            ),
            write(
                "enter_rate",
                "POST",
                RATES,
                "Enter a month's exchange rate",
                NewRateRow,
                Writing(writes.enter_rate, FinanceReads.show_new_rate, {"added": False}, right="enter"),
                NewRate,
                201,
            ),
            write(
                "approve_rate",
                "POST",
                f"{RATES}/{{number}}/approve",
                "Approve a rate that another person entered",
                RateRow,
                rate(writes.approve_rate, right="approve_fx"),
            ),
            read(
                "list_reconciliations",
                RECONCILIATIONS,
                "Comparisons with providers' books, latest first",
                Page[ReconciliationRow],
                FinanceReads.reconciliations,
                ReconciliationsQuery,
            ),
            read(
                "get_reconciliation",
                f"{RECONCILIATIONS}/{{number}}",
                "One comparison, and what was found",
                ReconciliationSheet,
                FinanceReads.reconciliation,
            ),
            file(
                "get_finance_statement",
                f"{FINANCE}/statements/{{org}}/{{month}}",
                "The account statement of an organisation's month",
                get_args(Media),
                self._statement,
                reply=StatementReply,
                query=StatementQuery,
                headers=("content-disposition", "content-language", "content-security-policy", "vary"),
                more=(Kind.NOT_ACCEPTABLE,),
            ),
            read(
                "list_adjustments",
                ADJUSTMENTS,
                "Adjustments that were proposed, latest first",
                Page[AdjustmentRow],
                FinanceReads.adjustments,
                PageQuery,
            ),
            write(
                "propose_adjustment",
                "POST",
                ADJUSTMENTS,
                "Propose an adjustment of an organisation's balance",
                AdjustmentRow,
                adjustment(writes.propose_adjustment, right="enter"),
                NewAdjustment,
                201,
            ),
            write(
                "approve_adjustment",
                "POST",
                f"{ADJUSTMENTS}/{{number}}/approve",
                "Approve an adjustment that another person proposed: its credit is written",
                AdjustmentRow,
                adjustment(writes.approve_adjustment, right="approve_adjustment"),
            ),
        ]

    async def _usage(self, reads: FinanceReads, call: Call, request: Request) -> Response:
        return await self._reports.send(reads, call, request)

    async def _statement(self, reads: FinanceReads, call: Call, request: Request) -> Response:
        return await self._statements.send(reads, call, request)

    async def _export(self, reads: FinanceReads, call: Call, request: Request) -> Response:
        return await self._exports.send(reads, call, request)


async def _send_manifest(reads: FinanceReads, call: Call, request: Request) -> Response:
    """Answer GET /finance/v1/months/{month}/manifest: byte for byte, because it is signed."""
    month = month_in(call)
    text = await reads.ledger.manifest(month)
    if text is None:
        raise NotThere(f"{month} is not closed, or not sealed yet")
    headers = {"content-disposition": f'attachment; filename="{month}.manifest.json"'}
    return Response(text, 200, headers, "application/json")
