"""A month against the providers' books, over real ledgers: what is planted is found, and nothing else."""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest

from config.settings import Settings
from metering.clock import utc_at
from metering.events import Event
from metering.ports import Org, Reconciliation, WrongField
from metering.reconciliation import by_id
from metering.reconciliation.calendars import span_of
from metering.reconciliation.findings import Finding, Findings, Kind
from proxy.backends import Backends
from proxy.reconciliation import Outcome, Scope, keep, reconcile
from tests.integration.test_provider_books import FAL_PRICES
from tests.kits.books import ACT, NOON, Books, open_books, sql
from tests.kits.provider_books import ADMIN_KEY, FAL_KEY, Orders, ProviderBooks, provider_books

NOW = datetime(2036, 12, 10, tzinfo=UTC)
SPAN = span_of("2036-11", "UTC", NOW)
KEYS: dict[str, Any] = {"openai_admin_key": ADMIN_KEY, "fal_key": FAL_KEY}


@dataclass(frozen=True, slots=True)
class Desk:
    """Books, and what compares them."""

    books: Books
    folder: Path
    url: str

    async def compare(self, scope: Scope, now: datetime = NOW, **settings: Any) -> Outcome:
        """Compare, as the command does."""
        found = Settings(**{"storage_url": f"file://{self.folder}/images", **settings})
        opened = Backends(found, self.books.ledger, self.books.redis, "cli:ana")
        return await reconcile(opened, scope, Findings(), now, lambda what, count: None)

    async def invoiced(self, rows: Sequence[dict[str, Any]], provider: str = "openai", **scope: Any) -> list[Finding]:
        """Compare with an invoice; all of it must have been read."""
        path = self.folder / "invoice.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        outcome = await self.compare(Scope("2036-11", provider, path, store=False, **scope))
        assert outcome.unread == []
        return outcome.findings.named


@asynccontextmanager
async def desk(redis_url: str, ledger_url: str, folder: Path, *orders: Event) -> AsyncIterator[Desk]:
    async with open_books(redis_url, ledger_url) as books:
        for org_id in {one.opened.org_id for one in orders}:
            await books.ledger.create_org(Org(org_id, org_id[:8], "default", NOON.isoformat()), ACT)
        await books.ledger.book(orders, [], NOW)
        yield Desk(books, folder, ledger_url)


def placed(org_id: str = "") -> Orders:
    return Orders(org_id or str(uuid4()))


def month() -> Orders:
    """Orders of every kind in a month of UTC, at its borders and around them, and in Mexico City's other months."""
    made = placed()
    for day in range(1, 31):
        for hour in (0, 4, 9, 17, 23):  # 2036-11-01T04:00Z is still October in Mexico City
            made.order(f"2036-11-{day:02d}T{hour:02d}:30:00", images=1 + (day + hour) % 3, ids=(f"req_{day}_{hour}",))
        made.order(
            f"2036-11-{day:02d}T12:00:00", upstream="gpt-image-2", measured=f"0.0{day:02d}", told=f"0.0{day:02d}"
        )
        made.order(f"2036-11-{day:02d}T23:59:55", ids=(f"req_{day}_late",))  # ends after midnight
        made.order(f"2036-11-{day:02d}T13:00:00", end="void")
    made.order("2036-10-31T23:59:59.999", seconds=0.001, ids=("req_first",))  # ends at midnight to the millisecond
    made.order("2036-10-31T23:59:59.998", seconds=0.001, ids=("req_before",))
    made.order("2036-11-01T00:00:00", seconds=0.001, ids=("req_border",))
    made.order("2036-11-30T23:59:59.999", seconds=0.0005, ids=("req_last",))
    made.order("2036-12-01T00:00:00", ids=("req_after",))
    made.order("2036-12-01T03:00:00", ids=("req_december",))  # November in Mexico City
    made.order("2036-11-05T10:00:00", provider="xai", upstream="grok-2-image", usd="0.07")
    return made


def rows_of(made: Orders, by: Callable[[Event], int], provider: str = "openai") -> list[dict[str, Any]]:
    """The provider's invoice: what was charged to it in its November, by the moment that it goes by, summed by day."""
    sums: dict[tuple[str, date], tuple[int, Decimal]] = defaultdict(lambda: (0, Decimal(0)))
    for one in made.made:
        day = utc_at(by(one)).date()
        if one.opened.provider == provider and one.end == "charge" and SPAN.first <= day < SPAN.end:
            images, usd = sums[one.opened.upstream, day]
            cost = Decimal(one.upstream_usd or 0) or Decimal(one.opened.proof.usd_per_image) * one.quantity
            sums[one.opened.upstream, day] = images + one.quantity, usd + cost
    return [
        {"date": day, "model": model, "images": images, "usd": f"{usd:f}"}
        for (model, day), (images, usd) in sorted(sums.items())
    ]


def lines_of(made: Orders, by: Callable[[Event], int]) -> list[dict[str, Any]]:
    """The same, a line for each request."""
    return [
        {
            "date": f"{utc_at(by(one)):%Y-%m-%dT%H:%M:%S.%fZ}",
            "model": one.opened.upstream,
            "images": one.quantity,
            "usd": f"{Decimal(one.upstream_usd or 0) or Decimal(one.opened.proof.usd_per_image) * one.quantity:f}",
            "request_id": orjson.loads(one.upstream_ids)[0],
        }
        for one in made.made
        if one.upstream_ids and one.end == "charge" and SPAN.first <= utc_at(by(one)).date() < SPAN.end
    ]


def _begun(one: Event) -> int:
    return one.admitted_us


def _ended(one: Event) -> int:
    return one.ended_us


def told(found: Sequence[Finding]) -> list[tuple[str, str, str, int, str]]:
    return [(one.kind.name, one.model, f"{one.day}", one.images, f"{one.usd.normalize():f}") for one in found]


@pytest.mark.parametrize("by", [_begun, _ended])
async def test_a_months_invoice_that_is_right(
    redis_url: str, ledger_url: str, tmp_path: Path, by: Callable[[Event], int]
) -> None:
    """Whether the provider goes by a call's beginning or its end, summed or by request, with days or without."""
    made = month()
    async with desk(redis_url, ledger_url, tmp_path, *made.made) as there:
        rows = rows_of(made, by)
        assert await there.invoiced(rows) == []
        assert await there.invoiced([{name: row[name] for name in ("date", "model", "usd")} for row in rows]) == []
        assert await there.invoiced([{name: row[name] for name in ("model", "images", "usd")} for row in rows]) == []
        named = placed(made.org_id)
        named.made = [one for one in made.made if one.upstream_ids]
        path = tmp_path / "lines.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, lines_of(named, by)[0].keys())
            writer.writeheader()
            writer.writerows(lines_of(named, by))
        outcome = await there.compare(Scope("2036-11", "openai", path, store=False))
        assert outcome.findings.named == []
        assert outcome.unread == [
            "openai: 30 charged orders have no id of the provider, and could not be looked for in the invoice"
        ]


Change = Callable[[list[dict[str, Any]]], Any]


def _row(rows: list[dict[str, Any]], day: int, model: str = "gpt-image-1") -> dict[str, Any]:
    return next(row for row in rows if row["model"] == model and row["date"] == date(2036, 11, day))


def _change(day: int, images: int, usd: str) -> Change:
    def change(rows: list[dict[str, Any]]) -> None:
        row = _row(rows, day)
        row["images"] += images
        row["usd"] = f"{Decimal(row['usd']) + Decimal(usd)}"

    return change


def _misdate(rows: list[dict[str, Any]]) -> None:
    _change(9, -2, "-0.38")(rows)
    _change(10, 2, "0.38")(rows)


def _of_another_month(rows: list[dict[str, Any]]) -> None:
    rows.append({"date": "2036-12-07", "model": "gpt-image-1", "images": 1, "usd": "0.19"})


def _of_no_order(rows: list[dict[str, Any]]) -> None:
    rows.append({"date": "2036-11-09", "model": "gpt-6-image", "images": 4, "usd": "0.76"})


def _dearer(rows: list[dict[str, Any]]) -> None:
    _row(rows, 9, "gpt-image-2")["usd"] = "0.90"


async def test_each_planted_item_is_found_in_sums_and_nothing_else(
    redis_url: str, ledger_url: str, tmp_path: Path
) -> None:
    """One order a day, begun and ended within it: so a sum says exactly what is off."""
    made = placed()
    for day in range(1, 31):
        made.order(f"2036-11-{day:02d}T10:00:00", images=3)
        made.order(f"2036-11-{day:02d}T11:00:00", upstream="gpt-image-2", measured="0.009", told="0.009")
    made.order("2036-11-09T12:00:00", end="void", asked=2)
    each = {
        "missing": [("NOT_BILLED", "gpt-image-1", "2036-11-08", 3, "-0.57")],
        "doubled": [("NO_ORDER", "gpt-image-1", "2036-11-08", 3, "0.57")],
        "doubled where there was a void": [
            ("NOT_CHARGED", "gpt-image-1", "2036-11-09", 2, "0.38"),
            ("NO_ORDER", "gpt-image-1", "2036-11-09", 1, "0.19"),
        ],
        "billed void": [("NOT_CHARGED", "gpt-image-1", "2036-11-09", 2, "0.38")],
        "mispriced": [("PRICE", "gpt-image-1", "2036-11-08", 0, "0.03")],
        "misdated": [("MISDATED", "gpt-image-1", "2036-11-10", 2, "0.38")],
        "orphaned": [("NO_ORDER", "gpt-6-image", "2036-11-09", 4, "0.76")],
        "of another month": [("NO_ORDER", "gpt-image-1", "2036-12-07", 1, "0.19")],
        "measured": [("PRICE", "gpt-image-2", "2036-11-09", 0, "0.891")],
    }
    changes: dict[str, Change] = {
        "missing": _change(8, -3, "-0.57"),
        "doubled": _change(8, 3, "0.57"),
        "doubled where there was a void": _change(9, 3, "0.57"),
        "billed void": _change(9, 2, "0.38"),
        "mispriced": _change(8, 0, "0.03"),
        "misdated": _misdate,
        "orphaned": _of_no_order,
        "of another month": _of_another_month,
        "measured": _dearer,
    }
    async with desk(redis_url, ledger_url, tmp_path, *made.made) as there:
        assert await there.invoiced(rows_of(made, _begun)) == []
        for name, change in changes.items():
            rows = rows_of(made, _begun)
            change(rows)
            assert told(await there.invoiced(rows)) == each[name], name


async def test_each_planted_item_is_found_by_its_id_and_nothing_else(
    redis_url: str, ledger_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a month with everything at its borders; also if the ids do not fit into memory at once."""
    made = month()
    made.made = [one for one in made.made if one.upstream_ids]
    made.order("2036-11-09T12:00:00", end="void", ids=("req_void",))
    made.order("2036-11-10T12:00:00", images=4, ids=("req_a", "req_b"))
    lines = [*lines_of(made, _begun)]
    lines[-1]["images"] = 2
    lines.append(lines[-1] | {"request_id": "req_b"})
    assert lines[-2]["request_id"] == "req_a"

    def without(name: str) -> list[dict[str, Any]]:
        return [line for line in lines if line["request_id"] != name]

    def changed(name: str, **values: Any) -> list[dict[str, Any]]:
        return [line | values if line["request_id"] == name else line for line in lines]

    other = lines[0] | {"images": 1, "usd": "0.19"}
    planted: list[tuple[list[dict[str, Any]], list[tuple[str, str, str, int, str]]]] = [
        (lines, []),
        (without("req_9_17"), [("NOT_BILLED", "gpt-image-1", "2036-11-09", 3, "-0.57")]),
        (without("req_b"), [("NOT_BILLED", "gpt-image-1", "2036-11-10", 0, "-0.38")]),
        (without("req_30_late"), []),  # it may be in December's invoice
        ([*lines, other | {"request_id": "req_first", "date": "2036-11-01"}], []),  # and this one in November's
        ([*lines, other | {"request_id": "req_9_17"}], [("TWICE", "gpt-image-1", "2036-11-09", 3, "0.57")]),
        (changed("req_9_17", usd="0.60"), [("PRICE", "gpt-image-1", "2036-11-09", 3, "0.03")]),
        ([*lines, other | {"request_id": "req_x"}], [("NO_ORDER", "gpt-image-1", "2036-11-01", 1, "0.19")]),
        ([*lines, other | {"request_id": "req_void"}], [
            ("NOT_CHARGED", "gpt-image-1", "2036-11-01", 1, "0.19"),
            ("MISDATED", "gpt-image-1", "2036-11-01", 1, "0.19"),
        ]),
        (changed("req_9_17", date="2036-11-21"), [("MISDATED", "gpt-image-1", "2036-11-21", 3, "0.57")]),
        (changed("req_9_late", date="2036-11-10"), []),
        (changed("req_9_late", date="2036-11-11"), [("MISDATED", "gpt-image-1", "2036-11-11", 1, "0.19")]),
        ([*lines, other | {"request_id": "req_december", "date": "2036-12-01"}], []),
        ([*lines, other | {"request_id": "req_december", "date": "2036-11-30"}], [
            ("MISDATED", "gpt-image-1", "2036-11-30", 1, "0.19")
        ]),
    ]  # fmt: skip
    async with desk(redis_url, ledger_url, tmp_path, *made.made) as there:
        for place, (rows, expected) in enumerate(planted):
            # In one part, and in many; each database does each of them every other time.
            at_once = 20 if (place + ledger_url.startswith("sqlite")) % 2 else by_id.IDS_AT_ONCE
            with monkeypatch.context() as patched:
                patched.setattr(by_id, "IDS_AT_ONCE", at_once)
                assert told(await there.invoiced(rows)) == expected, (at_once, place)


async def test_refunds_matter_to_no_provider_and_an_expiry_not_where_a_charge_came(
    redis_url: str, ledger_url: str, tmp_path: Path
) -> None:
    made = placed()
    one = made.order("2036-11-09T12:00:00", images=2)
    made.made.append(replace(one, number=2, end="expiry", quantity=0, amount_micro_mxn=0, images=(), reason="expired"))
    rows = rows_of(made, _begun)
    async with desk(redis_url, ledger_url, tmp_path, *made.made) as there:
        await there.books.ledger.refund(one.event_id, None, "blurred", NOW, ACT)
        assert await there.invoiced(rows) == []
        rows[0] |= {"images": 4, "usd": "0.76"}  # the expiry is no order of its own that could explain it
        assert told(await there.invoiced(rows)) == [("NO_ORDER", "gpt-image-1", "2036-11-09", 2, "0.38")]


async def test_an_invoice_in_another_zone(redis_url: str, ledger_url: str, tmp_path: Path) -> None:
    made = placed()
    made.order("2036-11-09T05:00:00", provider="xai", upstream="grok-2-image", usd="0.07")
    rows = [{"date": "2036-11-08", "model": "grok-2-image", "usd": "0.07"}]
    async with desk(redis_url, ledger_url, tmp_path, *made.made) as there:
        assert await there.invoiced(rows, "xai", zone="America/Los_Angeles") == []
        assert told(await there.invoiced(rows, "xai")) == [("MISDATED", "grok-2-image", "2036-11-08", 0, "0.07")]


async def test_an_invoices_total_is_that_of_its_lines(redis_url: str, ledger_url: str, tmp_path: Path) -> None:
    """With credits and taxes; a credit is no order."""
    made = placed()
    made.order("2036-11-09T12:00:00", images=2)
    rows = [
        *rows_of(made, _begun),
        {"date": "", "model": "service credit", "images": "", "usd": "-1.00"},
        {"date": "", "model": "VAT", "images": "", "usd": "0.10"},
        {"date": "", "model": "Total", "images": "", "usd": "-0.52"},
    ]
    async with desk(redis_url, ledger_url, tmp_path, *made.made) as there:
        assert await there.invoiced(rows) == []
        rows[-1]["usd"] = "-0.42"
        (found,) = await there.invoiced(rows)
        assert (found.kind, found.usd) == (Kind.TOTAL, Decimal("0.10"))
        assert found.detail == "it says -0.42, and its lines add up to -0.52"


def bill_all(books: ProviderBooks, made: Orders) -> None:
    for row in rows_of(made, _begun):
        books.bill(row["model"], row["date"], row["images"], row["usd"])
    books.prices = dict(FAL_PRICES)


async def test_openais_and_fals_own_books(redis_url: str, ledger_url: str, tmp_path: Path) -> None:
    """Nothing is off; what is planted is found; and what nobody has books of is named."""
    made = placed()
    for day in range(1, 31):
        made.order(f"2036-11-{day:02d}T10:00:00", images=3)
    made.order("2036-11-09T12:00:00", provider="fal", upstream="fal-ai/flux-pro/v1.1", usd="0.04")
    nobody = "its bill was not compared: nobody gave its invoice (--provider fal --invoice CSV)"
    with provider_books() as provider:
        async with desk(redis_url, ledger_url, tmp_path, *made.made) as there:
            bill_all(provider, made)
            settings = KEYS | {"openai_url": provider.url, "fal_api_url": provider.url}
            scope = Scope("2036-11", store=False)
            outcome = await there.compare(scope, **settings)
            assert outcome.findings.named == [] and outcome.unread == [f"fal: {nobody}"]
            fal, openai = outcome.sides
            assert (openai.ledger_usd, openai.billed_usd, openai.billed_images) == (
                Decimal("17.10"),
                Decimal("17.10"),
                90,
            )
            assert openai.sha256 is not None and len(openai.sha256) == 64 and fal.billed_usd is None
            provider.bill("gpt-image-1", date(2036, 11, 8), 3, "0.57")
            provider.usd["gpt-image-1", date(2036, 11, 20)] += Decimal("0.30")
            provider.prices["fal-ai/flux-pro/v1.1"] = ("0.05", "images")
            found = (await there.compare(scope, **settings)).findings
            assert told(found.named) == [
                ("PRICE", "fal-ai/flux-pro/v1.1", "None", 1, "0.01"),
                ("NO_ORDER", "gpt-image-1", "2036-11-08", 3, "0.57"),
                ("PRICE", "gpt-image-1", "2036-11-20", 0, "0.3"),
            ]
            assert found.off_usd == Decimal("0.88")


async def test_during_the_month_the_days_that_are_over_are_compared(
    redis_url: str, ledger_url: str, tmp_path: Path
) -> None:
    made = placed()
    for day in (1, 2, 3):
        made.order(f"2036-11-{day:02d}T10:00:00", images=3)
    with provider_books() as provider:
        async with desk(redis_url, ledger_url, tmp_path, *made.made) as there:
            for row in rows_of(made, _begun)[:2]:
                provider.bill(row["model"], row["date"], row["images"], row["usd"])
            scope, settings = Scope("2036-11", "openai", store=False), KEYS | {"openai_url": provider.url}
            outcome = await there.compare(scope, datetime(2036, 11, 3, 11, tzinfo=UTC), **settings)
            assert outcome.findings.named == [] and outcome.unread == []
            assert outcome.sides[0].until == "2036-11-02"
            outcome = await there.compare(scope, datetime(2036, 11, 4, 11, tzinfo=UTC), **settings)
            assert told(outcome.findings.named) == [("NOT_BILLED", "gpt-image-1", "2036-11-03", 3, "-0.57")]


async def test_what_cannot_be_read_is_named_and_the_rest_compared(
    redis_url: str, ledger_url: str, tmp_path: Path
) -> None:
    """A refused key, a store that is none, a wallet that nobody can ask."""
    made = placed()
    made.order("2036-11-09T12:00:00")
    with provider_books() as provider:
        async with desk(redis_url, ledger_url, tmp_path, *made.made) as there:
            wrong: dict[str, Any] = {"openai_admin_key": "sk-wrong", "fal_key": FAL_KEY, "openai_url": provider.url}
            outcome = await there.compare(Scope("2036-11"), **wrong, fal_api_url=provider.url, storage_url=None)
            assert outcome.unread[:2] == [
                "fal: the answer has no price of fal-ai/flux-pro/v1.1: its prices were not compared",
                "OpenAI: GHUB_OPENAI_ADMIN_KEY: the key is refused",
            ]
            assert outcome.unread[2].startswith("the store was not compared: GHUB_STORAGE_URL is not set")
            assert "sk-wrong" not in str(outcome.report(Decimal(0)))
            with pytest.raises(WrongField, match="provider: 'nobody' is none of fal, google, openai, xai"):
                await there.compare(Scope("2036-11", "nobody"))


async def test_the_store_has_what_was_charged_and_nothing_else(redis_url: str, ledger_url: str, tmp_path: Path) -> None:
    """A charge without its object, an object without a charge; other months' are not of this one."""
    made = placed()
    for day in (1, 15, 29):
        made.order(f"2036-11-{day:02d}T18:00:00", images=2)
    december = made.order("2036-12-05T18:00:00")
    images = tmp_path / "images"

    def put(path: str, at: datetime) -> Path:
        file = images / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
        os.utime(file, (at.timestamp(), at.timestamp()))
        return file

    files = {image.path: put(image.path, NOON) for one in made.made for image in one.images}
    files[december.images[0].path].unlink()
    async with desk(redis_url, ledger_url, tmp_path, *made.made) as there:
        scope = Scope("2036-11")

        async def found() -> list[tuple[Kind, str]]:
            outcome = await there.compare(scope)
            assert [one for one in outcome.unread if "nobody gave its invoice" not in one] == []
            return [(one.kind, one.id) for one in outcome.findings.named]

        assert await found() == []
        known = await there.books.accounts.create_org("acme", "default")
        orphan = f"{known.org_id}/{uuid4()}/0.png"
        put(orphan, NOON)
        put(f"{known.org_id}/{uuid4()}/0.png", NOON - timedelta(days=40))
        gone = made.made[1].images[1].path
        files[gone].unlink()
        assert sorted(await found(), key=str) == sorted([(Kind.ORPHAN, orphan), (Kind.NO_OBJECT, gone)], key=str)


async def test_a_result_is_kept_and_audited(redis_url: str, ledger_url: str, tmp_path: Path) -> None:
    made = placed()
    made.order("2036-11-09T12:00:00", images=2, told="0.40")
    async with desk(redis_url, ledger_url, tmp_path, *made.made) as there:
        ledger = there.books.ledger
        assert await ledger.reconciliations(None, 2**53, 10) == []
        kept = []
        for number in range(3):
            outcome = await there.compare(Scope("2036-11", "openai", store=False))
            opened = Backends(Settings(), ledger, there.books.redis, "cli:ana")
            kept.append(await keep(opened, outcome, Decimal(1), NOW + timedelta(hours=number)))
        assert await ledger.reconciliations(None, 2**53, 2) == kept[:0:-1]
        assert await ledger.reconciliations("2036-11", kept[1].id, 2) == [kept[0]]
        assert await ledger.reconciliations("2036-10", 2**53, 2) == []
        one = kept[0]
        assert (one.provider, one.ok, one.ledger_usd, one.billed_usd, one.off_usd, one.findings, one.actor) == (
            "openai",
            False,  # nobody gave its invoice
            "0.40",
            "0.00",
            "0.02",
            1,
            "cli:ana",
        )
        report = orjson.loads(one.report)
        assert report["findings"][0]["what"] == "price" and report["threshold_usd"] == "1.00"
        (audit, *_) = await ledger.audits(None, 2**53, 5, action="reconcile")
        assert (audit.actor, audit.target) == ("cli:ana", "2036-11")
        assert orjson.loads(audit.details) == {"provider": "openai", "ok": False, "findings": 1, "off_usd": "0.02"}


@pytest.mark.parametrize("statement", ["UPDATE reconciliations SET ok = NULL", "DELETE FROM reconciliations"])
async def test_results_are_append_only(redis_url: str, ledger_url: str, tmp_path: Path, statement: str) -> None:
    async with desk(redis_url, ledger_url, tmp_path) as there:
        await there.books.ledger.add_reconciliation(
            Reconciliation("2036-11", None, True, "0.00", "0.00", "0.00", 0, "{}"), NOW, ACT
        )
        with pytest.raises(Exception, match="append-only"):
            sql(ledger_url, statement)


async def test_a_big_report_is_bounded(redis_url: str, tmp_path: Path) -> None:
    """All findings are counted and passed on; the first of them are named."""
    passed: Counter[str] = Counter()
    findings = Findings(lambda one: passed.update([one.kind.name]))
    for number in range(10_000):
        findings.add(
            Finding(Kind.NO_ORDER, "openai", "gpt-image-1", SPAN.first, 1, Decimal("0.19"), "", f"req_{number}")
        )
    report = Outcome(Scope("2036-11"), findings).report(Decimal(0))
    assert passed == {"NO_ORDER": 10_000} and report["totals"][0]["count"] == 10_000
    assert len(report["findings"]) == 500 and len(orjson.dumps(report)) < 200_000
