"""GET /v1/usage over real books: every grouping sums to the ledger's events, in Mexico days, as JSON and as CSV."""

import asyncio
import csv
import io
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from metering.events import Event
from metering.money import format_mxn, parse_mxn
from metering.ports import ApiKey
from metering.wallet.values import Caller
from proxy.api import usage
from proxy.api.auth import Authenticator
from proxy.api.middleware import RequestMiddleware
from proxy.api.reads import ReadRates, Reports
from proxy.api.usage import MAX_DAYS, Group, UsageEndpoint, csv_lines
from proxy.app import _api_error
from proxy.errors import ApiError
from tests.kits.books import ACT, NOON, Books, drain, event, hash_of, open_books
from tests.kits.limits import open_shop
from tests.kits.system import bearer

FORMULA = "=1+1"
SECRETS = {name: f"ghub_sk_live_{name * 32}" for name in "abz"}
GROUPS = [",".join(some) for count in range(4) for some in combinations(("day", "model", "key"), count)]
NOVEMBER = {"from": "2036-11-01", "to": "2036-11-30"}


@asynccontextmanager
async def served(books: Books) -> AsyncIterator[httpx2.AsyncClient]:
    """The endpoint behind the gateway's own middleware and envelope."""
    endpoint = UsageEndpoint(Authenticator(books.wallet, 10), books.wallet, books.ledger, ReadRates(), Reports())
    app = Starlette(routes=[Route("/v1/usage", endpoint.read)], exception_handlers={ApiError: _api_error})
    transport = httpx2.ASGITransport(RequestMiddleware(app))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


async def customers(books: Books) -> dict[str, Caller]:
    """One organisation with the keys `a` and `b`, another with `z`."""
    found = {}
    for org, names in (("acme", "ab"), ("other", "z")):
        org_id = (await books.accounts.create_org(org, "default")).org_id
        for name in names:
            label = FORMULA if name == "b" else f"key {name}"
            key = ApiKey(f"key_{name}", org_id, label, hash_of(SECRETS[name]), NOON.isoformat())
            await books.ledger.create_key(key, ACT)
            found[name] = Caller(org_id, key.key_id)
    await books.projector.round()
    return found


async def ask(client: httpx2.AsyncClient, key: str = "a", accept: str = "*/*", **query: str) -> httpx2.Response:
    return await client.get("/v1/usage", params=query, headers=bearer(SECRETS[key]) | {"accept": accept})


def history(callers: dict[str, Caller]) -> list[Event]:
    """Two months of two organisations, three models and all keys: charges, voids and orders at another price."""
    events = []
    for number in range(240):
        caller = callers["abz"[number % 3]]
        made = event(caller.org_id, number + 1, images=1 + number % 8, end="void" if number % 7 == 0 else "charge")
        day = f"2036-{10 + number % 2}-{1 + number % 30:02d}"
        model = ("fal/flux-1.1-pro", "openai/gpt-image-1", "xai/grok-2-image")[number % 5 % 3]
        unit = 333_333 + number
        opened = replace(
            made.opened,
            key_id=caller.key_id,
            day=day,
            month=day[:7],
            model=model,
            proof=replace(made.opened.proof, unit_micro_mxn=unit),
        )
        events.append(replace(made, opened=opened, amount_micro_mxn=made.quantity * unit))
    return events


@pytest.mark.parametrize("group_by", GROUPS)
async def test_every_grouping_sums_to_the_ledgers_events(redis_url: str, ledger_url: str, group_by: str) -> None:
    """Orders, images and money of each group, exactly; JSON and CSV alike, and nothing of another organisation."""
    by = [name for name in group_by.split(",") if name]
    async with open_books(redis_url, ledger_url) as books, served(books) as client:
        callers = await customers(books)
        await books.ledger.book(history(callers), [], NOON)
        wanted: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
        async for one in books.ledger.events(org_id=callers["a"].org_id):
            if one.end == "charge" and one.opened.month == "2036-11":
                whole = {"day": one.opened.day, "model": one.opened.model, "key": one.opened.key_id}
                figures = wanted[tuple(whole[name] for name in by)]
                figures[0], figures[1] = figures[0] + 1, figures[1] + one.quantity
                figures[2] += one.amount_micro_mxn
        reply = await ask(client, group_by=group_by, **NOVEMBER)
        assert reply.status_code == 200, reply.text
        document = reply.json()
        assert document["group_by"] == by
        assert {name: document[name] for name in ("object", "currency", "from", "to")} == {
            "object": "usage",
            "currency": "MXN",
            **NOVEMBER,
        }
        columns = [{"key": "key_id"}.get(name, name) for name in by]
        found = [(tuple(row[name] for name in columns), figures_of(row)) for row in document["data"]]
        assert found == sorted((group, tuple(figures)) for group, figures in wanted.items())
        assert figures_of(document["total"]) == tuple(map(sum, zip(*wanted.values(), strict=True)))
        names = {"key_name"} if "key" in by else set()
        assert all(set(row) == {*columns, *names, "orders", "images", "cost_mxn"} for row in document["data"])
        table = await ask(client, accept="text/csv", group_by=group_by, **NOVEMBER)
        assert table.headers["content-type"] == "text/csv; charset=utf-8"
        rows = list(csv.DictReader(io.StringIO(table.text, newline="")))
        assert [(tuple(row[name] for name in columns), figures_of(row)) for row in rows] == found
        if "key" in by:
            assert {row["key_name"] for row in document["data"]} == {"key a", FORMULA}
            assert {row["key_name"] for row in rows} == {"key a", f"'{FORMULA}"}  # no spreadsheet runs it


def figures_of(row: dict[str, Any]) -> tuple[int, int, int]:
    return int(row["orders"]), int(row["images"]), parse_mxn(row["cost_mxn"])


async def test_days_are_those_of_mexico_city(redis_url: str, ledger_url: str) -> None:
    """A second before 06:00 UTC is the day before; without dates it is this month, by day."""
    async with open_books(redis_url, ledger_url) as books, served(books) as client:
        shop = await open_shop(books)
        secret = await books.accounts.create_key(shop.org_id, "reads")
        for moment, name in (
            ("2036-11-01 05:59:59", "a1"),
            ("2036-11-01 06:00:00", "a2"),
            ("2036-11-23 05:59:59", "a3"),
            ("2036-11-23 06:00:00", "b4"),
        ):
            shop.at(moment)
            assert await shop.do(f"{name} {name[1]}") == "ADMITTED"
            assert await shop.do(f"settle {name} {name[1]}") == "CHARGED"
        await drain(books)
        reply = (await client.get("/v1/usage", headers=bearer(secret.secret))).json()
        assert (reply["from"], reply["to"]) == ("2036-11-01", "2036-11-30")
        assert [(row["day"], row["images"]) for row in reply["data"]] == [
            ("2036-11-01", 2),
            ("2036-11-22", 3),
            ("2036-11-23", 4),
        ]
        assert reply["total"] == {"orders": 3, "images": 9, "cost_mxn": format_mxn(9 * 840_000)}
        whole = {"from": "2036-10-31", "to": "2036-11-01", "group_by": ""}
        reply = (await client.get("/v1/usage", params=whole, headers=bearer(secret.secret))).json()
        assert reply["data"] == [{"orders": 2, "images": 3, "cost_mxn": "2.52"}]
        shop.at("2036-12-01 06:00:00")
        reply = (await client.get("/v1/usage", headers=bearer(secret.secret))).json()
        assert (reply["from"], reply["to"], reply["data"]) == ("2036-12-01", "2036-12-31", [])


LEAP_YEAR = {"from": "2036-01-01", "to": "2036-12-31"}


async def test_while_a_report_is_written_others_are_served(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest takes a second: in it the gateway's other requests go on."""
    served_others = threading.Event()
    loop = asyncio.get_running_loop()

    def written(by: Sequence[Group], items: Iterable[Mapping[str, Any]]) -> Iterator[str]:
        loop.call_soon_threadsafe(served_others.set)
        assert served_others.wait(10), "nothing else was done"
        return csv_lines(by, items)

    monkeypatch.setattr(usage, "csv_lines", written)
    async with open_books(redis_url, tmp_path / "l.db") as books, served(books) as client:
        await customers(books)
        reply = await ask(client, accept="text/csv", **LEAP_YEAR)
        assert reply.text == "day,orders,images,cost_mxn\r\n"


BAD = [
    ({"from": "2036-11-01"}, "to", "missing"),
    ({"to": "2036-11-01"}, "from", "missing"),
    ({"from": "2036-02-30", "to": "2036-03-01"}, "from", "YYYY-MM-DD"),
    ({"from": "2036-11-01", "to": "tomorrow"}, "to", "YYYY-MM-DD"),
    ({"from": "1782412958", "to": "2036-11-01"}, "from", "YYYY-MM-DD"),
    ({"from": "2036-1-1", "to": "2036-11-01"}, "from", "YYYY-MM-DD"),
    ({"from": "2036-11-02", "to": "2036-11-01"}, "to", "before"),
    ({"from": "2035-11-01", "to": "2036-11-01"}, "to", f"makes more than {MAX_DAYS} days"),
    ({"group_by": "day,colour"}, "group_by", "colour"),
    ({"group_by": "day,day"}, "group_by", "twice"),
    ({"group_by": "day,"}, "group_by", "none of"),
    ({"org": "another"}, "org", "not known"),
]


async def test_a_bad_value_is_named(redis_url: str, tmp_path: Path) -> None:
    """400 with the parameter, and what it may be; a whole leap year is taken."""
    async with open_books(redis_url, tmp_path / "l.db") as books, served(books) as client:
        await customers(books)
        for query, param, words in BAD:
            reply = await ask(client, **query)
            error = reply.json()["error"]
            assert (reply.status_code, error["code"], error["param"]) == (400, "invalid_request_error", param)
            assert f"`{param}`" in error["message"]
            assert words in error["message"]
        assert (await ask(client, **LEAP_YEAR)).status_code == 200


async def test_a_parameter_that_is_given_twice_and_a_key_that_is_none(redis_url: str, tmp_path: Path) -> None:
    """400 names it; without a key, or with a revoked one, 401; CSV if it is named and JSON has no higher weight."""
    async with open_books(redis_url, tmp_path / "l.db") as books, served(books) as client:
        await customers(books)
        twice = await client.get("/v1/usage?group_by=day&group_by=key", headers=bearer(SECRETS["a"]))
        assert (twice.status_code, twice.json()["error"]["param"]) == (400, "group_by")
        assert (await client.get("/v1/usage")).status_code == 401
        for accept, kind in (
            ("text/csv", "text/csv; charset=utf-8"),
            ("TEXT/CSV;q=0.9, */*", "text/csv; charset=utf-8"),
            ("application/json, text/csv", "application/json"),
            ("application/json;q=0.5, text/csv", "text/csv; charset=utf-8"),
            ("text/csv; q=0.8, application/json; charset=utf-8; q=0.9", "application/json"),
            ("text/csv;q=0, */*", "application/json"),
            ("", "application/json"),
        ):
            assert (await ask(client, accept=accept)).headers["content-type"] == kind
        await books.accounts.revoke_key("key_b")
        assert (await ask(client, key="b")).json()["error"]["code"] == "key_revoked"
