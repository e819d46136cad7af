"""What the journal says: this order is answered 200, with all that its charge takes; or, that it is not after all."""

from dataclasses import asdict, dataclass
from typing import Any

import orjson

from metering.events import StoredImage, encode_images

VERSION = 1

PROMPT_CHARS = 4_000
"""Of a prompt that an upstream has rewritten: what the longest prompts of our models have. More is cut, and logged."""

USAGE_BYTES = 4 * 1024
"""Of an upstream's `usage` as JSON; a real one takes 200 bytes. A longer one is left out, and logged."""

_IMAGE_BYTES = 7 * PROMPT_CHARS + 1024
"""A rewritten prompt is JSON in JSON: a character takes seven bytes at most. And an image's path, hash and size."""

_ORDER_BYTES = 16 * 1024
"""Everything else: the admission's half of the event, `usage` with its quotes escaped, what the upstream echoes."""


class AnsweredError(ValueError):
    """An entry of the journal that is none of ours."""


@dataclass(frozen=True, slots=True)
class AnsweredOrder:
    """An order that is answered 200. `opened` is the admission's half of its event; times are Unix µs by Redis.

    `fingerprint` and `key_hash` are those of its placing; `client_gone` where nobody was there for the answer.
    """

    org_id: str
    key_id: str
    fingerprint: str
    key_hash: str | None
    client_gone: bool
    request_id: str
    amount_micro_mxn: int
    images: tuple[StoredImage, ...]
    usd_measured: str | None
    opened: bytes
    result: bytes
    admitted_us: int
    ended_us: int


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The order's hold died before the answer was sent: the client got an error, and nothing is charged."""

    request_id: str


def max_bytes(images: int) -> int:
    """The longest entry of an order of so many images, as far as its upstream's texts are bounded."""
    return _ORDER_BYTES + images * _IMAGE_BYTES


def encode(entry: AnsweredOrder | Withdrawn) -> bytes:
    """As bytes for the journal."""
    if isinstance(entry, Withdrawn):
        return orjson.dumps({"v": VERSION, "withdrawn": entry.request_id})
    fields = asdict(entry) | {
        "opened": entry.opened.decode(),
        "result": entry.result.decode(),
        "images": orjson.Fragment(encode_images(entry.images)),
    }
    return orjson.dumps({"v": VERSION, "answered": fields})


def decode(data: bytes) -> AnsweredOrder | Withdrawn:
    """Raises AnsweredError: an entry whose checksum holds was written by another version."""
    try:
        entry: dict[str, Any] = orjson.loads(data)
        if entry["v"] != VERSION:
            raise AnsweredError(f"version {entry['v']}")
        if "withdrawn" in entry:
            return Withdrawn(entry["withdrawn"])
        fields = entry["answered"]
        images = tuple(StoredImage(**image) for image in fields.pop("images"))
        return AnsweredOrder(
            **fields | {"images": images, "opened": fields["opened"].encode(), "result": fields["result"].encode()}
        )
    except (KeyError, TypeError, AttributeError, orjson.JSONDecodeError) as error:
        raise AnsweredError(f"{type(error).__name__} {error}") from None
