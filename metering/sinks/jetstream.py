"""NATS JetStream: a CloudEvent for each charge, published to a subject that a stream keeps."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import orjson
from pydantic import Field

from metering.ports import ToSend
from metering.sinks.envelope import event_of
from metering.sinks.sink import Message, Sink

MESSAGE_ID = "Nats-Msg-Id"
"""The header by which JetStream recognises a repeat."""


class NatsSink(Sink):
    """JetStream, with the extra `nats`. Delivered is what a stream has acknowledged."""

    REPEATS: ClassVar[str] = (
        "by Nats-Msg-Id, within the stream's duplicate window (2 minutes by default); stored again after that, with the"
        " same id: consumers count an id once"
    )

    profile: Literal["nats"]
    url: Annotated[str, Field(pattern=r"^(nats|tls)://[^\s?#@]+$")]
    subject: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")] = "ghub.images"
    at_once: Annotated[int, Field(ge=1, le=32)] = 32

    def message(self, items: Sequence[ToSend]) -> Message:
        (item,) = items
        headers = {MESSAGE_ID: item.item_id, "Content-Type": "application/cloudevents+json"}
        return Message(self.subject, orjson.dumps(event_of(item, self.source)), headers)
