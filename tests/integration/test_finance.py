"""The finance API's handlers over both databases: rights, two persons, races, pages, and files, whole or none."""

import asyncio
import csv
import io
import json
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.applications import Starlette
from starlette.types import ASGIApp

from metering.accounts import Accounts
from metering.clock import period_at, previous_month, unix_us_at, utc_now
from metering.events import Event
from metering.exports.formats import FORMATS
from metering.manifest import read_manifest
from metering.money import parse_mxn
from metering.ports import IdempotentWrite, LedgerAway, Reconciliation, Right
from proxy.api.admin.endpoint import AdminEndpoint
from proxy.api.admin.minting import Issuer, mint
from proxy.api.admin.tokens import Secret, Tokens
from proxy.api.finance.endpoint import FinanceEndpoint
from proxy.api.finance.exports import FILES
from proxy.api.finance.schemas import UsageItem
from proxy.api.finance.writes import Deeds
from proxy.api.middleware import RequestMiddleware
from proxy.api.openapi import document
from proxy.api.operation import routes
from proxy.api.requests import RequestLimits
from proxy.api.statements import StatementReply
from proxy.app import _api_error
from proxy.errors import ApiError
from proxy.server.serving import bind, serve_http
from tests.integration.test_corrections import at_wrong_rate
from tests.kits.books import ACT, IVA, MODELS, NOON, PLANS, UNIT, Books, make_groups, open_books, sql
from tests.kits.surface import operations

SECRET = "a secret of the tests, " * 2
ISSUER = Issuer("authenticated", None)
EVERY: tuple[Right, ...] = ("enter", "approve_fx", "approve_adjustment", "close")
ADJUSTMENT = {"org": "acme", "mxn": "-0.42", "reason": "a mistake"}
RATE = {"month": "2041-01", "mxn_per_usd": "18.4512", "source": "DOF"}


@dataclass
class Office:
    """People at the API, and the books behind it."""

    books: Books
    client: httpx2.AsyncClient
    app: ASGIApp

    async def ask(
        self,
        who: str,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        rights: Sequence[Right] = EVERY,
        role: Any = "finance",
        accept: str | None = None,
    ) -> httpx2.Response:
        """Ask as somebody, who has all rights unless said otherwise."""
        token = mint(SECRET, ISSUER, who, role, utc_now(), timedelta(hours=1), rights)
        headers = {"authorization": f"Bearer {token}"}
        headers |= {"idempotency-key": key} if key is not None else {}
        headers |= {"accept": accept} if accept is not None else {}
        return await self.client.request(method, f"/finance/v1{path}", json=body, headers=headers)

    async def done(self, who: str, method: str, path: str, body: Any = None) -> dict[str, Any]:
        reply = await self.ask(who, method, path, body)
        assert reply.status_code in (200, 201), reply.text
        assert reply.headers["cache-control"] == "no-store"
        row: dict[str, Any] = reply.json()
        return row

    async def refused(self, who: str, method: str, path: str, body: Any = None) -> str:
        """The sentence that asks for another person."""
        reply = await self.ask(who, method, path, body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "second_person_required"), reply.text
        return str(reply.json()["error"]["message"])

    async def pages(self, path: str, most: int) -> list[dict[str, Any]]:
        """Every row of a list, page by page."""
        rows: list[dict[str, Any]] = []
        cursor: str | None = ""
        while cursor is not None:
            sign = "&" if "?" in path else "?"
            page = await self.done("eva", "GET", f"{path}{sign}limit={most}" + (f"&cursor={cursor}" if cursor else ""))
            assert len(page["data"]) <= most
            rows += page["data"]
            cursor = page["next_cursor"]
        return rows


@asynccontextmanager
async def open_office(redis_url: str, ledger_url: str, *, key: bool = True) -> AsyncIterator[Office]:
    async with open_books(redis_url, ledger_url, now_us=0) as books:
        signing = Ed25519PrivateKey.generate() if key else None

        def deeds_of(actor: str, once: IdempotentWrite | None) -> Deeds:
            accounts = Accounts(books.ledger, books.projector, PLANS, MODELS, IVA, actor, once, apart=True)
            return Deeds(actor, accounts, books.ledger, books.redis, signing)

        limits = RequestLimits(64 * 1024, 10.0, 60.0)
        finance = FinanceEndpoint(Tokens(Secret(SECRET), ISSUER), books.ledger, books.redis, deeds_of, limits)
        app = RequestMiddleware(
            Starlette(routes=routes(finance.operations()), exception_handlers={ApiError: _api_error})
        )
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://finance") as client:
            yield Office(books, client, app)


async def actions(office: Office, action: str) -> list[tuple[str, str]]:
    rows = await office.books.ledger.audits(None, 2**53, 100, action=action)
    return [(row.actor, row.target) for row in rows]


WRITES: list[tuple[Right, str, dict[str, Any] | None]] = [
    ("enter", "/fx", RATE),
    ("enter", "/adjustments", ADJUSTMENT),
    ("approve_fx", "/fx/RATE/approve", None),
    ("approve_adjustment", "/adjustments/ADJUSTMENT/approve", None),
    ("close", "/months/2026-01/close", None),
]


def test_every_write_is_here_and_takes_a_right() -> None:
    rows = [row for row in operations() if row.security == "finance"]
    assert len(WRITES) == sum(row.writes for row in rows)
    told = document(rows)
    for path, methods in told["paths"].items():
        assert path.startswith("/finance/v1/")
        for method, one in methods.items():
            assert one["security"] == [{"finance": []}]
            assert (method == "post") == one.get("description", "").startswith("Takes the right `")


@pytest.mark.parametrize(("right", "path", "body"), WRITES, ids=lambda one: one if isinstance(one, str) else "")
async def test_without_the_right_nothing_is_done(
    redis_url: str, tmp_path: Path, right: Right, path: str, body: dict[str, Any] | None
) -> None:
    """403 by the right's name, whatever others the token has; and 403 by the role for an administrator."""
    async with open_office(redis_url, f"sqlite:///{tmp_path}/l.db") as office:
        await office.books.org()
        rate = await office.done("maker", "POST", "/fx", {**RATE, "month": "2041-02"})
        adjustment = await office.done("maker", "POST", "/adjustments", ADJUSTMENT)
        where = path.replace("RATE", str(rate["id"])).replace("ADJUSTMENT", str(adjustment["id"]))
        before = await office.books.ledger.last_change()
        others = [one for one in EVERY if one != right]
        reply = await office.ask("eva", "POST", where, body, rights=others)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (403, "not_allowed") and f"has {right} in" in error["message"]
        reply = await office.ask("eva", "POST", where, body, role="admin")
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "not_allowed")
        assert "`app_metadata.role` is finance" in reply.json()["error"]["message"]
        assert (await office.ask("eva", "POST", where, {"x": 1})).status_code == 400
        assert await office.books.ledger.last_change() == before
        assert sql(f"sqlite:///{tmp_path}/l.db", "SELECT DISTINCT actor FROM month_rights") == [("jwt:maker",)]


async def test_reading_takes_the_role_alone(redis_url: str, tmp_path: Path) -> None:
    """No right is needed; an expired token and one of an administrator are refused everywhere."""
    async with open_office(redis_url, f"sqlite:///{tmp_path}/l.db") as office:
        await office.books.org()
        for path in ("/usage", "/credits", "/months", "/months/2036-11", "/fx", "/adjustments"):
            assert (await office.ask("eva", "GET", path, rights=())).status_code == 200, path
            assert (await office.ask("eva", "GET", path, role="admin")).status_code == 403, path
            late = mint(SECRET, ISSUER, "eva", "finance", utc_now(), timedelta(seconds=-60), EVERY)
            reply = await office.client.get(f"/finance/v1{path}", headers={"authorization": f"Bearer {late}"})
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_token"), path
            assert (await office.client.get(f"/finance/v1{path}")).status_code == 401


# --- rates ---


@pytest.mark.rule(25)
async def test_a_rate_is_approved_by_another_person(redis_url: str, ledger_url: str) -> None:
    """(rule 25) Whoever entered it may not, whatever rights the token has; the same of a rate entered elsewhere."""
    async with open_office(redis_url, ledger_url) as office:
        entered = await office.done("ana", "POST", "/fx", RATE)
        assert (entered["entered_by"], entered["approved_by"], entered["added"]) == ("jwt:ana", None, True)
        approve = f"/fx/{entered['id']}/approve"
        assert "This rate of 2041-01 was entered by jwt:ana: another" in await office.refused("ana", "POST", approve)
        assert (await office.done("eva", "POST", approve))["approved_by"] == "jwt:eva"
        assert (await office.done("leo", "POST", approve))["approved_by"] == "jwt:eva", "once"
        again = await office.done("ana", "POST", "/fx", {**RATE, "mxn_per_usd": "18.5"})
        assert (await office.ask("eva", "POST", approve)).status_code == 400, "another was entered last"
        assert "Of 2041-01, jwt:eva has approved the rate, and may use no other right" in await office.refused(
            "eva", "POST", "/fx", {**RATE, "mxn_per_usd": "18.6"}
        )
        assert (await office.done("eva", "POST", f"/fx/{again['id']}/approve"))["mxn_per_usd"] == "18.50"
        assert (await office.ask("eva", "POST", "/fx/999/approve")).status_code == 404
        assert (await office.ask("eva", "POST", "/fx/x/approve")).status_code == 404
        assert (await office.done("eva", "POST", "/fx", {**RATE, "month": "2041-02"}))["added"], "of another month"
        assert await actions(office, "fx.approve") == [("jwt:eva", "2041-01")] * 2
        assert [row["id"] for row in await office.pages("/fx", 1)][-3:] == [entered["id"], again["id"], again["id"] + 1]


# --- adjustments ---


@pytest.mark.rule(33)
async def test_an_adjustment_is_written_when_another_person_approves_it(redis_url: str, ledger_url: str) -> None:
    """Until then no money moves; it is a credit like others, linked to what it corrects."""
    async with open_office(redis_url, ledger_url) as office:
        caller = await office.books.org()
        proposed = await office.done("ana", "POST", "/adjustments", {**ADJUSTMENT, "corrects": "first-acme"})
        assert (proposed["mxn"], proposed["corrects"], proposed["credit"]) == ("-0.42", "credit:first-acme", None)
        assert (await office.books.cut(caller)).available_micro_mxn == parse_mxn("8.40")
        approve = f"/adjustments/{proposed['id']}/approve"
        assert "was proposed by jwt:ana: another person" in await office.refused("ana", "POST", approve)
        approved = await office.done("eva", "POST", approve)
        assert (approved["credit"], approved["approved_by"]) == (f"adjustment-{proposed['id']}", "jwt:eva")
        assert (await office.done("leo", "POST", approve)) == approved, "once"
        assert (await office.books.cut(caller)).available_micro_mxn == parse_mxn("7.98")
        credit = (await office.done("leo", "GET", "/credits?type=adjustment&org=acme"))["data"][0]
        assert (credit["id"], credit["by"], credit["reason"]) == (approved["credit"], "jwt:eva", "a mistake")
        assert credit["corrects"] == "credit:first-acme"
        assert await actions(office, "adjustment.propose") == [("jwt:ana", str(proposed["id"]))]
        assert await actions(office, "adjustment.approve") == [("jwt:eva", str(proposed["id"]))]
        for body, param in (
            ({**ADJUSTMENT, "mxn": "0.00"}, "mxn"),
            ({**ADJUSTMENT, "mxn": "x"}, "mxn"),
            ({**ADJUSTMENT, "reason": " "}, "reason"),
            ({**ADJUSTMENT, "corrects": "nothing"}, "corrects"),
            ({**ADJUSTMENT, "id": "x"}, "id"),
        ):
            reply = await office.ask("ana", "POST", "/adjustments", body)
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
        assert (await office.ask("ana", "POST", "/adjustments", {**ADJUSTMENT, "org": "none"})).status_code == 404
        assert (await office.ask("eva", "POST", "/adjustments/99/approve")).status_code == 404


async def test_an_id_that_is_taken_by_hand_is_passed_over(redis_url: str, ledger_url: str) -> None:
    async with open_office(redis_url, ledger_url) as office:
        await office.books.org()
        proposed = await office.done("ana", "POST", "/adjustments", ADJUSTMENT)
        await office.books.accounts.add_credit("acme", f"adjustment-{proposed['id']}", "bonus", UNIT)
        approved = await office.done("eva", "POST", f"/adjustments/{proposed['id']}/approve")
        assert approved["credit"] == f"adjustment-{proposed['id']}-2"


@pytest.mark.parametrize("times", [2, 12])
async def test_writes_that_come_again_are_done_once(redis_url: str, ledger_url: str, times: int) -> None:
    """Under one idempotency key, at once and later: one row, one credit, one answer."""
    async with open_office(redis_url, ledger_url) as office:
        caller = await office.books.org()

        async def storm(who: str, path: str, body: Any = None) -> dict[str, Any]:
            asked = (office.ask(who, "POST", path, body, key="once") for _ in range(times))
            replies = [*await asyncio.gather(*asked), await office.ask(who, "POST", path, body, key="once")]
            assert {reply.status_code for reply in replies} in ({200}, {201}), [reply.text for reply in replies]
            assert sum("idempotent-replayed" not in reply.headers for reply in replies) == 1
            row: dict[str, Any] = replies[0].json()
            assert all({**reply.json(), "added": 0} == {**row, "added": 0} for reply in replies)
            return row

        rate = await storm("ana", "/fx", RATE)
        await storm("eva", f"/fx/{rate['id']}/approve")
        reply = await office.ask("ana", "POST", "/adjustments", ADJUSTMENT, key="once")
        assert reply.status_code == 422, "it belongs to another request"
        proposed = await storm("leo", "/adjustments", ADJUSTMENT)
        await storm("ida", f"/adjustments/{proposed['id']}/approve")
        assert len(await office.pages("/adjustments", 1)) == 1
        assert (await office.books.cut(caller)).available_micro_mxn == parse_mxn("7.98")


# --- one person, one right of a month ---


def this_month() -> str:
    return period_at(unix_us_at(utc_now())).month


async def use(office: Office, who: str, right: Right) -> httpx2.Response:
    """Use a right of this month: with something that is there for it to be used on, by somebody else."""
    month = this_month()
    if right == "enter":
        return await office.ask(who, "POST", "/adjustments", ADJUSTMENT)
    if right == "approve_adjustment":
        made = await office.done(f"maker-{uuid4()}", "POST", "/adjustments", ADJUSTMENT)
        return await office.ask(who, "POST", f"/adjustments/{made['id']}/approve")
    if right == "approve_fx":
        (*_, record) = [one for one in await office.books.ledger.rate_records() if one.rate.month == month]
        return await office.ask(who, "POST", f"/fx/{record.rate_id}/approve")
    raise AssertionError(f"{right}: a month that is over is below")


@pytest.mark.parametrize("first", ["enter", "approve_fx", "approve_adjustment"])
@pytest.mark.parametrize("second", ["enter", "approve_fx", "approve_adjustment"])
async def test_of_one_month_a_person_uses_one_right(
    redis_url: str, ledger_url: str, first: Right, second: Right
) -> None:
    """The same one again, and any right of another month; the refusal says what was done. Others may."""
    async with open_office(redis_url, ledger_url) as office:
        await office.books.org()
        await office.done("other", "POST", "/fx", {**RATE, "month": this_month()})
        assert (await use(office, "ana", first)).status_code in (200, 201)
        reply = await use(office, "ana", second)
        if first == second:
            assert reply.status_code in (200, 201)
            return
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (403, "second_person_required"), reply.text
        assert error["message"].startswith(f"Of {this_month()}, jwt:ana has ")
        assert (await use(office, "eva", second)).status_code in (200, 201)
        assert (await office.ask("ana", "POST", "/fx", RATE)).status_code == 201, "another month"


@pytest.mark.parametrize("turn", range(3))
async def test_two_requests_at_one_moment_use_one_right(redis_url: str, ledger_url: str, turn: int) -> None:
    """The same person, twenty requests at once, half of them for each of two rights: one of the rights is refused."""
    async with open_office(redis_url, ledger_url) as office:
        await office.books.org()
        made = [await office.done(f"m{number}", "POST", "/adjustments", ADJUSTMENT) for number in range(10)]
        approvals = [office.ask("ana", "POST", f"/adjustments/{one['id']}/approve") for one in made]
        proposals = [office.ask("ana", "POST", "/adjustments", ADJUSTMENT) for _ in made]
        mixed = [one for pair in zip(approvals, proposals, strict=True) for one in pair]
        replies = await asyncio.gather(*(reversed(mixed) if turn % 2 else mixed))
        codes = [reply.status_code for reply in replies]
        if turn % 2:
            codes.reverse()
        assert {tuple(set(codes[::2])), tuple(set(codes[1::2]))} in ({(200,), (403,)}, {(403,), (201,)}), codes
        rows = sql(ledger_url, "SELECT month, month_right FROM month_rights WHERE actor = 'jwt:ana'")
        assert len(rows) == 1


async def test_two_persons_at_one_moment_approve_once(redis_url: str, ledger_url: str) -> None:
    """Ten approvers of one proposal: one credit, and all are told who it was."""
    async with open_office(redis_url, ledger_url) as office:
        caller = await office.books.org()
        made = await office.done("ana", "POST", "/adjustments", ADJUSTMENT)
        asked = (office.done(f"p{number}", "POST", f"/adjustments/{made['id']}/approve") for number in range(10))
        replies = await asyncio.gather(*asked)
        assert len({reply["approved_by"] for reply in replies}) == 1
        assert (await office.books.cut(caller)).available_micro_mxn == parse_mxn("7.98")
        rows = sql(ledger_url, "SELECT actor FROM month_rights WHERE month_right = 'approve_adjustment'")
        assert rows == [(replies[0]["approved_by"],)], "the others have done nothing"


@pytest.mark.rule(3)
@pytest.mark.parametrize("table", ["adjustments_proposed", "adjustment_approvals", "month_rights"])
async def test_who_did_what_is_append_only(redis_url: str, ledger_url: str, table: str) -> None:
    """(rule 3) Also for who goes around the program: no update, no deletion, no second right of a month."""
    async with open_office(redis_url, ledger_url) as office:
        await office.books.org()
        made = await office.done("ana", "POST", "/adjustments", ADJUSTMENT)
        await office.done("eva", "POST", f"/adjustments/{made['id']}/approve")
        before = sql(ledger_url, f"SELECT * FROM {table}")
        assert before
        for statement in (
            f"UPDATE {table} SET at = 'x'",
            f"DELETE FROM {table}",
            "INSERT INTO month_rights SELECT month, actor, 'close', at FROM month_rights",
        ):
            with suppress(Exception):
                sql(ledger_url, statement)
            assert sql(ledger_url, f"SELECT * FROM {table}") == before


# --- months ---


@asynccontextmanager
async def over(redis_url: str, ledger_url: str, events: int = 3) -> AsyncIterator[tuple[Office, str]]:
    """An office whose last month has some charges and is to be closed."""
    month = previous_month(this_month())
    async with open_office(redis_url, ledger_url) as office:
        await make_groups(office.books.redis)
        for name in ("acme", "other"):
            caller = await office.books.org(name)
            made = [charge_in(month, caller.org_id, number) for number in range(1, 1 + events)]
            await office.books.ledger.book(made, [], NOON)
        yield office, month


def charge_in(month: str, org_id: str, number: int) -> Event:
    return at_wrong_rate(org_id, number, month=month)


@pytest.mark.rule(37)
async def test_a_month_is_closed_by_who_has_approved_nothing_of_it(redis_url: str, ledger_url: str) -> None:
    """(rule 37) Whoever approved or entered is refused; a second close is the first one; its manifest is as signed."""
    async with over(redis_url, ledger_url) as (office, month):
        close = f"/months/{month}/close"
        entered = await office.done("ana", "POST", "/fx", {**RATE, "month": month})
        await office.done("eva", "POST", f"/fx/{entered['id']}/approve")
        assert f"Of {month}, jwt:ana has entered a rate or proposed an adjustment" in await office.refused(
            "ana", "POST", close
        )
        assert f"Of {month}, jwt:eva has approved the rate" in await office.refused("eva", "POST", close)
        assert await office.books.ledger.closed_months() == []
        closed = await office.done("leo", "POST", close)
        assert (closed["state"], closed["closed_by"], closed["sealed"], closed["new"]) == (
            "closed",
            "jwt:leo",
            True,
            True,
        )
        again = await office.ask("ida", "POST", close, key="k")
        assert again.json() == {**closed, "new": False}
        assert (await office.ask("ida", "POST", close, key="k")).json() == again.json()
        manifest = await office.ask("leo", "GET", f"/months/{month}/manifest")
        assert read_manifest(manifest.content).month == month
        assert manifest.headers["content-disposition"] == f'attachment; filename="{month}.manifest.json"'
        sheet = await office.done("leo", "GET", f"/months/{month}?limit=1")
        assert sheet["charges_mxn"] == "5.04" and sheet["data"][0]["charges_mxn"] == "2.52"
        rows = await office.pages(f"/months/{month}", 1)
        assert sorted(row["name"] for row in rows) == ["acme", "other"]
        assert [row["month"] for row in await office.pages("/months", 1)] == [month]
        assert await actions(office, "month.close") == [("jwt:leo", month)]
        late = await office.ask("leo", "POST", "/fx", {**RATE, "month": month})
        assert late.status_code in (200, 201, 400, 403)


@pytest.mark.parametrize("turn", range(2))
async def test_race_of_a_close_and_an_approval_by_one_person(redis_url: str, ledger_url: str, turn: int) -> None:
    """One of them is refused: an approver who closes would have checked himself."""
    async with over(redis_url, ledger_url) as (office, month):
        entered = await office.done("ana", "POST", "/fx", {**RATE, "month": month})
        both = [
            office.ask("eva", "POST", f"/fx/{entered['id']}/approve"),
            office.ask("eva", "POST", f"/months/{month}/close"),
        ]
        replies = await asyncio.gather(*(reversed(both) if turn else both))
        assert sorted(reply.status_code for reply in replies) == [200, 403], [reply.text for reply in replies]
        rights = sql(ledger_url, "SELECT month_right FROM month_rights WHERE actor = 'jwt:eva'")
        assert len(rights) == 1


async def test_a_month_that_is_not_whole_or_cannot_be_sealed_stays_open(redis_url: str, ledger_url: str) -> None:
    """In a sentence each; the right is not used up by what was refused."""
    async with open_office(redis_url, ledger_url, key=False) as office:
        await office.books.org()
        reply = await office.ask("leo", "POST", f"/months/{previous_month(this_month())}/close")
        assert reply.status_code == 503 and "GHUB_MONTH_SIGNING_KEY" in reply.json()["error"]["message"]
        assert reply.headers["x-should-retry"] == "false"
    async with open_office(redis_url, ledger_url) as office:
        reply = await office.ask("leo", "POST", f"/months/{this_month()}/close")
        assert reply.status_code == 400 and "is not over" in reply.json()["error"]["message"]
        for month in ("2036", "x", "2026-13"):
            assert (await office.ask("leo", "POST", f"/months/{month}/close")).status_code == 404
        assert (await office.ask("leo", "GET", f"/months/{this_month()}/manifest")).status_code == 404
        assert sql(ledger_url, "SELECT * FROM month_rights") == []


# --- lists and files ---


@pytest.mark.parametrize("most", [1, 3, 100])
async def test_lists_show_every_row_once(redis_url: str, ledger_url: str, most: int) -> None:
    async with open_office(redis_url, ledger_url) as office:
        for name in ("acme", "other"):
            await office.books.org(name)
        for number in range(4):
            await office.books.accounts.add_credit("acme", f"b{number}", "bonus", UNIT)
            await office.done("ana", "POST", "/adjustments", ADJUSTMENT)
        credits_ = await office.pages("/credits", most)
        assert [row["id"] for row in credits_] == ["b3", "b2", "b1", "b0", "first-other", "first-acme"]
        assert [row["id"] for row in await office.pages("/credits?org=other", most)] == ["first-other"]
        assert len(await office.pages(f"/credits?month={this_month()}", most)) == 6
        assert await office.pages("/credits?month=2036-11", most) == []
        numbers = [row["id"] for row in await office.pages("/adjustments", most)]
        assert numbers == sorted(numbers, reverse=True) and len(numbers) == 4
        for path in ("/credits", "/adjustments", "/months", "/fx", "/months/2036-11"):
            reply = await office.ask("eva", "GET", f"{path}?cursor=none")
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "cursor"), path
            assert (await office.ask("eva", "GET", f"{path}?limit=101")).status_code == 400
        for query, param in (("month=2036", "month"), ("type=consumption", "type"), ("x=1", "x")):
            reply = await office.ask("eva", "GET", f"/credits?{query}")
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
        assert (await office.ask("eva", "GET", "/credits?org=nobody")).status_code == 404


async def test_usage_is_summed_by_what_is_asked_for(redis_url: str, ledger_url: str) -> None:
    """As JSON and as CSV; of all or of one."""
    async with over(redis_url, ledger_url) as (office, month):
        span = f"from={month}-01&to={month}-28"
        by_org = await office.done("eva", "GET", f"/usage?{span}")
        assert sorted((row["org_name"], row["images"], row["cost_mxn"]) for row in by_org["data"]) == [
            ("acme", 3, "2.52"),
            ("other", 3, "2.52"),
        ]
        assert by_org["total"] == {"orders": 6, "images": 6, "cost_mxn": "5.04"}
        assert [UsageItem.model_validate(row, strict=True) for row in by_org["data"]], "as the document tells"
        whole = await office.done("eva", "GET", f"/usage?{span}&group_by=")
        assert [row["orders"] for row in whole["data"]] == [6] and whole["data"][0]["org"] is None
        each = await office.done("eva", "GET", f"/usage?{span}&group_by=key,model,day,org&org=acme")
        assert each["group_by"] == ["org", "day", "model", "key"]
        assert each["data"][0]["key_id"] == "key_1" and each["total"]["images"] == 3
        sheet = await office.ask("eva", "GET", f"/usage?{span}", accept="text/csv")
        assert sheet.headers["content-type"].startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(sheet.text)))
        assert sorted(row["org_name"] for row in rows) == ["acme", "other"]
        for query, param in (
            ("from=2026-01-01", "to"),
            ("to=2026-01-01", "from"),
            ("from=2026-02-30&to=2026-03-01", "from"),
            ("from=2026-03-01&to=2026-02-01", "to"),
            ("from=2024-01-01&to=2026-01-01", "to"),
            ("group_by=tag", "group_by"),
            ("group_by=day,day", "group_by"),
            ("from=yesterday&to=2026-01-01", "from"),
            ("since=2026-01-01", "since"),
        ):
            reply = await office.ask("eva", "GET", f"/usage?{query}")
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), query
            assert reply.json()["error"]["message"]


async def test_statements_are_those_that_an_organisation_is_given(redis_url: str, ledger_url: str) -> None:
    """As HTML, JSON and PDF, in Spanish and English; by name or id."""
    async with over(redis_url, ledger_url) as (office, month):
        path = f"/statements/acme/{month}"
        page = await office.ask("eva", "GET", path)
        assert page.headers["content-type"].startswith("text/html") and page.headers["content-language"] == "es"
        told = await office.ask("eva", "GET", f"{path}?lang=en", accept="application/json")
        assert (told.json()["charges_mxn"], told.headers["content-language"]) == ("2.52", "en")
        StatementReply.model_validate_json(told.content)
        drawn = await office.ask("eva", "GET", path, accept="application/pdf")
        assert drawn.content.startswith(b"%PDF")
        for wrong, status in (("/statements/none/2026-01", 404), ("/statements/acme/x", 404), (f"{path}?lang=fr", 400)):
            assert (await office.ask("eva", "GET", wrong)).status_code == status, wrong


async def test_comparisons_are_listed(redis_url: str, ledger_url: str) -> None:
    async with open_office(redis_url, ledger_url) as office:
        for month in ("2036-10", "2036-11", "2036-11"):
            found = Reconciliation(month, None, True, "1.00", "1.00", "0.00", 0, '{"month": "x"}')
            await office.books.ledger.add_reconciliation(found, NOON, ACT)
        rows = await office.pages("/reconciliations", 1)
        assert [row["month"] for row in rows] == ["2036-11", "2036-11", "2036-10"]
        assert len(await office.pages("/reconciliations?month=2036-10", 1)) == 1
        one = await office.done("eva", "GET", f"/reconciliations/{rows[0]['id']}")
        assert (one["report"], one["by"], one["ok"]) == ({"month": "x"}, "test", True)
        for wrong in ("x", "99"):
            assert (await office.ask("eva", "GET", f"/reconciliations/{wrong}")).status_code == 404


@pytest.mark.parametrize("file_format", ["csv", "jsonl"])
async def test_an_export_is_the_months(redis_url: str, ledger_url: str, file_format: str) -> None:
    """More rows than a page; an open month says whether all is known, and a closed one always is."""
    async with over(redis_url, ledger_url, events=1_100) as (office, month):
        path = f"/months/{month}/exports/{file_format}"
        whole = await office.ask("eva", "GET", path)
        assert whole.status_code == 200 and whole.headers["x-geekhub-complete"] == "true"
        assert whole.headers["content-disposition"] == f'attachment; filename="usage-{month}.{file_format}"'
        lines = whole.text.splitlines()
        assert len(lines) == 2_200 + (file_format == "csv")
        one = await office.ask("eva", "GET", f"{path}?org=acme")
        assert len(one.text.splitlines()) == 1_100 + (file_format == "csv")
        if file_format == "jsonl":
            assert sum(parse_mxn(json.loads(line)["amount_mxn"]) for line in lines) == 2_200 * UNIT
        assert (await office.ask("eva", "HEAD", path)).headers["x-geekhub-complete"] == "true"
        for query, param in (("variant=none", "variant"), ("all_ends=yes", "all_ends"), ("x=y", "x")):
            reply = await office.ask("eva", "GET", f"{path}?{query}")
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
        assert (await office.ask("eva", "GET", f"{path}?all_ends=true")).status_code == 200
        assert (await office.ask("eva", "GET", f"/months/{month}/exports/none")).status_code == 404


@pytest.mark.parametrize("file_format", FORMATS)
async def test_every_format_is_sent_and_said_what_it_is(redis_url: str, tmp_path: Path, file_format: str) -> None:
    """Formats that are not text, too: none needs a file that can be sought."""
    assert FILES.keys() == FORMATS.keys()
    async with over(redis_url, f"sqlite:///{tmp_path}/l.db", events=1_100) as (office, month):
        for variant in (None, *FORMATS[file_format].variants):
            query = "" if variant is None else f"?variant={variant}"
            reply = await office.ask("eva", "GET", f"/months/{month}/exports/{file_format}{query}")
            assert reply.status_code == 200, reply.text
            assert reply.headers["content-type"].startswith(FILES[file_format][0])
            if file_format == "xlsx":
                assert zipfile.ZipFile(io.BytesIO(reply.content)).testzip() is None
            elif file_format == "parquet":
                assert reply.content[:4] == reply.content[-4:] == b"PAR1"
            else:
                assert len(reply.text.splitlines()) >= 2_200


async def test_an_export_that_fails_at_once_is_an_error_and_gives_its_turn_back(redis_url: str, tmp_path: Path) -> None:
    async with over(redis_url, f"sqlite:///{tmp_path}/l.db") as (office, month):
        path = f"/months/{month}/exports/jsonl"
        charges = office.books.ledger.charges

        async def away(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            for _ in range(2):
                raise LedgerAway("gone")
            yield

        office.books.ledger.charges = away  # type: ignore[method-assign]
        reply = await office.ask("eva", "GET", path)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "temporarily_unavailable")
        office.books.ledger.charges = charges  # type: ignore[method-assign]
        assert (await office.ask("eva", "GET", path)).status_code == 200


@asynccontextmanager
async def served(office: Office) -> AsyncIterator[tuple[str, dict[str, str]]]:
    """The office behind the gateway's own server: its address, and the headers of somebody who may read."""
    stop, listener = asyncio.Event(), bind("GHUB_PORT", "127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/finance/v1"
    serving = asyncio.create_task(serve_http(office.app, listener, stop, graceful_s=5.0, most=8))
    token = mint(SECRET, ISSUER, "eva", "finance", utc_now(), timedelta(hours=1))
    try:
        yield address, {"authorization": f"Bearer {token}"}
    finally:
        stop.set()
        await serving


def repeated(office: Office, times: int, *, then_fail: bool = False) -> Counter[str]:
    """From now on the ledger gives its first page of charges many times over; returns how many were read."""
    charges, read = office.books.ledger.charges, Counter[str]()

    async def many(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        page = await anext(aiter(charges(*args, **kwargs)))
        for _ in range(times):
            read["pages"] += 1
            yield page
        if then_fail:
            raise LedgerAway("gone")

    office.books.ledger.charges = many  # type: ignore[method-assign]
    return read


async def test_an_export_that_fails_on_its_way_is_never_whole(redis_url: str, tmp_path: Path) -> None:
    """Its connection ends without the end of the reply, so a client raises an error; the next export is served."""
    async with over(redis_url, f"sqlite:///{tmp_path}/l.db", events=500) as (office, month):
        path, charges = f"/months/{month}/exports/csv", office.books.ledger.charges
        async with served(office) as (address, headers), httpx2.AsyncClient(trust_env=False) as client:
            repeated(office, 20, then_fail=True)
            received: list[bytes] = []

            async def take() -> None:
                async with client.stream("GET", address + path, headers=headers) as reply:
                    assert reply.status_code == 200
                    async for piece in reply.aiter_bytes():
                        received.append(piece)

            with pytest.raises(httpx2.RemoteProtocolError):
                await take()
            assert sum(map(len, received)) > 100_000, "it had begun"
            office.books.ledger.charges = charges  # type: ignore[method-assign]
            whole = await client.get(address + path, headers=headers)
            assert whole.status_code == 200 and len(whole.text.splitlines()) == 1_001


async def test_an_export_is_read_only_as_fast_as_it_is_taken(redis_url: str, tmp_path: Path) -> None:
    """A client that takes nothing holds the ledger back; another is told to wait; a client that goes ends it."""
    async with over(redis_url, f"sqlite:///{tmp_path}/l.db", events=500) as (office, month):
        path, most, charges = f"/months/{month}/exports/csv", 400, office.books.ledger.charges
        read = repeated(office, most)
        async with served(office) as (address, headers), httpx2.AsyncClient(trust_env=False) as client:
            async with client.stream("GET", address + path, headers=headers) as reply:
                assert reply.status_code == 200
                before = -1
                while read["pages"] != before:  # until it stands still: each page takes a few milliseconds
                    before = read["pages"]
                    await asyncio.sleep(0.5)
                assert 0 < before < most / 4, "some MB lie in buffers, and no more"
                other = await client.get(address + path, headers=headers)
                assert (other.status_code, other.headers["retry-after"]) == (429, "10")
            office.books.ledger.charges = charges  # type: ignore[method-assign]
            async with asyncio.timeout(60):
                while (await client.get(address + path, headers=headers)).status_code == 429:
                    await asyncio.sleep(0.05)
            assert read["pages"] < most, "the first one was given up"


def test_the_admin_api_has_no_path_of_finance() -> None:
    admin = {row.path for row in operations() if row.security == "admin"}
    assert all(path.startswith("/admin/v1/") for path in admin) and AdminEndpoint.ROLE == "admin"
