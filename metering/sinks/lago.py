"""Lago's events, for a charge with the model `dynamic`: the amount is ours, to the last digit."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import Field, field_validator

from metering.money import format_mxn
from metering.ports import ToSend
from metering.sinks.envelope import data_of, time_us
from metering.sinks.sink import HttpUrl, Message, Reply, Sink

MAX_EVENTS = 100
"""Lago's own maximum of a batch."""

_DUPLICATE = "value_already_exist"


class LagoSink(Sink):
    """`POST /api/v1/events/batch`. `subscription` is the external id of the subscription, with `{org_id}` in it."""

    REPEATS: ClassVar[str] = (
        "for good: refused by transaction_id (422, taken for delivered), or, with Lago's ClickHouse, replaced by"
        " transaction_id and timestamp, which are the same"
    )
    PATH: ClassVar[str] = "/api/v1/events/batch"
    NEEDS_TOKEN: ClassVar[bool] = True

    profile: Literal["lago"]
    url: HttpUrl = "https://api.getlago.com"
    code: Annotated[str, Field(min_length=1)]
    subscription: Annotated[str, Field(min_length=1)] = "{org_id}"
    batch: Annotated[int, Field(ge=1, le=MAX_EVENTS)] = MAX_EVENTS

    @field_validator("subscription")
    @classmethod
    def _names_the_org(cls, value: str) -> str:
        if "{org_id}" not in value:
            raise ValueError("must have {org_id} in it, or all organisations would share a subscription")
        return value

    @property
    def per_request(self) -> int:
        return self.batch

    def message(self, items: Sequence[ToSend]) -> Message:
        body = orjson.dumps({"events": [self._event(item) for item in items]})
        return Message(self.address, body, {"content-type": "application/json"})

    def has_it(self, reply: Reply) -> bool:
        try:
            details = orjson.loads(reply.body)["error_details"]
            # Of a batch they are keyed by place; this one has one place.
            found = details.get("0", details)["transaction_id"]
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return False
        return reply.status == 422 and found == [_DUPLICATE]

    def _event(self, item: ToSend) -> dict[str, Any]:
        return {
            "transaction_id": item.item_id,
            "external_subscription_id": self.subscription.replace("{org_id}", item.sold.org_id),
            "code": self.code,
            "timestamp": _timestamp(time_us(item)),
            "precise_total_amount_cents": format_mxn(item.sold.amount_micro_mxn * 100),
            "properties": {name: value for name, value in data_of(item).items() if value is not None},
        }


def _timestamp(unix_us: int) -> str:
    """Format seconds with the milliseconds that Lago keeps."""
    seconds, micros = divmod(unix_us, 1_000_000)
    return f"{seconds}.{micros // 1_000:03d}"
