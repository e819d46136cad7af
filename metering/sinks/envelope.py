"""A charge or a refund as a CloudEvent. Pure, made from rows that never change: a repeat is the same to the byte."""

from datetime import datetime
from typing import Any

from metering.clock import period_at, unix_us_at, utc_at
from metering.money import format_mxn
from metering.ports import ItemKind, ToSend

TYPES: dict[ItemKind, str] = {"charge": "mx.geekhub.image.charged", "refund": "mx.geekhub.image.refunded"}


def time_us(item: ToSend) -> int:
    """Find when it was charged, or the refund given, in Unix µs."""
    sold = item.sold
    if sold.ended_us is not None:
        return sold.ended_us
    return unix_us_at(datetime.fromisoformat(sold.given_at or ""))


def time_of(item: ToSend) -> str:
    """Format the same as RFC 3339."""
    return f"{utc_at(time_us(item)):%Y-%m-%dT%H:%M:%S.%fZ}"


def data_of(item: ToSend) -> dict[str, Any]:
    """What was charged: money, prices and rates are decimal strings, days and months Mexico City's.

    Of a refund the amount is negative, and day and month are those in which it was given. No text of a user is in it,
    and no address of an image.
    """
    sold = item.sold
    period = period_at(time_us(item)) if item.kind == "refund" else None
    return {
        "kind": item.kind,
        "order_id": sold.order_id,
        "org_id": sold.org_id,
        "key_id": sold.key_id,
        "day": sold.day if period is None else period.day,
        "month": sold.month if period is None else period.month,
        "posting_month": sold.posted if period is None else period.month,
        "region": sold.region,
        "model": sold.model,
        "provider": sold.provider,
        "upstream": sold.upstream,
        "size": sold.size,
        "quality": sold.quality,
        "images_asked": sold.images_asked,
        "quantity": sold.quantity,
        "variant": sold.variant,
        "usd_per_image": sold.usd_per_image,
        "price_book": sold.price_book,
        "markup": sold.markup,
        "mxn_per_usd": sold.mxn_per_usd,
        "fx_month": sold.fx_month,
        "unit_mxn": None if sold.unit_micro_mxn is None else format_mxn(sold.unit_micro_mxn),
        "usd_measured": sold.usd_measured,
        "amount_mxn": format_mxn(sold.amount_micro_mxn),
        "currency": "MXN",
    }


def attributes_of(item: ToSend, source: str) -> dict[str, str]:
    """The attributes of its CloudEvent, version 1.0, without the data."""
    return {
        "specversion": "1.0",
        "id": item.item_id,
        "source": source,
        "type": TYPES[item.kind],
        "time": time_of(item),
        "subject": item.sold.org_id,
        "datacontenttype": "application/json",
    }


def event_of(item: ToSend, source: str) -> dict[str, Any]:
    """Its CloudEvent in the JSON format."""
    return {**attributes_of(item, source), "data": data_of(item)}
