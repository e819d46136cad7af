"""Money in and out: what enters a wallet, what was paid for it with IVA, chargebacks, lists, and what is owed."""

import sqlite3
from contextlib import suppress
from decimal import Decimal
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from config.catalogue import CatalogueError
from metering.accounts import Accounts
from metering.clock import period_at, unix_us_at, utc_now
from metering.ledger.queries import migrations
from metering.money import format_mxn, parse_mxn
from metering.pages import pages
from metering.ports import Credit, CreditKey, LedgerError, NewCredit, NotThere, WrongField
from metering.tax import IvaRates, Tax, read_iva, tax_on
from tests.kits.books import ACT, MODELS, NOON, PLANS, UNIT, Books, drain, open_books, sql


def key_of(credit: Credit) -> CreditKey:
    return CreditKey(credit.at, credit.new.org_id, credit.number)


async def listed(books: Books, org_id: str | None = None, most: int = 3, **which: str) -> list[Credit]:
    """Read all credits in pages of a few."""
    found: list[Credit] = []
    while page := await books.ledger.credits(org_id, key_of(found[-1]) if found else None, most, **which):  # type: ignore[arg-type]
        found += page
    return found


async def test_credits_are_listed_with_the_balance_after_each(redis_url: str, ledger_url: str) -> None:
    """Latest first, of one organisation or of all, each once however they are paged; charges are in the balance."""
    async with open_books(redis_url, ledger_url) as books:
        acme, other = await books.org("acme"), await books.org("other")
        for number in range(3):
            await books.charge(acme, str(uuid4()))
            await drain(books)
            await books.accounts.add_credit(acme.org_id, f"spei-{number}", "recharge", parse_mxn("100.00"))
        await books.accounts.add_credit(other.org_id, "gift", "bonus", UNIT, reason="a fair")
        its_own = await listed(books, acme.org_id)
        assert [one.new.credit_id for one in its_own] == ["spei-2", "spei-1", "spei-0", "first-acme"]
        balances = [format_mxn(one.balance_micro_mxn or 0) for one in its_own]
        assert balances == ["305.88", "206.72", "107.56", "8.40"]
        assert [one.number for one in its_own] == [4, 3, 2, 1] and {one.actor for one in its_own} == {"test"}
        everyone = await listed(books)
        assert [one.new.credit_id for one in everyone[:1]] == ["gift"] and everyone[0].new.reason == "a fair"
        assert len(everyone) == len({key_of(one) for one in everyone}) == 6
        assert [one.new.credit_id for one in await listed(books, kind="bonus")] == ["gift"]
        assert await listed(books, end_at=its_own[-1].at) == []


@pytest.mark.parametrize(
    ("mxn", "rate", "base", "iva", "total"),
    [
        ("500.00", "0.16", "500.00", "80.00", "580.00"),
        ("0.01", "0.16", "0.01", "0.00", "0.01"),
        ("0.05", "0.16", "0.05", "0.01", "0.06"),
        ("33.33", "0.08", "33.33", "2.67", "36.00"),
        ("100.005", "0.16", "100.01", "16.00", "116.01"),
        ("-500.00", "0.16", "-500.00", "-80.00", "-580.00"),
        ("9007199254.74", "0.16", "9007199254.74", "1441151880.76", "10448351135.50"),
    ],
)
def test_iva_is_rounded_to_a_cent_once(mxn: str, rate: str, base: str, iva: str, total: str) -> None:
    tax = tax_on(parse_mxn(mxn), Decimal(rate))
    amounts = tax.base_micro_mxn, tax.iva_micro_mxn, tax.total_micro_mxn
    assert tuple(map(format_mxn, amounts)) == (base, iva, total)


async def test_what_was_paid_stands_beside_what_enters_the_wallet(redis_url: str, ledger_url: str) -> None:
    """IVA never enters it; bonuses, refunds and adjustments have none."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org(mxn="500.00")
        order = str(uuid4())
        await books.charge(caller, order)
        await drain(books)
        await books.accounts.add_credit(caller.org_id, "b", "bonus", UNIT)
        await books.accounts.add_credit(caller.org_id, "a", "adjustment", -1)
        await books.accounts.refund(order, "blurred")
        assert (await books.cut(caller)).credits_micro_mxn == parse_mxn("501.679999")
        taxes = {one.new.type: one.new.tax for one in await listed(books, caller.org_id)}
        assert taxes.pop("recharge") == Tax(parse_mxn("500.00"), Decimal("0.16"), parse_mxn("80.00"))
        assert taxes == {"bonus": None, "adjustment": None, "refund": None}


@pytest.mark.rule(10)
async def test_a_chargeback_takes_a_recharge_back(redis_url: str, ledger_url: str) -> None:
    """(rule 10) At most the recharge, at its rate; below zero, if it was spent; counted once by its id."""
    async with open_books(redis_url, ledger_url) as books:
        caller, other = await books.org("acme", "8.40"), await books.org("other")
        await books.charge(caller, str(uuid4()), 8)
        await drain(books)
        add = partial(books.accounts.add_credit, caller.org_id)
        for wrong in ("none", "first-other"):
            with pytest.raises(WrongField, match="recharge: "):
                await add("cb", "chargeback", UNIT, recharge=wrong)
        with pytest.raises(WrongField, match=r"mxn: recharge 'first-acme' was of 8\.40 MXN; 8\.40 MXN of it are left"):
            await add("cb", "chargeback", parse_mxn("8.400001"), recharge="first-acme")
        assert await add("cb", "chargeback", parse_mxn("8.00"), recharge="first-acme", reason="fraud")
        assert not await add("cb", "chargeback", -parse_mxn("8.00"), recharge="first-acme", reason="fraud")
        with pytest.raises(WrongField, match=r"0\.40 MXN of it are left"):
            await add("cb2", "chargeback", UNIT, recharge="first-acme")
        assert await add("cb2", "chargeback", parse_mxn("0.40"), recharge="first-acme")
        assert (await books.cut(caller)).available_micro_mxn == -8 * UNIT
        first = await books.ledger.credit("cb")
        assert (first.new.amount_micro_mxn, first.new.recharge_id) == (-parse_mxn("8.00"), "first-acme")
        assert first.new.tax == Tax(-parse_mxn("8.00"), Decimal("0.16"), -parse_mxn("1.28"))
        assert first.balance_micro_mxn == parse_mxn("8.40") - 8 * UNIT - parse_mxn("8.00")
        with pytest.raises(WrongField, match="recharge: a chargeback names"):
            await add("x", "chargeback", UNIT)
        with pytest.raises(WrongField, match=r"id: credit 'cb' exists already"):
            await add("cb", "chargeback", parse_mxn("8.00"), recharge="first-other")
        with pytest.raises(WrongField, match="recharge: only a chargeback"):
            await add("x", "recharge", UNIT, recharge="first-acme")
        assert (await books.cut(other)).available_micro_mxn == parse_mxn("8.40")


async def test_facts_for_a_tax_document_are_completed_later(redis_url: str, ledger_url: str) -> None:
    """As rows: the last of each name holds, and the earlier ones stay. Wrong ones are told by their form."""
    async with open_books(redis_url, ledger_url) as books:
        await books.org()
        complete = books.accounts.complete_credit
        for name, value in (("rfc", "xaxx010101000"), ("cp", "0660"), ("uso_cfdi", "G3"), ("cfdi", "5f0c"), ("x", "y")):
            with pytest.raises(WrongField, match=f"{name}: "):
                await complete("first-acme", {name: value})
        with pytest.raises(NotThere, match="no credit 'nothing'"):
            await complete("nothing", {"cp": "06600"})
        assert await complete("first-acme", {"rfc": "XAXX010101000", "cp": "06600"})
        assert await complete("first-acme", {"cp": "06700"})
        assert not await complete("first-acme", {"cp": "06700"})
        assert (await books.ledger.credit("first-acme")).facts == {"rfc": "XAXX010101000", "cp": "06700"}
        assert sql(ledger_url, "SELECT name, value FROM credit_facts ORDER BY id") == [
            ("rfc", "XAXX010101000"),
            ("cp", "06600"),
            ("cp", "06700"),
        ]


async def test_what_is_owed_is_credits_less_charges_at_a_days_end(redis_url: str, ledger_url: str) -> None:
    """By the order's own day (rule 24): before a day's end nothing of the next day is known."""
    async with open_books(redis_url, ledger_url) as books:
        acme, other = await books.org("acme"), await books.org("other", "1.00")
        await books.charge(acme, str(uuid4()), 2)
        await drain(books)
        today, scripted = period_at(unix_us_at(utc_now())).day, period_at(unix_us_at(NOON)).day

        async def owed(day: str) -> dict[str, str]:
            found = [one async for page in pages(partial(books.ledger.balances_at, day, most=1)) for one in page]
            return {one.name: format_mxn(one.balance_micro_mxn) for one in found}

        assert await owed(scripted) == {"acme": "6.72", "other": "1.00"}
        assert await owed(today) == {"acme": "8.40", "other": "1.00"}, "the order is of a later day"
        assert await owed("2020-01-01") == {}, "nobody was there"
        assert other.org_id


@pytest.mark.parametrize(
    ("day", "org", "rate"),
    [
        ("2026-06-30", "acme", "0.16"),
        ("2026-07-01", "acme", "0.08"),
        ("2026-12-31", "acme", "0.08"),
        ("2027-01-01", "acme", "0.17"),
        ("2026-12-31", "other", "0.16"),
        ("2009-12-31", "acme", None),
    ],
)
def test_a_rate_holds_from_its_day_to_its_last(tmp_path: Path, day: str, org: str, rate: str | None) -> None:
    """That of the organisation before the general one."""
    file = tmp_path / "tax.toml"
    file.write_text(
        "iva = [\n"
        '  {from = 2010-01-01, rate = "0.16"}, {from = 2027-01-01, rate = "0.17"},\n'
        '  {org = "acme", from = 2026-07-01, to = 2026-12-31, rate = "0.08"},\n'
        "]\n"
    )
    found = read_iva(file).rate_for("id-of-" + org, org, day)
    assert found == (None if rate is None else Decimal(rate))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('[[iva]]\nfrom = 2026-01-01\nrate = "1.16"\n', "iva.0.rate"),
        ('[[iva]]\nrate = "0.16"\n', "iva.0.from"),
        ('[[iva]]\nfrom = 2026-01-02\nto = 2026-01-01\nrate = "0.16"\n', "is before `from`"),
        ("", "iva"),
    ],
)
def test_a_wrong_tax_file_names_the_field(tmp_path: Path, text: str, names: str) -> None:
    file = tmp_path / "tax.toml"
    file.write_text(text)
    with pytest.raises(CatalogueError, match=rf"GHUB_TAX: .*{names}"):
        read_iva(file)


async def test_without_a_rate_a_recharge_is_refused(redis_url: str, ledger_url: str) -> None:
    """In a sentence, and nothing enters; a bonus needs none."""
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org(mxn="0.00")
        accounts = Accounts(books.ledger, books.projector, PLANS, MODELS, IvaRates(()), "test")
        with pytest.raises(LedgerError, match=r"GHUB_TAX: no rate of IVA holds on 20..-..-.. for acme"):
            await accounts.add_credit(caller.org_id, "p", "recharge", UNIT)
        assert await accounts.add_credit(caller.org_id, "b", "bonus", UNIT)
        assert (await books.cut(caller)).credits_micro_mxn == UNIT


@pytest.mark.rule(3)
@pytest.mark.parametrize("statement", ["UPDATE credit_facts SET value = 'x'", "DELETE FROM credit_facts"])
async def test_facts_are_append_only(redis_url: str, ledger_url: str, statement: str) -> None:
    """(rule 3) Also for who goes around the program."""
    async with open_books(redis_url, ledger_url) as books:
        await books.org()
        await books.accounts.complete_credit("first-acme", {"cp": "06600"})
        with suppress(Exception):
            sql(ledger_url, statement)
        assert (await books.ledger.credit("first-acme")).facts == {"cp": "06600"}


@pytest.mark.rule(3)
@pytest.mark.parametrize(
    "columns",
    [
        {"type": "'chargeback'", "amount_micro_mxn": "1", "recharge_id": "'first-acme'"},
        {"type": "'chargeback'", "amount_micro_mxn": "-1"},
        {"type": "'bonus'", "amount_micro_mxn": "-1"},
        {"type": "'bonus'", "base_micro_mxn": "10000", "iva_rate": "'0.16'", "iva_micro_mxn": "0"},
        {"type": "'recharge'", "base_micro_mxn": "10001", "iva_rate": "'0.16'", "iva_micro_mxn": "0"},
        {"type": "'recharge'", "base_micro_mxn": "10000"},
        {"type": "'recharge'", "recharge_id": "'first-acme'"},
        {"type": "'gift'"},
    ],
)
async def test_the_database_refuses_what_is_no_credit(redis_url: str, ledger_url: str, columns: dict[str, str]) -> None:
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        row = {"id": "'x'", "org_id": f"'{caller.org_id}'", "number": "2", "amount_micro_mxn": "1", "at": "'now'"}
        row |= columns
        with suppress(Exception):
            sql(ledger_url, f"INSERT INTO credit_transactions ({', '.join(row)}) VALUES ({', '.join(row.values())})")
        assert [one.new.credit_id for one in await listed(books)] == ["first-acme"]


async def test_credits_of_the_version_before_are_kept(redis_url: str, tmp_path: Path) -> None:
    """Their table is made anew in SQLite: rows and guards are there, and what they did not say is not made up."""
    before = sql_before(tmp_path / "l.db", 4)
    async with open_books(redis_url, tmp_path / "l.db") as books:
        (found,) = await listed(books, before)
        assert (found.new, found.balance_micro_mxn, found.actor) == (
            NewCredit("old", before, "recharge", UNIT),
            None,
            None,
        )
        assert await books.accounts.add_credit(before, "new", "chargeback", UNIT, recharge="old")
        assert (await books.ledger.credit("new")).new.tax is None, "what was paid for the recharge is not known"
        with pytest.raises(WrongField, match="exists already"):
            await books.ledger.add_credit(NewCredit("old", before, "bonus", 1), NOON, ACT)


def sql_before(file: Path, version: int) -> str:
    """Make a ledger of an earlier version with one credit; returns its organisation."""
    org_id = str(uuid4())
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE schema_version (version INTEGER PRIMARY KEY) STRICT")
        for number, script in migrations("sqlite")[:version]:
            db.executescript(script)
            db.execute("INSERT INTO schema_version VALUES (?)", (number,))
        db.execute(
            "INSERT INTO organizations (id, name, plan, created_at) VALUES (?, 'acme', 'default', '2026-01-01')",
            (org_id,),
        )
        db.execute(
            "INSERT INTO credit_transactions (id, org_id, type, number, amount_micro_mxn, at)"
            f" VALUES ('old', ?, 'recharge', 1, {UNIT}, '2026-01-02T00:00:00+00:00')",
            (org_id,),
        )
        db.execute(
            "INSERT INTO credit_transactions (id, org_id, type, amount_micro_mxn, at)"
            " VALUES ('event', ?, 'consumption', -1, '2026-01-02T00:00:00+00:00')",
            (org_id,),
        )
    db.close()
    return org_id
