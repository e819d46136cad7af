"""One comparison of a month: the ledger against the books of providers, their prices, and the store."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx2
import orjson

from config.settings import SWEEP_AGE_S, SettingsError
from metering.clock import DAY_US
from metering.money import format_rate
from metering.ports import Act, HourSum, Placed, Reconciliation, WrongField
from metering.reconciliation.books import Bill, Cell, Ours, expected
from metering.reconciliation.by_id import ById, parts_of
from metering.reconciliation.calendars import CALENDARS, UNKNOWN, Calendar, Span, span_of
from metering.reconciliation.comparing import compare, known_without_books, of_total
from metering.reconciliation.findings import MEANINGS, Finding, Findings
from metering.unbooked import doubts
from proxy.backends import Backends
from proxy.ports import StoreFailed, StoreMisconfigured
from proxy.providers_books import fal, openai
from proxy.providers_books.invoice import Invoice
from proxy.providers_books.names import Names
from proxy.providers_books.reading import Books, BooksFailed
from proxy.storage.inventory import Inventory
from proxy.storage.opening import open_store
from proxy.storage.sweep import Sweep

NANO_USD = Decimal("0.000000001")
"""To which a figure is printed."""

Tell = Callable[[str, int], None]
"""Receives what was read, and how many since the last call."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What to compare. With `invoice`, only the books of `provider`; without `store`, no images."""

    month: str
    provider: str | None = None
    invoice: Path | None = None
    zone: str | None = None
    store: bool = True


@dataclass(slots=True)
class Side:
    """One provider, as far as it was compared. `billed_usd` is None if nobody gave its books."""

    provider: str
    zone: str
    zone_known: str
    until: str
    source: str | None = None
    sha256: str | None = None
    ledger_images: int = 0
    ledger_usd: Decimal = Decimal(0)
    billed_images: int | None = None
    billed_usd: Decimal | None = None
    credits_usd: Decimal = Decimal(0)
    taxes_usd: Decimal = Decimal(0)
    others_usd: Decimal = Decimal(0)


@dataclass(slots=True)
class Outcome:
    """What was compared, what is off, and what could not be read, a sentence each."""

    scope: Scope
    findings: Findings
    sides: list[Side] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def report(self, threshold_usd: Decimal) -> dict[str, Any]:
        """Return it as one JSON value. At most `findings.MAX_NAMED` are named; all are counted."""
        return {
            "month": self.scope.month,
            "ok": self.findings.within(threshold_usd) and not self.unread,
            "threshold_usd": usd_text(threshold_usd),
            "off_usd": usd_text(self.findings.off_usd),
            "providers": [_printed(asdict(side)) for side in self.sides],
            "totals": [
                {
                    "what": kind.value,
                    "count": total.count,
                    "images": total.images,
                    "usd": usd_text(total.usd),
                    "means": MEANINGS[kind],
                }
                for kind, total in self.findings.totals.items()
            ],
            "findings": [finding_row(one) for one in self.findings.named],
            "unread": self.unread,
        }


def usd_text(usd: Decimal) -> str:
    """Format USD: at least two decimals, at most nine."""
    return format_rate(usd.quantize(NANO_USD))


def finding_row(one: Finding) -> dict[str, Any]:
    """Format a finding by the names of its columns."""
    return {
        "what": one.kind.value,
        "provider": one.provider,
        "model": one.model,
        "day": "" if one.day is None else one.day.isoformat(),
        "images": one.images,
        "usd": usd_text(one.usd),
        "id": one.id,
        "detail": one.detail,
    }


async def reconcile(opened: Backends, scope: Scope, findings: Findings, now: datetime, tell: Tell) -> Outcome:
    """Compare. What cannot be read is named in the outcome. Raises LedgerAway, and WrongField for a wrong scope."""
    run = _Run(opened, Outcome(scope, findings), now, tell)
    await run.work()
    return run.outcome


async def keep(opened: Backends, outcome: Outcome, threshold_usd: Decimal, now: datetime) -> Reconciliation:
    """Write an outcome down."""
    report, scope = outcome.report(threshold_usd), outcome.scope
    kept = Reconciliation(
        month=scope.month,
        provider=scope.provider,
        ok=report["ok"],
        ledger_usd=usd_text(sum((side.ledger_usd for side in outcome.sides), Decimal(0))),
        billed_usd=usd_text(sum((side.billed_usd or Decimal(0) for side in outcome.sides), Decimal(0))),
        off_usd=report["off_usd"],
        findings=outcome.findings.count,
        report=orjson.dumps(report).decode(),
    )
    details = {"provider": scope.provider, "ok": kept.ok, "findings": kept.findings, "off_usd": kept.off_usd}
    return await opened.ledger.add_reconciliation(
        kept, now, Act(opened.actor, "reconcile", scope.month, details=details)
    )


class _Run:
    def __init__(self, opened: Backends, outcome: Outcome, now: datetime, tell: Tell) -> None:
        self._opened = opened
        self.outcome = outcome
        self._scope = outcome.scope
        self._add = outcome.findings.add
        self._now = now
        self._tell = tell

    async def work(self) -> None:
        scope, catalogue = self._scope, self._opened.catalogue
        spans = {name: self._span(name) for name in (CALENDARS if scope.provider is None else [scope.provider])}
        widest = min(spans.values(), key=lambda span: span.start_us)
        end_us = max(span.end_us for span in spans.values())
        sums = await self._opened.ledger.provider_sums(widest.months, widest.start_us, end_us)
        known = {model.provider for model in catalogue.models.values()} | {one.provider for one in sums}
        if scope.provider is not None and scope.provider not in known:
            raise WrongField("provider", f"{scope.provider!r} is none of {', '.join(sorted(known))}")
        self.outcome.unread += await doubts(self._opened.ledger, self._opened.redis, scope.month, None)
        for provider in sorted(known if scope.provider is None else {scope.provider}):
            await self._provider(provider, spans.get(provider) or self._span(provider), sums)
        if scope.store:
            await self._images()

    def _span(self, provider: str) -> Span:
        return span_of(self._scope.month, self._calendar(provider).zone, self._now)

    def _calendar(self, provider: str) -> Calendar:
        if self._scope.zone is not None:
            return Calendar(self._scope.zone, "--zone")
        return CALENDARS.get(provider, UNKNOWN)

    async def _provider(self, provider: str, span: Span, sums: Sequence[HourSum]) -> None:
        ours, calendar = expected(sums, provider, span), self._calendar(provider)
        side = Side(provider, calendar.zone, calendar.known, (span.end - timedelta(days=1)).isoformat())
        for (_, day), one in ours.items():
            if day is not None and day >= span.first:
                side.ledger_images += one.expected.images
                side.ledger_usd += one.expected.usd
        names = Names(provider, self._opened.catalogue.models, {model for model, _ in ours})
        try:
            billed = await self._books(provider, span, names, side, ours)
        except BooksFailed as error:
            self.outcome.unread.append(str(error))
            billed = False
        if side.ledger_images or side.ledger_usd or billed or ours:
            self.outcome.sides.append(side)
        for finding in known_without_books(provider, ours, billed=billed):
            self._add(finding)
        if provider == "fal":
            await self._prices(ours)

    async def _books(self, provider: str, span: Span, names: Names, side: Side, ours: Mapping[Cell, Ours]) -> bool:
        """Compare with a provider's books, if there are any. Raises BooksFailed."""
        settings = self._opened.settings
        if self._scope.invoice is not None:
            await self._invoice(self._scope.invoice, provider, span, names, side, ours)
            return True
        if provider == "openai" and (key := settings.openai_admin_key) is not None:
            headers = {"authorization": f"Bearer {key.get_secret_value()}"}
            async with _api("OpenAI", "GHUB_OPENAI_ADMIN_KEY", headers) as books:
                bill = await openai.bill(books, settings.openai_url, span, names, settings.openai_project)
            _note(side, bill, "usage/images and costs", books.sha256)
            for finding in compare(provider, span, ours, bill):
                self._add(finding)
            return True
        if ours:
            how = "GHUB_OPENAI_ADMIN_KEY is not set, and " if provider == "openai" else ""
            why = f"{how}nobody gave its invoice (--provider {provider} --invoice CSV)"
            self.outcome.unread.append(f"{provider}: its bill was not compared: {why}")
        return False

    async def _invoice(
        self, path: Path, provider: str, span: Span, names: Names, side: Side, ours: Mapping[Cell, Ours]
    ) -> None:
        invoice = Invoice.open(path, span, names)
        bill, lines = invoice.bill()
        _note(side, bill, path.name, invoice.sha256())
        self._tell("lines", lines)
        if not invoice.names_ids:
            for finding in compare(provider, span, ours, bill):
                self._add(finding)
            return
        for finding in of_total(provider, bill):
            self._add(finding)
        without_id = 0
        for part in parts_of(lines):
            by_id = ById(provider, span, part)
            by_id.take(invoice.lines())
            orders = self._opened.ledger.placed(provider, span.months, span.start_us - DAY_US, span.end_us + DAY_US)
            async for finding in by_id.compare(self._counted(orders)):
                self._add(finding)
            without_id += by_id.without_id
        if without_id:
            why = "and could not be looked for in the invoice"
            self.outcome.unread.append(f"{provider}: {without_id} charged orders have no id of the provider, {why}")

    async def _counted(self, orders: AsyncIterator[Placed]) -> AsyncIterator[Placed]:
        async for order in orders:
            self._tell("orders", 1)
            yield order

    async def _prices(self, ours: Mapping[Cell, Ours]) -> None:
        """Compare fal's prices of today with the catalogue's."""
        settings, models = self._opened.settings, self._opened.catalogue.models
        if (key := settings.fal_key) is None:
            return
        endpoints = [model.upstream for model in models.values() if model.provider == "fal" and model.priced]
        images: dict[str, int] = {}
        for (model, _), one in ours.items():
            images[model] = images.get(model, 0) + one.expected.images
        try:
            async with _api("fal", "GHUB_FAL_KEY", {"authorization": f"Key {key.get_secret_value()}"}) as books:
                found = await fal.prices(books, settings.fal_api_url, endpoints)
        except BooksFailed as error:
            self.outcome.unread.append(f"{error}: its prices were not compared")
            return
        for off in fal.drift(found, models, images):
            if isinstance(off, str):
                self.outcome.unread.append(off)
            else:
                self._add(off)

    async def _images(self) -> None:
        opened = self._opened
        try:
            async with open_store(opened.settings) as place:
                age = timedelta(seconds=SWEEP_AGE_S)
                sweep = Sweep(place.store, opened.ledger, opened.wallet(), opened.presence(), now=self._now, age=age)
                inventory = Inventory(
                    place.store, opened.ledger, sweep, self._scope.month, lambda count: self._tell("objects", count)
                )
                async for finding in inventory.run():
                    self._add(finding)
        except (StoreFailed, StoreMisconfigured, SettingsError) as error:
            self.outcome.unread.append(f"the store was not compared: {error}")
            return
        if inventory.unproven:
            self.outcome.unread.append(
                f"the store: {inventory.unproven} objects may still be charged: `ghub storage sweep` says why"
            )


@asynccontextmanager
async def _api(name: str, setting: str, headers: dict[str, str]) -> AsyncIterator[Books]:
    async with httpx2.AsyncClient(trust_env=False) as client:
        yield Books(client, name, setting, headers)


def is_zone(name: str) -> bool:
    """True for a zone of the database of zones."""
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        return False
    return True


def _note(side: Side, bill: Bill, source: str, sha256: str) -> None:
    side.source, side.sha256 = source, sha256
    side.billed_images = bill.images if bill.counts else None
    side.billed_usd = bill.usd
    side.credits_usd, side.taxes_usd, side.others_usd = bill.credits_usd, bill.taxes_usd, bill.others_usd


def _printed(values: dict[str, Any]) -> dict[str, Any]:
    return {name: usd_text(value) if isinstance(value, Decimal) else value for name, value in values.items()}
