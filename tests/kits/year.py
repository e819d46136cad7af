"""A year of a shop, made by a seed: organisations, prices, rates, orders, credits, and all that goes wrong with them.

It keeps accounts of its own, in plain dictionaries: what the books say is compared with them.
"""

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from uuid import UUID

import orjson

from config.catalogue import read_catalogue
from metering.clock import MEXICO, month_start_us, next_month, period_at, utc_at
from metering.events import Event, Opened, Proof, StoredImage
from metering.ledger.record import SqlLedger
from metering.money import format_rate, measured_micro_mxn, parse_mxn, unit_price_micro_mxn
from metering.ports import Act, ApiKey, ListPrice, MonthSums, NewCredit, Org
from metering.pricing import FxRate
from metering.tax import tax_on

MONTHS = [f"2025-{number:02d}" for number in range(1, 13)]
MARKUP = Decimal("1.05")
IVA = Decimal("0.16")
BOOKS = ("2025-01-01+year", "2025-07-01+year")
"""The price books of the two halves of the year: in the second every list price is a quarter higher."""

ACT = Act("year", "test", "test")


@dataclass(frozen=True, slots=True)
class Offered:
    """A model and its list price in a half of the year."""

    model: str
    provider: str
    upstream: str
    size: str
    usd: tuple[Decimal, Decimal]


@dataclass(slots=True)
class OrgYear:
    """One organisation as the year knows it. Sums are in micro-MXN, by month of posting."""

    org_id: str
    names: dict[str, str]
    keys: list[str]
    number: int = 0
    sums: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))

    def post(self, month: str, what: str, micro_mxn: int) -> None:
        """Add to what is posted to a month."""
        self.sums[month][what] += micro_mxn

    def expected(self, month: str) -> MonthSums:
        """Return what the books must say of a month."""
        opening = 0
        for before in sorted(self.sums):
            if before < month:
                sums = self.sums[before]
                opening += sum(sums[name] for name in _CREDITS) - sums["charges"]
        of = self.sums[month]
        recharges, bonuses, refunds, adjustments, chargebacks = (of[name] for name in _CREDITS)
        return MonthSums(
            self.org_id,
            opening,
            recharges,
            bonuses,
            refunds,
            adjustments,
            chargebacks,
            of["charges"],
            of["orders"],
            of["images"],
        )


_CREDITS = ("recharges", "bonuses", "refunds", "adjustments", "chargebacks")


class Year:
    """The year of `orgs` organisations, with about `orders` orders of each in a month."""

    def __init__(self, seed: int, orgs: int = 50, orders: int = 12) -> None:
        self.random = random.Random(seed)
        self._orders = orders
        self.orgs = [self._org(number) for number in range(orgs)]
        self.rates = {month: self._rate(month) for month in MONTHS}
        self.offered = [*_offered()]
        self.events: list[Event] = []
        self.late: list[Event] = []
        self.posted: dict[str, str] = {}
        self._open_recharges: dict[str, list[tuple[str, int]]] = defaultdict(list)
        self._charged: dict[str, list[Event]] = defaultdict(list)
        self._closed = ""

    async def begin(self, ledger: SqlLedger) -> None:
        """Write down what is there on the first day: organisations and keys, rates and prices."""
        at = _moment("2025-01", 1)
        for half, version in enumerate(BOOKS):
            prices = {one.model: ListPrice(one.model, one.usd[half]) for one in self.offered}
            await ledger.register_prices(version, MARKUP, [*prices.values()], at)
        for rate in self.rates.values():
            await ledger.add_rate(rate, at - timedelta(days=1))
        for org in self.orgs:
            await ledger.create_org(Org(org.org_id, org.names[MONTHS[0]], "default", at.isoformat()), ACT)
            for key_id in org.keys:
                hashed = sha256(key_id.encode()).hexdigest()
                key = ApiKey(key_id, org.org_id, f"key {key_id[-4:]}", hashed, at.isoformat())
                await ledger.create_key(key, ACT)

    async def month(self, ledger: SqlLedger, month: str) -> None:
        """Live through a month that is open: credits, orders, refunds, chargebacks and new names."""
        for org in self.orgs:
            await self._rename(ledger, org, month)
            await self._credits(ledger, org, month)
            events = [self._event(org, month, moment) for moment in self._moments(month)]
            held_back = [one for one in events if self.random.random() < 0.04]
            await self._book(ledger, org, [one for one in events if one not in held_back], month)
            self.late += held_back
            await self._refunds(ledger, org, month)

    async def after_close(self, ledger: SqlLedger, month: str) -> None:
        """What came too late for a month that is closed now is booked: it is posted to the next one."""
        self._closed, late = month, self.late
        self.late = []
        for org in self.orgs:
            of_it = [one for one in late if one.opened.org_id == org.org_id]
            await self._book(ledger, org, of_it, next_month(month))

    async def _book(self, ledger: SqlLedger, org: OrgYear, events: list[Event], posting: str) -> None:
        await ledger.book(events, [], utc_at(month_start_us(next_month(posting))) - timedelta(seconds=1))
        for one in events:
            self.events.append(one)
            self.posted[one.event_id] = posting
            if one.end != "charge":
                continue
            org.post(posting, "charges", one.amount_micro_mxn)
            org.post(posting, "orders", 1)
            org.post(posting, "images", one.quantity)
            self._charged[org.org_id].append(one)

    async def _credits(self, ledger: SqlLedger, org: OrgYear, month: str) -> None:
        draw, at = self.random, _moment(month, 2)
        name = f"{org.org_id[:8]}-{month}"
        amount = draw.choice([parse_mxn("500.00"), parse_mxn("1234.56"), parse_mxn("33.33")])
        new = NewCredit(f"spei-{name}", org.org_id, "recharge", amount, tax=tax_on(amount, IVA))
        await ledger.add_credit(new, at, ACT)
        org.post(month, "recharges", amount)
        if draw.random() < 0.3:
            await ledger.add_credit(NewCredit(f"bonus-{name}", org.org_id, "bonus", parse_mxn("50.00")), at, ACT)
            org.post(month, "bonuses", parse_mxn("50.00"))
        if draw.random() < 0.3:
            amount = draw.choice([-1, 1]) * draw.randrange(1, 5_000_000)
            new = NewCredit(f"adjust-{name}", org.org_id, "adjustment", amount, reason="a mistake of ours")
            await ledger.add_credit(new, at, ACT)
            org.post(month, "adjustments", amount)
        recharges = self._open_recharges[org.org_id]
        if recharges and draw.random() < 0.2:
            taken, was = recharges.pop(draw.randrange(len(recharges)))
            tax = tax_on(-was, IVA)
            new = NewCredit(f"back-{name}", org.org_id, "chargeback", -was, recharge_id=taken, tax=tax)
            await ledger.add_credit(new, at, ACT)
            org.post(month, "chargebacks", -was)
        recharges.append((f"spei-{name}", org.sums[month]["recharges"]))

    async def _refunds(self, ledger: SqlLedger, org: OrgYear, month: str) -> None:
        """Some of this month's orders and of those before, whole or in part; each once."""
        charged = self._charged[org.org_id]
        for one in self.random.sample(charged, min(len(charged), self.random.randrange(3))):
            charged.remove(one)
            part = None if self.random.random() < 0.5 else max(1, one.amount_micro_mxn // 3)
            end = utc_at(month_start_us(next_month(month)))
            at = end - self.random.choice([timedelta(microseconds=1), timedelta(days=1)])
            refund, _ = await ledger.refund(one.event_id, part, '=blurred, "twice"', at, ACT)
            org.post(month, "refunds", refund.amount_micro_mxn)

    async def _rename(self, ledger: SqlLedger, org: OrgYear, month: str) -> None:
        name = org.names[month]
        if month != MONTHS[0] and name != org.names[MONTHS[MONTHS.index(month) - 1]]:
            await ledger.rename(org.org_id, name, _moment(month, 1), ACT)

    def _org(self, number: int) -> OrgYear:
        org_id = str(UUID(int=self.random.getrandbits(128), version=4))
        first = f"Estudio Ñandú {number}" if number else "=HYPERLINK(0)"
        changes = self.random.choice([*MONTHS[1:], ""]) if number % 5 == 0 else ""
        names = {month: f"{first} SA de CV" if changes and month >= changes else first for month in MONTHS}
        return OrgYear(org_id, names, [f"key_{org_id[:8]}{place}" for place in range(2)])

    def _rate(self, month: str) -> FxRate:
        """From 16.5000 to 21.4999, of four decimals."""
        return FxRate(month, Decimal(self.random.randrange(165_000, 215_000)).scaleb(-4), f"DOF {month}")

    def _moments(self, month: str) -> Iterator[int]:
        """Yield when orders are admitted: at random, and on the first and the last millisecond of the month."""
        first, end = month_start_us(month), month_start_us(next_month(month))
        yield first
        yield end - 1_000
        for _ in range(self._orders):
            yield self.random.randrange(first, end)

    def _event(self, org: OrgYear, month: str, admitted_us: int) -> Event:
        draw, offer = self.random, self.random.choice(self.offered)
        org.number += 1
        half = 0 if month < "2025-07" else 1
        rate, usd = self.rates[month], offer.usd[half]
        unit = unit_price_micro_mxn(usd, MARKUP, rate.mxn_per_usd)
        period = period_at(admitted_us)
        assert period.month == month
        tags = draw.choice([None, ["otoño"], ["web", "=1+1"], ["web"]])
        order_id = str(UUID(int=draw.getrandbits(128), version=4))
        asked = draw.randrange(1, 5)
        end = draw.choices(["charge", "void", "expiry"], [20, 1, 1])[0]
        quantity = draw.randrange(1, asked + 1) if end == "charge" else 0
        measured = usd * quantity * Decimal("0.9") if end == "charge" and offer.provider == "xai" else None
        amount = unit * quantity
        if measured is not None:
            amount = measured_micro_mxn(measured, MARKUP, rate.mxn_per_usd, amount)
        factors = [*map(format_rate, (usd, MARKUP, rate.mxn_per_usd))]
        opened = Opened(
            request_id=order_id,
            org_id=org.org_id,
            key_id=draw.choice(org.keys),
            model=offer.model,
            provider=offer.provider,
            upstream=offer.upstream,
            size=offer.size,
            quality=None,
            images=asked,
            day=period.day,
            month=month,
            region="mx-central",
            proof=Proof("", factors[0], BOOKS[half], factors[1], factors[2], month, rate.source, unit),
            end_user=draw.choice([None, "0" * 32, "f" * 32]),
            tags=None if tags is None else orjson.dumps(tags).decode(),
            metadata=draw.choice([None, '{"proyecto":"navidad"}']),
        )
        return Event(
            number=org.number,
            opened=opened,
            end=end,  # type: ignore[arg-type]  # one of the three
            reason="delivered" if end == "charge" else "no_answer",
            quantity=quantity,
            amount_micro_mxn=amount,
            admitted_us=admitted_us,
            ended_us=admitted_us + draw.randrange(1_000_000, 20_000_000),
            images=tuple(
                StoredImage(f"{org.org_id}/{order_id}/{i}.png", "image/png", 1_000 + i, "0" * 64, 1024, 1024)
                for i in range(quantity)
            ),
            usd_measured=None if measured is None else format_rate(measured),
            upstream_ids=orjson.dumps([f"up-{order_id[:13]}"]).decode(),
            upstream_usd=format_rate(usd * quantity if measured is None else measured) if quantity else None,
        )


def _offered() -> Iterator[Offered]:
    """Every model that has a price, in the size that is listed first."""
    for name, model in read_catalogue(None).models.items():
        size = next(iter(model.sizes))
        quality = next(iter(model.qualities.values()), None)
        listed = model.listed(size, quality)
        if listed is not None:
            usd = listed.usd_per_image
            yield Offered(name, model.provider, model.upstream, size, (usd, usd * Decimal("1.25")))


def _moment(month: str, day: int) -> datetime:
    return datetime(int(month[:4]), int(month[5:]), day, 9, tzinfo=MEXICO).astimezone(UTC)
