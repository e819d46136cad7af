"""The admin API: what the commands do to organisations, for clients with an administrator's token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from metering.accounts import KEY, Accounts
from metering.orders import Orders
from metering.ports import DatabaseRefused, IdempotentWrite, Ledger, LedgerAway, LedgerError, NotThere, WrongField
from metering.wallet.connection import WalletAway
from metering.wallet.wallet import Wallet
from proxy.api.admin import writes
from proxy.api.admin.call import Call, read_call
from proxy.api.admin.minting import Role
from proxy.api.admin.reads import Read, Reads, Show
from proxy.api.admin.rows import Fields
from proxy.api.admin.schemas import (
    AuditQuery,
    AuditRow,
    BalanceRow,
    CreditFacts,
    CreditRow,
    CreditsQuery,
    IssuedKeyRow,
    KeyLimits,
    KeyRow,
    NewCredit,
    NewCreditRow,
    NewKey,
    NewOrg,
    NewRate,
    NewRateRow,
    NewRefund,
    NoticeRow,
    OrderRow,
    OrgLimits,
    OrgRow,
    Page,
    PageQuery,
    PlanChange,
    RateRow,
    RefundRow,
    Renaming,
    Rotation,
    Suspension,
    WriteHeaders,
)
from proxy.api.admin.tokens import Tokens, check_role
from proxy.api.admin.writes import Write, Written
from proxy.api.middleware import context_of
from proxy.api.operation import ORDER_EXAMPLE, Operation, Tag
from proxy.api.pages import BadCursor
from proxy.api.requests import RequestLimits
from proxy.errors import ApiError, Kind, wallet_away

ROLES: tuple[Role, ...] = ("admin",)

ORGS = "/admin/v1/orgs"
ORG = f"{ORGS}/{{org}}"
A_KEY = "/admin/v1/keys/{key_id}"
A_CREDIT = "/admin/v1/credits/{credit:path}"
ORDER = "/admin/v1/orders/{id}"
RATES = "/admin/v1/fx"

ERRORS = (Kind.INVALID_TOKEN, Kind.NOT_ALLOWED, Kind.UNAVAILABLE)
"""Errors of every operation."""

LEDGER_RETRY_S = 1.0
"""A hint: a database that fails over is back within seconds."""

AccountsOf = Callable[[str, IdempotentWrite | None], Accounts]


@dataclass(frozen=True, slots=True)
class Writing:
    """A write, and how its target is shown.

    `unrevealed` has the values that a repeated request gets in place of what the write shows only once.
    """

    write: Write
    show: Show
    unrevealed: Fields = field(default_factory=dict)


class AdminEndpoint:
    """`accounts_of` gives what an actor may do, and the one write that may be repeated; the ledger is for reading.

    `public_url` is the public prefix of an image's path.
    """

    def __init__(
        self,
        tokens: Tokens,
        ledger: Ledger,
        wallet: Wallet,
        orders: Orders,
        accounts_of: AccountsOf,
        limits: RequestLimits,
        public_url: str,
    ) -> None:
        self._tokens = tokens
        self._ledger = ledger
        self._reads = Reads(ledger, wallet, orders, public_url)
        self._accounts_of = accounts_of
        self._limits = limits

    def operations(self) -> Sequence[Operation]:
        """Return all operations. A write's id is part of its fingerprint: if an update changed the id, a repeated write
        would be refused."""
        read, write = self._read_row, self._write_row
        org, key = partial(Writing, show=Reads.show_org), partial(Writing, show=Reads.show_key)
        new_key = partial(key, unrevealed={"key": None})
        credit = Writing(writes.add_credit, Reads.show_credit, {"added": False})
        refund = Writing(writes.refund, Reads.show_refund)
        rate = Writing(writes.add_rate, Reads.show_rate, {"added": False})
        return [
            write(
                "create_org",
                "POST",
                ORGS,
                "Open an organisation at 0.00 MXN",
                OrgRow,
                org(writes.create_org),
                NewOrg,
                201,
            ),
            read("list_orgs", ORGS, "All organisations, oldest first", Page[OrgRow], Reads.orgs, PageQuery),
            read("get_org", ORG, "One organisation, by id or name", OrgRow, Reads.org),
            write(
                "org_limits",
                "PATCH",
                f"{ORG}/limits",
                "Set an organisation's own limits",
                OrgRow,
                org(writes.org_limits),
                OrgLimits,
            ),
            write(
                "suspend_org",
                "POST",
                f"{ORG}/suspend",
                "Refuse its orders",
                OrgRow,
                org(writes.suspend_org),
                Suspension,
            ),
            write("resume_org", "POST", f"{ORG}/resume", "Take its orders again", OrgRow, org(writes.resume_org)),
            write("rename_org", "POST", f"{ORG}/rename", "Call it otherwise", OrgRow, org(writes.rename_org), Renaming),
            write("org_plan", "POST", f"{ORG}/plan", "Give it another plan", OrgRow, org(writes.org_plan), PlanChange),
            write(
                "create_key",
                "POST",
                f"{ORG}/keys",
                "Issue a key, and show it once",
                IssuedKeyRow,
                new_key(writes.create_key),
                NewKey,
                201,
            ),
            read("list_keys", f"{ORG}/keys", "Its keys, revoked ones too", Page[KeyRow], Reads.keys, PageQuery),
            write(
                "key_limits",
                "PATCH",
                f"{A_KEY}/limits",
                "Set a key's own limits",
                KeyRow,
                key(writes.key_limits),
                KeyLimits,
            ),
            write(
                "rotate_key",
                "POST",
                f"{A_KEY}/rotate",
                "Issue a key in place of this one",
                IssuedKeyRow,
                new_key(writes.rotate_key),
                Rotation,
                201,
            ),
            write("revoke_key", "POST", f"{A_KEY}/revoke", "Revoke a key for good", KeyRow, key(writes.revoke_key)),
            write(
                "add_credit", "POST", f"{ORG}/credits", "Add credit, once per id", NewCreditRow, credit, NewCredit, 201
            ),
            read(
                "list_credits",
                f"{ORG}/credits",
                "Money in and out, latest first",
                Page[CreditRow],
                Reads.credits,
                CreditsQuery,
            ),
            write(
                "complete_credit",
                "PATCH",
                A_CREDIT,
                "Say what its tax document says",
                CreditRow,
                Writing(writes.complete_credit, Reads.show_credit),
                CreditFacts,
            ),
            read("get_order", ORDER, "All that is known of an order", OrderRow, Reads.order),
            write(
                "refund", "POST", f"{ORDER}/refund", "Give back what it was charged", RefundRow, refund, NewRefund, 201
            ),
            read("get_balance", f"{ORG}/balance", "What it can spend", BalanceRow, Reads.balance),
            read(
                "list_notices",
                f"{ORG}/notices",
                "What it was told, latest first",
                Page[NoticeRow],
                Reads.notices,
                PageQuery,
            ),
            read("list_rates", RATES, "The rate of every month", Page[RateRow], Reads.rates, PageQuery),
            write("add_rate", "POST", RATES, "Add a month's exchange rate", NewRateRow, rate, NewRate, 201),
            read(
                "list_audit", "/admin/v1/audit", "Who did what, latest first", Page[AuditRow], Reads.audit, AuditQuery
            ),
        ]

    def _read_row(
        self,
        id_: str,
        path: str,
        summary: str,
        reply: type[BaseModel],
        read: Read,
        query: type[PageQuery] | None = None,
    ) -> Operation:
        async def handler(request: Request) -> Response:
            return await self._answer(request, row, read)

        errors = [*ERRORS]
        if query is not None:
            errors.append(Kind.INVALID_REQUEST)
        if query is AuditQuery:
            errors.append(Kind.NOT_FOUND)  # for the organisation in the path
        row = Operation(
            id=id_,
            tag=Tag.ADMIN,
            method="GET",
            path=path,
            handler=handler,
            summary=summary,
            reply=reply,
            query=query,
            errors=tuple(errors),
            security="admin",
            examples={"id": ORDER_EXAMPLE},
            reply_headers=("cache-control",),
        )
        return row

    def _write_row(
        self,
        id_: str,
        method: Literal["POST", "PATCH"],
        path: str,
        summary: str,
        reply: type[BaseModel],
        writing: Writing,
        body: type[BaseModel] | None = None,
        status: int = 200,
    ) -> Operation:
        async def handler(request: Request) -> Response:
            return await self._answer(request, row, writing)

        row = Operation(
            id=id_,
            tag=Tag.ADMIN,
            method=method,
            path=path,
            handler=handler,
            summary=summary,
            reply=reply,
            status=status,
            body=body,
            headers=WriteHeaders,
            errors=(*ERRORS, Kind.INVALID_REQUEST, Kind.KEY_REUSED, Kind.TOO_LARGE),
            security="admin",
            examples={"id": ORDER_EXAMPLE},
            reply_headers=("cache-control", "idempotent-replayed"),
        )
        return row

    async def _answer(self, request: Request, row: Operation, how: Read | Writing) -> Response:
        actor = await self._tokens.actor(request.headers)
        facts = context_of(request.scope).facts
        facts["actor"] = actor.name
        check_role(actor, ROLES)
        call = await read_call(request, row, actor, self._limits)
        headers = {"cache-control": "no-store"}
        try:
            if isinstance(how, Writing):
                written, replayed = await self._write(call, how.write)
                facts["target"] = written.target
                fields = await how.show(self._reads, call, written.target) | how.unrevealed | written.revealed
                headers |= {"idempotent-replayed": "true"} if replayed else {}
            else:
                fields = await how(self._reads, call)
        except BadCursor:
            message = "`cursor` must be `next_cursor` of the page before."
            raise ApiError(Kind.INVALID_REQUEST, message, param="cursor") from None
        except NotThere as error:
            raise ApiError(Kind.NOT_FOUND, _sentence(error)) from None
        except WrongField as error:
            message = KEY.sub("an API key", f"`{error.field}`: {error.why}.")  # a pasted key goes into no answer
            raise ApiError(Kind.INVALID_REQUEST, message, param=error.field) from None
        except DatabaseRefused:
            raise
        except LedgerError as error:
            raise ApiError(Kind.INVALID_REQUEST, _sentence(error)) from None
        except LedgerAway:
            raise _ledger_away(call) from None
        except WalletAway:
            raise wallet_away() from None
        assert row.reply is not None
        content = row.reply.model_validate(fields).model_dump_json()
        return Response(content, row.status, headers, "application/json")

    async def _write(self, call: Call, write: Write) -> tuple[Written, bool]:
        """Do the write, or find what it did before; also returns whether it was done before."""
        earlier = await self._earlier(call)
        if earlier is not None:
            return earlier, True
        try:
            return await write(call, self._accounts_of(call.actor.name, call.once)), False
        except LedgerError:
            # The same request may have come twice at the same time, and the other one was first.
            earlier = await self._earlier(call)
            if earlier is None:
                raise
            return earlier, True

    async def _earlier(self, call: Call) -> Written | None:
        """Find what was done under this idempotency key. Raises ApiError 422 if that was another request."""
        if call.once is None:
            return None
        found = await self._ledger.written(call.actor.name, call.once.key)
        if found is None:
            return None
        fingerprint, target = found
        if fingerprint != call.once.fingerprint:
            raise ApiError(Kind.KEY_REUSED, "This `Idempotency-Key` belongs to another request. Send a new key.")
        return Written(target)


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def _ledger_away(call: Call) -> ApiError:
    """Build the error. A write may have reached the ledger: it may be resent unchecked only with an idempotency key."""
    safe = not call.operation.writes or call.once is not None
    message = "The gateway cannot reach its records right now."
    if not safe:
        message += " Look whether it was written before you send it again, or use an `Idempotency-Key`."
    return ApiError(Kind.UNAVAILABLE, message, retry=safe, retry_after_s=LEDGER_RETRY_S)
