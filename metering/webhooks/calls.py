"""What webhooks are told, as JSON. Pure: the same event has the same body, however often it is made."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Literal, get_args

import orjson

from metering.clock import utc_at
from metering.events import CANCELLED, LONG, Event, Notice
from metering.limits import LIMITS
from metering.money import format_mxn
from metering.ports import ExpiringKey, WebhookCall

EventType = Literal[
    "image.generation.completed",
    "image.generation.failed",
    "image.generation.cancelled",
    "balance.low",
    "quota.threshold",
    "budget.threshold",
    "key.expiring",
    "model.retiring",
]
TYPES: tuple[EventType, ...] = get_args(EventType)

Explain = Callable[[Event], tuple[str, str]]
"""Code and message of the error that an order has ended with, as its customer would have had them."""

_MONEY = frozenset(kind.name for kind in LIMITS.values() if kind.money) | {"balance"}


def by_reason(event: Event) -> tuple[str, str]:
    """Explain an end by the reason in its event, if nobody knows errors of customers."""
    return event.reason, event.reason


def order_calls(events: Sequence[Event], explain: Explain) -> list[WebhookCall]:
    """Build what is told of the ends of long orders; of other orders, their clients have had the answer."""
    return [_order_call(event, explain) for event in events if event.opened.mode == LONG]


def _order_call(event: Event, explain: Explain) -> WebhookCall:
    opened = event.opened
    data: dict[str, Any] = {
        "id": f"req_{event.event_id.replace('-', '')}",
        "object": "image.generation",
        "status": "completed",
        "number": event.number,
        "model": opened.model,
        "images": {"asked": opened.images, "delivered": event.quantity},
        "cost_mxn": format_mxn(event.amount_micro_mxn),
        "key_id": opened.key_id,
        "metadata": {} if opened.metadata is None else orjson.loads(opened.metadata),
    }
    kind: EventType = "image.generation.completed"
    if event.end != "charge" and event.reason == CANCELLED:
        kind, data["status"] = "image.generation.cancelled", "cancelled"
    elif event.end != "charge":
        code, message = explain(event)
        status = "expired" if event.end == "expiry" else "failed"
        kind, data = "image.generation.failed", data | {"status": status, "error": {"code": code, "message": message}}
    body = _body(kind, utc_at(event.ended_us), data)
    return WebhookCall(opened.org_id, kind, event.event_id, body, opened.webhook)


def notice_call(notice: Notice) -> WebhookCall:
    """Build what is told of a threshold that an organisation, or one of its keys, has reached."""
    kind: EventType = "quota.threshold"
    if notice.what == "balance":
        kind = "balance.low"
    elif notice.what in _MONEY:
        kind = "budget.threshold"
    shown: Callable[[int], str | int] = format_mxn if notice.what in _MONEY else int
    data = {
        "object": "notice",
        "what": notice.what,
        "key_id": notice.key_id or None,
        "percent": notice.percent,
        "period": notice.period,
        "limit": shown(notice.limit),
        "used": shown(notice.used),
    }
    subject = " ".join((notice.key_id, notice.what, str(notice.percent), notice.period))
    return WebhookCall(notice.org_id, kind, subject, _body(kind, datetime.fromisoformat(notice.at), data))


def key_call(key: ExpiringKey, days: int, at: datetime) -> WebhookCall:
    """Build what is told of a key that expires within so many days."""
    data = {"object": "key", "key_id": key.key_id, "name": key.name, "expires_at": key.expires_at, "days": days}
    subject = f"{key.key_id} {key.expires_at} {days}"
    return WebhookCall(key.org_id, "key.expiring", subject, _body("key.expiring", at, data))


def model_call(org_id: str, model: str, ends: date, days: int, at: datetime) -> WebhookCall:
    """Build what is told of a model that its provider shuts down within so many days."""
    data = {"object": "model", "model": model, "shutdown_date": ends.isoformat(), "days": days}
    subject = f"{model} {ends.isoformat()} {days}"
    return WebhookCall(org_id, "model.retiring", subject, _body("model.retiring", at, data))


def _body(kind: EventType, at: datetime, data: Mapping[str, Any]) -> str:
    timestamp = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return orjson.dumps({"type": kind, "timestamp": timestamp, "data": data}).decode()
