"""Stream entries that could not be booked: kept so that a person can read them, and fed again byte for byte."""

import base64
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from metering.events import VERSION
from metering.money import MAX_MICRO_MXN, format_mxn
from metering.pages import pages
from metering.ports import Ledger, LedgerError, SetAside

Fields = Mapping[bytes, bytes]

_LONGEST_ID = 100
"""Maximum characters of what is taken as a request's or an organisation's id; ours have 36."""

_PLAIN = {
    "number": "number",
    "end": "end",
    "reason": "reason",
    "quantity": "quantity",
    "amount": "amount_micro_mxn",
    "admitted_us": "admitted_us",
    "ended_us": "ended_us",
    "usd_measured": "usd_measured",
    "result": "result",
}
"""Field of an entry → its name in a decoded event."""


@dataclass(frozen=True, slots=True)
class EventFacts:
    """What an entry says about its order. Empty or None for what cannot be read."""

    order_id: str = ""
    org_id: str = ""
    month: str = ""
    end: str = ""
    amount_micro_mxn: int | None = None


def pack(fields: Fields) -> bytes:
    """Encode an entry's fields for keeping: JSON, in which values that are not UTF-8 are base64."""
    return orjson.dumps({"fields": [[_text(name), _text(value)] for name, value in fields.items()]})


def unpack(kept: bytes) -> dict[bytes, bytes]:
    """Decode an entry's fields from what `pack` made, or from what an earlier version kept.

    An earlier version kept either the fields as text (with replacement characters for other bytes), or the decoded
    event. Raises ValueError.
    """
    try:
        document = orjson.loads(kept)
        if isinstance(fields := document.get("fields"), list):
            return {_bytes(name): _bytes(value) for name, value in fields}
        if isinstance(document.get("opened"), dict):
            return _stream_fields(document)
        return {name.encode(): value.encode() for name, value in document.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"no entry that was set aside: {error!r}") from None


def fields_of(entry: SetAside) -> Fields:
    """Read an entry's fields, to be fed again. Raises LedgerError if there are none."""
    try:
        fields = unpack(entry.fields)
    except ValueError:
        raise LedgerError(f"event {entry.name} is kept in a form that nobody can feed again") from None
    if not fields:
        raise LedgerError(f"event {entry.name} has no field: there is nothing to feed again")
    return fields


def facts_of_kept(kept: bytes) -> EventFacts:
    """Read what a kept entry says about its order."""
    try:
        return facts_of(unpack(kept))
    except ValueError:
        return EventFacts()


def facts_of(fields: Fields) -> EventFacts:
    """Read what an entry says about its order."""
    opened = _json(fields.get(b"opened", b""))
    opened = opened if isinstance(opened, dict) else {}
    return EventFacts(
        order_id=_id(opened.get("request_id")),
        org_id=_id(opened.get("org_id") or fields.get(b"org", b"").decode("utf-8", "replace")),
        month=_id(opened.get("month")),
        end="notice" if b"notice" in fields else _id(fields.get(b"end", b"").decode("utf-8", "replace")),
        amount_micro_mxn=_amount(fields.get(b"amount", b"")),
    )


def amount_of(entry: SetAside) -> str | None:
    """Charge of its order in MXN; None if it cannot be read."""
    facts = facts_of_kept(entry.fields)
    if facts.end == "notice":
        return "0.00"
    return None if facts.amount_micro_mxn is None else format_mxn(facts.amount_micro_mxn)


async def left_out(ledger: Ledger, partitions: Collection[int]) -> list[SetAside]:
    """List charges in these partitions that wait for a person: a rebuilt wallet does not contain them."""
    found: list[SetAside] = []
    async for page in pages(ledger.set_asides):
        found += [entry for entry in page if entry.partition in partitions and amount_of(entry) != "0.00"]
    return found


def _stream_fields(event: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Turn a decoded event back into its stream entry. Fields that the event does not have are left out."""
    found = {name: event[kept] for name, kept in _PLAIN.items() if kept in event}
    fields = {name.encode(): b"" if value is None else str(value).encode() for name, value in found.items()}
    fields[b"opened"] = orjson.dumps({"v": VERSION, **event["opened"]})
    if "images" in event:
        fields[b"images"] = orjson.dumps(event["images"])
    return fields


def _text(part: bytes) -> str | dict[str, str]:
    try:
        return part.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(part).decode()}


def _bytes(part: str | dict[str, str]) -> bytes:
    return part.encode() if isinstance(part, str) else base64.b64decode(part["base64"])


def _json(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _id(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= _LONGEST_ID and value.isprintable() else ""


def _amount(text: bytes) -> int | None:
    try:
        amount = int(text)
    except ValueError:
        return None
    return amount if abs(amount) <= MAX_MICRO_MXN else None
