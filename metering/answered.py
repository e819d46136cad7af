"""Entries of the journal: "this order is answered 200", with everything that its charge needs; or its withdrawal."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import orjson

from metering.events import UNTOLD, Route, StoredImage, Upstream

VERSION = 1

PROMPT_CHARS = 4_000
"""Maximum characters of a prompt that an upstream rewrote: our models' longest prompts. More is cut, and logged."""

USAGE_BYTES = 4 * 1024
"""Maximum size of an upstream's `usage` as JSON; a real one has 200 bytes. A larger one is left out, and logged."""

_IMAGE_BYTES = 7 * PROMPT_CHARS + 1024
"""A rewritten prompt is JSON inside JSON: at most seven bytes a character.

The rest is an image's path, hash and size.
"""

_ORDER_BYTES = 20 * 1024
"""Everything else: the event's half from the admission, `usage` with escaped quotes, the upstream's echo and ids."""


class AnsweredError(ValueError):
    """An entry that is not one of ours."""


@dataclass(frozen=True, slots=True)
class AnsweredOrder:
    """An order that is answered 200. `opened` is the event's half from the admission; times are Unix µs by Redis.

    `fingerprint` and `key_hash` are from the original request. `client_gone`: the client had left before its answer.
    `trace` is the `traceparent` of its request, empty if that is not traced.
    """

    org_id: str
    key_id: str
    fingerprint: str
    key_hash: str | None
    client_gone: bool
    order_id: str
    amount_micro_mxn: int
    images: tuple[StoredImage, ...]
    usd_measured: str | None
    opened: bytes
    result: bytes
    admitted_us: int
    ended_us: int
    upstream: Upstream = UNTOLD
    trace: str = ""


_IN_JOURNALS = {"order_id": "request_id"}
"""Fields of an `AnsweredOrder` that have another name there, for good."""

_UPSTREAM, _TRACE, _ROUTE = "upstream", "trace", "route"
"""Stand beside the order in its entry, and not in it: the version before refuses a field that it does not know there,
and passes over one here. They are left out if they are empty.
"""

_FIELDS = [
    (field.name, _IN_JOURNALS.get(field.name, field.name))
    for field in fields(AnsweredOrder)
    if field.name not in (_UPSTREAM, _TRACE)
]


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The order's hold ended before the answer was sent: the client got an error, and nothing is charged."""

    order_id: str


@dataclass(frozen=True, slots=True)
class TakenOver:
    """A long order that this gateway has taken over from another one. Its end is not in here."""

    order_id: str


def max_bytes(images: int, labels_bytes: int = 0) -> int:
    """Compute the maximum bytes of an entry with this many images. Its upstream's texts are limited.

    `labels_bytes` is what the order's tags and metadata add.
    """
    return _ORDER_BYTES + images * _IMAGE_BYTES + labels_bytes


def encode(entry: AnsweredOrder | Withdrawn | TakenOver) -> bytes:
    """Encode an entry for the journal."""
    if isinstance(entry, TakenOver):  # the version before passes over the withdrawal of what it has not read
        return orjson.dumps({"v": VERSION, "withdrawn": entry.order_id, "taken_over": True})
    if isinstance(entry, Withdrawn):
        return orjson.dumps({"v": VERSION, "withdrawn": entry.order_id})
    answered = {there: getattr(entry, name) for name, there in _FIELDS}
    answered["opened"] = entry.opened.decode()
    answered["result"] = entry.result.decode()
    # The route is not in `upstream`, because the version before refuses what it does not know there.
    told = asdict(entry.upstream)
    route = told.pop(_ROUTE)
    beside: dict[str, Any] = {_UPSTREAM: told} if any(told.values()) else {}
    beside |= {_ROUTE: route} if route is not None else {}
    beside |= {_TRACE: entry.trace} if entry.trace else {}
    return orjson.dumps({"v": VERSION, "answered": answered, **beside})


def decode(data: bytes) -> AnsweredOrder | Withdrawn | TakenOver:
    """Decode an entry. Raises AnsweredError: if its checksum is right, another version wrote it."""
    try:
        entry: dict[str, Any] = orjson.loads(data)
        if entry["v"] != VERSION:
            raise AnsweredError(f"version {entry['v']}")
        if "taken_over" in entry:
            return TakenOver(entry["withdrawn"])
        if "withdrawn" in entry:
            return Withdrawn(entry["withdrawn"])
        answered = entry["answered"]
        order_id, images = answered.pop("request_id"), tuple(StoredImage(**image) for image in answered.pop("images"))
        return AnsweredOrder(
            order_id=order_id,
            upstream=Upstream(**entry.get(_UPSTREAM, {}), route=Route(**entry[_ROUTE]) if _ROUTE in entry else None),
            trace=entry.get(_TRACE, ""),
            **answered
            | {"images": images, "opened": answered["opened"].encode(), "result": answered["result"].encode()},
        )
    except (KeyError, TypeError, AttributeError, orjson.JSONDecodeError) as error:
        raise AnsweredError(f"{type(error).__name__} {error}") from None
