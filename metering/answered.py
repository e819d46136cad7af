"""What the journal says: this order is answered 200, with all that its charge takes; or, that it is not after all."""

from dataclasses import asdict, dataclass
from typing import Any

import orjson

from metering.events import StoredImage, encode_images

VERSION = 1


class AnsweredError(ValueError):
    """An entry of the journal that is none of ours."""


@dataclass(frozen=True, slots=True)
class Answered:
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


def encode(entry: Answered | Withdrawn) -> bytes:
    """As bytes for the journal."""
    if isinstance(entry, Withdrawn):
        return orjson.dumps({"v": VERSION, "withdrawn": entry.request_id})
    fields = asdict(entry) | {
        "opened": entry.opened.decode(),
        "result": entry.result.decode(),
        "images": orjson.Fragment(encode_images(entry.images)),
    }
    return orjson.dumps({"v": VERSION, "answered": fields})


def decode(data: bytes) -> Answered | Withdrawn:
    """Raises AnsweredError: an entry whose checksum holds was written by another version."""
    try:
        entry: dict[str, Any] = orjson.loads(data)
        if entry["v"] != VERSION:
            raise AnsweredError(f"version {entry['v']}")
        if "withdrawn" in entry:
            return Withdrawn(entry["withdrawn"])
        fields = entry["answered"]
        images = tuple(StoredImage(**image) for image in fields.pop("images"))
        return Answered(
            **fields | {"images": images, "opened": fields["opened"].encode(), "result": fields["result"].encode()}
        )
    except (KeyError, TypeError, AttributeError, orjson.JSONDecodeError) as error:
        raise AnsweredError(f"{type(error).__name__} {error}") from None


def standing(entries: list[bytes]) -> list[Answered]:
    """The orders of a journal that are answered and not withdrawn, in the order of their entries."""
    answered: dict[str, Answered] = {}
    for data in entries:
        entry = decode(data)
        if isinstance(entry, Withdrawn):
            answered.pop(entry.request_id, None)
        else:
            answered[entry.request_id] = entry
    return list(answered.values())
