"""What a customer was delivered, and may fetch again: by the order's id, its idempotency key, or an SDK's own retry."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson

from metering.events import StoredImage
from metering.ports import Delivered

VERSION = 1


@dataclass(frozen=True, slots=True)
class Result:
    """A charged order. `prompts` go with the images, None where the upstream kept the prompt as it was.

    `echo` is the upstream's own size, quality, background and output format, `served` the model that it says it used.
    """

    request_id: UUID
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
        """The order's id as its customer knows it."""
        return f"req_{self.request_id.hex}"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A charged order, and what is left to spend; None where Redis is away. `headers` tell what is left of its rates.

    `replayed`: it was placed before, and charged then.
    """

    result: Result
    available_micro_mxn: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    replayed: bool = False


def encode(result: Result) -> bytes:
    """Without its images, which the event carries anyway."""
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
    """As it was encoded, with its images."""
    fields = orjson.loads(delivered.document)
    fields.pop("v")
    fields["prompts"] = tuple(fields["prompts"])
    return Result(request_id=UUID(delivered.request_id), images=delivered.images, **fields)
