"""A long order as JSON, in its hold: what another gateway needs to go on with it."""

from typing import Any

import orjson

from config.catalogue import Catalogue
from metering.wallet.values import OrderIdentity
from proxy.ports import Order

VERSION = 1

_FIELDS = ("model_id", "prompt", "n", "size", "quality", "fields", "response_format", "user", "safety_identifier")


class Unreadable(Exception):
    """A document of another version, or of a model that is not offered here."""


def encode(order: Order, identity: OrderIdentity, measured_by: str | None = None) -> bytes:
    """Encode an order. Its tags, metadata and webhook are in its event; `measured_by` is its quote's, which is not."""
    told = {name: getattr(order, name) for name in _FIELDS}
    asked = {"fingerprint": identity.fingerprint, "key_hash": identity.key_hash, "tries": identity.tries}
    return orjson.dumps({"v": VERSION, "order": told, "identity": asked, "measured_by": measured_by})


def decode(document: bytes, catalogue: Catalogue) -> tuple[Order, OrderIdentity, str | None]:
    """Decode an order, its identity, and how its quote says that it is measured. Raises Unreadable."""
    try:
        told: dict[str, Any] = orjson.loads(document)
        if told["v"] != VERSION:
            raise Unreadable(f"version {told['v']}")
        order = told["order"]
        model = catalogue.models[order["model_id"]]
        return Order(model=model, **order), OrderIdentity(**told["identity"]), told.get("measured_by")
    except (KeyError, TypeError, orjson.JSONDecodeError) as error:
        raise Unreadable(f"{type(error).__name__} {error}") from None
