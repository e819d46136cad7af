"""Set-aside events: kept byte for byte, named, put back, and booked once (rules 27 and 30)."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering import consumer as module
from metering import feeding as feeding_module
from metering.aside import amount_of, facts_of, facts_of_kept, left_out, pack, unpack
from metering.events import Event, EventError, decode
from metering.feeding import Feeding
from metering.ports import LedgerError, SetAside
from metering.verify import verify
from metering.wallet import keys
from metering.wallet.presence import Presence
from tests.kits.books import NOON, UNIT, Books, drain, make_groups, open_books, sql


class Refusal:
    """A consumer that takes every event but some, as one with a bug would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *requests: str) -> None:
        self.requests = set(requests)
        monkeypatch.setattr(module, "decode", self._decode)

    def _decode(self, fields: Mapping[bytes, bytes]) -> Event:
        event = decode(fields)
        if event.event_id in self.requests:
            raise EventError("refused for a test")
        return event


async def stored(path: str) -> bool:
    return True


async def differences(books: Books) -> list[str]:
    found = await verify(books.ledger, books.wallet, Presence(books.redis), stored)
    return [one.what for one in found]


def feeding(books: Books) -> Feeding:
    return Feeding(books.redis, books.ledger, books.wallet, books.projector)


@asynccontextmanager
async def consuming(books: Books) -> AsyncIterator[None]:
    """A consumer at work."""
    stop = asyncio.Event()
    task = asyncio.create_task(books.consumer().run(stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def test_a_poisoned_charge_is_put_back_and_booked_once(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused again it waits under a new name; repaired it is booked, and verify is clean, without a rebuild."""
    refusal = Refusal(monkeypatch, "r2")
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        for request in ("r1", "r2", "r3"):
            await books.charge(caller, request)
        await drain(books)
        (first,) = await books.ledger.set_asides()
        assert (first.order_id, first.org_id, first.error) == ("r2", caller.org_id, "refused for a test")
        assert (amount_of(first), first.name) == ("0.84", f"p{first.partition}-{first.entry_id}")
        assert await books.ledger.set_aside_of(["r1", "r2", "r3"]) == {"r2"}
        async with consuming(books):
            again = await feeding(books).retry(first, "cli:test")
            assert (again.outcome, again.error) == ("set aside again", "refused for a test")
            (second,) = await books.ledger.set_asides()
            assert second.entry_id == again.entry.entry_id != first.entry_id
            assert unpack(second.fields) == unpack(first.fields)
            with pytest.raises(LedgerError, match="was put back"):
                await feeding(books).retry(await books.ledger.set_aside(first.partition, first.entry_id), "cli:test")
            refusal.requests.clear()
            booked = await feeding(books).retry(second, "cli:test")
            assert (booked.outcome, booked.rebuilt) == ("booked", False)
        assert await books.ledger.count_set_aside() == 0
        assert await books.ledger.set_aside_of(["r2"]) == set()
        charged = await books.ledger.charged_up_to(caller.org_id)
        assert (charged.events, charged.charged_micro_mxn) == (3, 3 * UNIT)
        assert await differences(books) == []
        acts = [one for one in await books.ledger.audits(caller.org_id, 2**53, 10) if one.action == "event.retry"]
        assert [(one.actor, one.target) for one in acts] == [("cli:test", second.name), ("cli:test", first.name)]


@pytest.mark.parametrize("traffic", [False, True])
async def test_a_wallet_that_was_rebuilt_without_an_event_has_it_after_the_retry(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch, traffic: bool
) -> None:
    """The rebuild names what it gives back; put back, the event is charged in ledger and wallet alike."""
    refusal = Refusal(monkeypatch, "r2")
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        for request in ("r1", "r2"):
            await books.charge(caller, request)
        await drain(books)
        await books.projector.forget(None)
        await books.projector.round()
        assert (await books.cut(caller)).charged_micro_mxn == UNIT
        (left,) = await left_out(books.ledger, [keys.partition_of(caller.org_id)])
        assert (left.org_id, amount_of(left)) == (caller.org_id, "0.84")
        if traffic:
            await books.charge(caller, "r3")
        refusal.requests.clear()
        async with consuming(books):
            fed = await feeding(books).retry(left, "cli:test")
        assert (fed.outcome, fed.rebuilt) == ("booked", True)
        assert (await books.cut(caller)).charged_micro_mxn == (3 if traffic else 2) * UNIT
        assert await differences(books) == []


async def test_without_a_consumer_the_retry_says_so(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry waits in its stream; the next consumer books it."""
    refusal = Refusal(monkeypatch, "r1")
    monkeypatch.setattr(feeding_module, "PATIENCE_S", 0.3)
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        await books.charge(caller, "r1")
        await drain(books)
        (entry,) = await books.ledger.set_asides()
        assert (await feeding(books).retry(entry, "cli:test")).outcome == "waits for the consumer"
        refusal.requests.clear()
        await drain(books)
        assert (await books.ledger.charged_up_to(caller.org_id)).events == 1
        assert await differences(books) == []


@pytest.mark.parametrize("form", ["text", "decoded event"])
async def test_what_the_version_before_set_aside_can_be_put_back(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """It kept either the fields as text or the decoded event, and did not say whose it was."""
    Refusal(monkeypatch, "r1")
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        await books.charge(caller, "r1")
        await drain(books)
        (entry,) = await books.ledger.set_asides()
        fields = unpack(entry.fields)
        text = {name.decode(): value.decode() for name, value in fields.items()}
        old = orjson.dumps(text if form == "text" else decode(fields))
        blob = f"'\\x{old.hex()}'" if ledger_url.startswith("postgresql") else f"x'{old.hex()}'"
        sql(ledger_url, f"UPDATE events_set_aside SET fields = {blob}, request_id = NULL, org_id = NULL")
        monkeypatch.undo()
        (kept,) = await books.ledger.set_asides()
        assert (kept.order_id, kept.org_id, amount_of(kept)) == ("r1", caller.org_id, "0.84")
        assert await books.ledger.set_aside_of(["r1", "r2"]) == {"r1"}
        async with consuming(books):
            assert (await feeding(books).retry(kept, "cli:test")).outcome == "booked"
        assert await differences(books) == []


async def test_what_the_database_refused_is_booked_once_it_is_repaired(redis_url: str, ledger_url: str) -> None:
    """A trigger in its way: the entry is kept as it came over the stream, and booked when the trigger is gone."""
    if ledger_url.startswith("postgresql"):
        broken = (
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.event_id = 'r2' THEN"
            " RAISE EXCEPTION 'no' USING ERRCODE = 'check_violation'; END IF; RETURN NEW; END $$;"
            " CREATE TRIGGER no BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION no()"
        )
        repaired = "DROP TRIGGER no ON events"
    else:
        broken = (
            "CREATE TRIGGER no BEFORE INSERT ON events WHEN NEW.event_id = 'r2' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        repaired = "DROP TRIGGER no"
    async with open_books(redis_url, ledger_url) as books:
        caller = await books.org()
        sql(ledger_url, broken)
        for request in ("r1", "r2", "r3"):
            await books.charge(caller, request)
        entries: Any = await books.redis.xrange(keys.OrgKeys(caller.org_id).events)
        await drain(books)
        (entry,) = await books.ledger.set_asides()
        assert unpack(entry.fields) == entries[1][1]
        assert (entry.order_id, entry.org_id) == ("r2", caller.org_id)
        sql(ledger_url, repaired)
        async with consuming(books):
            assert (await feeding(books).retry(entry, "cli:test")).outcome == "booked"
        assert await differences(books) == []


async def test_entries_are_listed_page_by_page(redis_url: str, ledger_url: str) -> None:
    """Oldest first, each once; what was put back is not among them, and can be shown."""
    async with open_books(redis_url, ledger_url) as books:
        await make_groups(books.redis)
        entries = [SetAside(n % 3, f"{n}-0", "x", pack({b"n": str(n).encode()}), "", "") for n in range(7)]
        await books.ledger.book([], entries, NOON)
        page, names = await books.ledger.set_asides(most=2), []
        while page:
            names += [entry.name for entry in page]
            page = await books.ledger.set_asides(after=page[-1], most=2)
        assert sorted(names) == sorted(entry.name for entry in entries)


FIELDS = st.dictionaries(st.binary(min_size=1, max_size=20), st.binary(max_size=60), max_size=6)


@given(FIELDS)
def test_fields_are_kept_byte_for_byte(fields: dict[bytes, bytes]) -> None:
    """Whatever came over the stream, text or none; and what it says of itself is read without a fault."""
    assert unpack(pack(fields)) == fields
    facts_of(fields)


@given(st.binary(max_size=60) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(repr).map(str.encode))
def test_what_is_kept_in_no_known_form_is_said_to_be_nobodys(kept: bytes) -> None:
    """A row that a person wrote, or that is damaged, stops no list."""
    assert isinstance(facts_of_kept(kept).order_id, str)


def test_a_kept_form_is_text_where_it_can_be() -> None:
    """So that a person can read a row in the database."""
    kept: Any = orjson.loads(pack({b"end": b"charge", b"x": b"\xff"}))
    assert kept == {"fields": [["end", "charge"], ["x", {"base64": "/w=="}]]}
