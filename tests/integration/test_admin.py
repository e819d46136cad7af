"""The admin API's handlers over both databases: writes that come twice or twenty times at once, pages, and outages."""

import asyncio
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from starlette.applications import Starlette

from metering.accounts import Accounts
from metering.clock import utc_now
from metering.events import Notice
from metering.money import format_mxn
from metering.orders import Orders
from metering.ports import LATEST, DatabaseRefused, IdempotentWrite, WebhookCall, WrongField
from metering.wallet.values import Caller, Close, Verdict
from proxy.api.admin.endpoint import AdminEndpoint
from proxy.api.admin.minting import Issuer, mint
from proxy.api.admin.tokens import Secret, Tokens
from proxy.api.middleware import RequestMiddleware
from proxy.api.openapi import document
from proxy.api.operation import routes
from proxy.api.requests import RequestLimits
from proxy.app import _api_error
from proxy.errors import ApiError
from tests.conftest import ValkeyServer, run
from tests.kits.books import IVA, MODELS, PLANS, UNIT, WEBHOOKS, Books, drain, open_books, pinned
from tests.kits.surface import operations

SECRET = "a secret of the tests, " * 2
ISSUER = Issuer("authenticated", None)


@dataclass
class Desk:
    """An administrator at the API, and the books behind it."""

    books: Books
    client: httpx2.AsyncClient

    async def ask(self, method: str, path: str, body: Any = None, key: str | None = None) -> httpx2.Response:
        headers = {"idempotency-key": key} if key is not None else {}
        return await self.client.request(method, f"/admin/v1{path}", json=body, headers=headers)

    async def pages(self, path: str, most: int) -> list[dict[str, Any]]:
        """Every row of a list, page by page."""
        rows: list[dict[str, Any]] = []
        cursor: str | None = ""
        while cursor is not None:
            sign = "&" if "?" in path else "?"
            more = f"{sign}limit={most}" + (f"&cursor={cursor}" if cursor else "")
            page = (await self.ask("GET", path + more)).json()
            assert page["object"] == "list" and len(page["data"]) <= most
            rows += page["data"]
            cursor = page["next_cursor"]
        return rows

    async def audit(self, action: str) -> list[dict[str, Any]]:
        return [row for row in await self.pages("/audit", 100) if row["action"] == action]


@asynccontextmanager
async def open_desk(redis_url: str, ledger_url: str) -> AsyncIterator[Desk]:
    async with open_books(redis_url, ledger_url, now_us=0) as books:

        def accounts_of(actor: str, once: IdempotentWrite | None) -> Accounts:
            rules, plans = WEBHOOKS, [*PLANS, "big"]
            return Accounts(books.ledger, books.projector, plans, MODELS, IVA, actor, once, webhook_rules=rules)

        limits = RequestLimits(64 * 1024, 10.0, 60.0)
        orders = Orders(books.ledger, books.redis)
        tokens = Tokens(Secret(SECRET), ISSUER)
        admin = AdminEndpoint(tokens, books.ledger, books.wallet, orders, accounts_of, limits, "https://images")
        app = RequestMiddleware(Starlette(routes=routes(admin.operations()), exception_handlers={ApiError: _api_error}))
        token = mint(SECRET, ISSUER, "ana", "admin", utc_now(), timedelta(hours=1))
        transport = httpx2.ASGITransport(app)
        headers = {"authorization": f"Bearer {token}"}
        async with httpx2.AsyncClient(transport=transport, base_url="http://admin", headers=headers) as client:
            yield Desk(books, client)


async def charged(desk: Desk, caller: Caller, images: int = 1) -> str:
    """A booked charge of 0.84 MXN an image; the order's id as the record has it."""
    order = str(uuid4())
    await desk.books.accounts.add_credit(caller.org_id, f"for-{order}", "bonus", images * UNIT)
    price = pinned(images, now_us=desk.books.wallet.now_us())
    assert (await desk.books.admit(caller, order, price)).verdict is Verdict.ADMITTED
    assert (await desk.books.settle(caller, order, images)).close is Close.CHARGED
    await drain(desk.books)
    return order


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


WRITES: list[tuple[str, str, str, dict[str, Any] | None, int]] = [
    ("org.create", "POST", "/orgs", {"name": "new"}, 201),
    ("org.suspend", "POST", "/orgs/acme/suspend", {"reason": "chargeback"}, 200),
    ("org.resume", "POST", "/orgs/acme/resume", None, 200),
    ("org.rename", "POST", "/orgs/acme/rename", {"name": "acme 2"}, 200),
    ("org.plan", "POST", "/orgs/acme/plan", {"plan": "big"}, 200),
    ("org.limits", "PATCH", "/orgs/acme/limits", {"images_per_day": 5, "mxn_per_month": "500.00"}, 200),
    ("key.create", "POST", "/orgs/acme/keys", {"name": "web", "models": ["fal/flux-1.1-pro"]}, 201),
    ("key.limits", "PATCH", "/keys/KEY/limits", {"in_flight": 2, "images_per_day": None}, 200),
    ("key.rotate", "POST", "/keys/KEY/rotate", {"overlap_h": 24}, 201),
    ("key.revoke", "POST", "/keys/KEY/revoke", None, 200),
    ("credit.add", "POST", "/orgs/acme/credits", {"id": "p1", "type": "recharge", "mxn": "50.00"}, 201),
    ("credit.complete", "PATCH", "/credits/paid%2F1", {"rfc": "XAXX010101000", "forma_pago": "03"}, 200),
    ("order.refund", "POST", "/orders/ORDER/refund", {"reason": "blurred", "mxn": "0.42"}, 201),
    ("webhook.add", "POST", "/orgs/acme/webhooks", {"url": "https://example.mx/", "events": ["balance.low"]}, 201),
    ("webhook.rotate", "POST", "/orgs/acme/webhook-secret", {"overlap_h": 1}, 201),
    ("webhook.disable", "POST", "/webhooks/WEBHOOK/disable", None, 200),
    ("webhook.replay", "POST", "/webhooks/WEBHOOK/replay", None, 200),
    ("webhook.replay", "POST", "/webhook-deliveries/DELIVERY/replay", None, 200),
    ("fx.set", "POST", "/fx", {"month": "2041-01", "mxn_per_usd": "18.4512", "source": "DOF"}, 201),
]


def test_every_write_is_here() -> None:
    """The table of the next tests has what the API's own has."""
    assert len(WRITES) == sum(row.writes for row in operations() if row.security == "admin")


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write[0])
@pytest.mark.parametrize("times", [2, 20])
async def test_a_write_that_comes_again_is_done_once(
    redis_url: str, ledger_url: str, write: tuple[str, str, str, dict[str, Any] | None, int], times: int
) -> None:
    """Twenty at once, and then one after the other: one row in the audit log, one status, one answer, one key shown.

    Another request under the same idempotency key is 422 and changes nothing.
    """
    action, method, path, body, status = write
    async with open_desk(redis_url, ledger_url) as desk:
        org = await desk.books.accounts.create_org("acme", "default")
        issued = await desk.books.accounts.create_key("acme", "first")
        if action == "org.resume":
            await desk.books.accounts.suspend_org("acme")
        if action == "credit.complete":
            await desk.books.accounts.add_credit("acme", "paid/1", "recharge", UNIT)
        before = len(await desk.audit(action))
        where = path.replace("KEY", issued.key_id)
        if "ORDER" in path:
            where = path.replace("ORDER", await charged(desk, Caller(org.org_id, issued.key_id)))
        if "WEBHOOK" in path or "DELIVERY" in path:
            added = await desk.books.accounts.webhooks.add("acme", "https://hooks.example.mx/", ["balance.low"])
            call = WebhookCall(org.org_id, "balance.low", "x", "{}")
            await desk.books.ledger.call_webhooks([call], utc_now())
            (delivery,) = await desk.books.ledger.webhook_deliveries(org.org_id, None, (LATEST, ""))
            where = path.replace("WEBHOOK", added.webhook.webhook_id).replace("DELIVERY", delivery.delivery_id)
        replies = list(await asyncio.gather(*(desk.ask(method, where, body, "once") for _ in range(times))))
        replies.append(await desk.ask(method, where, body, "once"))
        assert [reply.status_code for reply in replies] == [status] * (times + 1)
        fresh = [reply for reply in replies if "idempotent-replayed" not in reply.headers]
        assert len(fresh) == 1
        rows = [reply.json() for reply in replies]
        told_once = ("key", "secret", "added")
        assert all(without(row, *told_once) == without(rows[0], *told_once) for row in rows)
        if "key" in rows[0]:
            assert [row["key"] for row in rows if row["key"] is not None] == [fresh[0].json()["key"]]
        if "secret" in rows[0]:
            assert [row["secret"] for row in rows if row["secret"] is not None] == [fresh[0].json()["secret"]]
        if "added" in rows[0]:
            assert [row["added"] for row in rows].count(True) == 1 and fresh[0].json()["added"]
        assert len(await desk.audit(action)) == before + 1
        other = await desk.ask("POST", "/orgs", {"name": "other"}, "once")
        assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
        assert (await desk.ask("GET", "/orgs/other")).status_code == 404


async def test_a_write_that_changed_nothing_has_used_its_idempotency_key_too(redis_url: str, ledger_url: str) -> None:
    """A credit and a rate that were there already: the key stands for that request, and no audit row is written."""
    async with open_desk(redis_url, ledger_url) as desk:
        await desk.books.accounts.create_org("acme", "default")
        for path, body, other in (
            ("/orgs/acme/credits", {"id": "p", "type": "bonus", "mxn": "1.00"}, {"id": "q"}),
            ("/fx", {"month": "2041-01", "mxn_per_usd": "18", "source": "x"}, {"month": "2041-02"}),
        ):
            assert (await desk.ask("POST", path, body)).json()["added"] is True
            first = await desk.ask("POST", path, body, f"k{path}")
            assert first.json()["added"] is False and "idempotent-replayed" not in first.headers
            again = await desk.ask("POST", path, body, f"k{path}")
            assert again.json() == first.json() and again.headers["idempotent-replayed"] == "true"
            assert (await desk.ask("POST", path, {**body, **other}, f"k{path}")).status_code == 422
        assert len(await desk.audit("credit.add")) == len(await desk.audit("fx.set")) == 1


async def test_what_changed_nothing_is_no_row_of_the_audit_log(redis_url: str, ledger_url: str) -> None:
    """A key that is revoked already, limits that are as they were: 200, and the idempotency key is used, too."""
    async with open_desk(redis_url, ledger_url) as desk:
        await desk.books.accounts.create_org("acme", "default")
        issued = await desk.books.accounts.create_key("acme", "web")
        for action, method, path, body in (
            ("org.suspend", "POST", "/orgs/acme/suspend", {"reason": "chargeback"}),
            ("org.resume", "POST", "/orgs/acme/resume", None),
            ("org.plan", "POST", "/orgs/acme/plan", {"plan": "big"}),
            ("org.limits", "PATCH", "/orgs/acme/limits", {"images_per_day": 5, "in_flight": None}),
            ("key.limits", "PATCH", f"/keys/{issued.key_id}/limits", {"mxn_per_month": "5.00"}),
            ("key.revoke", "POST", f"/keys/{issued.key_id}/revoke", None),
        ):
            first = await desk.ask(method, path, body)
            second = await desk.ask(method, path, body, action)
            assert (second.status_code, second.json()) == (200, first.json())
            assert (await desk.ask(method, path, body, action)).headers["idempotent-replayed"] == "true"
            assert len(await desk.audit(action)) == 1


async def test_the_audit_log_spells_limits_as_the_api_does(redis_url: str, ledger_url: str) -> None:
    """Money is a decimal string, "none" lifts and null is the plan's, of an organisation and of a key."""
    async with open_desk(redis_url, ledger_url) as desk:
        await desk.books.accounts.create_org("acme", "default")
        issued = await desk.books.accounts.create_key("acme", "web")
        sent: list[dict[str, Any]] = [
            {"mxn_per_month": "5000.00", "images_per_day": "none"},
            {"mxn_per_month": "none", "images_per_day": None},
            {"mxn_per_month": None, "in_flight": 7},
        ]
        for body in sent:
            assert (await desk.ask("PATCH", "/orgs/acme/limits", body)).status_code == 200
        assert [row["details"] for row in reversed(await desk.audit("org.limits"))] == sent
        await desk.ask("PATCH", f"/keys/{issued.key_id}/limits", {"mxn_per_month": "0.84"})
        assert [row["details"] for row in await desk.audit("key.limits")] == [{"mxn_per_month": "0.84"}]


@pytest.mark.parametrize("life_d", [None, 90])
async def test_a_key_that_is_rotated_twice_passes_on_the_life_that_it_was_given(
    redis_url: str, ledger_url: str, life_d: int | None
) -> None:
    """The first new key may be lost with its answer: the second has not the short end that the overlap gave the old."""
    async with open_desk(redis_url, ledger_url) as desk:
        await desk.books.accounts.create_org("acme", "default")
        expires = None if life_d is None else utc_now() + timedelta(days=life_d)
        key_id = (await desk.books.accounts.create_key("acme", "web", expires=expires)).key_id
        lost, kept = [(await desk.ask("POST", f"/keys/{key_id}/rotate", {"overlap_h": 1})).json() for _ in range(2)]
        last = (await desk.ask("POST", f"/keys/{lost['key_id']}/rotate", {"overlap_h": 1})).json()
        again = (await desk.ask("POST", f"/keys/{lost['key_id']}/rotate", {"overlap_h": 0})).json()
        for row in (lost, kept, last, again):
            if life_d is None:
                assert row["expires_at"] is None
            else:
                is_alive = datetime.fromisoformat(row["expires_at"]) - datetime.fromisoformat(row["created_at"])
                assert round(is_alive / timedelta(minutes=1)) == life_d * 24 * 60


async def test_every_header_is_one_that_the_document_tells_of(redis_url: str, tmp_path: Path) -> None:
    """The headers of a list, a write, its repetition, and refusals; those that are always present are."""
    told = document([row for row in operations() if row.security == "admin"])
    async with open_desk(redis_url, f"sqlite:///{tmp_path}/l.db") as desk:
        for method, name, key in (
            ("POST", "a", "k"),
            ("POST", "a", "k"),
            ("POST", "b", "k"),
            ("POST", "/", None),
            ("GET", None, None),
            ("GET", None, None),
        ):
            reply = await desk.ask(method, "/orgs", None if name is None else {"name": name}, key)
            answer = told["paths"]["/admin/v1/orgs"][method.lower()]["responses"][str(reply.status_code)]
            sent = set(reply.headers) - {"content-length", "content-type"}
            always = {one for one in answer["headers"] if told["components"]["headers"][one]["required"]}
            assert always <= sent <= set(answer["headers"])
            desk.client.headers["authorization"] = desk.client.headers["authorization"] + ("x" if name is None else "")


@pytest.mark.rule(33)
@pytest.mark.parametrize("images", [1, 8])
async def test_an_order_is_shown_and_refunded(redis_url: str, ledger_url: str, images: int) -> None:
    """(rule 33) By both forms of its id; all refunds together are its charge, whichever address they came by."""
    async with open_desk(redis_url, ledger_url) as desk:
        caller = await desk.books.org()
        order = await charged(desk, caller, images)
        public = f"req_{order.replace('-', '')}"
        shown = (await desk.ask("GET", f"/orders/{public}")).json()
        assert shown == (await desk.ask("GET", f"/orders/{order}")).json()
        price = format_mxn(images * UNIT)
        assert (shown["id"], shown["status"], shown["booked"]) == (public, "charged", True)
        assert (shown["amount_mxn"], shown["refundable_mxn"], shown["refunds"]) == (price, price, [])
        assert shown["images"][0]["url"] == f"https://images/{shown['images'][0]['path']}"
        body = {"id": "r1", "type": "refund", "mxn": "0.04", "order": public, "reason": "x"}
        credit = (await desk.ask("POST", "/orgs/acme/credits", body)).json()
        expected = {**body, "org": caller.org_id, "added": True, "number": 3, "by": "jwt:ana"}
        assert {name: credit[name] for name in expected} == expected
        assert (credit["base_mxn"], credit["total_mxn"]) == (None, None), "nothing was paid for it"
        assert (await desk.ask("POST", "/orgs/acme/credits", body)).json()["added"] is False
        refund = await desk.ask("POST", f"/orders/{public}/refund", {"reason": "blurred"})
        assert refund.status_code == 201
        assert without(refund.json(), "at") == {
            "id": f"refund-{order}-2",
            "order": public,
            "org": caller.org_id,
            "mxn": format_mxn(images * UNIT - 40_000),
            "reason": "blurred",
            "charged_mxn": price,
            "refunded_mxn": price,
            "refundable_mxn": "0.00",
        }
        again = await desk.ask("POST", f"/orders/{public}/refund", {"reason": "blurred"})
        assert again.status_code == 400 and "refunded whole already" in again.json()["error"]["message"]
        shown = (await desk.ask("GET", f"/orders/{order}")).json()
        assert [one["mxn"] for one in shown["refunds"]] == ["0.04", refund.json()["mxn"]]
        assert (shown["refunded_mxn"], shown["refundable_mxn"]) == (price, "0.00")


@pytest.mark.rule(33)
@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/orgs/acme/credits", {"id": "r", "type": "refund", "mxn": "0.84"}, 400, "order"),
        ("/orgs/acme/credits", {"id": "r", "type": "refund", "mxn": "0.84", "order": "ORDER"}, 400, "reason"),
        ("/orgs/acme/credits", {"id": "r", "type": "refund", "mxn": "0.84", "order": "x", "reason": "x"}, 400, "order"),
        ("/orgs/acme/credits", {"id": "r", "type": "bonus", "mxn": "0.84", "order": "ORDER"}, 400, "order"),
        ("/orgs/acme/credits", {"id": "r", "type": "bonus", "mxn": "0.84", "recharge": "x"}, 400, "recharge"),
        ("/orgs/acme/credits", {"id": "r", "type": "chargeback", "mxn": "0.84", "recharge": "x"}, 400, "recharge"),
        (
            "/orgs/acme/credits",
            {"id": "r", "type": "refund", "mxn": "840.00", "order": "ORDER", "reason": "x"},
            400,
            "mxn",
        ),
        ("/orders/ORDER/refund", {"reason": "x", "mxn": "840.00"}, 400, "mxn"),
        ("/orders/ORDER/refund", {"reason": "x", "mxn": "0.00"}, 400, "mxn"),
        ("/orders/ORDER/refund", {"reason": "x", "mxn": "-1.00"}, 400, "mxn"),
        ("/orders/ORDER/refund", {"reason": " x"}, 400, "reason"),
        ("/orders/ORDER/refund", {}, 400, "reason"),
        ("/orders/ORDER/refund", {"reason": "x", "order": "y"}, 400, "order"),
        ("/orders/nothing/refund", {"reason": "x"}, 404, None),
        ("/orders/11111111-1111-4111-8111-111111111111/refund", {"reason": "x"}, 404, None),
        ("/orders/11111111-1111-4111-8111-111111111111", None, 404, None),
        ("/orders/ghub_sk_live_nothing", None, 404, None),
    ],
)
async def test_a_wrong_refund_names_its_field(
    redis_url: str, tmp_path: Path, path: str, body: dict[str, str] | None, status: int, param: str | None
) -> None:
    """(rule 33) And gives nothing."""
    async with open_desk(redis_url, f"sqlite:///{tmp_path}/l.db") as desk:
        caller = await desk.books.org()
        order = await charged(desk, caller)
        sent = body and {name: text.replace("ORDER", order) for name, text in body.items()}
        reply = await desk.ask("POST" if body is not None else "GET", path.replace("ORDER", order), sent)
        assert (reply.status_code, reply.json()["error"]["param"]) == (status, param), reply.text
        assert (await desk.books.ledger.order(order)).refunds == ()


@pytest.mark.rule(2)
async def test_an_order_that_only_redis_could_know_is_503(redis_url: str, tmp_path: Path) -> None:
    """(rule 2) While Redis is not projected nobody can say that there is none; what the ledger has is shown."""
    async with open_desk(redis_url, f"sqlite:///{tmp_path}/l.db") as desk:
        order = await charged(desk, await desk.books.org())
        await desk.books.redis.flushall()
        assert (await desk.ask("GET", f"/orders/{uuid4()}")).status_code == 503
        shown = (await desk.ask("GET", f"/orders/{order}")).json()
        assert (shown["status"], shown["redis"]) == ("charged", None)
        assert shown["redis_away"] == "Redis is not projected yet"


async def test_idempotency_keys_are_an_actors_own(redis_url: str, ledger_url: str) -> None:
    """The same key of another administrator is another request."""
    async with open_desk(redis_url, ledger_url) as desk:
        assert (await desk.ask("POST", "/orgs", {"name": "a"}, "k")).status_code == 201
        token = mint(SECRET, ISSUER, "eva", "admin", utc_now(), timedelta(hours=1))
        desk.client.headers["authorization"] = f"Bearer {token}"
        assert (await desk.ask("POST", "/orgs", {"name": "b"}, "k")).status_code == 201
        assert [row["actor"] for row in await desk.audit("org.create")] == ["jwt:eva", "jwt:ana"]


async def test_a_refused_write_leaves_its_key_free(redis_url: str, ledger_url: str) -> None:
    """A refused write was not done: the corrected request may use the same key."""
    async with open_desk(redis_url, ledger_url) as desk:
        assert (await desk.ask("POST", "/orgs", {"name": "a", "plan": "gold"}, "k")).status_code == 400
        assert (await desk.ask("POST", "/orgs", {"name": "a"}, "k")).status_code == 201


@pytest.mark.parametrize("most", [1, 3, 100])
async def test_pages_show_every_row_once_while_rows_are_added(redis_url: str, ledger_url: str, most: int) -> None:
    """Organisations, keys and the audit log: whatever was there when the first page was asked for, in its order."""
    async with open_desk(redis_url, ledger_url) as desk:
        accounts = desk.books.accounts
        org = await accounts.create_org("org 0", "default")
        for number in range(1, 8):
            await accounts.create_org(f"org {number}", "default")
            await accounts.create_key("org 0", f"key {number}")
        lists = [
            ("/orgs", "name"),
            (f"/orgs/{org.org_id}/keys", "name"),
            ("/audit", "id"),
            ("/audit?org=org 0", "id"),
        ]
        added = 0
        for path, name in lists:
            expected = [row[name] for row in await desk.pages(path, 100)]
            sign = "&" if "?" in path else "?"
            found, cursor = [], ""
            while True:
                more = f"&cursor={cursor}" if cursor else ""
                page = (await desk.ask("GET", f"{path}{sign}limit={most}{more}")).json()
                found += [row[name] for row in page["data"]]
                cursor = page["next_cursor"]
                if cursor is None:
                    break
                if len(found) < len(expected):  # else a list that grows by a row for each page never ends
                    added += 1
                    await accounts.create_org(f"late {added}", "default")
                    await accounts.create_key("org 0", f"late {added}")
            assert [one for one in found if one in expected] == expected
            assert len(found) == len(set(found))


async def test_notices_of_one_moment_are_paged_without_a_gap(redis_url: str, ledger_url: str) -> None:
    """One order may reach several thresholds at once; money is printed, images are counted."""
    async with open_desk(redis_url, ledger_url) as desk:
        org = await desk.books.accounts.create_org("acme", "default")
        at = "2036-11-22T18:00:00.000001+00:00"
        told = [
            Notice(org.org_id, key_id, what, percent, "2036-11", 10_000_000, 8_000_000, moment)
            for key_id in ("", "key_a", "key_b")
            for what in ("images_per_day", "mxn_per_month")
            for percent in (80, 100)
            for moment in (at, at.replace("000001", "000002") if percent == 100 else at)
        ]
        await desk.books.ledger.book_notices(told)
        whole = await desk.pages("/orgs/acme/notices", 100)
        assert len(whole) == 12
        assert [row["at"] for row in whole] == sorted((row["at"] for row in whole), reverse=True)
        for most in (1, 2, 5):
            assert await desk.pages("/orgs/acme/notices", most) == whole
        money = next(row for row in whole if row["what"] == "mxn_per_month" and row["percent"] == 80)
        assert (money["limit"], money["used"]) == ("10.00", "8.00")
        images = next(row for row in whole if row["what"] == "images_per_day" and row["key_id"] is None)
        assert (images["limit"], images["used"]) == (10_000_000, 8_000_000)


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "W10",
        "WyJhIl0",
        "WzEsMl0",
        "eyJhIjoxfQ",
        "WyIxMjM0NTY3ODkwMTIzNDU2NzgiXQ",
        "WyJcdTAwMDAiLCJhIl0",
        "é",
        "_" * 1025,
    ],
)
@pytest.mark.parametrize("path", ["/orgs", "/orgs/acme/keys", "/orgs/acme/notices", "/audit"])
async def test_a_cursor_that_is_none_of_ours_is_400(redis_url: str, tmp_path: Any, path: str, cursor: str) -> None:
    """It names `cursor`, whatever is in it."""
    async with open_desk(redis_url, f"sqlite:///{tmp_path}/l.db") as desk:
        await desk.books.accounts.create_org("acme", "default")
        reply = await desk.ask("GET", f"{path}?cursor={cursor}")
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "cursor", reply.text


async def test_the_record_refuses_a_second_write_of_a_key_as_a_whole(redis_url: str, ledger_url: str) -> None:
    """The row of the idempotency key and what it did are one transaction: the second leaves nothing behind."""
    async with open_books(redis_url, ledger_url) as books:
        once = IdempotentWrite("k", "f")
        accounts = Accounts(books.ledger, books.projector, PLANS, MODELS, IVA, "ana", once)
        org = await accounts.create_org("a", "default")
        with pytest.raises(DatabaseRefused):
            await accounts.create_org("b", "default")
        assert [one.name for one in await books.ledger.orgs()] == ["a"]
        assert await books.ledger.written("ana", "k") == ("f", org.org_id)


@pytest.mark.parametrize(
    ("field", "kind", "micro"), [("type", "gift", 1), ("mxn", "refund", -1), ("mxn", "adjustment", 0)]
)
async def test_a_refusal_names_the_field(redis_url: str, tmp_path: Any, field: str, kind: str, micro: int) -> None:
    """In JSON's spelling; a command adds its dashes."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        await books.accounts.create_org("acme", "default")
        with pytest.raises(WrongField) as caught:
            await books.accounts.add_credit("acme", "p", kind, micro)
        assert caught.value.field == field and "--" not in caught.value.why


def test_a_key_is_written_down_nowhere(redis_url: str, tmp_path: Path) -> None:
    """Not even if somebody gives one as a name, an id or a source; and the refusal does not repeat it."""
    key = "ghub_sk_live_" + "a" * 32

    async def work() -> None:
        async with open_desk(redis_url, f"sqlite:///{tmp_path}/l.db") as desk:
            await desk.books.accounts.create_org("acme", "default")
            refused: list[tuple[str, str, Any, int]] = [
                ("POST", "/orgs", {"name": key}, 400),
                ("POST", "/orgs", {"name": f"/{key}"}, 400),
                ("POST", "/orgs", {"name": "a", "plan": key}, 400),
                ("POST", "/orgs/acme/keys", {"name": f"x {key}"}, 400),
                ("POST", "/orgs/acme/keys", {"name": "a", "models": [key]}, 400),
                ("POST", "/orgs/acme/credits", {"id": key, "type": "bonus", "mxn": "1.00"}, 400),
                ("POST", "/fx", {"month": "2041-01", "mxn_per_usd": "18", "source": f"from {key}"}, 400),
                ("GET", f"/orgs/{key}", None, 404),
                ("GET", f"/audit?org={key}", None, 404),
                ("POST", f"/keys/{key}/rotate", {"overlap_h": 1}, 404),
                ("POST", f"/keys/{key}/revoke", None, 404),
            ]
            for method, path, body, status in refused:
                reply = await desk.ask(method, path, body)
                assert reply.status_code == status and key not in reply.text, reply.text
            assert len(await desk.pages("/audit", 100)) == 1

    run(work())
    assert not any(key.encode() in file.read_bytes() for file in tmp_path.iterdir())


def test_without_redis_the_record_is_still_written_and_read(tmp_path: Path) -> None:
    """Redis is told later; only a balance is Redis' own to say: 503, to be asked again."""

    async def work(valkey: ValkeyServer) -> None:
        async with open_desk(valkey.url, f"sqlite:///{tmp_path}/l.db") as desk:
            valkey.stop()
            assert (await desk.ask("POST", "/orgs", {"name": "acme"})).status_code == 201
            assert (await desk.ask("POST", "/orgs/acme/keys", {"name": "web"})).json()["key"]
            assert [row["last_used_at"] for row in await desk.pages("/orgs/acme/keys", 10)] == [None]
            reply = await desk.ask("GET", "/orgs/acme/balance")
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "temporarily_unavailable")
            assert reply.headers["x-should-retry"] == "true"

    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        valkey = ValkeyServer(Path(folder))
        valkey.start()
        try:
            run(work(valkey))
        finally:
            valkey.stop()


async def test_while_the_ledger_is_away_only_a_safe_write_is_to_be_sent_again(redis_url: str, tmp_path: Path) -> None:
    """503; `x-should-retry` is true for a read, and for a write with an idempotency key, which then is done once."""
    async with open_desk(redis_url, f"sqlite:///{tmp_path}/l.db") as desk:
        holder = sqlite3.connect(tmp_path / "l.db", isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        body = {"name": "acme"}
        bare, keyed = await asyncio.gather(desk.ask("POST", "/orgs", body), desk.ask("POST", "/orgs", body, "k"))
        holder.close()
        for reply, retry in ((bare, "false"), (keyed, "true")):
            assert (reply.status_code, reply.headers["x-should-retry"]) == (503, retry), reply.text
            assert "locked" not in reply.text
        assert (await desk.ask("POST", "/orgs", body, "k")).status_code == 201
        assert len(await desk.audit("org.create")) == 1


async def test_a_keys_reading_format_and_pages_are_set_shown_and_kept_by_a_rotation(
    redis_url: str, tmp_path: Path
) -> None:
    """With their defaults, as in the audit log; what is wrong is a sentence that names the field."""
    async with open_desk(redis_url, str(tmp_path / "l.db")) as desk:
        await desk.books.accounts.create_org("acme", "default")

        async def made(**body: Any) -> tuple[Any, ...]:
            row = (await desk.ask("POST", "/orgs/acme/keys", {"name": "web", **body})).json()
            rotated = (await desk.ask("POST", f"/keys/{row['key_id']}/rotate", {"overlap_h": 1})).json()
            names = ("read", "response_format", "origins")
            rows = {one["key_id"]: one for one in await desk.pages("/orgs/acme/keys", 100)}
            told = {tuple(str(one[name]) for name in names) for one in (row, rotated, rows[rotated["key_id"]])}
            assert len(told) == 1
            return tuple(row[name] for name in names)

        assert await made() == ("org", "url", [])
        assert await made(models=["fal/flux-1.1-pro"]) == ("own", "url", [])
        assert await made(models=["fal/flux-1.1-pro"], read="org") == ("org", "url", [])
        asked: dict[str, Any] = {"read": "own", "response_format": "b64_json", "origins": ["https://a.mx"]}
        assert await made(**asked) == ("own", "b64_json", ["https://a.mx"])
        assert (await desk.audit("key.create"))[0]["details"].items() >= asked.items()
        for field, value in (
            ("read", "all"),
            ("response_format", "png"),
            ("origins", "https://a.mx"),
            ("origins", ["https://a.mx/"]),
            ("origins", [f"https://{number}.mx" for number in range(21)]),
        ):
            refused = await desk.ask("POST", "/orgs/acme/keys", {"name": "web", field: value})
            error = refused.json()["error"]
            assert (refused.status_code, error["param"]) == (400, field) and f"`{field}`" in error["message"]
