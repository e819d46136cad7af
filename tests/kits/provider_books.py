"""A server with the books of providers: OpenAI's usage and costs by pages, fal's prices; and orders to compare with."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from metering.clock import period_at, unix_us_at
from metering.events import Event, Proof
from metering.pricing import FxRate, Price, quote
from tests.kits.books import BOOK, event, pictures

ADMIN_KEY, FAL_KEY = "sk-admin-" + "a" * 40, "f" * 36

DAYS_OF_A_PAGE = 7
"""However many are asked for: a month is five pages."""


@dataclass
class ProviderBooks:
    """What the providers bill: images and USD by model and day, other line items, and fal's prices with their units."""

    images: dict[tuple[str, date], int] = field(default_factory=dict)
    usd: dict[tuple[str, date], Decimal] = field(default_factory=dict)
    prices: dict[str, tuple[str, str]] = field(default_factory=dict)
    url: str = ""
    asked: list[str] = field(default_factory=list)

    def bill(self, model: str, day: date, images: int, usd: str) -> None:
        """Add to what OpenAI bills."""
        self.images[model, day] = self.images.get((model, day), 0) + images
        self.usd[model, day] = self.usd.get((model, day), Decimal(0)) + Decimal(usd)

    def page(self, kind: str, query: dict[str, list[str]]) -> dict[str, Any]:
        """Answer as OpenAI does, a week at a time."""
        first, end = (datetime.fromtimestamp(int(query[name][0]), UTC).date() for name in ("start_time", "end_time"))
        start = date.fromisoformat(query["page"][0].removeprefix("page_")) if "page" in query else first
        until = min(end, start + timedelta(days=DAYS_OF_A_PAGE))
        days = [start + timedelta(days=number) for number in range((until - start).days)]
        return {
            "object": "page",
            "data": [self._bucket(kind, day) for day in days],
            "has_more": until < end,
            "next_page": f"page_{until}" if until < end else None,
        }

    def _bucket(self, kind: str, day: date) -> dict[str, Any]:
        start = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
        if kind == "images":
            results: list[dict[str, Any]] = [
                {"object": "organization.usage.images.result", "images": count, "num_model_requests": 1, "model": model}
                for (model, of), count in self.images.items()
                if of == day
            ]
        else:
            results = [
                {
                    "object": "organization.costs.result",
                    "amount": {"value": float(usd), "currency": "usd"},
                    "line_item": item,
                    "project_id": None,
                }
                for (item, of), usd in self.usd.items()
                if of == day
            ]
        return {"object": "bucket", "start_time": start, "end_time": start + 86_400, "results": results}

    def pricing(self, query: dict[str, list[str]]) -> dict[str, Any]:
        """Answer as fal does."""
        rows = [
            {
                "endpoint_id": name,
                "unit_price": float(self.prices[name][0]),
                "unit": self.prices[name][1],
                "currency": "USD",
            }
            for name in query["endpoint_id"][0].split(",")
            if name in self.prices
        ]
        return {"prices": rows, "next_cursor": None, "has_more": False}


@contextmanager
def provider_books() -> Iterator[ProviderBooks]:
    """Run the server; `url` is what GHUB_OPENAI_URL and GHUB_FAL_API_URL must be."""
    books = ProviderBooks()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            books.asked.append(self.path)
            address = urlsplit(self.path)
            query, given = parse_qs(address.query), self.headers["authorization"]
            if address.path.startswith("/organization/") and given == f"Bearer {ADMIN_KEY}":
                status, answer = 200, books.page(address.path.rpartition("/")[2], query)
            elif address.path == "/models/pricing" and given == f"Key {FAL_KEY}":
                status, answer = 200, books.pricing(query)
            else:
                status, answer = 401, {}
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # its base names it so
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    books.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield books
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Orders:
    """Makes orders of one organisation, numbered as they come."""

    org_id: str
    made: list[Event] = field(default_factory=list)

    def order(
        self,
        at: str,
        *,
        provider: str = "openai",
        upstream: str = "gpt-image-1",
        seconds: float = 9,
        images: int = 1,
        asked: int | None = None,
        end: str = "charge",
        usd: str = "0.19",
        told: str | None = None,
        measured: str | None = None,
        ids: tuple[str, ...] = (),
    ) -> Event:
        """Make an order that began at a moment, in ISO 8601 and UTC, and took some seconds."""
        begun_us = unix_us_at(datetime.fromisoformat(at).replace(tzinfo=UTC))
        period, order_id = period_at(begun_us), str(uuid4())
        price = Price("m", Decimal(usd), Decimal("1.05"), BOOK)
        priced = quote(price, FxRate("2036-11", Decimal("20.00"), "test"), period, 1)
        made = event(self.org_id, len(self.made) + 1, images=images, end=end, name=order_id)
        proof = Proof("", usd, BOOK, "1.05", "20.00", "2036-11", "test", priced.unit_micro_mxn)
        opened = replace(
            made.opened,
            provider=provider,
            upstream=upstream,
            model=f"{provider}/{upstream}",
            images=asked or images,
            day=period.day,
            month=period.month,
            proof=proof,
        )
        quantity = images if end == "charge" else 0
        stored = tuple(
            replace(one, path=f"{self.org_id}/{order_id}/{i}.png") for i, one in enumerate(pictures(quantity))
        )
        made = replace(
            made,
            opened=opened,
            admitted_us=begun_us,
            ended_us=begun_us + round(seconds * 1_000_000),
            images=stored,
            amount_micro_mxn=quantity * priced.unit_micro_mxn,
            usd_measured=measured,
            upstream_ids=json.dumps(ids) if ids else None,
            upstream_usd=told,
        )
        self.made.append(made)
        return made
