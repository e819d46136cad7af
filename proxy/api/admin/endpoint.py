"""The admin API: what the commands do to organisations, for whoever has an administrator's token."""

import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from metering.accounts import KEY, Accounts
from metering.clock import utc_at, utc_now
from metering.limits import NONE, told
from metering.money import AmountError, format_mxn, format_rate, parse_mxn, parse_rate
from metering.orders import Orders, order_id_of
from metering.ports import (
    LAST,
    ApiKey,
    DatabaseRefused,
    IdempotentWrite,
    Ledger,
    LedgerAway,
    LedgerError,
    NotThere,
    Org,
    WrongField,
)
from metering.pricing import FxRate
from metering.wallet.connection import WalletAway
from metering.wallet.wallet import Wallet
from proxy.api.admin.orders import order_fields, refund_fields
from proxy.api.admin.rows import (
    BadCursor,
    Fields,
    after_notice,
    audit_cursor,
    audit_fields,
    before_audit,
    cursor_of,
    notice_cursor,
    notice_fields,
    org_fields,
    parts_of,
)
from proxy.api.admin.schemas import (
    AuditQuery,
    AuditRow,
    BalanceRow,
    CreditRow,
    IssuedKeyRow,
    KeyLimits,
    KeyRow,
    NewCredit,
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
from proxy.api.admin.tokens import Actor, Role, Tokens, check_role
from proxy.api.credits import balance_fields
from proxy.api.middleware import context_of
from proxy.api.operation import ORDER_EXAMPLE, Operation, Tag
from proxy.api.requests import RequestLimits, idempotency_key, read_body
from proxy.errors import ApiError, Kind, wallet_away

ROLES: tuple[Role, ...] = ("admin",)

ORGS = "/admin/v1/orgs"
ORG = f"{ORGS}/{{org}}"
A_KEY = "/admin/v1/keys/{key_id}"
ORDER = "/admin/v1/orders/{id}"
RATES = "/admin/v1/fx"

ERRORS = (Kind.INVALID_TOKEN, Kind.NOT_ALLOWED, Kind.UNAVAILABLE)
"""Of every operation."""

LEDGER_RETRY_S = 1.0
"""A hint: a database that fails over is back within seconds."""

_REF = re.compile(r"[\w .@-]{1,64}")
"""What may be the id or the name of an organisation or a key; nothing else is asked for."""

_NO_BODY = (b"", b"{}")

AccountsOf = Callable[[str, IdempotentWrite | None], Accounts]


@dataclass(frozen=True, slots=True)
class Call:
    """One request, read and checked; `at` are the parts of its path. `body` and `query` are the operation's models."""

    actor: Actor
    operation: Operation
    at: dict[str, str]
    body: Any
    query: Any
    once: IdempotentWrite | None

    @property
    def ref(self) -> str:
        """The organisation, the key or the order that its path names. Raises NotThere for what can be neither."""
        (ref,) = self.at.values()
        return _checked_ref(ref)


@dataclass(frozen=True, slots=True)
class Written:
    """What was written to, and what only the request that wrote it is told."""

    target: str
    told: Fields = field(default_factory=dict)


Read = Callable[[Call], Awaitable[Fields]]
Write = Callable[[Call, Accounts], Awaitable[Written]]
Show = Callable[[Call, str], Awaitable[Fields]]


@dataclass(frozen=True, slots=True)
class Writing:
    """A write, and how its target is shown. What it tells only once has its other value in `untold`, for a request
    that is repeated."""

    write: Write
    show: Show
    untold: Fields = field(default_factory=dict)


class AdminEndpoint:
    """`accounts_of` gives what an actor may do, and the one write that may be repeated; the ledger is for reading.

    `public_url` is what stands before an image's path for everybody.
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
        self._wallet = wallet
        self._orders = orders
        self._public_url = public_url
        self._accounts_of = accounts_of
        self._limits = limits

    def operations(self) -> Sequence[Operation]:
        """All that it does. The id of a write is a part of its fingerprint: with another one, a write that is repeated
        after an update would be refused."""
        read, write = self._read_row, self._write_row
        org, key = partial(Writing, show=self._show_org), partial(Writing, show=self._show_key)
        new_key = partial(key, untold={"key": None})
        credit = Writing(_add_credit, self._show_credit, {"added": False})
        refund = Writing(_refund, self._show_refund)
        rate = Writing(_add_rate, self._show_rate, {"added": False})
        return [
            write(
                "create_org", "POST", ORGS, "Open an organisation at 0.00 MXN", OrgRow, org(_create_org), NewOrg, 201
            ),
            read("list_orgs", ORGS, "All organisations, oldest first", Page[OrgRow], self._orgs, PageQuery),
            read("get_org", ORG, "One organisation, by id or name", OrgRow, self._org),
            write(
                "org_limits",
                "PATCH",
                f"{ORG}/limits",
                "Set an organisation's own limits",
                OrgRow,
                org(_org_limits),
                OrgLimits,
            ),
            write("suspend_org", "POST", f"{ORG}/suspend", "Refuse its orders", OrgRow, org(_suspend_org), Suspension),
            write("resume_org", "POST", f"{ORG}/resume", "Take its orders again", OrgRow, org(_resume_org)),
            write("rename_org", "POST", f"{ORG}/rename", "Call it otherwise", OrgRow, org(_rename_org), Renaming),
            write("org_plan", "POST", f"{ORG}/plan", "Give it another plan", OrgRow, org(_org_plan), PlanChange),
            write(
                "create_key",
                "POST",
                f"{ORG}/keys",
                "Issue a key, and show it once",
                IssuedKeyRow,
                new_key(_create_key),
                NewKey,
                201,
            ),
            read("list_keys", f"{ORG}/keys", "Its keys, revoked ones too", Page[KeyRow], self._keys, PageQuery),
            write(
                "key_limits", "PATCH", f"{A_KEY}/limits", "Set a key's own limits", KeyRow, key(_key_limits), KeyLimits
            ),
            write(
                "rotate_key",
                "POST",
                f"{A_KEY}/rotate",
                "Issue a key in place of this one",
                IssuedKeyRow,
                new_key(_rotate_key),
                Rotation,
                201,
            ),
            write("revoke_key", "POST", f"{A_KEY}/revoke", "Revoke a key for good", KeyRow, key(_revoke_key)),
            write("add_credit", "POST", f"{ORG}/credits", "Add credit, once per id", CreditRow, credit, NewCredit, 201),
            read("get_order", ORDER, "All that is known of an order", OrderRow, self._order),
            write(
                "refund", "POST", f"{ORDER}/refund", "Give back what it was charged", RefundRow, refund, NewRefund, 201
            ),
            read("get_balance", f"{ORG}/balance", "What it can spend", BalanceRow, self._balance),
            read(
                "list_notices",
                f"{ORG}/notices",
                "What it was told, latest first",
                Page[NoticeRow],
                self._notices,
                PageQuery,
            ),
            read("list_rates", RATES, "The rate of every month", Page[RateRow], self._rates, PageQuery),
            write("add_rate", "POST", RATES, "Add a month's exchange rate", NewRateRow, rate, NewRate, 201),
            read(
                "list_audit", "/admin/v1/audit", "Who did what, latest first", Page[AuditRow], self._audit, AuditQuery
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
            errors.append(Kind.NOT_FOUND)  # of the organisation that is named there
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
        call = await self._call(request, row, actor)
        headers = {"cache-control": "no-store"}
        try:
            if isinstance(how, Writing):
                written, replayed = await self._write(call, how.write)
                facts["target"] = written.target
                fields = await how.show(call, written.target) | how.untold | written.told
                headers |= {"idempotent-replayed": "true"} if replayed else {}
            else:
                fields = await how(call)
        except BadCursor:
            message = "`cursor` must be `next_cursor` of the page before."
            raise ApiError(Kind.INVALID_REQUEST, message, param="cursor") from None
        except NotThere as error:
            raise ApiError(Kind.NOT_FOUND, _sentence(error)) from None
        except WrongField as error:
            message = KEY.sub("an API key", f"`{error.field}`: {error.why}.")  # somebody's paste goes into no answer
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

    async def _call(self, request: Request, row: Operation, actor: Actor) -> Call:
        """Raises ApiError 400 or 413."""
        at = {name: str(value) for name, value in request.path_params.items()}
        body = query = once = None
        if row.query is not None:
            query = _parsed(row.query, lambda model: model.model_validate(dict(request.query_params)))
        if row.writes:
            key = idempotency_key(request.headers)
            sent = await read_body(request, self._limits)
            if row.body is not None:
                body = _parsed(row.body, lambda model: model.model_validate_json(sent))
            elif sent.strip() not in _NO_BODY:
                raise ApiError(Kind.INVALID_REQUEST, "This address takes no body.")
            if key is not None:
                once = IdempotentWrite(key, _fingerprint(row, at, body))
        return Call(actor, row, at, body, query, once)

    # --- writes ---

    async def _write(self, call: Call, write: Write) -> tuple[Written, bool]:
        """Do it, or find what it did before; whether it was done before."""
        earlier = await self._earlier(call)
        if earlier is not None:
            return earlier, True
        try:
            return await write(call, self._accounts_of(call.actor.name, call.once)), False
        except LedgerError:
            # The same request may have come twice at once, and the other was first.
            earlier = await self._earlier(call)
            if earlier is None:
                raise
            return earlier, True

    async def _earlier(self, call: Call) -> Written | None:
        """What was done under this idempotency key. Raises ApiError 422 where that was another request."""
        if call.once is None:
            return None
        found = await self._ledger.written(call.actor.name, call.once.key)
        if found is None:
            return None
        fingerprint, target = found
        if fingerprint != call.once.fingerprint:
            raise ApiError(Kind.KEY_REUSED, "This `Idempotency-Key` belongs to another request. Send a new key.")
        return Written(target)

    async def _show_org(self, call: Call, target: str) -> Fields:
        return org_fields(await self._ledger.org(target), await self._ledger.plans())

    async def _show_key(self, call: Call, target: str) -> Fields:
        key = await self._ledger.key(target)
        return (await self._key_rows(key.org_id, [key]))[0]

    async def _show_credit(self, call: Call, target: str) -> Fields:
        org = await self._ledger.org(call.ref)
        mxn = format_mxn(parse_mxn(call.body.mxn))
        told = {"id": target, "org": org.org_id, "type": call.body.type, "mxn": mxn}
        return told | {"order": call.body.order, "reason": call.body.reason}

    async def _show_refund(self, call: Call, target: str) -> Fields:
        record = await self._ledger.order(order_id_of(call.ref))
        return next(refund_fields(refund, record) for refund in record.refunds if refund.credit_id == target)

    async def _show_rate(self, call: Call, target: str) -> Fields:
        return next(_rate_fields(rate) for rate in await self._ledger.rates() if rate.month == target)

    # --- reads ---

    async def _orgs(self, call: Call) -> Fields:
        after = _parts(call, 2)
        last = Org(after[1], "", "", after[0]) if after else None
        rows, plans = await self._ledger.orgs(after=last, most=call.query.limit + 1), await self._ledger.plans()
        return _page(call, rows, [org_fields(org, plans) for org in rows], lambda org: (org.created_at, org.org_id))

    async def _org(self, call: Call) -> Fields:
        return await self._show_org(call, call.ref)

    async def _keys(self, call: Call) -> Fields:
        org = await self._ledger.org(call.ref)
        after = _parts(call, 2)
        last = ApiKey(after[1], "", "", "", after[0]) if after else None
        rows = await self._ledger.keys(org.org_id, after=last, most=call.query.limit + 1)
        fields = await self._key_rows(org.org_id, rows)
        return _page(call, rows, fields, lambda key: (key.created_at, key.key_id))

    async def _key_rows(self, org_id: str, keys: Sequence[ApiKey]) -> list[Fields]:
        """Redis knows of later orders than the ledger; without it the ledger's last one is shown."""
        used = await self._ledger.last_used(org_id)
        with suppress(WalletAway):
            late = await self._wallet.last_used(org_id, [key.key_id for key in keys])
            used |= {key_id: max(used.get(key_id, 0), at_us) for key_id, at_us in late.items()}
        return [_key_fields(key, used.get(key.key_id)) for key in keys]

    async def _order(self, call: Call) -> Fields:
        return await order_fields(self._orders, self._ledger, self._public_url, call.ref)

    async def _balance(self, call: Call) -> Fields:
        org = await self._ledger.org(call.ref)
        return {"org": org.org_id, **balance_fields(await self._wallet.read(org.org_id))}

    async def _notices(self, call: Call) -> Fields:
        org = await self._ledger.org(call.ref)
        before, after = after_notice(call.query.cursor)
        rows = await self._ledger.notices(org.org_id, before, call.query.limit + 1, after=after)
        return _page(call, rows, [notice_fields(notice) for notice in rows], notice_cursor)

    async def _rates(self, call: Call) -> Fields:
        after = _parts(call, 1)
        rows = [rate for rate in await self._ledger.rates() if not after or rate.month > after[0]]
        return _page(call, rows, [_rate_fields(rate) for rate in rows], lambda rate: (rate.month,))

    async def _audit(self, call: Call) -> Fields:
        ref, query = call.query.org, call.query
        org_id = None if ref is None else (await self._ledger.org(_checked_ref(ref))).org_id
        before = before_audit(query.cursor, LAST)
        rows = await self._ledger.audits(org_id, before, query.limit + 1, actor=query.actor, action=query.action)
        return _page(call, rows, [audit_fields(row) for row in rows], audit_cursor)


# --- what each write asks of Accounts ---


async def _create_org(call: Call, accounts: Accounts) -> Written:
    return Written((await accounts.create_org(call.body.name, call.body.plan)).org_id)


async def _suspend_org(call: Call, accounts: Accounts) -> Written:
    return Written((await accounts.suspend_org(call.ref, call.body.reason)).org_id)


async def _resume_org(call: Call, accounts: Accounts) -> Written:
    return Written((await accounts.resume_org(call.ref)).org_id)


async def _rename_org(call: Call, accounts: Accounts) -> Written:
    return Written((await accounts.rename_org(call.ref, call.body.name)).org_id)


async def _org_plan(call: Call, accounts: Accounts) -> Written:
    return Written((await accounts.set_plan(call.ref, call.body.plan)).org_id)


async def _org_limits(call: Call, accounts: Accounts) -> Written:
    return Written((await accounts.set_limits(call.ref, _changes(call.body))).org_id)


async def _create_key(call: Call, accounts: Accounts) -> Written:
    body = call.body
    issued = await accounts.create_key(
        call.ref,
        body.name,
        expires=body.expires,
        models=body.models,
        test=body.test,
        read=body.read,
        response_format=body.response_format,
        origins=body.origins,
    )
    return Written(issued.key_id, {"key": issued.secret})


async def _key_limits(call: Call, accounts: Accounts) -> Written:
    return Written((await accounts.set_key_limits(call.ref, _changes(call.body))).key_id)


async def _rotate_key(call: Call, accounts: Accounts) -> Written:
    issued = await accounts.rotate_key(call.ref, timedelta(hours=call.body.overlap_h))
    return Written(issued.key_id, {"key": issued.secret})


async def _revoke_key(call: Call, accounts: Accounts) -> Written:
    return Written((await accounts.revoke_key(call.ref)).key_id)


async def _add_credit(call: Call, accounts: Accounts) -> Written:
    body = call.body
    micro_mxn = _amount("mxn", body.mxn)
    added = await accounts.add_credit(call.ref, body.id, body.type, micro_mxn, order=body.order, reason=body.reason)
    return Written(body.id, {"added": added})


async def _refund(call: Call, accounts: Accounts) -> Written:
    micro_mxn = None if call.body.mxn is None else _amount("mxn", call.body.mxn)
    return Written((await accounts.refund(call.ref, call.body.reason, micro_mxn)).credit_id)


async def _add_rate(call: Call, accounts: Accounts) -> Written:
    body = call.body
    try:
        rate = FxRate(body.month, parse_rate(body.mxn_per_usd), body.source)
    except AmountError as error:
        raise WrongField("mxn_per_usd", str(error)) from None
    return Written(body.month, {"added": await accounts.add_rate(rate)})


def _changes(body: OrgLimits | KeyLimits) -> dict[str, int | None]:
    """By the names of `Limits`. Raises WrongField; "none" is the only word for no limit, and a zero is none."""
    changes: dict[str, int | None] = {}
    for name in sorted(body.model_fields_set):
        value = getattr(body, name)
        if value == "none":
            value = NONE
        elif name == "mxn_per_month" and value is not None:
            value = _amount(name, value)
            if value == 0:
                raise WrongField(name, "0.00 MXN is no limit; it must be above zero")
        changes["micro_mxn_per_month" if name == "mxn_per_month" else name] = value
    if not changes:
        names = ", ".join(type(body).model_fields)
        raise ApiError(Kind.INVALID_REQUEST, f"Name at least one limit to set: {names}.")
    return changes


def _amount(name: str, text: str) -> int:
    try:
        return parse_mxn(text)
    except AmountError as error:
        raise WrongField(name, str(error)) from None


# --- rows as a client reads them ---


def _key_fields(key: ApiKey, used_us: int | None) -> Fields:
    return {
        "key_id": key.key_id,
        "org": key.org_id,
        "name": key.name,
        "state": key.state(utc_now()),
        "test": key.test,
        "models": list(key.models),
        "read": key.read,
        "response_format": key.response_format,
        "origins": list(key.origins),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": None if used_us is None else utc_at(used_us).isoformat(timespec="seconds"),
        **told(key.limits.values()),
    }


def _rate_fields(rate: FxRate) -> Fields:
    return {"month": rate.month, "mxn_per_usd": format_rate(rate.mxn_per_usd), "source": rate.source}


# --- pages ---


def _page(call: Call, rows: Sequence[Any], fields: Sequence[Fields], key: Callable[[Any], Sequence[str]]) -> Fields:
    """Of rows of which there is one more than the page has; the cursor is the key of the page's last one."""
    most = call.query.limit
    more = len(rows) > most
    return {"data": list(fields[:most]), "next_cursor": cursor_of(key(rows[most - 1])) if more else None}


def _parts(call: Call, count: int) -> list[str] | None:
    """What the cursor holds; None without one. Raises BadCursor."""
    return None if call.query.cursor is None else parts_of(call.query.cursor, count)


# --- what a client may be told ---


def _parsed(model: type[BaseModel], parse: Callable[[type[BaseModel]], BaseModel]) -> BaseModel:
    """The message is the field's own description: not a word of the parser's, and none of what was sent."""
    try:
        return parse(model)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    kind, path = first["type"], first["loc"]
    name = str(path[0]) if path else None
    if name is None:
        raise ApiError(Kind.INVALID_REQUEST, "The body must be one JSON object.")
    if name not in model.model_fields:
        takes = ", ".join(model.model_fields)
        raise ApiError(Kind.INVALID_REQUEST, f"There is no such field here; there are: {takes}.", param=name[:64])
    must = model.model_fields[name].description
    missing = "is missing; it " if kind == "missing" else ""
    raise ApiError(Kind.INVALID_REQUEST, f"`{name}` {missing}must be {must}.", param=name)


def _checked_ref(ref: str) -> str:
    if KEY.search(ref):
        raise NotThere("an API key stands where an id or a name belongs; the id of a key begins with key_")
    if not _REF.fullmatch(ref):
        raise NotThere("there is nothing of this id or name")
    return ref


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def _ledger_away(call: Call) -> ApiError:
    """A write may have reached the ledger: only one with an idempotency key may be sent again without a look."""
    safe = not call.operation.writes or call.once is not None
    message = "The gateway cannot reach its records right now."
    if not safe:
        message += " Look whether it was written before you send it again, or use an `Idempotency-Key`."
    return ApiError(Kind.UNAVAILABLE, message, retry=safe, retry_after_s=LEDGER_RETRY_S)


def _fingerprint(row: Operation, at: dict[str, str], body: BaseModel | None) -> str:
    """Of what is asked for, however its JSON is written."""
    asked = body.model_dump(mode="json", exclude_unset=True) if body is not None else None
    text = orjson.dumps([row.id, at, asked], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()
