"""A customer's delivered order, fetched again by its id, its idempotency key, or an SDK's own retry."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from metering.events import StoredImage
from metering.ports import Delivered

VERSION = 1


def public_id(order_id: str) -> str:
    """Return an order's id as its customer knows it: `req_` and 32 hex digits."""
    return f"req_{order_id.replace('-', '')}"


@dataclass(frozen=True, slots=True)
class Result:
    """A charged order. `prompts` belong to the images, None if the upstream did not change the prompt.

    `echo` is the upstream's own size, quality, background and output format. `served` is the model that it reports.
    """

    order_id: str
    created_s: int
    model_id: str
    served: str
    echo: Mapping[str, str]
    usage: Mapping[str, Any] | None
    prompts: tuple[str | None, ...]
    cost_micro_mxn: int
    images: tuple[StoredImage, ...]

    @property
    def public_id(self) -> str:
        """The order's id that its customer knows."""
        return public_id(self.order_id)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A charged order, and the remaining balance (None if Redis is away). `headers` are its rate-limit headers.

    `replayed`: it was placed, and charged, before.
    """

    result: Result
    available_micro_mxn: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    replayed: bool = False


def encode(result: Result) -> bytes:
    """Encode a result without its images, which the event contains."""
    return orjson.dumps(
        {
            "v": VERSION,
            "created_s": result.created_s,
            "model_id": result.model_id,
            "served": result.served,
            "echo": result.echo,
            "usage": result.usage,
            "prompts": result.prompts,
            "cost_micro_mxn": result.cost_micro_mxn,
        }
    )


def decode(delivered: Delivered) -> Result:
    """Decode a result, with its images."""
    fields = orjson.loads(delivered.document)
    fields.pop("v")
    fields["prompts"] = tuple(fields["prompts"])
    return Result(order_id=delivered.order_id, images=delivered.images, **fields)
