"""Keys in the record, in both databases: their charges, the pages that may use them; keys from older versions."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from metering.events import Event
from metering.ledger import queries
from metering.ledger.record import SqlLedger
from metering.ports import ApiKey, Org
from tests.kits.books import ACT, NOON, SCHEMA, event, open_ledger, sql

ORG, OTHER = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


async def opened(ledger_url: str) -> SqlLedger:
    """A migrated ledger with two organisations."""
    ledger = open_ledger(ledger_url)
    await ledger.migrate()
    for org_id, name in ((ORG, "acme"), (OTHER, "other")):
        await ledger.create_org(Org(org_id, name, "default", NOON.isoformat()), ACT)
    return ledger


def key(number: int, **more: object) -> ApiKey:
    return replace(ApiKey(f"key_{number}", ORG, "web", f"{number:064x}", NOON.isoformat()), **more)  # type: ignore[arg-type]


def identity_of(org_id: str, key_id: str, number: int) -> Event:
    """A charge of this key, one second after the one before, with a result."""
    made = event(org_id, number)
    ended_us = made.ended_us + number * 1_000_000
    return replace(made, opened=replace(made.opened, key_id=key_id), ended_us=ended_us, result="{}")


async def test_what_some_keys_were_charged_is_found_among_all_the_others(ledger_url: str) -> None:
    """Latest first, as many as were asked for; usage likewise; nothing for no key, all without a word of keys."""
    ledger = await opened(ledger_url)
    names = ["a", "b", "c"]
    booked = [identity_of(ORG, names[number % 3], number) for number in range(1, 31)]
    foreign = [identity_of(OTHER, "a", number) for number in range(1, 4)]
    await ledger.book([*booked, *foreign], [], NOON)
    latest = booked[::-1]
    for asked in ((), ("a",), ("b", "c"), ("c", "a", "b"), ("unknown",), None):
        wanted = [one for one in latest if asked is None or one.opened.key_id in asked]
        for most in (1, 5, 100):
            found = await ledger.results(ORG, None, most, asked)
            assert [one.key.order_id for one in found] == [one.event_id for one in wanted[:most]]
            assert [one.delivered.key_id for one in found] == [one.opened.key_id for one in wanted[:most]]
        paged: list[str] = []
        after = None
        while page := await ledger.results(ORG, after, 4, asked):
            paged += [one.key.order_id for one in page]
            after = page[-1].key
        assert paged == [one.event_id for one in wanted]
        rows = await ledger.usage(ORG, "2036-11-01", "2036-11-30", ("key",), 100, asked)
        assert {row.key_id: row.orders for row in rows} == {
            name: 10 for name in names if asked is None or name in asked
        }
        total = await ledger.usage(ORG, "2036-11-01", "2036-11-30", (), 100, asked)
        assert sum(row.orders for row in total) == len(wanted)
    one = await ledger.result(ORG, booked[0].event_id)
    assert one is not None and one.key_id == "b"
    await ledger.aclose()


async def test_the_pages_of_keys_that_work_are_told_together(ledger_url: str) -> None:
    """Without keys that are revoked, or past their end at that moment."""
    ledger = await opened(ledger_url)
    ends = NOON + timedelta(hours=1)
    for one in (
        key(1),
        key(2, origins=("https://a.mx", "http://localhost:3000")),
        key(3, origins=("https://a.mx", "https://b.mx"), expires_at=ends.isoformat()),
        key(4, origins=("https://c.mx",)),
    ):
        await ledger.create_key(one, ACT)
    await ledger.revoke_key("key_4", NOON, ACT)
    late = {"https://a.mx", "http://localhost:3000"}
    assert await ledger.origins(ends - timedelta(microseconds=1)) == {*late, "https://b.mx"}
    assert await ledger.origins(ends) == await ledger.origins(ends + timedelta(microseconds=1)) == late
    assert (await ledger.key("key_3")).origins == ("https://a.mx", "https://b.mx")
    await ledger.aclose()


async def test_a_key_of_schema_3_goes_on_as_it_was(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one for some models: it reads its organisation's orders, answers with addresses, and is no page's."""
    ledger = open_ledger(ledger_url)
    every = queries.migrations
    with monkeypatch.context() as before:
        before.setattr(queries, "migrations", lambda dialect: every(dialect)[:3])
        assert await ledger.migrate() == 3
    at = datetime(2036, 1, 1, tzinfo=UTC).isoformat()
    sql(
        ledger_url,
        f"INSERT INTO organizations (id, name, plan, created_at) VALUES ('{ORG}', 'acme', 'default', '{at}')",
    )
    sql(
        ledger_url,
        "INSERT INTO api_keys (id, org_id, name, hash, created_at, models)"
        f" VALUES ('key_1', '{ORG}', 'web', 'h', '{at}', 'fal/flux-1.1-pro')",
    )
    assert await ledger.migrate() == SCHEMA
    found = await ledger.key("key_1")
    assert (found.read, found.response_format, found.origins, found.replaces) == ("org", "url", (), None)
    assert await ledger.origins(NOON) == set()
    await ledger.aclose()
