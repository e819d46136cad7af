"""An organisation's statement, as it is given one itself: GET /finance/v1/statements/{org}/{month}."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from config.settings import REPORTS_MADE
from metering.clock import utc_now
from metering.statement import read_statement
from proxy.api.admin.call import Call, checked_ref
from proxy.api.finance.reads import FinanceReads, month_in
from proxy.api.requests import language_of
from proxy.api.statements import drawn, headers_of, media_of
from proxy.errors import ApiError, Kind
from proxy.statements.pdf import is_installed


class Statements:
    """Draws statements, a few at a time: each keeps a thread busy."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(REPORTS_MADE)

    async def send(self, reads: FinanceReads, call: Call, request: Request) -> Response:
        """Answer the request. Raises ApiError 406, NotThere, WrongField, LedgerAway."""
        month = month_in(call)
        language = call.query.lang or language_of(request.headers, "es")
        media = media_of(request.headers.get("accept", ""))
        if media == "application/pdf" and not is_installed():
            raise ApiError(Kind.NOT_ACCEPTABLE, "This gateway cannot draw PDF: pip install 'geekhub-gateway[pdf]'.")
        async with self._turns:
            org = await reads.ledger.org(checked_ref(call.at["org"]))
            statement = await read_statement(reads.ledger, org.org_id, month, utc_now())
            content = await asyncio.to_thread(drawn, statement, media, language)
        return Response(content, 200, headers_of(month, media, language), media)
