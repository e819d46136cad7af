"""Providers' books over real HTTP: answers in their forms, by pages, and answers that are none."""

import asyncio
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import httpx2
import orjson
import pytest

from config.catalogue import read_catalogue
from metering.reconciliation.books import Bill
from metering.reconciliation.calendars import span_of
from metering.reconciliation.findings import Finding, Kind
from proxy.providers_books import fal, openai, reading
from proxy.providers_books.names import Names
from proxy.providers_books.reading import Books, BooksFailed
from tests.conftest import LOOPBACK
from tests.kits.provider_books import ADMIN_KEY, FAL_KEY, ProviderBooks, provider_books
from tests.kits.raw_server import Peer, raw_server

MODELS = read_catalogue(None).models
SPAN = span_of("2036-11", "UTC", datetime(2036, 12, 10, tzinfo=UTC))
SHORT = span_of("2036-11", "UTC", datetime(2036, 11, 2, 10, tzinfo=UTC))
NAMES = Names("openai", MODELS, ["gpt-image-2"])
THIRD = date(2036, 11, 3)
START = 2109110400


async def billed(url: str, span: Any = SPAN, project: str | None = None) -> Bill:
    async with httpx2.AsyncClient(**LOOPBACK) as client:
        books = Books(client, "OpenAI", "GHUB_OPENAI_ADMIN_KEY", {"authorization": f"Bearer {ADMIN_KEY}"})
        return await openai.bill(books, url, span, NAMES, project)


async def test_a_month_of_openai_comes_by_pages() -> None:
    """Images by model and UTC day; costs by line item, of which those of other models are summed apart."""
    with provider_books() as books:
        books.bill("gpt-image-1", THIRD, 3, "0.57")
        books.images["gpt-image-2-2036-04-21", date(2036, 11, 30)] = 2
        books.usd["gpt-image-2, image output", date(2036, 11, 30)] = Decimal("0.1")
        books.usd["gpt-image-2, text input", date(2036, 11, 30)] = Decimal("0.02")
        books.usd["gpt-6, output", THIRD] = Decimal("7.5")
        found = await billed(books.url, project="proj_1")
    cells = {place: (one.images, one.usd) for place, one in found.cells.items()}
    assert cells == {
        ("gpt-image-1", THIRD): (3, Decimal("0.57")),
        ("gpt-image-2", date(2036, 11, 30)): (2, Decimal("0.12")),
    }
    assert found.others_usd == Decimal("7.5")
    assert len(books.asked) == 10
    assert all("start_time=2109110400&end_time=2111702400&bucket_width=1d" in one for one in books.asked)
    assert all("project_ids=proj_1" in one for one in books.asked)


def page(*buckets: Any, has_more: Any = False, next_page: Any = None) -> bytes:
    return orjson.dumps({"object": "page", "data": [*buckets], "has_more": has_more, "next_page": next_page})


def bucket(start: Any = START, *results: Any) -> dict[str, Any]:
    return {"object": "bucket", "start_time": start, "end_time": START + 86_400, "results": [*results]}


IMAGES = {"images": 1, "model": "gpt-image-1"}


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        (b"", "401 Unauthorized", "GHUB_OPENAI_ADMIN_KEY: the key is refused"),
        (b"", "403 Forbidden", "GHUB_OPENAI_ADMIN_KEY: the key is refused"),
        (b"", "302 Found\r\nlocation: http://127.0.0.1:9/", "the answer is 302"),
        (b"", "429 Too Many Requests", "the answer is 429"),
        (b"<html>", "200 OK", "not what its documentation says"),
        (b"[]", "200 OK", "not what its documentation says"),
        (b"[" * 100_000, "200 OK", "not what its documentation says"),
        (b" " * (reading.MAX_ANSWER_BYTES + 1), "200 OK", "too large"),
        (page(), "200 OK", "the answer has no 2036-11-01"),
        (page(bucket(), bucket()), "200 OK", "has 2036-11-01 twice"),
        (page(bucket(START + 3600)), "200 OK", "not what its documentation says"),
        (page(bucket(START - 86_400)), "200 OK", "not what its documentation says"),
        (page(bucket(float(START))), "200 OK", "not what its documentation says"),
        (page(bucket(START, IMAGES | {"images": 1.5})), "200 OK", "not what its documentation says"),
        (page(bucket(START, IMAGES | {"images": -1})), "200 OK", "not what its documentation says"),
        (page(bucket(START, IMAGES | {"model": None})), "200 OK", "not what its documentation says"),
        (page(bucket(START, "x")), "200 OK", "not what its documentation says"),
        (page(bucket(), has_more=True), "200 OK", "not what its documentation says"),
    ],
)
async def test_an_answer_that_is_none_is_a_sentence_without_the_key(answer: bytes, status: str, says: str) -> None:
    async def liar(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(f"HTTP/1.1 {status}\r\ncontent-length: {len(answer)}\r\n\r\n".encode() + answer)

    async with raw_server(liar) as server:
        with pytest.raises(BooksFailed, match=says) as told:
            await billed(server.url, SHORT)
    assert ADMIN_KEY not in str(told.value) and str(told.value).startswith("OpenAI: ")


@pytest.mark.parametrize(
    "amount",
    [None, {"value": "x", "currency": "usd"}, {"value": 1, "currency": "eur"}, {"value": True, "currency": "usd"}]
    + [{"value": 10**12, "currency": "usd"}],
)
async def test_a_cost_that_is_none(amount: Any) -> None:
    answers = [page(bucket()), page(bucket(START, {"amount": amount, "line_item": "gpt-image-1"}))]

    async def liar(peer: Peer) -> None:
        await peer.read_head()
        body = answers.pop(0)
        await peer.send(f"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)

    async with raw_server(liar) as server:
        with pytest.raises(BooksFailed, match="not what its documentation says"):
            await billed(server.url, SHORT)


async def test_pages_that_never_end_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cursor that was seen is refused at once; others, after the maximum."""
    monkeypatch.setattr(reading, "MAX_PAGES", 5)
    for cursor, says in (("same", "not what its documentation says"), ("new", "over 5 pages are none of a month")):
        asked = 0

        async def endless(peer: Peer, cursor: str = cursor) -> None:
            nonlocal asked
            await peer.read_head()
            asked += 1
            body = page(has_more=True, next_page=cursor if cursor == "same" else f"{asked}")
            await peer.send(
                f"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
            )

        async with raw_server(endless) as server:
            with pytest.raises(BooksFailed, match=says):
                await billed(server.url)
        assert asked == (2 if cursor == "same" else 6)


@pytest.mark.parametrize("part", ["head", "drip"])
async def test_a_slow_answer_ends_in_time(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that never pauses for as long as a read may."""
    monkeypatch.setattr(reading, "ANSWER_S", 0.5)

    async def slow(peer: Peer) -> None:
        await peer.read_head()
        if part == "drip":
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        while True:
            if part == "drip":
                await peer.send(b" ")
            await asyncio.sleep(0.05)

    async with raw_server(slow) as server:
        with pytest.raises(BooksFailed, match="OpenAI: the answer does not end; try again"):
            await asyncio.wait_for(billed(server.url), 10)


async def test_nobody_there_is_a_sentence() -> None:
    with pytest.raises(BooksFailed, match=r"OpenAI: no answer \(ConnectError\); try again"):
        await billed("http://127.0.0.1:9")


FAL_PRICES = {
    "fal-ai/flux-pro/v1.1": ("0.04", "images"),
    "fal-ai/flux-pro/v1.1-ultra": ("0.06", "image"),
    "fal-ai/recraft/v3/text-to-image": ("0.04", "images"),
    "fal-ai/recraft/v4.1/text-to-image": ("0.04", "images"),
    "fal-ai/recraft/v4.1/pro/text-to-image": ("0.25", "images"),
    "fal-ai/ideogram/v2": ("0.08", "images"),
    "fal-ai/stable-diffusion-v35-large": ("0.065", "megapixels"),
    "ideogram/v4": ("0.015", "megapixels"),
}


async def drifted(books: ProviderBooks, images: dict[str, int] | None = None) -> list[Finding | str]:
    async with httpx2.AsyncClient(**LOOPBACK) as client:
        reader = Books(client, "fal", "GHUB_FAL_KEY", {"authorization": f"Key {FAL_KEY}"})
        found = await fal.prices(reader, books.url, list(FAL_PRICES))
    return list(fal.drift(found, MODELS, images or {}))


async def test_fals_prices_are_the_catalogues() -> None:
    """Of every model that is sold; then one is dearer, one has another unit, and one has no price."""
    assert set(FAL_PRICES) == {model.upstream for model in MODELS.values() if model.provider == "fal" and model.priced}
    with provider_books() as books:
        books.prices = dict(FAL_PRICES)
        assert await drifted(books) == []
        books.prices["fal-ai/flux-pro/v1.1"] = ("0.055", "megapixels")
        books.prices["fal-ai/ideogram/v2"] = ("0.0001", "compute seconds")
        dearer, unit = await drifted(books, {"fal-ai/flux-pro/v1.1": 100})
        assert isinstance(dearer, Finding)
        assert (dearer.kind, dearer.model, dearer.images) == (Kind.PRICE, "fal-ai/flux-pro/v1.1", 100)
        assert dearer.usd == Decimal("1.5") and dearer.detail == "fal asks 0.055 per megapixels, the catalogue has 0.04"
        assert unit == (
            "fal: fal-ai/ideogram/v2 has a price per compute seconds, which cannot be compared with the catalogue's"
        )
        del books.prices["ideogram/v4"]
        with pytest.raises(BooksFailed, match="the answer has no price of ideogram/v4"):
            await drifted(books)


@pytest.mark.parametrize(
    "change",
    [
        {"currency": "EUR"},
        {"unit_price": "NaN"},
        {"unit_price": None},
        {"unit": 1},
        {"endpoint_id": "other"},
    ],
)
async def test_a_price_of_fal_that_is_none(change: dict[str, Any]) -> None:
    row = {"endpoint_id": "ideogram/v4", "unit_price": 0.015, "unit": "megapixels", "currency": "USD"} | change
    body = orjson.dumps({"prices": [row], "has_more": False, "next_cursor": None})

    async def liar(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)

    async with raw_server(liar) as server, httpx2.AsyncClient(**LOOPBACK) as client:
        reader = Books(client, "fal", "GHUB_FAL_KEY", {"authorization": f"Key {FAL_KEY}"})
        with pytest.raises(BooksFailed, match="fal: the answer is not what its documentation says") as told:
            await fal.prices(reader, server.url, ["ideogram/v4"])
    assert FAL_KEY not in str(told.value)
