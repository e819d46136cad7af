"""Whose image it was: pseudonyms, the record of whom they stand for, its erasure, and use by what orders carry."""

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from metering import end_users
from metering.end_users import BATCH, EndUsers
from metering.events import Event
from metering.ledger.record import SqlLedger
from metering.ports import Act, ApiKey, EndUser, LedgerAway, Org
from metering.pseudonyms import Pseudonyms
from metering.wallet.values import Caller
from tests.integration.test_usage import NOVEMBER, SECRETS, ask, customers, figures_of, served
from tests.kits.books import ACT, NOON, event, hash_of, open_books, open_ledger, sql

ORG, OTHER = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
PEOPLE = Pseudonyms("a secret")


async def opened(ledger_url: str) -> SqlLedger:
    """A migrated ledger with two organisations."""
    ledger = open_ledger(ledger_url)
    await ledger.migrate()
    for org_id, name in ((ORG, "acme"), (OTHER, "other")):
        await ledger.create_org(Org(org_id, name, "default", NOON.isoformat()), ACT)
    return ledger


def told(value: str, at: Any = NOON, org_id: str = ORG) -> EndUser:
    return EndUser(org_id, PEOPLE.of(org_id, value), value, at.isoformat())


def erasure(pseudonym: str) -> Act:
    return Act("ana", "enduser.erase", pseudonym, ORG)


def test_a_pseudonym_is_of_one_organisation_and_one_secret() -> None:
    """The same value has one, whichever field names it; nothing of the value is in it."""
    one = PEOPLE.of(ORG, "ana@example.com")
    assert one == PEOPLE.of(ORG, "ana@example.com")
    assert len({one, PEOPLE.of(OTHER, "ana@example.com"), PEOPLE.of(ORG, "ana"), Pseudonyms("b").of(ORG, "ana")}) == 4
    assert len(one) == 32 and int(one, 16)


async def test_every_gateway_of_a_ledger_has_the_same_secret(ledger_url: str) -> None:
    """It is made with the schema, and nothing changes it."""
    ledger = await opened(ledger_url)
    secret = await ledger.pseudonym_secret()
    assert len(secret) >= 64
    for statement in ("UPDATE pseudonym_keys SET secret = 'x'", "DELETE FROM pseudonym_keys"):
        with pytest.raises(Exception, match="append-only"):
            sql(ledger_url, statement)
    assert await ledger.pseudonym_secret() == secret
    await ledger.aclose()


async def test_whom_a_pseudonym_stands_for_is_told_once_and_can_be_erased(ledger_url: str) -> None:
    """What is told of an order before the erasure is not written any more; a later order's is."""
    ledger = await opened(ledger_url)
    ana, ben = told("ana"), told("ben")
    await ledger.tell_end_users([ben, ana])
    await ledger.tell_end_users([replace(ana, value="another"), told("ana", org_id=OTHER)])
    assert (await ledger.end_user(ORG, ana.pseudonym)).value == "ana"
    at = NOON + timedelta(minutes=1)
    assert await ledger.erase_end_user(ORG, ana.pseudonym, at, erasure(ana.pseudonym))
    await ledger.tell_end_users([ana, told("ana", at - timedelta(seconds=1))])
    assert (await ledger.end_user(ORG, ana.pseudonym)).value is None
    assert not await ledger.erase_end_user(ORG, ana.pseudonym, at, erasure(ana.pseudonym))
    assert (await ledger.end_user(OTHER, PEOPLE.of(OTHER, "ana"))).value == "ana"
    assert (await ledger.end_user(ORG, ben.pseudonym)).value == "ben"
    await ledger.tell_end_users([told("ana", at + timedelta(seconds=1))])
    assert (await ledger.end_user(ORG, ana.pseudonym)).value == "ana"
    audits = await ledger.audits(ORG, 2**53, 10, action="enduser.erase")
    assert [(one.target, one.details) for one in audits] == [(ana.pseudonym, "{}")] * 2
    await ledger.aclose()


async def test_the_record_of_end_users_waits_for_the_ledger(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is told once, in batches; while the ledger is away they wait, and the log has none of their names."""
    ledger = await opened(ledger_url)
    users = EndUsers(ledger, PEOPLE)
    real, calls = ledger.tell_end_users, []

    async def away(batch: Sequence[EndUser]) -> None:
        raise LedgerAway("away")

    async def counted(batch: Sequence[EndUser]) -> None:
        calls.append(len(batch))
        await real(batch)

    names = [f"user {number}" for number in range(BATCH + 7)]
    for name in [*names, *names]:
        users.tell(ORG, users.pseudonym(ORG, name), name)
    monkeypatch.setattr(ledger, "tell_end_users", away)
    with pytest.raises(LedgerAway):
        await users.flush()
    with capture_logs() as logs:
        await users.drain()
    assert [(line["event"], line["count"]) for line in logs] == [("end_users_unrecorded", BATCH + 7)]
    assert "user 1" not in str(logs)
    monkeypatch.setattr(ledger, "tell_end_users", counted)
    await users.drain()
    for name in names:
        users.tell(ORG, users.pseudonym(ORG, name), name)
    await users.flush()
    assert calls == [BATCH, 7]
    assert sql(ledger_url, f"SELECT count(*) FROM end_users WHERE org_id = '{ORG}'") == [(BATCH + 7,)]
    await ledger.aclose()


async def test_end_users_that_wait_or_are_remembered_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those above the maximum are left to their next order; one that is forgotten is told again."""
    monkeypatch.setattr(end_users, "MAX_WAITING", 3)
    monkeypatch.setattr(end_users, "MAX_TOLD", 2)
    ledger = await opened(f"sqlite:///{tmp_path / 'l.db'}")
    users = EndUsers(ledger, PEOPLE)
    for name in "abcde":
        users.tell(ORG, users.pseudonym(ORG, name), name)
    assert [one.value for one in users._waiting.values()] == ["a", "b", "c"]
    await users.flush()
    for name in "abcde":
        users.tell(ORG, users.pseudonym(ORG, name), name)
    assert [one.value for one in users._waiting.values()] == ["a", "d", "e"], "b and c are remembered"
    await users.flush()
    monkeypatch.setattr(end_users, "TOLD_S", -1.0)
    users.tell(ORG, users.pseudonym(ORG, "a"), "a")
    await users.flush()
    users.tell(ORG, users.pseudonym(ORG, "a"), "a")
    assert len(users._waiting) == 1, "after an hour it is told again"
    await ledger.aclose()


async def test_what_the_database_refuses_is_dropped_and_holds_up_nobody(ledger_url: str) -> None:
    """It is counted and logged without a name."""
    ledger = await opened(ledger_url)
    users = EndUsers(ledger, PEOPLE)
    users.tell(ORG, "p", None)  # type: ignore[arg-type]  # stands for any value that it does not take
    with capture_logs() as logs:
        await users.flush()
    assert [(line["event"], line["count"]) for line in logs] == [("end_users_refused", 1)]
    users.tell(ORG, users.pseudonym(ORG, "ben"), "ben")
    await users.flush()
    assert (await ledger.end_user(ORG, users.pseudonym(ORG, "ben"))).value == "ben"
    await ledger.aclose()


LABELS = ("user", "safety_identifier", "tag", "metadata.team", "metadata.tea", "metadata.empty")


def labelled(callers: dict[str, Caller]) -> list[Event]:
    """A month of charges and voids that carry everything, something, or nothing."""
    events = []
    for number in range(120):
        caller = callers["abz"[number % 3]]
        made = event(caller.org_id, number + 1, images=1 + number % 3, end="void" if number % 11 == 0 else "charge")
        user, metadata = f"user {number % 4}", {"team": f"t{number % 5}", "tea": "=x", "empty": ""}
        carries: dict[str, Any] = {
            "end_user": PEOPLE.of(caller.org_id, user) if number % 2 else None,
            "safety_id": PEOPLE.of(caller.org_id, "safe") if number % 3 else None,
            "tags": orjson.dumps(["one", "two"][: number % 3]).decode() if number % 3 else None,
            "metadata": orjson.dumps(metadata).decode() if number % 5 else None,
        }
        key_id, day = caller.key_id, f"2036-11-{1 + number % 3:02d}"
        events.append(replace(made, opened=replace(made.opened, key_id=key_id, day=day, **carries)))
    return events


def names_of(one: Event, label: str) -> list[str]:
    """What an order counts as, in clear."""
    opened = one.opened
    clear = {PEOPLE.of(opened.org_id, f"user {number}"): f"user {number}" for number in (1, 3)}
    match label:
        case "user":
            return [clear.get(opened.end_user or "", opened.end_user or "")]
        case "safety_identifier":
            return [opened.safety_id or ""]
        case "tag":
            return orjson.loads(opened.tags) if opened.tags else []
        case _:
            metadata = orjson.loads(opened.metadata) if opened.metadata else {}
            return [metadata.get(label.removeprefix("metadata."), "")]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("group_by", ["{}", "day,{}", "{},key,day", "model,{}"])
async def test_use_is_grouped_by_what_orders_carry(redis_url: str, ledger_url: str, label: str, group_by: str) -> None:
    """To the last order: those that carry nothing have an empty name, and the total is that of all orders."""
    by = group_by.format(label).split(",")
    async with open_books(redis_url, ledger_url) as books, served(books) as client:
        callers = await customers(books)
        org_id = callers["a"].org_id
        booked = labelled(callers)
        await books.ledger.book(booked, [], NOON)
        for user in ("user 1", "user 3", "safe"):
            if user != "safe":
                await books.ledger.tell_end_users([EndUser(org_id, PEOPLE.of(org_id, user), user, NOON.isoformat())])
        mine = [one for one in booked if one.opened.org_id == org_id and one.end == "charge"]
        wanted: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
        for one in mine:
            whole = {"day": one.opened.day, "model": one.opened.model, "key": one.opened.key_id}
            for name in names_of(one, label):
                figures = wanted[tuple(whole.get(part, name) for part in by)]
                for place, figure in enumerate((1, one.quantity, one.amount_micro_mxn)):
                    figures[place] += figure
        reply = await ask(client, group_by=",".join(by), **NOVEMBER)
        assert reply.status_code == 200, reply.text
        document = reply.json()
        column = label.partition(".")[0]
        columns = [{"key": "key_id"}.get(part, column if part == label else part) for part in by]
        found = [(tuple(row[name] for name in columns), figures_of(row)) for row in document["data"]]
        assert found == sorted((group, tuple(figures)) for group, figures in wanted.items())
        assert document["group_by"] == by
        every = (len(mine), sum(one.quantity for one in mine), sum(one.amount_micro_mxn for one in mine))
        assert figures_of(document["total"]) == every
        if label != "tag":
            assert tuple(map(sum, zip(*(figures for _, figures in found), strict=True))) == every
        table = await ask(client, accept="text/csv", group_by=",".join(by), **NOVEMBER)
        rows = list(csv.DictReader(io.StringIO(table.text, newline="")))
        shown = [(tuple(row[name] for name in columns), figures_of(row)) for row in rows]
        quoted = [(tuple(f"'{cell}" if cell == "=x" else cell for cell in group), row) for group, row in found]
        assert shown == quoted  # no spreadsheet runs a value of the metadata


async def test_a_key_that_reads_its_own_orders_sees_its_own_end_users(redis_url: str, ledger_url: str) -> None:
    """And what is left of its own total, not of its organisation's."""
    async with open_books(redis_url, ledger_url) as books, served(books) as client:
        callers = await customers(books)
        org_id, secret = callers["a"].org_id, f"ghub_sk_live_{'o' * 32}"
        own = ApiKey("key_o", org_id, "own", hash_of(secret), NOON.isoformat(), read="own")
        await books.ledger.create_key(own, ACT)
        await books.projector.round()
        booked = [
            replace(one, opened=replace(one.opened, key_id="key_o")) if one.number % 9 < 3 else one
            for one in labelled(callers)
        ]
        await books.ledger.book(booked, [], NOON)
        charged = [one for one in booked if one.end == "charge"]
        mine = [one for one in charged if (one.opened.org_id, one.opened.key_id) == (org_id, "key_o")]
        SECRETS["o"] = secret
        try:
            for label in ("user", "tag"):
                document = (await ask(client, "o", group_by=label, **NOVEMBER)).json()
                assert document["total"]["orders"] == len(mine) > 0
                wanted: dict[str, int] = defaultdict(int)
                for one in mine:
                    for name in names_of(replace(one, opened=replace(one.opened, org_id="")), label):
                        wanted[name] += 1
                assert {row[label]: row["orders"] for row in document["data"]} == wanted
        finally:
            del SECRETS["o"]


async def test_two_of_what_orders_carry_are_refused(redis_url: str, tmp_path: Path) -> None:
    """And a key of the metadata that no order can have."""
    async with open_books(redis_url, tmp_path / "l.db") as books, served(books) as client:
        await customers(books)
        for group_by, words in (
            ("user,tag", "one of"),
            ("metadata.a,metadata.b", "one of"),
            ("metadata.", "none of"),
            ("metadata", "none of"),
            (f"metadata.{'k' * 65}", "none of"),
            ("user,user", "twice"),
        ):
            error = (await ask(client, group_by=group_by)).json()["error"]
            assert (error["param"], error["code"]) == ("group_by", "invalid_request_error")
            assert words in error["message"]


async def test_the_longest_labels_are_booked(ledger_url: str) -> None:
    """Names of four bytes a character stay within what the database's index takes."""
    ledger = await opened(ledger_url)
    metadata = {f"{number:x}" + "𝄞" * 63: "𝄞" * 512 for number in range(5)}
    tags = [f"{number:x}" + "𝄞" * 63 for number in range(16)]
    made = event(ORG, 1)
    opened_ = replace(
        made.opened,
        tags=orjson.dumps(tags).decode(),
        metadata=orjson.dumps(metadata).decode(),
        key_id="k" * 64,
        model="m" * 64,
    )
    await ledger.book([replace(made, opened=opened_)], [], NOON)
    for key, value in metadata.items():
        rows, total = await ledger.usage_by(ORG, "2036-01-01", "2036-12-31", (), "metadata", f"{key}=", 10)
        assert [(row.name, row.orders) for row in rows] == [(value, 1)] and total.orders == 1
    rows, _ = await ledger.usage_by(ORG, "2036-01-01", "2036-12-31", (), "tag", "", 100)
    assert {row.name for row in rows} == set(tags)
    await ledger.aclose()
