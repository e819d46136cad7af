"""Stripe's billing meters: a meter event for each charge, of what it cost or of how many images it had."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlencode

import orjson
from pydantic import Field

from metering.money import format_mxn
from metering.ports import ToSend
from metering.sinks.envelope import time_us
from metering.sinks.sink import CannotBeSent, HttpUrl, Message, Reply, Sink

MAX_IDENTIFIER = 100
"""Stripe's own maximum of an identifier, in characters. A credit's id may have 128."""

_DUPLICATE = "already exists with identifier"


class StripeSink(Sink):
    """`POST /v1/billing/meter_events`. `customers` maps organisations' ids to Stripe's customers.

    There is no `Idempotency-Key`: under one Stripe repeats its first answer, also if that was a failure.
    """

    REPEATS: ClassVar[str] = (
        "by identifier, for at least 24 h (400, taken for delivered); counted again after that. Events older than 35"
        " days are refused"
    )
    PATH: ClassVar[str] = "/v1/billing/meter_events"
    NEEDS_TOKEN: ClassVar[bool] = True

    profile: Literal["stripe"]
    url: HttpUrl = "https://api.stripe.com"
    event_name: Annotated[str, Field(min_length=1, max_length=100)]
    customers: Mapping[str, Annotated[str, Field(min_length=1)]]
    customer_key: str = "stripe_customer_id"
    value_key: str = "value"
    value: Literal["amount_mxn", "quantity"] = "amount_mxn"
    at_once: Annotated[int, Field(ge=1, le=32)] = 8

    def message(self, items: Sequence[ToSend]) -> Message:
        (item,) = items
        sold = item.sold
        customer = self.customers.get(sold.org_id)
        if customer is None:
            raise CannotBeSent(f"`customers` in GHUB_SINKS has no customer for organisation {sold.org_id}")
        value = format_mxn(sold.amount_micro_mxn) if self.value == "amount_mxn" else str(sold.quantity)
        fields = {
            "event_name": self.event_name,
            "identifier": identifier_of(item.item_id),
            "timestamp": str(time_us(item) // 1_000_000),
            f"payload[{self.customer_key}]": customer,
            f"payload[{self.value_key}]": value,
        }
        return Message(self.address, urlencode(fields).encode(), {"content-type": "application/x-www-form-urlencoded"})

    def has_it(self, reply: Reply) -> bool:
        try:
            message = orjson.loads(reply.body)["error"]["message"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return False
        return reply.status == 400 and isinstance(message, str) and _DUPLICATE in message


def identifier_of(item_id: str) -> str:
    """The id, or its SHA-256 if it is longer than Stripe's identifiers."""
    return item_id if len(item_id) <= MAX_IDENTIFIER else hashlib.sha256(item_id.encode()).hexdigest()
