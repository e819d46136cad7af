"""Statements over real books: every sum comes out, late charges too, and a closed month never changes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import get_args

import pytest

from metering.events import Event
from metering.money import parse_mxn
from metering.ports import ApiKey, NewCredit, NotThere, WrongField
from metering.statement import MAX_LINES, Line, Statement, SumsDiffer, read_statement
from metering.tax import tax_on
from proxy.messages import Language
from proxy.statements.page import page_of
from proxy.statements.pdf import pdf_of
from proxy.statements.sheet import sheet_of
from tests.kits.books import ACT, NOON, UNIT, Books, event, hash_of, open_books, sql

DECEMBER = datetime(2036, 12, 1, 6, tzinfo=UTC)
"""Midnight in Mexico City, when November 2036 is over."""

JANUARY = datetime(2037, 1, 1, 6, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Shop:
    """An organisation with the keys `a` and `b`, and its events, numbered."""

    books: Books
    org_id: str

    async def book(self, *events: Event, at: datetime = NOON) -> None:
        await self.books.ledger.book(events, [], at)

    async def close(self, month: str, at: datetime) -> None:
        await self.books.ledger.close_month(month, at, ACT)
        await self.books.ledger.seal_month(month, "{}", await self.books.ledger.month_sums(month), at)

    async def read(self, month: str = "2036-11", now: datetime = DECEMBER) -> Statement:
        return await read_statement(self.books.ledger, self.org_id, month, now)

    def order(self, number: int, day: str, *, key: str = "a", tags: str | None = None, images: int = 1) -> Event:
        made = event(self.org_id, number, images=images)
        model = ("fal/flux-1.1-pro", "openai/gpt-image-1")[number % 2]
        return replace(
            made,
            opened=replace(made.opened, key_id=f"key_{key}", day=day, month=day[:7], model=model, tags=tags),
        )

    async def credit(self, name: str, kind: str, mxn: str, at: datetime = NOON, **more: str) -> None:
        amount = parse_mxn(mxn)
        tax = tax_on(amount, Decimal("0.16")) if kind in ("recharge", "chargeback") else None
        new = NewCredit(name, self.org_id, kind, amount, tax=tax, **more)  # type: ignore[arg-type]  # kinds are texts here
        await self.books.ledger.add_credit(new, at, ACT)


async def open_shop(books: Books, name: str = "acme") -> Shop:
    org_id = (await books.accounts.create_org(name, "default")).org_id
    for key in "ab":
        await books.ledger.create_key(ApiKey(f"key_{key}", org_id, f"key {key}", hash_of(key), NOON.isoformat()), ACT)
    return Shop(books, org_id)


def amounts(lines: Sequence[Line]) -> dict[str, int]:
    return {line.id or line.name: line.amount_micro_mxn for line in lines}


async def test_every_sum_of_a_month_comes_out(redis_url: str, ledger_url: str) -> None:
    """By day, key, model and tag; opening + credits − charges = closing; recharges with IVA; the rate."""
    async with open_books(redis_url, ledger_url) as books:
        shop = await open_shop(books)
        await shop.credit("spei-1", "recharge", "500.00")
        await shop.credit("gift", "bonus", "50.00")
        await shop.credit("cb", "chargeback", "-100.00", recharge_id="spei-1")
        await shop.credit("fix", "adjustment", "-0.000001", reason="a cent")
        await shop.book(
            shop.order(1, "2036-11-01"),
            shop.order(2, "2036-11-01", key="b", tags='["web","toys"]', images=3),
            shop.order(3, "2036-11-30", key="b", tags='["web"]'),
            event(shop.org_id, 4, end="void"),
        )
        await books.ledger.refund(shop.order(3, "2036-11-30").event_id, None, "blurred", NOON, ACT)
        found = await shop.read()
        assert found.provisional and (found.org, found.own.orders, found.own.images) == ("acme", 3, 5)
        assert amounts(found.days) == {"2036-11-01": 4 * UNIT, "2036-11-30": UNIT}
        assert amounts(found.keys.shown) == {"key_a": UNIT, "key_b": 4 * UNIT}
        assert [line.name for line in found.keys.shown] == ["key b", "key a"]
        assert amounts(found.models.shown) == {"fal/flux-1.1-pro": 3 * UNIT, "openai/gpt-image-1": 2 * UNIT}
        assert amounts(found.tags.shown) == {"web": 4 * UNIT, "toys": 3 * UNIT}
        assert found.untagged == Line("", 1, 1, UNIT)
        assert found.sums.closing_micro_mxn == parse_mxn("446.639999")
        assert [(one.new.type, one.new.credit_id) for one in found.credits][:2] == [
            ("recharge", "spei-1"),
            ("bonus", "gift"),
        ]
        assert [(one.month, one.mxn_per_usd, one.orders) for one in found.rates] == [("2036-11", "20.00", 3)]
        paid = {one.type: (one.base_micro_mxn, one.iva_micro_mxn) for one in found.paid if one.iva_rate}
        assert paid == {
            "recharge": (parse_mxn("500.00"), parse_mxn("80.00")),
            "chargeback": (-parse_mxn("100.00"), -parse_mxn("16.00")),
        }


@pytest.mark.rule(37)
async def test_a_closed_month_is_the_same_for_ever(redis_url: str, ledger_url: str) -> None:
    """(rule 37) Whatever is renamed, booked, credited, completed or approved later; what is late stands in the next."""
    async with open_books(redis_url, ledger_url) as books:
        shop = await open_shop(books)
        await shop.credit("spei-1", "recharge", "500.00")
        await shop.book(shop.order(1, "2036-11-03", tags='["web"]'), shop.order(2, "2036-11-04", key="b"))
        await shop.close("2036-11", DECEMBER)
        closed = await shop.read()
        assert closed.closed_at == DECEMBER.isoformat() and closed.sums.closing_micro_mxn == parse_mxn("498.32")
        await books.ledger.rename(shop.org_id, "acme de México", DECEMBER, ACT)
        sql(ledger_url, "UPDATE api_keys SET name = 'renamed' WHERE id = 'key_a'")
        await books.accounts.complete_credit("spei-1", {"cp": "06600"})
        await shop.book(shop.order(3, "2036-11-03", tags='["web"]'), shop.order(4, "2036-12-01"), at=DECEMBER)
        await shop.credit("spei-2", "recharge", "10.00", NOON)
        assert await shop.read(now=JANUARY) == closed
        december = await shop.read("2036-12", JANUARY)
        assert (december.org, december.provisional) == ("acme de México", True)
        assert december.late == (Line("2036-11", 1, 1, UNIT),)
        assert amounts(december.days) == {"2036-12-01": UNIT} and amounts(december.tags.shown) == {}
        assert december.sums.opening_micro_mxn == closed.sums.closing_micro_mxn
        assert december.sums.charges_micro_mxn == 2 * UNIT == december.own.amount_micro_mxn + UNIT
        assert december.sums.closing_micro_mxn == parse_mxn("506.64")
        assert [one.new.credit_id for one in december.credits] == ["spei-2"]
        await shop.close("2036-12", JANUARY)
        assert (await shop.read("2036-12", JANUARY)) == replace(december, closed_at=JANUARY.isoformat())


async def test_a_month_may_begin_at_the_rate_of_the_month_before(redis_url: str, ledger_url: str) -> None:
    """Each rate has its month and its charges; orders without tags are counted at both."""
    async with open_books(redis_url, ledger_url) as books:
        shop = await open_shop(books)
        early = shop.order(1, "2036-11-01", tags='["web"]')
        proof = replace(early.opened.proof, fx_month="2036-10", mxn_per_usd="19.50", fx_source="DOF")
        graced = [replace(one, opened=replace(one.opened, proof=proof)) for one in (early, shop.order(2, "2036-11-01"))]
        await shop.book(*graced, shop.order(3, "2036-11-02"), shop.order(4, "2036-11-02", tags='["web"]', images=2))
        found = await shop.read()
        assert [(one.month, one.mxn_per_usd, one.source, one.orders, one.amount_micro_mxn) for one in found.rates] == [
            ("2036-10", "19.50", "DOF", 2, 2 * UNIT),
            ("2036-11", "20.00", "test", 2, 3 * UNIT),
        ]
        assert found.untagged == Line("", 2, 2, 2 * UNIT)


async def test_a_statement_is_of_one_organisation_and_of_its_time(redis_url: str, ledger_url: str) -> None:
    """Another's orders never stand in it; none before it began, none of the future; nothing at all is one, too."""
    async with open_books(redis_url, ledger_url) as books:
        shop = await open_shop(books)
        other = Shop(books, (await books.accounts.create_org("other", "default")).org_id)
        await shop.book(shop.order(1, "2036-11-03"))
        nothing = await other.read()
        assert (nothing.days, nothing.keys.shown, nothing.credits) == ((), (), ())
        assert [(one.mxn_per_usd, one.orders) for one in nothing.rates] == [("20.00", 0)]
        assert nothing.sums.closing_micro_mxn == 0
        with pytest.raises(NotThere, match="began after 2026-01"):
            await shop.read("2026-01")
        with pytest.raises(NotThere, match="no organisation"):
            await read_statement(books.ledger, "nobody", "2036-11", DECEMBER)
        with pytest.raises(WrongField, match="2037-01 has not begun"):
            await shop.read("2037-01")


async def test_lines_beyond_the_most_share_one(redis_url: str, ledger_url: str) -> None:
    """The cheapest keys are summed; of tags, which have no sum, it is said how many there are."""
    async with open_books(redis_url, ledger_url) as books:
        shop = await open_shop(books)
        many = MAX_LINES + 3
        await shop.book(
            *(
                shop.order(n, "2036-11-03", key=f"{n}", tags=f'["tag {n}"]', images=2 if n <= MAX_LINES else 1)
                for n in range(1, many + 1)
            )
        )
        found = await shop.read()
        assert (len(found.keys.shown), found.keys.others) == (MAX_LINES, 3)
        assert found.keys.rest == Line("", 3, 3, 3 * UNIT)
        assert (len(found.tags.shown), found.tags.others, found.tags.rest) == (MAX_LINES, 3, None)
        assert {line.images for line in found.tags.shown} == {2}


async def test_a_record_whose_sums_differ_gives_no_statement(redis_url: str, ledger_url: str) -> None:
    """A total that somebody changed by hand is named."""
    async with open_books(redis_url, ledger_url) as books:
        shop = await open_shop(books)
        await shop.book(shop.order(1, "2036-11-03"))
        sql(ledger_url, "UPDATE usage SET amount_micro_mxn = amount_micro_mxn + 1")
        with pytest.raises(SumsDiffer, match=r"by rate are 0\.84 MXN, and in all 0\.840001 MXN: see `ghub verify`"):
            await shop.read()


@pytest.mark.rule(37)
async def test_a_closed_months_files_are_the_same_bytes(redis_url: str, ledger_url: str) -> None:
    """(rule 37) HTML and PDF, after everything has got another name and late orders were booked."""
    async with open_books(redis_url, ledger_url) as books:
        shop = await open_shop(books)
        await shop.credit("spei-1", "recharge", "500.00")
        await shop.book(shop.order(1, "2036-11-03", tags='["web"]'), shop.order(2, "2036-11-04", key="b"))
        await shop.close("2036-11", DECEMBER)

        async def files() -> list[bytes]:
            sheets = [sheet_of(await shop.read(now=JANUARY), language) for language in get_args(Language)]
            return [page_of(sheet) for sheet in sheets] + [pdf_of(sheet, "2036-11") for sheet in sheets]

        before = await files()
        await books.ledger.rename(shop.org_id, "another", DECEMBER, ACT)
        sql(ledger_url, "UPDATE api_keys SET name = 'renamed'")
        await shop.book(shop.order(3, "2036-11-03", tags='["late"]'), at=DECEMBER)
        assert await files() == before
        assert "0.84" in before[0].decode()
