"""An API for people and programs with a token: who may, what was asked, what is answered; its operations are rows."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from metering.accounts import KEY
from metering.ports import (
    DatabaseRefused,
    IdempotentWrite,
    Ledger,
    LedgerAway,
    LedgerError,
    NotThere,
    Right,
    SamePerson,
    WrongField,
)
from metering.wallet.connection import WalletAway
from proxy.api.admin.call import Call, read_call
from proxy.api.admin.minting import Role
from proxy.api.admin.rows import Fields
from proxy.api.admin.schemas import WriteHeaders
from proxy.api.admin.tokens import Tokens, check_right, check_role
from proxy.api.middleware import context_of
from proxy.api.operation import ORDER_EXAMPLE, Operation, Tag
from proxy.api.pages import BadCursor
from proxy.api.requests import RequestLimits
from proxy.errors import ApiError, Kind, wallet_away

ReadsT = TypeVar("ReadsT")
DoerT = TypeVar("DoerT")

ERRORS = (Kind.INVALID_TOKEN, Kind.NOT_ALLOWED, Kind.UNAVAILABLE)
"""Errors of every operation."""

_EXAMPLES = {"id": ORDER_EXAMPLE, "month": "2026-11", "format": "csv", "number": "7"}
"""Of what stands in a path."""

LEDGER_RETRY_S = 1.0
"""A hint: a database that fails over is back within seconds."""


@dataclass(frozen=True, slots=True)
class Written:
    """The target of a write, and what only the reply to the request that wrote it has."""

    target: str
    revealed: Fields = field(default_factory=dict)


Read = Callable[[ReadsT, Call], Awaitable[Fields]]
Show = Callable[[ReadsT, Call, str], Awaitable[Fields]]
Write = Callable[[Call, DoerT], Awaitable[Written]]
Send = Callable[[ReadsT, Call, Request], Awaitable[Response]]
"""Answers with something else than JSON of the operation's model."""


@dataclass(frozen=True, slots=True)
class Writing(Generic[ReadsT, DoerT]):
    """A write, and how its target is shown.

    `unrevealed` has the values that a repeated request gets in place of what the write shows only once. `right` is what
    the token must have. What is `once_by_itself` is done again when the request is repeated, and changes nothing then.
    """

    write: Write[DoerT]
    show: Show[ReadsT]
    unrevealed: Fields = field(default_factory=dict)
    right: Right | None = None
    once_by_itself: bool = False


class Desk(Generic[ReadsT, DoerT]):
    """Answers operations for tokens with the role. `doer_of` gives what an actor may do, and the one write that may be
    repeated; the ledger is for finding what was done before."""

    ROLE: ClassVar[Role]
    TAG: ClassVar[Tag]

    def __init__(
        self,
        tokens: Tokens,
        ledger: Ledger,
        reads: ReadsT,
        doer_of: Callable[[str, IdempotentWrite | None], DoerT],
        limits: RequestLimits,
    ) -> None:
        self._tokens = tokens
        self._ledger = ledger
        self._reads = reads
        self._doer_of = doer_of
        self._limits = limits

    def _read_row(
        self,
        id_: str,
        path: str,
        summary: str,
        reply: type[BaseModel],
        read: Read[ReadsT],
        query: type[BaseModel] | None = None,
        *,
        more: tuple[Kind, ...] = (),
    ) -> Operation:
        """Build the row of a read. `more` are errors of its own, beside those of its query and of its path."""

        async def handler(request: Request) -> Response:
            call = await self._call(request, row)
            with _sentences(call):
                return _json(row, await read(self._reads, call))

        row = Operation(
            id=id_,
            tag=self.TAG,
            method="GET",
            path=path,
            handler=handler,
            summary=summary,
            reply=reply,
            query=query,
            errors=(*ERRORS, *((Kind.INVALID_REQUEST,) if query is not None else ()), *more),
            security=self.ROLE,
            examples=_examples(path),
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
        writing: Writing[ReadsT, DoerT],
        body: type[BaseModel] | None = None,
        status: int = 200,
    ) -> Operation:
        """Build the row of a write."""

        async def handler(request: Request) -> Response:
            call = await self._call(request, row, writing.right)
            with _sentences(call):
                written, replayed = await self._write(call, writing)
                context_of(request.scope).facts["target"] = written.target
                shown = await writing.show(self._reads, call, written.target)
                return _json(row, shown | writing.unrevealed | written.revealed, replayed=replayed)

        apart = (Kind.SECOND_PERSON,) if writing.right is not None else ()
        row = Operation(
            id=id_,
            tag=self.TAG,
            method=method,
            path=path,
            handler=handler,
            summary=summary,
            description=None if writing.right is None else f"Takes the right `{writing.right}`.",
            reply=reply,
            status=status,
            body=body,
            headers=WriteHeaders,
            errors=(*ERRORS, Kind.INVALID_REQUEST, Kind.KEY_REUSED, Kind.TOO_LARGE, *apart),
            security=self.ROLE,
            examples=_examples(path),
            reply_headers=("cache-control", "idempotent-replayed"),
        )
        return row

    def _file_row(
        self,
        id_: str,
        path: str,
        summary: str,
        media: tuple[str, ...],
        send: Send[ReadsT],
        *,
        reply: type[BaseModel] | None = None,
        query: type[BaseModel] | None = None,
        headers: tuple[str, ...] = ("content-disposition",),
        more: tuple[Kind, ...] = (),
    ) -> Operation:
        """Build the row of a read that is answered with a file, or with JSON or another medium as it is wanted."""

        async def handler(request: Request) -> Response:
            call = await self._call(request, row)
            with _sentences(call):
                answer = await send(self._reads, call, request)
            answer.headers["cache-control"] = "no-store"
            return answer

        row = Operation(
            id=id_,
            tag=self.TAG,
            method="GET",
            path=path,
            handler=handler,
            summary=summary,
            reply=reply,
            media=media,
            query=query,
            errors=(*ERRORS, *((Kind.INVALID_REQUEST,) if query is not None else ()), *more),
            security=self.ROLE,
            examples=_examples(path),
            reply_headers=("cache-control", *headers),
        )
        return row

    async def _call(self, request: Request, row: Operation, right: Right | None = None) -> Call:
        """Read a request of somebody who may make it. Raises ApiError 401, 403, and those of the request."""
        actor = await self._tokens.actor(request.headers)
        context_of(request.scope).facts["actor"] = actor.name
        check_role(actor, (self.ROLE,))
        if right is not None:
            check_right(actor, right)
        return await read_call(request, row, actor, self._limits)

    async def _write(self, call: Call, writing: Writing[ReadsT, DoerT]) -> tuple[Written, bool]:
        """Do the write, or find what it did before; also returns whether it was done before."""
        if writing.once_by_itself:
            return await writing.write(call, self._doer_of(call.actor.name, None)), False
        earlier = await self._earlier(call)
        if earlier is not None:
            return earlier, True
        try:
            return await writing.write(call, self._doer_of(call.actor.name, call.once)), False
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


@contextmanager
def _sentences(call: Call) -> Iterator[None]:
    """Turn errors of the books into errors for a client."""
    try:
        yield
    except BadCursor:
        message = "`cursor` must be `next_cursor` of the page before."
        raise ApiError(Kind.INVALID_REQUEST, message, param="cursor") from None
    except NotThere as error:
        raise ApiError(Kind.NOT_FOUND, _sentence(error)) from None
    except SamePerson as error:
        raise ApiError(Kind.SECOND_PERSON, _sentence(error)) from None
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


def _json(row: Operation, fields: Fields, *, replayed: bool = False) -> Response:
    headers = {"cache-control": "no-store"} | ({"idempotent-replayed": "true"} if replayed else {})
    assert row.reply is not None
    content = row.reply.model_validate(fields).model_dump_json()
    return Response(content, row.status, headers, "application/json")


def _examples(path: str) -> dict[str, str]:
    return {name: example for name, example in _EXAMPLES.items() if f"{{{name}}}" in path}


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
