"""The metering event on its way: two halves in, one event out, and nothing that is damaged."""

from dataclasses import fields as fields_of
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.clock import period_at
from metering.events import EventError, Opened, Proof, StoredImage, decode, encode_images, encode_opened
from metering.pricing import FxRate, Price, quote
from tests.long import examples

NOON_US = 1_795_370_400_000_000
ORG = "11111111-1111-4111-8111-111111111111"
IMAGE = StoredImage("2026/11/a_0.png", "image/png", 1000, "0" * 64, 32, 32)
FACTS = {"model": "m", "provider": "fal", "upstream": "u", "size": "1x1", "quality": None, "region": "local"}


def entry(**changes: bytes) -> dict[bytes, bytes]:
    """A stream entry of one charged image."""
    price = Price("m", Decimal("0.040"), Decimal("1.05"), "book")
    pinned = quote(price, FxRate("2026-11", Decimal(20), "test"), period_at(NOON_US), 2)
    usual = {
        b"number": b"7",
        b"end": b"charge",
        b"reason": b"delivered",
        b"quantity": b"1",
        b"amount": b"840000",
        b"admitted_us": b"1",
        b"ended_us": b"2",
        b"opened": encode_opened("r1", ORG, "key_1", pinned, FACTS),
        b"images": encode_images((IMAGE,)),
        b"usd_measured": b"",
        b"result": b"",
    }
    return usual | {name.encode(): value for name, value in changes.items()}


def opened(**changes: Any) -> bytes:
    """The admission's half with some fields changed."""
    return orjson.dumps(orjson.loads(entry()[b"opened"]) | changes)


def proof(**changes: Any) -> bytes:
    """The admission's half with some of the proof's fields changed."""
    return opened(proof=orjson.loads(entry()[b"opened"])["proof"] | changes)


def test_both_halves_come_back_as_one_event() -> None:
    """Every field of order, proof and images; decimals are canonical text."""
    event = decode(entry())
    assert event.opened == Opened(
        request_id="r1",
        org_id=ORG,
        key_id="key_1",
        images=2,
        day="2026-11-22",
        month="2026-11",
        proof=Proof("", "0.04", "book", "1.05", "20.00", "2026-11", "test", 840_000),
        **FACTS,  # type: ignore[arg-type]
    )
    assert (event.number, event.end, event.reason, event.quantity) == (7, "charge", "delivered", 1)
    assert (event.amount_micro_mxn, event.admitted_us, event.ended_us) == (840_000, 1, 2)
    assert event.images == (IMAGE,)
    assert event.event_id == "r1"
    assert event.opened.proof.decimals() == (Decimal("0.04"), Decimal("1.05"), Decimal(20))


def test_an_order_without_labels_is_as_the_version_before_writes_it() -> None:
    """A consumer of that version refuses a field that it does not know, so nothing is added to the others' orders."""
    assert orjson.loads(entry()[b"opened"]).keys() == {
        *("v", "request_id", "org_id", "key_id", "images", "day", "month", "proof"),
        *FACTS,
    }


def test_labels_come_back_with_their_order() -> None:
    """Each that there is; those of another form are refused."""
    labels = {"end_user": "0a", "safety_id": "0b", "tags": '["web","x"]', "metadata": '{"team":"shop"}'}
    event = decode(entry(opened=opened(**labels)))
    assert {name: getattr(event.opened, name) for name in labels} == labels
    for name in labels:
        alone = decode(entry(opened=opened(**{name: labels[name]}))).opened
        assert [one for one in labels if getattr(alone, one) is not None] == [name]
    for name, wrong in (
        ("tags", "{}"),
        ("tags", '["a",1]'),
        ("metadata", "[]"),
        ("metadata", '{"a":1}'),
        ("tags", "["),
    ):
        with pytest.raises(EventError):
            decode(entry(opened=opened(**{name: wrong})))


@pytest.mark.parametrize("field", sorted(name.decode() for name in entry()))
def test_a_missing_field_is_named(field: str) -> None:
    """The message says which one."""
    damaged = {name: value for name, value in entry().items() if name.decode() != field}
    with pytest.raises(EventError, match=field):
        decode(damaged)


@pytest.mark.parametrize("row", [Opened, Proof, StoredImage])
def test_a_field_of_another_type_is_refused(row: Any) -> None:
    """In order, proof and image alike: text must be text, and a number a number."""
    for field in fields_of(row):
        wrong: Any = {"wrong": "type"}
        if field.name in ("proof", "images") and row is Opened:
            wrong = [1.5]
        if row is Opened:
            damaged = entry(opened=opened(**{field.name: wrong}))
        elif row is Proof:
            damaged = entry(opened=proof(**{field.name: wrong}))
        else:
            image = orjson.loads(encode_images((IMAGE,)))[0] | {field.name: wrong}
            damaged = entry(images=orjson.dumps([image]))
        with pytest.raises(EventError):
            decode(damaged)


@pytest.mark.rule(30)
@pytest.mark.parametrize(
    "damaged",
    [
        {},
        {b"opened": b"null"},
        entry(opened=b"null"),
        entry(opened=b"5"),
        entry(opened=b"[]"),
        entry(opened=b"{"),
        entry(opened=opened(v=2)),
        entry(opened=opened(surprise=1)),
        entry(opened=opened(proof=None)),
        entry(opened=opened(images=True)),
        entry(opened=opened(images=0)),
        entry(opened=proof(mxn_per_usd="twenty")),
        entry(opened=proof(mxn_per_usd="NaN")),
        entry(opened=proof(unit_micro_mxn="840000")),
        entry(opened=proof(unit_micro_mxn=840_000.0)),
        entry(end=b"refund"),
        entry(end=b"void"),
        entry(end=b"\xff"),
        entry(number=b"1.5"),
        entry(number=b"0"),
        entry(number=b"9" * 30),
        entry(amount=b"840001"),
        entry(quantity=b"2", amount=b"1680000"),
        entry(quantity=b"0", amount=b"0", images=b"[]"),
        entry(images=b"null"),
        entry(images=b"5"),
        entry(images=b"[null]"),
        entry(images=encode_images((IMAGE,) * 3), quantity=b"3", amount=b"2520000"),
        entry(reason=b"\xff\xfe"),
    ],
)
def test_a_damaged_entry_is_an_event_error(damaged: dict[bytes, bytes]) -> None:
    """Nothing else is raised, so that one poison entry never stops the consumer (rule 30)."""
    with pytest.raises(EventError):
        decode(damaged)


@pytest.mark.parametrize("equal", [840_000.0, "840000"])
def test_a_proof_that_equals_a_known_one_is_still_checked(equal: Any) -> None:
    """Proofs are remembered by value and type: a float is refused after the same integer was accepted."""
    assert decode(entry()).opened.proof.unit_micro_mxn == 840_000
    with pytest.raises(EventError, match="unit_micro_mxn: has another type"):
        decode(entry(opened=proof(unit_micro_mxn=equal)))
    one = entry(opened=proof(unit_micro_mxn=1), amount=b"1")
    assert decode(one).opened.proof.unit_micro_mxn == 1
    with pytest.raises(EventError, match="unit_micro_mxn: has another type"):
        decode(one | {b"opened": proof(unit_micro_mxn=True)})


@given(st.dictionaries(st.sampled_from(sorted(entry())), st.binary(max_size=40), min_size=1))
@settings(max_examples=examples(300), derandomize=True)
def test_garbage_is_an_event_error_or_an_event(changes: dict[bytes, bytes]) -> None:
    """Whatever bytes a field holds, no other exception comes out."""
    try:
        event = decode(entry() | changes)
    except EventError:
        return
    assert event.amount_micro_mxn == event.quantity * event.opened.proof.unit_micro_mxn


@pytest.mark.rule(4)
def test_an_end_without_a_charge_has_no_images() -> None:
    """A void and an expiry are events of quantity and amount zero (rule 4)."""
    for end in (b"void", b"expiry"):
        event = decode(entry(end=end, reason=b"x", quantity=b"0", amount=b"0", images=b"[]"))
        assert (event.quantity, event.amount_micro_mxn, event.images) == (0, 0, ())
