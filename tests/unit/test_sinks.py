"""What each profile sends, to the letter; what an answer means; how batches are divided."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs

import orjson
import pytest

from metering.ports import ItemKind, Sold, ToSend
from metering.sinks.delivery import merged, parts_of, told
from metering.sinks.envelope import data_of, event_of
from metering.sinks.file import PROFILES, read_sinks
from metering.sinks.sink import Reply, Verdict
from tests.kits.books import NOW_US
from tests.kits.sinks import ORG, sink

ID = "0b0f7c1e5d3f4c0f8f6d8f8f2f1b7a90"


def item(kind: ItemKind = "charge", item_id: str = ID, attempts: int = 1, micro_mxn: int = 840_000) -> ToSend:
    """Make an item as the ledger reads it."""
    charged = kind == "charge"
    sold = Sold(
        event_id=item_id,
        order_id=ID,
        org_id=ORG,
        key_id="key_1",
        ended_us=NOW_US + 1_234_567 if charged else None,
        given_at=None if charged else "2036-12-01T05:59:59.999999+00:00",
        day="2036-11-22" if charged else None,
        month="2036-11" if charged else None,
        posted="2036-12" if charged else None,
        region="local",
        model="fal/flux-1.1-pro",
        provider="fal",
        upstream="fal-ai/flux-pro/v1.1",
        size="1024x1024",
        quality=None,
        images_asked=1 if charged else 0,
        quantity=1 if charged else 0,
        variant="" if charged else None,
        usd_per_image="0.04" if charged else None,
        price_book="2026-11-22" if charged else None,
        markup="1.05" if charged else None,
        mxn_per_usd="20.00" if charged else None,
        fx_month="2036-11" if charged else None,
        unit_micro_mxn=840_000 if charged else None,
        usd_measured=None,
        amount_micro_mxn=micro_mxn if charged else -micro_mxn,
    )
    return ToSend(kind, item_id, attempts, sold)


REFUND = item("refund", "refund-1", micro_mxn=1)


def test_the_envelope_of_a_charge() -> None:
    assert event_of(item(), "urn:x") == {
        "specversion": "1.0",
        "id": ID,
        "source": "urn:x",
        "type": "mx.geekhub.image.charged",
        "time": "2036-11-22T18:00:01.234567Z",
        "subject": ORG,
        "datacontenttype": "application/json",
        "data": {
            "kind": "charge",
            "order_id": ID,
            "org_id": ORG,
            "key_id": "key_1",
            "day": "2036-11-22",
            "month": "2036-11",
            "posting_month": "2036-12",
            "region": "local",
            "model": "fal/flux-1.1-pro",
            "provider": "fal",
            "upstream": "fal-ai/flux-pro/v1.1",
            "size": "1024x1024",
            "quality": None,
            "images_asked": 1,
            "quantity": 1,
            "variant": "",
            "usd_per_image": "0.04",
            "price_book": "2026-11-22",
            "markup": "1.05",
            "mxn_per_usd": "20.00",
            "fx_month": "2036-11",
            "unit_mxn": "0.84",
            "usd_measured": None,
            "amount_mxn": "0.84",
            "currency": "MXN",
        },
    }


def test_the_envelope_of_a_refund_is_of_the_day_on_which_it_was_given() -> None:
    """The last microsecond of November in Mexico City is December in UTC."""
    found = event_of(REFUND, "urn:x")
    assert (found["type"], found["id"]) == ("mx.geekhub.image.refunded", "refund-1")
    assert found["time"] == "2036-12-01T05:59:59.999999Z"
    data = data_of(REFUND)
    assert (data["day"], data["month"], data["posting_month"]) == ("2036-11-30", "2036-11", "2036-11")
    assert (data["amount_mxn"], data["quantity"], data["unit_mxn"]) == ("-0.000001", 0, None)


def test_cloudevents_in_three_modes(tmp_path: Path) -> None:
    structured = sink(tmp_path, "structured", "https://x.mx/in").message([item()])
    assert structured.headers == {"content-type": "application/cloudevents+json"}
    assert structured.target == "https://x.mx/in" and orjson.loads(structured.body)["id"] == ID
    odd = item("refund", 'a"b%c d')
    binary = sink(tmp_path, "binary", "https://x.mx/in").message([odd])
    assert binary.headers == {
        "content-type": "application/json",
        "ce-specversion": "1.0",
        "ce-id": "a%22b%25c%20d",
        "ce-source": "urn:geekhub:image-gateway",
        "ce-type": "mx.geekhub.image.refunded",
        "ce-time": "2036-12-01T05:59:59.999999Z",
        "ce-subject": ORG,
    }
    assert orjson.loads(binary.body) == data_of(odd)
    batched = sink(tmp_path, "openmeter", "https://x.mx/").message([item(), REFUND])
    assert batched.target == "https://x.mx/api/v1/events"
    assert batched.headers == {"content-type": "application/cloudevents-batch+json"}
    assert [one["id"] for one in orjson.loads(batched.body)] == [ID, "refund-1"]


def test_lagos_amount_is_exact_in_cents_and_its_timestamp_has_milliseconds(tmp_path: Path) -> None:
    one, other = orjson.loads(sink(tmp_path, "lago", "https://l.mx").message([item(micro_mxn=840_001), REFUND]).body)[
        "events"
    ]
    assert one["transaction_id"] == ID and one["external_subscription_id"] == ORG and one["code"] == "images"
    assert (one["precise_total_amount_cents"], one["timestamp"]) == ("84.0001", f"{NOW_US // 10**6 + 1}.234")
    assert other["precise_total_amount_cents"] == "-0.0001"
    assert one["properties"]["quantity"] == 1 and None not in one["properties"].values()


def test_stripes_form(tmp_path: Path) -> None:
    """An identifier has at most 100 characters; a longer id is hashed, always alike."""
    stripe = sink(tmp_path, "stripe", "https://api.stripe.mx")
    message = stripe.message([item()])
    assert message.target == "https://api.stripe.mx/v1/billing/meter_events"
    assert parse_qs(message.body.decode()) == {
        "event_name": ["images"],
        "identifier": [ID],
        "timestamp": [str(NOW_US // 10**6 + 1)],
        "payload[stripe_customer_id]": ["cus_acme"],
        "payload[value]": ["0.84"],
    }
    long = [parse_qs(stripe.message([item("refund", "x" * 101)]).body.decode())["identifier"][0] for _ in range(2)]
    assert len(set(long)) == 1 and len(long[0]) == 64


DUPLICATE_AT_LAGO = b'{"status": 422, "error_details": {"0": {"transaction_id": ["value_already_exist"]}}}'
DUPLICATE_AT_STRIPE = b'{"error": {"message": "An event already exists with identifier x."}}'


@pytest.mark.parametrize(
    ("profile", "status", "body", "count", "verdict"),
    [
        ("lago", 200, b"", 100, Verdict.DELIVERED),
        ("structured", 204, b"", 1, Verdict.DELIVERED),
        *(("structured", status, b"", 1, Verdict.LATER) for status in (101, 301, 307, 401, 403, 408, 409, 425, 429)),
        *(("lago", status, b"", 9, Verdict.LATER) for status in (302, 401, 403, 407, 429, 500, 503, 599)),
        *(("structured", status, b"", 1, Verdict.REFUSED) for status in (400, 404, 410, 413, 422)),
        *(("lago", status, b"", 2, Verdict.SPLIT) for status in (400, 404, 413, 422)),
        ("lago", 422, DUPLICATE_AT_LAGO, 1, Verdict.DELIVERED),
        ("lago", 422, DUPLICATE_AT_LAGO.replace(b'"0": {', b"").replace(b"}}}", b"}}"), 1, Verdict.DELIVERED),
        ("lago", 422, DUPLICATE_AT_LAGO, 2, Verdict.SPLIT),
        ("lago", 422, b'{"error_details": {"0": {"code": ["metric_not_found"]}}}', 1, Verdict.REFUSED),
        *(("lago", 422, body, 1, Verdict.REFUSED) for body in (b"", b"[]", b"null", b'{"error_details": []}')),
        ("stripe", 400, DUPLICATE_AT_STRIPE, 1, Verdict.DELIVERED),
        ("stripe", 404, DUPLICATE_AT_STRIPE, 1, Verdict.REFUSED),
        *(("stripe", 400, body, 1, Verdict.REFUSED) for body in (b"", b"[]", b'{"error": {"message": 1}}')),
    ],
)
def test_what_an_answer_means(
    profile: str, status: int, body: bytes, count: int, verdict: Verdict, tmp_path: Path
) -> None:
    assert sink(tmp_path, profile, "https://x.mx").verdict(Reply(status, body), count) is verdict


def sizes(parts: Sequence[Sequence[ToSend]]) -> list[int]:
    return [len(part) for part in parts]


def test_what_has_failed_is_sent_in_smaller_batches() -> None:
    fresh, failed = [item(item_id=f"a{n}") for n in range(205)], [item(item_id=f"b{n}", attempts=3) for n in range(60)]
    parts = list(parts_of([*failed, *fresh], 100))
    assert sizes(parts) == [100, 100, 5, 25, 25, 10]
    assert sizes(list(parts_of([item(attempts=60)] * 3, 100))) == [1, 1, 1]
    assert sizes(list(parts_of([item()] * 3, 1))) == [1, 1, 1]


def test_a_refusal_is_told_in_one_short_line() -> None:
    assert told(Reply(422, b"a\x00b\r\n\tc \xff")) == "it answers 422: a b c �"
    assert told(Reply(500)) == "it answers 500"
    assert len(told(Reply(500, b"x" * 10_000))) < 400
    assert merged([]) == []


def test_every_profile_says_what_becomes_of_repeats_and_is_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sinks.md").read_text()
    for name, profile in PROFILES.items():
        assert profile.REPEATS and f"| `{name}` |" in page


def test_the_example_of_the_docs_is_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "sinks.md").read_text()
    path = tmp_path / "sinks.toml"
    path.write_text(page.split("```toml\n")[1].split("```")[0])
    assert [one.profile for one in read_sinks(path)] == ["openmeter", "lago", "stripe", "cloudevents", "nats"]
    assert read_sinks(None) == ()
