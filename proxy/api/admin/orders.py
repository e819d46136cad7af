"""One order as an operator reads it, by `ghub order show` and over HTTP: all that any part knows about it."""

from contextlib import suppress
from dataclasses import asdict
from typing import Any
from uuid import UUID

import orjson

from metering.clock import utc_at
from metering.events import Event, Proof, StoredImage, handovers
from metering.money import format_mxn
from metering.orders import Order, Orders
from metering.ports import Booked, Ledger, NotThere, OrderRecord, OrderSetAside, Refund
from metering.wallet.traces import Trace
from proxy.orders.result import public_id

Fields = dict[str, Any]

_ENDED = {"charge": "charged", "void": "void", "expiry": "expired"}


async def order_fields(orders: Orders, ledger: Ledger, public_url: str | None, order: str) -> Fields:
    """Return all that is known about an order. Raises NotThere if it surely is unknown; CannotKnow; LedgerAway."""
    found = await orders.look(order)
    opened, org_id = found.opened, found.org_id
    org_name = key_name = None
    with suppress(NotThere):
        org_name = None if org_id is None else (await ledger.org(org_id)).name
        key_name = None if opened is None else (await ledger.key(opened.key_id)).name
    charge = found.charge
    record = found.record
    return {
        "id": public_id(found.order_id),
        "order": found.order_id,
        "status": _status(found),
        "booked": bool(record.ends) and found.coming is None,
        "org": org_id,
        "org_name": org_name,
        "key_id": opened.key_id if opened else None,
        "key_name": key_name,
        "model": opened.model if opened else None,
        "provider": opened.provider if opened else None,
        "upstream": opened.upstream if opened else None,
        "size": opened.size if opened else None,
        "quality": opened.quality if opened else None,
        "region": opened.region if opened else None,
        "images_asked": opened.images if opened else None,
        "end_user": opened.end_user if opened else None,
        "safety_identifier": opened.safety_id if opened else None,
        "tags": orjson.loads(opened.tags) if opened and opened.tags else [],
        "metadata": orjson.loads(opened.metadata) if opened and opened.metadata else {},
        "admitted_at": _admitted_at(found),
        "day": opened.day if opened else None,
        "month": opened.month if opened else None,
        "price": _price(opened.proof) if opened else None,
        "quantity": charge.quantity if charge else 0,
        "amount_mxn": format_mxn(charge.amount_micro_mxn if charge else 0),
        "usd_measured": charge.usd_measured if charge else None,
        "refunded_mxn": format_mxn(record.refunded_micro_mxn),
        "refundable_mxn": format_mxn(found.refundable_micro_mxn),
        "result_kept": record.result_kept or (found.trace is not None and found.trace.result_kept),
        "ends": [_end(one.event, one) for one in record.ends] + ([_end(found.coming)] if found.coming else []),
        "images": [_image(image, public_url) for image in (charge.images if charge else ())],
        "refunds": [_refund(refund) for refund in record.refunds],
        "set_aside": [_set_aside(one) for one in record.set_aside],
        "redis": _redis(found, found.trace),
        "redis_away": found.away or None,
        "journals_not_closed": [
            {"incarnation": str(one.incarnation), "uncharged": one.uncharged} for one in found.journals
        ],
    }


def refund_fields(refund: Refund, record: OrderRecord) -> Fields:
    """Return a refund, and what can still be refunded of its order."""
    charged = record.charge.amount_micro_mxn if record.charge is not None else 0
    return {
        "id": refund.credit_id,
        "order": public_id(refund.order_id),
        "org": refund.org_id,
        "mxn": format_mxn(refund.amount_micro_mxn),
        "reason": refund.reason,
        "at": refund.at,
        "charged_mxn": format_mxn(charged),
        "refunded_mxn": format_mxn(record.refunded_micro_mxn),
        "refundable_mxn": format_mxn(charged - record.refunded_micro_mxn),
    }


def _status(found: Order) -> str:
    """Return an order's status. If it has two ends, the charge counts. An end that only Redis knows counts too, and is
    booked soon."""
    if found.charge is not None:
        return "charged"
    if found.trace is not None and found.trace.state not in _ENDED:
        return found.trace.state
    if found.ends:
        return _ENDED[found.ends[-1].end]
    if found.trace is not None:
        return _ENDED[found.trace.state]
    return "set_aside" if any(one.fed_again_at is None for one in found.record.set_aside) else "unknown"


def _admitted_at(found: Order) -> str | None:
    if found.ends:
        return utc_at(found.ends[0].admitted_us).isoformat()
    hold = found.trace.hold if found.trace is not None else None
    return None if hold is None else utc_at(hold.admitted_us).isoformat()


def _price(proof: Proof) -> Fields:
    return {
        "usd_per_image": proof.usd_per_image,
        "variant": proof.variant or None,
        "price_book": proof.price_book,
        "markup": proof.markup,
        "mxn_per_usd": proof.mxn_per_usd,
        "fx_month": proof.fx_month,
        "fx_source": proof.fx_source,
        "unit_mxn": format_mxn(proof.unit_micro_mxn),
    }


def _end(event: Event, booked: Booked | None = None) -> Fields:
    return {
        "end": event.end,
        "reason": event.reason,
        "ended_at": utc_at(event.ended_us).isoformat(),
        "booked_at": booked.booked_at if booked else None,
        "number": event.number,
        "quantity": event.quantity,
        "amount_mxn": format_mxn(event.amount_micro_mxn),
        "upstream_ids": orjson.loads(event.upstream_ids) if event.upstream_ids else [],
        "upstream_usd": event.upstream_usd,
        "handed_over": [_handover(*one) for one in handovers(event.handed)] if event.handed else [],
        "route": asdict(event.route) if event.route else None,
    }


def _handover(incarnation: UUID, number: int) -> Fields:
    return {"incarnation": str(incarnation), "number": number}


def _image(image: StoredImage, public_url: str | None) -> Fields:
    return {
        "path": image.path,
        "url": f"{public_url}/{image.path}" if public_url else None,
        "content_type": image.content_type,
        "bytes": image.size_bytes,
        "sha256": image.sha256,
        "width_px": image.width_px,
        "height_px": image.height_px,
    }


def _refund(refund: Refund) -> Fields:
    mxn = format_mxn(refund.amount_micro_mxn)
    return {"id": refund.credit_id, "mxn": mxn, "reason": refund.reason, "at": refund.at}


def _set_aside(one: OrderSetAside) -> Fields:
    return {
        "partition": one.partition,
        "entry": one.entry_id,
        "error": one.error,
        "at": one.at,
        "fed_again_at": one.fed_again_at,
    }


def _redis(found: Order, trace: Trace | None) -> Fields | None:
    """Return what Redis knows; null if Redis was not read. Redis remembers an end for a day."""
    if found.away:
        return None
    hold = trace.hold if trace is not None else None
    waiting = found.waiting
    ended = trace is not None and trace.state in _ENDED
    return {
        "state": trace.state if trace is not None else None,
        "reason": trace.reason if trace is not None and ended else None,
        "amount_mxn": format_mxn(trace.amount_micro_mxn) if trace is not None and ended else None,
        "hold": hold
        and {
            "held_mxn": format_mxn(hold.amount_micro_mxn),
            "images": hold.images,
            "expires_at": None if hold.expires_us is None else utc_at(hold.expires_us).isoformat(),
            "owner": hold.owner or None,
            "owner_lives": hold.owner_lives,
        },
        "waiting": waiting and {"partition": waiting.partition, "entry": waiting.entry_id},
    }
