"""CloudEvents 1.0 over HTTP, in the three modes of its binding; OpenMeter takes the third."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal
from urllib.parse import quote

import orjson
from pydantic import Field

from metering.ports import ToSend
from metering.sinks.envelope import attributes_of, data_of, event_of
from metering.sinks.sink import MAX_BATCH, HttpUrl, Message, Sink

_PLAIN = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')
"""Characters that stand in a header as they are."""


class CloudEventsSink(Sink):
    """Any receiver of CloudEvents. It answers 2xx if it has the event, also for a repeat."""

    REPEATS: ClassVar[str] = "what the receiver does: it must count each id of a source once, however late"

    profile: Literal["cloudevents"]
    url: HttpUrl
    mode: Literal["structured", "binary", "batched"] = "structured"
    batch: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 100

    @property
    def per_request(self) -> int:
        return self.batch if self.mode == "batched" else 1

    def message(self, items: Sequence[ToSend]) -> Message:
        if self.mode == "batched":
            return batched(self.address, items, self.source)
        (item,) = items
        if self.mode == "structured":
            content = {"content-type": "application/cloudevents+json"}
            return Message(self.address, orjson.dumps(event_of(item, self.source)), content)
        attributes = attributes_of(item, self.source)
        headers = {"content-type": attributes.pop("datacontenttype")}
        headers |= {f"ce-{name}": quote(value, safe=_PLAIN) for name, value in attributes.items()}
        return Message(self.address, orjson.dumps(data_of(item)), headers)


class OpenMeterSink(Sink):
    """OpenMeter's `POST /api/v1/events`, in batches."""

    REPEATS: ClassVar[str] = (
        "by id and source, for as long as OpenMeter is configured (24 h by default, 32 days in its examples; off unless"
        " `sink.dedupe.enabled`); counted again after that"
    )
    PATH: ClassVar[str] = "/api/v1/events"

    profile: Literal["openmeter"]
    url: HttpUrl
    batch: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 100

    @property
    def per_request(self) -> int:
        return self.batch

    def message(self, items: Sequence[ToSend]) -> Message:
        return batched(self.address, items, self.source)


def batched(address: str, items: Sequence[ToSend], source: str) -> Message:
    """Build a request in the batched mode."""
    body = orjson.dumps([event_of(item, source) for item in items])
    return Message(address, body, {"content-type": "application/cloudevents-batch+json"})
